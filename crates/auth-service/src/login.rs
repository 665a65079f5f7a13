//! Logging in: a mini program's `wx.login` code becomes a session.
//!
//! A code works once at WeChat, but reaches us more often: a double tap, a retry after a lost answer, a gateway that
//! repeats. So each login first claims its code. The winner exchanges it and leaves its answer for a while;
//! everybody else gives that same answer. What was exchanged is kept, sealed, until it has become a session, so that the
//! database's outage in between costs a retry and not the user's code; with Redis away as well the user signs in anew.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use redis::aio::ConnectionManager;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use service_kit::{App, AppKind, Clock, Sealer};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, warn};
use wechat::{ApiError, AppSecret, Class, ErrCode, SessionKey};

use crate::{
    claim::{self, Claim, Claims, Once},
    error::Error,
    metrics,
    session::{Sessions, Token},
    user::{Nickname, User, Users},
};

/// The stores take this long at most to make a session of an exchanged code: with WeChat's five seconds it is less than
/// a claim is held.
const SIGN_IN: Duration = Duration::from_secs(8);
/// What was exchanged waits for a store for as long as the code itself would have lived.
const EXCHANGED_KEPT: Duration = Duration::from_secs(300);
/// WeChat's interface; what failed in an answer that is given again.
const ENDPOINT: &str = "/sns/jscode2session";

/// The code of a `wx.login`. It never prints.
#[derive(Clone)]
pub struct JsCode(SecretString);

impl JsCode {
    /// Bytes of the longest one.
    pub const MAX: usize = 512;

    /// Takes a code as a client sends it in the field of this name.
    ///
    /// # Errors
    /// When it is empty or too long to be one.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Error> {
        match text.len() {
            0 => Err(Error::field(field, "is missing")),
            1..=Self::MAX => Ok(Self(SecretString::from(text))),
            _ => {
                let problem = format!("must be at most {} bytes", Self::MAX);
                Err(Error::field(field, problem))
            }
        }
    }

    fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for JsCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JsCode([redacted])")
    }
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The mini program.
    pub app: Arc<App>,
    /// Its code.
    pub js_code: JsCode,
    /// What the person calls themselves, when sent.
    pub nickname: Option<Nickname>,
    /// Who asks: a caller's name, or the client's own description.
    pub client: String,
    /// The session that the client had with the app: the new one takes its place.
    pub replaced: Option<Token>,
}

/// What a client gets.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// Proves the session.
    pub token: Token,
    /// When the session ends unless it is used.
    pub expire_time: SystemTime,
    /// Who signed in.
    pub user: User,
}

/// What WeChat gave for a code, as it is sealed.
#[derive(Serialize, Deserialize)]
struct Exchanged {
    open_id: wechat::OpenId,
    union_id: Option<wechat::UnionId>,
    session_key: String,
}

/// The outcome of a login, as it is sealed for those who come with the same code.
#[derive(Serialize, Deserialize)]
enum Answer {
    SignedIn {
        token: String,
        expire_time: SystemTime,
        user: User,
    },
    Refused {
        errcode: i64,
        errmsg: String,
        rid: Option<String>,
    },
    Unanswered,
}

impl Answer {
    /// The answer to give again, and for how long: a failure that passes only until a retry makes sense.
    fn of_failure(error: &wechat::Error) -> (Self, Duration) {
        let answer = match error {
            wechat::Error::Api(api) => Self::Refused {
                errcode: api.errcode.0,
                errmsg: api.errmsg.clone(),
                rid: api.rid.clone(),
            },
            _ => Self::Unanswered,
        };
        let kept = match error.class() {
            Class::Backoff => Duration::from_secs(1),
            _ => claim::ANSWER_KEPT,
        };
        (answer, kept)
    }

    fn give(self, app: &App) -> Result<SignedIn, Error> {
        let source = match self {
            Self::SignedIn {
                token,
                expire_time,
                user,
            } => {
                return Ok(SignedIn {
                    token: Token::parse(&token)?,
                    expire_time,
                    user,
                });
            }
            Self::Refused {
                errcode,
                errmsg,
                rid,
            } => wechat::Error::Api(ApiError {
                endpoint: ENDPOINT,
                errcode: ErrCode(errcode),
                errmsg,
                rid,
            }),
            Self::Unanswered => wechat::Error::Timeout { endpoint: ENDPOINT },
        };
        let app = app.name.clone();
        Err(Error::WeChat { app, source })
    }
}

/// Everything a login needs; clones share it.
#[derive(Debug, Clone)]
pub struct Logins {
    wechat: wechat::Client,
    users: Users,
    sessions: Sessions,
    claims: Claims,
    clock: Clock,
    tasks: TaskTracker,
}

impl Logins {
    /// Logins whose claims are in Redis, shared by all replicas, or in memory. They run on `tasks`, to be awaited
    /// before the process ends.
    pub fn new(
        wechat: wechat::Client,
        users: Users,
        sessions: Sessions,
        redis: Option<ConnectionManager>,
        sealer: Sealer,
        clock: Clock,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            claims: Claims::new(redis, sealer, clock.clone()),
            wechat,
            users,
            sessions,
            clock,
            tasks,
        }
    }

    /// Exchanges a code for a session. A code that comes again within seconds gets the same session, and reaches
    /// WeChat once.
    ///
    /// It goes on when the client hangs up: the code is spent by then, and the client's retry gets the session.
    ///
    /// # Errors
    /// When the app is no mini program, WeChat refuses or does not answer, a store does not answer, or another login
    /// with the same code takes longer than three seconds.
    pub async fn login(&self, attempt: Attempt) -> Result<SignedIn, Error> {
        let app = Arc::clone(&attempt.app);
        let work = self.clone().work(attempt).instrument(Span::current());
        let outcome = self.tasks.spawn(work).await.map_err(Error::from).flatten();
        metrics::login(&app.name, &outcome);
        outcome
    }

    async fn work(self, attempt: Attempt) -> Result<SignedIn, Error> {
        let app = &attempt.app;
        if app.kind != AppKind::MiniProgram {
            let problem = format!("names {}, which is no mini program", app.name);
            return Err(Error::field("app_id", problem));
        }
        let secret = app.secret.as_ref().ok_or_else(|| Error::SecretUnknown {
            app: app.name.clone(),
        })?;
        let code = Once::new("login", &[app.app_id.as_str(), attempt.js_code.expose()]);
        match self.claims.claim(&code).await? {
            Claim::Won(exchanged) => self.win(&attempt, secret, &code, exchanged).await,
            Claim::Answered(answer) => {
                debug!(app = app.name, "a js_code came again");
                Answer::give(answer, app)
            }
            Claim::Held => Err(Error::LoginInProgress),
        }
    }

    /// Takes the code to its end, and leaves for others how that went.
    async fn win(
        &self,
        attempt: &Attempt,
        secret: &AppSecret,
        code: &Once,
        exchanged: Option<Exchanged>,
    ) -> Result<SignedIn, Error> {
        let exchanged = match exchanged {
            Some(exchanged) => exchanged,
            None => match self.exchange(attempt, secret).await {
                Ok(exchanged) => exchanged,
                Err(source) => {
                    let (answer, kept) = Answer::of_failure(&source);
                    self.leave(self.claims.answer(code, &answer, kept).await);
                    let app = attempt.app.name.clone();
                    return Err(Error::WeChat { app, source });
                }
            },
        };
        let signed_in = timeout(SIGN_IN, self.sign_in(attempt, &exchanged)).await;
        match signed_in.unwrap_or(Err(Error::DatabaseTimeout(SIGN_IN))) {
            Ok(signed_in) => {
                let answer = Answer::SignedIn {
                    token: signed_in.token.expose().to_owned(),
                    expire_time: signed_in.expire_time,
                    user: signed_in.user.clone(),
                };
                let left = self.claims.answer(code, &answer, claim::ANSWER_KEPT).await;
                self.leave(left);
                Ok(signed_in)
            }
            Err(error) => {
                let left = self
                    .claims
                    .hand_over(code, &exchanged, EXCHANGED_KEPT)
                    .await;
                self.leave(left);
                Err(error)
            }
        }
    }

    /// Whoever comes with the same code does without what could not be left; this login is not the worse for it.
    fn leave(&self, left: Result<(), Error>) {
        if let Err(error) = left {
            let error = &error as &dyn std::error::Error;
            warn!(
                error,
                "the outcome of a login could not be left for repeats of it"
            );
        }
    }

    async fn exchange(
        &self,
        attempt: &Attempt,
        secret: &AppSecret,
    ) -> Result<Exchanged, wechat::Error> {
        let (app_id, js_code) = (&attempt.app.app_id, attempt.js_code.expose());
        let given = self.wechat.code_to_session(app_id, secret, js_code).await?;
        Ok(Exchanged {
            open_id: given.open_id,
            union_id: given.union_id,
            session_key: given.session_key.expose().to_owned(),
        })
    }

    async fn sign_in(&self, attempt: &Attempt, exchanged: &Exchanged) -> Result<SignedIn, Error> {
        let app_id = &attempt.app.app_id;
        let epoch = self.sessions.epoch().await?;
        let user = self
            .users
            .logged_in(
                app_id,
                &exchanged.open_id,
                exchanged.union_id.as_ref(),
                attempt.nickname.as_ref(),
                self.clock.now(),
            )
            .await?;
        let session_key = SessionKey::new(exchanged.session_key.as_str());
        // Side by side: one round trip.
        let ((token, expire_time), ()) = tokio::try_join!(
            self.sessions.open(epoch, &user, &attempt.client),
            self.sessions
                .keep_session_key(app_id, &exchanged.open_id, &session_key),
        )?;
        if let Some(replaced) = &attempt.replaced {
            self.sessions.revoke(replaced, |app| app == app_id).await?;
        }
        debug!(app = attempt.app.name, user_id = %user.user_id, "signed in");
        Ok(SignedIn {
            token,
            expire_time,
            user,
        })
    }
}
