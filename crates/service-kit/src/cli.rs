//! The verbs that every service binary has: `serve`, `migrate`, `healthcheck`, `config check`.

use std::{fmt::Debug, net::Ipv4Addr, process::ExitCode, sync::Arc, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, CatalogHandle, Needs},
    run,
    settings::{Ports, Problems, Settings},
    telemetry,
};

/// The exit code for wrong settings: EX_CONFIG's neighbour EX_USAGE of sysexits.h.
const USAGE: u8 = 64;
/// A probe that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A service that a binary runs.
pub trait Service {
    /// The binary's name.
    const NAME: &'static str;
    /// What it is, in one line of `--help`.
    const ABOUT: &'static str;
    /// Its ports where none are set.
    const PORTS: Ports;
    /// The secrets that it resolves.
    const NEEDS: Needs;
    /// Its settings, checked.
    type Config: Debug + Send;

    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is missing or wrong.
    fn configure(settings: &Settings) -> Result<Self::Config, Problems>;

    /// Brings the database up to date, with nothing but its URL; without one there is nothing to do.
    fn migrate(settings: Settings) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Serves until `shutdown` is cancelled.
    fn serve(
        config: Self::Config,
        shutdown: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Verb {
    /// Serve until SIGTERM (what it does without a verb)
    Serve,
    /// Bring the database's tables up to date
    Migrate,
    /// Ask the service on this machine whether it is ready: for images without a shell
    Healthcheck,
    /// Look at the settings
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigVerb {
    /// Check settings and wxhub.toml, and change nothing
    Check,
}

/// Runs a service's binary.
pub fn main<S: Service>() -> ExitCode {
    let command = Cli::command().name(S::NAME).about(S::ABOUT);
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let verb = cli.verb.unwrap_or(Verb::Serve);
    let ran = runtime().and_then(|runtime| {
        let ran = run::<S>(&runtime, verb, &cli.settings);
        // A blocking task that hangs, such as a name look-up, must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        ran
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(S::NAME, &error),
    }
}

fn run<S: Service>(runtime: &Runtime, verb: Verb, settings: &Settings) -> anyhow::Result<()> {
    match verb {
        Verb::Healthcheck => runtime.block_on(healthcheck::<S>(settings)),
        Verb::Migrate => runtime.block_on(S::migrate(settings.clone())),
        Verb::Serve => {
            let config = S::configure(settings)?;
            load_catalog::<S>(settings)?;
            runtime.block_on(serve::<S>(config))
        }
        Verb::Config {
            verb: ConfigVerb::Check,
        } => {
            S::configure(settings)?;
            check::<S>(settings)
        }
    }
}

/// Prints what clap has to say; asking for help or the version is no failure.
#[expect(clippy::print_stderr, reason = "for the person who typed the command")]
pub fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        eprint!("{}", error.render());
        ExitCode::from(USAGE)
    } else {
        // A closed pipe is no failure either.
        let _ = error.print();
        ExitCode::SUCCESS
    }
}

/// Prints why the command failed: 64 for wrong settings, 1 for everything else.
#[expect(clippy::print_stderr, reason = "for the person who typed the command")]
pub fn fail(name: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{name}: {error:#}");
    let settings = error.is::<Problems>() || error.is::<crate::catalog::Error>();
    if settings {
        ExitCode::from(USAGE)
    } else {
        ExitCode::FAILURE
    }
}

/// A runtime of at least two threads: with one, flushing the traces at the end would wait for itself.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> anyhow::Result<Runtime> {
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    Ok(runtime)
}

async fn serve<S: Service>(config: S::Config) -> anyhow::Result<()> {
    let telemetry = telemetry::init(S::NAME)?;
    let shutdown = run::shutdown_on_signal()?;
    let served = S::serve(config, shutdown).await;
    telemetry.shutdown().await;
    served
}

/// Reads `wxhub.toml` as the service will: what is wrong with it is told before anything starts.
fn load_catalog<S: Service>(settings: &Settings) -> anyhow::Result<Arc<Catalog>> {
    let mut problems = Problems::default();
    let path = settings.catalog_path(&mut problems);
    let (catalog, _) = CatalogHandle::load(problems.or(path)?, S::NEEDS)?;
    Ok(catalog.current())
}

#[expect(clippy::print_stdout, reason = "for the person who typed the command")]
fn check<S: Service>(settings: &Settings) -> anyhow::Result<()> {
    let apps = load_catalog::<S>(settings)?.apps().len();
    println!(
        "{}: settings and wxhub.toml are right ({apps} apps)",
        S::NAME
    );
    Ok(())
}

async fn healthcheck<S: Service>(settings: &Settings) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    let listen = settings.listen(&mut problems, S::PORTS);
    let mut addr = problems.or(listen)?.ops;
    if addr.ip().is_unspecified() {
        addr.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let probe = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(4_096).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PROBE_TIMEOUT, probe)
        .await
        .map_err(|_| anyhow::anyhow!("{addr} does not answer"))?
        .map_err(|error| anyhow::anyhow!("{addr}: {error}"))?;
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(
        status == "200",
        "{addr} says {}",
        answer.lines().last().unwrap_or_default()
    );
    Ok(())
}
