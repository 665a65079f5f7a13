//! A refresh that failed: remembered, so that nobody tries again before it makes sense, and shared by all replicas.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use wechat::{ApiError, Class, ErrCode};

use super::ledger::reset;

/// Pauses after failures that pass by themselves: they double from the first to the last.
const TRANSIENT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same after refusals that last until somebody changes a setting (R9).
const SETTLED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// WeChat's limits per minute.
const MINUTE: Duration = Duration::from_secs(60);

/// Why the last refresh failed, and when the next makes sense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// When.
    pub at: SystemTime,
    /// Nothing is sent to WeChat before.
    pub retry_at: SystemTime,
    /// Failures in a row.
    pub attempts: u32,
    /// Which secret and mode it was tried with: when they change, the failure is history.
    pub settings: String,
}

/// What went wrong with a call to WeChat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// WeChat refused.
    Refused {
        /// Which call.
        call: Call,
        /// Why, as a number.
        errcode: i64,
        /// Why, in WeChat's words.
        errmsg: String,
        /// What to quote to WeChat's support.
        rid: Option<String>,
    },
    /// WeChat did not answer, or not as WeChat.
    NoAnswer {
        /// What came instead.
        problem: String,
    },
}

/// The calls that fetch a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `GET /cgi-bin/token`.
    Token,
    /// `POST /cgi-bin/stable_token`.
    StableToken,
    /// `GET /cgi-bin/ticket/getticket`.
    Ticket,
}

impl Call {
    /// The path.
    pub const fn endpoint(self) -> &'static str {
        match self {
            Self::Token => "/cgi-bin/token",
            Self::StableToken => "/cgi-bin/stable_token",
            Self::Ticket => "/cgi-bin/ticket/getticket",
        }
    }
}

impl Cause {
    /// What the error of `call` says.
    pub(crate) fn of(call: Call, error: &wechat::Error) -> Self {
        match error {
            wechat::Error::Api(ApiError {
                errcode,
                errmsg,
                rid,
                ..
            }) => Self::Refused {
                call,
                errcode: errcode.0,
                errmsg: errmsg.clone(),
                rid: rid.clone(),
            },
            other => Self::NoAnswer {
                problem: other.to_string(),
            },
        }
    }

    /// WeChat's refusal, when it was one.
    pub fn refusal(&self) -> Option<ApiError> {
        match self {
            Self::Refused {
                call,
                errcode,
                errmsg,
                rid,
            } => Some(ApiError {
                endpoint: call.endpoint(),
                errcode: ErrCode(*errcode),
                errmsg: errmsg.clone(),
                rid: rid.clone(),
            }),
            Self::NoAnswer { .. } => None,
        }
    }

    /// Whether WeChat said that the day's quota is used up.
    pub(crate) fn is_exhaustion(&self) -> bool {
        self.class() == Class::Day
    }

    fn class(&self) -> Class {
        self.refusal()
            .map_or(Class::Backoff, |refusal| refusal.class())
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAnswer { problem } => f.write_str(problem),
            Self::Refused { .. } => match self.refusal() {
                Some(refusal) => refusal.fmt(f),
                None => Ok(()),
            },
        }
    }
}

impl Failure {
    /// Notes a failure at `now`, after `before`. `spread` is random, from 0 to below 1.
    pub(crate) fn new(
        cause: Cause,
        settings: String,
        before: Option<&Self>,
        now: SystemTime,
        spread: f64,
    ) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let doubled = |(first, last): (Duration, Duration)| {
            let pause = first.saturating_mul(1 << (attempts - 1).min(16)).min(last);
            pause.mul_f64(1.0 - spread / 2.0)
        };
        let pause = match cause.class() {
            Class::Backoff | Class::Token => doubled(TRANSIENT),
            Class::Minute => MINUTE.mul_f64(1.0 + spread / 4.0),
            Class::Day => {
                reset(now).duration_since(now).unwrap_or_default() + MINUTE.mul_f64(spread)
            }
            Class::Ok
            | Class::Caller
            | Class::Recipient
            | Class::Config
            | Class::Grant
            | Class::Unknown => doubled(SETTLED),
        };
        Self {
            cause,
            at: now,
            retry_at: now + pause,
            attempts,
            settings,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn pause(errcode: i64, attempts: u32) -> Duration {
        let cause = Cause::Refused {
            call: Call::Token,
            errcode,
            errmsg: String::new(),
            rid: None,
        };
        let mut failure = None;
        for _ in 0..attempts {
            failure = Some(Failure::new(
                cause.clone(),
                String::new(),
                failure.as_ref(),
                UNIX_EPOCH,
                0.0,
            ));
        }
        let retry_at = failure.unwrap().retry_at;
        retry_at.duration_since(UNIX_EPOCH).unwrap()
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let pauses: Vec<_> = (1..=7).map(|n| pause(-1, n).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn r09_wrong_settings_are_not_hammered() {
        for errcode in [40001, 40013, 40125, 40164, 41002, 41004, 89503] {
            let pauses: Vec<_> = (1..=8).map(|n| pause(errcode, n).as_secs()).collect();
            assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600], "{errcode}");
        }
    }

    #[test]
    fn a_spent_quota_waits_for_midnight_in_beijing() {
        assert_eq!(pause(45009, 1), Duration::from_secs(16 * 3600 + 60));
        assert_eq!(pause(45011, 3), MINUTE);
    }

    #[test]
    fn any_number_of_failures_is_counted() {
        assert_eq!(pause(-1, 100), Duration::from_secs(30));
    }
}
