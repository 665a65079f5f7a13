//! The `Cookie` header of any browser.
#![no_main]

use axum::http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "setting cookies is not fuzzed")]
#[path = "../../crates/auth-service/src/cookie.rs"]
mod cookies;

use cookies::Cookies;

fuzz_target!(|lines: Vec<Vec<u8>>| {
    let mut headers = HeaderMap::new();
    for line in &lines {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append(header::COOKIE, line);
        }
    }
    let public = ["http://127.0.0.1", "https://auth.example.com"];
    for url in public.map(|url| url.parse().expect("a URL")) {
        let cookies = Cookies::at(Some(&url));
        if let Some(value) = cookies.get(&headers, "a") {
            assert!(!value.contains(';') && value.trim() == value);
        }
        for (name, value) in cookies.starting(&headers, "wxhub_session_") {
            assert!(!name.contains([';', '=']) && !value.contains(';'));
        }
    }
});
