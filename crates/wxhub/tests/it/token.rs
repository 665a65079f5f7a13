//! `wxhub token`: what an operator types, against the token-service of a `wxhub dev`.

use std::{fmt::Write as _, fs, time::Duration};

use serde_json::{Value, json};
use test_support::{Process, eventually};

use crate::running::{Dev, SOON, WXHUB};

const SHOP: &str = "wx0000000000000001";

/// An operator's shell, whose environment leads to a `wxhub dev`.
struct Shell {
    url: String,
    key: &'static str,
}

impl Shell {
    fn of(dev: &Dev) -> Self {
        Self {
            url: format!("http://{}", dev.grpc("token-service")),
            key: "dev-key",
        }
    }

    fn start(&self, args: &[&str]) -> Process {
        let env = [
            ("WXHUB_TOKEN_URL", self.url.as_str()),
            ("WXHUB_CALLER_KEY", self.key),
        ];
        let args = ["token"].iter().chain(args).copied();
        Process::start(WXHUB, args, env)
    }

    /// What it prints when all goes well.
    async fn prints(&self, args: &[&str]) -> String {
        let process = self.start(args);
        let status = process.wait(SOON).await;
        let said = process.stderr().join("\n");
        assert_eq!(status.code(), Some(0), "{args:?}: {said}");
        process.stdout().join("\n")
    }

    async fn json(&self, args: &[&str]) -> Value {
        let said = self.prints(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// What it says when it does not go well.
    async fn fails(&self, args: &[&str], code: i32) -> String {
        let process = self.start(args);
        let status = process.wait(SOON).await;
        let said = process.stderr().join("\n");
        assert_eq!(status.code(), Some(code), "{args:?}: {said}");
        assert!(process.stdout().is_empty());
        said
    }
}

#[tokio::test]
async fn get_shows_a_token_in_full_only_when_asked_to() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);

    let token = shell.json(&["get", "shop", "--show"]).await;
    assert_eq!(token["app_id"], SHOP);
    assert!(token["version"].as_u64() >= Some(1), "{token}");
    let secret = token["token"].as_str().unwrap();
    assert!(secret.len() > 40, "{secret}");
    assert!(
        shell
            .prints(&["get", SHOP, "--show"])
            .await
            .contains(secret)
    );

    let hidden = shell.prints(&["get", SHOP]).await;
    assert!(hidden.contains(&secret[..6]), "{hidden}");
    assert!(!hidden.contains(secret), "{hidden}");
    assert!(hidden.contains("\nexpires    20"), "{hidden}");
    let hidden = shell.json(&["get", SHOP]).await;
    assert_ne!(hidden["token"], token["token"]);
    assert_eq!(hidden["expire_time"], token["expire_time"]);
}

#[tokio::test]
async fn list_follows_every_page_and_tells_what_is_wrong_with_one() {
    // More than one page holds: their secrets are wrong, which harms nobody but them.
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("wxhub.toml");
    let mut catalog = String::new();
    for number in 10..115 {
        let app = format!(
            "[[apps]]\napp_id = \"wx{number:016}\"\nname = \"app-{number}\"\nkind = \"mini_program\"\nsecret = \"wrong\"\n"
        );
        catalog.push_str(&app);
    }
    let shop = "[[apps]]\napp_id = \"wx0000000000000001\"\nname = \"shop\"\nkind = \"mini_program\"\nsecret = \"dev-secret-shop\"\n";
    // printf %s dev-key | sha256sum
    let hash = "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e";
    let scopes = r#"["token.read", "auth.verify", "auth.read", "admin"]"#;
    write!(catalog, "{shop}[[callers]]\nname = \"dev\"\nkey_sha256 = \"{hash}\"\napps = [\"*\"]\nscopes = {scopes}\n").unwrap();
    fs::write(&config, catalog).unwrap();
    let dev = Dev::start(&["--config", config.to_str().unwrap()], &[]).await;
    let shell = Shell::of(&dev);

    shell.prints(&["get", "shop"]).await;
    let said = shell.fails(&["get", "app-114"], 1).await;
    assert!(said.contains("(WECHAT_CONFIG_INVALID)"), "{said}");

    let listed = shell.json(&["list"]).await;
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 106);
    let shop = &listed[0];
    assert_eq!(
        (&shop["app_id"], &shop["app_name"], &shop["type"]),
        (&json!(SHOP), &json!("shop"), &json!("access_token"))
    );
    assert_eq!(shop["last_error"], "");
    assert!(shop["expire_time"].is_string() && shop["next_refresh_time"].is_string());
    assert_eq!(listed[105]["app_name"], "app-114");
    assert!(listed[105]["expire_time"].is_null());
    assert_ne!(listed[105]["last_error"], "");

    let table = shell.prints(&["list"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 107, "{table}");
    assert!(lines[0].starts_with("APP_ID              NAME "), "{table}");
    assert!(
        lines[1].contains(" access_token ") && lines[1].contains(" in 1h"),
        "{table}"
    );
    assert!(
        lines[106].contains("40125") || lines[106].contains("40013"),
        "{table}"
    );
}

#[tokio::test]
async fn watch_prints_a_line_for_each_rotation_until_it_is_interrupted() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let watch = shell.start(&["watch", "news"]);
    let first = watch.line("version ", SOON).await;
    assert!(first.contains("  wx0000000000000002  version "), "{first}");

    // token-service lets half a minute pass between two refreshes of an app.
    let mut attempts = tokio::time::interval(Duration::from_secs(1));
    let refreshed = eventually("a refresh is allowed", SOON * 2, async || {
        attempts.tick().await;
        let process = shell.start(&["refresh", "news", "--force", "--json"]);
        let code = process.wait(SOON).await.code();
        let said = process.stderr().join("\n");
        match code {
            Some(0) => Ok(process.stdout().join("\n")),
            Some(75) => {
                assert!(said.contains("; try again in "), "{said}");
                Err(said)
            }
            _ => panic!("{code:?}: {said}"),
        }
    })
    .await;
    let refreshed: Value = serde_json::from_str(&refreshed).unwrap();
    let version = format!("version {}  ", refreshed["version"]);
    let second = watch.line(&version, SOON).await;
    assert_ne!(first, second);
    assert!(second.contains("characters)  expires in "), "{second}");

    watch.interrupt();
    assert_eq!(watch.wait(SOON).await.code(), Some(0));
    assert_eq!(watch.stdout().len(), 2, "{:#?}", watch.stdout());
}

#[tokio::test]
async fn a_refusal_tells_its_reason_and_whether_to_come_back() {
    let dev = Dev::start(&[], &[]).await;
    let mut shell = Shell::of(&dev);
    for verb in ["get", "refresh", "watch"] {
        let said = shell.fails(&[verb, "nobodys"], 1).await;
        assert!(said.contains("(APP_NOT_FOUND)"), "{said}");
    }
    shell.key = "nobodys";
    let said = shell.fails(&["list"], 1).await;
    assert!(said.contains("(CALLER_KEY_INVALID)"), "{said}");

    shell.url = format!("http://127.0.0.1:{}", test_support::free_port());
    for args in [&["list"][..], &["watch"]] {
        let said = shell.fails(args, 75).await;
        assert!(
            said.contains("(PEER_UNAVAILABLE); try again in 1 s"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn settings_that_are_missing_or_wrong_are_named() {
    let mut shell = Shell {
        url: "nowhere".to_owned(),
        key: "dev-key",
    };
    let said = shell.fails(&["list"], 64).await;
    assert!(said.contains("WXHUB_TOKEN_URL"), "{said}");
    shell.key = "";
    let said = shell.fails(&["list"], 64).await;
    assert!(said.contains("for example: WXHUB_CALLER_KEY="), "{said}");
    shell.fails(&["get"], 64).await;
}
