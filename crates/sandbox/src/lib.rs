#![doc = include_str!("../README.md")]

mod account;
mod api;
mod bounded;
mod callback;
mod calls;
mod clock;
mod code;
mod config;
mod connection;
mod control;
mod endpoint;
mod error;
mod fault;
mod login;
mod message;
mod oauth;
mod persona;
mod phone;
mod quota;
mod state;
mod token;
mod user_data;

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::connection::{CuttableListener, Scissors};
pub use self::{
    callback::{Delivery, PassiveReply, Reply, Verification},
    calls::{Call, Calls},
    config::{
        AccountConfig, CallbackConfig, Config, ConfigError, Format, Kind, Mode, TemplateConfig,
        TemplateKind,
    },
    fault::Fault,
    message::{Message, MessageKind},
    oauth::{Authorize, Authorized},
    state::{AccountView, Deliver, Error, Form, Login, Media, Standing, State, UserView},
    user_data::{PhoneCode, UserData, UserDataKind},
};

/// How long requests under way may take to end once the sandbox is told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// A local WeChat, ready to run.
#[derive(Debug)]
pub struct Sandbox {
    listener: TcpListener,
    address: SocketAddr,
    state: State,
}

/// Why a sandbox could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration makes no sense.
    #[error("the sandbox's configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    /// The listener has no address.
    #[error("the listener has no address")]
    Listener(#[source] io::Error),
    /// The HTTP client for callbacks could not be made.
    #[error("no HTTP client for callbacks")]
    Client(#[source] reqwest::Error),
}

impl Sandbox {
    /// Checks the configuration and takes the listener, which may be on any free port. Accounts are as new.
    ///
    /// # Errors
    /// The configuration makes no sense, or the machine refuses what is needed.
    #[expect(
        clippy::unused_async,
        reason = "built like every other server of the workspace"
    )]
    pub async fn build(config: Config, listener: TcpListener) -> Result<Self, BuildError> {
        config.validate()?;
        // Somebody else in the process may have installed it: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = listener.local_addr().map_err(BuildError::Listener)?;
        let state = State::new(config).map_err(BuildError::Client)?;
        Ok(Self {
            listener,
            address,
            state,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle on everything that `/sandbox/…` does.
    pub fn state(&self) -> State {
        self.state.clone()
    }

    /// Serves until `shutdown` is cancelled, and then for three seconds at most.
    ///
    /// # Errors
    /// The server failed.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let Self {
            listener, state, ..
        } = self;
        let router = Router::new()
            .route("/", get(phone::page))
            .route("/healthz", get(|| async { "ok" }))
            .merge(control::routes())
            .merge(oauth::routes())
            .fallback(api::handle)
            .with_state(state.clone())
            .into_make_service_with_connect_info::<Scissors>();
        let server = axum::serve(CuttableListener(listener), router)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let drained = async {
            shutdown.cancelled().await;
            state.0.stopping.cancel();
            tokio::time::sleep(DRAIN).await;
        };
        let outcome = tokio::select! {
            outcome = server.into_future() => outcome,
            () = drained => Ok(()),
        };
        state.0.tasks.close();
        state.0.tasks.wait().await;
        outcome
    }
}
