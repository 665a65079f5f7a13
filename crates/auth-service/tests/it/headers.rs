//! What every answer tells a browser not to do with it.

use crate::world::{Setup, World};

const PATHS: [&str; 5] = [
    "/me",
    "/MP_verify_abc.txt",
    "/page.css",
    "/jssdk/config.js",
    "/no-such-page.txt",
];

#[tokio::test]
async fn every_answer_is_guarded() {
    let world = World::embedded().await;
    for path in PATHS {
        let answer = world.get(path, None).await;
        let headers = answer.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert!(headers.contains_key("referrer-policy"), "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        for directive in [
            "default-src 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(directive), "{path}: {policy}");
        }
        let kind = headers["content-type"].to_str().unwrap();
        assert!(!kind.contains("html"), "{path}: {kind}");
        assert!(!headers.contains_key("strict-transport-security"), "{path}");
    }
}

#[tokio::test]
async fn where_there_is_https_there_is_nothing_else() {
    let world = World::start(Setup {
        public_url: Some("https://auth.example.com".parse().unwrap()),
        ..Setup::default()
    })
    .await;
    for path in PATHS {
        let answer = world.get(path, None).await;
        let policy = answer.headers()["strict-transport-security"]
            .to_str()
            .unwrap();
        assert_eq!(policy, "max-age=63072000; includeSubDomains", "{path}");
    }
}
