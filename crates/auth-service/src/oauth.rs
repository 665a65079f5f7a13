//! Web OAuth (网页授权) for any H5 page, by URL alone: a page sends the browser to `start`, WeChat sends it to
//! `callback`, and that sends it back to the page, signed in.
//!
//! What is under way is known by WeChat's `state` together with a cookie of the browser that began: a link with
//! somebody else's code, or a callback opened in another browser, finds nothing. It can be finished once, within ten
//! minutes; the same callback again within seconds, after a double tap, gets the same answer.

mod return_to;

use std::{fmt, sync::Arc, time::Duration};

use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use service_kit::{App, CatalogHandle, Clock};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, error, warn};
use url::Url;
use wechat::{AppId, Class, ErrCode, OAuthRequest, OAuthScope, OpenId, UnionId};

pub(crate) use self::return_to::{ERROR, Refused, ReturnTo, TICKET};
use crate::{
    claim::{self, Claim, Claims, Once},
    error::Error,
    login::SignedIn,
    metrics,
    session::{Epoch, Session, Sessions, Token},
    ticket::{self, Tickets},
    user::{Nickname, User, UserId, Users},
};

/// The cookies that bind what is under way to a browser begin so.
pub(crate) const COOKIE: &str = "wxhub_oauth_";
/// A sign-in under way is given up after this long.
pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// A finished one answers the same again for this long: as long its cookie is kept.
pub(crate) const REPEATED: Duration = claim::ANSWER_KEPT;
/// WeChat takes this long at most to say who it is, nickname included.
pub(crate) const WECHAT: Duration = Duration::from_secs(6);
/// The stores take this long at most to make a session: with WeChat's time it is less than a claim is held.
const SIGN_IN: Duration = Duration::from_secs(8);
/// What stands for a signed-in user on the way to a team's backend.
const PASS: ticket::Kind = ticket::Kind {
    name: "oauth_ticket",
    life: Duration::from_secs(60),
};

/// What names a sign-in under way: the `state` that WeChat carries, and the cookie of the browser that began.
#[derive(Clone)]
pub(crate) struct Names {
    state: SecretString,
    secret: SecretString,
}

impl Names {
    /// Bytes of each.
    const LEN: usize = 64;

    fn random() -> Self {
        let random = || {
            let mut bytes = [0u8; Self::LEN / 2];
            rand::rng().fill_bytes(&mut bytes);
            SecretString::from(hex::encode(bytes))
        };
        Self {
            state: random(),
            secret: random(),
        }
    }

    /// Takes both as a browser brings them; none when they cannot be of this service.
    pub(crate) fn parse(state: &str, secret: &str) -> Option<Self> {
        (is_name(state) && is_name(secret)).then(|| Self {
            state: state.into(),
            secret: secret.into(),
        })
    }

    /// What its cookie is called: each sign-in has its own, so that tabs do not disturb each other.
    pub(crate) fn cookie_of(state: &str) -> Option<String> {
        let start = is_name(state).then(|| state.get(..16)).flatten()?;
        Some(format!("{COOKIE}{start}"))
    }

    /// The cookie's value.
    pub(crate) fn secret(&self) -> &str {
        self.secret.expose_secret()
    }

    /// The cookie's name.
    pub(crate) fn cookie(&self) -> String {
        Self::cookie_of(self.state.expose_secret()).unwrap_or_default()
    }

    /// What is under way by these names. The same state with another browser's cookie is something else.
    fn once(&self, app: &App) -> Once {
        let (state, secret) = (self.state.expose_secret(), self.secret.expose_secret());
        Once::new("oauth", &[app.app_id.as_str(), state, secret])
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names([redacted])")
    }
}

fn is_name(text: &str) -> bool {
    text.len() == Names::LEN
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A page wants to know who its user is.
#[derive(Debug)]
pub(crate) struct Ask {
    /// The official account.
    pub(crate) app: Arc<App>,
    /// The page.
    pub(crate) return_to: ReturnTo,
    /// What it wants to know.
    pub(crate) scope: OAuthScope,
    /// The browser's session with the app, if it has one.
    pub(crate) session: Option<Token>,
}

/// Where a browser that asked is sent.
#[derive(Debug)]
pub(crate) enum Next {
    /// Back: all that the page asks for is known.
    Back(String),
    /// To WeChat.
    WeChat {
        /// Its page.
        url: Url,
        /// What the browser comes back with.
        names: Names,
    },
}

/// A browser comes from WeChat.
#[derive(Debug)]
pub(crate) struct Callback {
    /// The official account.
    pub(crate) app: Arc<App>,
    /// What it comes back with.
    pub(crate) names: Names,
    /// WeChat's code; none when the user declined.
    pub(crate) code: Option<String>,
    /// The browser's own description.
    pub(crate) client: String,
    /// The browser's session with the app, if it has one: the new one takes its place.
    pub(crate) replaced: Option<Token>,
}

/// Where a browser that came from WeChat is sent.
#[derive(Debug)]
pub(crate) struct Return {
    /// The page, with a ticket or an error.
    pub(crate) location: String,
    /// The new session.
    pub(crate) session: Option<Token>,
}

/// Why nobody is signed in, as the page is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// The user declined, or granted less than was asked.
    AccessDenied,
    /// The page is shown as a snapshot (快照页), to a made-up user.
    SnapshotUser,
    /// WeChat's code is expired or used.
    CodeInvalid,
    /// WeChat judges the user high risk.
    UserBlocked,
    /// WeChat's limit of calls is reached.
    RateLimited,
    /// WeChat or a store does not answer.
    TemporarilyUnavailable,
    /// The app's settings are wrong, or a bug.
    ServerError,
}

impl Failure {
    /// The word that the page is told.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::AccessDenied => "access_denied",
            Self::SnapshotUser => "snapshot_user",
            Self::CodeInvalid => "code_invalid",
            Self::UserBlocked => "user_blocked",
            Self::RateLimited => "rate_limited",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::ServerError => "server_error",
        }
    }

    fn of_wechat(error: &wechat::Error) -> Self {
        match (error.errcode(), error.class()) {
            (Some(ErrCode::CODE_BLOCKED), _) => Self::UserBlocked,
            (_, Class::Grant) => Self::CodeInvalid,
            (_, Class::Minute | Class::Day) => Self::RateLimited,
            (_, Class::Backoff) => Self::TemporarilyUnavailable,
            (
                _,
                Class::Ok
                | Class::Token
                | Class::Caller
                | Class::Recipient
                | Class::Config
                | Class::Unknown,
            ) => Self::ServerError,
        }
    }
}

/// Who came, as WeChat knows them.
#[derive(Debug)]
pub(crate) struct Person {
    pub(crate) open_id: OpenId,
    pub(crate) union_id: Option<UnionId>,
    pub(crate) nickname: Option<Nickname>,
}

/// What is under way, as it is sealed.
#[derive(Serialize, Deserialize)]
struct Begun {
    return_to: ReturnTo,
    user_info: bool,
}

/// How it ended, as it is sealed for repeats.
#[derive(Serialize, Deserialize)]
struct Ended {
    return_to: ReturnTo,
    outcome: Result<Entry, Failure>,
}

/// What who signed in is given.
#[derive(Serialize, Deserialize)]
struct Entry {
    session: String,
    ticket: String,
}

impl Ended {
    fn give(self) -> Result<Return, Error> {
        Ok(match self.outcome {
            Ok(entry) => Return {
                location: self.return_to.with(TICKET, &entry.ticket),
                session: Some(Token::parse(&entry.session)?),
            },
            Err(failure) => Return {
                location: self.return_to.with(ERROR, failure.as_str()),
                session: None,
            },
        })
    }
}

/// What a ticket stands for, as it is sealed.
#[derive(Serialize, Deserialize)]
struct Pass {
    app_id: AppId,
    /// Of the page that got it.
    host: String,
    user_id: UserId,
    /// Of the sign-in: what ends its session ends the ticket too.
    epoch: Epoch,
}

/// Everything that web OAuth needs; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct OAuth {
    pub(crate) wechat: wechat::Client,
    /// WeChat's OAuth pages.
    pub(crate) open_url: Url,
    /// This service as a browser sees it.
    pub(crate) public_url: Option<Url>,
    pub(crate) catalog: CatalogHandle,
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) tickets: Tickets,
    pub(crate) claims: Claims,
    pub(crate) clock: Clock,
    /// What sign-ins run on, to be awaited before the process ends.
    pub(crate) tasks: TaskTracker,
}

impl OAuth {
    /// Begins a sign-in, or says at once who is signed in: whoever has a session with the app and, where
    /// [`OAuthScope::UserInfo`] is asked for, a nickname.
    ///
    /// # Errors
    /// When a store does not answer, or the service does not know its own URL.
    pub(crate) async fn start(&self, ask: &Ask) -> Result<Next, Error> {
        let app = &ask.app;
        if let Some(session) = self.signed_in(ask).await? {
            let return_to = &ask.return_to;
            let ticket = self
                .pass(session.user_id, session.epoch, app, return_to)
                .await?;
            metrics::oauth(&app.name, "silent");
            return Ok(Next::Back(ask.return_to.with(TICKET, &ticket)));
        }
        let redirect_uri = self.callback_url(app)?;
        let names = Names::random();
        let begun = Begun {
            return_to: ask.return_to.clone(),
            user_info: ask.scope == OAuthScope::UserInfo,
        };
        self.claims.lay(&names.once(app), &begun, LIFE).await?;
        let url = wechat::oauth_authorize_url(
            &self.open_url,
            &OAuthRequest {
                app_id: &app.app_id,
                redirect_uri: &redirect_uri,
                scope: ask.scope,
                state: names.state.expose_secret(),
                force_popup: false,
            },
        );
        metrics::oauth(&app.name, "started");
        Ok(Next::WeChat { url, names })
    }

    async fn signed_in(&self, ask: &Ask) -> Result<Option<Session>, Error> {
        let Some(token) = &ask.session else {
            return Ok(None);
        };
        let app_id = &ask.app.app_id;
        let session = match self.sessions.verify(token, |app| app == app_id).await {
            Ok((session, _)) => session,
            Err(Error::SessionInvalid) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Whoever has a session exists: deleting a user ends them.
        if ask.scope == OAuthScope::Base {
            return Ok(Some(session));
        }
        let user = self.users.get(session.user_id).await?;
        let known = user.is_some_and(|user| user.nickname.is_some());
        Ok(known.then_some(session))
    }

    /// `WXHUB_PUBLIC_URL/oauth/<app>/callback`, whatever the request's own headers say.
    fn callback_url(&self, app: &App) -> Result<Url, Error> {
        let mut url = self.public_url.clone().ok_or(Error::PublicUrlMissing)?;
        let path = url.path().trim_end_matches('/');
        let path = format!("{path}/oauth/{}/callback", app.name);
        url.set_path(&path);
        Ok(url)
    }

    /// Finishes a sign-in. The same callback again within seconds gets the same answer, and reaches WeChat once.
    ///
    /// It goes on when the browser hangs up: the code is spent by then, and a reload gets the session.
    ///
    /// # Errors
    /// [`Error::OAuthStateInvalid`] when nothing is under way by this state in this browser; when Redis does not
    /// answer, or another request with the same state takes longer than three seconds. Everything else is for the
    /// page to know.
    pub(crate) async fn callback(&self, callback: Callback) -> Result<Return, Error> {
        let app = callback.app.name.clone();
        let work = self.clone().finish(callback).instrument(Span::current());
        let outcome = self.tasks.spawn(work).await.map_err(Error::from).flatten();
        if let Err(error) = &outcome {
            let outcome = match error {
                Error::OAuthStateInvalid => "state_invalid",
                Error::LoginInProgress => "busy",
                _ => Failure::TemporarilyUnavailable.as_str(),
            };
            metrics::oauth(&app, outcome);
        }
        outcome
    }

    async fn finish(self, callback: Callback) -> Result<Return, Error> {
        let app = &callback.app;
        let once = callback.names.once(app);
        let begun: Begun = match self.claims.claim_laid(&once).await? {
            Some(Claim::Won(begun)) => begun,
            Some(Claim::Answered(ended)) => {
                metrics::oauth(&app.name, "repeated");
                return Ended::give(ended);
            }
            Some(Claim::Held) => return Err(Error::LoginInProgress),
            None => return Err(Error::OAuthStateInvalid),
        };
        let outcome = self.sign_in(&callback, &begun).await;
        metrics::oauth(
            &app.name,
            outcome
                .as_ref()
                .map_or_else(|failure| failure.as_str(), |_| "signed_in"),
        );
        let ended = Ended {
            return_to: begun.return_to,
            outcome,
        };
        if let Err(error) = self.claims.answer(&once, &ended, REPEATED).await {
            let error = &error as &dyn std::error::Error;
            warn!(
                error,
                "the outcome of a sign-in could not be left for repeats of it"
            );
        }
        ended.give()
    }

    async fn sign_in(&self, callback: &Callback, begun: &Begun) -> Result<Entry, Failure> {
        let app = &callback.app;
        let person = self.person(callback, begun).await?;
        let entry = timeout(SIGN_IN, self.open(callback, begun, &person)).await;
        entry
            .unwrap_or(Err(Error::DatabaseTimeout(SIGN_IN)))
            .map_err(|error| {
                let cause = &error as &dyn std::error::Error;
                match error {
                    Error::Redis(_) | Error::Database(_) | Error::DatabaseTimeout(_) => {
                        warn!(app = app.name, error = cause, "a store failed a sign-in");
                        Failure::TemporarilyUnavailable
                    }
                    _ => {
                        error!(app = app.name, error = cause, "a sign-in failed");
                        Failure::ServerError
                    }
                }
            })
    }

    /// Whom WeChat names for the code.
    async fn person(&self, callback: &Callback, begun: &Begun) -> Result<Person, Failure> {
        let app = &callback.app;
        let code = callback.code.as_deref().ok_or(Failure::AccessDenied)?;
        // States are many, and a code is one: with another state it is not exchanged again.
        let once = Once::new("oauth_code", &[app.app_id.as_str(), code]);
        match self.claims.is_first(&once).await {
            Ok(true) => {}
            Ok(false) => return Err(Failure::CodeInvalid),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(app = app.name, error, "a store failed a sign-in");
                return Err(Failure::TemporarilyUnavailable);
            }
        }
        let exchanged = timeout(WECHAT, self.exchange(app, code, begun.user_info)).await;
        exchanged.unwrap_or(Err(Failure::TemporarilyUnavailable))
    }

    /// Exchanges a code, and asks for the nickname where that was asked for.
    pub(crate) async fn exchange(
        &self,
        app: &App,
        code: &str,
        user_info: bool,
    ) -> Result<Person, Failure> {
        let Some(secret) = &app.secret else {
            error!(app = app.name, "the app has no secret");
            return Err(Failure::ServerError);
        };
        let refused = |error: wechat::Error| {
            let failure = Failure::of_wechat(&error);
            let error = &error as &dyn std::error::Error;
            match failure {
                Failure::CodeInvalid | Failure::UserBlocked => {
                    debug!(app = app.name, error, "WeChat refused an OAuth code");
                }
                _ => warn!(app = app.name, error, "a sign-in failed at WeChat"),
            }
            failure
        };
        let granted = self.wechat.oauth_access_token(&app.app_id, secret, code);
        let grant = granted.await.map_err(refused)?;
        if grant.is_snapshot_user {
            return Err(Failure::SnapshotUser);
        }
        let mut person = Person {
            open_id: grant.open_id,
            union_id: grant.union_id,
            nickname: None,
        };
        if user_info {
            if !grant.scopes.contains(&OAuthScope::UserInfo) {
                return Err(Failure::AccessDenied);
            }
            let user = self
                .wechat
                .oauth_user_info(&grant.access_token, &person.open_id)
                .await
                .map_err(refused)?;
            if user.open_id != person.open_id {
                error!(app = app.name, "WeChat told of another user than asked");
                return Err(Failure::ServerError);
            }
            person.nickname = Nickname::shorten(&user.nickname);
            person.union_id = user.union_id.or(person.union_id);
        }
        Ok(person)
    }

    /// Opens the session, in place of the one that the browser had.
    async fn open(
        &self,
        callback: &Callback,
        begun: &Begun,
        person: &Person,
    ) -> Result<Entry, Error> {
        let app = &callback.app;
        let epoch = self.sessions.epoch().await?;
        let user = self
            .users
            .logged_in(
                &app.app_id,
                &person.open_id,
                person.union_id.as_ref(),
                person.nickname.as_ref(),
                self.clock.now(),
            )
            .await?;
        let (session, _) = self.sessions.open(epoch, &user, &callback.client).await?;
        if let Some(replaced) = &callback.replaced {
            let same_app = |app_id: &AppId| *app_id == app.app_id;
            self.sessions.revoke(replaced, same_app).await?;
        }
        let return_to = &begun.return_to;
        let ticket = self.pass(user.user_id, epoch, app, return_to).await?;
        debug!(app = app.name, user_id = %user.user_id, "signed in");
        Ok(Entry {
            session: session.expose().to_owned(),
            ticket,
        })
    }

    async fn pass(
        &self,
        user_id: UserId,
        epoch: Epoch,
        app: &App,
        return_to: &ReturnTo,
    ) -> Result<String, Error> {
        let pass = Pass {
            app_id: app.app_id.clone(),
            host: return_to.host().to_owned(),
            user_id,
            epoch,
        };
        let ticket = self.tickets.put(&PASS, &pass).await?;
        Ok(ticket.expose().to_owned())
    }

    /// Opens a session for whom a ticket stands for, once. `host` is the page's, `client` who asks.
    ///
    /// # Errors
    /// [`Error::TicketInvalid`] when it is unknown, over, used, of another host or of an app that `open_to` does not
    /// admit, which are not told apart; when a store does not answer.
    pub(crate) async fn exchange_ticket(
        &self,
        ticket: &str,
        host: &str,
        open_to: impl FnOnce(&AppId) -> bool,
        client: &str,
    ) -> Result<SignedIn, Error> {
        let pass: Option<Pass> = self.tickets.look(&PASS, ticket).await?;
        let pass = pass
            .filter(|pass| pass.host.eq_ignore_ascii_case(host) && open_to(&pass.app_id))
            .ok_or(Error::TicketInvalid)?;
        let app = self.catalog.current().app(pass.app_id.as_str()).cloned();
        let app = app.ok_or(Error::TicketInvalid)?;
        let user: Option<User> = self.users.get(pass.user_id).await?;
        let user = user.ok_or(Error::TicketInvalid)?;
        // Of those who come at once, one gets it.
        let taken: Option<Pass> = self.tickets.take(&PASS, ticket).await?;
        taken.ok_or(Error::TicketInvalid)?;
        let (token, expire_time) = self.sessions.open(pass.epoch, &user, client).await?;
        // Not of a user whose sessions were ended meanwhile.
        match self.sessions.verify(&token, |_| true).await {
            Ok(_) => {}
            Err(Error::SessionInvalid) => return Err(Error::TicketInvalid),
            Err(error) => return Err(error),
        }
        metrics::oauth(&app.name, "ticket_exchanged");
        Ok(SignedIn {
            token,
            expire_time,
            user,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_state_and_its_cookie_are_64_hexadecimal_digits_and_nothing_else(text in any::<String>(), name in "[0-9a-f]{64}") {
            prop_assert!(Names::parse(&name, &name).is_some());
            prop_assert!(Names::cookie_of(&name).is_some_and(|cookie| name.starts_with(&cookie[COOKIE.len()..])));
            for (state, secret) in [(&text, &name), (&name, &text), (&text, &text)] {
                let both = is_name(state) && is_name(secret);
                prop_assert_eq!(Names::parse(state, secret).is_some(), both);
            }
            prop_assert_eq!(Names::cookie_of(&text).is_some(), is_name(&text));
        }
    }

    #[test]
    fn names_are_random_and_never_printed() {
        let (one, other) = (Names::random(), Names::random());
        assert!(is_name(one.secret()) && is_name(one.state.expose_secret()));
        assert_ne!(one.secret(), other.secret());
        assert_ne!(one.secret(), one.state.expose_secret());
        assert_eq!(format!("{one:?}"), "Names([redacted])");
        for not in [
            "",
            "0",
            &"0".repeat(63),
            &"0".repeat(65),
            &"A".repeat(64),
            &"g".repeat(64),
        ] {
            assert!(!is_name(not));
        }
    }

    #[test]
    fn each_failure_of_wechats_has_its_word() {
        let api = |endpoint, errcode| {
            Failure::of_wechat(&wechat::Error::Api(wechat::ApiError {
                endpoint,
                errcode: ErrCode(errcode),
                errmsg: String::new(),
                rid: None,
            }))
            .as_str()
        };
        let exchange = "/sns/oauth2/access_token";
        for (errcode, word) in [
            (40029, "code_invalid"),
            (40163, "code_invalid"),
            (42003, "code_invalid"),
            (40226, "user_blocked"),
            (45011, "rate_limited"),
            (45009, "rate_limited"),
            (-1, "temporarily_unavailable"),
            (40001, "server_error"),
            (40125, "server_error"),
            (40164, "server_error"),
            (99999, "server_error"),
        ] {
            assert_eq!(api(exchange, errcode), word, "{errcode}");
        }
        assert_eq!(api("/sns/userinfo", 48001), "code_invalid");
        let timeout = wechat::Error::Timeout { endpoint: exchange };
        assert_eq!(
            Failure::of_wechat(&timeout).as_str(),
            "temporarily_unavailable"
        );
    }
}
