//! The routes for devices and browsers: translate, nothing else.

mod account;
mod bind;
mod browser;
mod data;
mod debug;
mod form;
mod jssdk;
mod oauth;
mod problem;
mod session;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware,
    response::Response,
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
        .layer(middleware::map_response_with_state(
            auth.clone(),
            https_alone,
        ))
        .with_state(auth)
}

/// Where browsers see HTTPS, they are to see nothing else for two years.
async fn https_alone(State(auth): State<Auth>, mut response: Response) -> Response {
    let url = auth.public_url.as_ref();
    if url.is_some_and(|url| url.scheme() == "https") {
        response.headers_mut().insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=63072000; includeSubDomains"),
        );
    }
    response
}

/// What `wxhub dev` serves beside them.
pub(crate) fn debug_router(auth: Auth) -> Router {
    debug::routes().with_state(auth)
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
