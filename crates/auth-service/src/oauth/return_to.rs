//! Where a sign-in returns to: the one text of a stranger's that this service redirects to.
//!
//! Browsers read URLs with much indulgence (`https:\\evil`, `/\evil`, `https://good@evil`, tabs and line breaks that
//! vanish), and other parsers read the same texts otherwise. So nothing is guessed here: the scheme, the slashes and
//! the host stand in the text exactly as they are meant, the host is one that the app lists, and what the browsers'
//! parser makes of the text must be the same.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use url::{Url, form_urlencoded};

/// Bytes of the longest one.
pub(crate) const MAX: usize = 2_048;
/// What a sign-in adds to the query. Of an earlier sign-in, or of somebody who would pass theirs for it, it is dropped.
const OURS: [&str; 2] = [TICKET, ERROR];
/// The parameter that stands for who signed in.
pub(crate) const TICKET: &str = "wxhub_ticket";
/// The parameter that says why nobody did.
pub(crate) const ERROR: &str = "error";
/// What browsers leave as it is after the host, though RFC 3986 wants it encoded.
const LENIENT: [char; 7] = ['[', ']', '{', '}', '|', '^', '`'];

/// A page to return to, of a host that the app lists.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReturnTo {
    host: String,
    /// All before the query.
    base: String,
    query: Option<String>,
    fragment: Option<String>,
}

/// Why a text is not returned to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// It is longer than 2,048 bytes.
    #[error("must be at most {MAX} bytes")]
    TooLong,
    /// It holds what a URL has only in percent-encoding.
    #[error(
        "holds a character that must be percent-encoded: use encodeURIComponent(location.href)"
    )]
    Character,
    /// It is no `https://` URL.
    #[error("must begin with https://")]
    Scheme,
    /// What follows `https://` is not a host and nothing else.
    #[error("must name a host and nothing else between https:// and the path")]
    Authority,
    /// The app does not list its host.
    #[error(
        "is on host {0:?}, which the app does not list: add it to its oauth.return_hosts in wxhub.toml"
    )]
    Host(String),
}

impl ReturnTo {
    /// Takes a page's URL as its script has it. On a machine that develops (`loopback`), `http://` and a port are
    /// taken too, of this machine's own listed names.
    ///
    /// # Errors
    /// When a browser might go anywhere else than to a page of one of `hosts`.
    pub(crate) fn parse(text: &str, hosts: &[String], loopback: bool) -> Result<Self, Refused> {
        match text.len() {
            0 => return Err(Refused::Missing),
            1..=MAX => {}
            _ => return Err(Refused::TooLong),
        }
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"<>".contains(&byte);
        if !text.bytes().all(is_plain) || text.matches('#').count() > 1 || has_stray_percent(text) {
            return Err(Refused::Character);
        }
        let (secure, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://").filter(|_| loopback) {
            (false, rest)
        } else {
            return Err(Refused::Scheme);
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = rest.get(..end).unwrap_or_default().to_ascii_lowercase();
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority.as_str(), None),
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err(Refused::Authority);
        }
        let is_ours = loopback && matches!(host, "localhost" | "127.0.0.1");
        match port {
            Some(port) if !is_ours || !is_port(port) => return Err(Refused::Authority),
            _ => {}
        }
        if !secure && !is_ours {
            return Err(Refused::Scheme);
        }
        if !hosts.iter().any(|listed| listed == host) {
            return Err(Refused::Host(host.to_owned()));
        }

        // The browsers' parser has the last word.
        let url = Url::parse(text).map_err(|_| Refused::Authority)?;
        let as_written = url.scheme() == if secure { "https" } else { "http" }
            && url.host_str() == Some(host)
            && url.username().is_empty()
            && url.password().is_none()
            && url
                .port()
                .is_none_or(|url_port| port == Some(url_port.to_string().as_str()));
        if !as_written {
            return Err(Refused::Authority);
        }
        let path = url.path();
        let scheme = url.scheme();
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        Ok(Self {
            base: format!("{scheme}://{host}{port}{}", encode(path)),
            query: url.query().map(without_ours),
            fragment: url.fragment().map(encode),
            host: host.to_owned(),
        })
    }

    /// The page's host, without a port.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The page's origin, as browsers write it.
    pub(crate) fn origin(&self) -> &str {
        // The path begins at the third slash.
        let path = self.base.match_indices('/').nth(2);
        let origin = path.and_then(|(end, _)| self.base.get(..end));
        origin.unwrap_or(&self.base)
    }

    /// The page with this parameter of ours: its own query and fragment are kept.
    pub(crate) fn with(&self, name: &str, value: &str) -> String {
        let Self { base, fragment, .. } = self;
        let mut url = format!("{base}?");
        if let Some(query) = self.query.as_deref().filter(|query| !query.is_empty()) {
            url.push_str(query);
            url.push('&');
        }
        // Both are this service's own: letters, digits and `_`.
        for part in [name, "=", value] {
            url.push_str(part);
        }
        // Without one of its own, the page would inherit WeChat's `#wechat_redirect` through the redirects.
        url.push('#');
        url.push_str(fragment.as_deref().unwrap_or_default());
        url
    }
}

impl fmt::Debug for ReturnTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query is the page's own business.
        f.debug_tuple("ReturnTo").field(&self.base).finish()
    }
}

/// Whether a `%` is not followed by two hexadecimal digits.
fn has_stray_percent(text: &str) -> bool {
    let mut pieces = text.split('%');
    pieces.next();
    pieces.any(|piece| {
        let mut digits = piece.bytes().take(2);
        !(digits.len() == 2 && digits.all(|byte| byte.is_ascii_hexdigit()))
    })
}

/// Whether it is a port as a browser writes it.
fn is_port(text: &str) -> bool {
    text.parse::<u16>()
        .is_ok_and(|port| port > 0 && port.to_string() == text)
}

/// The text as RFC 3986 has it.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for char in text.chars() {
        if LENIENT.contains(&char) {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{:02X}", u32::from(char));
        } else {
            encoded.push(char);
        }
    }
    encoded
}

/// The page's own query.
fn without_ours(query: &str) -> String {
    let is_ours = |pair: &str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next();
        name.is_some_and(|(name, _)| OURS.contains(&name.as_ref()))
    };
    let kept: Vec<_> = query.split('&').filter(|pair| !is_ours(pair)).collect();
    encode(&kept.join("&"))
}

#[cfg(test)]
mod tests {
    use fluent_uri::Uri;
    use proptest::prelude::*;

    use super::*;

    const BYPASSES: &str = include_str!("../../tests/data/redirect_bypasses.txt");

    fn hosts() -> Vec<String> {
        [
            "h5.example.com",
            "xn--fsqu00a.example",
            "localhost",
            "127.0.0.1",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn parse(text: &str) -> Result<ReturnTo, Refused> {
        ReturnTo::parse(text, &hosts(), false)
    }

    #[test]
    fn no_redirect_bypass_passes() {
        let lines = BYPASSES
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut tried = 0;
        for line in lines {
            let text: String = serde_json::from_str(line).unwrap();
            for loopback in [false, true] {
                let parsed = ReturnTo::parse(&text, &hosts(), loopback);
                assert!(parsed.is_err(), "{text:?} became {parsed:?}");
            }
            tried += 1;
        }
        assert!(tried >= 200, "{tried}");
    }

    #[test]
    fn a_page_is_returned_to_with_its_own_query_and_fragment() {
        for (page, back) in [
            (
                "https://h5.example.com",
                "https://h5.example.com/?wxhub_ticket=T#",
            ),
            (
                "https://h5.example.com/a",
                "https://h5.example.com/a?wxhub_ticket=T#",
            ),
            (
                "https://h5.example.com/a?",
                "https://h5.example.com/a?wxhub_ticket=T#",
            ),
            (
                "https://h5.example.com?x=1",
                "https://h5.example.com/?x=1&wxhub_ticket=T#",
            ),
            (
                "https://h5.example.com/a/b?x=1&y=%E5%BE%AE&z=+&x=2#/route?k=v",
                "https://h5.example.com/a/b?x=1&y=%E5%BE%AE&z=+&x=2&wxhub_ticket=T#/route?k=v",
            ),
            (
                "https://h5.example.com/#",
                "https://h5.example.com/?wxhub_ticket=T#",
            ),
            (
                "https://H5.Example.COM/A",
                "https://h5.example.com/A?wxhub_ticket=T#",
            ),
            (
                "https://xn--fsqu00a.example/",
                "https://xn--fsqu00a.example/?wxhub_ticket=T#",
            ),
            (
                "https://h5.example.com/a[0]?ids[]=1&f={a|b}#{c}",
                "https://h5.example.com/a%5B0%5D?ids%5B%5D=1&f=%7Ba%7Cb%7D&wxhub_ticket=T#%7Bc%7D",
            ),
            // Nothing of an earlier sign-in, nor of somebody else's, stays.
            (
                "https://h5.example.com/?wxhub_ticket=OTHER&x=1&error=access_denied&wxhub%5Fticket=O",
                "https://h5.example.com/?x=1&wxhub_ticket=T#",
            ),
            // A path of its own with two slashes is no other host.
            (
                "https://h5.example.com//evil.com",
                "https://h5.example.com//evil.com?wxhub_ticket=T#",
            ),
        ] {
            assert_eq!(parse(page).unwrap().with(TICKET, "T"), back);
        }
    }

    #[test]
    fn plain_http_and_ports_are_for_this_machine_alone_where_it_develops() {
        for (page, base) in [
            ("http://localhost:5173/x", "http://localhost:5173/x"),
            ("http://127.0.0.1/", "http://127.0.0.1/"),
            ("https://localhost:8443/", "https://localhost:8443/"),
        ] {
            let develops = ReturnTo::parse(page, &hosts(), true).unwrap();
            assert_eq!(develops.base, base);
            assert!(parse(page).is_err());
            let unlisted = ReturnTo::parse(page, &["h5.example.com".to_owned()], true);
            assert!(matches!(unlisted, Err(Refused::Host(_))));
        }
    }

    #[test]
    fn the_developer_is_told_what_is_wrong() {
        let long = format!("https://h5.example.com/{}", "x".repeat(MAX));
        for (text, problem) in [
            ("", "is missing"),
            (long.as_str(), "must be at most 2048 bytes"),
            ("https://h5.example.com/a b", "encodeURIComponent"),
            ("http://h5.example.com/", "must begin with https://"),
            ("https://a@h5.example.com/", "a host and nothing else"),
            (
                "https://evil.com/",
                "is on host \"evil.com\", which the app does not list",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    /// Texts that are nearly URLs.
    fn near_urls() -> impl Strategy<Value = String> {
        let host = prop_oneof![
            Just("h5.example.com".to_owned()),
            Just("localhost".to_owned()),
            Just("xn--fsqu00a.example".to_owned()),
            Just("evil.com".to_owned()),
            "[a-z0-9.@:%\\\\/\\[\\]_-]{0,20}",
            any::<String>(),
        ];
        let mark = prop_oneof![
            4 => Just(String::new()),
            1 => "[@:/\\\\?#%.&;\t\n \u{3002}\u{ff0f}]{1,3}",
        ];
        let scheme = prop_oneof![
            6 => Just("https://".to_owned()),
            2 => Just("http://".to_owned()),
            1 => "[a-zA-Z:/\\\\]{0,10}",
        ];
        let tail = prop_oneof![
            "(/[!-~]{0,12})?(\\?[!-~]{0,24})?(#[!-~]{0,12})?",
            "(/[a-z{}\\[\\]|^`]{0,8})?(\\?(x=1&|error=2&|wxhub_ticket=3&|%65rror=4&){0,3})?(#[a-z/?]{0,8})?",
            any::<String>(),
        ];
        (scheme, mark.clone(), host, mark.clone(), tail).prop_map(
            |(scheme, before, host, after, tail)| format!("{scheme}{before}{host}{after}{tail}"),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn both_parsers_agree_on_the_host_of_whatever_is_accepted(text in near_urls(), loopback: bool) {
            let Ok(page) = ReturnTo::parse(&text, &hosts(), loopback) else {
                return Ok(());
            };
            prop_assert!(hosts().contains(&page.host().to_owned()));
            for (name, value) in [(TICKET, "0f"), (ERROR, "access_denied")] {
                let location = page.with(name, value);
                let browser = Url::parse(&location).unwrap();
                let strict = Uri::parse(location.as_str()).unwrap();
                let authority = strict.authority().unwrap();
                prop_assert_eq!(browser.host_str(), Some(page.host()));
                prop_assert_eq!(authority.host(), page.host());
                prop_assert!(authority.userinfo().is_none() && browser.username().is_empty());
                prop_assert_eq!(strict.scheme().as_str(), browser.scheme());
                prop_assert!(browser.scheme() == "https" || loopback);
                // What the text itself says to a browser is the same page.
                let asked = Url::parse(&text).unwrap();
                prop_assert_eq!(asked.origin(), browser.origin());
                prop_assert_eq!(asked.origin().ascii_serialization(), page.origin());
                let own: Vec<_> = asked
                    .query_pairs()
                    .filter(|(key, _)| ![TICKET, ERROR].contains(&key.as_ref()))
                    .collect();
                let mut back: Vec<_> = browser.query_pairs().collect();
                prop_assert_eq!(back.pop(), Some((name.into(), value.into())));
                prop_assert_eq!(back, own);
                prop_assert!(browser.fragment().is_some());
                prop_assert_eq!(asked.fragment().is_none_or(str::is_empty), browser.fragment() == Some(""));
                prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn no_text_at_all_leads_elsewhere(text in any::<String>()) {
            if let Ok(page) = parse(&text) {
                prop_assert!(page.base.starts_with("https://h5.example.com/"));
            }
        }
    }
}
