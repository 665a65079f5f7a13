//! The fields of spans in the JSON log.
//!
//! Every RPC has a span, hardly any has a line in the log. tracing-subscriber's own formatter builds a tree of each
//! span's fields, and parses its text to add one more: that costs more than an answer from memory.

use std::fmt::{self, Debug, Write as _};

use serde_json::Value;
use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// What most spans fit into.
const CAPACITY: usize = 256;
/// Fields that tell the trace exporter what to do; others say the same.
const FOR_TRACES: &str = "otel.";

/// Writes a span's fields as a JSON object, and later ones at its end.
#[derive(Debug)]
pub(super) struct JsonFields;

impl<'a> FormatFields<'a> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut object = Object::new();
        fields.record(&mut object);
        writer.write_str(&object.end())
    }

    fn add_fields(
        &self,
        current: &'a mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut object = Object::reopen(std::mem::take(&mut current.fields));
        fields.record(&mut object);
        current.fields = object.end();
        Ok(())
    }
}

/// A JSON object without its end. A field that is recorded twice is there twice: readers take the last.
struct Object(String);

impl Object {
    fn new() -> Self {
        let mut text = String::with_capacity(CAPACITY);
        text.push('{');
        Self(text)
    }

    fn reopen(mut text: String) -> Self {
        text.pop();
        Self(text)
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }

    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Self)) {
        let name = field.name();
        if name.starts_with(FOR_TRACES) {
            return;
        }
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.string(name.strip_prefix("r#").unwrap_or(name));
        self.0.push(':');
        value(self);
    }

    fn string(&mut self, text: &str) {
        let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) {
            self.0.push('"');
            self.0.push_str(text);
            self.0.push('"');
        } else {
            self.display(&Value::from(text));
        }
    }

    fn display(&mut self, value: &dyn fmt::Display) {
        // A string takes everything.
        let _ = write!(self.0, "{value}");
    }
}

impl Visit for Object {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |object| object.string(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |object| object.display(&value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |object| object.display(&value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |object| object.display(&value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field, |object| object.display(&Value::from(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.member(field, |object| object.string(&format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{field::Empty, info, info_span, subscriber::with_default};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_carries_the_fields_of_its_spans() {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = super::super::json_layer().with_writer(move || written.clone());
        with_default(tracing_subscriber::registry().with(layer), || {
            let outer = info_span!(
                "outer",
                otel.kind = "server",
                text = "a \"quoted\"\nline of 文字",
                debugged = ?Some("x"),
                signed = -1,
                unsigned = u64::MAX,
                ratio = 0.5,
                none = f64::NAN,
                flag = true,
                r#type = "t",
                late = Empty,
                never = Empty,
            );
            let _outer = outer.enter();
            let inner = info_span!("inner", late = Empty).entered();
            outer.record("late", "first");
            outer.record("late", "last");
            inner.record("late", 7);
            info!("hello");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "hello");
        let spans = serde_json::json!([
            {
                "name": "outer",
                "text": "a \"quoted\"\nline of 文字",
                "debugged": "Some(\"x\")",
                "signed": -1,
                "unsigned": u64::MAX,
                "ratio": 0.5,
                "none": null,
                "flag": true,
                "type": "t",
                "late": "last",
            },
            { "name": "inner", "late": 7 },
        ]);
        assert_eq!(line["spans"], spans);
    }
}
