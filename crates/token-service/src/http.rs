//! The internal HTTP port. It has no routes of its own: what every port has answers, unknown paths with 404.

use axum::Router;

pub(crate) fn router() -> Router {
    Router::new()
}
