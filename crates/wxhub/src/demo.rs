//! `wxhub demo`: the whole story, step by step, over the same wires that phones, teams and WeChat use.

mod report;
mod story;
mod wire;

use std::io::Write as _;

use anyhow::Context as _;
use secrecy::SecretString;
use service_kit::telemetry;

use self::{report::Report, story::Story, wire::Wire};
use crate::{
    dev::{self, Addrs, Dev},
    world,
};

const SANDBOX: &str = "http://127.0.0.1:8090";
const TOKEN: &str = "http://127.0.0.1:50051";
const AUTH: &str = "http://127.0.0.1:50052";
const AUTH_HTTP: &str = "http://127.0.0.1:8081";
const PUSH: &str = "http://127.0.0.1:50053";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The sandboxed WeChat [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    sandbox_url: Option<String>,
    /// token-service's gRPC [default: http://127.0.0.1:50051]
    #[arg(long, value_name = "URL")]
    token_url: Option<String>,
    /// auth-service's gRPC [default: http://127.0.0.1:50052]
    #[arg(long, value_name = "URL")]
    auth_url: Option<String>,
    /// auth-service's HTTP [default: http://127.0.0.1:8081]
    #[arg(long, value_name = "URL")]
    auth_http_url: Option<String>,
    /// push-service's gRPC [default: http://127.0.0.1:50053]
    #[arg(long, value_name = "URL")]
    push_url: Option<String>,
    /// The key of a caller with the scopes token.read, auth.verify, push.send and push.read [default: dev-key]
    #[arg(
        long,
        env = "WXHUB_CALLER_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    caller_key: Option<SecretString>,
}

/// Where the services are.
#[derive(Debug)]
struct Endpoints {
    sandbox: String,
    token: String,
    auth: String,
    auth_http: String,
    push: String,
}

impl Args {
    fn names_any(&self) -> bool {
        let urls = [
            &self.sandbox_url,
            &self.token_url,
            &self.auth_url,
            &self.auth_http_url,
            &self.push_url,
        ];
        urls.iter().any(|url| url.is_some())
    }

    fn endpoints(&self) -> Endpoints {
        let or =
            |url: &Option<String>, default: &str| url.clone().unwrap_or_else(|| default.to_owned());
        Endpoints {
            sandbox: or(&self.sandbox_url, SANDBOX),
            token: or(&self.token_url, TOKEN),
            auth: or(&self.auth_url, AUTH),
            auth_http: or(&self.auth_http_url, AUTH_HTTP),
            push: or(&self.push_url, PUSH),
        }
    }
}

impl From<&Addrs> for Endpoints {
    fn from(addrs: &Addrs) -> Self {
        Self {
            sandbox: format!("http://{}", addrs.sandbox),
            token: format!("http://{}", addrs.token.grpc),
            auth: format!("http://{}", addrs.auth.grpc),
            auth_http: format!("http://{}", addrs.auth.http),
            push: format!("http://{}", addrs.push.grpc),
        }
    }
}

/// The flags that lead the demo to services at `addrs`: none for those that are where it looks anyway.
pub(crate) fn flags(addrs: &Addrs) -> String {
    let at = Endpoints::from(addrs);
    [
        ("sandbox-url", at.sandbox, SANDBOX),
        ("token-url", at.token, TOKEN),
        ("auth-url", at.auth, AUTH),
        ("auth-http-url", at.auth_http, AUTH_HTTP),
        ("push-url", at.push, PUSH),
    ]
    .into_iter()
    .filter(|(_, at, default)| at != default)
    .map(|(flag, at, _)| format!(" --{flag} {at}"))
    .collect()
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    // The story is what this prints; the services' logs are there for who asks.
    let logs = std::env::var_os("RUST_LOG").is_some();
    let telemetry = if logs {
        Some(telemetry::init("wxhub")?)
    } else {
        None
    };
    telemetry::install_tls_provider();
    let told = run_anywhere(args).await;
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
    told
}

async fn run_anywhere(args: &Args) -> anyhow::Result<()> {
    let running = args.endpoints();
    let public_key = SecretString::from(world::CALLER_KEY);
    if args.names_any() || wire::answers(&running.sandbox).await? {
        say(&format!(
            "wxhub demo, against the services that run (WeChat is the sandbox at {})",
            running.sandbox
        ))?;
        let key = args.caller_key.as_ref().unwrap_or(&public_key);
        return tell(&running, key).await;
    }
    say(&format!(
        "wxhub demo, against services of its own, since nothing runs at {SANDBOX}"
    ))?;
    let mut dev = Dev::start(&dev::Args::private()).await?;
    let addrs = dev.addrs;
    let story = async {
        dev::ready(&addrs).await?;
        tell(&Endpoints::from(&addrs), &public_key).await
    };
    let told = tokio::select! {
        told = story => told,
        error = dev.ended() => Err(error),
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and(Err(anyhow::anyhow!("interrupted"))),
    };
    told.and(dev.stop().await)
}

async fn tell(endpoints: &Endpoints, key: &SecretString) -> anyhow::Result<()> {
    let mut report = Report::default();
    let wire = Wire::new(endpoints, key)?;
    let told = Story::new(&wire, &mut report).tell().await;
    told.with_context(|| report.step())?;
    say(&format!(
        "\nAll {} steps went as they should.",
        report.steps()
    ))
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("the story cannot be written")
}
