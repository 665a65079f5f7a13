//! Accepting: what is answered is committed, and what is committed will be sent.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use http::HeaderMap;
use service_kit::trace;
use tracing::Instrument as _;
use uuid::Uuid;
use wechat::OpenId;

use super::{
    Content, Lane, Message, Messages, NewMessage, Recipient, Sender, State, TRACE_PARENT,
    Violation, store::Inserted,
};
use crate::{account::Bound, database, error::Error, metrics};

/// How often storing is tried again when somebody else took the form_id or the request_id at the same time.
const TRIES: usize = 16;
/// A store that takes longer to commit counts as away. The message may be stored all the same: that is what request_id
/// is for.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// What falls due later than this is found by a poll in time, however long it takes to commit and even where this
/// replica's clock differs from the database's by half of it.
const SOON: Duration = Duration::from_secs(60);

/// What becomes of each message of a batch: stored, found, or refused by itself.
type Accepted = Vec<Result<Message, Error>>;

impl Messages {
    /// Stores a message, or finds the one that the same request_id stored before. Once begun it runs to its end, whether
    /// or not the caller still waits.
    pub(crate) async fn accept(&self, sender: Sender, new: NewMessage) -> Result<Message, Error> {
        let mut accepted = self.accept_all(sender, vec![new]).await?;
        accepted.pop().unwrap_or(Err(Error::Panicked))
    }

    /// The same for several messages of one sender, in one transaction. One that cannot be stored, for its request_id
    /// belongs to another, its time is over, its account is not bound or its user has no form_id left, fails alone.
    pub(crate) async fn accept_all(
        &self,
        sender: Sender,
        new: Vec<NewMessage>,
    ) -> Result<Accepted, Error> {
        let bound = self.bound(&sender, &new).await?;
        let this = self.clone();
        let accepting = async move {
            let storing = this.store_once(&sender, &new, &bound);
            let stored = tokio::time::timeout(STORE_TIMEOUT, storing).await;
            let Stored {
                accepted,
                kinds,
                rings,
            } = stored.map_err(|_| Error::DatabaseTimeout)??;
            for kind in kinds {
                metrics::accepted(kind);
            }
            if rings {
                this.tasks.spawn({
                    let doorbell = this.doorbell.clone();
                    async move { doorbell.ring().await }
                });
            }
            Ok(accepted)
        }
        .in_current_span();
        self.tasks
            .spawn(accepting)
            .await
            .map_err(|_| Error::Panicked)?
    }

    /// Whom the accounts are bound to that new messages are for. Of a repeated message nobody is asked: it is the first
    /// one, whomever its account was bound to since.
    async fn bound(&self, sender: &Sender, new: &[NewMessage]) -> Result<Bound, Error> {
        let by_account = new.iter().filter_map(|new| match &new.recipient {
            Recipient::Account(account) => Some((account.as_str(), new.request_id.as_deref())),
            Recipient::OpenId(_) => None,
        });
        let mut by_account: Vec<_> = by_account.collect();
        let request_ids = by_account.iter().filter_map(|(_, request_id)| *request_id);
        let request_ids: Vec<_> = request_ids.collect();
        if !request_ids.is_empty() {
            let known = self.store.by_requests(sender, request_ids);
            let known = tokio::time::timeout(STORE_TIMEOUT, known).await;
            let known = known.map_err(|_| Error::DatabaseTimeout)??;
            let known: HashSet<_> = known.iter().map(|first| &first.request_id).collect();
            by_account.retain(|(_, request_id)| {
                request_id.is_none_or(|id| !known.contains(&Some(id.to_owned())))
            });
        }
        if by_account.is_empty() {
            return Ok(Bound::new());
        }
        let accounts = by_account
            .into_iter()
            .map(|(account, _)| account.to_owned());
        self.accounts
            .open_ids(&sender.app_id, accounts.collect())
            .await
    }

    async fn store_once(
        &self,
        sender: &Sender,
        new: &[NewMessage],
        bound: &Bound,
    ) -> Result<Stored, Error> {
        // Read once: what is not late here is not late in the plan either.
        let now = database::moment(&self.clock);
        // Nearly all request_ids are new: the table itself tells of one that is not, by refusing it. A repeat may find
        // its time over, its form_id spent and its account bound to nobody, so where these matter the first is looked
        // for first.
        let simple = new.iter().all(|new| {
            matches!(new.recipient, Recipient::OpenId(_))
                && !takes_form(&new.content)
                && !is_late(new, now)
        });
        let mut known = if simple {
            HashMap::new()
        } else {
            self.known(sender, new).await?
        };
        for _ in 0..TRIES {
            let plan = self.plan(sender, new, bound, &known, now).await?;
            let inserted = match plan.rows.as_slice() {
                [] => Inserted::Stored,
                rows => self.store.insert(rows).await?,
            };
            match inserted {
                Inserted::Stored => return Ok(plan.done()),
                // Somebody was faster with a form_id, or with a request_id.
                Inserted::FormTaken | Inserted::RequestRepeated => {}
            }
            known = self.known(sender, new).await?;
        }
        Err(Error::Contended)
    }

    /// What is stored already, by request_id.
    async fn known(&self, sender: &Sender, new: &[NewMessage]) -> Result<Known, Error> {
        let request_ids = new.iter().filter_map(|new| new.request_id.as_deref());
        let known = self.store.by_requests(sender, request_ids.collect());
        let known = known.await?.into_iter();
        Ok(known
            .filter_map(|message| Some((message.request_id.clone()?, message)))
            .collect())
    }

    /// What is to be stored, as things stand.
    async fn plan(
        &self,
        sender: &Sender,
        new: &[NewMessage],
        bound: &Bound,
        known: &Known,
        now: DateTime<Utc>,
    ) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        let mut forms = HashSet::new();
        // Places of rows by their request_ids: one may be in the batch twice.
        let mut planned: HashMap<&str, usize> = HashMap::new();
        let trace_parent = trace_parent();
        for new in new {
            if let Some(request_id) = new.request_id.as_deref() {
                let stored = known.get(request_id).map(|first| (first, None));
                let first = stored.or_else(|| {
                    let place = *planned.get(request_id)?;
                    Some((plan.rows.get(place)?, Some(place)))
                });
                if let Some((first, place)) = first {
                    plan.answers.push(match place {
                        _ if !same(first, new) => Err(Error::RequestIdReused),
                        Some(place) => Ok(First::Row(place)),
                        None => Ok(First::Stored(Box::new(first.clone()))),
                    });
                    continue;
                }
            }
            if is_late(new, now) {
                let late = Error::Invalid(vec![expires_too_soon()]);
                plan.answers.push(Err(late));
                continue;
            }
            let open_id = match open_id(&new.recipient, bound) {
                Ok(open_id) => open_id,
                // It was stored when the accounts were asked about, and was pruned since.
                Err(Error::Contended) => return Err(Error::Contended),
                Err(error) => {
                    plan.answers.push(Err(error));
                    continue;
                }
            };
            let form = match self.form(sender, new, open_id, &forms).await {
                Ok(form) => form,
                Err(Error::NoForm) => {
                    plan.answers.push(Err(Error::NoForm));
                    continue;
                }
                Err(error) => return Err(error),
            };
            forms.extend(form.clone());
            let place = plan.rows.len();
            if let Some(request_id) = new.request_id.as_deref() {
                planned.insert(request_id, place);
            }
            let row = self.row(sender, new, open_id, form, trace_parent.clone());
            plan.rows.push(row);
            plan.kinds.push(new.content.kind());
            plan.rings |= new.schedule_time.is_none_or(|at| at <= now + SOON);
            plan.answers.push(Ok(First::Row(place)));
        }
        Ok(plan)
    }

    /// The form_id to take from the pool, for a message that needs one; not one that this batch takes already.
    async fn form(
        &self,
        sender: &Sender,
        new: &NewMessage,
        open_id: &OpenId,
        taken: &HashSet<String>,
    ) -> Result<Option<String>, Error> {
        if !takes_form(&new.content) {
            return Ok(None);
        }
        let form = self
            .forms
            .soonest(&sender.app_id, open_id, taken, new.schedule_time);
        form.await?.map(Some).ok_or(Error::NoForm)
    }

    fn row(
        &self,
        sender: &Sender,
        new: &NewMessage,
        open_id: &OpenId,
        form_id: Option<String>,
        trace_parent: Option<String>,
    ) -> Message {
        let now = database::moment(&self.clock);
        Message {
            message_id: Uuid::now_v7().to_string(),
            app_id: sender.app_id.to_string(),
            open_id: open_id.to_string(),
            account: match &new.recipient {
                Recipient::Account(account) => Some(account.clone()),
                Recipient::OpenId(_) => None,
            },
            caller: sender.caller.clone(),
            request_id: new.request_id.clone(),
            content: new.content.to_json(),
            form_id,
            state: State::Queued,
            attempts: 0,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time: now,
            schedule_time: new.schedule_time,
            expire_time: new.expire_time,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: Some(new.schedule_time.unwrap_or(now)),
            lane: Lane::of_caller(&sender.app_id, new.content.kind(), &sender.caller).to_string(),
            broadcast_id: None,
            delivered_time: None,
            failed_attempts: None,
            claim_id: None,
            trace_parent,
        }
    }
}

/// Messages that were stored before, by request_id.
type Known = HashMap<String, Message>;

/// What is to be stored, and what each message of the batch is answered then.
#[derive(Default)]
struct Plan {
    rows: Vec<Message>,
    kinds: Vec<&'static str>,
    /// [`Stored::rings`].
    rings: bool,
    answers: Vec<Result<First, Error>>,
}

/// What became of a batch.
struct Stored {
    accepted: Accepted,
    /// The kinds of those that are new.
    kinds: Vec<&'static str>,
    /// Some fall due [`SOON`].
    rings: bool,
}

/// The message that a request_id stands for.
enum First {
    /// Was stored by an earlier call.
    Stored(Box<Message>),
    /// Is the row at this place.
    Row(usize),
}

impl Plan {
    /// What there is to tell, now that the rows are stored.
    fn done(self) -> Stored {
        let answers = self.answers.into_iter();
        let accepted = answers.map(|answer| match answer? {
            First::Stored(message) => Ok(*message),
            First::Row(place) => self.rows.get(place).cloned().ok_or(Error::Panicked),
        });
        Stored {
            accepted: accepted.collect(),
            kinds: self.kinds,
            rings: self.rings,
        }
    }
}

/// Whether a form_id is taken from the pool for it.
fn takes_form(content: &Content) -> bool {
    matches!(content, Content::FormTemplate(content) if content.form_id.is_none())
}

/// Whether the message, were it new, could not be sent in time any more.
fn is_late(new: &NewMessage, now: DateTime<Utc>) -> bool {
    new.expire_time.is_some_and(|expires| expires <= now)
}

/// What is wrong with a message that nobody could send before it expires.
pub(crate) fn expires_too_soon() -> Violation {
    let problem = "must be later than now and than schedule_time";
    ("expire_time".to_owned(), problem.to_owned())
}

/// Whom a new message is for.
fn open_id<'a>(recipient: &'a Recipient, bound: &'a Bound) -> Result<&'a OpenId, Error> {
    match recipient {
        Recipient::OpenId(open_id) => Ok(open_id),
        Recipient::Account(account) => match bound.get(account) {
            Some(Ok(open_id)) => Ok(open_id),
            Some(Err(unbound)) => Err((*unbound).into()),
            None => Err(Error::Contended),
        },
    }
}

/// Whether the message that a request_id stored says the same, to whom is given in the same way.
fn same(first: &Message, new: &NewMessage) -> bool {
    let same_recipient = match (&new.recipient, &first.account) {
        (Recipient::OpenId(open_id), None) => first.open_id == open_id.as_str(),
        (Recipient::Account(account), Some(first)) => account == first,
        (Recipient::OpenId(_), Some(_)) | (Recipient::Account(_), None) => false,
    };
    same_recipient
        && (first.schedule_time, first.expire_time) == (new.schedule_time, new.expire_time)
        && Content::from_json(&first.content).is_ok_and(|content| content == new.content)
}

/// The trace of the caller, as a `traceparent`: what sends the message later goes on in it.
fn trace_parent() -> Option<String> {
    let mut headers = HeaderMap::new();
    trace::inject(&mut headers);
    let value = headers.get(TRACE_PARENT)?.to_str().ok()?;
    Some(value.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, pin::pin, task::Poll};

    use chrono::TimeDelta;
    use proto::auth::v1::auth_service_client::AuthServiceClient;
    use service_kit::{CatalogHandle, client::Peer};
    use test_support::{FaultProxy, MariaDb};
    use tokio_util::task::TaskTracker;
    use tonic::transport::Endpoint;
    use wechat::AppId;

    use super::*;
    use crate::{
        account::Accounts,
        database::Database,
        doorbell::Doorbell,
        form,
        message::{Customer, store::Store},
        testing,
    };

    /// More than an acceptance is polled, and more than it has steps with the database.
    const ENOUGH: usize = 100;

    /// Polls a future at most so many times, and drops it then.
    async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut left = times;
        poll_fn(|context| {
            let Some(rest) = left.checked_sub(1) else {
                return Poll::Ready(None);
            };
            left = rest;
            match future.as_mut().poll(context) {
                Poll::Pending if left == 0 => Poll::Ready(None),
                poll => poll.map(Some),
            }
        })
        .await
    }

    fn batch(name: &str) -> Vec<NewMessage> {
        let messages = (0..3).map(|number| NewMessage {
            recipient: Recipient::OpenId(OpenId::try_from("oReader").unwrap()),
            request_id: Some(format!("{name}/{number}")),
            content: Content::Customer(Customer {
                kf_account: None,
                message: wechat::CustomerContent::Text {
                    content: "在吗".to_owned(),
                },
            }),
            schedule_time: None,
            expire_time: None,
        });
        messages.collect()
    }

    fn messages(
        database: &Database,
        catalog: &CatalogHandle,
        doorbell: &Doorbell,
        tasks: TaskTracker,
    ) -> Messages {
        // auth-service is not there.
        let nobody = Endpoint::from_static("http://127.0.0.1:9");
        let peer = Peer::new(vec![nobody], "unused".to_owned().into());
        Messages {
            store: Store {
                database: database.clone(),
            },
            forms: form::Store {
                database: database.clone(),
            },
            accounts: Accounts {
                auth: AuthServiceClient::new(peer.channel()),
            },
            doorbell: doorbell.clone(),
            catalog: catalog.clone(),
            clock: database.clock.clone(),
            tasks,
        }
    }

    fn sender() -> Sender {
        Sender {
            app_id: AppId::try_from("wx0000000000000002").unwrap(),
            caller: "dev".to_owned(),
        }
    }

    #[tokio::test]
    async fn what_a_poll_finds_in_time_does_not_ring() {
        service_kit::telemetry::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let database = testing::database(&testing::sqlite(&folder)).await;
        let doorbell = Doorbell::new(None).unwrap();
        let catalog = testing::catalog(&folder);
        for (wait, rings) in [(None, true), (Some(90), false), (Some(30), true)] {
            let tasks = TaskTracker::new();
            let messages = messages(&database, &catalog, &doorbell, tasks.clone());
            let now = database::moment(&database.clock);
            let mut batch = batch(&format!("{wait:?}"));
            for new in &mut batch {
                new.schedule_time = wait.map(|wait| now + TimeDelta::seconds(wait));
            }
            messages.accept_all(sender(), batch).await.unwrap();
            tasks.close();
            tasks.wait().await;
            let rung = polled(doorbell.rung(), 1).await.is_some();
            assert_eq!(rung, rings, "{wait:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_at_any_await_gets_all_or_nothing() {
        service_kit::telemetry::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let catalog = testing::catalog(&folder);
        let database = MariaDb::database().await;
        let line = FaultProxy::start(database.url()).await;
        let direct = Store {
            database: testing::database(database.url()).await,
        };
        let database = testing::database(&line.url(database.url())).await;
        // Redis is not there.
        let doorbell = Doorbell::new(Some(&"redis://127.0.0.1:9".into())).unwrap();
        let messages = |tasks| messages(&database, &catalog, &doorbell, tasks);
        let sender = sender();
        let stored = async |name: &str| {
            let ids: Vec<_> = batch(name)
                .into_iter()
                .filter_map(|new| new.request_id)
                .collect();
            let ids = ids.iter().map(String::as_str).collect();
            direct.by_requests(&sender, ids).await.unwrap().len()
        };

        // It hangs up after so many polls, and the database fails at that step.
        let (mut answered, mut kept, mut lost) = (0, 0, 0);
        for polls in 0..ENOUGH {
            let mut whole = false;
            for step in 0..ENOUGH {
                let name = format!("{polls}/{step}");
                let tasks = TaskTracker::new();
                let messages = messages(tasks.clone());
                line.stall_after(step);
                let asked = polled(messages.accept_all(sender.clone(), batch(&name)), polls);
                let failed = Cell::new(false);
                let failing = async {
                    line.stalled().await;
                    failed.set(true);
                    line.cut().await;
                    line.heal().await;
                };
                let goes_on = async {
                    let answer = asked.await;
                    tasks.close();
                    tasks.wait().await;
                    answer
                };
                let mut failing = Box::pin(failing);
                let mut goes_on = pin!(goes_on);
                let answer = tokio::select! {
                    answer = &mut goes_on => answer,
                    () = &mut failing => goes_on.await,
                };
                // Half done it would hold the line.
                drop(failing);
                line.heal().await;
                let found = stored(&name).await;
                assert!(found == 0 || found == 3, "{name}: {found} of 3 are stored");
                match answer {
                    Some(Ok(_)) => {
                        assert_eq!(found, 3, "{name}");
                        answered += 1;
                    }
                    _ if found == 3 => kept += 1,
                    _ => lost += 1,
                }
                if !failed.get() {
                    // Whatever is begun ends.
                    assert_eq!(found > 0, polls > 0, "{name}");
                    whole = matches!(answer, Some(Ok(_)));
                    break;
                }
            }
            if whole {
                assert!(
                    answered > 0 && kept > 0 && lost > 0,
                    "{answered} {kept} {lost}"
                );
                return;
            }
        }
        panic!("an acceptance takes more than {ENOUGH} polls");
    }
}
