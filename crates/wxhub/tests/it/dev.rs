//! `wxhub dev`: it starts, says what to try, follows its file, stops.

use std::{fs, path::Path};

use proto::token::v1::{GetAccessTokenRequest, token_service_client::TokenServiceClient};
use test_support::{Process, eventually};
use tokio::net::TcpStream;

use crate::running::{Dev, SOON, WXHUB, from_caller, ports};

#[tokio::test]
async fn the_commands_of_the_banner_work_as_they_stand() {
    let dev = Dev::start(&[], &[]).await;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let script = format!("set -e\ncd {root}\n{}", dev.commands());
    let path = format!(
        "{}:{}",
        Path::new(WXHUB).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let shell = Process::start("/bin/sh", ["-c", &script], [("PATH", path.as_str())]);
    let status = shell.wait(SOON * 4).await;

    let said = shell.stdout().join("\n");
    assert_eq!(
        status.code(),
        Some(0),
        "{script}\n{said}\n{}",
        shell.stderr().join("\n")
    );
    for expected in [
        "204 No Content",
        "authorization: ",
        "verified: a session of wx0000000000000001",
        "sent: ",
        "steps went as they should",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
}

#[tokio::test]
async fn an_interrupt_stops_it_cleanly() {
    let dev = Dev::start(&[], &[]).await;
    let (addrs, folder) = (dev.addrs(), dev.folder());
    assert!(folder.join("wxhub.toml").exists());

    dev.process.interrupt();

    assert_eq!(
        dev.process.wait(SOON).await.code(),
        Some(0),
        "{:#?}",
        dev.process.stderr()
    );
    assert_eq!(dev.process.stdout().last().unwrap(), "stopped");
    assert!(!folder.exists());
    for addr in addrs {
        let answer = TcpStream::connect(addr).await;
        assert!(answer.is_err(), "{addr} is still listened to");
    }
}

#[tokio::test]
async fn a_change_to_its_file_takes_effect_and_the_folder_is_kept() {
    let kept = tempfile::tempdir().unwrap();
    let dev = Dev::start(&["--data-dir", kept.path().to_str().unwrap()], &[]).await;
    let catalog = kept.path().join("wxhub.toml");
    let text = fs::read_to_string(&catalog).unwrap();
    // printf %s new-key | sha256sum
    let hash = "479a61d5370a0351ad498a8f324e0f9ad50bfafbe4c044ea49cbe3981e8cb573";
    let caller = format!(
        "\n[[callers]]\nname = \"new\"\nkey_sha256 = \"{hash}\"\napps = [\"news\"]\nscopes = [\"token.read\"]\n"
    );
    fs::write(&catalog, format!("{text}{caller}")).unwrap();

    let mut tokens = TokenServiceClient::new(dev.channel("token-service"));
    eventually("the new caller is known", SOON, async || {
        let request = GetAccessTokenRequest {
            app_id: "news".to_owned(),
        };
        tokens
            .get_access_token(from_caller("new-key", request))
            .await
    })
    .await;

    dev.process.interrupt();
    assert_eq!(dev.process.wait(SOON).await.code(), Some(0));
    assert!(kept.path().join("push.sqlite").exists());
}

#[tokio::test]
async fn a_taken_port_names_the_service_and_the_flag() {
    let taken = test_support::listener().await;
    let addr = taken.local_addr().unwrap().to_string();
    let process = Process::start(WXHUB, ports(&["--auth-http-addr", &addr]), []);

    assert_eq!(process.wait(SOON).await.code(), Some(1));
    let said = process.stderr().join("\n");
    assert!(
        said.contains(&format!("auth-service cannot listen for HTTP on {addr}")),
        "{said}"
    );
    assert!(
        said.contains("for example: --auth-http-addr 127.0.0.1:0"),
        "{said}"
    );
}

#[tokio::test]
async fn wrong_settings_end_it_with_64_and_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("wxhub.toml");
    let config = config.to_str().unwrap();
    refused_with_64(&ports(&["--config", config]), config).await;

    fs::write(config, "[[apps]]\nname = \"No Name\"\n").unwrap();
    refused_with_64(&ports(&["--config", config]), "wxhub.toml:1: ").await;

    let app =
        "[[apps]]\napp_id = \"wx01\"\nname = \"mine\"\nkind = \"mini_program\"\nsecret = \"s\"\n";
    fs::write(config, app).unwrap();
    let example = "for example: WXHUB_CALLER_KEY=dev-key";
    refused_with_64(&ports(&["--config", config]), example).await;

    refused_with_64(&["--sandbox-addr", "nowhere"], "nowhere").await;
}

async fn refused_with_64(args: &[&str], reason: &str) {
    let process = Process::start(WXHUB, args.iter().copied(), []);
    assert_eq!(process.wait(SOON).await.code(), Some(64), "{args:?}");
    let said = process.stderr().join("\n");
    assert!(said.contains(reason), "{said}");
    assert!(process.stdout().is_empty());
}
