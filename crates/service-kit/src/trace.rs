//! W3C trace context in and out, so that one trace runs from the caller through every service to WeChat.

use http::{HeaderMap, HeaderName};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes `span` a child of the span that the request's headers name, if they name one.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        let parent =
            global::get_text_map_propagator(|propagator| propagator.extract(&Incoming(headers)));
        // Without a collector there is no layer to tell, and nothing to do.
        let _ = span.set_parent(parent);
    }
}

/// Writes the current span's context into outgoing headers.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Outgoing(headers));
    });
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (key.parse::<HeaderName>(), value.parse()) {
            self.0.insert(key, value);
        }
    }
}
