//! Where anybody asks a sign-in to return to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use url::Url;

#[path = "../../crates/auth-service/src/oauth/return_to.rs"]
mod return_to;

use return_to::ReturnTo;

fuzz_target!(|text: &str| {
    let hosts = ["h5.example.com".to_owned(), "localhost".to_owned()];
    for loopback in [false, true] {
        let Ok(page) = ReturnTo::parse(text, &hosts, loopback) else {
            continue;
        };
        let back = page.with("wxhub_ticket", "0a");
        let url = Url::parse(&back).expect("a URL");
        let host = url.host_str().expect("a host");
        assert!(hosts.iter().any(|listed| listed == host), "{back}");
        assert!(
            url.username().is_empty() && url.password().is_none(),
            "{back}"
        );
        let is_local = loopback && host == "localhost";
        assert!(url.scheme() == "https" || is_local, "{back}");
        assert!(url.port().is_none() || is_local, "{back}");
        assert_eq!(page.host(), host);
        assert_eq!(page.origin(), url.origin().ascii_serialization());
        let tickets = url.query_pairs().filter(|(name, _)| name == "wxhub_ticket");
        assert_eq!(tickets.count(), 1, "{back}");
        // It is in order to return to what was returned to.
        if back.len() <= return_to::MAX {
            let again = ReturnTo::parse(&back, &hosts, loopback).expect("the same again");
            assert_eq!(again.with("wxhub_ticket", "0a"), back);
        }
    }
});
