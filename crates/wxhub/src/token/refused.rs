//! Why a service did not do as asked, for people and for scripts.

use std::{error::Error, fmt, process::ExitCode, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// EX_TEMPFAIL of sysexits.h.
const LATER: u8 = 75;

/// What a service answered in place of what was asked for.
#[derive(Debug)]
pub(crate) struct Refused {
    service: &'static str,
    status: Box<Status>,
}

impl Refused {
    /// The service of this name answered so.
    pub(crate) fn by(service: &'static str, status: Status) -> Self {
        Self {
            service,
            status: Box::new(status),
        }
    }

    /// Whether the same command may work later.
    pub(crate) fn is_temporary(&self) -> bool {
        self.retry_after().is_some()
            || matches!(
                self.status.code(),
                Code::Unavailable | Code::DeadlineExceeded
            )
    }

    /// What the program ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.is_temporary() {
            ExitCode::from(LATER)
        } else {
            ExitCode::FAILURE
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.status.get_details_retry_info()?.retry_delay
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::by("token-service", status)
    }
}

/// The message, the reason, and when to come back.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.status.message())?;
        match self.status.get_details_error_info() {
            Some(info) => write!(f, " ({})", info.reason)?,
            None => write!(f, " ({:?})", self.status.code())?,
        }
        match self.retry_after() {
            Some(delay) => write!(f, "; try again in {} s", delay.as_millis().div_ceil(1_000)),
            None => Ok(()),
        }
    }
}

impl Error for Refused {}

#[cfg(test)]
mod tests {
    use service_kit::status;

    use super::*;

    #[test]
    fn it_tells_the_message_the_reason_and_when_to_come_back() {
        let status = status::error(Code::Unavailable, "REFRESH_TOO_SOON", "refreshed just now")
            .retry_after(Duration::from_millis(29_001));
        let refused = Refused::from(status.build());
        assert_eq!(
            refused.to_string(),
            "token-service: refreshed just now (REFRESH_TOO_SOON); try again in 30 s"
        );
        assert!(refused.is_temporary());
        let refused = Refused::from(Status::unimplemented("no such RPC here"));
        assert_eq!(
            refused.to_string(),
            "token-service: no such RPC here (Unimplemented)"
        );
        assert!(!refused.is_temporary());
    }
}
