//! The internal HTTP port: a door for the SDKs that teams already use. They speak to it as to WeChat, with the team's caller
//! key for the AppSecret.
//!
//! What is served is what [`Broker::get`] serves. What an SDK does about a dead token, it asks for another, makes
//! [`Prober`] find out.

mod refusal;
mod request;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use service_kit::Scope;
use wechat::TicketType;

use self::{
    refusal::Refusal,
    request::{Parameters, TokenRequest},
};
use crate::{
    broker::Broker,
    credential::{Key, digest},
    probe::Prober,
};

#[derive(Debug)]
struct Door {
    broker: Broker,
    prober: Prober,
}

#[derive(Serialize)]
struct TokenAnswer<'a> {
    access_token: &'a str,
    /// Seconds.
    expires_in: u64,
}

#[derive(Serialize)]
struct TicketAnswer<'a> {
    errcode: i64,
    errmsg: &'static str,
    ticket: &'a str,
    /// Seconds.
    expires_in: u64,
}

pub(crate) fn router(broker: Broker, prober: Prober) -> Router {
    let get_alone = || async { Refusal::REQUIRE_GET };
    let post_alone = || async { Refusal::REQUIRE_POST };
    Router::new()
        .route("/cgi-bin/token", get(token).fallback(get_alone))
        .route(
            "/cgi-bin/stable_token",
            post(stable_token).fallback(post_alone),
        )
        .route("/cgi-bin/ticket/getticket", get(ticket).fallback(get_alone))
        .with_state(Arc::new(Door { broker, prober }))
}

async fn token(State(door): State<Arc<Door>>, request: Request) -> Result<Response, Refusal> {
    let query = Parameters::of(&request);
    door.token(&TokenRequest::from_query(&query)).await
}

async fn stable_token(
    State(door): State<Arc<Door>>,
    request: Request,
) -> Result<Response, Refusal> {
    let request = TokenRequest::from_body(request).await?;
    door.token(&request).await
}

async fn ticket(State(door): State<Arc<Door>>, request: Request) -> Result<Response, Refusal> {
    let query = Parameters::of(&request);
    let kind = match query.get("type") {
        Some("jsapi") => TicketType::Jsapi,
        Some("wx_card") => TicketType::WxCard,
        _ => return Err(Refusal::INVALID_TYPE),
    };
    let token = query
        .get("access_token")
        .ok_or(Refusal::ACCESS_TOKEN_MISSING)?;
    door.ticket(&token.into(), kind).await
}

impl Door {
    async fn token(&self, request: &TokenRequest) -> Result<Response, Refusal> {
        let asked = request.checked()?;
        let catalog = self.broker.catalog().current();
        let caller = catalog
            .caller(asked.secret)
            .ok_or(Refusal::INVALID_APP_SECRET)?;
        if !caller.scopes.contains(&Scope::TokenRead) {
            return Err(Refusal::scope_missing(&caller.name));
        }
        let app = catalog
            .app(asked.app)
            .filter(|app| caller.apps.contains(&app.app_id))
            .ok_or(Refusal::INVALID_APP_ID)?;
        let key = Key::access_token(&app.app_id);

        let mut held = self.broker.get(&key).await?;
        let version = held.credential.version;
        let again = self.prober.gets_again(&caller.name, &key.app, version);
        if again || asked.force_refresh {
            held = self.prober.verified(&key, held).await?;
        }
        if asked.force_refresh && held.credential.version == version {
            return Err(Refusal::FORCE_REFRESH);
        }
        let now = self.broker.clock().now();
        let left = held.use_until(now).duration_since(now);
        Ok(answer(TokenAnswer {
            access_token: held.credential.secret.expose_secret(),
            expires_in: left.unwrap_or_default().as_secs(),
        }))
    }

    async fn ticket(&self, token: &SecretString, kind: TicketType) -> Result<Response, Refusal> {
        let digest = digest(token);
        let catalog = self.broker.catalog().current();
        // Digests are compared, so that time tells nothing of a token.
        let shown = catalog.apps().iter().find(|app| {
            let token = Key::access_token(&app.app_id);
            let slot = self.broker.existing(&token);
            slot.is_some_and(|slot| slot.honours(&digest))
        });
        let key = Key {
            app: shown.ok_or(Refusal::INVALID_CREDENTIAL)?.app_id.clone(),
            kind: kind.into(),
        };
        let held = self.broker.get(&key).await?;
        let now = self.broker.clock().now();
        let left = held.use_until(now).duration_since(now);
        Ok(answer(TicketAnswer {
            errcode: 0,
            errmsg: "ok",
            ticket: held.credential.secret.expose_secret(),
            expires_in: left.unwrap_or_default().as_secs(),
        }))
    }
}

/// WeChat's answers are JSON with status 200, be they good or bad; no proxy may keep one.
fn answer(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
