//! An operator's shell for the verbs that ask push-service.

use serde_json::{Value, json};
use test_support::Process;

use crate::running::{Dev, SOON, WXHUB};

pub(crate) const NEWS: &str = "wx0000000000000002";
/// What is said: a template of `news`, with its values.
pub(crate) const TEMPLATE: [&str; 8] = [
    "--template",
    "TEMPLATE_ORDER_PAID",
    "--data",
    "thing1=一杯咖啡",
    "--data",
    "amount2=¥12.50",
    "--data",
    "time3=2026-11-21 10:00",
];

/// An operator's shell, whose environment leads to a `wxhub dev`.
pub(crate) struct Shell {
    pub(crate) url: String,
}

impl Shell {
    pub(crate) fn of(dev: &Dev) -> Self {
        Self {
            url: format!("http://{}", dev.grpc("push-service")),
        }
    }

    pub(crate) fn start(&self, args: &[&str]) -> Process {
        let env = [
            ("WXHUB_PUSH_URL", self.url.as_str()),
            ("WXHUB_CALLER_KEY", "dev-key"),
        ];
        Process::start(WXHUB, args.iter().copied(), env)
    }

    /// What it prints, to standard output and error, when it ends with this code.
    pub(crate) async fn ends(&self, args: &[&str], code: i32) -> (String, String) {
        let process = self.start(args);
        let status = process.wait(SOON).await;
        let said = process.stderr().join("\n");
        assert_eq!(status.code(), Some(code), "{args:?}: {said}");
        (process.stdout().join("\n"), said)
    }

    pub(crate) async fn prints(&self, args: &[&str]) -> String {
        self.ends(args, 0).await.0
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let printed = self.prints(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    pub(crate) async fn fails(&self, args: &[&str], code: i32) -> String {
        let (printed, said) = self.ends(args, code).await;
        assert_eq!(printed, "");
        said
    }

    /// Sends a template message.
    pub(crate) async fn send(&self, open_id: &str, more: &[&str]) -> Value {
        let send = ["send", "--app", "news", "--open-id", open_id];
        self.json(&[&send, TEMPLATE.as_slice(), more].concat())
            .await
    }
}

/// A new follower of `news`.
pub(crate) async fn follower(dev: &Dev) -> String {
    let user = json!({ "app_id": NEWS });
    let user = dev.sandbox("/sandbox/users", &user).await;
    user["open_id"].as_str().unwrap().to_owned()
}
