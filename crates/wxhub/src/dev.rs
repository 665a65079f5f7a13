//! `wxhub dev`: the sandbox and the three services in one process, with SQLite and memory behind them.
//!
//! They meet over their ports alone, as they do in production: nothing here reaches into a service.

mod banner;
mod folder;
mod ports;

use std::{
    future::pending,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    CatalogHandle, Problems, Scope, Settings, catalog::Needs, cli::Service, run, telemetry,
};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use self::folder::DataFolder;
pub(crate) use self::ports::{Addrs, Ports};
use crate::world;

/// All of it is up within this, or something is wrong.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at whether it is.
const READY_POLL: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// wxhub.toml: apps and callers [default: the development world, written into the data folder]
    #[arg(long, env = "WXHUB_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,
    /// Keep wxhub.toml and the databases in this folder [default: a temporary one, removed at the end]
    #[arg(long, value_name = "PATH")]
    data_dir: Option<PathBuf>,
    /// The key that the services show to each other; with the development world `dev-key`
    #[arg(long, env = "WXHUB_CALLER_KEY", value_name = "KEY", default_value = world::CALLER_KEY, hide_default_value = true, hide_env_values = true)]
    caller_key: SecretString,
    #[command(flatten)]
    ports: Ports,
}

impl Args {
    /// The development world on free ports, in a temporary folder.
    pub(crate) fn private() -> Self {
        Self {
            config: None,
            data_dir: None,
            caller_key: world::CALLER_KEY.into(),
            ports: Ports::FREE,
        }
    }
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let telemetry = telemetry::init("wxhub")?;
    let shutdown = run::shutdown_on_signal()?;
    let served = serve(args, shutdown).await;
    telemetry.shutdown().await;
    served
}

async fn serve(args: &Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut dev = Dev::start(args).await?;
    let addrs = dev.addrs;
    let banner = dev.banner(args);
    let announced = async {
        ready(&addrs).await?;
        writeln!(std::io::stdout(), "{banner}").context("the banner cannot be written")?;
        pending().await
    };
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        failed = announced => failed,
        error = dev.ended() => Err(error),
    };
    let stopped = dev.stop().await;
    outcome.and(stopped)?;
    // Nobody may be reading any more.
    let _ = writeln!(std::io::stdout(), "stopped");
    Ok(())
}

/// Everything, running.
pub(crate) struct Dev {
    /// Where.
    pub(crate) addrs: Addrs,
    folder: DataFolder,
    tasks: JoinSet<anyhow::Result<()>>,
    /// What has not ended yet, callers before the called.
    parts: Vec<Part>,
}

struct Part {
    name: &'static str,
    task: task::Id,
    stop: CancellationToken,
}

impl Dev {
    /// Opens every port, then starts everything on them.
    ///
    /// # Errors
    /// A port is taken, the settings are wrong, or a service cannot start.
    pub(crate) async fn start(args: &Args) -> anyhow::Result<Self> {
        let folder = DataFolder::open(args.data_dir.clone())?;
        let config = match &args.config {
            Some(path) => path.clone(),
            None => folder.write_catalog()?,
        };
        check_caller_key(&config, &args.caller_key)?;
        let bound = args.ports.bind().await?;
        let addrs = bound.addrs()?;

        let wechat = format!("http://{}", addrs.sandbox);
        let settings = |public_url, database_url| Settings {
            config: Some(config.display().to_string()),
            embedded: Some("1".to_owned()),
            database_url: Some(SecretString::from(database_url)),
            token_url: Some(format!("http://{}", addrs.token.grpc)),
            auth_url: Some(format!("http://{}", addrs.auth.grpc)),
            wechat_api_url: Some(wechat.clone()),
            wechat_open_url: Some(wechat.clone()),
            public_url: Some(format!("http://{public_url}")),
            caller_key: Some(args.caller_key.clone()),
            ..Settings::default()
        };
        // Each is built on the heap: all that they are made of would be too much for one stack.
        let token = configure::<token_service::TokenService>(&settings(
            addrs.token.http,
            folder.database("token")?,
        ))?;
        let token = Box::pin(token_service::App::build(token, bound.token)).await?;
        let auth = configure::<auth_service::AuthService>(&settings(
            addrs.auth.http,
            folder.database("auth")?,
        ))?;
        let auth = Box::pin(auth_service::App::build(auth, bound.auth)).await?;
        let auth = auth.with_debug_page();
        let push = configure::<push_service::PushService>(&settings(
            addrs.push.http,
            folder.database("push")?,
        ))?;
        let push = Box::pin(push_service::App::build(push, bound.push)).await?;
        let callbacks = format!("http://{}", addrs.push.http);
        let sandbox =
            sandbox::Sandbox::build(sandbox::Config::dev(&callbacks), bound.sandbox).await?;

        let mut dev = Self {
            addrs,
            folder,
            tasks: JoinSet::new(),
            parts: Vec::new(),
        };
        dev.spawn("push-service", |stop| push.run(stop));
        dev.spawn("auth-service", |stop| auth.run(stop));
        dev.spawn("token-service", |stop| token.run(stop));
        dev.spawn("the sandbox", |stop| sandbox.run(stop));
        Ok(dev)
    }

    fn spawn<F, E>(&mut self, name: &'static str, work: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        let stop = CancellationToken::new();
        let work = work(stop.clone());
        let task = self
            .tasks
            .spawn(async move { work.await.map_err(Into::into) });
        let task = task.id();
        self.parts.push(Part { name, task, stop });
    }

    /// Waits until a part ends that was not asked to, and tells why.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match self.next_end().await {
            Some((name, Ok(()))) => anyhow::anyhow!("{name} ended by itself"),
            Some((_, Err(error))) => error,
            None => anyhow::anyhow!("nothing runs"),
        }
    }

    /// The next part that ends, and how.
    async fn next_end(&mut self) -> Option<(&'static str, anyhow::Result<()>)> {
        let (task, result) = match self.tasks.join_next_with_id().await? {
            Ok((task, result)) => (task, result),
            Err(panic) => (panic.id(), Err(panic.into())),
        };
        let place = self.parts.iter().position(|part| part.task == task)?;
        let name = self.parts.remove(place).name;
        Some((name, result.with_context(|| format!("{name} failed"))))
    }

    /// Stops one part after the other, callers first, so that each can finish what it has.
    ///
    /// # Errors
    /// A part failed while it stopped.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(part) = self.parts.first() {
            part.stop.cancel();
            let Some((_, result)) = self.next_end().await else {
                break;
            };
            outcome = outcome.and(result);
        }
        self.folder.close()?;
        outcome
    }
}

fn configure<S: Service>(settings: &Settings) -> anyhow::Result<S::Config> {
    S::configure(settings).with_context(|| S::NAME)
}

/// What the three services need together: all that is wrong with the file is told before anything starts.
const ALL: Needs = Needs {
    app_secrets: true,
    callbacks: true,
};

/// The services call each other as one caller: a file of one's own must know it.
fn check_caller_key(config: &Path, key: &SecretString) -> anyhow::Result<()> {
    let (handle, _) = CatalogHandle::load(config.to_owned(), ALL)?;
    let catalog = handle.current();
    let needed = [Scope::TokenRead, Scope::AuthVerify, Scope::AuthRead];
    let may = catalog
        .caller(key.expose_secret())
        .is_some_and(|caller| needed.iter().all(|scope| caller.scopes.contains(scope)));
    if may {
        return Ok(());
    }
    let mut problems = Problems::default();
    problems.add(
        "WXHUB_CALLER_KEY",
        format!(
            "is the key of no caller in {} that has the scopes token.read, auth.verify and auth.read",
            config.display()
        ),
        world::CALLER_KEY,
    );
    Err(problems.into())
}

/// Waits until every part says that it is ready.
///
/// # Errors
/// One did not within [`READY_TIMEOUT`].
pub(crate) async fn ready(addrs: &Addrs) -> anyhow::Result<()> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(READY_TIMEOUT)
        .build()?;
    let probes = [
        ("the sandbox", addrs.sandbox, "healthz"),
        ("token-service", addrs.token.ops, "readyz"),
        ("auth-service", addrs.auth.ops, "readyz"),
        ("push-service", addrs.push.ops, "readyz"),
    ];
    for (name, addr, path) in probes {
        let url = Url::parse(&format!("http://{addr}/{path}"))?;
        let is_ready = async {
            while !http
                .get(url.clone())
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        tokio::time::timeout(READY_TIMEOUT, is_ready)
            .await
            .with_context(|| {
                format!(
                    "{name} is not ready within {} s: see its log",
                    READY_TIMEOUT.as_secs()
                )
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use super::*;

    fn nothing_runs() -> Dev {
        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = service_kit::settings::Listen {
            grpc: nowhere,
            http: nowhere,
            ops: nowhere,
        };
        Dev {
            addrs: Addrs {
                sandbox: nowhere,
                token: listen,
                auth: listen,
                push: listen,
            },
            folder: DataFolder::open(None).unwrap(),
            tasks: JoinSet::new(),
            parts: Vec::new(),
        }
    }

    async fn panics(_: CancellationToken) -> Result<(), Infallible> {
        panic!("as a bug would");
    }

    #[tokio::test(start_paused = true)]
    async fn parts_stop_one_after_the_other_even_when_one_died() {
        let stopped = std::sync::Arc::new(Mutex::new(Vec::new()));
        let mut dev = nothing_runs();
        for name in ["caller", "called"] {
            let stopped = stopped.clone();
            dev.spawn(name, |stop| async move {
                stop.cancelled().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                stopped.lock().unwrap().push(name);
                Ok::<_, Infallible>(())
            });
        }
        dev.spawn("broken", |_| async { Err(anyhow::anyhow!("no luck")) });
        dev.spawn("panicking", panics);

        for _ in 0..2 {
            let error = format!("{:#}", dev.ended().await);
            assert!(
                error.starts_with("broken failed: no luck")
                    || error.starts_with("panicking failed: "),
                "{error}"
            );
        }
        dev.stop().await.unwrap();
        assert_eq!(*stopped.lock().unwrap(), ["caller", "called"]);
    }
}
