//! Logs, traces and metrics of a process: set up once, in `main`.

use std::{io::IsTerminal as _, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Buckets of every histogram of seconds: from a memory read to the longest RPC.
const SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
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
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).map_err(|error| {
            anyhow::anyhow!("RUST_LOG is malformed: {error} (for example: RUST_LOG=info)")
        })?,
        _ => EnvFilter::new("info,sqlx=warn,sea_orm_migration=warn"),
    };
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if std::io::stderr().is_terminal() {
        logs.with_target(false).boxed()
    } else {
        logs.json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed()
    };
    let provider = tracer_provider(service)?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(service))
            // Each of its own calls would otherwise be a span to export.
            .with_filter(EnvFilter::new(
                "info,h2=off,hyper=off,tonic=off,opentelemetry=off,reqwest=off",
            ))
    });
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(traces)
        .try_init()?;
    Ok(Telemetry { provider })
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
