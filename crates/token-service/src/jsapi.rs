//! Signatures for pages that use WeChat's JavaScript (JS-SDK).

use std::time::SystemTime;

use secrecy::ExposeSecret as _;
use service_kit::App;
use url::Url;
use wechat::Ticket;

use crate::{
    broker::Broker,
    credential::{Key, Kind},
    error::Error,
};

/// The longest URL that is signed, in bytes.
const URL_MAX: usize = 2_048;

/// What a page hands to `wx.config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// `nonceStr`.
    pub nonce: String,
    /// `timestamp`, in Unix seconds.
    pub timestamp: i64,
    /// `signature`.
    pub signature: String,
    /// What was signed: the page's URL without its fragment.
    pub url: String,
    /// When the ticket behind it expires.
    pub expire_time: SystemTime,
}

/// Why a URL is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is too long to be a page's.
    #[error("is longer than {URL_MAX} bytes")]
    TooLong,
    /// No browser shows such a URL.
    #[error(
        "is not a page's http or https URL as a browser has it, such as https://h5.example.com/a?b=c"
    )]
    Malformed,
    /// Whoever could sign any page could act for the app.
    #[error(
        "is on host {host:?}, which app {app:?} does not list: add {host:?} to its jssdk.hosts in wxhub.toml"
    )]
    HostNotListed {
        /// The page's host.
        host: String,
        /// The app's name.
        app: String,
    },
}

/// Signs the page at `url` for `app`.
///
/// # Errors
/// [`UrlError`] when the page is not the app's, and what fetching the ticket fails with.
pub async fn sign(broker: &Broker, app: &App, url: &str) -> Result<Signature, Error> {
    let url = page(app, url)?;
    let key = Key {
        app: app.app_id.clone(),
        kind: Kind::JsapiTicket,
    };
    let held = broker.get(&key).await?;
    let ticket = Ticket::new(held.credential.secret.expose_secret());
    let nonce = broker.random().nonce();
    let timestamp = broker.clock().unix_seconds();
    Ok(Signature {
        signature: wechat::jsapi::sign(&ticket, &nonce, timestamp, url),
        nonce,
        timestamp,
        url: url.to_owned(),
        expire_time: held.credential.times.expire,
    })
}

/// The URL without its fragment, when it is a page of the app. The text itself is signed, so it is not normalised.
fn page<'a>(app: &App, url: &'a str) -> Result<&'a str, UrlError> {
    if url.len() > URL_MAX {
        return Err(UrlError::TooLong);
    }
    // Parsers differ about these, and no browser shows them.
    if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(UrlError::Malformed);
    }
    let url = url.split_once('#').map_or(url, |(page, _fragment)| page);
    let parsed = Url::parse(url).map_err(|_| UrlError::Malformed)?;
    let (true, Some(host)) = (
        matches!(parsed.scheme(), "http" | "https"),
        parsed.host_str(),
    ) else {
        return Err(UrlError::Malformed);
    };
    let listed = app
        .jssdk_hosts
        .iter()
        .any(|known| known.eq_ignore_ascii_case(host));
    if !listed {
        return Err(UrlError::HostNotListed {
            host: host.to_owned(),
            app: app.name.clone(),
        });
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use service_kit::{Catalog, catalog::Needs};

    use super::*;

    fn check(url: &str) -> Result<String, UrlError> {
        let text = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret = "s"
jssdk = { hosts = ["h5.example.com"] }
"#;
        let catalog = Catalog::parse(text, Needs::default(), |_| None).unwrap();
        page(catalog.app("shop").unwrap(), url).map(str::to_owned)
    }

    #[test]
    fn a_listed_page_is_signed_as_it_is_without_its_fragment() {
        for (url, signed) in [
            (
                "https://h5.example.com/a?b=%E4%B8%AD&c=1#/route#x",
                "https://h5.example.com/a?b=%E4%B8%AD&c=1",
            ),
            ("http://H5.example.com:8443", "http://H5.example.com:8443"),
        ] {
            assert_eq!(check(url).unwrap(), signed);
        }
    }

    #[test]
    fn other_hosts_are_refused_with_what_to_add() {
        for url in [
            "https://evil.example.com/",
            "https://h5.example.com.evil.com/",
            "https://h5.example.com@evil.com/",
            "https://evil.com/?https://h5.example.com/",
        ] {
            let error = check(url).unwrap_err();
            assert!(matches!(error, UrlError::HostNotListed { .. }), "{url}");
            assert!(error.to_string().contains("to its jssdk.hosts"), "{error}");
        }
    }

    #[test]
    fn what_no_browser_shows_is_refused() {
        for url in [
            "",
            "h5.example.com",
            "/a",
            "ftp://h5.example.com/",
            "javascript:alert(1)",
            "https://h5.example.com/ a",
            "https://h5.example.com/\n",
            "https://evil.com\\@h5.example.com/",
        ] {
            assert_eq!(check(url), Err(UrlError::Malformed), "{url}");
        }
        let long = format!("https://h5.example.com/{}", "a".repeat(URL_MAX));
        assert_eq!(check(&long), Err(UrlError::TooLong));
    }
}
