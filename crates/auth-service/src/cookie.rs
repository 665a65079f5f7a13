//! Cookies as this service sets them: unreadable to scripts, sent to this host alone, and over HTTPS alone where there
//! is HTTPS.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};
use url::Url;

/// How browsers see this service, which decides what its cookies are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cookies {
    secure: bool,
}

impl Cookies {
    /// Cookies of the service at this URL. With HTTPS they carry the prefix `__Host-`, by which a browser refuses them
    /// from any other host, subdomains included, and from plain HTTP (RFC 6265bis, section 4.1.3.2).
    pub(crate) fn at(public_url: Option<&Url>) -> Self {
        Self {
            secure: public_url.is_some_and(|url| url.scheme() == "https"),
        }
    }

    fn name(self, name: &str) -> String {
        let prefix = if self.secure { "__Host-" } else { "" };
        format!("{prefix}{name}")
    }

    /// The value of a cookie that the browser sent. Two of one name count as none: one of them is not ours.
    pub(crate) fn get<'h>(self, headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
        let name = self.name(name);
        let mut found = pairs(headers).filter(|(key, _)| *key == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    /// Every cookie whose name begins so, with the rest of its name.
    pub(crate) fn starting<'h>(
        self,
        headers: &'h HeaderMap,
        prefix: &str,
    ) -> Vec<(&'h str, &'h str)> {
        let prefix = self.name(prefix);
        pairs(headers)
            .filter_map(|(name, value)| Some((name.strip_prefix(prefix.as_str())?, value)))
            .collect()
    }

    /// A `Set-Cookie` that lasts for `life`, or as long as the browser runs.
    pub(crate) fn set(self, name: &str, value: &str, life: Option<Duration>) -> HeaderValue {
        let mut cookie = Cookie::build((self.name(name), value))
            .path("/")
            .http_only(true)
            .secure(self.secure)
            .same_site(SameSite::Lax);
        if let Some(life) = life {
            let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
            cookie = cookie.max_age(cookie::time::Duration::seconds(seconds));
        }
        // Names and values are this service's own: letters, digits, `-` and `_`.
        let mut value = HeaderValue::from_str(&cookie.build().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    /// A `Set-Cookie` that makes the browser forget it.
    pub(crate) fn clear(self, name: &str) -> HeaderValue {
        self.set(name, "", Some(Duration::ZERO))
    }
}

/// Name and value of each cookie, as the browser wrote them. What is no pair is passed over.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(header::COOKIE)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cookies(url: &str) -> Cookies {
        Cookies::at(Some(&url.parse().unwrap()))
    }

    fn sent(lines: &[&'static str]) -> HeaderMap {
        let line = |line: &&'static str| (header::COOKIE, HeaderValue::from_static(line));
        lines.iter().map(line).collect()
    }

    #[test]
    fn cookies_are_locked_down_and_the_more_so_with_https() {
        let plain = cookies("http://127.0.0.1:8081").set("wxhub_x", "v", None);
        assert_eq!(
            plain.to_str().unwrap(),
            "wxhub_x=v; HttpOnly; SameSite=Lax; Path=/"
        );
        let secure = cookies("https://auth.example.com");
        let set = secure.set("wxhub_x", "v", Some(Duration::from_secs(60)));
        assert_eq!(
            set.to_str().unwrap(),
            "__Host-wxhub_x=v; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60"
        );
        assert!(set.is_sensitive());
        let cleared = secure.clear("wxhub_x");
        assert!(cleared.to_str().unwrap().contains("Max-Age=0"));
    }

    #[test]
    fn a_cookie_is_read_from_any_header_line() {
        let plain = cookies("http://127.0.0.1");
        let headers = sent(&["a=1; wxhub_s_shop=x", "junk; wxhub_s_news = y ;=;b"]);
        assert_eq!(plain.get(&headers, "wxhub_s_shop"), Some("x"));
        assert_eq!(plain.get(&headers, "wxhub_s"), None);
        assert_eq!(
            plain.starting(&headers, "wxhub_s_"),
            [("shop", "x"), ("news", "y")]
        );
    }

    #[test]
    fn a_cookie_that_comes_twice_or_without_its_prefix_is_none() {
        let plain = cookies("http://127.0.0.1");
        assert_eq!(plain.get(&sent(&["a=1; a=2"]), "a"), None);
        let secure = cookies("https://auth.example.com");
        let headers = sent(&["a=1; __Host-a=2"]);
        assert_eq!(secure.get(&headers, "a"), Some("2"));
        assert_eq!(secure.get(&sent(&["a=1"]), "a"), None);
    }

    proptest! {
        #[test]
        fn what_is_set_is_read_among_whatever_else_a_browser_sends(
            value in "[A-Za-z0-9_-]{1,64}",
            before in "[ -~]{0,40}",
            after in any::<Vec<u8>>(),
            https: bool,
        ) {
            let cookies = cookies(if https { "https://a.example" } else { "http://a.example" });
            let set = cookies.set("wxhub_p", &value, None);
            let pair = set.to_str().unwrap().split("; ").next().unwrap();
            let mut headers = HeaderMap::new();
            headers.append(header::COOKIE, format!("{before}; {pair}").parse().unwrap());
            // Anything that the HTTP parser lets pass.
            if let Ok(after) = HeaderValue::from_bytes(&after) {
                headers.append(header::COOKIE, after);
            }
            let found = cookies.get(&headers, "wxhub_p");
            let named = cookies.starting(&headers, "wxhub_p");
            let exact = named.iter().filter(|(rest, _)| rest.is_empty()).count();
            prop_assert_eq!(found, (exact == 1).then_some(value.as_str()));
        }
    }
}
