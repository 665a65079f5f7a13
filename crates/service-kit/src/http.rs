//! What every HTTP port has: a request id, a span, metrics, limits, and errors as JSON
//! `{"code","message","request_id"}`.

use std::{
    mem,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, rejection::BytesRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;
use tonic::Code;
use tonic_types::StatusExt as _;
use tracing::{Instrument as _, Span, debug, field::Empty, info_span, warn};
use uuid::Uuid;

use crate::{Catalog, trace};

/// The largest body that is read.
pub const BODY_LIMIT: usize = 64 * 1024;
/// A handler that takes longer is given up. WeChat itself waits five seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests by method, route and status.
const REQUESTS: &str = "wxhub_http_requests_total";
/// Seconds until the response's head, by method and route.
const SECONDS: &str = "wxhub_http_request_duration_seconds";

/// What browsers are told of every answer that does not say otherwise: it is what its `Content-Type` says, loads and
/// runs nothing, is framed by nobody, and its URL, which may hold a code, goes to nobody.
const GUARD: [(HeaderName, HeaderValue); 3] = [
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
];

/// Adds to `router` what every HTTP port has, unknown paths and methods included.
pub fn harden(router: Router) -> Router {
    router
        .fallback(|| async { not_found() })
        .method_not_allowed_fallback(|| async {
            let message = "this path does not take this method";
            Error::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                message,
            )
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(observe))
}

async fn observe(request: Request, next: Next) -> Response {
    let request_id = Uuid::now_v7();
    let method = label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    // The path and query are left out: they hold codes and tickets.
    let span = info_span!(
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        request_id = %request_id,
    );
    trace::continue_from(&span, request.headers());
    let observed = Observed {
        span: span.clone(),
        method,
        route,
        started: Instant::now(),
        // What nginx logs for a client that hung up.
        status: 499,
    };
    async move {
        let answer = tokio::time::timeout(TIMEOUT, next.run(request)).await;
        let mut response = answer.unwrap_or_else(|_| {
            let message = "the request took too long";
            Error::new(StatusCode::SERVICE_UNAVAILABLE, "TIMEOUT", message).into_response()
        });
        if let Some(error) = response.extensions_mut().remove::<Error>() {
            // What layers inside added stays, such as the leave for another site's page to read it (CORS).
            let mut headers = mem::take(response.headers_mut());
            headers.remove(header::CONTENT_LENGTH);
            response = error.render(request_id);
            headers.extend(mem::take(response.headers_mut()));
            *response.headers_mut() = headers;
        }
        for (name, value) in GUARD {
            response.headers_mut().entry(name).or_insert(value);
        }
        if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
            response.headers_mut().insert("x-request-id", value);
        }
        observed.end(response.status());
        response
    }
    .instrument(span)
    .await
}

/// What is told of a request when it ends, also when its client hangs up and the future is dropped.
struct Observed {
    span: Span,
    method: &'static str,
    route: String,
    started: Instant,
    status: u16,
}

impl Observed {
    fn end(mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let (status, method, elapsed) = (self.status, self.method, self.started.elapsed());
        self.span.record("http.response.status_code", status);
        let _entered = self.span.enter();
        let duration_ms = elapsed.as_millis();
        if status >= 500 {
            self.span.record("otel.status_code", "ERROR");
            warn!(status, duration_ms, "{method} {} failed", self.route);
        } else {
            debug!(status, duration_ms, "{method} {} answered", self.route);
        }
        let route = std::mem::take(&mut self.route);
        metrics::counter!(REQUESTS, "method" => method, "route" => route.clone(), "status" => status.to_string()).increment(1);
        metrics::histogram!(SECONDS, "method" => method, "route" => route)
            .record(elapsed.as_secs_f64());
    }
}

/// A method as a metric's label: a closed set, whatever a stranger sends.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// An error for an HTTP client. [`harden`] renders it with the request's id.
#[derive(Debug, Clone)]
pub struct Error {
    status: StatusCode,
    code: String,
    message: String,
    errcode: Option<i64>,
    retry_after: Option<Duration>,
}

impl Error {
    /// `code` is machine-readable and stable, the same word as in gRPC's ErrorInfo; `message` is for people.
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            errcode: None,
            retry_after: None,
        }
    }

    /// Says that the same request may work after a while.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The machine-readable word.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What people are told.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The seconds of `Retry-After`, where waiting helps: whatever is away now may be back in a moment.
    pub fn retry_seconds(&self) -> Option<u64> {
        let away = self.status == StatusCode::SERVICE_UNAVAILABLE;
        let delay = self
            .retry_after
            .or_else(|| away.then_some(Duration::from_secs(1)))?;
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        Some(seconds.max(1))
    }

    fn render(&self, request_id: Uuid) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            message: &'a str,
            request_id: Uuid,
            #[serde(skip_serializing_if = "Option::is_none")]
            errcode: Option<i64>,
        }
        let body = axum::Json(Body {
            code: &self.code,
            message: &self.message,
            request_id,
            errcode: self.errcode,
        });
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry_seconds() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The same failure, told to an HTTP client: one mapping for all services.
impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map_or("", |info| info.reason.as_str());
        let http = match status.code() {
            Code::Ok => StatusCode::OK,
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            // WeChat refused something that the HTTP client can do nothing about.
            Code::FailedPrecondition if reason.starts_with("WECHAT_") => StatusCode::BAD_GATEWAY,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // Without ErrorInfo it is none of ours: its text may tell of our insides.
        let (reason, message) = match info {
            Some(_) => (reason, status.message()),
            None if http == StatusCode::SERVICE_UNAVAILABLE => ("UNAVAILABLE", "try again"),
            None => ("INTERNAL", "internal error"),
        };
        let mut error = Self::new(http, reason, message);
        error.errcode = info.and_then(|info| info.metadata.get("errcode")?.parse().ok());
        error.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        error
    }
}

/// A JSON body. What is wrong with it is told with its position; a `Content-Type` is not asked for.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T, S> FromRequest<S> for Json<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let bytes = body(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            // serde_json's own text may quote a value.
            let problem = match error.classify() {
                Category::Data => "a field is missing or has the wrong type",
                Category::Eof => "it breaks off",
                Category::Io | Category::Syntax => "it is not JSON",
            };
            let (line, column) = (error.line(), error.column());
            let message = format!("invalid JSON: {problem} at line {line} column {column}");
            Error::new(StatusCode::BAD_REQUEST, "INVALID_JSON", message)
        })
    }
}

/// What the `Authorization` header shows, with or without the scheme `Bearer`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let shown = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => value,
    };
    Some(shown).filter(|shown| !shown.is_empty() && !shown.eq_ignore_ascii_case("bearer"))
}

/// The text of an app's verify file (`MP_verify_xxx.txt`): WeChat fetches it before it saves a domain.
///
/// # Errors
/// 404 when no app has one of this name.
pub fn verify_file(catalog: &Catalog, name: &str) -> Result<String, Error> {
    let mut apps = catalog.apps().iter();
    let text = apps.find_map(|app| app.verify_files.get(name));
    text.cloned().ok_or_else(not_found)
}

fn not_found() -> Error {
    Error::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no such path here")
}

/// The request's body, up to [`BODY_LIMIT`].
///
/// # Errors
/// 413 when it is larger, 400 when the client breaks off.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection: BytesRejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let message = format!("the body is larger than {BODY_LIMIT} bytes");
                Error::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message)
            } else {
                Error::new(
                    StatusCode::BAD_REQUEST,
                    "BODY_UNREADABLE",
                    "the body broke off",
                )
            }
        })
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        routing::{get, post},
    };
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;
    use crate::status::{self, reason};

    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
    }

    /// What CORS does.
    async fn shared(mut response: Response) -> Response {
        let everybody = HeaderValue::from_static("*");
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
        response
    }

    fn router() -> Router {
        harden(
            Router::new()
                .route(
                    "/name",
                    post(|Json(body): Json<Named>| async move { body.name }),
                )
                .route(
                    "/away",
                    get(|| async { Error::from(status::store_unavailable("Redis")) }),
                )
                .layer(middleware::map_response(shared)),
        )
    }

    #[tokio::test]
    async fn every_answer_is_guarded() {
        for path in ["/away", "/nothing"] {
            let (_, headers, _) = ask(Method::GET, path, "").await;
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
            let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            for directive in ["object-src", "base-uri", "frame-ancestors"] {
                assert!(policy.contains(&format!("{directive} 'none'")), "{policy}");
            }
        }
    }

    async fn ask(
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, http::HeaderMap, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(body.into())
            .unwrap();
        let response = router().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            head.status,
            head.headers,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    #[tokio::test]
    async fn invalid_json_is_400_with_the_position() {
        let (status, headers, body) = ask(Method::POST, "/name", "{\"name\":\n  oops}").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["code"], "INVALID_JSON");
        assert!(
            body["message"]
                .as_str()
                .unwrap()
                .contains("line 2 column 3"),
            "{body}"
        );
        assert_eq!(
            body["request_id"],
            headers["x-request-id"].to_str().unwrap()
        );
    }

    #[tokio::test]
    async fn an_error_keeps_the_headers_of_the_layers_inside() {
        let (_, headers, body) = ask(Method::GET, "/away", "").await;
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let length = body.to_string().len().to_string();
        assert!(
            headers
                .get_all(header::CONTENT_LENGTH)
                .iter()
                .all(|told| told == length.as_str()),
            "{headers:?}"
        );
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413() {
        let (status, _, body) = ask(Method::POST, "/name", vec![b' '; BODY_LIMIT + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(body["code"], "BODY_TOO_LARGE");
    }

    #[test]
    fn a_bearer_is_read_with_and_without_its_scheme() {
        let shown = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        for value in ["abc", "Bearer abc", "bearer  abc ", " abc"] {
            assert_eq!(shown(value).as_deref(), Some("abc"), "{value:?}");
        }
        for value in ["", "Bearer ", " "] {
            assert_eq!(shown(value), None, "{value:?}");
        }
    }

    #[tokio::test]
    async fn unknown_paths_and_methods_are_json_too() {
        let (status, _, body) = ask(Method::GET, "/nothing", "").await;
        assert_eq!(
            (status, body["code"].as_str()),
            (StatusCode::NOT_FOUND, Some("NOT_FOUND"))
        );
        let (status, _, body) = ask(Method::GET, "/name", "").await;
        assert_eq!(
            (status, body["code"].as_str()),
            (StatusCode::METHOD_NOT_ALLOWED, Some("METHOD_NOT_ALLOWED"))
        );
    }

    #[tokio::test]
    async fn a_peer_that_is_away_is_503_with_retry_after_and_without_its_address() {
        let away = tonic::Status::unavailable("tcp connect error: 10.0.0.7:50051");
        let response = Error::from(away).render(Uuid::nil());
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(!body.contains("10.0.0.7"), "{body}");
    }

    #[tokio::test]
    async fn a_value_of_the_body_is_not_repeated() {
        let (_, _, body) = ask(Method::POST, "/name", "{\"name\": {\"s3cr3t\": 1}}").await;
        let message = body["message"].as_str().unwrap();
        assert!(
            message.contains("wrong type at line 1 column 9"),
            "{message}"
        );
        assert!(!message.contains("s3cr3t"));
    }

    #[tokio::test]
    async fn an_outage_is_503_with_retry_after() {
        let (status, headers, body) = ask(Method::GET, "/away", "").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers[header::RETRY_AFTER], "1");
        assert_eq!(body["code"], reason::STORE_UNAVAILABLE);
    }
}
