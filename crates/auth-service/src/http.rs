//! The routes for devices and browsers: translate, nothing else.

mod account;
mod bind;
mod browser;
mod data;
mod form;
mod jssdk;
mod oauth;
mod problem;
mod session;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    routing::get,
};
use service_kit::http;

use crate::{Auth, page};

/// What is about one person is kept by no cache.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// auth-service's routes.
pub(crate) fn router(auth: Auth) -> Router {
    let shared = Router::new()
        .merge(session::shared_routes())
        .merge(data::routes());
    Router::new()
        .merge(shared.route_layer(browser::cors(&auth)))
        .merge(session::routes())
        .merge(oauth::routes())
        .merge(account::routes())
        .merge(bind::routes())
        .merge(jssdk::routes())
        .route("/page.css", get(page::style))
        .route("/{file}", get(verify_file))
        .with_state(auth)
}

/// `GET /MP_verify_xxx.txt`: WeChat fetches it before it saves a domain.
async fn verify_file(
    State(auth): State<Auth>,
    Path(file): Path<String>,
) -> Result<String, http::Error> {
    http::verify_file(&auth.catalog.current(), &file)
}

/// A header's text; empty where there is none.
fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    let value = headers.get(name).map(HeaderValue::to_str);
    value.and_then(Result::ok).unwrap_or_default()
}
