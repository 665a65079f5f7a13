//! Sessions: what a user's device holds after a login, and how long it proves who the user is.
//!
//! A session token is 256 random bits; the store knows only its SHA-256, which is also the session's id. A session lives
//! [`IDLE`] from its last use and never past the absolute maximum from its start. It ends before when it is revoked:
//! itself, or with all of its user or its app ([`epoch`]). Beside sessions lies WeChat's `session_key` of each user,
//! sealed: the latest one only, since WeChat knows but one.

mod epoch;
mod store;

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng as _;
use redis::{Client, aio::ConnectionManager};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    Clock, Sealer,
    clock::{millis, since_epoch},
    seal::OpenError,
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wechat::{AppId, OpenId, SessionKey, UnionId};

pub use self::epoch::Epoch;
use self::{
    epoch::{Epochs, Subject},
    store::{Indexed, Lives, Store},
};
use crate::{
    error::Error,
    metrics,
    user::{User, UserId},
};

/// A session that is not used for this long ends.
pub const IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A session ends this long after it began, however much it is used, where `WXHUB_SESSION_MAX_AGE` does not say otherwise.
pub const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a client's description that are kept.
const CLIENT_MAX: usize = 100;

/// Proves a session. It never prints.
#[derive(Clone)]
pub struct Token(SecretString);

impl Token {
    /// Bytes of the longest text that is looked at.
    pub const MAX: usize = 128;

    /// Takes a token as a client shows it. Whether a session belongs to it is for [`Sessions`] to say.
    ///
    /// # Errors
    /// When it is empty; [`Error::SessionInvalid`] when it is too long to be one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.len() {
            0 => Err(Error::field("session_token", "is missing")),
            1..=Self::MAX => Ok(Self(SecretString::from(text))),
            _ => Err(Error::SessionInvalid),
        }
    }

    fn random() -> Self {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(SecretString::from(BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text itself, for the user's device and nobody else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What the store knows it by.
    fn id(&self) -> SessionId {
        SessionId(digest(self.expose()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// Names a session: the SHA-256 of its token, as 43 characters of base64url. It proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(String);

/// A text that is no session id.
#[derive(Debug, thiserror::Error)]
#[error("must be a session_id of ListUserSessions")]
pub struct InvalidSessionId;

impl SessionId {
    fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text);
        let is_digest = bytes.is_ok_and(|bytes| bytes.len() == 32);
        is_digest
            .then(|| Self(text.to_owned()))
            .ok_or(InvalidSessionId)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session of a user with an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// wxhub's id of the user.
    pub user_id: UserId,
    /// The app.
    pub app_id: AppId,
    /// WeChat's id of the user within the app.
    pub open_id: OpenId,
    /// WeChat's id of the user across apps, as far as it was known when the session began.
    pub union_id: Option<UnionId>,
    /// When it began, in Unix milliseconds.
    pub created: u64,
    /// What it was opened with: the caller's name, or the browser's or mini program's own description.
    pub client: String,
    /// Which revocations came before it.
    pub(crate) epoch: Epoch,
}

/// A session as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Names it.
    pub id: SessionId,
    /// The session.
    pub session: Session,
    /// When it was last used.
    pub last_seen: SystemTime,
    /// When it ends unless it is used before.
    pub expire_time: SystemTime,
}

/// Where a page of a user's sessions begins: after this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Indexed);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.created, self.0.id)
    }
}

impl FromStr for Cursor {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        let (created, id) = text.split_once(':').ok_or(InvalidSessionId)?;
        Ok(Self(Indexed {
            created: created.parse().map_err(|_| InvalidSessionId)?,
            id: id.parse()?,
        }))
    }
}

/// Every session, and every user's `session_key`.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    epochs: Epochs,
    lives: Lives,
    sealer: Sealer,
    clock: Clock,
}

impl Sessions {
    /// Sessions in Redis, shared by all replicas; they end after `max_age` at the latest. `client` is to hear of
    /// revocations by.
    pub fn in_redis(
        redis: ConnectionManager,
        client: Client,
        max_age: Duration,
        sealer: Sealer,
        clock: Clock,
    ) -> Self {
        Self::new(Store::redis(redis, client), max_age, sealer, clock)
    }

    /// Sessions that end with the process, and after `max_age` at the latest.
    pub fn in_memory(max_age: Duration, sealer: Sealer, clock: Clock) -> Self {
        Self::new(Store::memory(), max_age, sealer, clock)
    }

    fn new(store: Store, max_age: Duration, sealer: Sealer, clock: Clock) -> Self {
        Self {
            epochs: Epochs::new(store.clone(), clock.clone(), max_age),
            store,
            lives: Lives {
                idle: IDLE.min(max_age),
                longest: max_age,
            },
            sealer,
            clock,
        }
    }

    /// How long a session lives at most.
    pub fn longest(&self) -> Duration {
        self.lives.longest
    }

    /// Follows what other replicas revoke, until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        self.epochs.run(stop).await;
    }

    /// The epoch of a login that begins now. It is asked for before the user is looked up or made: who is revoked or
    /// deleted after that gets no session that lives.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn epoch(&self) -> Result<Epoch, Error> {
        self.epochs.current().await
    }

    /// Opens a session for a login that began at `epoch`; answers its token and when it ends unless it is used.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open(
        &self,
        epoch: Epoch,
        user: &User,
        client: &str,
    ) -> Result<(Token, SystemTime), Error> {
        let token = Token::random();
        let now = self.clock.now();
        let session = Session {
            user_id: user.user_id,
            app_id: user.app_id.clone(),
            open_id: user.open_id.clone(),
            union_id: user.union_id.clone(),
            created: millis(since_epoch(now)),
            client: shorten(client).to_owned(),
            epoch,
        };
        self.store.insert(&token.id(), &session, self.lives).await?;
        Ok((token, now + self.lives.idle))
    }

    /// Whose session it is, if it is with an app that `open_to` admits; it lives on. Answers when it ends unless it is
    /// used again.
    ///
    /// One round trip to the store, and none to the database.
    ///
    /// # Errors
    /// [`Error::SessionInvalid`] when there is none or it is over; when the store does not answer.
    pub async fn verify(
        &self,
        token: &Token,
        open_to: impl FnOnce(&AppId) -> bool,
    ) -> Result<(Session, SystemTime), Error> {
        let outcome = self.check(token, open_to).await;
        metrics::verification(&outcome);
        outcome
    }

    async fn check(
        &self,
        token: &Token,
        open_to: impl FnOnce(&AppId) -> bool,
    ) -> Result<(Session, SystemTime), Error> {
        self.epochs.refresh().await?;
        let id = token.id();
        let now = self.clock.now();
        let unix = millis(since_epoch(now));
        let found = self.store.touch(&id, self.lives.idle, unix).await?;
        let session = found.ok_or(Error::SessionInvalid)?;
        let end = self.end(&session);
        if end <= now || self.epochs.ended(&session) {
            // What is left behind ends by itself, and is refused until then.
            if let Err(error) = self.store.remove(session.user_id, &[id]).await {
                let error = &error as &dyn std::error::Error;
                warn!(error, "a session that is over could not be removed");
            }
            return Err(Error::SessionInvalid);
        }
        if !open_to(&session.app_id) {
            return Err(Error::SessionInvalid);
        }
        Ok((session, end.min(now + self.lives.idle)))
    }

    /// When it ends however much it is used.
    fn end(&self, session: &Session) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(session.created) + self.lives.longest
    }

    /// Ends the session if it is with an app that `open_to` admits. One that is not, or that is over, is no error.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke(
        &self,
        token: &Token,
        open_to: impl FnOnce(&AppId) -> bool,
    ) -> Result<(), Error> {
        self.revoke_by_id(token.id(), open_to).await
    }

    /// Ends the session of this id, as [`Sessions::revoke`] does.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_by_id(
        &self,
        id: SessionId,
        open_to: impl FnOnce(&AppId) -> bool,
    ) -> Result<(), Error> {
        let ids = [id];
        let found = self.store.peek(&ids, self.clock.unix_millis()).await?;
        match found.into_iter().next().flatten() {
            Some((session, _)) if open_to(&session.app_id) => {
                self.store.remove(session.user_id, &ids).await
            }
            _ => Ok(()),
        }
    }

    /// Ends every session that the user has by now: at once here, within a second on every replica. A login that began
    /// before opens none that lives.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_user(&self, user_id: UserId) -> Result<(), Error> {
        self.epochs.revoke(Subject::User(user_id)).await
    }

    /// Ends every session that the app's users have by now, as [`Sessions::revoke_user`] does.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revoke_app(&self, app_id: &AppId) -> Result<(), Error> {
        self.epochs.revoke(Subject::App(app_id.clone())).await
    }

    /// The user's sessions that live, the latest first: those after a cursor, `size` at most. Answers the next page's
    /// cursor, if there may be one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(
        &self,
        user_id: UserId,
        after: Option<&Cursor>,
        size: usize,
    ) -> Result<(Vec<Listed>, Option<Cursor>), Error> {
        self.epochs.refresh().await?;
        let mut rest = self.store.index(user_id, self.clock.unix_millis()).await?;
        rest.retain(|indexed| after.is_none_or(|after| *indexed < after.0));
        let mut page = Vec::new();
        while page.len() < size && !rest.is_empty() {
            let few = rest.len().min(size - page.len());
            let ids: Vec<_> = rest.drain(..few).map(|indexed| indexed.id).collect();
            let now = self.clock.now();
            let found = self.store.peek(&ids, millis(since_epoch(now))).await?;
            let mut over = Vec::new();
            for (id, found) in ids.into_iter().zip(found) {
                let listed = found.and_then(|(session, left)| self.listed(&id, session, left, now));
                match listed {
                    Some(listed) => page.push(listed),
                    None => over.push(id),
                }
            }
            self.store.remove(user_id, &over).await?;
        }
        let last = page.last().filter(|_| !rest.is_empty()).map(|last| {
            Cursor(Indexed {
                created: last.session.created,
                id: last.id.clone(),
            })
        });
        Ok((page, last))
    }

    /// The session as it is listed, unless it is over.
    fn listed(
        &self,
        id: &SessionId,
        session: Session,
        left: Duration,
        now: SystemTime,
    ) -> Option<Listed> {
        let end = self.end(&session);
        if end <= now || self.epochs.ended(&session) {
            return None;
        }
        // Each use lets it live on for the same time.
        let used = self.lives.idle.saturating_sub(left);
        let began = UNIX_EPOCH + Duration::from_millis(session.created);
        Some(Listed {
            id: id.clone(),
            last_seen: (now - used).max(began),
            expire_time: end.min(now + left),
            session,
        })
    }

    /// Keeps the `session_key` that WeChat gave for the user, in place of the one before.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn keep_session_key(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
        session_key: &SessionKey,
    ) -> Result<(), Error> {
        let (user, context) = session_key_of(app_id, open_id);
        let sealed = self.sealer.seal(&context, session_key.expose().as_bytes());
        let now = self.clock.unix_millis();
        self.store
            .put_session_key(&user, &sealed, self.lives.longest, now)
            .await
    }

    /// Keeps `new` in place of `old`, unless a login has put another in its place by now.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn replace_session_key(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
        old: &SessionKey,
        new: &SessionKey,
    ) -> Result<(), Error> {
        let (user, context) = session_key_of(app_id, open_id);
        let fresh = self.sealer.seal(&context, new.expose().as_bytes());
        loop {
            let now = self.clock.unix_millis();
            let Some(sealed) = self.store.session_key(&user, now).await? else {
                return Ok(());
            };
            let swapped = self.unseal(&context, &sealed)?.as_ref() != Some(old)
                || self
                    .store
                    .swap_session_key(&user, &sealed, &fresh, self.lives.longest, now)
                    .await?;
            if swapped {
                return Ok(());
            }
        }
    }

    /// Forgets the user's `session_key`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn forget_session_key(&self, app_id: &AppId, open_id: &OpenId) -> Result<(), Error> {
        let (user, _) = session_key_of(app_id, open_id);
        self.store.remove_session_key(&user).await
    }

    /// The latest `session_key` of the user, if there is one that can be read. It never leaves the service.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn session_key(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
    ) -> Result<Option<SessionKey>, Error> {
        let (user, context) = session_key_of(app_id, open_id);
        let now = self.clock.unix_millis();
        let Some(sealed) = self.store.session_key(&user, now).await? else {
            return Ok(None);
        };
        self.unseal(&context, &sealed)
    }

    /// None when the key that sealed it is gone.
    fn unseal(&self, context: &str, sealed: &str) -> Result<Option<SessionKey>, Error> {
        match self.sealer.open_text(context, sealed) {
            Ok(text) => Ok(Some(SessionKey::new(text))),
            // As good as forgotten: the next login brings a new one.
            Err(OpenError::UnknownKey) => {
                warn!("WXHUB_MASTER_KEY does not hold the key that sealed a session_key");
                Ok(None)
            }
            Err(OpenError::Malformed | OpenError::Forged) => Err(Error::Stored("session_key")),
        }
    }
}

/// What the store knows the user of a `session_key` by, and what it is sealed for.
fn session_key_of(app_id: &AppId, open_id: &OpenId) -> (String, String) {
    let user = format!("{app_id}:{}", digest(open_id.as_str()));
    let context = format!("session_key:{app_id}:{open_id}");
    (user, context)
}

/// SHA-256 as 43 characters.
fn digest(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()))
}

fn shorten(client: &str) -> &str {
    let end = client.floor_char_boundary(CLIENT_MAX);
    client.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const OLD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn user() -> User {
        User {
            user_id: "0192f0c1-2345-7000-8000-000000000001".parse().unwrap(),
            app_id: "wx0000000000000001".parse().unwrap(),
            open_id: "oABC".parse().unwrap(),
            union_id: None,
            nickname: None,
            create_time: UNIX_EPOCH,
            last_login_time: UNIX_EPOCH,
        }
    }

    fn sessions() -> Sessions {
        let clock = Clock::tokio(UNIX_EPOCH + 1_000 * DAY);
        Sessions::in_memory(MAX_AGE, Sealer::ephemeral(), clock)
    }

    async fn is_valid(sessions: &Sessions, token: &Token) -> bool {
        match sessions.verify(token, |_| true).await {
            Ok(_) => true,
            Err(Error::SessionInvalid) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn open(sessions: &Sessions) -> (Token, SystemTime) {
        let epoch = sessions.epoch().await.unwrap();
        sessions.open(epoch, &user(), "test").await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_lives_seven_days_from_its_last_use() {
        let sessions = sessions();
        let (token, expires) = open(&sessions).await;
        assert_eq!(expires, UNIX_EPOCH + 1_007 * DAY);
        tokio::time::advance(6 * DAY).await;
        let (session, expires) = sessions.verify(&token, |_| true).await.unwrap();
        assert_eq!(session.open_id.as_str(), "oABC");
        assert_eq!(expires, UNIX_EPOCH + 1_013 * DAY);
        tokio::time::advance(6 * DAY).await;
        assert!(is_valid(&sessions, &token).await);
        tokio::time::advance(7 * DAY).await;
        assert!(!is_valid(&sessions, &token).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_in_constant_use_ends_after_thirty_days() {
        let sessions = sessions();
        let (token, _) = open(&sessions).await;
        for _ in 0..29 {
            tokio::time::advance(DAY).await;
            assert!(is_valid(&sessions, &token).await);
        }
        let (_, expires) = sessions.verify(&token, |_| true).await.unwrap();
        assert_eq!(expires, UNIX_EPOCH + 1_030 * DAY);
        tokio::time::advance(DAY).await;
        assert!(!is_valid(&sessions, &token).await);
    }

    #[tokio::test]
    async fn only_who_may_ends_a_session() {
        let sessions = sessions();
        let (token, _) = open(&sessions).await;
        sessions.revoke(&token, |_| false).await.unwrap();
        assert!(is_valid(&sessions, &token).await);
        for _ in 0..2 {
            sessions.revoke(&token, |_| true).await.unwrap();
            assert!(!is_valid(&sessions, &token).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_absolute_maximum_may_be_shorter_than_a_week() {
        let clock = Clock::tokio(UNIX_EPOCH + 1_000 * DAY);
        let hour = Duration::from_secs(3_600);
        let sessions = Sessions::in_memory(hour, Sealer::ephemeral(), clock);
        let (token, expires) = open(&sessions).await;
        assert_eq!(expires, UNIX_EPOCH + 1_000 * DAY + hour);
        tokio::time::advance(hour / 2).await;
        let (_, expires) = sessions.verify(&token, |_| true).await.unwrap();
        assert_eq!(expires, UNIX_EPOCH + 1_000 * DAY + hour);
        tokio::time::advance(hour / 2).await;
        assert!(!is_valid(&sessions, &token).await);
    }

    #[tokio::test]
    async fn revoking_all_ends_what_is_open_and_nothing_that_comes_after() {
        let sessions = sessions();
        for revoke in ["user", "app"] {
            let (one, _) = open(&sessions).await;
            let (other, _) = open(&sessions).await;
            let under_way = sessions.epoch().await.unwrap();
            match revoke {
                "user" => sessions.revoke_user(user().user_id).await.unwrap(),
                _ => sessions.revoke_app(&user().app_id).await.unwrap(),
            }
            let (late, _) = sessions.open(under_way, &user(), "").await.unwrap();
            let (new, _) = open(&sessions).await;
            for token in [&one, &other, &late] {
                assert!(!is_valid(&sessions, token).await);
            }
            assert!(is_valid(&sessions, &new).await);
        }
        let stranger = "0192f0c1-2345-7000-8000-000000000002".parse().unwrap();
        let (token, _) = open(&sessions).await;
        sessions.revoke_user(stranger).await.unwrap();
        let other_app = "wx0000000000000002".parse().unwrap();
        sessions.revoke_app(&other_app).await.unwrap();
        assert!(is_valid(&sessions, &token).await);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_listed_with_their_last_use_page_by_page() {
        let sessions = sessions();
        let mut tokens = Vec::new();
        for _ in 0..5 {
            tokens.push(open(&sessions).await.0);
            tokio::time::advance(DAY).await;
        }
        // The first is over by itself, the second is revoked, the third was used just now.
        tokio::time::advance(2 * DAY).await;
        sessions.revoke(&tokens[1], |_| true).await.unwrap();
        assert!(is_valid(&sessions, &tokens[2]).await);

        let user_id = user().user_id;
        let (all, next) = sessions.list(user_id, None, 100).await.unwrap();
        assert_eq!(next, None);
        let ids: Vec<_> = all.iter().map(|listed| listed.id.clone()).collect();
        let expected = [&tokens[4], &tokens[3], &tokens[2]].map(Token::id);
        assert_eq!(ids, expected);
        let days = |time: SystemTime| since_epoch(time).as_secs() / 86_400;
        let days = all.iter().map(|listed| {
            let began = listed.session.created / 86_400_000;
            (began, days(listed.last_seen), days(listed.expire_time))
        });
        let days: Vec<_> = days.collect();
        assert_eq!(
            days,
            [
                (1_004, 1_004, 1_011),
                (1_003, 1_003, 1_010),
                (1_002, 1_007, 1_014)
            ]
        );

        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = sessions.list(user_id, after.as_ref(), 1).await.unwrap();
            paged.extend(page);
            let Some(next) = next else { break };
            after = Some(next.to_string().parse().unwrap());
        }
        assert_eq!(paged, all);

        sessions
            .revoke_by_id(ids[0].clone(), |_| true)
            .await
            .unwrap();
        assert!(!is_valid(&sessions, &tokens[4]).await);
        sessions.revoke_user(user_id).await.unwrap();
        let (none, _) = sessions.list(user_id, None, 100).await.unwrap();
        assert_eq!(none, []);
    }

    #[tokio::test]
    async fn a_session_key_moves_to_the_new_master_key_at_the_next_login() {
        let store = Store::memory();
        let [old, both, new] = [OLD.to_owned(), format!("{NEW},{OLD}"), NEW.to_owned()];
        let [old, both, new] = [old, both, new].map(|keys| {
            let sealer = Sealer::from_keys(&SecretString::from(keys)).unwrap();
            Sessions::new(store.clone(), MAX_AGE, sealer, Clock::System)
        });
        let (app, user) = ("wx1".parse().unwrap(), "oA".parse().unwrap());
        let kept = async |sessions: &Sessions| {
            let key = sessions.session_key(&app, &user).await.unwrap();
            key.map(|key| key.expose().to_owned())
        };
        let key = SessionKey::new("first");
        old.keep_session_key(&app, &user, &key).await.unwrap();
        assert_eq!(kept(&both).await.as_deref(), Some("first"));
        // Dropped too early it is forgotten, and no error.
        assert_eq!(kept(&new).await, None);
        let key = SessionKey::new("second");
        both.keep_session_key(&app, &user, &key).await.unwrap();
        assert_eq!(kept(&new).await.as_deref(), Some("second"));
    }

    #[test]
    fn a_session_id_is_a_digest_and_nothing_else() {
        let id = Token::random().id();
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        let long = "x".repeat(44);
        for text in [
            "",
            "abc",
            "}:session",
            &"=".repeat(43),
            &"é".repeat(21),
            &long,
        ] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
        for text in ["", "1", "1:", ":x", "x:y"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn the_latest_session_key_of_each_user_is_kept() {
        let sessions = sessions();
        let (app, one) = ("wx1".parse().unwrap(), "oA".parse().unwrap());
        let other = "oa".parse().unwrap();
        for key in ["first", "second"] {
            let key = SessionKey::new(key);
            sessions.keep_session_key(&app, &one, &key).await.unwrap();
        }
        let kept = sessions.session_key(&app, &one).await.unwrap().unwrap();
        assert_eq!(kept.expose(), "second");
        assert!(sessions.session_key(&app, &other).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_reset_session_key_replaces_none_but_its_own() {
        let sessions = sessions();
        let (app, user) = ("wx1".parse().unwrap(), "oA".parse().unwrap());
        let key = |text: &str| SessionKey::new(text);
        let reset = async |old, new| {
            let (old, new) = (key(old), key(new));
            let replaced = sessions.replace_session_key(&app, &user, &old, &new);
            replaced.await.unwrap();
            let kept = sessions.session_key(&app, &user).await.unwrap();
            kept.map(|key| key.expose().to_owned())
        };
        assert_eq!(reset("first", "second").await, None);
        let first = key("first");
        let kept = sessions.keep_session_key(&app, &user, &first);
        kept.await.unwrap();
        assert_eq!(reset("other", "second").await.as_deref(), Some("first"));
        assert_eq!(reset("first", "second").await.as_deref(), Some("second"));
    }

    #[test]
    fn tokens_are_long_different_and_never_printed() {
        let (one, other) = (Token::random(), Token::random());
        assert_eq!(one.expose().len(), 43);
        assert_ne!(one.expose(), other.expose());
        assert_eq!(format!("{one:?}"), "Token([redacted])");
        assert!(Token::parse("").is_err());
        assert!(Token::parse(&"x".repeat(Token::MAX)).is_ok());
        assert!(Token::parse(&"x".repeat(Token::MAX + 1)).is_err());
    }

    #[test]
    fn a_long_client_is_cut_between_characters() {
        assert_eq!(shorten("crm"), "crm");
        assert_eq!(shorten(&"微".repeat(100)).chars().count(), 33);
    }
}
