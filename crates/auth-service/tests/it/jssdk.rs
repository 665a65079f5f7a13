//! The script that configures a page's JS-SDK.

use reqwest::Response;
use serde_json::Value;
use test_support::Tokens;

use crate::world::{NEWS, World};

const PAGE_HOST: &str = Tokens::PAGE_HOST;

fn path(app: &str, page: &str, more: &str) -> String {
    let page: String = url::form_urlencoded::byte_serialize(page.as_bytes()).collect();
    format!("/jssdk/config.js?app={app}&url={page}{more}")
}

/// What it hands to `wx.config`.
fn config(script: &str) -> Value {
    let (_, json) = script.split_once("})(").unwrap();
    let (json, _) = json.rsplit_once(");").unwrap();
    serde_json::from_str(json).unwrap()
}

fn header<'r>(answer: &'r Response, name: &str) -> &'r str {
    answer.headers()[name].to_str().unwrap()
}

#[tokio::test]
async fn a_script_configures_the_page_and_lives_as_long_as_its_ticket() {
    let world = World::embedded().await;
    let page = format!("https://{PAGE_HOST}/a?b=1&c=%E4%B8%AD");
    for app in ["news", NEWS] {
        let more = "&jsApiList=chooseImage&debug=true";
        let answer = world.get(&path(app, &page, more), None).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            header(&answer, "content-type"),
            "text/javascript; charset=utf-8"
        );
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        assert_eq!(
            header(&answer, "cross-origin-resource-policy"),
            "cross-origin"
        );
        assert!(!answer.headers().contains_key("set-cookie"));
        let max_age = header(&answer, "cache-control").strip_prefix("public, max-age=");
        let max_age: u64 = max_age.unwrap().parse().unwrap();
        // WeChat gave 7,200 seconds.
        assert!((7_100..7_200).contains(&max_age), "{max_age}");

        let script = answer.text().await.unwrap();
        assert!(script.contains("wx.config(config)"), "{script}");
        let config = config(&script);
        assert_eq!(config["appId"], NEWS);
        assert_eq!(config["debug"], true);
        assert_eq!(config["jsApiList"][0], "chooseImage");
        assert_eq!(config["signature"].as_str().unwrap().len(), 40);
        for given in ["timestamp", "nonceStr"] {
            assert!(!config[given].is_null(), "{given}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_by_a_script_that_nobody_keeps() {
    let world = World::embedded().await;
    let page = format!("https://{PAGE_HOST}/");
    for (path, status, told) in [
        ("/jssdk/config.js".to_owned(), 400, "app is missing"),
        (path("nothing", &page, ""), 404, "APP_NOT_FOUND"),
        (
            path("news", "https://evil.example.com/", ""),
            400,
            "evil.example.com",
        ),
        (
            path("news", "https://</script><script>alert(1)//", ""),
            400,
            "url",
        ),
        (path("news", &page, "&jsApiList=alert(1)"), 400, "jsApiList"),
    ] {
        let answer = world.get(&path, None).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(
            header(&answer, "content-type"),
            "text/javascript; charset=utf-8"
        );
        assert_eq!(header(&answer, "cache-control"), "no-store");
        let script = answer.text().await.unwrap();
        assert!(script.starts_with("console.error(\"wxhub: "), "{script}");
        assert!(script.contains(told), "{script}");
        assert!(!script.contains('<'), "{script}");
    }
    world.tokens.set_away(true);
    let answer = world.get(&path("news", &page, ""), None).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(header(&answer, "retry-after"), "1");
    assert!(answer.text().await.unwrap().contains("PEER_UNAVAILABLE"));
}
