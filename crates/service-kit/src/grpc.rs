//! What every gRPC port has: spans, metrics, caller checks, health, reflection.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, field::Empty, info_span};

use crate::trace;

/// Requests by service, method and status code.
const REQUESTS: &str = "wxhub_grpc_requests_total";
/// Seconds until the response's head, by service and method.
const SECONDS: &str = "wxhub_grpc_request_duration_seconds";

/// Opens a span for each RPC, a child of the caller's, and counts and times it.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> TraceService<S> {
        TraceService { inner }
    }
}

/// See [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct TraceService<S> {
    inner: S,
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
            rpc.grpc.status_code = Empty,
        );
        trace::continue_from(&span, request.headers());
        let started = Instant::now();
        let response = span.in_scope(|| self.inner.call(request));
        let observe = async move {
            let result = response.await;
            let code = result.as_ref().map_or(Code::Unknown, code);
            let span = tracing::Span::current();
            span.record("rpc.grpc.status_code", i32::from(code));
            if matches!(
                code,
                Code::Unknown | Code::Internal | Code::Unavailable | Code::DataLoss
            ) {
                span.record("otel.status_code", "ERROR");
            }
            // Whoever calls paths that do not exist must not make up label values.
            let (service, method) = match path.split_once('/') {
                Some((service, method)) if code != Code::Unimplemented => {
                    (service.to_owned(), method.to_owned())
                }
                _ => ("other".to_owned(), "other".to_owned()),
            };
            metrics::counter!(REQUESTS, "service" => service.clone(), "method" => method.clone(), "code" => name(code)).increment(1);
            metrics::histogram!(SECONDS, "service" => service, "method" => method)
                .record(started.elapsed().as_secs_f64());
            tracing::debug!(
                code = name(code),
                duration_ms = started.elapsed().as_millis(),
                "rpc answered"
            );
            result
        };
        Box::pin(observe.instrument(span))
    }
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
