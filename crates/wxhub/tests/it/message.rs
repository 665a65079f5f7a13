//! `wxhub send` and `wxhub message`: what an operator types, against the push-service of a `wxhub dev`.

use serde_json::{Value, json};
use test_support::eventually;

use crate::{
    running::{Dev, SOON},
    shell::{NEWS, Shell, TEMPLATE, follower},
};

/// WeChat refuses so many template messages for good.
async fn refuse(dev: &Dev, times: u32) {
    let fault =
        json!({ "endpoint": "/cgi-bin/message/template/send", "errcode": 43004, "times": times });
    dev.sandbox("/sandbox/faults", &fault).await;
}

fn id(message: &Value) -> &str {
    message["message_id"].as_str().unwrap()
}

#[tokio::test]
async fn a_message_is_sent_followed_and_shown() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let open_id = follower(&dev).await;
    let sent = shell
        .send(&open_id, &["--wait", "--request-id", "order-1"])
        .await;
    assert!(
        matches!(sent["state"].as_str(), Some("SENT" | "DELIVERED")),
        "{sent}"
    );
    assert_eq!(
        (&sent["app_id"], &sent["open_id"]),
        (&json!(NEWS), &json!(open_id))
    );
    let again = shell.send(&open_id, &["--request-id", "order-1"]).await;
    assert_eq!(id(&again), id(&sent));

    let shown = shell.prints(&["message", "show", id(&sent)]).await;
    assert!(shown.contains("\nrequest_id     order-1\n"), "{shown}");
    assert!(shown.contains("\nattempts       1\n"), "{shown}");

    // WeChat gives it up: the command says so.
    refuse(&dev, 1).await;
    let send = ["send", "--app", "news", "--open-id", &open_id, "--wait"];
    let (shown, said) = shell.ends(&[&send, TEMPLATE.as_slice()].concat(), 1).await;
    assert!(shown.contains("\nstate         FAILED\n"), "{shown}");
    assert!(
        shown.contains("\nnot accepted  20") && shown.contains("  43004  "),
        "{shown}"
    );
    assert!(said.contains("wxhub: the message is FAILED"), "{said}");

    let planned = shell
        .send(&open_id, &["--schedule", "2h", "--expire", "3h"])
        .await;
    assert_eq!(planned["state"], "SCHEDULED");
    assert!(planned["schedule_time"].is_string() && planned["expire_time"].is_string());
    let text = [
        "send",
        "--app",
        "news",
        "--open-id",
        &open_id,
        "--text",
        "你好",
        "--schedule",
        "1d",
    ];
    assert_eq!(shell.json(&text).await["state"], "SCHEDULED");
}

#[tokio::test]
async fn messages_are_listed_and_retried() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let (one, other) = (follower(&dev).await, follower(&dev).await);
    refuse(&dev, 3).await;
    let mut failed = Vec::new();
    for open_id in [&one, &one, &other] {
        failed.push(shell.send(open_id, &[]).await);
    }
    let is_failed = [
        "message", "list", "--app", "news", "--state", "failed", "--state", "EXPIRED",
    ];
    eventually("all have failed", SOON, async || {
        let listed = shell.json(&is_failed).await;
        let listed = listed.as_array().unwrap().len();
        if listed == 3 { Ok(()) } else { Err(listed) }
    })
    .await;
    let sent = shell.send(&one, &["--wait"]).await;

    let listed = shell.json(&["message", "list", "--app", NEWS]).await;
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(id).collect();
    assert_eq!(
        ids,
        [id(&sent), id(&failed[2]), id(&failed[1]), id(&failed[0])]
    );
    let of_other = [
        "message",
        "list",
        "--app",
        "news",
        "--open-id",
        &other,
        "--errcode",
        "43004",
        "--since",
        "1h",
    ];
    let listed = shell.json(&of_other).await;
    assert_eq!(id(&listed[0]), id(&failed[2]));
    let earlier = ["message", "list", "--app", "news", "--until", "1h"];
    assert_eq!(shell.json(&earlier).await, json!([]));
    let (table, more) = shell
        .ends(&["message", "list", "--app", "news", "--limit", "2"], 0)
        .await;
    assert!(
        table.starts_with("MESSAGE_ID ") && table.contains(" FAILED "),
        "{table}"
    );
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(more.contains("--limit"), "{more}");

    // By id: the ones that can be are, and the others are told.
    let retry = ["message", "retry", id(&failed[0]), id(&sent)];
    let dry_run = [&retry[..], &["--dry-run"]].concat();
    let (count, said) = shell.ends(&dry_run, 1).await;
    assert_eq!(count, "1 message would be queued again");
    assert!(
        said.contains(&format!("{} is ", id(&sent))) && said.contains("not all of them"),
        "{said}"
    );
    let (table, said) = shell.ends(&retry, 1).await;
    assert!(
        table.contains(id(&failed[0])) && !table.contains(id(&sent)),
        "{table}"
    );
    assert!(
        said.contains("MESSAGE_NOT_RETRYABLE") && said.contains(id(&sent)),
        "{said}"
    );

    let by_filter = ["message", "retry", "--app", "news", "--errcode", "43004"];
    let dry_run = shell
        .prints(&[&by_filter[..], &["--dry-run"]].concat())
        .await;
    assert_eq!(dry_run, "2 messages would be queued again");
    let said = shell.fails(&by_filter, 1).await;
    assert!(
        said.contains("Queue 2 messages again?") && said.contains("--yes"),
        "{said}"
    );
    let retried = shell.json(&[&by_filter[..], &["--yes"]].concat()).await;
    assert_eq!(retried, json!({ "count": 2, "dry_run": false }));
    eventually("all are sent", SOON, async || {
        let listed = shell.json(&is_failed).await;
        if listed == json!([]) {
            Ok(())
        } else {
            Err(listed)
        }
    })
    .await;
    let nothing = shell.prints(&by_filter).await;
    assert_eq!(nothing, "0 messages queued again");
}

#[tokio::test]
async fn refusals_and_wrong_flags_are_told() {
    let dev = Dev::start(&[], &[]).await;
    let mut shell = Shell::of(&dev);
    let nobody = "0192f0c1-2345-7000-8000-000000000001";
    let send = |flags: &[&'static str]| [&["send", "--app", "news"], flags, &TEMPLATE].concat();
    for (args, reason) in [
        (vec!["message", "show", nobody], "MESSAGE_NOT_FOUND"),
        (vec!["message", "retry", nobody], "MESSAGE_NOT_FOUND"),
        (vec!["message", "list", "--app", "nobodys"], "APP_NOT_FOUND"),
        (
            vec!["message", "list", "--app", "news", "--broadcast", "x"],
            "INVALID_ARGUMENT",
        ),
        (send(&["--account", "nobody"]), "ACCOUNT_NOT_BOUND"),
        (send(&["--open-id", "a b"]), "INVALID_ARGUMENT"),
        (
            send(&["--open-id", "oA", "--expire", "2026-01-01T00:00:00Z"]),
            "INVALID_ARGUMENT",
        ),
    ] {
        let said = shell.fails(&args, 1).await;
        assert!(said.contains(reason), "{said}");
        assert!(said.contains("push-service: "), "{said}");
    }
    let said = shell.fails(&send(&["--account", "nobody"]), 1).await;
    assert!(said.contains("hint: `wxhub account show`"), "{said}");
    for args in [
        vec!["send", "--app", "news", "--open-id", "oA"],
        send(&[]),
        send(&["--open-id", "oA", "--account", "wang"]),
        send(&["--open-id", "oA", "--text", "hello"]),
        send(&["--open-id", "oA", "--schedule", "soon"]),
        vec!["message", "list"],
        vec!["message", "list", "--app", "news", "--state", "lost"],
        vec!["message", "list", "--app", "news", "--limit", "0"],
        vec!["message", "retry"],
        vec!["message", "retry", nobody, "--app", "news"],
        vec!["message", "retry", nobody, "--errcode", "1"],
    ] {
        shell.fails(&args, 64).await;
    }
    shell.url = format!("http://127.0.0.1:{}", test_support::free_port());
    let said = shell.fails(&["message", "show", nobody], 75).await;
    assert!(
        said.contains("(PEER_UNAVAILABLE)") && said.contains("hint: "),
        "{said}"
    );
    shell.url = "nowhere".to_owned();
    let said = shell.fails(&["message", "show", nobody], 64).await;
    assert!(said.contains("WXHUB_PUSH_URL"), "{said}");
}
