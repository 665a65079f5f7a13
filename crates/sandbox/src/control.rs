//! `/sandbox/…`: what a developer, or a test, does to this WeChat from outside.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{self, Query, Request, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::{Host, Url};

use crate::{
    fault::Fault,
    oauth::Authorize,
    state::{Deliver, Error, State},
    user_data::UserDataKind,
};

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/sandbox/accounts", get(accounts))
        .route("/sandbox/users", post(user))
        .route("/sandbox/login", post(login))
        .route("/sandbox/form", post(form))
        .route("/sandbox/media", post(media))
        .route("/sandbox/user-data", post(user_data))
        .route("/sandbox/phone-code", post(phone_code))
        .route("/sandbox/authorize", post(authorize))
        .route("/sandbox/refusals", post(refusals))
        .route("/sandbox/inbox", get(inbox).delete(clear_inbox))
        .route("/sandbox/deliver", post(deliver))
        .route("/sandbox/verify", post(verify))
        .route("/sandbox/calls", get(calls))
        .route("/sandbox/faults", post(add_fault).delete(clear_faults))
        .route("/sandbox/invalidate", post(invalidate))
        .route("/sandbox/reset-secret", post(reset_secret))
        .route("/sandbox/clock", post(clock))
        .route("/sandbox/{*unknown}", axum::routing::any(unknown))
        .layer(middleware::from_fn(tell_local_pages))
}

/// Lets pages on this machine read the answers: wxhub's debug page plays the phone by them. No page of the web may.
async fn tell_local_pages(request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN);
    let origin = origin.filter(|origin| is_local(origin)).cloned();
    let mut response = next.run(request).await;
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn is_local(origin: &HeaderValue) -> bool {
    let url = origin
        .to_str()
        .ok()
        .and_then(|origin| Url::parse(origin).ok());
    url.is_some_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Account {
    app_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountUser {
    app_id: String,
    open_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserChange {
    app_id: String,
    open_id: Option<String>,
    follows: Option<bool>,
    blocks: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    app_id: String,
    open_id: Option<String>,
    #[serde(default)]
    kind: UserDataKind,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusals {
    r#return: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    app_id: Option<String>,
    open_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    app_id: String,
    secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: u64,
}

async fn accounts(extract::State(state): extract::State<State>) -> Response {
    Json(json!({"accounts": state.accounts()})).into_response()
}

async fn user(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let UserChange {
        app_id,
        open_id,
        follows,
        blocks,
    } = parse(&body)?;
    let user = state.user(&app_id, open_id.as_deref(), follows)?;
    if let Some(blocks) = blocks {
        state.block(&app_id, &user.open_id, blocks)?;
    }
    Ok(Json(user).into_response())
}

async fn login(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let AccountUser { app_id, open_id } = parse(&body)?;
    Ok(Json(state.login(&app_id, open_id.as_deref())?).into_response())
}

async fn form(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let AccountUser { app_id, open_id } = parse(&body)?;
    Ok(Json(state.form(&app_id, open_id.as_deref())?).into_response())
}

async fn media(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let Account { app_id } = parse(&body)?;
    Ok(Json(state.media(&app_id)?).into_response())
}

async fn user_data(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let Wanted {
        app_id,
        open_id,
        kind,
    } = parse(&body)?;
    Ok(Json(state.user_data(&app_id, open_id.as_deref(), kind)?).into_response())
}

async fn phone_code(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let AccountUser { app_id, open_id } = parse(&body)?;
    Ok(Json(state.phone_code(&app_id, open_id.as_deref())?).into_response())
}

async fn authorize(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let request: Authorize = parse(&body)?;
    Ok(Json(state.authorize(&request)?).into_response())
}

async fn refusals(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let Refusals { r#return } = parse(&body)?;
    state.set_refusals_return(r#return);
    Ok(StatusCode::NO_CONTENT)
}

async fn inbox(
    extract::State(state): extract::State<State>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Filter { app_id, open_id }) = filter?;
    let messages = state.inbox(app_id.as_deref(), open_id.as_deref());
    Ok(Json(json!({"messages": messages})).into_response())
}

async fn clear_inbox(extract::State(state): extract::State<State>) -> StatusCode {
    state.clear_inbox();
    StatusCode::NO_CONTENT
}

async fn deliver(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let request: Deliver = parse(&body)?;
    Ok(Json(state.deliver(request).await?).into_response())
}

async fn verify(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let Account { app_id } = parse(&body)?;
    Ok(Json(state.verify(&app_id).await?).into_response())
}

async fn calls(
    extract::State(state): extract::State<State>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Filter { app_id, open_id }) = filter?;
    if open_id.is_some() {
        return Err(Refusal::bad_request(
            "calls are of accounts: leave open_id out",
        ));
    }
    Ok(Json(state.calls(app_id.as_deref())).into_response())
}

async fn add_fault(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let fault: Fault = parse(&body)?;
    state.add_fault(fault)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clear_faults(extract::State(state): extract::State<State>) -> StatusCode {
    state.clear_faults();
    StatusCode::NO_CONTENT
}

async fn invalidate(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let Account { app_id } = parse(&body)?;
    state.invalidate(&app_id)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn reset_secret(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let Secret { app_id, secret } = parse(&body)?;
    state.reset_secret(&app_id, secret)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clock(
    extract::State(state): extract::State<State>,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let Advance { advance_seconds } = parse(&body)?;
    Ok(Json(
        json!({"now": state.advance_clock(Duration::from_secs(advance_seconds))}),
    ))
}

async fn unknown() -> Refusal {
    Refusal {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        message: "no such verb".to_owned(),
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))
}

/// `{"code","message"}` with a fitting status.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "invalid_request",
            message: message.into(),
        }
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::UnknownApp(_) => Self {
                status: StatusCode::NOT_FOUND,
                code: "unknown_app",
                message,
            },
            Error::Invalid(_) => Self::bad_request(message),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(json!({"code": self.code, "message": self.message})),
        )
            .into_response()
    }
}
