//! `wxhub message`: what an operator asks of a running push-service about messages.

pub(crate) mod shown;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use proto::push::v1::{
    GetMessageRequest, ListMessagesRequest, Message, MessageFilter, MessageState,
    RetryMessageRequest, RetryMessagesRequest, push_service_client::PushServiceClient,
};
use serde_json::{Value, json};
use service_kit::{Clock, client::PeerChannel, telemetry};
use tonic::Request;

use crate::{
    operator::{self, print},
    push::{Connection, Patience, Progress, When, counted, counter, note, refused},
    token::Refused,
};

/// Messages that one request lists at most.
const PAGE: usize = 1_000;
/// A thousand messages are queued again within this.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 done; 1 refused; 64 wrong flags or settings; 75 not now, the same command may work later.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// An app's messages, the newest first (scope push.read)
    List {
        /// The app, by app_id or name
        #[arg(long)]
        app: String,
        /// In this state; several are any of them
        #[arg(long, ignore_case = true, value_parser = states())]
        state: Vec<MessageState>,
        #[command(flatten)]
        fitting: Fitting,
        /// Print this many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// One message with all its attempts and times (scope push.read)
    Show {
        /// The message_id that `send` or `list` printed
        #[arg(value_name = "MESSAGE_ID")]
        message_id: String,
    },
    /// Queue again what failed: these messages, or all of an app that fit (scope push.send)
    Retry {
        /// The messages
        #[arg(value_name = "MESSAGE_ID", required_unless_present = "app", conflicts_with_all = ["app", "broadcast", "open_id", "since", "until", "errcode"])]
        message_ids: Vec<String>,
        /// The app, by app_id or name
        #[arg(long)]
        app: Option<String>,
        #[command(flatten)]
        fitting: Fitting,
        /// Count them, and queue nothing
        #[arg(long)]
        dry_run: bool,
        /// Ask nothing
        #[arg(long, short)]
        yes: bool,
    },
}

/// Which messages are meant: those that fit everything that is given.
#[derive(Debug, clap::Args)]
struct Fitting {
    /// Parts of this broadcast
    #[arg(long, value_name = "BROADCAST_ID", requires = "app")]
    broadcast: Option<String>,
    /// To this user
    #[arg(long, requires = "app")]
    open_id: Option<String>,
    /// Accepted then or later: 2026-11-21T18:00:00+08:00, or 2h ago
    #[arg(long, value_name = "TIME", requires = "app")]
    since: Option<When>,
    /// Accepted before then
    #[arg(long, value_name = "TIME", requires = "app")]
    until: Option<When>,
    /// Whose latest attempt came to this errcode of WeChat's
    #[arg(long, requires = "app", allow_negative_numbers = true)]
    errcode: Option<i64>,
}

impl Fitting {
    fn filter(self, app_id: String, states: &[MessageState], now: SystemTime) -> MessageFilter {
        MessageFilter {
            app_id,
            states: states.iter().map(|state| (*state).into()).collect(),
            broadcast_id: self.broadcast.unwrap_or_default(),
            open_id: self.open_id.unwrap_or_default(),
            start_time: self.since.map(|time| time.ago(now)),
            end_time: self.until.map(|time| time.ago(now)),
            errcode: self.errcode,
        }
    }
}

/// The states by their names, without the enum's prefix.
fn states() -> impl clap::builder::TypedValueParser<Value = MessageState> {
    let names = [
        "scheduled",
        "queued",
        "sending",
        "sent",
        "delivered",
        "failed",
        "cancelled",
        "expired",
    ];
    PossibleValuesParser::new(names).map(|name| {
        let name = format!("MESSAGE_STATE_{}", name.to_uppercase());
        MessageState::from_str_name(&name).unwrap_or_default()
    })
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    let mut operator = Operator {
        rpc: args.connection.open()?,
        json: args.json,
    };
    let now = Clock::System.now();
    operator::outcome(match args.verb {
        Verb::List {
            app,
            state,
            fitting,
            limit,
        } => operator.list(fitting.filter(app, &state, now), limit).await,
        Verb::Show { message_id } => operator.show(message_id).await,
        Verb::Retry {
            app: Some(app),
            fitting,
            dry_run,
            yes,
            ..
        } => {
            let filter = fitting.filter(app, &[], now);
            operator.retry_fitting(filter, dry_run, yes).await
        }
        Verb::Retry {
            message_ids,
            dry_run: true,
            ..
        } => operator.look_up(message_ids).await,
        Verb::Retry { message_ids, .. } => operator.retry(message_ids).await,
    })
}

/// Asks push-service, and prints what it answers.
struct Operator {
    rpc: PushServiceClient<PeerChannel>,
    json: bool,
}

impl Operator {
    async fn list(&mut self, filter: MessageFilter, limit: u32) -> anyhow::Result<()> {
        let limit = usize::try_from(limit)?;
        let mut messages = Vec::new();
        let mut request = ListMessagesRequest {
            filter: Some(filter),
            ..ListMessagesRequest::default()
        };
        loop {
            let size = PAGE.min(limit - messages.len());
            request.page_size = i32::try_from(size)?;
            let page = self.rpc.list_messages(request.clone()).await;
            let page = page.map_err(refused)?.into_inner();
            messages.extend(page.messages);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || messages.len() >= limit {
                break;
            }
        }
        print(&if self.json {
            Value::from_iter(messages.iter().map(shown::object)).to_string()
        } else {
            shown::table(&messages)
        })?;
        if !request.page_token.is_empty() {
            note("there may be more: --limit shows them");
        }
        Ok(())
    }

    async fn get(&mut self, message_id: String) -> anyhow::Result<Message> {
        let answer = self.rpc.get_message(GetMessageRequest { message_id }).await;
        let message = answer.map_err(refused)?.into_inner().message;
        message.context("push-service's answer has no message")
    }

    async fn show(&mut self, message_id: String) -> anyhow::Result<()> {
        let message = self.get(message_id).await?;
        print(&if self.json {
            shown::object(&message).to_string()
        } else {
            shown::details(&message)
        })
    }

    /// Which of these would be queued again.
    async fn look_up(&mut self, message_ids: Vec<String>) -> anyhow::Result<()> {
        let asked = message_ids.len();
        let mut failed = Vec::new();
        for message_id in message_ids {
            let message = self.get(message_id.clone()).await.context(message_id)?;
            if message.state() == MessageState::Failed {
                failed.push(message);
            } else {
                let state = shown::state(&message);
                note(&format!(
                    "{} is {state}, and would stay so",
                    message.message_id
                ));
            }
        }
        let count = failed.len() as u64;
        print(&if self.json {
            json!({ "count": count, "dry_run": true }).to_string()
        } else {
            format!("{} would be queued again", counted(count, "message"))
        })?;
        if failed.len() < asked {
            bail!("not all of them have failed");
        }
        Ok(())
    }

    /// One after the other; what is refused is told, and the others go on.
    async fn retry(&mut self, message_ids: Vec<String>) -> anyhow::Result<()> {
        let mut retried = Vec::new();
        let mut first_refusal = None;
        for message_id in message_ids {
            let request = RetryMessageRequest {
                message_id: message_id.clone(),
            };
            match self.rpc.retry_message(request).await.map_err(refused) {
                Ok(answer) => {
                    let message = answer.into_inner().message;
                    retried.push(message.context("push-service's answer has no message")?);
                }
                Err(refused) => {
                    if let Some(earlier) = first_refusal.replace((message_id, refused)) {
                        let (message_id, refused) = &earlier;
                        note(&format!("{message_id}: {refused}"));
                    }
                }
            }
        }
        if self.json {
            print(&Value::from_iter(retried.iter().map(shown::object)).to_string())?;
        } else if !retried.is_empty() {
            print(&shown::table(&retried))?;
        }
        match first_refusal {
            Some((message_id, refused)) => Err(anyhow::Error::new(refused).context(message_id)),
            None => Ok(()),
        }
    }

    async fn retry_fitting(
        &mut self,
        filter: MessageFilter,
        dry_run: bool,
        yes: bool,
    ) -> anyhow::Result<()> {
        let broadcast_id = filter.broadcast_id.clone();
        let mut request = RetryMessagesRequest {
            filter: Some(filter),
            dry_run: true,
            ..RetryMessagesRequest::default()
        };
        let counting = counter("counting what failed");
        let tell = |why: &str| counting.suspend(|| note(why));
        let count = self.parts(&mut request, |more| counting.inc(more), tell);
        let count = count.await;
        counting.finish_and_clear();
        let count = count?;
        let messages = counted(count, "message");
        if dry_run {
            return print(&if self.json {
                json!({ "count": count, "dry_run": true }).to_string()
            } else {
                format!("{messages} would be queued again")
            });
        }
        if count > 0 && !yes && !confirmed(&format!("Queue {messages} again?"))? {
            bail!("nothing was queued");
        }
        request.dry_run = false;
        if count == 0 {
            return self.queued_again(0);
        }
        let queueing = Progress::of(count, 0, "queueing again");
        let (more, tell) = (
            |more| queueing.advance(more),
            |why: &str| queueing.note(why),
        );
        let queued = self.parts(&mut request, more, tell).await;
        let so_far = queueing.done();
        queueing.clear();
        let queued =
            queued.with_context(|| format!("{} queued again, then", counted(so_far, "message")))?;
        if queued > 0 && !broadcast_id.is_empty() {
            note(&format!("follow it: wxhub broadcast watch {broadcast_id}"));
        }
        self.queued_again(queued)
    }

    fn queued_again(&self, count: u64) -> anyhow::Result<()> {
        print(&if self.json {
            json!({ "count": count, "dry_run": false }).to_string()
        } else {
            format!("{} queued again", counted(count, "message"))
        })
    }

    /// Every part of what fits. A part that is refused for now is asked for again: what was queued is not queued twice.
    async fn parts(
        &mut self,
        request: &mut RetryMessagesRequest,
        counted: impl Fn(u64),
        tell: impl Fn(&str),
    ) -> Result<u64, Refused> {
        let mut total = 0;
        let mut patience = Patience::default();
        request.page_token.clear();
        loop {
            let mut part = Request::new(request.clone());
            part.set_timeout(RETRY_TIMEOUT);
            let part = match self.rpc.retry_messages(part).await.map_err(refused) {
                Ok(part) => part.into_inner(),
                Err(away) if total > 0 => {
                    patience.wait(away, &tell).await?;
                    continue;
                }
                Err(refused) => return Err(refused),
            };
            patience.renew();
            let count = u64::try_from(part.count).unwrap_or_default();
            total += count;
            counted(count);
            request.page_token = part.next_page_token;
            if request.page_token.is_empty() {
                return Ok(total);
            }
        }
    }
}

/// Asks the person at the terminal; where nobody sits at one, `--yes` has to say it.
fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("{question} Nobody can be asked here: give --yes, or --dry-run to count alone");
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
