//! How asking for a token fails.

use std::time::Duration;

use service_kit::status::{self, reason};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::{debug, error, warn};

/// Why there is no token, ticket or signature.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// token-service refused, or does not answer. Its details are ErrorInfo (with WeChat's errcode, errmsg and rid where
    /// WeChat refused) and RetryInfo: pass the status on to a caller of gRPC as it is.
    #[error("token-service: {}", .0.message())]
    Refused(Box<Status>),
    /// token-service's answer lacks a field.
    #[error("token-service's answer has no valid {0}")]
    Malformed(&'static str),
}

impl Error {
    /// The gRPC code to answer with.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(status) => status.code(),
            Self::Malformed(_) => Code::Internal,
        }
    }

    /// The machine-readable reason of ErrorInfo, where there is one.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Refused(status) => status.get_details_error_info().map(|info| info.reason),
            Self::Malformed(_) => None,
        }
    }

    /// How long to wait before asking again, where waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(status) => status.get_details_retry_info()?.retry_delay,
            Self::Malformed(_) => None,
        }
    }
}

impl Error {
    /// What a service tells its own caller who needed the token. What is about the service's own key or list of apps is
    /// the operator's to mend: it goes to the log, and the caller learns nothing of it.
    pub fn to_caller(&self) -> Status {
        match self.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::NotFound => {
                error!(
                    error = self as &dyn std::error::Error,
                    "token-service refuses this service"
                );
                status::internal()
            }
            _ if self.reason().is_none() => {
                warn!(
                    error = self as &dyn std::error::Error,
                    "token-service does not answer"
                );
                let message = "token-service does not answer";
                status::error(Code::Unavailable, reason::PEER_UNAVAILABLE, message)
                    .retry_after(Duration::from_secs(1))
                    .build()
            }
            _ => {
                debug!(
                    error = self as &dyn std::error::Error,
                    "token-service refused"
                );
                Status::from(self.clone())
            }
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The same failure, told to this program's own caller of gRPC.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(status) => *status,
            Error::Malformed(_) => status::internal(),
        }
    }
}

/// Why a call with a token failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no token to call with.
    #[error(transparent)]
    Token(#[from] Error),
    /// The call itself failed.
    #[error(transparent)]
    WeChat(wechat::Error),
}

pub(crate) fn required<T>(field: Option<T>, name: &'static str) -> Result<T, Error> {
    field.ok_or(Error::Malformed(name))
}
