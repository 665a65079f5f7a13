//! What pages send: parameters of a query or of a form, and what is answered by leading on to another page.

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use url::form_urlencoded;

use super::NO_STORE;
use crate::page::Language;

/// Parameters, `application/x-www-form-urlencoded`. What is no pair is passed over.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Of a URL's query.
    pub(super) fn of_query(query: Option<&str>) -> Self {
        Self::parse(query.unwrap_or_default().as_bytes())
    }

    /// Of a form's body.
    pub(super) fn of_form(body: &Bytes) -> Self {
        Self::parse(body)
    }

    fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// The first of this name, unless it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let first = self.0.iter().find(|(key, _)| key == name);
        first
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// What `lang` asks for, else what the browser prefers.
    pub(super) fn language(&self, headers: &HeaderMap) -> Language {
        Language::of(self.get("lang"), headers)
    }

    /// A path of this service with those of its parameters that say which page it is, and in which language.
    pub(super) fn page(&self, path: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for name in ["app", "lang"] {
            if let Some(value) = self.get(name) {
                query.append_pair(name, value);
            }
        }
        let query = query.finish();
        if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{query}")
        }
    }
}

/// Sends the browser to another page, with a GET whatever it came with.
pub(super) fn see_other(
    location: &str,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> Response {
    redirect(StatusCode::SEE_OTHER, location, cookies)
}

/// Sends the browser elsewhere.
pub(super) fn redirect(
    status: StatusCode,
    location: &str,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else {
        // Whatever it was made of is encoded in it.
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    // Where it came from holds tickets.
    let no_referrer = HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, no_referrer);
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_app_and_language_alone() {
        let page = |query| Params::of_query(Some(query)).page("/bind");
        assert_eq!(page(""), "/bind");
        assert_eq!(page("lang=en&ticket=x&app=news"), "/bind?app=news&lang=en");
        assert_eq!(
            page("app=%0d%0aLocation:x&app=y"),
            "/bind?app=%0D%0ALocation%3Ax"
        );
        assert_eq!(page("app=//evil.example"), "/bind?app=%2F%2Fevil.example");
    }
}
