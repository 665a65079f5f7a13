//! How a WeChat user comes to be bound: a link, mostly shown as a QR code, is opened on their phone; the phone is sent
//! to WeChat for consent with a state of its own; when it comes back, what the link offers is theirs.
//!
//! - A link is a ticket: nobody guesses it, and by itself it tells nothing, not even which account it is for.
//! - It is used up by the binding it makes, and not by a look at it, as chat programs take for their previews.
//! - A state is good once and only in the browser that opened the link: a link of one person cannot be finished by
//!   another's browser, so that nobody is bound to an account whose link they did not open themselves.
//!
//! What may happen once with a link or a state is claimed: whoever holds the claim goes on, and alone writes what it is of.
//! A link's claim is handed over where nothing came of it; of a holder that is gone, either is free after 15 seconds.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use service_kit::{
    CatalogHandle, Clock,
    clock::{millis, since_epoch},
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, info, warn};
use url::Url;
use uuid::Uuid;
use wechat::{AppId, OAuthRequest, OAuthScope};

use super::{Binding, Bindings, Refusal};
use crate::{
    account::{AccountName, Accounts, Epoch},
    claim::{Claim, Once},
    error::Error,
    metrics,
    oauth::{self, OAuth},
    ticket::{Kind, Ticket, Tickets},
};

/// How long a link can be opened and used.
pub const LINK_LIFE: Duration = Duration::from_secs(10 * 60);
/// How long a phone may take to come back from WeChat.
pub const STATE_LIFE: Duration = Duration::from_secs(10 * 60);
/// How long the phone that was bound may undo it.
pub const UNDO: Duration = Duration::from_secs(10 * 60);

const LINK: Kind = Kind {
    name: "bind_link",
    life: LINK_LIFE,
};
/// Whether a phone opened the link: apart from it, since phones write it without its claim.
const SCANNED: Kind = Kind {
    name: "bind_scanned",
    life: LINK_LIFE,
};
const STATE: Kind = Kind {
    name: "bind_state",
    life: STATE_LIFE.saturating_add(UNDO),
};
/// Being bound takes longer than this only where a store hangs: the phone is told so, and it goes on.
const ANSWER: Duration = Duration::from_secs(8);
/// Whoever comes with a state that another request of the same browser is finishing waits this long for the outcome.
const WAIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a link offers, and what became of it.
#[derive(Serialize, Deserialize)]
struct Link {
    app_id: AppId,
    account: AccountName,
    /// The account's password of when it was made; a team's own user has none.
    epoch: Option<Epoch>,
    /// In Unix milliseconds.
    end: u64,
    scanned: String,
    /// The nickname of the user who was bound by it.
    bound: Option<String>,
}

/// What a phone went to WeChat with, and what came of it.
#[derive(Serialize, Deserialize)]
struct State {
    /// The SHA-256 of the browser's cookie.
    browser: String,
    link: String,
    /// In Unix milliseconds: the end of coming back, not of what is told afterwards.
    end: u64,
    outcome: Option<Outcome>,
}

/// A link by which a WeChat user is bound to an account.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) ticket: Ticket,
    pub(crate) end: SystemTime,
}

/// How far a link has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nobody opened it.
    Waiting,
    /// It was opened, and may still be.
    Scanned,
    /// It was used, by a user of this nickname, which may be empty.
    Bound { nickname: String },
    /// It is over, or never was.
    Expired,
}

/// What a phone is told when it comes back from WeChat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Its user is bound.
    Bound {
        account: AccountName,
        nickname: String,
        binding: Uuid,
        /// In Unix milliseconds.
        undo_until: u64,
    },
    /// Its user was bound, and undid it.
    Undone,
    /// Its user did not agree. The link is good for another try.
    Declined,
    /// Nothing came of it.
    Failed(Failure),
}

/// Why a phone's user is not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// The link or the state is over, of another browser, or never was.
    Expired,
    /// Another phone used the link.
    Outrun,
    /// The account has a WeChat user already.
    AccountBound,
    /// The WeChat user stands for another account already.
    UserBound,
    /// It was a snapshot page, which WeChat shows to nobody in particular.
    Snapshot,
    /// WeChat judges the user high risk.
    Blocked,
    /// WeChat does not answer, or does not take the app's settings.
    WeChat,
    /// It is not done yet.
    UnderWay,
    /// A store, or a setting of ours, failed it.
    Away,
}

impl From<oauth::Failure> for Failure {
    fn from(failure: oauth::Failure) -> Self {
        match failure {
            oauth::Failure::SnapshotUser => Self::Snapshot,
            oauth::Failure::CodeInvalid => Self::Expired,
            oauth::Failure::UserBlocked => Self::Blocked,
            oauth::Failure::AccessDenied
            | oauth::Failure::RateLimited
            | oauth::Failure::TemporarilyUnavailable
            | oauth::Failure::ServerError => Self::WeChat,
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The links that are out, and the phones under way with them; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct BindFlow {
    pub(crate) catalog: CatalogHandle,
    pub(crate) accounts: Accounts,
    pub(crate) bindings: Bindings,
    pub(crate) tickets: Tickets,
    pub(crate) oauth: OAuth,
    pub(crate) clock: Clock,
    /// What was begun for a phone is ended here, whether or not the phone waits.
    pub(crate) under_way: TaskTracker,
}

impl BindFlow {
    /// Makes a link that binds whoever opens it to the account. With an epoch it ends when the account's password does.
    pub(crate) async fn offer(
        &self,
        app_id: &AppId,
        account: &AccountName,
        epoch: Option<Epoch>,
    ) -> Result<Offer, Error> {
        let end = self.clock.now() + LINK_LIFE;
        let link = Link {
            app_id: app_id.clone(),
            account: account.clone(),
            epoch,
            end: millis(since_epoch(end)),
            scanned: self
                .tickets
                .put(&SCANNED, &false)
                .await?
                .expose()
                .to_owned(),
            bound: None,
        };
        let ticket = self.tickets.put(&LINK, &link).await?;
        Ok(Offer { ticket, end })
    }

    /// How far a link has come, and when it ends.
    pub(crate) async fn progress(&self, link: &str) -> Result<(Progress, SystemTime), Error> {
        let Some(link) = self.link(link).await? else {
            return Ok((Progress::Expired, self.clock.now()));
        };
        let end = SystemTime::UNIX_EPOCH + Duration::from_millis(link.end);
        let progress = match link.bound {
            Some(nickname) => Progress::Bound { nickname },
            None => match self.tickets.look(&SCANNED, &link.scanned).await? {
                Some(true) => Progress::Scanned,
                Some(false) | None => Progress::Waiting,
            },
        };
        Ok((progress, end))
    }

    /// A phone opened the link: answers where at WeChat it goes on, or `None` when the link is over. `browser` is the
    /// phone's cookie; WeChat sends it back to `redirect_uri`.
    pub(crate) async fn open(
        &self,
        link: &str,
        browser: &str,
        redirect_uri: &Url,
    ) -> Result<Option<Url>, Error> {
        let Some(found) = self.link(link).await?.filter(|link| link.bound.is_none()) else {
            return Ok(None);
        };
        if !self.is_signed_in(&found).await? {
            return Ok(None);
        }
        let state = State {
            browser: digest(browser),
            link: link.to_owned(),
            end: self.clock.unix_millis() + millis(STATE_LIFE),
            outcome: None,
        };
        let state = self.tickets.put(&STATE, &state).await?;
        self.tickets
            .replace(&SCANNED, &found.scanned, &true)
            .await?;
        let request = OAuthRequest {
            app_id: &found.app_id,
            redirect_uri,
            scope: OAuthScope::UserInfo,
            state: state.expose(),
            force_popup: true,
        };
        Ok(Some(wechat::oauth_authorize_url(
            &self.oauth.open_url,
            &request,
        )))
    }

    /// A phone came back from WeChat; without a code its user declined. The same state again gives the same outcome.
    ///
    /// It goes on when the phone hangs up.
    pub(crate) async fn finish(
        &self,
        state: &str,
        browser: &str,
        code: Option<String>,
    ) -> Result<Outcome, Error> {
        let finish = self
            .clone()
            .finish_once(state.to_owned(), browser.to_owned(), code);
        let finish = self.under_way.spawn(finish.instrument(Span::current()));
        match timeout(ANSWER, finish).await {
            Ok(outcome) => outcome?,
            Err(_) => Ok(Failure::UnderWay.into()),
        }
    }

    async fn finish_once(
        self,
        state: String,
        browser: String,
        code: Option<String>,
    ) -> Result<Outcome, Error> {
        let Some(found) = self.state(&state, &browser).await? else {
            return Ok(Failure::Expired.into());
        };
        if let Some(outcome) = found.outcome {
            return Ok(outcome);
        }
        if found.end <= self.clock.unix_millis() {
            return Ok(Failure::Expired.into());
        }
        let once = Once::new("bind_state", &[&state]);
        if !self.oauth.claims.is_first(&once).await? {
            return self.await_outcome(&state, &browser).await;
        }
        let outcome = match code {
            Some(code) => self.commit(&found.link, &code).await,
            None => self.decline(&found.link).await,
        };
        metrics::binding(&outcome);
        let outcome = outcome.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            warn!(error, "a WeChat user could not be bound");
            Failure::Away.into()
        });
        let told = State {
            outcome: Some(outcome.clone()),
            ..found
        };
        // The outcome stands, whether or not it can be told twice.
        self.leave(self.tickets.replace(&STATE, &state, &told).await);
        Ok(outcome)
    }

    /// The phone that was bound takes it back. Answers whether it could.
    pub(crate) async fn undo(&self, state: &str, browser: &str) -> Result<bool, Error> {
        let Some(found) = self.state(state, browser).await? else {
            return Ok(false);
        };
        let now = self.clock.unix_millis();
        let binding = match &found.outcome {
            Some(Outcome::Bound {
                binding,
                undo_until,
                ..
            }) if *undo_until > now => *binding,
            Some(Outcome::Undone) => return Ok(true),
            Some(_) | None => return Ok(false),
        };
        self.bindings.remove(binding).await?;
        let undone = State {
            outcome: Some(Outcome::Undone),
            ..found
        };
        self.tickets.replace(&STATE, state, &undone).await?;
        info!(binding = %binding, "a binding was undone");
        Ok(true)
    }

    async fn await_outcome(&self, state: &str, browser: &str) -> Result<Outcome, Error> {
        let outcome = async {
            loop {
                match self.state(state, browser).await? {
                    None => return Ok(Failure::Expired.into()),
                    Some(State {
                        outcome: Some(outcome),
                        ..
                    }) => return Ok(outcome),
                    Some(_) => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        let waited = timeout(WAIT, outcome).await;
        waited.unwrap_or(Ok(Failure::UnderWay.into()))
    }

    async fn decline(&self, link: &str) -> Result<Outcome, Error> {
        if let Some(link) = self.link(link).await? {
            self.tickets
                .replace(&SCANNED, &link.scanned, &false)
                .await?;
        }
        Ok(Outcome::Declined)
    }

    /// Exchanges the code, and binds whom WeChat names.
    async fn commit(&self, ticket: &str, code: &str) -> Result<Outcome, Error> {
        let Some(link) = self.link(ticket).await? else {
            return Ok(Failure::Expired.into());
        };
        if link.bound.is_some() {
            return Ok(Failure::Outrun.into());
        }
        let app = self.catalog.current().app(link.app_id.as_str()).cloned();
        let app = app.ok_or(Error::AppUnknown)?;
        let exchange = self.oauth.exchange(&app, code, true);
        let person = match timeout(oauth::WECHAT, exchange).await {
            Ok(Ok(person)) => person,
            Ok(Err(oauth::Failure::AccessDenied)) => return self.decline(ticket).await,
            Ok(Err(failure)) => return Ok(Failure::from(failure).into()),
            Err(_) => {
                warn!(app = app.name, "WeChat takes too long for a binding");
                return Ok(Failure::WeChat.into());
            }
        };

        // From here on other phones with the same link are too late.
        let once = Once::new("bind_link", &[ticket]);
        match self.oauth.claims.claim::<(), ()>(&once).await? {
            Claim::Won(_) if link.end > self.clock.unix_millis() => {}
            Claim::Won(_) | Claim::Held | Claim::Answered(()) => {
                return Ok(Failure::Outrun.into());
            }
        }
        let bound = self
            .bindings
            .bind(
                &link.account,
                &app.app_id,
                &person.open_id,
                person.nickname.as_ref(),
            )
            .await;
        let binding = match bound {
            Ok(binding) => binding,
            Err(error) => {
                // Nothing came of the claim on the link: another phone may have it.
                self.leave(self.oauth.claims.hand_over(&once, &(), LINK_LIFE).await);
                return match error {
                    Error::Binding(Refusal::AccountBound) => Ok(Failure::AccountBound.into()),
                    Error::Binding(Refusal::UserBound) => Ok(Failure::UserBound.into()),
                    error => Err(error),
                };
            }
        };
        // Looked at after the row is there: an account that is deleted or gets another password meanwhile either finds the
        // row, or is found gone here.
        match self.is_signed_in(&link).await {
            Ok(true) => {
                let used = self.oauth.claims.answer(&once, &(), LINK_LIFE).await;
                self.leave(used);
                Ok(self.bound(ticket, link, binding).await)
            }
            Ok(false) => {
                self.bindings.remove(binding.id).await?;
                Ok(Failure::Expired.into())
            }
            Err(error) => {
                self.bindings.remove(binding.id).await?;
                Err(error)
            }
        }
    }

    async fn bound(&self, ticket: &str, mut link: Link, binding: Binding) -> Outcome {
        info!(binding = %binding.id, app = %binding.app_id, "a WeChat user was bound to an account");
        link.bound = Some(binding.nickname.clone());
        // The binding stands, whether or not the link can tell.
        self.leave(self.tickets.replace(&LINK, ticket, &link).await);
        Outcome::Bound {
            account: binding.account,
            nickname: binding.nickname,
            binding: binding.id,
            undo_until: self.clock.unix_millis() + millis(UNDO),
        }
    }

    fn leave<T>(&self, left: Result<T, Error>) {
        if let Err(error) = left {
            let error = &error as &dyn std::error::Error;
            warn!(error, "what became of a bind link could not be left there");
        }
    }

    async fn link(&self, ticket: &str) -> Result<Option<Link>, Error> {
        let link: Option<Link> = self.tickets.look(&LINK, ticket).await?;
        let now = self.clock.unix_millis();
        Ok(link.filter(|link| link.end > now))
    }

    async fn state(&self, state: &str, browser: &str) -> Result<Option<State>, Error> {
        let found: Option<State> = self.tickets.look(&STATE, state).await?;
        Ok(found.filter(|found| found.browser == digest(browser)))
    }

    /// Whether the account that a link is for is still there with the password it signed in with. Of a team's own users
    /// nothing is known here, unless their name became an account's.
    async fn is_signed_in(&self, link: &Link) -> Result<bool, Error> {
        match &link.epoch {
            None => Ok(self.accounts.get(&link.account).await?.is_none()),
            Some(epoch) => {
                let account = self.accounts.at_epoch(&link.account, epoch).await?;
                Ok(account.is_some())
            }
        }
    }
}

/// A browser's cookie as a state holds it: comparing digests tells nothing of what they are of.
fn digest(browser: &str) -> String {
    hex::encode(Sha256::digest(browser))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use sandbox::{Authorize, Sandbox};
    use service_kit::{Catalog, Sealer, catalog::Needs, settings::DatabaseUrl, storage, telemetry};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use sea_orm::ConnectionTrait as _;

    use crate::{claim::Claims, migration::Migrator, session::Sessions, user::Users};

    const CATALOG: &str = r#"
[[apps]]
app_id = "wx0000000000000002"
name = "news"
kind = "official_account"
secret = "dev-secret-news"
"#;
    const SECOND: Duration = Duration::from_secs(1);

    /// A flow whose clock a test moves, WeChat, and what keeps both.
    struct World {
        flow: BindFlow,
        wechat: sandbox::State,
        _tasks: JoinSet<()>,
        _folder: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            telemetry::install_tls_provider();
            let accounts = sandbox::Config::dev("http://127.0.0.1:9");
            let listener = test_support::listener().await;
            let sandbox = Sandbox::build(accounts, listener).await.unwrap();
            let open_url: Url = format!("http://{}", sandbox.address()).parse().unwrap();
            let state = sandbox.state();
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { sandbox.run(CancellationToken::new()).await.unwrap() });

            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}/auth.sqlite", folder.path().display());
            let database = storage::database(&DatabaseUrl::new(url)).await.unwrap();
            storage::migrate::<Migrator>(&database).await.unwrap();
            let needs = Needs {
                app_secrets: true,
                ..Needs::default()
            };
            let catalog = Catalog::parse(CATALOG, needs, |_| None).unwrap();
            let catalog = CatalogHandle::fixed(catalog);
            let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(1_000_000_000));
            let sealer = Sealer::ephemeral();
            let under_way = TaskTracker::new();
            let tickets = Tickets::new(None, sealer.clone(), clock.clone());
            let wechat = wechat::ClientOptions::new(open_url.clone());
            let max_age = Duration::from_secs(86_400);
            let oauth = OAuth {
                wechat: wechat::Client::new(wechat).unwrap(),
                open_url,
                public_url: None,
                catalog: catalog.clone(),
                users: Users::new(database.clone()),
                sessions: Sessions::in_memory(max_age, sealer.clone(), clock.clone()),
                tickets: tickets.clone(),
                claims: Claims::new(None, sealer, clock.clone()),
                clock: clock.clone(),
                tasks: under_way.clone(),
            };
            let flow = BindFlow {
                catalog,
                accounts: Accounts::new(
                    database.clone(),
                    None,
                    tickets.clone(),
                    clock.clone(),
                    under_way.clone(),
                ),
                bindings: Bindings::new(database, clock.clone()),
                tickets,
                oauth,
                clock,
                under_way,
            };
            Self {
                flow,
                wechat: state,
                _tasks: tasks,
                _folder: folder,
            }
        }

        /// A link, opened by a phone; answers both and the phone's way to WeChat.
        async fn opened(&self) -> (String, Url) {
            let app_id = "wx0000000000000002".parse().unwrap();
            let account = "wang".parse().unwrap();
            let offer = self.flow.offer(&app_id, &account, None).await.unwrap();
            let link = offer.ticket.expose().to_owned();
            let url = self.open(&link).await.unwrap();
            (link, url)
        }

        async fn open(&self, link: &str) -> Option<Url> {
            let redirect_uri = "http://127.0.0.1:9/callback".parse().unwrap();
            let opened = self.flow.open(link, "phone", &redirect_uri);
            opened.await.unwrap()
        }

        /// The user agrees; answers the state and the outcome.
        async fn finish(&self, url: &Url) -> (String, Outcome) {
            let authorize = Authorize {
                url: url.to_string(),
                ..Authorize::default()
            };
            let authorized = self.wechat.authorize(&authorize).unwrap();
            let callback: Url = authorized.callback_url.unwrap().parse().unwrap();
            let parameter = |name| {
                let mut pairs = callback.query_pairs();
                let found = pairs.find(|(key, _)| key == name);
                found.unwrap().1.into_owned()
            };
            let (state, code) = (parameter("state"), parameter("code"));
            let outcome = self.flow.finish(&state, "phone", Some(code)).await;
            (state, outcome.unwrap())
        }

        fn pass(&self, time: Duration) {
            self.flow.clock.suspend(time);
        }
    }

    #[tokio::test]
    async fn a_link_ends_after_ten_minutes() {
        let world = World::new().await;
        let (link, url) = world.opened().await;
        world.pass(LINK_LIFE - 5 * SECOND);
        assert!(world.open(&link).await.is_some());
        assert_eq!(
            world.flow.progress(&link).await.unwrap().0,
            Progress::Scanned
        );
        world.pass(5 * SECOND);
        assert!(world.open(&link).await.is_none());
        assert_eq!(
            world.flow.progress(&link).await.unwrap().0,
            Progress::Expired
        );
        let (_, outcome) = world.finish(&url).await;
        assert_eq!(outcome, Failure::Expired.into());
    }

    #[tokio::test]
    async fn a_state_ends_ten_minutes_after_its_link_was_opened() {
        let world = World::new().await;
        let (_, url) = world.opened().await;
        world.pass(STATE_LIFE);
        let (_, outcome) = world.finish(&url).await;
        assert_eq!(outcome, Failure::Expired.into());
    }

    #[tokio::test]
    async fn a_store_that_fails_is_told_at_once_and_again() {
        let world = World::new().await;
        let (link, url) = world.opened().await;
        let database = &world.flow.bindings.database;
        let rename = "ALTER TABLE binding RENAME TO gone";
        database.execute_unprepared(rename).await.unwrap();
        let (state, outcome) = world.finish(&url).await;
        assert_eq!(outcome, Failure::Away.into());
        // Nobody waits for what is over, and another scan binds.
        let again = world.flow.finish(&state, "phone", Some("x".to_owned()));
        assert_eq!(again.await.unwrap(), Failure::Away.into());
        let rename = "ALTER TABLE gone RENAME TO binding";
        database.execute_unprepared(rename).await.unwrap();
        let url = world.open(&link).await.unwrap();
        let (_, outcome) = world.finish(&url).await;
        assert!(matches!(outcome, Outcome::Bound { .. }), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_claim_whose_holder_is_gone_heals_after_15_seconds() {
        let world = World::new().await;
        let (link, url) = world.opened().await;
        // Another phone's request took the link, and its process is gone.
        let claims = &world.flow.oauth.claims;
        let gone = Once::new("bind_link", &[&link]);
        assert!(claims.is_first(&gone).await.unwrap());
        let (_, outcome) = world.finish(&url).await;
        assert_eq!(outcome, Failure::Outrun.into());
        world.pass(15 * SECOND);
        let url = world.open(&link).await.unwrap();
        let (_, outcome) = world.finish(&url).await;
        assert!(matches!(outcome, Outcome::Bound { .. }), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_binding_is_undone_within_ten_minutes() {
        for (time, undone) in [(UNDO - 5 * SECOND, true), (UNDO, false)] {
            let world = World::new().await;
            let (_, url) = world.opened().await;
            let (state, outcome) = world.finish(&url).await;
            assert!(matches!(outcome, Outcome::Bound { .. }), "{outcome:?}");
            world.pass(time);
            assert_eq!(world.flow.undo(&state, "phone").await.unwrap(), undone);
            assert!(!world.flow.undo(&state, "another").await.unwrap());
            let account = "wang".parse().unwrap();
            let left = world.flow.bindings.of_account(&account).await.unwrap();
            assert_eq!(left.is_empty(), undone);
        }
    }
}
