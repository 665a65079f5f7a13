//! Reading what WeChat answers: the errcode decides, neither HTTP status nor content type does.

use std::time::Duration;

use reqwest::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;

use crate::{ApiError, ErrCode, Error, json};

/// Longer texts are cut, in characters: they go into logs and databases.
const MAX_ERRMSG: usize = 512;
/// What is longer is no request id.
const MAX_RID: usize = 64;

#[derive(Deserialize)]
struct Status {
    errcode: Option<Box<RawValue>>,
    errmsg: Option<Box<RawValue>>,
}

/// The answer's own fields, or the error it is.
///
/// Success is an errcode of 0, or none where the HTTP status is a success too.
pub(super) fn parse<T: DeserializeOwned>(
    endpoint: &'static str,
    status: StatusCode,
    body: &[u8],
    secrets: &[&str],
) -> Result<T, Error> {
    let garbage = |problem: &str| Error::Garbage {
        endpoint,
        status: status.as_u16(),
        problem: format!("{problem} ({} bytes)", body.len()),
    };
    let text = json::text(body);
    // `serde_json` takes an array for a struct too.
    if !text.trim_start().starts_with('{') {
        return Err(garbage("the answer is no JSON object"));
    }
    let Status { errcode, errmsg } =
        serde_json::from_str(&text).map_err(|_| garbage("the answer is no valid JSON"))?;
    match errcode.as_deref().map(integer) {
        None if status.is_success() => {}
        None => return Err(garbage("the answer is no WeChat error")),
        Some(None) => return Err(garbage("the errcode is no integer")),
        Some(Some(0)) => {}
        Some(Some(errcode)) => {
            let errmsg = errmsg.as_deref().and_then(string).unwrap_or_default();
            // The id is at the end, which a long text loses.
            let rid = rid(&errmsg).map(str::to_owned);
            let errmsg = presentable(errmsg, secrets);
            return Err(Error::Api(ApiError {
                endpoint,
                errcode: ErrCode(errcode),
                errmsg,
                rid,
            }));
        }
    }
    serde_json::from_str(&text)
        .map_err(|_| garbage("the answer lacks a field or has one of a wrong type"))
}

/// A text that is not empty, for `deserialize_with`.
pub(super) fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Err(D::Error::custom("empty"));
    }
    Ok(text)
}

/// Seconds as a number or as a text, for `deserialize_with`.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    integer(&raw)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs)
        .ok_or_else(|| D::Error::custom("no seconds"))
}

/// An integer, written as a number or as a text.
fn integer(raw: &RawValue) -> Option<i64> {
    scalar(raw)?.trim().parse().ok()
}

/// A number's digits or a text.
pub(super) fn scalar(raw: &RawValue) -> Option<String> {
    match raw.get().as_bytes().first()? {
        b'"' => string(raw),
        b'-' | b'0'..=b'9' => Some(raw.get().to_owned()),
        _ => None,
    }
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// One line of bounded length that repeats nothing secret.
fn presentable(mut errmsg: String, secrets: &[&str]) -> String {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        errmsg = errmsg.replace(secret, "(redacted)");
    }
    errmsg
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_ERRMSG)
        .collect()
}

/// The request id at the end of an errmsg: `rid: 5f1e7b2c-0a1b2c3d-4e5f6071`, in older answers
/// `hints: [ req_id: x ]`.
fn rid(errmsg: &str) -> Option<&str> {
    ["rid:", "req_id:"].iter().find_map(|label| {
        let at = errmsg.rfind(label)?;
        let starts_a_word = !errmsg
            .get(..at)?
            .ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = errmsg.get(at + label.len()..)?.trim_start();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
            .unwrap_or(rest.len());
        rest.get(..end)
            .filter(|id| starts_a_word && (1..=MAX_RID).contains(&id.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_found_in_both_editions() {
        for (errmsg, expected) in [
            (
                "invalid code rid: 5f1e7b2c-0a1b2c3d-4e5f6071",
                Some("5f1e7b2c-0a1b2c3d-4e5f6071"),
            ),
            (
                "invalid code, rid: 5f1e7b2c-0a1b2c3d-4e5f6071 ",
                Some("5f1e7b2c-0a1b2c3d-4e5f6071"),
            ),
            ("invalid code, hints: [ req_id: aB.1_2 ]", Some("aB.1_2")),
            ("arid: desert", None),
            ("rid:", None),
            (&format!("rid: {}", "f".repeat(65)), None),
            ("ok", None),
        ] {
            assert_eq!(rid(errmsg), expected, "{errmsg}");
        }
    }

    #[test]
    fn error_texts_are_one_bounded_line_without_secrets() {
        assert_eq!(
            presentable("a\r\nb s3cret".to_owned(), &["", "s3cret"]),
            "a  b (redacted)"
        );
        assert_eq!(
            presentable("长".repeat(600), &[]).chars().count(),
            MAX_ERRMSG
        );
    }
}
