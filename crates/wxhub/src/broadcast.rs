//! `wxhub broadcast`: one content for a list of users, sent, followed and steered.

mod follow;
mod list;
mod report;
mod send;
mod shown;

use std::path::PathBuf;

use anyhow::Context as _;
use proto::push::v1::{
    Broadcast, CancelBroadcastRequest, GetBroadcastRequest, ListBroadcastsRequest,
    PauseBroadcastRequest, ResumeBroadcastRequest, push_service_client::PushServiceClient,
};
use serde_json::Value;
use service_kit::{Clock, client::PeerChannel, run, telemetry};

pub(crate) use self::send::Interrupted;
use self::{follow::Told, report::Form};
use crate::{
    operator::{self, print},
    push::{Connection, note, refused},
};

/// Broadcasts that one request lists at most.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 done, or finished; 1 refused, cancelled, or the list has a mistake; 64 wrong flags or settings; 75 interrupted or not now, the same command goes on.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON: one value, or with `watch` and `report` one a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Send to a list of users and follow it; the same command again goes on where it was (scopes push.send, push.read)
    Send(Box<send::Args>),
    /// An app's broadcasts, the newest first (scope push.read)
    List {
        /// The app, by app_id or name
        #[arg(long)]
        app: String,
        /// Print this many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// How far a broadcast is (scope push.read)
    Show(Id),
    /// Follow a broadcast until it has ended (scope push.read)
    Watch(Id),
    /// Stop sending until it is resumed (scope push.send)
    Pause(Id),
    /// Go on with one that is paused (scope push.send)
    Resume(Id),
    /// End one: whoever has not got it will not (scope push.send)
    Cancel(Id),
    /// Who did not get it and why, as CSV (scope push.read)
    Report {
        #[command(flatten)]
        id: Id,
        /// Write it there [default: to stdout]
        #[arg(long, value_name = "PATH")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Id {
    /// The broadcast's id
    #[arg(value_name = "BROADCAST_ID")]
    broadcast_id: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    operator::outcome(act(args).await)
}

async fn act(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let operator = || -> anyhow::Result<Operator> {
        let rpc = args.connection.open()?;
        Ok(Operator { rpc, json })
    };
    match args.verb {
        Verb::Send(send) => {
            // A mistake in the list is found before anybody is asked for anything.
            let Some(prepared) = send::prepare(*send, json)? else {
                return Ok(());
            };
            let mut operator = operator()?;
            let stop = run::shutdown_on_signal()?;
            operator.send(prepared, &stop).await
        }
        Verb::List { app, limit } => operator()?.list(app, limit).await,
        Verb::Show(Id { broadcast_id }) => {
            let mut operator = operator()?;
            let found = operator.get(broadcast_id).await?;
            operator.print(&found)
        }
        Verb::Watch(Id { broadcast_id }) => operator()?.watch_until_its_end(&broadcast_id).await,
        Verb::Pause(Id { broadcast_id }) => {
            let mut operator = operator()?;
            let request = PauseBroadcastRequest { broadcast_id };
            let answer = operator.rpc.pause_broadcast(request).await;
            operator.show(answer.map_err(refused)?.into_inner().broadcast)
        }
        Verb::Resume(Id { broadcast_id }) => {
            let mut operator = operator()?;
            let request = ResumeBroadcastRequest { broadcast_id };
            let answer = operator.rpc.resume_broadcast(request).await;
            operator.show(answer.map_err(refused)?.into_inner().broadcast)
        }
        Verb::Cancel(Id { broadcast_id }) => {
            let mut operator = operator()?;
            let request = CancelBroadcastRequest { broadcast_id };
            let answer = operator.rpc.cancel_broadcast(request).await;
            operator.show(answer.map_err(refused)?.into_inner().broadcast)
        }
        Verb::Report { id, out } => {
            let mut operator = operator()?;
            let broadcast = operator.get(id.broadcast_id).await?;
            let form = if json { Form::Json } else { Form::Csv };
            operator.report(&broadcast, out.as_deref(), form).await
        }
    }
}

/// Asks push-service, and prints what it answers.
struct Operator {
    rpc: PushServiceClient<PeerChannel>,
    json: bool,
}

impl Operator {
    async fn list(&mut self, app_id: String, limit: u32) -> anyhow::Result<()> {
        let limit = usize::try_from(limit)?;
        let mut found = Vec::new();
        let mut request = ListBroadcastsRequest {
            app_id,
            ..ListBroadcastsRequest::default()
        };
        loop {
            request.page_size = i32::try_from(PAGE.min(limit - found.len()))?;
            let page = self.rpc.list_broadcasts(request.clone()).await;
            let page = page.map_err(refused)?.into_inner();
            found.extend(page.broadcasts);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || found.len() >= limit {
                break;
            }
        }
        print(&if self.json {
            Value::from_iter(found.iter().map(shown::object)).to_string()
        } else {
            shown::table(&found)
        })
    }

    async fn get(&mut self, broadcast_id: String) -> anyhow::Result<Broadcast> {
        let request = GetBroadcastRequest { broadcast_id };
        let answer = self.rpc.get_broadcast(request).await;
        there(answer.map_err(refused)?.into_inner().broadcast)
    }

    async fn watch_until_its_end(&mut self, broadcast_id: &str) -> anyhow::Result<()> {
        let stop = run::shutdown_on_signal()?;
        let told = if self.json { Told::Json } else { Told::Aside };
        match self.follow(broadcast_id, told, &stop).await? {
            None => note(&follow::left(broadcast_id)),
            // Its last line was its end.
            Some(_) if self.json => {}
            Some(last) => self.print(&last)?,
        }
        Ok(())
    }

    fn show(&self, broadcast: Option<Broadcast>) -> anyhow::Result<()> {
        self.print(&there(broadcast)?)
    }

    fn print(&self, broadcast: &Broadcast) -> anyhow::Result<()> {
        print(&if self.json {
            shown::object(broadcast).to_string()
        } else {
            shown::details(broadcast, Clock::System.now())
        })
    }
}

fn there(broadcast: Option<Broadcast>) -> anyhow::Result<Broadcast> {
    broadcast.context("push-service's answer has no broadcast")
}
