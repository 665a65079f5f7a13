//! What the pages of this service have in common: language, style, and headers that leave a browser nothing to be
//! talked into.

use askama::Template;
use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tracing::error;

/// Nothing but the page's own style, scripts, images and connections; it is framed by nobody and posts to this host
/// alone.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

/// The languages that pages speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Chinese,
    English,
}

impl Language {
    /// What `?lang=` asks for, else what the browser prefers of the two; Chinese where it says nothing.
    pub(crate) fn of(asked: Option<&str>, headers: &HeaderMap) -> Self {
        let accepted = headers.get(header::ACCEPT_LANGUAGE);
        let accepted = accepted.and_then(|value| value.to_str().ok());
        // Browsers list what they prefer first; weights only say so again.
        asked
            .into_iter()
            .chain(accepted.unwrap_or_default().split(','))
            .find_map(Self::parse)
            .unwrap_or(Self::Chinese)
    }

    fn parse(tag: &str) -> Option<Self> {
        let tag = tag.split(';').next()?.trim();
        match tag.split('-').next()?.to_ascii_lowercase().as_str() {
            "zh" => Some(Self::Chinese),
            "en" => Some(Self::English),
            _ => None,
        }
    }

    /// The tag of RFC 5646, for the page's `lang`.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::Chinese => "zh-CN",
            Self::English => "en",
        }
    }

    /// The text in this language.
    pub(crate) fn pick<'t>(self, chinese: &'t str, english: &'t str) -> &'t str {
        match self {
            Self::Chinese => chinese,
            Self::English => english,
        }
    }
}

/// Answers with a page. It is about one person, so that no cache keeps it.
pub(crate) fn respond(status: StatusCode, page: &impl Template) -> Response {
    let html = match page.render() {
        Ok(html) => html,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            error!(error, "a page cannot be rendered");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Not `no-referrer`: with it, browsers send `Origin: null` along with the page's own forms.
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("same-origin"),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    ];
    (status, headers, html).into_response()
}

/// `GET /page.css`: the one style of all pages.
pub(crate) async fn style() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=3600"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, include_str!("../templates/page.css"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_speak_what_is_asked_for_else_what_the_browser_prefers() {
        let of = |asked: Option<&str>, accepted: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static(accepted));
            Language::of(asked, &headers)
        };
        use Language::{Chinese, English};
        assert_eq!(of(None, "en-GB,en;q=0.9,zh;q=0.8"), English);
        assert_eq!(of(None, "fr, zh-TW;q=0.9, en;q=0.8"), Chinese);
        assert_eq!(of(None, "fr"), Chinese);
        assert_eq!(of(None, ""), Chinese);
        assert_eq!(of(Some("en"), "zh-CN"), English);
        assert_eq!(of(Some("xx"), "en"), English);
        assert_eq!(Language::of(None, &HeaderMap::new()), Chinese);
    }
}
