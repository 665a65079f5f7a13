//! The operator's port: `/livez`, `/readyz`, `/metrics`.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// Whether this process should get traffic: it is about the process, not about Redis, the database or WeChat.
#[derive(Debug, Clone)]
pub struct Readiness {
    phase: watch::Sender<Phase>,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it has; no new work, please.
    Draining,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
        }
    }
}

impl Readiness {
    /// The first load was tried: traffic may come. Without effect while draining.
    pub fn set_ready(&self) {
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = Phase::Ready;
            }
            starting
        });
    }

    /// Shutdown began.
    pub fn set_draining(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Waits until the first load was tried: before that, the database may lack its tables. False when `stop` came first.
    pub async fn started(&self, stop: &CancellationToken) -> bool {
        let mut phase = self.watch();
        let started = phase.wait_for(|phase| *phase != Phase::Starting);
        matches!(stop.run_until_cancelled(started).await, Some(Ok(_)))
    }

    /// The phase, now and later.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }
}

/// The routes of the operator's port.
pub fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(|| async { telemetry::metrics_handle().render() }),
        )
        .with_state(readiness)
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    match *readiness.watch().borrow() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Ready => (StatusCode::OK, "ok\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// Histograms keep every sample until they are rendered or kept up: without a scraper they must be kept up.
pub(crate) const UPKEEP: Duration = Duration::from_secs(5);
