//! `/debug`: an H5 page to try everything with, without WeChat. It exists under `wxhub dev` alone.

use askama::Template;
use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use service_kit::{AppKind, http};
use url::{Url, form_urlencoded};

use super::browser::session_with;
use crate::{
    Auth,
    page::{self, Language},
};

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/debug", get(debug))
        .route("/debug.css", get(style))
        .route("/debug.js", get(script))
}

#[derive(Template)]
#[template(path = "debug.html")]
struct Page {
    language: Language,
    /// The official account to sign in with, and the links that do; empty where there is none.
    app: String,
    is_signed_in: bool,
    base: String,
    user_info: String,
    mini_program: String,
    sandbox: String,
}

async fn debug(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, http::Error> {
    let query = query.unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let lang = pairs.find(|(name, _)| name == "lang");
    let language = Language::of(lang.as_ref().map(|(_, value)| value.as_ref()), &headers);
    let public_url = auth.public_url().map_err(|error| auth.status(&error))?;
    let mut own = public_url.clone();
    own.set_path("/debug");
    own.query_pairs_mut().append_pair("lang", language.tag());

    let catalog = auth.catalog.current();
    let host = public_url.host_str().unwrap_or_default();
    let returns = |hosts: &[String]| hosts.iter().any(|known| known == host);
    let account = catalog
        .apps()
        .iter()
        .find(|app| app.kind == AppKind::OfficialAccount && returns(&app.oauth_return_hosts));
    let start = |scope: &str| {
        account.map_or_else(String::new, |app| {
            let mut url = public_url.clone();
            url.set_path(&format!("/oauth/{}/start", app.name));
            url.query_pairs_mut()
                .append_pair("scope", scope)
                .append_pair("return_to", own.as_str());
            url.into()
        })
    };
    let mini_program = catalog
        .apps()
        .iter()
        .find(|app| app.kind == AppKind::MiniProgram);
    let sandbox = origin(&auth.open_url);
    let page = Page {
        language,
        app: account.map_or_else(String::new, |app| app.name.clone()),
        is_signed_in: account.is_some_and(|app| session_with(&auth, &headers, app).is_some()),
        base: start("snsapi_base"),
        user_info: start("snsapi_userinfo"),
        mini_program: mini_program.map_or_else(String::new, |app| app.app_id.to_string()),
        sandbox: sandbox.clone(),
    };
    let mut response = page::respond(StatusCode::OK, &page);
    // This page asks the sandbox for what a phone would, and nobody else.
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; \
         connect-src 'self' {sandbox}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

async fn style() -> impl IntoResponse {
    file(
        "text/css; charset=utf-8",
        include_str!("../../templates/debug.css"),
    )
}

async fn script() -> impl IntoResponse {
    file(
        "text/javascript; charset=utf-8",
        include_str!("../../templates/debug.js"),
    )
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
