//! The metrics of RPCs: each is looked up by its labels once, not at every call.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{Counter, Histogram};
use tonic::Code;

use crate::telemetry;

/// Requests by service, method and status code.
const REQUESTS: &str = "wxhub_grpc_requests_total";
/// Seconds until the response's head, by service and method.
const SECONDS: &str = "wxhub_grpc_request_duration_seconds";
/// gRPC has codes 0 to 16.
const CODES: usize = 17;

/// The metrics of every RPC that was called, by its path. Who looks one up waits for nobody.
#[derive(Default)]
pub(super) struct Meters(ArcSwap<HashMap<String, Arc<Meter>>>);

/// The metrics of one RPC.
struct Meter {
    service: String,
    method: String,
    requests: [OnceLock<Counter>; CODES],
    seconds: Histogram,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// Counts an RPC that ended. `path` is service and method.
    pub(super) fn count(&self, path: &str, code: Code, elapsed: Duration) {
        match self.0.load().get(path) {
            Some(meter) => meter.count(code, elapsed),
            None => self.learn(path).count(code, elapsed),
        }
    }

    fn learn(&self, path: &str) -> Arc<Meter> {
        let meter = Arc::new(Meter::new(path));
        self.0.rcu(|meters| {
            let mut meters = HashMap::clone(meters);
            meters.insert(path.to_owned(), Arc::clone(&meter));
            meters
        });
        meter
    }
}

impl Meter {
    fn new(path: &str) -> Self {
        // Whatever is looked up before there is a recorder counts for nothing, for ever.
        telemetry::metrics_handle();
        let (service, method) = path.split_once('/').unwrap_or((path, ""));
        let (service, method) = (service.to_owned(), method.to_owned());
        let seconds =
            metrics::histogram!(SECONDS, "service" => service.clone(), "method" => method.clone());
        Self {
            service,
            method,
            requests: Default::default(),
            seconds,
        }
    }

    fn count(&self, code: Code, elapsed: Duration) {
        let counter = || metrics::counter!(REQUESTS, "service" => self.service.clone(), "method" => self.method.clone(), "code" => super::name(code));
        let requests = usize::try_from(i32::from(code)).ok();
        if let Some(requests) = requests.and_then(|code| self.requests.get(code)) {
            requests.get_or_init(counter).increment(1);
        }
        self.seconds.record(elapsed.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpcs_are_counted_by_their_code_and_timed() {
        let meters = Meters::default();
        for code in [Code::Ok, Code::NotFound, Code::Ok] {
            meters.count("metered.Service/Call", code, Duration::from_millis(2));
        }
        let metrics = telemetry::metrics_handle().render();
        for (code, count) in [("OK", 2), ("NOT_FOUND", 1)] {
            let line = format!(
                "{REQUESTS}{{service=\"metered.Service\",method=\"Call\",code=\"{code}\"}} {count}\n"
            );
            assert!(metrics.contains(&line), "{metrics}");
        }
        let line = format!("{SECONDS}_count{{service=\"metered.Service\",method=\"Call\"}} 3\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}
