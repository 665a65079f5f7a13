//! Delivery: takes up what is due, sends it, and writes down what became of it.
//!
//! Three writes keep a message from being lost or told twice by our fault: a claim (a lease of
//! [`LEASE`](crate::message::store::LEASE)), SENDING before it goes on the wire, and the outcome under the claim. A
//! worker that dies before SENDING leaves a message that simply falls due again; one that dies after it leaves an
//! attempt whose outcome is unknown.

mod batch;
mod depth;
mod outcomes;
mod pauses;
mod policy;
mod queue;
mod survey;
mod turn;
mod window;

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use rand::seq::SliceRandom as _;
use sea_orm::DbErr;
use service_kit::{App, CatalogHandle, Clock, ops::Readiness};
use token_client::TokenClient;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};
use wechat::{AppId, Client};

use self::{
    batch::Batch,
    outcomes::{Outcomes, outcomes},
    policy::{Attempt, Circumstances},
    queue::Ended,
    survey::Surveyor,
    turn::{About, Part, Waiting},
};
pub(crate) use self::{depth::Depths, pauses::Pauses, queue::Queue, window::Window};
use crate::{
    broadcast::Broadcasts,
    doorbell::Doorbell,
    message::{Content, Lane, Message, Priority, resume_trace},
    metrics,
    rate::{self, Rate, Taken},
    receipt::Receipts,
};

/// WeChat answers within this, or the attempt's outcome is unknown.
pub(crate) const UPSTREAM_DEADLINE: Duration = Duration::from_secs(3);
/// Messages of a replica between their claim and the writing of their outcome. At WeChat's usual 50 ms they are some
/// thousands a second.
const CONCURRENCY: usize = 1_024;
/// A backlog is worked on whenever so many of them are done: a claim's statements cost little more for many than for few.
const ROOM: usize = 256;
/// The most that are claimed at once.
const TOGETHER: usize = 256;
/// While doorbells ring, due messages are looked for once in this time, and outcomes written as often: a statement for
/// several costs the database hardly more than one for each. What comes after a while of silence is not held up.
const GATHER: Duration = Duration::from_millis(20);
/// How often due messages are looked for when no doorbell rings.
pub(crate) const POLL: Duration = Duration::from_secs(1);
/// When there is no hurry with the lanes that were looked into, others are looked into after this.
const OTHERS: Duration = Duration::from_millis(50);
/// After the database was away, what seems lost may have a living worker that is about to write its outcome: that one
/// goes first.
const SETTLE: Duration = Duration::from_secs(2);

/// What a claim leaves to do.
struct Left {
    /// With so many free places it is worth while to claim again.
    come_back: Option<usize>,
    /// When there is something to do again, if that is soon.
    upcoming: Option<Instant>,
    /// When what dead workers left is to be looked for again, if that is before the next poll.
    lost: Option<Instant>,
}

impl Left {
    fn sooner(&mut self, at: Instant) {
        self.upcoming = Some(self.upcoming.map_or(at, |known| known.min(at)));
    }
}

/// Sends messages.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) queue: Queue,
    pub(crate) broadcasts: Broadcasts,
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) window: Arc<Window>,
    pub(crate) rate: Rate,
    pub(crate) clock: Clock,
    pub(crate) catalog: CatalogHandle,
    pub(crate) wechat: Client,
    pub(crate) tokens: TokenClient,
    pub(crate) doorbell: Doorbell,
    /// [`POLL`].
    pub(crate) poll: Duration,
    pub(crate) readiness: Readiness,
    pub(crate) receipts: Receipts,
}

impl Delivery {
    /// Delivers until the token is cancelled, then ends what is on the wire and puts back what is not.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        if !self.readiness.started(&stop).await {
            return Ok(());
        }
        let this = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONCURRENCY));
        let (outcomes, writer) = outcomes(
            this.queue.clone(),
            this.receipts.clone(),
            this.clock.clone(),
        );
        let mut writers = JoinSet::new();
        writers.spawn(writer.run());
        let mut worker = Worker {
            delivery: Arc::clone(&this),
            slots: Arc::clone(&slots),
            surveyor: Surveyor::new(this.queue.database.clone()),
            claims: JoinSet::new(),
            batches: JoinSet::new(),
            outcomes,
            stop: stop.clone(),
            about: About::default(),
            backlogs_from: Instant::now(),
        };
        let mut poll = tokio::time::interval(this.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // How many free places a backlog waits for.
        let mut backlog: Option<usize> = None;
        // When the next message falls due, where that is before the next poll.
        let mut upcoming: Option<Instant> = None;
        // When the lease of what may be lost ends.
        let mut lease = None;
        // Elapsed time since which the database answers.
        let mut answers_since = None;
        let mut gathered = Instant::now();
        loop {
            let mut look = false;
            let claimed = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = worker.batches.join_next() => {
                    report_panic(ended);
                    continue;
                }
                Some(claimed) = worker.claims.join_next() => Some(claimed),
                _ = poll.tick() => {
                    look = true;
                    None
                }
                () = sleep_until(lease.unwrap_or_else(Instant::now)), if lease.is_some() => {
                    look = true;
                    None
                }
                () = async { sleep_until(gathered).await; this.doorbell.rung().await } => None,
                () = sleep_until(upcoming.map_or(gathered, |due| due.max(gathered))), if upcoming.is_some() => None,
                Ok(_) = slots.acquire_many(permits(backlog, &this.window)), if backlog.is_some() && worker.claims.is_empty() => None,
            };
            let now = this.clock.elapsed();
            let outcome = if let Some(claimed) = claimed {
                worker.start_claimed(claimed)
            } else {
                gathered = Instant::now() + GATHER;
                let settled = answers_since.is_some_and(|since| since + SETTLE <= now);
                let take_up = worker.take_up(settled && look);
                match stop.run_until_cancelled(take_up).await {
                    None => break,
                    Some(Ok(left)) => {
                        backlog = left.come_back;
                        upcoming = left.upcoming;
                        if look {
                            lease = left.lost;
                        }
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                }
            };
            match outcome {
                Ok(()) => {
                    answers_since.get_or_insert(now);
                }
                Err(error) => {
                    // The next poll tries again.
                    (answers_since, upcoming, lease, backlog) = (None, None, None, None);
                    warn!("messages wait, for the database does not answer: {error}");
                }
            }
        }
        while let Some(claimed) = worker.claims.join_next().await {
            if let Err(error) = worker.start_claimed(claimed) {
                debug!("a claim is left to its lease: {error}");
            }
        }
        while let Some(ended) = worker.batches.join_next().await {
            report_panic(ended);
        }
        // The writer ends with what the last batch put in.
        drop(worker);
        while let Some(ended) = writers.join_next().await {
            report_panic(ended);
        }
        Ok(())
    }

    /// Takes up what other workers left SENDING when they died.
    async fn recover(&self) -> Result<(), DbErr> {
        let mut lost = self.queue.lost().await?;
        self.broadcasts.fill(&mut lost).await?;
        let ended: Vec<Ended> = lost
            .iter()
            .filter_map(|message| {
                warn!(
                    message.id = message.message_id,
                    "its worker was lost while it sent"
                );
                Some(Ended {
                    message_id: message.message_id.clone(),
                    claim_id: message.claim_id.clone()?,
                    app_id: message.app_id.clone(),
                    broadcast_id: message.broadcast_id.clone(),
                    outcome: self.after_loss(message),
                })
            })
            .collect();
        let ended: Vec<&Ended> = ended.iter().collect();
        self.queue.write(&ended).await?;
        metrics::lost(ended.len() as u64);
        Ok(())
    }

    fn after_loss(&self, message: &Message) -> queue::Outcome {
        match Content::from_json(&message.content) {
            Ok(content) => policy::after(
                message,
                &content,
                message.attempts,
                &Attempt::Lost,
                self.circumstances(&message.app_id),
            ),
            Err(error) => policy::broken(
                message,
                format!("the stored content cannot be read: {error}"),
            ),
        }
    }

    /// How many messages each app with a rate may send now.
    async fn take(
        &self,
        waiting: &[Waiting],
        polite: bool,
        left: &mut Left,
    ) -> HashMap<String, u32> {
        let mut taken = HashMap::new();
        for app_id in turn::apps(waiting) {
            let Some((app, per_second)) = self
                .app(app_id)
                .and_then(|app| Some((Arc::clone(&app), app.send_rate?)))
            else {
                continue;
            };
            let want = turn::want(waiting, app_id, polite);
            let Taken { count, wait } = self.rate.take(&app.app_id, per_second, want).await;
            if !wait.is_zero() {
                metrics::rate_wait(&app.name, wait);
                left.sooner(Instant::now() + wait);
            }
            taken.insert(app_id.to_owned(), count);
        }
        taken
    }

    /// Leases what was picked, and gives back what was taken for messages that somebody else was faster with.
    async fn claim(&self, part: Part) -> Result<queue::Claim, DbErr> {
        let mut claim = self.queue.claim(&part.message_ids).await?;
        for (app_id, count) in part.rated {
            let claimed = claim.messages.iter();
            let claimed = claimed.filter(|message| message.app_id == app_id).count();
            let claimed = u32::try_from(claimed).unwrap_or(u32::MAX);
            self.give_back(&app_id, count.saturating_sub(claimed)).await;
        }
        self.broadcasts.fill(&mut claim.messages).await?;
        Ok(claim)
    }

    async fn give_back(&self, app_id: &str, unused: u32) {
        if let Some(app) = self.app(app_id)
            && unused > 0
        {
            self.rate.give_back(&app.app_id, unused).await;
        }
    }

    /// Whether it is of a broadcast that does not run now: its state's change rings.
    fn is_paused(&self, lane: &Lane) -> bool {
        lane.priority == Priority::Broadcast && self.broadcasts.is_paused(&lane.whose)
    }

    fn app(&self, app_id: &str) -> Option<Arc<App>> {
        self.catalog.current().app(app_id).cloned()
    }

    /// An app's name, by which metrics tell it.
    fn name(&self, app_id: &str) -> String {
        depth::name(&self.catalog, app_id)
    }

    fn circumstances(&self, app_id: &str) -> Circumstances {
        Circumstances {
            on_ambiguous: self
                .app(app_id)
                .map(|app| app.on_ambiguous)
                .unwrap_or_default(),
            now: self.clock.now(),
            jitter: rand::random(),
        }
    }
}

/// What was claimed, with a place for each message.
type Claimed = (queue::Claim, OwnedSemaphorePermit);

/// What one replica has under way.
struct Worker {
    delivery: Arc<Delivery>,
    slots: Arc<Semaphore>,
    surveyor: Surveyor,
    /// The claim from backlogs, one at a time: those with few are taken up beside it.
    claims: JoinSet<Result<Claimed, DbErr>>,
    batches: JoinSet<()>,
    outcomes: Outcomes,
    stop: CancellationToken,
    about: About,
    /// Before this it is not polite to claim from backlogs.
    backlogs_from: Instant,
}

impl Worker {
    /// Claims what is due, no more than can start now, and starts it; with `lost`, what dead workers left is looked for
    /// and taken up first.
    async fn take_up(&mut self, lost: bool) -> Result<Left, DbErr> {
        let limit = self.delivery.window.limit();
        let under_way = CONCURRENCY - self.slots.available_permits();
        let free = limit.saturating_sub(under_way);
        if free == 0 && !lost {
            return Ok(Left {
                come_back: Some(turn::room(limit)),
                upcoming: None,
                lost: None,
            });
        }
        let delivery = Arc::clone(&self.delivery);
        let mut survey = self.surveyor.survey(lost).await?;
        if survey.lost {
            delivery.recover().await?;
            survey = self.surveyor.survey(false).await?;
        }
        let now = delivery.clock.elapsed();
        let mut left = Left {
            come_back: None,
            upcoming: survey.upcoming.map(|wait| Instant::now() + wait),
            lost: survey.lost_in.map(|wait| Instant::now() + wait),
        };
        let mut due = Vec::with_capacity(survey.due.len());
        for (text, _) in survey.due {
            let lane = Lane::parse(&text);
            if lane.as_ref().is_some_and(|lane| delivery.is_paused(lane)) {
                continue;
            }
            let pause = lane.as_ref().map(|lane| delivery.pauses.left(lane, now));
            match pause.flatten() {
                Some(pause) => left.sooner(Instant::now() + pause),
                None => due.push((text, lane)),
            }
        }
        // By chance, for a counter could be in step with the looks that find no room.
        let chosen = turn::choose(due, rand::random::<u16>().into());
        if chosen.lanes.is_empty() {
            return Ok(left);
        }
        let busy = !self.claims.is_empty();
        let wait = Instant::now() < self.backlogs_from;
        let see = |lane: Option<&Lane>| {
            let rate = lane
                .and_then(|lane| delivery.app(&lane.app_id)?.send_rate)
                .map(rate::burst);
            turn::limit(if busy || wait { 0 } else { free }, rate)
        };
        let lanes = chosen.lanes.iter();
        let lanes: Vec<_> = lanes
            .map(|(text, lane)| (text.as_str(), see(lane.as_ref()) as u64))
            .collect();
        let mut found = delivery.queue.due(&lanes).await?;
        let mut waiting: Vec<Waiting> = chosen
            .lanes
            .into_iter()
            .filter_map(|(text, lane)| {
                let due = found.remove(&text)?;
                if let Some(wait) = due.upcoming {
                    left.sooner(Instant::now() + wait);
                }
                let see = see(lane.as_ref());
                Some(Waiting::new(lane.as_ref(), due.message_ids, see))
            })
            .collect();
        // Where there is room for few, it is not always the same lane that gets it.
        waiting.shuffle(&mut rand::rng());
        let polite = self.about.beside(&waiting, now);
        if (busy || wait) && turn::leave_few(&mut waiting) {
            if wait {
                left.sooner(self.backlogs_from);
            } else {
                left.come_back = Some(turn::room(limit));
            }
        }
        let mut rates = delivery.take(&waiting, polite, &mut left).await;
        let picked = turn::pick(waiting, free, limit, polite, &mut rates);
        self.about.add(&picked.few, now);
        for (app_id, unused) in rates {
            delivery.give_back(&app_id, unused).await;
        }
        let (few, rest) = (&picked.few.message_ids, &picked.rest.message_ids);
        if polite && !rest.is_empty() {
            self.backlogs_from = Instant::now() + turn::pause(rest.len());
            left.sooner(self.backlogs_from);
        } else {
            left.come_back = left.come_back.or(picked.come_back);
        }
        if chosen.left_out {
            left.sooner(Instant::now() + if few.is_empty() { OTHERS } else { GATHER });
        }
        if let Some(slots) = self.places(&picked.few) {
            let claim = delivery.claim(picked.few).await?;
            self.start((claim, slots));
        }
        if let Some(slots) = self.places(&picked.rest) {
            let claim = async move { Ok((delivery.claim(picked.rest).await?, slots)) };
            self.claims.spawn(claim.in_current_span());
        }
        Ok(left)
    }

    /// A place for each message; none where there are no messages.
    fn places(&self, part: &Part) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(part.message_ids.len()).ok()?;
        // This task alone takes places, so those counted before are there.
        let places = Arc::clone(&self.slots).try_acquire_many_owned(count).ok()?;
        (count > 0).then_some(places)
    }

    /// Starts what was claimed beside this task.
    fn start_claimed(
        &mut self,
        claimed: Result<Result<Claimed, DbErr>, tokio::task::JoinError>,
    ) -> Result<(), DbErr> {
        match claimed {
            Ok(claimed) => self.start(claimed?),
            Err(error) => report_panic(Err(error)),
        }
        Ok(())
    }

    /// Starts what was claimed, an app at a time.
    fn start(&mut self, (claim, mut places): Claimed) {
        let mut by_app: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        for message in claim.messages {
            by_app
                .entry(message.app_id.clone())
                .or_default()
                .push(message);
        }
        for (app_id, messages) in by_app {
            let Some(slots) = places.split(messages.len()) else {
                continue;
            };
            let app_id = match AppId::try_from(app_id) {
                Ok(app_id) => app_id,
                Err(error) => {
                    let since = self.delivery.clock.elapsed();
                    for message in &messages {
                        let outcome = policy::broken(message, error.to_string());
                        self.outcomes.put(message, &claim.id, outcome, since, None);
                    }
                    continue;
                }
            };
            let span = info_span!("deliver", app.id = %app_id, messages = messages.len());
            if let Some(first) = messages.first() {
                resume_trace(&span, first);
            }
            let batch = Batch {
                delivery: Arc::clone(&self.delivery),
                outcomes: self.outcomes.clone(),
                app_id,
                claim_id: claim.id.clone(),
                stop: self.stop.clone(),
                since: claim.since,
            };
            self.batches
                .spawn(batch.run(messages, slots).instrument(span));
        }
    }
}

/// How many places are free when so many of those in the window are.
fn permits(wanted: Option<usize>, window: &Window) -> u32 {
    let places = CONCURRENCY - window.limit() + wanted.unwrap_or_default();
    u32::try_from(places.min(CONCURRENCY)).unwrap_or(u32::MAX)
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // The lease brings its messages back.
        warn!("a delivery ended early: {error}");
    }
}

#[cfg(test)]
mod tests {
    use proto::auth::v1::auth_service_client::AuthServiceClient;
    use service_kit::client::Peer;
    use test_support::eventually;
    use tokio_util::task::TaskTracker;
    use tonic::transport::Endpoint;
    use wechat::{ClientOptions, OpenId};

    use super::*;
    use crate::{
        account::Accounts,
        broadcast, form,
        message::{Customer, Messages, NewMessage, Recipient, Sender, store::Store},
        receipt, testing,
    };

    #[tokio::test]
    async fn what_is_accepted_is_taken_up_before_the_next_poll() {
        service_kit::telemetry::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let catalog = testing::catalog(&folder);
        let database = testing::database(&testing::sqlite(&folder)).await;
        let clock = database.clock.clone();
        let store = Store {
            database: database.clone(),
        };
        let queue = Queue {
            database: database.clone(),
        };
        let (receipts, _) = Receipts::new(receipt::store::Store {
            database: database.clone(),
        });
        let doorbell = Doorbell::new(None).unwrap();
        // Nobody is there: a message that was taken up goes back with the reason.
        let nobody = "http://127.0.0.1:9";
        let peer = Peer::new(
            vec![Endpoint::from_static(nobody)],
            "unused".to_owned().into(),
        );
        let messages = Messages {
            store: store.clone(),
            forms: form::Store { database },
            accounts: Accounts {
                auth: AuthServiceClient::new(peer.channel()),
            },
            doorbell: doorbell.clone(),
            catalog: catalog.clone(),
            clock: clock.clone(),
            tasks: TaskTracker::new(),
        };
        let broadcasts = Broadcasts::new(
            broadcast::Store {
                database: queue.database.clone(),
            },
            doorbell.clone(),
            catalog.clone(),
            clock.clone(),
        );
        let delivery = Delivery {
            queue,
            broadcasts,
            pauses: Arc::default(),
            window: Arc::default(),
            rate: Rate::new(None, clock.clone()),
            clock,
            catalog,
            wechat: Client::new(ClientOptions::new(nobody.parse().unwrap())).unwrap(),
            tokens: TokenClient::new(&peer),
            doorbell,
            poll: Duration::from_secs(3600),
            readiness: Readiness::default(),
            receipts,
        };
        delivery.readiness.set_ready();
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(delivery.run(stop.clone()));
        let sender = Sender {
            app_id: AppId::try_from("wx0000000000000002").unwrap(),
            caller: "dev".to_owned(),
        };
        // The first may have met the poll at the start, the second can not.
        for _ in 0..2 {
            let new = NewMessage {
                recipient: Recipient::OpenId(OpenId::try_from("oReader").unwrap()),
                request_id: None,
                content: Content::Customer(Customer {
                    kf_account: None,
                    message: wechat::CustomerContent::Text {
                        content: "在吗".to_owned(),
                    },
                }),
                schedule_time: None,
                expire_time: None,
            };
            let accepted = messages.accept(sender.clone(), new).await.unwrap();
            eventually("it is taken up", Duration::from_secs(60), async || {
                let found = store.find(&accepted.message_id).await.unwrap();
                found.is_some_and(|message| !message.errmsg.is_empty())
            })
            .await;
        }
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}
