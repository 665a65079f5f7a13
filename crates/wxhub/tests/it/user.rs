//! `wxhub user` and `wxhub session`: what an operator types, against the auth-service of a `wxhub dev`.

use proto::auth::v1::{LoginRequest, auth_service_client::AuthServiceClient};
use serde_json::{Value, json};
use test_support::Process;

use crate::running::{Dev, SOON, WXHUB, from_caller};

const SHOP: &str = "wx0000000000000001";

/// An operator's shell, whose environment leads to a `wxhub dev`.
struct Shell {
    url: String,
    key: &'static str,
}

impl Shell {
    fn of(dev: &Dev) -> Self {
        Self {
            url: format!("http://{}", dev.grpc("auth-service")),
            key: "dev-key",
        }
    }

    /// What it prints, to standard output and error, when it ends with this code.
    async fn ends(&self, args: &[&str], code: i32) -> (String, String) {
        let env = [
            ("WXHUB_AUTH_URL", self.url.as_str()),
            ("WXHUB_CALLER_KEY", self.key),
        ];
        let process = Process::start(WXHUB, args.iter().copied(), env);
        let status = process.wait(SOON).await;
        let said = process.stderr().join("\n");
        assert_eq!(status.code(), Some(code), "{args:?}: {said}");
        (process.stdout().join("\n"), said)
    }

    async fn prints(&self, args: &[&str]) -> String {
        self.ends(args, 0).await.0
    }

    async fn json(&self, args: &[&str]) -> Value {
        let printed = self.prints(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    async fn fails(&self, args: &[&str], code: i32) -> String {
        let (printed, said) = self.ends(args, code).await;
        assert_eq!(printed, "");
        said
    }
}

/// A new user of the mini program signs in, so many times. Answers the openid.
async fn sign_in(dev: &Dev, times: usize) -> String {
    let user = dev
        .sandbox("/sandbox/users", &json!({ "app_id": SHOP }))
        .await;
    let mut auth = AuthServiceClient::new(dev.channel("auth-service"));
    for _ in 0..times {
        let login = json!({ "app_id": SHOP, "open_id": user["open_id"] });
        let login = dev.sandbox("/sandbox/login", &login).await;
        let login = LoginRequest {
            js_code: login["js_code"].as_str().unwrap().to_owned(),
            ..LoginRequest::default()
        };
        auth.login(from_caller("dev-key", login)).await.unwrap();
    }
    user["open_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn users_and_their_sessions_are_found_and_ended() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let (one, other) = (sign_in(&dev, 3).await, sign_in(&dev, 1).await);

    let listed = shell.json(&["user", "list", "--app", "shop"]).await;
    let listed = listed.as_array().unwrap();
    let open_ids: Vec<_> = listed.iter().map(|user| &user["open_id"]).collect();
    assert_eq!(open_ids, [&json!(one), &json!(other)]);
    let user_id = listed[0]["user_id"].as_str().unwrap();
    let union_id = listed[0]["union_id"].as_str().unwrap();
    let by_person = shell.json(&["user", "list", "--union-id", union_id]).await;
    assert_eq!(by_person, json!([listed[0]]));
    let (table, more) = shell
        .ends(&["user", "list", "--app", "shop", "--limit", "1"], 0)
        .await;
    assert!(
        table.starts_with("USER_ID ") && table.contains(user_id),
        "{table}"
    );
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(more.contains("--limit"), "{more}");

    let shown = shell.json(&["user", "show", user_id]).await;
    assert_eq!(shown, listed[0]);
    let by_open_id = ["user", "show", "--app", "shop", "--open-id", &one];
    assert_eq!(shell.json(&by_open_id).await, shown);
    let details = shell.prints(&["user", "show", user_id]).await;
    assert!(
        details.contains(&format!("\nopen_id      {one}\n")),
        "{details}"
    );

    let sessions = shell.json(&["session", "list", user_id]).await;
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 3);
    assert_eq!(sessions[0]["client"], "dev");
    let table = shell.prints(&["session", "list", user_id]).await;
    assert!(table.contains("  in 6d23h  dev"), "{table}");

    let session_id = sessions[0]["session_id"].as_str().unwrap();
    let told = shell.json(&["session", "revoke", session_id]).await;
    assert_eq!(told, json!({ "revoked": { "session_id": session_id } }));
    let left = async |user_id| {
        let sessions = shell.json(&["session", "list", user_id]).await;
        sessions.as_array().unwrap().len()
    };
    assert_eq!(left(user_id).await, 2);
    let said = shell
        .prints(&["session", "revoke", "--user", user_id])
        .await;
    assert_eq!(said, "revoked");
    let other = listed[1]["user_id"].as_str().unwrap();
    assert_eq!((left(user_id).await, left(other).await), (0, 1));
    shell.prints(&["session", "revoke", "--app", "shop"]).await;
    assert_eq!(left(other).await, 0);
}

#[tokio::test]
async fn refusals_and_wrong_flags_are_told() {
    let dev = Dev::start(&[], &[]).await;
    let mut shell = Shell::of(&dev);
    let nobody = "0192f0c1-2345-7000-8000-000000000001";
    for (args, reason) in [
        (&["user", "show", nobody][..], "USER_NOT_FOUND"),
        (&["user", "show", "x"], "INVALID_ARGUMENT"),
        (&["user", "list", "--app", "nobodys"], "APP_NOT_FOUND"),
        (&["session", "list", nobody], "USER_NOT_FOUND"),
        (&["session", "revoke", "--user", nobody], "USER_NOT_FOUND"),
        (&["session", "revoke", "x"], "INVALID_ARGUMENT"),
    ] {
        let said = shell.fails(args, 1).await;
        assert!(said.contains(reason), "{said}");
        assert!(said.contains("auth-service: "), "{said}");
    }
    for args in [
        &["user", "list"][..],
        &["user", "list", "--app", "shop", "--union-id", "x"],
        &["user", "list", "--app", "shop", "--limit", "0"],
        &["user", "show"],
        &["user", "show", nobody, "--app", "shop", "--open-id", "o"],
        &["user", "show", "--app", "shop"],
        &["session", "revoke"],
        &["session", "revoke", "x", "--app", "shop"],
    ] {
        shell.fails(args, 64).await;
    }
    shell.url = format!("http://127.0.0.1:{}", test_support::free_port());
    let said = shell.fails(&["user", "show", nobody], 75).await;
    assert!(said.contains("(PEER_UNAVAILABLE)"), "{said}");
    shell.url = "nowhere".to_owned();
    let said = shell.fails(&["session", "list", nobody], 64).await;
    assert!(said.contains("WXHUB_AUTH_URL"), "{said}");
}
