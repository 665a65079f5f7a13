//! Every way in which push-service can refuse or fail, and what a caller is told of it.

use std::time::{Duration, SystemTime};

use sea_orm::DbErr;
use service_kit::status;
use tonic::{Code, Status};
use tracing::{error, warn};

use crate::{
    broadcast,
    message::{State, Violation},
};

/// The reasons of ErrorInfo that push-service alone gives. They are part of the API: never renamed.
mod reason {
    pub(super) const MESSAGE_NOT_FOUND: &str = "MESSAGE_NOT_FOUND";
    pub(super) const ACCOUNT_NOT_BOUND: &str = "ACCOUNT_NOT_BOUND";
    pub(super) const BROADCAST_NOT_FOUND: &str = "BROADCAST_NOT_FOUND";
    pub(super) const BROADCAST_STATE_WRONG: &str = "BROADCAST_STATE_WRONG";
    pub(super) const BROADCAST_EMPTY: &str = "BROADCAST_EMPTY";
    pub(super) const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
    pub(super) const FORM_ID_MISSING: &str = "FORM_ID_MISSING";
    pub(super) const MESSAGE_NOT_CANCELLABLE: &str = "MESSAGE_NOT_CANCELLABLE";
    pub(super) const MESSAGE_NOT_RETRYABLE: &str = "MESSAGE_NOT_RETRYABLE";
    pub(super) const CONTENDED: &str = "CONTENDED";
    pub(super) const SESSION_INVALID: &str = "SESSION_INVALID";
    pub(super) const AUTH_UNAVAILABLE: &str = "AUTH_UNAVAILABLE";
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the request is malformed")]
    Invalid(Vec<Violation>),
    #[error("the request_id belongs to another message")]
    RequestIdReused,
    #[error("no such message")]
    MessageNotFound,
    #[error("the message cannot be taken back")]
    NotCancellable(State),
    #[error("the message did not fail")]
    NotRetryable(State),
    #[error("no WeChat user is bound to the account")]
    AccountNotBound,
    #[error("no such broadcast")]
    BroadcastNotFound,
    #[error("the broadcast is in another state")]
    BroadcastState {
        state: broadcast::State,
        /// Those in which it would work.
        wanted: Vec<&'static str>,
    },
    #[error("the broadcast has no recipients")]
    BroadcastEmpty,
    #[error("the next part of an upload did not come in time")]
    UploadStalled,
    #[error("the service shuts down")]
    ShuttingDown,
    #[error("no form_id is stored for the user")]
    NoForm,
    #[error("others were faster each time")]
    Contended,
    #[error("the session is not valid")]
    SessionInvalid,
    #[error("auth-service does not answer")]
    AuthUnavailable(#[source] Status),
    #[error("auth-service refuses this service")]
    AuthRefused(#[source] Status),
    #[error("WeChat refused or did not answer")]
    WeChat {
        /// The app's name.
        app: String,
        source: wechat::Error,
        /// When: a quota comes back at midnight.
        now: SystemTime,
    },
    #[error("token-service refused or did not answer")]
    Tokens(#[source] token_client::Error),
    #[error("it was not done within {} s", .0.as_secs())]
    TooLate(Duration),
    #[error("the database refused or did not answer")]
    Database(#[from] DbErr),
    #[error("the database did not answer in time")]
    DatabaseTimeout,
    #[error("a task panicked")]
    Panicked,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(violations) => status::invalid_fields(violations),
            Error::RequestIdReused => status::invalid_field(
                "request_id",
                "was used before for something with other content or another recipient",
            ),
            Error::MessageNotFound => status::error(
                Code::NotFound,
                reason::MESSAGE_NOT_FOUND,
                "no message with this id is open to the caller",
            )
            .build(),
            Error::NotCancellable(state) => status::error(
                Code::FailedPrecondition,
                reason::MESSAGE_NOT_CANCELLABLE,
                format!("the message is {}: only one that still waits can be taken back", state.name()),
            )
            .build(),
            Error::NotRetryable(state) => status::error(
                Code::FailedPrecondition,
                reason::MESSAGE_NOT_RETRYABLE,
                format!("the message is {}: only one that FAILED can be retried", state.name()),
            )
            .build(),
            Error::AccountNotBound => status::error(
                Code::FailedPrecondition,
                reason::ACCOUNT_NOT_BOUND,
                "no WeChat user is bound to this account in this app: see CreateBindLink of auth-service",
            )
            .build(),
            Error::BroadcastNotFound => status::error(
                Code::NotFound,
                reason::BROADCAST_NOT_FOUND,
                "no broadcast with this id is open to the caller",
            )
            .build(),
            Error::BroadcastState { state, wanted } => status::error(
                Code::FailedPrecondition,
                reason::BROADCAST_STATE_WRONG,
                format!("the broadcast is {}: it has to be {}", state.name(), wanted.join(" or ")),
            )
            .build(),
            Error::BroadcastEmpty => status::error(
                Code::FailedPrecondition,
                reason::BROADCAST_EMPTY,
                "the broadcast has no recipients yet: add them first",
            )
            .build(),
            Error::UploadStalled => status::error(
                Code::DeadlineExceeded,
                status::reason::DEADLINE_EXCEEDED,
                "the next part did not come in time; what came before is stored",
            )
            .build(),
            Error::ShuttingDown => status::error(
                Code::Unavailable,
                reason::SHUTTING_DOWN,
                "this replica shuts down: ask again, another one answers",
            )
            .retry_after(Duration::from_secs(1))
            .build(),
            Error::NoForm => status::error(
                Code::FailedPrecondition,
                reason::FORM_ID_MISSING,
                "no form_id is stored for this user that is still good when the message goes out: give one, or let the mini program send them to POST /form",
            )
            .build(),
            Error::Contended => status::error(
                Code::Unavailable,
                reason::CONTENDED,
                "others take the same form_ids, or send the same request_ids, at this moment: try again",
            )
            .retry_after(Duration::from_secs(1))
            .build(),
            Error::SessionInvalid => status::error(
                Code::Unauthenticated,
                reason::SESSION_INVALID,
                "send the session token of a login as `Authorization`",
            )
            .build(),
            Error::AuthUnavailable(source) => {
                error!(code = ?source.code(), "auth-service does not answer: {}", source.message());
                status::error(Code::Unavailable, reason::AUTH_UNAVAILABLE, "auth-service does not answer")
                    .retry_after(Duration::from_secs(1))
                    .build()
            }
            Error::AuthRefused(source) => {
                error!(code = ?source.code(), "auth-service refuses this service: {}", source.message());
                status::internal()
            }
            Error::WeChat { app, source, now } => {
                warn!(app, "WeChat refused or did not answer: {source}");
                status::wechat(&source, &app, now).build()
            }
            Error::Tokens(source) => source.to_caller(),
            Error::TooLate(deadline) => status::error(
                Code::DeadlineExceeded,
                status::reason::DEADLINE_EXCEEDED,
                format!("it was not done within {} s", deadline.as_secs()),
            )
            .build(),
            Error::Database(source) => {
                error!("the database failed: {source}");
                status::store_unavailable("the database")
            }
            Error::DatabaseTimeout => {
                error!("the database did not answer in time");
                status::store_unavailable("the database")
            }
            Error::Panicked => {
                error!("a task panicked");
                status::internal()
            }
        }
    }
}
