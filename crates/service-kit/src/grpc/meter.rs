//! The metrics of RPCs: each is looked up by its labels once, not at every call.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use metrics::{Counter, Histogram};
use tonic::Code;

use crate::telemetry;

/// Requests by service, method and status code.
const REQUESTS: &str = "wxhub_grpc_requests_total";
/// Seconds until the response's head, by service and method.
const SECONDS: &str = "wxhub_grpc_request_duration_seconds";
/// gRPC has codes 0 to 16.
const CODES: usize = 17;

/// The metrics of every RPC that was called, by service and method.
#[derive(Default)]
pub(super) struct Meters(RwLock<HashMap<String, HashMap<String, Arc<Meter>>>>);

/// The metrics of one RPC.
struct Meter {
    requests: [OnceLock<Counter>; CODES],
    seconds: Histogram,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// Counts an RPC that ended.
    pub(super) fn count(&self, service: &str, method: &str, code: Code, elapsed: Duration) {
        let meter = self.known(service, method);
        let meter = meter.unwrap_or_else(|| self.learn(service, method));
        if let Some(requests) = usize::try_from(i32::from(code))
            .ok()
            .and_then(|code| meter.requests.get(code))
        {
            let counter = || metrics::counter!(REQUESTS, "service" => service.to_owned(), "method" => method.to_owned(), "code" => super::name(code));
            requests.get_or_init(counter).increment(1);
        }
        meter.seconds.record(elapsed.as_secs_f64());
    }

    fn known(&self, service: &str, method: &str) -> Option<Arc<Meter>> {
        let meters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        meters.get(service)?.get(method).cloned()
    }

    fn learn(&self, service: &str, method: &str) -> Arc<Meter> {
        // Whatever is looked up before there is a recorder counts for nothing, for ever.
        telemetry::metrics_handle();
        let mut meters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let methods = meters.entry(service.to_owned()).or_default();
        let meter = methods.entry(method.to_owned()).or_insert_with(|| {
            Arc::new(Meter {
                requests: Default::default(),
                seconds: metrics::histogram!(SECONDS, "service" => service.to_owned(), "method" => method.to_owned()),
            })
        });
        Arc::clone(meter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpcs_are_counted_by_their_code_and_timed() {
        let meters = Meters::default();
        for code in [Code::Ok, Code::NotFound, Code::Ok] {
            meters.count("metered.Service", "Call", code, Duration::from_millis(2));
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
