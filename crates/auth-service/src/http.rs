//! The routes for devices and browsers: translate, nothing else.

mod data;
mod jssdk;
mod session;

use axum::{
    Router,
    extract::{Path, State},
    http::HeaderValue,
    routing::get,
};
use service_kit::http;

use crate::{Auth, page};

/// What is about one person is kept by no cache.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// auth-service's routes.
pub(crate) fn router(auth: Auth) -> Router {
    Router::new()
        .merge(session::routes())
        .merge(data::routes())
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
