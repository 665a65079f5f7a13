//! `wxhub account`: what an operator types, against the auth-service of a `wxhub dev`.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::running::{Dev, WXHUB};

/// An operator's shell, whose environment leads to a `wxhub dev`.
struct Shell {
    url: String,
}

impl Shell {
    /// Runs a verb with this on its stdin.
    fn run(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(WXHUB)
            .arg("account")
            .args(args)
            .env("WXHUB_AUTH_URL", &self.url)
            .env("WXHUB_CALLER_KEY", "dev-key")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // Whoever needs no password reads none.
        let _ = input.write_all(stdin.as_bytes());
        drop(input);
        child.wait_with_output().unwrap()
    }

    fn prints(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, args: &[&str], stdin: &str, code: i32) -> String {
        let output = self.run(args, stdin);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(output.stdout.is_empty());
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_shown_changed_and_removed() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell {
        url: format!("http://{}", dev.grpc("auth-service")),
    };
    let said = shell.prints(&["add", "王小明"], "correct horse\nnot read\n");
    assert!(said.starts_with("account   王小明\nmade      20"), "{said}");
    assert!(!said.contains("correct"), "{said}");
    let said = shell.fails(&["add", "王小明"], "correct horse\r\n", 1);
    assert!(
        said.contains("auth-service: ") && said.contains("(ACCOUNT_EXISTS)"),
        "{said}"
    );
    let said = shell.fails(&["add", "li"], "short\n", 1);
    assert!(
        said.contains("password must have 8 to 128 characters"),
        "{said}"
    );

    let shown: Value =
        serde_json::from_str(&shell.prints(&["show", "王小明", "--json"], "")).unwrap();
    assert_eq!(shown["account"], "王小明");
    assert_eq!(shown["bindings"], Value::Array(Vec::new()));
    shell.prints(&["passwd", "王小明"], "battery staple\n");
    assert_eq!(shell.prints(&["unbind", "王小明", "--app", "news"], ""), "");
    let said = shell.fails(&["unbind", "王小明", "--app", "nothing"], "", 1);
    assert!(said.contains("(APP_NOT_FOUND)"), "{said}");
    assert_eq!(shell.prints(&["delete", "王小明"], ""), "");
    let said = shell.fails(&["show", "王小明"], "", 1);
    assert!(said.contains("(ACCOUNT_NOT_FOUND)"), "{said}");
    // A password is no argument.
    shell.fails(&["add", "li", "correct horse"], "", 64);
}
