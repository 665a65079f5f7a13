//! JSON as WeChat writes it: a byte-order mark, broken UTF-8, raw control characters and half
//! surrogates in texts, integers that no float holds.

use std::{borrow::Cow, collections::BTreeMap};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, value::RawValue};

/// Deeper nesting is refused; WeChat's own stays below ten.
const MAX_DEPTH: usize = 32;

/// `body` as text that a JSON parser takes, when it is JSON at all.
pub(crate) fn text(body: &[u8]) -> Cow<'_, str> {
    match text_lossy(body) {
        Cow::Borrowed(text) => mend(text),
        Cow::Owned(text) => Cow::Owned(mend(&text).into_owned()),
    }
}

/// `body` without a byte-order mark, broken UTF-8 replaced.
pub(crate) fn text_lossy(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body))
}

/// `body` as a value; integers beyond 64 bits are kept as text.
pub(crate) fn value(body: &[u8]) -> Option<Value> {
    exact(&from_text::<Box<RawValue>>(&text(body))?, MAX_DEPTH)
}

fn from_text<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

fn exact(raw: &RawValue, depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    let text = raw.get();
    match text.as_bytes().first()? {
        b'{' => from_text::<BTreeMap<String, Box<RawValue>>>(text)?
            .into_iter()
            .map(|(key, value)| Some((key, exact(&value, depth)?)))
            .collect::<Option<Map<_, _>>>()
            .map(Value::Object),
        b'[' => from_text::<Vec<Box<RawValue>>>(text)?
            .iter()
            .map(|value| exact(value, depth))
            .collect::<Option<Vec<_>>>()
            .map(Value::Array),
        _ => {
            let value: Value = from_text(text)?;
            let is_integer = text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'-');
            Some(if is_integer && value.is_f64() {
                Value::String(text.to_owned())
            } else {
                value
            })
        }
    }
}

/// Escapes control characters inside strings and replaces `\u` escapes of half surrogates, neither
/// of which JSON takes.
fn mend(text: &str) -> Cow<'_, str> {
    let needs_mending =
        text.bytes().any(|byte| byte < 0x20) || text.contains("\\ud") || text.contains("\\uD");
    if !needs_mending {
        return Cow::Borrowed(text);
    }
    let mut mended = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '"' => {
                in_string = !in_string;
                mended.push(c);
            }
            '\\' if in_string => {
                let (escape, replacement) = escape(rest);
                taken = escape.len();
                mended.push_str(replacement.unwrap_or(escape));
            }
            c if in_string && c < ' ' => mended.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => mended.push(c),
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    Cow::Owned(mended)
}

/// The escape that `text` starts with, and what stands in for it when it is half a surrogate pair.
fn escape(text: &str) -> (&str, Option<&'static str>) {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let first = |length: usize| text.get(..length).unwrap_or(text);
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (first(12), None),
        (Some(0xd800..=0xdfff), _) => (first(6), Some("\\ufffd")),
        // A backslash and the character after it, which may be several bytes in broken JSON.
        _ => (
            first(1 + text.chars().nth(1).map_or(0, char::len_utf8)),
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(value(b"\xef\xbb\xbf{\"a\":1}"), Some(json!({"a": 1})));
    }

    #[test]
    fn control_characters_inside_texts_are_kept() {
        assert_eq!(
            value(b"{\"a\":\n\"x\x00\ty\\\"\n\"}"),
            Some(json!({"a": "x\0\ty\"\n"}))
        );
    }

    #[test]
    fn broken_utf8_is_replaced() {
        assert_eq!(value(b"{\"a\":\"x\xff\"}"), Some(json!({"a": "x\u{fffd}"})));
    }

    #[test]
    fn half_surrogates_are_replaced_and_pairs_are_not() {
        assert_eq!(value(br#"["\ud83d\ude00"]"#), Some(json!(["😀"])));
        assert_eq!(value(br#"["\ud83d"]"#), Some(json!(["\u{fffd}"])));
        assert_eq!(value(br#"["\uDE00x"]"#), Some(json!(["\u{fffd}x"])));
        assert_eq!(value(br#"["\ud83d\u0041"]"#), Some(json!(["\u{fffd}A"])));
        assert_eq!(value(br#"["\\ud83d"]"#), Some(json!(["\\ud83d"])));
    }

    #[test]
    fn integers_beyond_64_bits_become_text() {
        let exact = value(b"{\"a\":[123456789012345678901234567890,18446744073709551615,-9223372036854775808,1.5]}");
        assert_eq!(
            exact,
            Some(json!({"a": ["123456789012345678901234567890", u64::MAX, i64::MIN, 1.5]}))
        );
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(value(nested(MAX_DEPTH).as_bytes()).is_some());
        assert!(value(nested(MAX_DEPTH + 1).as_bytes()).is_none());
        assert!(value(nested(100_000).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn texts_survive(text in any::<String>()) {
            let json = json!({ text.clone(): text });
            prop_assert_eq!(value(json.to_string().as_bytes()), Some(json));
        }

        #[test]
        fn unescaped_texts_survive(text in "[^\"\\\\]*") {
            prop_assert_eq!(value(format!("[\"{text}\"]").as_bytes()), Some(json!([text])));
        }

        #[test]
        fn garbage_never_panics(bytes in any::<Vec<u8>>(), text in "[\\[\\]{}\",:\\\\ud8c0-9\u{0}-\u{1f}]*") {
            let _ = value(&bytes);
            let _ = value(text.as_bytes());
        }
    }
}
