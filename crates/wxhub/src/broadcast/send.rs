//! `wxhub broadcast send`: a list of users, uploaded, sent and followed. Whatever interrupts it, the same command goes on.

use std::{collections::BTreeMap, fmt, fs::File, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use prost_types::Timestamp;
use proto::push::v1::{
    AddBroadcastRecipientsRequest, AddBroadcastRecipientsResponse, Broadcast, BroadcastState,
    CreateBroadcastRequest, StartBroadcastRequest, customer_content,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::Request;

use super::{
    Operator,
    follow::{self, Told},
    list::{Checked, List, Users},
    report::Form,
    shown, there,
};
use crate::{
    operator::print,
    push::{Content, ContentArgs, Patience, Progress, counted, counter, grouped, note, refused},
    table::aligned,
};

/// Users of one part, and of one call: once it is answered, they are stored.
const PART: usize = 2_000;
const CALL: usize = 10_000;
/// A call takes much less than this.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// EX_TEMPFAIL of sysexits.h.
const LATER: u8 = 75;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The list is a CSV file. Its users are in the column named open_id; a list of one column needs no name for it. All of it is checked before anybody is sent anything.

Whatever interrupts it, Ctrl-C or a machine that dies, the same command goes on where that one was, and nobody gets it twice: it finds its broadcast by a request_id that is made of the users, the content and --expire. Once it is done, the same command sends nothing more and shows how it went.")]
pub(super) struct Args {
    /// The list of users (CSV); - is standard input
    #[arg(value_name = "LIST")]
    list: PathBuf,
    /// The app that speaks, by app_id or name
    #[arg(long)]
    app: String,
    #[command(flatten)]
    content: ContentArgs,
    /// Of no use after this, such as 2026-11-21T18:00:00+08:00: whoever has not got it by then will not
    #[arg(long, value_name = "TIME", value_parser = time)]
    expire: Option<Timestamp>,
    /// The broadcast's request_id [default: made of what is sent to whom]
    #[arg(long, value_name = "ID", conflicts_with = "again")]
    request_id: Option<String>,
    /// Where it was sent before, send it once more, to everybody on the list
    #[arg(long)]
    again: bool,
    /// Check the list and tell what would be sent; ask nobody
    #[arg(long)]
    dry_run: bool,
    /// Start it, and do not wait for its end
    #[arg(long, conflicts_with = "report")]
    detach: bool,
    /// At the end, write there who did not get it and why (CSV)
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
}

/// Checked, and ready to be sent.
pub(super) struct Prepared {
    list: List,
    checked: Checked,
    request: CreateBroadcastRequest,
    /// The request_id is made of the list, and is no other list's.
    of_list: bool,
    again: bool,
    detach: bool,
    report: Option<PathBuf>,
}

/// It was interrupted before it was done, and how to go on.
#[derive(Debug)]
pub(crate) struct Interrupted(String);

impl Interrupted {
    /// What the program ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(LATER)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted{}", self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Reads the list; none when there is nothing more to do.
pub(super) fn prepare(args: Args, json: bool) -> anyhow::Result<Option<Prepared>> {
    let list = List::open(&args.list)?;
    let reading = counter("checking the list");
    let checked = list.check();
    reading.finish_and_clear();
    let checked = checked?;
    let content = Content::from(args.content);
    let of_list = args.request_id.is_none();
    let request_id = args
        .request_id
        .unwrap_or_else(|| digest(&content, args.expire, &checked));
    if args.dry_run {
        let users = checked.users;
        print(&if json {
            let object = json!({
                "app": args.app,
                "content": canonical(&content),
                "users": users,
                "request_id": request_id,
                "dry_run": true,
            });
            object.to_string()
        } else {
            let rows = [
                ("app", args.app),
                ("content", canonical(&content).to_string()),
                ("users", grouped(users)),
                ("request_id", request_id),
            ];
            let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
            format!("{}\nThe list is right. Nothing was sent.", aligned(&rows))
        })?;
        return Ok(None);
    }
    let request = CreateBroadcastRequest {
        app_id: args.app,
        request_id,
        content: Some(content.into()),
        expire_time: args.expire,
    };
    Ok(Some(Prepared {
        list,
        checked,
        request,
        of_list,
        again: args.again,
        detach: args.detach,
        report: args.report,
    }))
}

impl Operator {
    pub(super) async fn send(
        &mut self,
        mut prepared: Prepared,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut known = None;
        let begun = stop.run_until_cancelled(self.begin(&mut prepared, &mut known));
        let Some(begun) = begun.await else {
            let mut rows = vec![("go on", "the same command".to_owned())];
            rows.extend(known.map(|id| ("drop it", format!("wxhub broadcast cancel {id}"))));
            return Err(Interrupted(format!("\n{}", ways(rows))).into());
        };
        let broadcast = begun?;
        let broadcast_id = &broadcast.broadcast_id;
        if prepared.detach {
            return self.print(&broadcast);
        }
        let followed = self.follow(broadcast_id, Told::Aside, stop).await;
        let followed = followed.context("it is started, and cannot be followed")?;
        let Some(last) = followed else {
            return Err(Interrupted(format!("; {}", follow::left(broadcast_id))).into());
        };
        self.print(&last)?;
        if let Some(path) = &prepared.report {
            self.report(&last, Some(path), Form::Csv).await?;
        } else if last.failed + last.expired > 0 {
            note(&format!(
                "who did not get it, and why: wxhub broadcast report {broadcast_id}"
            ));
        }
        if last.state() == BroadcastState::Cancelled {
            bail!("the broadcast was cancelled; --again sends it once more");
        }
        Ok(())
    }

    /// Creates the broadcast or finds it, and starts it once all of the list is in it.
    async fn begin(
        &mut self,
        prepared: &mut Prepared,
        known: &mut Option<String>,
    ) -> anyhow::Result<Broadcast> {
        let broadcast = self.create(prepared).await?;
        let broadcast_id = &*known.insert(broadcast.broadcast_id.clone());
        if !prepared.of_list && broadcast.start_time.is_some() {
            prepared.list.fits(&prepared.checked, &broadcast)?;
        }
        let users = counted(prepared.checked.users, "user");
        note(&format!("broadcast {broadcast_id} to {users}"));
        if broadcast.state() == BroadcastState::Draft {
            let Err(error) = self.upload(prepared, broadcast).await else {
                return self.start(broadcast_id).await;
            };
            let now = self.get(broadcast_id.clone()).await;
            return match now {
                // The same command, made a second time meanwhile, was faster.
                Ok(now) if prepared.of_list && now.start_time.is_some() => Ok(now),
                _ => Err(error),
            };
        }
        let state = shown::state(&broadcast);
        note(&match broadcast.state() {
            BroadcastState::Finished => {
                format!("it was sent before and is {state}: --again sends it once more")
            }
            _ => format!("it was started before and is {state}"),
        });
        Ok(broadcast)
    }

    /// With `--again` the first one that is not over: so the same command finds it again.
    async fn create(&mut self, prepared: &mut Prepared) -> anyhow::Result<Broadcast> {
        let first = prepared.request.request_id.clone();
        for time in 2.. {
            let request = prepared.request.clone();
            let answer = self.rpc.create_broadcast(request).await.map_err(refused)?;
            let broadcast = there(answer.into_inner().broadcast)?;
            let is_over = matches!(
                broadcast.state(),
                BroadcastState::Finished | BroadcastState::Cancelled
            );
            if !(prepared.again && is_over) {
                return Ok(broadcast);
            }
            prepared.request.request_id = format!("{first}-{time}");
        }
        bail!("it was sent too often")
    }

    /// Uploads what is not there yet of the list.
    async fn upload(&mut self, prepared: &Prepared, draft: Broadcast) -> anyhow::Result<()> {
        let Prepared { list, checked, .. } = prepared;
        let broadcast_id = draft.broadcast_id;
        let mut recipients = u64::try_from(draft.recipients)?;
        let there_before = recipients;
        let another = || {
            format!(
                "the broadcast has recipients of another list, which its request_id was used for: `wxhub broadcast cancel {broadcast_id}` drops it"
            )
        };
        if there_before > checked.users {
            bail!(another());
        }
        let mut users = list.users()?;
        if there_before > 0 && prepared.of_list {
            // Uploads go through the list in its order: as many as are there were its first.
            let there = counted(there_before, "user");
            note(&format!("{there} uploaded before"));
            while users.seen() < there_before && users.next()?.is_some() {}
        }
        let progress = Progress::of(checked.users, users.seen(), "uploading");
        let uploaded = async {
            loop {
                // Where the request_id does not tell the lists apart, whoever was there must be at the list's start.
                let to_check = there_before.saturating_sub(users.seen());
                let most = match usize::try_from(to_check)? {
                    0 => CALL,
                    to_check => CALL.min(to_check),
                };
                let call = next(&mut users, most)?;
                if call.is_empty() {
                    break;
                }
                let answer = self.add(&broadcast_id, &call, &progress).await?;
                if to_check > 0 && answer.added > 0 {
                    bail!(another());
                }
                recipients = u64::try_from(there(answer.broadcast)?.recipients)?;
                progress.advance(call.len() as u64);
            }
            if users.checked() != *checked {
                bail!(
                    "{} changed while it was uploaded: nothing was sent, and `wxhub broadcast cancel {broadcast_id}` drops it",
                    list.name()
                );
            }
            Ok(())
        };
        let uploaded = uploaded.await;
        progress.clear();
        uploaded?;
        if recipients < checked.users {
            let recipients = counted(recipients, "recipient");
            note(&format!(
                "{recipients}: who is named more than once gets it once"
            ));
        }
        Ok(())
    }

    /// Adds users, however often that takes: who is in it already is not added again.
    async fn add(
        &mut self,
        broadcast_id: &str,
        open_ids: &[String],
        progress: &Progress,
    ) -> anyhow::Result<AddBroadcastRecipientsResponse> {
        let mut patience = Patience::default();
        loop {
            let parts: Vec<_> = open_ids
                .chunks(PART)
                .map(|part| AddBroadcastRecipientsRequest {
                    broadcast_id: broadcast_id.to_owned(),
                    open_ids: part.to_vec(),
                })
                .collect();
            let mut request = Request::new(futures_util::stream::iter(parts));
            request.set_timeout(CALL_TIMEOUT);
            match self.rpc.add_broadcast_recipients(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => {
                    let wait = patience.wait(refused(status), |why| progress.note(why));
                    wait.await?;
                }
            }
        }
    }

    async fn start(&mut self, broadcast_id: &str) -> anyhow::Result<Broadcast> {
        let mut patience = Patience::default();
        loop {
            let request = StartBroadcastRequest {
                broadcast_id: broadcast_id.to_owned(),
            };
            match self.rpc.start_broadcast(request).await {
                Ok(answer) => return there(answer.into_inner().broadcast),
                Err(status) => patience.wait(refused(status), note).await?,
            }
        }
    }
}

impl List {
    /// Refuses a broadcast that was started for more users than these, or for fewer: its recipients cannot be asked for, so that
    /// another list of as many is not told.
    fn fits(&self, checked: &Checked, started: &Broadcast) -> anyhow::Result<()> {
        let recipients = u64::try_from(started.recipients)?;
        if recipients == checked.users {
            return Ok(());
        }
        let users = self.distinct()?;
        if recipients != users {
            bail!(
                "the broadcast was started for {}, and {} names {}: its request_id was used for another list. Another --request-id sends to this one; `wxhub broadcast watch {}` follows that broadcast",
                counted(recipients, "user"),
                self.name(),
                grouped(users),
                started.broadcast_id,
            );
        }
        Ok(())
    }
}

/// The users that come next, so many at most.
fn next(users: &mut Users<&File>, most: usize) -> anyhow::Result<Vec<String>> {
    let mut next = Vec::new();
    while next.len() < most
        && let Some(user) = users.next()?
    {
        // A list that changed is told as a whole.
        next.extend(user.ok().map(str::to_owned));
    }
    Ok(next)
}

/// What can be done now, a line each.
pub(super) fn ways(ways: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let ways = ways.into_iter();
    let rows: Vec<_> = ways
        .map(|(what, how)| vec![format!("  {what}"), how])
        .collect();
    aligned(&rows)
}

/// A time by itself: with one that moves, the same command would be another broadcast.
fn time(text: &str) -> Result<Timestamp, &'static str> {
    let time = text.parse();
    time.map_err(|_| "must be a time such as 2026-11-21T18:00:00+08:00")
}

/// The content with everything in one order.
fn canonical(content: &Content) -> Value {
    match content {
        Content::Template(template) => {
            let link = template.mini_program.as_ref();
            json!({
                "template": template.template_id,
                "url": template.url,
                "mini_program": link.map(|link| [&link.app_id, &link.page_path]),
                "data": template.data.iter().collect::<BTreeMap<_, _>>(),
            })
        }
        Content::Subscribe(subscribe) => json!({
            "subscribe": subscribe.template_id,
            "page": subscribe.page,
            "state": subscribe.mini_program_state,
            "lang": subscribe.lang,
            "data": subscribe.data.iter().collect::<BTreeMap<_, _>>(),
        }),
        Content::Customer(customer) => match &customer.message {
            Some(customer_content::Message::Text(text)) => json!({ "text": text.content }),
            // Its parts are in the order of the protocol.
            other => json!({ "customer": format!("{other:?}") }),
        },
    }
}

/// What tells this broadcast from every other of its app: the request_id where none is given.
fn digest(content: &Content, expire: Option<Timestamp>, list: &Checked) -> String {
    let mut hash = Sha256::new();
    let expire = expire.map(|time| time.to_string()).unwrap_or_default();
    for part in [&canonical(content).to_string(), &expire, &list.digest] {
        hash.update(part);
        hash.update([0]);
    }
    let digest = hash.finalize();
    let hex = digest.iter().take(16).map(|byte| format!("{byte:02x}"));
    format!("list-{}", hex.collect::<String>())
}

#[cfg(test)]
mod tests {
    use proto::push::v1::TemplateContent;

    use super::*;

    #[test]
    fn the_request_id_is_of_everything_that_is_sent() {
        let content = |url: &str| {
            let data = (0..20).map(|n| (format!("thing{n}"), n.to_string()));
            Content::Template(TemplateContent {
                template_id: "T".to_owned(),
                url: url.to_owned(),
                mini_program: None,
                data: data.collect(),
            })
        };
        let list = |digest: &str| Checked {
            users: 2,
            digest: digest.to_owned(),
        };
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let id = digest(&content(""), None, &list("a"));
        assert_eq!(id.len(), 37);
        assert_eq!(id, digest(&content(""), None, &list("a")));
        for other in [
            digest(&content("https://example.com"), None, &list("a")),
            digest(&content(""), at(1), &list("a")),
            digest(&content(""), None, &list("b")),
        ] {
            assert_ne!(id, other);
        }
    }
}
