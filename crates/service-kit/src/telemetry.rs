//! Logs, traces and metrics of a process: set up once, in `main`.

mod fields;

use std::{io::IsTerminal as _, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::Targets,
    fmt::{
        self,
        format::{Format, Json},
    },
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::fields::JsonFields;

/// Buckets of every histogram of seconds: from a memory read to the longest RPC.
const SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "info,sqlx=warn,sea_orm_migration=warn";
/// What becomes spans to export: each of the exporter's own calls would otherwise be one.
const TRACED: &str = "info,h2=off,hyper=off,tonic=off,opentelemetry=off,reqwest=off";
/// The last spans are sent within this long, or dropped.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// What was set up; give it to [`Telemetry::shutdown`] before the process ends.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Sets up the process: logs to standard error (pretty in a terminal, JSON otherwise, filtered by `RUST_LOG`), traces to
/// `OTEL_EXPORTER_OTLP_ENDPOINT` when it is set, metrics, and the TLS provider. Call it within a tokio runtime.
///
/// # Errors
/// When `RUST_LOG` or the OTLP endpoint is malformed, or the process was set up already.
pub fn init(service: &'static str) -> anyhow::Result<Telemetry> {
    install_tls_provider();
    metrics_handle();
    let filter = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = if filter.is_empty() { LOGGED } else { &filter };
    let logs = if std::io::stderr().is_terminal() {
        let pretty = fmt::layer().with_target(false);
        filtered(pretty.with_writer(std::io::stderr), filter)
    } else {
        filtered(json_layer().with_writer(std::io::stderr), filter)
    };
    let logs = logs.map_err(|error| {
        anyhow::anyhow!("RUST_LOG is malformed: {error} (for example: RUST_LOG=info)")
    })?;
    let provider = tracer_provider(service)?;
    let mut layers = vec![logs];
    if let Some(provider) = &provider {
        let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer(service));
        layers.push(filtered(traces, TRACED)?);
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(Telemetry { provider })
}

type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// A layer that sees what the filter lets through. `EnvFilter` takes a lock at every step of every span: it is left to
/// directives that need it, those of spans and their fields (`[rpc{wxhub.caller=crm}]=debug`).
fn filtered(
    layer: impl Layer<Registry> + Send + Sync,
    filter: &str,
) -> Result<BoxLayer, tracing_subscriber::filter::ParseError> {
    let beyond_targets = filter.contains('[') || filter.split(',').any(str::is_empty);
    Ok(if beyond_targets {
        layer.with_filter(EnvFilter::try_new(filter)?).boxed()
    } else {
        layer.with_filter(filter.parse::<Targets>()?).boxed()
    })
}

/// Lines of JSON: an event's fields, and those of the spans around it.
fn json_layer() -> fmt::Layer<Registry, JsonFields, Format<Json>> {
    fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .fmt_fields(JsonFields)
}

fn tracer_provider(service: &'static str) -> anyhow::Result<Option<SdkTracerProvider>> {
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").unwrap_or_default();
    if endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()
        .map_err(|error| {
            anyhow::anyhow!(
                "OTEL_EXPORTER_OTLP_ENDPOINT is wrong: {error} (for example: OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4317)"
            )
        })?;
    let mut resource = Resource::builder();
    if std::env::var("OTEL_SERVICE_NAME")
        .unwrap_or_default()
        .is_empty()
    {
        resource = resource.with_service_name(service);
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(provider.clone());
    Ok(Some(provider))
}

/// Makes ring the process's TLS provider; a second call changes nothing. Whoever makes an HTTP client without
/// [`init`], as a test does, calls this first.
pub fn install_tls_provider() {
    // It fails only when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The process's metrics in Prometheus's format: [`PrometheusHandle::render`].
pub fn metrics_handle() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let builder = builder
            .set_buckets_for_metric(seconds, &SECONDS)
            .unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // A test binary may have a recorder of its own: then this one stays empty.
        let _ = metrics::set_global_recorder(recorder);
        handle
    })
}

impl Telemetry {
    /// Sends what is still buffered.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else {
            return;
        };
        // It blocks the thread while the exporter needs the runtime.
        let flush =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Ok(Err(error))) = tokio::time::timeout(FLUSH_TIMEOUT * 2, flush).await {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}
