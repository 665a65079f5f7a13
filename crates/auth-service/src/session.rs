//! Sessions: what a user's device holds after a login, and how long it proves who the user is.
//!
//! A session token is 256 random bits; the store knows only its SHA-256. A session lives [`IDLE`] from its last use and
//! never past [`ABSOLUTE`] from its start. Beside them lies WeChat's `session_key` of each user, sealed: the latest one
//! only, since WeChat knows but one.

mod store;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng as _;
use redis::aio::ConnectionManager;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    Clock, Sealer,
    clock::{millis, since_epoch},
};
use sha2::{Digest as _, Sha256};
use wechat::{AppId, OpenId, SessionKey, UnionId};

use self::store::Store;
use crate::{
    error::Error,
    metrics,
    user::{User, UserId},
};

/// A session that is not used for this long ends.
pub const IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A session ends this long after it began, however much it is used.
pub const ABSOLUTE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a client's description that are kept.
const CLIENT_MAX: usize = 128;

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
    fn digest(&self) -> String {
        digest(self.expose())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
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
    /// WeChat's id of the user across apps.
    pub union_id: Option<UnionId>,
    /// When it began, in Unix milliseconds.
    pub created: u64,
    /// What it was opened with: the caller's name, or the browser's or mini program's own description.
    pub client: String,
}

/// Every session, and every user's `session_key`.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    sealer: Sealer,
    clock: Clock,
}

impl Sessions {
    /// Sessions in Redis, shared by all replicas.
    pub fn in_redis(redis: ConnectionManager, sealer: Sealer, clock: Clock) -> Self {
        Self {
            store: Store::redis(redis),
            sealer,
            clock,
        }
    }

    /// Sessions that end with the process.
    pub fn in_memory(sealer: Sealer, clock: Clock) -> Self {
        Self {
            store: Store::memory(),
            sealer,
            clock,
        }
    }

    /// Opens a session; answers its token and when it ends unless it is used.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open(&self, user: &User, client: &str) -> Result<(Token, SystemTime), Error> {
        let token = Token::random();
        let now = self.clock.now();
        let session = Session {
            user_id: user.user_id,
            app_id: user.app_id.clone(),
            open_id: user.open_id.clone(),
            union_id: user.union_id.clone(),
            created: millis(since_epoch(now)),
            client: shorten(client).to_owned(),
        };
        self.store.insert(&token.digest(), &session).await?;
        Ok((token, now + IDLE))
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
        let now = self.clock.now();
        let used = self
            .store
            .touch(&token.digest(), millis(since_epoch(now)))
            .await;
        let outcome = used.and_then(|used| {
            used.filter(|(session, _)| open_to(&session.app_id))
                .ok_or(Error::SessionInvalid)
        });
        metrics::verification(&outcome);
        let (session, left) = outcome?;
        Ok((session, now + left))
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
        let digest = token.digest();
        let now = self.clock.unix_millis();
        match self.store.app_of(&digest, now).await? {
            Some(app_id) if open_to(&app_id) => self.store.remove(&digest).await,
            _ => Ok(()),
        }
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
        self.store.put_session_key(&user, &sealed, now).await
    }

    /// Keeps `new` in place of `old`, unless a login has put another in its place by now.
    ///
    /// # Errors
    /// When the store does not answer, or the key that sealed it is gone.
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
            let swapped = self.unseal(&context, &sealed)? != *old
                || self
                    .store
                    .swap_session_key(&user, &sealed, &fresh, now)
                    .await?;
            if swapped {
                return Ok(());
            }
        }
    }

    /// The latest `session_key` of the user. It never leaves the service.
    ///
    /// # Errors
    /// When the store does not answer, or the key that sealed it is gone.
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
        self.unseal(&context, &sealed).map(Some)
    }

    fn unseal(&self, context: &str, sealed: &str) -> Result<SessionKey, Error> {
        let opened = self.sealer.open_text(context, sealed);
        let text = opened.map_err(|_| Error::Stored("session_key"))?;
        Ok(SessionKey::new(text))
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
        Sessions::in_memory(Sealer::ephemeral(), clock)
    }

    async fn is_valid(sessions: &Sessions, token: &Token) -> bool {
        match sessions.verify(token, |_| true).await {
            Ok(_) => true,
            Err(Error::SessionInvalid) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_lives_seven_days_from_its_last_use() {
        let sessions = sessions();
        let (token, expires) = sessions.open(&user(), "test").await.unwrap();
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
        let (token, _) = sessions.open(&user(), "test").await.unwrap();
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
        let (token, _) = sessions.open(&user(), "test").await.unwrap();
        sessions.revoke(&token, |_| false).await.unwrap();
        assert!(is_valid(&sessions, &token).await);
        for _ in 0..2 {
            sessions.revoke(&token, |_| true).await.unwrap();
            assert!(!is_valid(&sessions, &token).await);
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
        assert_eq!(shorten(&"微".repeat(100)).chars().count(), 42);
    }
}
