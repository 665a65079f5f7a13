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
            || self.is_broken()
            || matches!(
                self.status.code(),
                Code::Unavailable | Code::DeadlineExceeded
            )
    }

    /// Whether this is no answer at all: the connection ended before one came. What a service says has no cause on this
    /// side.
    fn is_broken(&self) -> bool {
        self.status.source().is_some()
    }

    /// What the program ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.is_temporary() {
            ExitCode::from(LATER)
        } else {
            ExitCode::FAILURE
        }
    }

    /// What to do about it, where that is not in the message.
    fn hint(&self) -> Option<&'static str> {
        let info = self.status.get_details_error_info()?;
        Some(match info.reason.as_str() {
            "PEER_UNAVAILABLE" => "does it run, and at that URL? --help names the setting",
            "CALLER_KEY_INVALID" => {
                "WXHUB_CALLER_KEY is the key of a caller in wxhub.toml; of `wxhub dev` it is dev-key"
            }
            "ACCOUNT_NOT_BOUND" => "`wxhub account show` tells to whom an account is bound",
            "MESSAGE_NOT_FOUND" => "`wxhub message list --app APP` shows an app's messages",
            "BROADCAST_NOT_FOUND" => "`wxhub broadcast list --app APP` shows an app's broadcasts",
            _ => return None,
        })
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

/// The message, the reason, when to come back, and what to do.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.service)?;
        if self.is_broken() {
            f.write_str("the connection broke: ")?;
        }
        f.write_str(self.status.message())?;
        match self.status.get_details_error_info() {
            Some(info) => write!(f, " ({})", info.reason)?,
            None if self.is_broken() => {}
            None => write!(f, " ({:?})", self.status.code())?,
        }
        if let Some(delay) = self.retry_after() {
            let seconds = delay.as_millis().div_ceil(1_000);
            write!(f, "; try again in {seconds} s")?;
        }
        match self.hint() {
            Some(hint) => write!(f, "\nhint: {hint}"),
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
        let status = status::error(Code::NotFound, "MESSAGE_NOT_FOUND", "no such message");
        assert_eq!(
            Refused::by("push-service", status.build()).to_string(),
            "push-service: no such message (MESSAGE_NOT_FOUND)\n\
             hint: `wxhub message list --app APP` shows an app's messages"
        );
        let refused = Refused::from(Status::unimplemented("no such RPC here"));
        assert_eq!(
            refused.to_string(),
            "token-service: no such RPC here (Unimplemented)"
        );
        assert!(!refused.is_temporary());
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let refused = Refused::from(Status::from_error(Box::new(broken)));
        assert_eq!(
            refused.to_string(),
            "token-service: the connection broke: connection reset"
        );
        assert!(refused.is_temporary());
    }
}
