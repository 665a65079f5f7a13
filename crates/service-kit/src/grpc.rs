//! What every gRPC port has: spans, metrics, caller checks, health, reflection.

mod meter;
mod routes;

use std::{
    collections::HashSet,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderName, Request, Response};
use prost::{DecodeError, Message as _};
use prost_types::FileDescriptorSet;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Span, debug, field::Empty, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use self::meter::Meters;
pub use self::routes::Routes;
use crate::{
    status::{self, reason},
    trace,
};

/// The header of a request's deadline.
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// No response head takes longer, whatever deadline its caller set. What is streamed after it may, and so may an upload:
/// its answer comes once all of it did.
const LONGEST: Duration = Duration::from_secs(30);

/// Opens a span for each RPC, a child of the caller's, and counts and times it.
#[derive(Debug, Clone, Default)]
pub struct TraceLayer {
    meters: Arc<Meters>,
    uploads: Arc<HashSet<String>>,
}

impl TraceLayer {
    /// For the services that the encoded file descriptor set describes: it tells which of their RPCs are uploads.
    ///
    /// # Errors
    /// When the set cannot be decoded.
    pub fn new(descriptors: &[u8]) -> Result<Self, DecodeError> {
        let mut uploads = HashSet::new();
        for file in FileDescriptorSet::decode(descriptors)?.file {
            for service in &file.service {
                let streamed = service.method.iter().filter(|rpc| rpc.client_streaming());
                let path = |rpc: &str| format!("{}.{}/{rpc}", file.package(), service.name());
                uploads.extend(streamed.map(|rpc| path(rpc.name())));
            }
        }
        Ok(Self {
            meters: Arc::default(),
            uploads: Arc::new(uploads),
        })
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> TraceService<S> {
        TraceService {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct TraceService<S> {
    inner: S,
    layer: TraceLayer,
}

impl<S, B> Service<Request<B>> for TraceService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (service, method) = path.split_once('/').unwrap_or((&path, ""));
        let span = info_span!(
            "rpc",
            otel.name = path,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            wxhub.caller = Empty,
        );
        trace::continue_from(&span, request.headers());
        let longest = match self.layer.uploads.contains(&path) {
            true => Duration::MAX,
            false => LONGEST,
        };
        let deadline = deadline(request.headers(), longest);
        let rpc = Observed {
            span,
            meters: Arc::clone(&self.layer.meters),
            path,
            started: Instant::now(),
            code: Code::Cancelled,
        };
        // Started here it ends before tonic's own, which would answer CANCELLED.
        let limit = sleep(deadline);
        let response = rpc.span.in_scope(|| self.inner.call(request));
        Box::pin(async move {
            let (mut response, mut limit) = (pin!(response), pin!(limit));
            let result = poll_fn(|cx| {
                let _entered = rpc.span.enter();
                if let answer @ Poll::Ready(_) = response.as_mut().poll(cx) {
                    return answer;
                }
                let late = || Ok(late(deadline).into_http());
                limit.as_mut().poll(cx).map(|()| late())
            });
            let result = result.await;
            rpc.end(result.as_ref().map_or(Code::Unknown, code));
            result
        })
    }
}

/// What is told of an RPC when it ends, also when its caller hangs up and the future is dropped.
struct Observed {
    span: Span,
    meters: Arc<Meters>,
    path: String,
    started: Instant,
    code: Code,
}

impl Observed {
    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let (code, elapsed) = (self.code, self.started.elapsed());
        // For traces alone: of a span that is logged, all fields would be written anew.
        self.span
            .set_attribute("rpc.grpc.status_code", i64::from(i32::from(code)));
        // Whoever calls paths that do not exist must not make up label values.
        let rpc = match code {
            Code::Unimplemented => "other/other",
            _ => &self.path,
        };
        let _entered = self.span.enter();
        let duration_ms = elapsed.as_millis();
        if is_failure(code) {
            self.span.record("otel.status_code", "ERROR");
            warn!(code = name(code), duration_ms, "{rpc} failed");
        } else {
            debug!(code = name(code), duration_ms, "{rpc} answered");
        }
        self.meters.count(rpc, code, elapsed);
    }
}

/// Whether the fault is ours, or of something that we depend on.
fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::DeadlineExceeded
    )
}

/// How long the response's head may take: as long as the caller gives it, and never longer than this.
fn deadline(headers: &HeaderMap, longest: Duration) -> Duration {
    timeout(headers).map_or(longest, |asked| asked.min(longest))
}

/// The deadline that a request's `grpc-timeout` sets, as gRPC over HTTP/2 defines it.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(number.saturating_mul(60))),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// `DEADLINE_EXCEEDED`.
pub(crate) fn late(deadline: Duration) -> Status {
    let message = format!("not answered within {deadline:?}");
    status::error(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message).build()
}

/// The status of a response: an error answered at once stands in its headers; otherwise the RPC began well.
fn code(response: &Response<Body>) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_rpc_past_its_callers_deadline_is_told_so() {
        let stuck = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let request = Request::builder()
            .uri("/wxhub.token.v1.TokenService/GetAccessToken")
            .header("grpc-timeout", "250m")
            .body(());
        let response = TraceLayer::default()
            .layer(stuck)
            .call(request.unwrap())
            .await
            .unwrap();
        assert_eq!(code(&response), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_takes_as_long_as_its_caller_lets_it() {
        let rpc = |name: &str, streams| MethodDescriptorProto {
            name: Some(name.to_owned()),
            client_streaming: Some(streams),
            ..MethodDescriptorProto::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("PushService".to_owned()),
            method: vec![rpc("Upload", true), rpc("Send", false)],
            ..ServiceDescriptorProto::default()
        };
        let file = FileDescriptorProto {
            package: Some("wxhub.push.v1".to_owned()),
            service: vec![service],
            ..FileDescriptorProto::default()
        };
        let set = FileDescriptorSet { file: vec![file] };
        let slow = tower::service_fn(|_: Request<()>| async {
            sleep(3 * LONGEST).await;
            Ok::<_, std::convert::Infallible>(Response::new(Body::default()))
        });
        let mut service = TraceLayer::new(&set.encode_to_vec()).unwrap().layer(slow);
        let mut ask = async |rpc: &str, timeout: Option<&str>| {
            let mut request = Request::builder().uri(format!("/wxhub.push.v1.PushService/{rpc}"));
            if let Some(timeout) = timeout {
                request = request.header("grpc-timeout", timeout);
            }
            code(&service.call(request.body(()).unwrap()).await.unwrap())
        };
        assert_eq!(ask("Upload", None).await, Code::Ok);
        assert_eq!(ask("Upload", Some("1H")).await, Code::Ok);
        assert_eq!(ask("Upload", Some("45S")).await, Code::DeadlineExceeded);
        assert_eq!(ask("Send", Some("1H")).await, Code::DeadlineExceeded);
    }

    #[test]
    fn the_callers_deadline_counts_up_to_the_longest() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            deadline(&headers, LONGEST)
        };
        assert_eq!(of("250m"), Duration::from_millis(250));
        assert_eq!(of("3S"), Duration::from_secs(3));
        assert_eq!(of("99999999H"), LONGEST);
        for malformed in ["", "S", "12", "-1S", "1s"] {
            assert_eq!(of(malformed), LONGEST, "{malformed}");
        }
        assert_eq!(deadline(&HeaderMap::new(), LONGEST), LONGEST);
    }
}
