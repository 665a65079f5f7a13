//! What each error looks like on the wire.

use std::time::{Duration, SystemTime};

use service_kit::status::{self, invalid_field, reason};
use tonic::{Code, Status};
use wechat::Class;

use crate::error::Error;

/// Reasons of ErrorInfo that only this service gives. They are part of the API: never renamed.
mod reasons {
    /// A refresh now would burn the app's quota.
    pub(super) const REFRESH_TOO_SOON: &str = "REFRESH_TOO_SOON";
    /// No forced refresh is left.
    pub(super) const FORCED_REFRESH_SPENT: &str = "FORCED_REFRESH_SPENT";
    /// The refresh takes longer than a caller waits.
    pub(super) const REFRESH_IN_PROGRESS: &str = "REFRESH_IN_PROGRESS";
}

pub(super) fn of(error: &Error, now: SystemTime) -> Status {
    let message = error.to_string();
    match error {
        Error::Failed { app, failure } => {
            let left = failure.retry_at.duration_since(now).unwrap_or_default();
            let Some(refusal) = failure.cause.refusal() else {
                return status::error(Code::Unavailable, reason::WECHAT_UNAVAILABLE, message)
                    .retry_after(left)
                    .build();
            };
            let waiting_helps = matches!(
                refusal.class(),
                Class::Backoff | Class::Minute | Class::Day | Class::Token
            );
            let status = status::wechat(&wechat::Error::Api(refusal), app.as_str(), now);
            if waiting_helps {
                status.retry_after(left).build()
            } else {
                status.build()
            }
        }
        Error::StoreUnavailable => status::store_unavailable("the store of credentials"),
        Error::TooSlow { .. } => {
            status::error(Code::Unavailable, reasons::REFRESH_IN_PROGRESS, message)
                .retry_after(Duration::from_secs(1))
                .build()
        }
        Error::TooSoon { retry_after, .. } => {
            status::error(Code::ResourceExhausted, reasons::REFRESH_TOO_SOON, message)
                .retry_after(*retry_after)
                .build()
        }
        Error::ForceSpent { retry_after, .. } => status::error(
            Code::ResourceExhausted,
            reasons::FORCED_REFRESH_SPENT,
            message,
        )
        .retry_after(*retry_after)
        .build(),
        Error::QuotaSpent { retry_after, .. } => status::error(
            Code::ResourceExhausted,
            reason::WECHAT_QUOTA_EXHAUSTED,
            message,
        )
        .retry_after(*retry_after)
        .build(),
        Error::AppGone { .. } => {
            status::error(Code::NotFound, reason::APP_NOT_FOUND, message).build()
        }
        Error::UnknownVersion => invalid_field("version", message),
        Error::Url(_) => invalid_field("url", message),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::UNIX_EPOCH};

    use tonic_types::StatusExt as _;

    use super::*;
    use crate::credential::failure::{Call, Cause, Failure};

    fn failed(cause: Cause) -> Error {
        Error::Failed {
            app: "wx0000000000000001".parse().unwrap(),
            failure: Arc::new(Failure {
                cause,
                at: UNIX_EPOCH,
                retry_at: UNIX_EPOCH + Duration::from_secs(7),
                attempts: 1,
                settings: String::new(),
            }),
        }
    }

    fn refused(errcode: i64) -> Cause {
        Cause::Refused {
            call: Call::StableToken,
            errcode,
            errmsg: "e rid: r".to_owned(),
            rid: Some("r".to_owned()),
        }
    }

    #[test]
    fn what_wechat_says_arrives_typed() {
        let status = of(&failed(refused(40125)), UNIX_EPOCH);
        assert_eq!(status.code(), Code::FailedPrecondition);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, reason::WECHAT_CONFIG_INVALID);
        assert_eq!(
            (
                info.metadata["errcode"].as_str(),
                info.metadata["rid"].as_str()
            ),
            ("40125", "r")
        );
        assert!(status.get_details_retry_info().is_none());
    }

    #[test]
    fn where_waiting_helps_it_is_said_how_long() {
        let causes = [
            refused(-1),
            refused(45009),
            Cause::NoAnswer {
                problem: "no answer in time".to_owned(),
            },
        ];
        for cause in causes {
            let status = of(&failed(cause), UNIX_EPOCH);
            let retry = status.get_details_retry_info().unwrap();
            assert_eq!(
                retry.retry_delay,
                Some(Duration::from_secs(7)),
                "{status:?}"
            );
        }
    }
}
