//! What a mini program got encrypted from WeChat.

use axum::{
    Json as JsonBody, Router,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde::Deserialize;
use service_kit::http;
use wechat::AppId;

use super::{
    NO_STORE,
    browser::{self, WhichQuery},
};
use crate::{Auth, user_data::Encrypted};

pub(super) fn routes() -> Router<Auth> {
    Router::new().route("/user-data", post(user_data).options(browser::preflight))
}

#[derive(Deserialize)]
struct UserData {
    encrypted_data: Option<String>,
    iv: Option<String>,
    raw_data: Option<String>,
    signature: Option<String>,
}

/// `POST /user-data`: the decrypted JSON.
async fn user_data(
    State(auth): State<Auth>,
    headers: HeaderMap,
    which: WhichQuery,
    http::Json(request): http::Json<UserData>,
) -> Result<Response, http::Error> {
    let data = async {
        let shown = browser::shown(&auth, &headers, which)?;
        let encrypted = Encrypted::parse(
            request.encrypted_data.as_deref().unwrap_or_default(),
            request.iv.as_deref().unwrap_or_default(),
            request.raw_data.as_deref().unwrap_or_default(),
            request.signature.as_deref().unwrap_or_default(),
        )?;
        let open_to = |app_id: &AppId| shown.may_be_with(app_id, &auth);
        auth.open_user_data(&shown.token, open_to, &encrypted).await
    };
    let data = data.await.map_err(|error| auth.status(&error))?;
    Ok(([(header::CACHE_CONTROL, NO_STORE)], JsonBody(data)).into_response())
}
