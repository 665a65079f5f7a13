//! Every way the service can fail, and the one place that says what each looks like on the wire.

use std::time::{Duration, SystemTime};

use sea_orm::DbErr;
use service_kit::status::{self, reason};
use tonic::{Code, Status};
use tracing::{debug, error, warn};
use wechat::{Class, ErrCode};

use crate::{account, binding};

/// Reasons of ErrorInfo that only this service gives. They are part of the API: never renamed.
pub mod reasons {
    /// The js_code is wrong, expired or used: the user logs in again.
    pub const JS_CODE_INVALID: &str = "JS_CODE_INVALID";
    /// WeChat judges the user high risk and refuses the login.
    pub const USER_BLOCKED: &str = "USER_BLOCKED";
    /// The same js_code is being exchanged right now.
    pub const LOGIN_IN_PROGRESS: &str = "LOGIN_IN_PROGRESS";
    /// The session is unknown, over, or of an app that is not open to the caller.
    pub const SESSION_INVALID: &str = "SESSION_INVALID";
    /// The ticket of web OAuth is unknown, over, used, or of another host or app.
    pub const TICKET_INVALID: &str = "TICKET_INVALID";
    /// Nothing is under way by this `state` in this browser.
    pub const OAUTH_STATE_INVALID: &str = "OAUTH_STATE_INVALID";
    /// A page of another site made the browser ask.
    pub const ORIGIN_FORBIDDEN: &str = "ORIGIN_FORBIDDEN";
    /// WeChat's limit of calls by minute is reached.
    pub const WECHAT_RATE_LIMITED: &str = "WECHAT_RATE_LIMITED";
    /// There is no such user, or it is of an app that is not open to the caller.
    pub const USER_NOT_FOUND: &str = "USER_NOT_FOUND";
    /// The user's session_key is gone or replaced: the user logs in again, then the data is fetched again.
    pub const SESSION_KEY_OUTDATED: &str = "SESSION_KEY_OUTDATED";
    /// Encrypted data was changed on the way, or is not of this app or user.
    pub const DATA_INVALID: &str = "DATA_INVALID";
    /// Encrypted data is too old: it is fetched again.
    pub const DATA_EXPIRED: &str = "DATA_EXPIRED";
    /// The phone number's code is wrong, expired or used: the user presses the button again.
    pub const PHONE_CODE_INVALID: &str = "PHONE_CODE_INVALID";
    /// Accounts are for callers with all apps.
    pub const ALL_APPS_REQUIRED: &str = "ALL_APPS_REQUIRED";
    /// An account of this name exists.
    pub const ACCOUNT_EXISTS: &str = "ACCOUNT_EXISTS";
    /// There is no such account.
    pub const ACCOUNT_NOT_FOUND: &str = "ACCOUNT_NOT_FOUND";
    /// The account's name or password is wrong.
    pub const ACCOUNT_CREDENTIALS_INVALID: &str = "ACCOUNT_CREDENTIALS_INVALID";
    /// The account's password was wrong too often.
    pub const ACCOUNT_COOLING_DOWN: &str = "ACCOUNT_COOLING_DOWN";
    /// No account is signed in, or no longer.
    pub const ACCOUNT_SIGNED_OUT: &str = "ACCOUNT_SIGNED_OUT";
    /// A WeChat user is bound to the account already.
    pub const ACCOUNT_BOUND: &str = "ACCOUNT_BOUND";
    /// The WeChat user is bound to another account already.
    pub const USER_BOUND: &str = "USER_BOUND";
    /// No WeChat user is bound to the account.
    pub const BINDING_NOT_FOUND: &str = "BINDING_NOT_FOUND";
    /// More is asked at once than is good.
    pub const BUSY: &str = "BUSY";
    /// The service does not know its own URL.
    pub const PUBLIC_URL_MISSING: &str = "PUBLIC_URL_MISSING";
}

/// Why a request failed. Nothing in it holds a token, a code or a session key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong.
    #[error("{field} {problem}")]
    InvalidField {
        /// Its name in the request.
        field: &'static str,
        /// What is wrong, completing "`<field>` …".
        problem: String,
    },
    /// The request names an app that is not declared.
    #[error("no such app")]
    AppUnknown,
    /// The session is unknown, over, or not for this caller.
    #[error("the session is not valid: log in")]
    SessionInvalid,
    /// The request shows no session.
    #[error("no session was sent, neither in Authorization nor in a cookie: log in")]
    SessionMissing,
    /// The ticket of web OAuth is unknown, over, used, or of another host or app.
    #[error("the ticket is not valid: it works once, within 60 seconds, for the page's own host")]
    TicketInvalid,
    /// Nothing is under way by this `state` in this browser.
    #[error("no sign-in is under way by this state in this browser")]
    OAuthStateInvalid,
    /// A page of another site made the browser ask.
    #[error("pages of this origin may not ask this with a browser's cookies")]
    OriginForbidden,
    /// There is no such user, or not for this caller.
    #[error("no such user")]
    UserUnknown,
    /// Another request exchanges the same code and did not finish in time.
    #[error("this js_code is being exchanged by another request")]
    LoginInProgress,
    /// WeChat refused, or did not answer.
    #[error("app {app}: the login failed at WeChat")]
    WeChat {
        /// The app's name.
        app: String,
        /// What WeChat said.
        source: wechat::Error,
    },
    /// No `session_key` is kept of the user, or WeChat does not know it any more.
    #[error("the session_key is out of date: log in again, then fetch the data again")]
    SessionKeyOutdated,
    /// Encrypted data is not what WeChat made for this user; what is wrong, as a sentence.
    #[error("the data is not valid: {0}")]
    DataInvalid(&'static str),
    /// Encrypted data is too old.
    #[error("the data is too old: fetch it again")]
    DataExpired,
    /// WeChat does not take the code of the phone number button.
    #[error("app {app}: the code is wrong, expired, used or of another user")]
    PhoneCodeInvalid {
        /// The app's name.
        app: String,
        /// What WeChat said.
        source: wechat::Error,
    },
    /// WeChat refused something else, or did not answer.
    #[error("app {app}: a call to WeChat failed")]
    Call {
        /// The app's name.
        app: String,
        /// What WeChat said.
        source: wechat::Error,
    },
    /// An account is not made, found or signed in to.
    #[error(transparent)]
    Account(#[from] account::Refusal),
    /// A binding is not made, or not found.
    #[error(transparent)]
    Binding(#[from] binding::Refusal),
    /// The service was not told its URL, which links need.
    #[error("WXHUB_PUBLIC_URL is not set: no link can be made")]
    PublicUrlMissing,
    /// token-service refused, or did not answer.
    #[error("token-service failed")]
    Tokens(#[from] token_client::Error),
    /// The catalog holds no secret for the app.
    #[error("app {app} has no secret")]
    SecretUnknown {
        /// The app's name.
        app: String,
    },
    /// Redis refused, or did not answer.
    #[error("Redis failed")]
    Redis(#[from] redis::RedisError),
    /// What was revoked within the last second is not known, since Redis did not say.
    #[error("Redis did not tell what was revoked")]
    RevocationsUnknown,
    /// The database refused, or did not answer.
    #[error("the database failed")]
    Database(#[from] DbErr),
    /// The database took too long.
    #[error("the database did not answer within {} ms", .0.as_millis())]
    DatabaseTimeout(Duration),
    /// What a store holds is not what this service wrote.
    #[error("a stored {0} cannot be read")]
    Stored(&'static str),
    /// The login's task ended before it was done.
    #[error("the login's task was lost")]
    TaskLost(#[from] tokio::task::JoinError),
}

impl Error {
    /// A field of the request is wrong: "`<field>` `<problem>`".
    pub fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::InvalidField {
            field,
            problem: problem.into(),
        }
    }
}

/// Tells the failure to a caller, and logs what is ours or a neighbour's to repair.
pub(crate) fn to_status(error: &Error, now: SystemTime) -> Status {
    let cause = error as &dyn std::error::Error;
    let tell = |code, reason| status::error(code, reason, error.to_string());
    match error {
        Error::InvalidField { field, problem } => status::invalid_field(field, problem),
        Error::AppUnknown => tell(Code::NotFound, reason::APP_NOT_FOUND).build(),
        Error::SessionInvalid | Error::SessionMissing => {
            tell(Code::Unauthenticated, reasons::SESSION_INVALID).build()
        }
        Error::TicketInvalid => tell(Code::Unauthenticated, reasons::TICKET_INVALID).build(),
        Error::OAuthStateInvalid => {
            tell(Code::InvalidArgument, reasons::OAUTH_STATE_INVALID).build()
        }
        Error::OriginForbidden => tell(Code::PermissionDenied, reasons::ORIGIN_FORBIDDEN).build(),
        Error::UserUnknown => tell(Code::NotFound, reasons::USER_NOT_FOUND).build(),
        Error::LoginInProgress => tell(Code::Aborted, reasons::LOGIN_IN_PROGRESS)
            .retry_after(Duration::from_secs(1))
            .build(),
        Error::WeChat { app, source } => {
            let status = status::wechat(source, app, now);
            match source.errcode() {
                Some(ErrCode::INVALID_CODE | ErrCode::CODE_USED) => {
                    debug!(app, error = cause, "WeChat refused a js_code");
                    status.with_code(Code::Unauthenticated, reasons::JS_CODE_INVALID)
                }
                Some(ErrCode::CODE_BLOCKED) => {
                    debug!(app, error = cause, "WeChat refused a user");
                    status.with_code(Code::PermissionDenied, reasons::USER_BLOCKED)
                }
                Some(_) if source.class() == Class::Minute => {
                    warn!(app, error = cause, "WeChat limits logins");
                    status.with_code(Code::ResourceExhausted, reasons::WECHAT_RATE_LIMITED)
                }
                Some(_) | None => {
                    warn!(app, error = cause, "login failed at WeChat");
                    status
                }
            }
            .build()
        }
        Error::SessionKeyOutdated => {
            tell(Code::Unauthenticated, reasons::SESSION_KEY_OUTDATED).build()
        }
        Error::DataInvalid(_) => tell(Code::InvalidArgument, reasons::DATA_INVALID).build(),
        Error::DataExpired => tell(Code::InvalidArgument, reasons::DATA_EXPIRED).build(),
        Error::PhoneCodeInvalid { app, source } => {
            debug!(
                app,
                error = cause,
                "WeChat refused the code of a phone number"
            );
            status::wechat(source, app, now)
                .with_code(Code::InvalidArgument, reasons::PHONE_CODE_INVALID)
                .build()
        }
        Error::Call { app, source } => {
            warn!(app, error = cause, "a call to WeChat failed");
            status::wechat(source, app, now).build()
        }
        Error::Account(refusal) => {
            let (code, reason, retry_after) = match refusal {
                account::Refusal::Exists => (Code::AlreadyExists, reasons::ACCOUNT_EXISTS, None),
                account::Refusal::Unknown => (Code::NotFound, reasons::ACCOUNT_NOT_FOUND, None),
                account::Refusal::Wrong => {
                    let reason = reasons::ACCOUNT_CREDENTIALS_INVALID;
                    (Code::Unauthenticated, reason, None)
                }
                account::Refusal::CoolingDown(left) => {
                    let reason = reasons::ACCOUNT_COOLING_DOWN;
                    (Code::ResourceExhausted, reason, Some(*left))
                }
                account::Refusal::Busy | account::Refusal::Crowded => {
                    let retry_after = Some(Duration::from_secs(1));
                    (Code::Unavailable, reasons::BUSY, retry_after)
                }
                account::Refusal::AllAppsRequired => {
                    (Code::PermissionDenied, reasons::ALL_APPS_REQUIRED, None)
                }
                account::Refusal::SignedOut => {
                    (Code::Unauthenticated, reasons::ACCOUNT_SIGNED_OUT, None)
                }
            };
            let status = tell(code, reason);
            match retry_after {
                Some(delay) => status.retry_after(delay),
                None => status,
            }
            .build()
        }
        Error::Binding(refusal) => {
            let (code, reason) = match refusal {
                binding::Refusal::Unknown => (Code::NotFound, reasons::BINDING_NOT_FOUND),
                binding::Refusal::AccountBound => (Code::AlreadyExists, reasons::ACCOUNT_BOUND),
                binding::Refusal::UserBound => (Code::AlreadyExists, reasons::USER_BOUND),
            };
            tell(code, reason).build()
        }
        Error::PublicUrlMissing => {
            error!(error = cause, "a link is impossible");
            tell(Code::FailedPrecondition, reasons::PUBLIC_URL_MISSING).build()
        }
        Error::Tokens(source) => source.to_caller(),
        Error::SecretUnknown { .. } => {
            error!(error = cause, "login is impossible");
            tell(Code::FailedPrecondition, reason::WECHAT_CONFIG_INVALID).build()
        }
        Error::Redis(_) | Error::RevocationsUnknown => {
            warn!(error = cause, "Redis failed");
            status::store_unavailable("Redis")
        }
        Error::Database(_) | Error::DatabaseTimeout(_) => {
            warn!(error = cause, "the database failed");
            status::store_unavailable("the database")
        }
        Error::Stored(_) | Error::TaskLost(_) => {
            error!(error = cause, "internal error");
            status::internal()
        }
    }
}
