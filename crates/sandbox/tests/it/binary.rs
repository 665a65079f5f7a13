//! `wechat-sandbox` as a process.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
};

fn sandbox() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wechat-sandbox"));
    for setting in [
        "WXHUB_HTTP_ADDR",
        "WXHUB_SANDBOX_CONFIG",
        "WXHUB_SANDBOX_CALLBACK_URL",
        "RUST_LOG",
    ] {
        command.env_remove(setting);
    }
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_serves_until_it_is_told_to_stop() {
    let mut server = sandbox()
        .args(["--http-addr", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let line = lines.find(|line| line.contains("http://")).unwrap();
    let address = line
        .split_once("http://")
        .unwrap()
        .1
        .split_once('/')
        .unwrap()
        .0
        .to_owned();

    let health = sandbox()
        .args(["healthcheck", "--http-addr", &address])
        .output()
        .unwrap();
    assert!(health.status.success(), "{}", stderr(&health));
    let stop = Command::new("kill")
        .arg(server.id().to_string())
        .status()
        .unwrap();
    assert!(stop.success());
    assert!(server.wait().unwrap().success());
    let health = sandbox()
        .args(["healthcheck", "--http-addr", &address])
        .output()
        .unwrap();
    assert_eq!(health.status.code(), Some(1));
}

#[test]
fn a_bad_configuration_stops_it_with_every_problem() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(
        b"[[accounts]]\napp_id = 'wx1'\nsecret = ''\nkind = 'mini_program'\noriginal_id = ''\n",
    )
    .unwrap();
    let output = sandbox().arg("--config").arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    for part in [
        "WXHUB_SANDBOX_CONFIG",
        "wx1: secret",
        "wx1: original_id must look like gh_000000000001",
    ] {
        assert!(
            stderr(&output).contains(part),
            "{part}: {}",
            stderr(&output)
        );
    }

    let output = sandbox()
        .args(["--config", "missing.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("missing.toml cannot be read"));
}

#[test]
fn a_malformed_setting_is_named_with_an_example() {
    for (variable, value, example) in [
        (
            "WXHUB_HTTP_ADDR",
            "nonsense",
            "must look like 127.0.0.1:8090",
        ),
        (
            "WXHUB_SANDBOX_CALLBACK_URL",
            "nonsense",
            "must look like http://127.0.0.1:8082",
        ),
    ] {
        let output = sandbox().env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(
            stderr(&output).contains(variable) && stderr(&output).contains(example),
            "{}",
            stderr(&output)
        );
    }
}
