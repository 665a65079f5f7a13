//! Where traces arrive.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::listener;

/// An OpenTelemetry collector that keeps what it is sent (OTLP over gRPC). Ends with its drop.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: Received,
    _stop: DropGuard,
}

/// A span as it arrived; ids in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace it belongs to.
    pub trace_id: String,
    /// Its own id.
    pub span_id: String,
    /// The span that caused it; none for the root of a trace.
    pub parent_span_id: Option<String>,
    /// What was done.
    pub name: String,
    /// Who did it: `service.name` of the resource.
    pub service: String,
    /// Its attributes; what is no text is written as JSON would.
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Starts a collector on a free port.
    pub async fn start() -> Self {
        let listener = listener().await;
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let received = Received::default();
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(received.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move { stopped.run_until_cancelled(server).await });
        Self {
            address,
            received,
            _stop: stop.drop_guard(),
        }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be: `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far, in the order in which they arrived.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.received.0.lock().expect("no holder panics").clone()
    }
}

#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().expect("no holder panics");
        for of_resource in request.into_inner().resource_spans {
            let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            spans.extend(
                of_resource
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans)
                    .map(|span| Span {
                        trace_id: hex(&span.trace_id),
                        span_id: hex(&span.span_id),
                        parent_span_id: Some(hex(&span.parent_span_id)).filter(|id| !id.is_empty()),
                        name: span.name,
                        service: service.clone(),
                        attributes: attributes(span.attributes),
                    }),
            );
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|pair| (pair.key, text(pair.value)))
        .collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|any| any.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan};

    use super::*;

    fn attribute(key: &str, value: any_value::Value) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        }
    }

    #[tokio::test]
    async fn spans_are_kept_with_their_service_parent_and_attributes() {
        let collector = Collector::start().await;
        let mut client = TraceServiceClient::connect(collector.endpoint())
            .await
            .unwrap();
        let root = OtlpSpan {
            trace_id: vec![0xab; 16],
            span_id: vec![1; 8],
            name: "POST /login".to_owned(),
            attributes: vec![attribute("http.status", any_value::Value::IntValue(204))],
            ..OtlpSpan::default()
        };
        let child = OtlpSpan {
            span_id: vec![2; 8],
            parent_span_id: vec![1; 8],
            ..root.clone()
        };
        let resource = Resource {
            attributes: vec![attribute(
                "service.name",
                any_value::Value::StringValue("auth-service".to_owned()),
            )],
            ..Resource::default()
        };
        let scope_spans = vec![ScopeSpans {
            spans: vec![root, child],
            ..ScopeSpans::default()
        }];
        let of_resource = ResourceSpans {
            resource: Some(resource),
            scope_spans,
            ..ResourceSpans::default()
        };
        client
            .export(ExportTraceServiceRequest {
                resource_spans: vec![of_resource],
            })
            .await
            .unwrap();

        let spans = collector.spans();
        let expected = Span {
            trace_id: "ab".repeat(16),
            span_id: "01".repeat(8),
            parent_span_id: None,
            name: "POST /login".to_owned(),
            service: "auth-service".to_owned(),
            attributes: BTreeMap::from([("http.status".to_owned(), "204".to_owned())]),
        };
        let caused = Span {
            span_id: "02".repeat(8),
            parent_span_id: Some("01".repeat(8)),
            ..expected.clone()
        };
        assert_eq!(spans, [expected, caused]);
    }
}
