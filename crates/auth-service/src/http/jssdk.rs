//! `GET /jssdk/config.js`: a script that hands a fresh signature to `wx.config`.
//!
//! It is the same for everybody who opens the page, and good for as long as the ticket behind its signature: so long
//! any cache may keep it. What goes wrong is a script, too: a `<script>` can do nothing with JSON.

use std::time::SystemTime;

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Serialize;
use service_kit::http;
use url::form_urlencoded;

use super::NO_STORE;
use crate::{Auth, error::Error};

/// The most names that a list holds.
const NAMES_MAX: usize = 100;
/// Bytes of the longest name.
const NAME_MAX: usize = 64;

pub(super) fn routes() -> Router<Auth> {
    Router::new().route("/jssdk/config.js", get(config))
}

/// What a page asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    app: String,
    url: String,
    debug: bool,
    js_api_list: Vec<String>,
    open_tag_list: Vec<String>,
}

impl Asked {
    /// Reads a query. A parameter that is not known is mostly part of a `url` that was not encoded, and one that comes
    /// twice leaves open which is meant: both would sign another page than the one that asks.
    fn parse(query: &str) -> Result<Self, Error> {
        let (mut app, mut url, mut debug) = (None, None, None);
        let (mut js_api_list, mut open_tag_list) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let (field, slot) = match name.as_ref() {
                "app" => ("app", &mut app),
                "url" => ("url", &mut url),
                "debug" => ("debug", &mut debug),
                "jsApiList" => ("jsApiList", &mut js_api_list),
                "openTagList" => ("openTagList", &mut open_tag_list),
                _ => {
                    let problem = "is followed by a parameter that is not known: encode it, as in \
                         encodeURIComponent(location.href.split('#')[0])";
                    return Err(Error::field("url", problem));
                }
            };
            if slot.replace(value.into_owned()).is_some() {
                return Err(Error::field(field, "comes twice"));
            }
        }
        let filled = |field, value: Option<String>| {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Error::field(field, "is missing"))
        };
        Ok(Self {
            app: filled("app", app)?,
            url: filled("url", url)?,
            debug: match debug.as_deref() {
                None | Some("false" | "0") => false,
                Some("true" | "1") => true,
                Some(_) => return Err(Error::field("debug", "must be true or false")),
            },
            js_api_list: names("jsApiList", js_api_list.as_deref())?,
            open_tag_list: names("openTagList", open_tag_list.as_deref())?,
        })
    }
}

/// Names with commas between them.
fn names(field: &'static str, list: Option<&str>) -> Result<Vec<String>, Error> {
    let is_name = |name: &str| {
        (1..=NAME_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let names: Vec<_> = list
        .filter(|list| !list.is_empty())
        .into_iter()
        .flat_map(|list| list.split(','))
        .map(str::to_owned)
        .collect();
    if names.len() > NAMES_MAX || !names.iter().all(|name| is_name(name)) {
        let problem =
            "must be at most 100 names with commas between them, such as chooseImage,scanQRCode";
        return Err(Error::field(field, problem));
    }
    Ok(names)
}

/// What `wx.config` takes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    debug: bool,
    app_id: String,
    timestamp: i64,
    nonce_str: String,
    signature: String,
    js_api_list: Vec<String>,
    open_tag_list: Vec<String>,
}

async fn config(State(auth): State<Auth>, RawQuery(query): RawQuery) -> Response {
    match sign(&auth, query.as_deref().unwrap_or_default()).await {
        Ok((config, expires)) => {
            let left = expires.and_then(|end| end.duration_since(auth.clock.now()).ok());
            let seconds = left.unwrap_or_default().as_secs();
            let cache = HeaderValue::from_str(&format!("public, max-age={seconds}"))
                .ok()
                .filter(|_| seconds > 0);
            script(StatusCode::OK, &call(&config), cache.unwrap_or(NO_STORE))
        }
        Err(error) => {
            let error = http::Error::from(auth.status(&error));
            let message = format!("wxhub: {}: {}", error.code(), error.message());
            let body = format!("console.error({});\n", literal(&message));
            let mut response = script(error.status(), &body, NO_STORE);
            if let Some(seconds) = error.retry_seconds() {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

/// The signature, and when the ticket behind it expires.
async fn sign(auth: &Auth, query: &str) -> Result<(Config, Option<SystemTime>), Error> {
    let asked = Asked::parse(query)?;
    let catalog = auth.catalog.current();
    let app = catalog.app(&asked.app).ok_or(Error::AppUnknown)?;
    let signed = auth.tokens.sign_jsapi(&app.app_id, &asked.url).await?;
    let expires = signed.expire_time.and_then(|time| time.try_into().ok());
    let config = Config {
        debug: asked.debug,
        app_id: signed.app_id,
        timestamp: signed.timestamp,
        nonce_str: signed.nonce_str,
        signature: signed.signature,
        js_api_list: asked.js_api_list,
        open_tag_list: asked.open_tag_list,
    };
    Ok((config, expires))
}

fn call(config: &Config) -> String {
    format!(
        r#"(function (config) {{
  if (typeof wx === "undefined" || !wx.config) {{
    console.error("wxhub: load https://res.wx.qq.com/open/js/jweixin-1.6.0.js before this script");
    return;
  }}
  wx.config(config);
}})({});
"#,
        literal(config)
    )
}

/// JSON that is also JavaScript of any age, wherever the script ends up: nothing in it ends a `<script>` or a line.
fn literal(value: &impl Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_default()
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn script(status: StatusCode, body: &str, cache: HeaderValue) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/javascript; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, cache),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        // Pages of other sites are whom it is for, also those that are isolated.
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("cross-origin"),
        ),
    ];
    (status, headers, body.to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_read_as_wx_config_names_things() {
        let asked = Asked::parse(
            "app=news&url=https%3A%2F%2Fh5.example.com%2F%3Fa%3D1%26b%3D%2B&debug=true&jsApiList=chooseImage,scanQRCode&openTagList=wx-open-launch-weapp",
        );
        let expected = Asked {
            app: "news".to_owned(),
            url: "https://h5.example.com/?a=1&b=+".to_owned(),
            debug: true,
            js_api_list: vec!["chooseImage".to_owned(), "scanQRCode".to_owned()],
            open_tag_list: vec!["wx-open-launch-weapp".to_owned()],
        };
        assert_eq!(asked.unwrap(), expected);
        let least = Asked::parse("app=news&url=u&jsApiList=&debug=0").unwrap();
        assert!(!least.debug && least.js_api_list.is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_query_is_named() {
        let many = format!("app=a&url=u&jsApiList={}", vec!["x"; 101].join(","));
        for (query, named) in [
            ("", "app"),
            ("app=&url=u", "app"),
            ("app=news", "url"),
            ("app=news&url=", "url"),
            // A URL that was not encoded.
            ("app=news&url=https://h5.example.com/?a=1&b=2", "url"),
            ("app=news&url=u&url=v", "url"),
            ("app=news&url=u&debug=yes", "debug"),
            ("app=news&url=u&jsApiList=a,", "jsApiList"),
            ("app=news&url=u&jsApiList=alert(1)", "jsApiList"),
            ("app=news&url=u&openTagList=%3Cb%3E", "openTagList"),
            (&many, "jsApiList"),
        ] {
            let error = Asked::parse(query).unwrap_err();
            assert!(
                matches!(error, Error::InvalidField { field, .. } if field == named),
                "{query}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in ".*") {
            if let Ok(asked) = Asked::parse(&query) {
                prop_assert!(!asked.app.is_empty() && !asked.url.is_empty());
            }
        }

        #[test]
        fn a_literal_is_the_value_and_ends_neither_script_nor_line(text in any::<String>()) {
            let text = format!("{text}</script><!--\u{2028}\u{2029}\n\"");
            let literal = literal(&text);
            let ends = literal.contains(['<', '\u{2028}', '\u{2029}', '\n']);
            prop_assert!(!ends);
            prop_assert_eq!(serde_json::from_str::<String>(&literal).unwrap(), text);
        }
    }
}
