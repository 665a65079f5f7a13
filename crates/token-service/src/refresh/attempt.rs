//! One refresh, from the lease to the stored value.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::SecretString;
use service_kit::{
    App,
    clock::{millis, since_epoch},
};
use tracing::{error, info, warn};
use wechat::{AccessToken, Class, ErrCode, Issued, TicketType};

use super::{settings, token_policy};
use crate::{
    broker::Broker,
    credential::{
        Credential, Failure, Key, Kind, Policy, digest,
        failure::{Call, Cause},
        ledger::{Budget, FORCED, FOREIGN, Use, reset},
        slot::Slot,
        store::{self, Begin, Claim, Claimant, Fresh, Lease, Spend, VERIFY_AFTER, Written},
    },
    error::Error,
    metrics, report,
};

/// A call to WeChat ends within this, connecting included.
const CALL: Duration = Duration::from_millis(3_500);
/// Calls end this long after the lease was asked for, so that the write still falls into it.
const CALLS_END: Duration = Duration::from_millis(4_500);
/// A call that has less time than this is not begun.
const CALL_MIN: Duration = Duration::from_millis(500);
/// Between two looks at whether the holder of the lease is done: an event may have been lost.
const LOOK: Duration = Duration::from_millis(200);
/// Whoever waits for others' leases gives up after two of them.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What a refresh is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Nobody holds a valid value.
    Missing,
    /// Its time has come.
    Ahead,
    /// WeChat refused the current value.
    Reported,
    /// An operator wants another.
    Operator,
    /// An operator wants the current one ended.
    Force,
}

impl Goal {
    /// What it may spend of the day's calls.
    pub(super) const fn purpose(self) -> Use {
        match self {
            Self::Missing | Self::Ahead => Use::Ordinary,
            Self::Reported | Self::Operator | Self::Force => Use::Reserved,
        }
    }
}

pub(super) struct Attempt<'a> {
    broker: &'a Broker,
    slot: &'a Slot,
    goal: Goal,
}

/// What WeChat answered, and when it was asked.
struct Answer {
    secret: SecretString,
    expires_in: Duration,
    policy: Policy,
    asked: SystemTime,
}

/// Why there is no answer.
enum Refusal {
    /// WeChat said so, or did not speak.
    WeChat(Call, wechat::Error),
    /// The lease is lost, or would be before the call ends.
    Late,
    /// The store does not answer.
    Store(store::Error),
    /// No forced refresh is left until then.
    ForceSpent(SystemTime),
    /// The day's calls are used up.
    QuotaSpent,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(broker: &'a Broker, slot: &'a Slot, goal: Goal) -> Self {
        Self { broker, slot, goal }
    }

    fn key(&self) -> &Key {
        &self.slot.key
    }

    pub(super) async fn run(&self) -> Result<(), Error> {
        let app = self.broker.app(&self.key().app)?;
        let ticket = match self.key().kind {
            Kind::AccessToken => return self.with_lease(&app, None).await,
            Kind::JsapiTicket => TicketType::Jsapi,
            Kind::WxCardTicket => TicketType::WxCard,
        };
        let token_key = Key::access_token(&app.app_id);
        // Boxed: the token's own refresh is of the same type.
        let token = Box::pin(self.broker.get(&token_key)).await?;
        let using = |token: &Credential| {
            let token = AccessToken::new(secrecy::ExposeSecret::expose_secret(&token.secret));
            Some((token, ticket))
        };
        let result = self.with_lease(&app, using(&token.credential)).await;
        let Some(errcode) = refused_token(&result) else {
            return result;
        };
        // Once, and never in a loop (R10).
        let version = token.credential.version;
        let fresh = Box::pin(report::report(self.broker, &token_key, version, errcode)).await?;
        if fresh.credential.version == version {
            return result;
        }
        self.with_lease(&app, using(&fresh.credential)).await
    }

    /// Takes the lease, or waits for whoever has it.
    async fn with_lease(
        &self,
        app: &App,
        ticket: Option<(AccessToken, TicketType)>,
    ) -> Result<(), Error> {
        let clock = self.broker.clock();
        let begun = clock.elapsed();
        let replaces = self.slot.state().version();
        let mut unreadable = 0;
        loop {
            // Aged from before it was asked for.
            let asked = clock.elapsed();
            let state = self.slot.state();
            let held = state.held.as_ref().filter(|_| self.goal == Goal::Ahead);
            let claimant = Claimant {
                replaces: state.version().max(unreadable),
                floor: held.map(|held| held.credential.times.floor),
                now: clock.now(),
            };
            match self.broker.store().claim(self.key(), claimant).await {
                Ok(Claim::Granted(lease)) => {
                    let deadline = asked + CALLS_END;
                    return self.refresh(app, ticket.as_ref(), lease, deadline).await;
                }
                Ok(Claim::Newer) => {}
                Ok(Claim::Busy(left)) => self.watch_the_holder(left).await,
                Err(error) => return self.without_store(app, ticket.is_some(), error).await,
            }
            match self.look().await {
                Ok(()) => {}
                // An operator may know that nobody can read it any more.
                Err(store::Error::Unreadable { version, .. })
                    if matches!(self.goal, Goal::Operator | Goal::Force) =>
                {
                    unreadable = version;
                }
                Err(error) => return Err(self.store_failed(&error)),
            }
            if self.is_done(replaces) {
                return Ok(());
            }
            // The holder failed: the same would happen to us.
            self.broker.backing_off(self.slot)?;
            if clock.elapsed() > begun + GIVE_UP {
                return Err(self.slot.too_slow());
            }
        }
    }

    /// Whether somebody else has done what there was to do about the version `replaces`.
    fn is_done(&self, replaces: u64) -> bool {
        let now = self.broker.clock().now();
        self.slot.valid().is_some_and(|held| {
            // The same stable token may have come back.
            let same = held.credential.version == replaces;
            held.credential.version > replaces
                || (same && self.goal == Goal::Ahead && now < held.refresh_time())
        })
    }

    async fn watch_the_holder(&self, left: Duration) {
        let mut changes = self.slot.changes();
        changes.mark_unchanged();
        tokio::select! {
            biased;
            _ = changes.changed() => {}
            () = tokio::time::sleep(left.min(LOOK)) => {}
        }
    }

    /// Takes over what is stored.
    async fn look(&self) -> Result<(), store::Error> {
        let record = self.broker.load(self.key()).await?;
        self.slot.absorb(record.unwrap_or_default());
        Ok(())
    }

    async fn reload(&self) -> Result<(), Error> {
        self.look().await.map_err(|error| self.store_failed(&error))
    }

    async fn refresh(
        &self,
        app: &App,
        ticket: Option<&(AccessToken, TicketType)>,
        lease: Lease,
        deadline: Duration,
    ) -> Result<(), Error> {
        match self.fetch(app, ticket, lease, deadline).await {
            Ok(answer) => self.keep(app, lease, answer).await,
            Err(Refusal::WeChat(call, error)) => Err(self.fail(app, lease, call, &error).await),
            Err(Refusal::Late) => {
                warn!(app.id = %app.app_id, "the lease was lost before WeChat was called");
                let _ = self.broker.store().release(self.key(), lease).await;
                Err(self.slot.too_slow())
            }
            Err(Refusal::ForceSpent(until)) => {
                let _ = self.broker.store().release(self.key(), lease).await;
                Err(Error::ForceSpent {
                    app: app.app_id.clone(),
                    retry_after: self.until(until),
                })
            }
            Err(Refusal::QuotaSpent) => {
                let _ = self.broker.store().release(self.key(), lease).await;
                // The store knew more of the ledger than this replica.
                let _ = self.reload().await;
                Err(Error::QuotaSpent {
                    app: app.app_id.clone(),
                    retry_after: self.until(reset(self.broker.clock().now())),
                })
            }
            Err(Refusal::Store(error)) => Err(self.store_failed(&error)),
        }
    }

    fn until(&self, moment: SystemTime) -> Duration {
        let left = moment.duration_since(self.broker.clock().now());
        left.unwrap_or_default()
    }

    /// Calls WeChat, once; a stable token that was reported twice when the same comes back.
    async fn fetch(
        &self,
        app: &App,
        ticket: Option<&(AccessToken, TicketType)>,
        lease: Lease,
        deadline: Duration,
    ) -> Result<Answer, Refusal> {
        if let Some((token, kind)) = ticket {
            self.begin(app, lease, None).await?;
            let call = self.broker.upstream().ticket(token, *kind);
            return self
                .call(Call::Ticket, Policy::Ticket, deadline, call)
                .await
                .map(|(issued, asked)| {
                    Answer::new(
                        issued.value.expose(),
                        issued.expires_in,
                        Policy::Ticket,
                        asked,
                    )
                });
        }
        let force = match self.goal {
            Goal::Force if token_policy(app) == Policy::Stable => Some(Use::Reserved),
            _ => None,
        };
        self.begin(app, lease, force).await?;
        let answer = self.token(app, force.is_some(), deadline).await?;
        let same = self
            .slot
            .state()
            .held
            .is_some_and(|held| held.credential.digest() == digest(&answer.secret));
        if self.goal != Goal::Reported || answer.policy != Policy::Stable || !same {
            return Ok(answer);
        }
        self.begin(app, lease, Some(Use::Ordinary)).await?;
        self.token(app, true, deadline).await
    }

    async fn token(&self, app: &App, force: bool, deadline: Duration) -> Result<Answer, Refusal> {
        // A catalog without the secret is refused when the service starts.
        let Some(secret) = &app.secret else {
            return Err(Refusal::Late);
        };
        let upstream = self.broker.upstream();
        let policy = token_policy(app);
        let (call, asking) = match policy {
            Policy::Classic | Policy::Ticket => {
                (Call::Token, upstream.access_token(&app.app_id, secret))
            }
            Policy::Stable => (
                Call::StableToken,
                upstream.stable_access_token(&app.app_id, secret, force),
            ),
        };
        let (issued, asked) = self.call(call, policy, deadline, asking).await?;
        Ok(Answer::new(
            issued.value.expose(),
            issued.expires_in,
            policy,
            asked,
        ))
    }

    /// Enters the call that comes next in the ledger; `forced` says what it may spend of the forced refreshes.
    async fn begin(&self, app: &App, lease: Lease, forced: Option<Use>) -> Result<(), Refusal> {
        let now = self.broker.clock().now();
        let budget = Budget::of(super::policy(app, self.key().kind));
        let spend = Spend {
            calls: budget.limit(self.goal.purpose()),
            forced: forced.map(|purpose| FORCED.limit(purpose)),
        };
        let begun = self.broker.store().begin(self.key(), lease, spend, now);
        match begun.await {
            Ok(Begin::Granted(ledger)) => {
                self.alarm(app, "calls", budget, ledger.calls);
                if forced.is_some() {
                    self.alarm(app, "forced refreshes", FORCED, ledger.forced);
                }
                Ok(())
            }
            Ok(Begin::Lost) => Err(Refusal::Late),
            Ok(Begin::NotForced(until)) => Err(Refusal::ForceSpent(until)),
            Ok(Begin::Spent) => Err(Refusal::QuotaSpent),
            Err(error) => Err(Refusal::Store(error)),
        }
    }

    /// Says that a share of a budget is reached. The store counts for all replicas, so that one of them says it, once a day.
    fn alarm(&self, app: &App, quota: &'static str, budget: Budget, number: u32) {
        let Some(percent) = budget.alarm(number) else {
            return;
        };
        let kind = self.key().kind;
        metrics::quota_alarm(&app.name, kind, quota, percent);
        warn!(
            app.id = %app.app_id,
            app.name = app.name,
            credential = kind.as_str(),
            quota,
            used = number,
            budget = budget.calls,
            "{percent} % of the day's {quota} are used"
        );
    }

    /// Awaits WeChat's answer within the lease.
    async fn call<T>(
        &self,
        call: Call,
        policy: Policy,
        deadline: Duration,
        answer: impl Future<Output = Result<Issued<T>, wechat::Error>>,
    ) -> Result<(Issued<T>, SystemTime), Refusal> {
        let clock = self.broker.clock();
        // Right before it starts: a pause since the lease was asked for counts (R15).
        let left = deadline.saturating_sub(clock.elapsed()).min(CALL);
        if left < CALL_MIN {
            return Err(Refusal::Late);
        }
        let asked = clock.now();
        let endpoint = call.endpoint();
        let answer = tokio::time::timeout(left, answer)
            .await
            .unwrap_or(Err(wechat::Error::Timeout { endpoint }));
        match answer {
            Ok(issued) if !issued.expires_in.is_zero() => Ok((issued, asked)),
            Ok(_) => Err(Refusal::WeChat(
                call,
                wechat::Error::Garbage {
                    endpoint,
                    status: 200,
                    problem: format!("a {} credential that is already expired", policy.as_str()),
                },
            )),
            Err(error) => Err(Refusal::WeChat(call, error)),
        }
    }

    /// Stores the answer; what cannot be stored is held all the same, for WeChat has made it the current one.
    async fn keep(&self, app: &App, lease: Lease, answer: Answer) -> Result<(), Error> {
        let spread = self.broker.random().fraction();
        let state = self.slot.state();
        let before = state.version();
        let fresh = Fresh {
            times: answer.policy.plan(answer.asked, answer.expires_in, spread),
            secret: answer.secret,
            policy: answer.policy,
            highest: before,
            doubt: state.verify,
            reported: self.goal == Goal::Reported,
        };
        let kind = self.key().kind;
        let now = self.broker.clock().now();
        let written = self
            .broker
            .store()
            .write(self.key(), lease, &fresh, now)
            .await;
        let outcome = match &written {
            Ok(Written::Stored(version)) if *version == before => metrics::Refresh::Unchanged,
            Ok(Written::Stored(_)) => metrics::Refresh::Stored,
            Ok(Written::Superseded) => metrics::Refresh::Superseded,
            Err(_) => metrics::Refresh::NotStored,
        };
        metrics::refreshed(&app.name, kind, outcome);
        match written {
            Ok(Written::Stored(version)) => {
                info!(
                    app.id = %app.app_id,
                    app.name = app.name,
                    credential = kind.as_str(),
                    version,
                    expires_in_s = answer.expires_in.as_secs(),
                    "refreshed"
                );
                // The event would bring it, too; who asked is not to wait for that.
                if self.reload().await.is_err() {
                    let verify = fresh.verify(lease);
                    self.slot.hold(fresh.with_version(version), verify);
                }
                if self.goal == Goal::Reported && version > before {
                    self.tell_of_others(app);
                }
                Ok(())
            }
            Ok(Written::Superseded) => {
                warn!(app.id = %app.app_id, credential = kind.as_str(), "superseded: another replica refreshed meanwhile");
                self.reload().await
            }
            Err(error) => {
                error!(app.id = %app.app_id, credential = kind.as_str(), error = %error, "refreshed, but held in memory alone");
                let verify = fresh.verify(lease);
                // Whoever had the lease later writes a newer version.
                self.hold_unstored(fresh, lease.fence, verify).await;
                Ok(())
            }
        }
    }

    /// A token died before its time (R14).
    fn tell_of_others(&self, app: &App) {
        let rejected = self
            .slot
            .state()
            .ledger
            .on(self.broker.clock().now())
            .rejected;
        if rejected >= FOREIGN {
            error!(
                app.id = %app.app_id,
                app.name = app.name,
                foreign_refreshes_today = rejected,
                "somebody else refreshes this app: WeChat refused its tokens again and again before their time. \
                 Find who has its secret, or reset it"
            );
        }
    }

    /// Holds what is not stored, under `version` if it is none that is held.
    async fn hold_unstored(&self, fresh: Fresh, version: u64, verify: Option<SystemTime>) {
        let held = self.slot.state().held;
        let same = held.filter(|held| held.credential.digest() == digest(&fresh.secret));
        let version = same.map_or(version, |held| held.credential.version);
        let credential = fresh.with_version(version);
        self.slot.hold(credential.clone(), verify);
        let verify = self.slot.state().verify;
        // The store may have come back just before there was something to put back.
        let restored = self.broker.store().restore(self.key(), &credential, verify);
        let _ = restored.await;
    }

    async fn fail(&self, app: &App, lease: Lease, call: Call, error: &wechat::Error) -> Error {
        let failure = self.failure(app, call, error);
        metrics::refreshed(&app.name, self.key().kind, metrics::Refresh::Failed);
        let ambiguous = error.is_ambiguous();
        let told = self
            .broker
            .store()
            .fail(self.key(), lease, &failure, ambiguous)
            .await;
        if let Err(error) = told {
            // The lease ends by itself.
            warn!(app.id = %app.app_id, error = %error, "the other replicas do not know of the failure");
        }
        let doubtful = ambiguous || lease.takeover;
        let policy = super::policy(app, self.key().kind);
        let doubtful = doubtful && policy.ends_by_a_lost_call();
        let verify = doubtful.then(|| failure.at + VERIFY_AFTER);
        self.slot.note(failure.clone(), verify);
        if failure.cause.is_exhaustion() {
            error!(app.id = %app.app_id, app.name = app.name, "WeChat's quota is used up: no call before it begins anew");
        }
        Error::Failed {
            app: app.app_id.clone(),
            failure: Arc::new(failure),
        }
    }

    fn failure(&self, app: &App, call: Call, error: &wechat::Error) -> Failure {
        let settings = settings(app);
        let before = self.slot.state().failure;
        let before = before.filter(|before| before.settings == settings);
        Failure::new(
            Cause::of(call, error),
            settings,
            before.as_deref(),
            self.broker.clock().now(),
            self.broker.random().fraction(),
        )
    }

    /// While the store is away, an app in `stable` mode goes on: asking in normal mode harms nobody. A classic token
    /// would be ended by every other replica that does the same (R11).
    async fn without_store(
        &self,
        app: &App,
        ticket: bool,
        error: store::Error,
    ) -> Result<(), Error> {
        let gone_on = !ticket && token_policy(app) == Policy::Stable && self.goal != Goal::Force;
        if !gone_on {
            return Err(self.store_failed(&error));
        }
        warn!(app.id = %app.app_id, error = %error, "refreshing without the store");
        let deadline = self.broker.clock().elapsed() + CALLS_END;
        let now = self.broker.clock().now();
        let highest = self.slot.state().version();
        // Whatever another replica stores from now on is newer.
        let version = highest.max(millis(since_epoch(now))) + 1;
        self.slot.enter_call(now);
        match self.token(app, false, deadline).await {
            Ok(answer) => {
                let spread = self.broker.random().fraction();
                metrics::refreshed(&app.name, self.key().kind, metrics::Refresh::NotStored);
                let fresh = Fresh {
                    times: answer.policy.plan(answer.asked, answer.expires_in, spread),
                    secret: answer.secret,
                    policy: answer.policy,
                    highest,
                    doubt: None,
                    reported: false,
                };
                self.hold_unstored(fresh, version, None).await;
                Ok(())
            }
            Err(Refusal::WeChat(call, refused)) => {
                let failure = self.failure(app, call, &refused);
                self.slot.note(failure.clone(), None);
                Err(Error::Failed {
                    app: app.app_id.clone(),
                    failure: Arc::new(failure),
                })
            }
            Err(
                Refusal::Late | Refusal::Store(_) | Refusal::ForceSpent(_) | Refusal::QuotaSpent,
            ) => Err(self.store_failed(&error)),
        }
    }

    fn store_failed(&self, error: &store::Error) -> Error {
        warn!(app.id = %self.key().app, credential = self.key().kind.as_str(), error = %error, "the store is of no use");
        Error::StoreUnavailable
    }
}

impl Answer {
    fn new(secret: &str, expires_in: Duration, policy: Policy, asked: SystemTime) -> Self {
        Self {
            secret: secret.into(),
            expires_in,
            policy,
            asked,
        }
    }
}

impl Fresh {
    fn with_version(self, version: u64) -> Credential {
        Credential {
            secret: self.secret,
            version,
            policy: self.policy,
            times: self.times,
        }
    }
}

/// The code with which WeChat refused the access_token of a ticket's refresh.
fn refused_token(result: &Result<(), Error>) -> Option<ErrCode> {
    let Err(Error::Failed { failure, .. }) = result else {
        return None;
    };
    let refusal = failure.cause.refusal()?;
    (refusal.class() == Class::Token).then_some(refusal.errcode)
}
