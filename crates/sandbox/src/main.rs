//! `wechat-sandbox`: the local WeChat as a process.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use sandbox::{Config, Sandbox};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The exit code for settings that make no sense (`EX_USAGE`).
const BAD_SETTINGS: u8 = 64;

/// A local WeChat to develop against.
#[derive(Debug, Parser)]
#[command(name = "wechat-sandbox", version)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until interrupted (what happens without a verb).
    Serve,
    /// Ask a running sandbox whether it is well; for images without a shell.
    Healthcheck,
}

#[derive(Debug, Args)]
struct Settings {
    /// Where to listen.
    #[arg(long, env = "WXHUB_HTTP_ADDR", default_value = "127.0.0.1:8090", value_parser = address, global = true)]
    http_addr: SocketAddr,
    /// TOML with the accounts; without it there are the two of the development world.
    #[arg(long, env = "WXHUB_SANDBOX_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Where the development world's accounts are called back.
    #[arg(
        long,
        env = "WXHUB_SANDBOX_CALLBACK_URL",
        default_value = "http://127.0.0.1:8082",
        global = true
    )]
    callback_url: String,
}

#[tokio::main]
#[expect(
    clippy::print_stderr,
    reason = "settings are judged before there is a log"
)]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(BAD_SETTINGS)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let outcome = match cli.verb {
        Some(Verb::Healthcheck) => healthcheck(cli.settings.http_addr).await,
        Some(Verb::Serve) | None => {
            let config = match load(&cli.settings) {
                Ok(config) => config,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    return ExitCode::from(BAD_SETTINGS);
                }
            };
            serve(config, cli.settings.http_addr).await
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "WXHUB_HTTP_ADDR must look like 127.0.0.1:8090".to_owned())
}

fn load(settings: &Settings) -> anyhow::Result<Config> {
    let Some(path) = &settings.config else {
        let config = Config::dev(&settings.callback_url);
        config.validate().context("WXHUB_SANDBOX_CALLBACK_URL")?;
        return Ok(config);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("WXHUB_SANDBOX_CONFIG: {} cannot be read", path.display()))?;
    Config::from_toml(&text).with_context(|| format!("WXHUB_SANDBOX_CONFIG: {}", path.display()))
}

async fn serve(config: Config, address: SocketAddr) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    if std::io::stdout().is_terminal() {
        log.init();
    } else {
        log.json().init();
    }
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let sandbox = Sandbox::build(config, listener).await?;
    for account in sandbox.state().accounts() {
        tracing::info!(app.id = account.app_id, app.kind = ?account.kind, user = account.default_open_id, "account");
    }
    tracing::info!("WeChat for development at http://{}/", sandbox.address());
    let shutdown = CancellationToken::new();
    let interrupted = shutdown.clone();
    let signals = tokio_util::task::TaskTracker::new();
    signals.spawn(async move {
        interrupt().await;
        interrupted.cancel();
    });
    sandbox.run(shutdown).await.context("the server failed")
}

/// Resolves at SIGINT, and on Unix at SIGTERM.
async fn interrupt() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

async fn healthcheck(mut address: SocketAddr) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(3))
        .no_proxy()
        .build()?;
    client
        .get(format!("http://{address}/healthz"))
        .send()
        .await?
        .error_for_status()?;
    Ok(())
}
