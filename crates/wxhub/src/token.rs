//! `wxhub token`: what an operator asks of a running token-service.
//!
//! Tables and lines are for people; `--json` has the same for programs. Tokens are cut short unless `--show` asks for
//! them.

mod refused;
mod shown;

use std::{
    collections::HashMap,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use proto::token::v1::{
    AccessToken, Credential, GetAccessTokenRequest, ListCredentialsRequest,
    RefreshAccessTokenRequest, WatchAccessTokensRequest, token_service_client::TokenServiceClient,
};
use serde_json::Value;
use service_kit::{Clock, Problems, Settings, client::PeerChannel, run, telemetry};
use tonic::{Request, Status};

pub(crate) use self::refused::Refused;
use self::shown::Shown;
use crate::operator::{self, Access, REACHING, print};

/// Credentials that one request lists.
const PAGE_SIZE: i32 = 100;
/// A refresh may take longer than a read: somebody else's may have to end first, and WeChat be slow.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(15);
/// Between a watch that ended and the next.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 done; 1 refused; 64 wrong flags or settings; 75 not now, the same command may work later.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON: one value, or with `watch` one a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// The state of every credential: version, expiry, next refresh, today's calls to WeChat, last error (scope admin)
    List,
    /// An app's current access_token (scope token.read)
    Get {
        #[command(flatten)]
        app: App,
        #[command(flatten)]
        show: Show,
    },
    /// Fetch a new access_token from WeChat now (scope admin)
    Refresh {
        #[command(flatten)]
        app: App,
        /// In stable mode, make WeChat end the current token: 20 a day. Without it WeChat may give the same one again
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        show: Show,
    },
    /// The current access_tokens, then a line for each rotation, until Ctrl-C (scope token.read)
    Watch {
        /// The apps, by app_id or name [default: every app of the caller]
        #[arg(value_name = "APP")]
        apps: Vec<String>,
        #[command(flatten)]
        show: Show,
    },
}

#[derive(Debug, clap::Args)]
struct App {
    /// The app, by app_id or name
    #[arg(value_name = "APP")]
    app: String,
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct Show {
    /// Show tokens in full: they are secrets
    #[arg(long)]
    show: bool,
}

/// How to reach token-service, by the names that the services use.
#[derive(Debug, clap::Args)]
struct Connection {
    /// token-service's gRPC; several endpoints, separated by commas, are balanced
    #[arg(
        long,
        env = "WXHUB_TOKEN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051",
        global = true,
        help_heading = REACHING
    )]
    token_url: String,
    #[command(flatten)]
    access: Access,
}

impl Connection {
    fn open(self) -> Result<TokenServiceClient<PeerChannel>, Problems> {
        let settings = Settings {
            token_url: Some(self.token_url),
            ..self.access.into()
        };
        let mut problems = Problems::default();
        let peer = settings.token_service(&mut problems);
        Ok(TokenServiceClient::new(problems.or(peer)?.channel()))
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    let operator = Operator {
        rpc: args.connection.open()?,
        json: args.json,
    };
    operator::outcome(act(operator, args.verb).await)
}

async fn act(mut operator: Operator, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List => operator.list().await,
        Verb::Get { app, show } => operator.get(app.app, show).await,
        Verb::Refresh { app, force, show } => operator.refresh(app.app, force, show).await,
        Verb::Watch { apps, show } => {
            let stop = run::shutdown_on_signal()?;
            let watched = stop.run_until_cancelled(operator.watch(apps, show)).await;
            watched.unwrap_or(Ok(()))
        }
    }
}

/// Asks token-service, and prints what it answers.
struct Operator {
    rpc: TokenServiceClient<PeerChannel>,
    json: bool,
}

impl Operator {
    async fn list(&mut self) -> anyhow::Result<()> {
        let credentials = self.credentials().await?;
        if self.json {
            let credentials = credentials.iter().map(shown::credential);
            return print(&Value::from_iter(credentials).to_string());
        }
        print(&shown::table(&credentials, Clock::System.now()))
    }

    /// Every page.
    async fn credentials(&mut self) -> Result<Vec<Credential>, Refused> {
        let mut credentials = Vec::new();
        let mut request = ListCredentialsRequest {
            page_size: PAGE_SIZE,
            ..ListCredentialsRequest::default()
        };
        loop {
            let page = self.rpc.list_credentials(request.clone()).await;
            let page = page.map_err(Refused::from)?.into_inner();
            credentials.extend(page.credentials);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(credentials);
            }
        }
    }

    async fn get(&mut self, app_id: String, show: Show) -> anyhow::Result<()> {
        let request = GetAccessTokenRequest { app_id };
        let answer = self.rpc.get_access_token(request).await;
        let answer = answer.map_err(Refused::from)?.into_inner();
        self.print(answer.access_token, show)
    }

    async fn refresh(&mut self, app_id: String, force: bool, show: Show) -> anyhow::Result<()> {
        let mut request = Request::new(RefreshAccessTokenRequest { app_id, force });
        request.set_timeout(REFRESH_TIMEOUT);
        let answer = self.rpc.refresh_access_token(request).await;
        let answer = answer.map_err(Refused::from)?.into_inner();
        self.print(answer.access_token, show)
    }

    fn print(&self, token: Option<AccessToken>, show: Show) -> anyhow::Result<()> {
        let token = token.context("token-service's answer has no access_token")?;
        let shown = Shown::new(&token, show.show);
        print(&if self.json {
            shown.json().to_string()
        } else {
            shown.details(Clock::System.now())
        })
    }

    /// Prints each version of each app once; opens the stream again when token-service goes away and comes back.
    async fn watch(&mut self, app_ids: Vec<String>, show: Show) -> anyhow::Result<()> {
        let mut seen = HashMap::new();
        loop {
            let request = WatchAccessTokensRequest {
                app_ids: app_ids.clone(),
            };
            let ended = match self.rpc.watch_access_tokens(request).await {
                Err(status) => Some(status),
                Ok(answer) => {
                    let mut tokens = answer.into_inner();
                    loop {
                        match tokens.message().await {
                            Err(status) => break Some(status),
                            Ok(None) => break None,
                            Ok(Some(next)) => self.rotation(next.access_token, show, &mut seen)?,
                        }
                    }
                }
            };
            let ended =
                Refused::from(ended.unwrap_or_else(|| Status::unavailable("the watch ended")));
            if seen.is_empty() || !ended.is_temporary() {
                return Err(ended.into());
            }
            writeln!(io::stderr(), "wxhub: {ended}; watching again")?;
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }

    fn rotation(
        &self,
        token: Option<AccessToken>,
        show: Show,
        seen: &mut HashMap<String, u64>,
    ) -> anyhow::Result<()> {
        let token = token.context("token-service's answer has no access_token")?;
        if seen.insert(token.app_id.clone(), token.version) == Some(token.version) {
            return Ok(());
        }
        let shown = Shown::new(&token, show.show);
        print(&if self.json {
            shown.json().to_string()
        } else {
            shown.line(Clock::System.now())
        })
    }
}
