//! The HTTP side: WeChat's callback, form_ids from mini programs, and the files by which WeChat knows a domain.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use proto::auth::v1::{VerifySessionRequest, auth_service_client::AuthServiceClient};
use service_kit::{
    App, AppKind, CatalogHandle,
    catalog::Callback,
    client::PeerChannel,
    http::{self, Error as HttpError, Json, bearer, body},
    status,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::warn;
use wechat::{
    OpenId,
    callback::{Format, ParseError},
};

use crate::{
    callback::{self, Callbacks, Refusal},
    database::is_key,
    error::Error,
    form::{self, MAX_FORM_ID},
};

/// What the handlers need.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    pub(crate) catalog: CatalogHandle,
    pub(crate) callbacks: Callbacks,
    pub(crate) forms: form::Store,
    pub(crate) auth: AuthServiceClient<PeerChannel>,
}

pub(crate) fn router(state: Http) -> Router {
    Router::new()
        .route("/callback/{app}", get(verify_url).post(push))
        .route("/form", post(put_form))
        .route("/{file}", get(verify_file))
        .with_state(state)
}

fn app(catalog: &CatalogHandle, name: &str) -> Result<Arc<App>, HttpError> {
    catalog.current().app(name).cloned().ok_or_else(|| {
        HttpError::new(
            StatusCode::NOT_FOUND,
            "APP_NOT_FOUND",
            "no app has this name",
        )
    })
}

fn callback(app: &App) -> Result<&Callback, HttpError> {
    app.callback.as_ref().ok_or_else(|| {
        HttpError::new(
            StatusCode::NOT_FOUND,
            "CALLBACK_NOT_FOUND",
            "this app declares no callback",
        )
    })
}

fn forged() -> HttpError {
    HttpError::new(
        StatusCode::FORBIDDEN,
        "SIGNATURE_INVALID",
        "the signature does not hold",
    )
}

async fn verify_url(
    State(state): State<Http>,
    Path(name): Path<String>,
    query: Result<Query<callback::Query>, QueryRejection>,
) -> Result<Response, HttpError> {
    let app = app(&state.catalog, &name)?;
    let callback = callback(&app)?;
    let Query(query) = query.map_err(|_| forged())?;
    if !callback::verifies(callback, &query) {
        return Err(forged());
    }
    Ok(text("text/plain", query.echostr))
}

async fn push(
    State(state): State<Http>,
    Path(name): Path<String>,
    query: Result<Query<callback::Query>, QueryRejection>,
    request: Request,
) -> Result<Response, HttpError> {
    let app = app(&state.catalog, &name)?;
    let callback = callback(&app)?;
    let Query(query) = query.map_err(|_| forged())?;
    let body = body(request, &()).await?;
    match state.callbacks.handle(&app, callback, &query, &body).await {
        Ok(answer) => Ok(match answer.format {
            None => text("text/plain", answer.body),
            Some(Format::Xml) => text("text/xml", answer.body),
            Some(Format::Json) => text("application/json", answer.body),
        }),
        Err(refusal) => {
            warn!(app = app.name, "push refused: {refusal}");
            Err(refused(&refusal))
        }
    }
}

fn refused(refusal: &Refusal) -> HttpError {
    match refusal {
        Refusal::Forged | Refusal::NotEncrypted => forged(),
        Refusal::NotDecrypted => HttpError::new(
            StatusCode::FORBIDDEN,
            "DECRYPTION_FAILED",
            "no EncodingAESKey of this app decrypts the push",
        ),
        Refusal::Malformed(ParseError::TooLarge) => HttpError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BODY_TOO_LARGE",
            refusal.to_string(),
        ),
        Refusal::Malformed(_) => HttpError::new(
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
            refusal.to_string(),
        ),
        // WeChat repeats what is not answered with success.
        Refusal::NotRecorded(_) => HttpError::from(status::store_unavailable("the database")),
    }
}

fn text(content_type: &'static str, body: String) -> Response {
    let content_type = format!("{content_type}; charset=utf-8");
    (
        [
            (header::CONTENT_TYPE, content_type.as_str()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        body,
    )
        .into_response()
}

#[derive(serde::Deserialize)]
struct Form {
    form_id: String,
}

/// The longest session token that is asked about, in bytes.
const MAX_SESSION_TOKEN: usize = 128;
/// Developer tools hand out this text instead of a form_id.
const MOCK: &str = "the formId is a mock one";

async fn put_form(
    State(state): State<Http>,
    headers: HeaderMap,
    Json(Form { form_id }): Json<Form>,
) -> Result<StatusCode, HttpError> {
    let fail = |error: Error| HttpError::from(Status::from(error));
    let (app, open_id) = session(&state, &headers).await.map_err(fail)?;
    let invalid =
        |problem: String| Err(fail(Error::Invalid(vec![("form_id".to_owned(), problem)])));
    if app.kind != AppKind::MiniProgram {
        return invalid(
            "belongs to mini programs, but the session is with an official account".to_owned(),
        );
    }
    if form_id == MOCK {
        return invalid("is the developer tools' stand-in: only a phone earns one".to_owned());
    }
    if form_id.is_empty() || form_id.len() > MAX_FORM_ID || !is_key(&form_id) {
        return invalid(format!(
            "must be 1 to {MAX_FORM_ID} visible ASCII characters"
        ));
    }
    let stored = state.forms.put(&app.app_id, &open_id, &form_id).await;
    stored.map_err(|error| fail(Error::Database(error)))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose session the `Authorization` header shows.
async fn session(state: &Http, headers: &HeaderMap) -> Result<(Arc<App>, OpenId), Error> {
    let session_token = bearer(headers)
        .filter(|token| token.len() <= MAX_SESSION_TOKEN)
        .ok_or(Error::SessionInvalid)?
        .to_owned();
    let verified = state
        .auth
        .clone()
        .verify_session(VerifySessionRequest { session_token })
        .await;
    let user = verified
        .map_err(auth_error)?
        .into_inner()
        .user
        .ok_or(Error::SessionInvalid)?;
    let app = state.catalog.current().app(&user.app_id).cloned();
    let open_id = OpenId::try_from(user.open_id).ok();
    app.zip(open_id).ok_or(Error::SessionInvalid)
}

fn auth_error(status: Status) -> Error {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match (status.code(), reason.as_deref()) {
        (Code::Unauthenticated, Some("SESSION_INVALID")) | (Code::InvalidArgument, _) => {
            Error::SessionInvalid
        }
        (Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented, _) => {
            Error::AuthRefused(status)
        }
        _ => Error::AuthUnavailable(status),
    }
}

/// WeChat fetches a file by a fixed name before it saves a domain.
async fn verify_file(
    State(state): State<Http>,
    Path(file): Path<String>,
) -> Result<Response, HttpError> {
    let found = http::verify_file(&state.catalog.current(), &file)?;
    Ok(text("text/plain", found))
}
