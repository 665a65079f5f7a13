//! gRPC errors with google.rpc details: ErrorInfo always, RetryInfo where waiting helps, BadRequest for bad fields.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of every ErrorInfo.
pub const DOMAIN: &str = "wxhub";

/// The reasons of ErrorInfo that more than one service gives. They are part of the API: never renamed.
pub mod reason {
    /// The app is unknown, or outside the caller's list.
    pub const APP_NOT_FOUND: &str = "APP_NOT_FOUND";
    /// The service has no such RPC: mostly it is another service's port.
    pub const RPC_UNKNOWN: &str = "RPC_UNKNOWN";
    /// No caller has the key.
    pub const CALLER_KEY_INVALID: &str = "CALLER_KEY_INVALID";
    /// The caller lacks the RPC's scope.
    pub const SCOPE_MISSING: &str = "SCOPE_MISSING";
    /// A field of the request is wrong: see BadRequest.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// WeChat refused: see errcode.
    pub const WECHAT_REFUSED: &str = "WECHAT_REFUSED";
    /// WeChat did not answer, or not as WeChat.
    pub const WECHAT_UNAVAILABLE: &str = "WECHAT_UNAVAILABLE";
    /// WeChat's quota of the app is used up.
    pub const WECHAT_QUOTA_EXHAUSTED: &str = "WECHAT_QUOTA_EXHAUSTED";
    /// The app's settings, here or in WeChat's console, are wrong.
    pub const WECHAT_CONFIG_INVALID: &str = "WECHAT_CONFIG_INVALID";
    /// Redis or the database does not answer.
    pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
    /// Another of the services does not answer.
    pub const PEER_UNAVAILABLE: &str = "PEER_UNAVAILABLE";
    /// The answer took longer than the caller's deadline, or than wxhub's own.
    pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    /// A bug of wxhub's; the message carries no detail, the log does.
    pub const INTERNAL: &str = "INTERNAL";
}

/// Builds a [`Status`] with its details.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
    violations: Vec<(String, String)>,
}

/// Starts an error. `reason` is machine-readable and stable; `message` is for people and carries no secret.
pub fn error(code: Code, reason: &'static str, message: impl Into<String>) -> Builder {
    Builder {
        code,
        reason,
        message: message.into(),
        metadata: HashMap::new(),
        retry_after: None,
        violations: Vec::new(),
    }
}

/// `INVALID_ARGUMENT` with one violated field.
pub fn invalid_field(field: &str, problem: impl Into<String>) -> Status {
    invalid_fields([(field.to_owned(), problem.into())])
}

/// `INVALID_ARGUMENT` with every violated field and its problem.
pub fn invalid_fields(violations: impl IntoIterator<Item = (String, String)>) -> Status {
    let violations: Vec<_> = violations.into_iter().collect();
    let problems: Vec<_> = violations
        .iter()
        .map(|(field, problem)| format!("{field} {problem}"))
        .collect();
    let mut builder = error(
        Code::InvalidArgument,
        reason::INVALID_ARGUMENT,
        problems.join("; "),
    );
    builder.violations = violations;
    builder.build()
}

/// `UNAVAILABLE` because a store does not answer; `what` names it for people.
pub fn store_unavailable(what: &str) -> Status {
    error(
        Code::Unavailable,
        reason::STORE_UNAVAILABLE,
        format!("{what} does not answer"),
    )
    .retry_after(Duration::from_secs(1))
    .build()
}

/// `INTERNAL`, without detail.
pub fn internal() -> Status {
    error(
        Code::Internal,
        reason::INTERNAL,
        "internal error: see the service's log",
    )
    .build()
}

/// The status for a call to WeChat that failed: which code, whether to try again and when, and WeChat's own words in
/// ErrorInfo's metadata.
pub fn wechat(error: &wechat::Error, app: &str, now: std::time::SystemTime) -> Builder {
    use wechat::Class;

    let (code, reason, retry_after) = match error.class() {
        Class::Day => (
            Code::ResourceExhausted,
            reason::WECHAT_QUOTA_EXHAUSTED,
            Some(until_beijing_midnight(now)),
        ),
        Class::Minute => (
            Code::Unavailable,
            reason::WECHAT_UNAVAILABLE,
            Some(Duration::from_secs(60)),
        ),
        Class::Backoff | Class::Token => (
            Code::Unavailable,
            reason::WECHAT_UNAVAILABLE,
            Some(Duration::from_secs(1)),
        ),
        Class::Config => (
            Code::FailedPrecondition,
            reason::WECHAT_CONFIG_INVALID,
            None,
        ),
        Class::Ok | Class::Caller | Class::Recipient | Class::Grant | Class::Unknown => {
            (Code::FailedPrecondition, reason::WECHAT_REFUSED, None)
        }
    };
    let mut builder = self::error(code, reason, format!("app {app}: {error}"));
    if let wechat::Error::Api(api) = error {
        builder = builder
            .metadata("errcode", api.errcode.0.to_string())
            .metadata("errmsg", api.errmsg.clone());
        if let Some(rid) = &api.rid {
            builder = builder.metadata("rid", rid.clone());
        }
    }
    match retry_after {
        Some(delay) => builder.retry_after(delay),
        None => builder,
    }
}

/// Time until WeChat's daily quotas start again: midnight in Beijing (UTC+8, no summer time).
pub fn until_beijing_midnight(now: std::time::SystemTime) -> Duration {
    const DAY: u64 = 24 * 3600;
    let beijing = crate::clock::since_epoch(now).as_secs() + 8 * 3600;
    Duration::from_secs(DAY - beijing % DAY)
}

impl Builder {
    /// Adds a key and value to ErrorInfo's metadata.
    pub fn metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Says that the same call may work after a while.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Puts another code and reason in place, keeping the details.
    pub fn with_code(mut self, code: Code, reason: &'static str) -> Self {
        self.code = code;
        self.reason = reason;
        self
    }

    /// The status.
    pub fn build(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, self.metadata);
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        for (field, problem) in self.violations {
            details.add_bad_request_violation(field, problem);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn every_bad_field_is_named() {
        let status = invalid_fields([
            ("open_id".to_owned(), "is missing".to_owned()),
            ("content".to_owned(), "is missing".to_owned()),
        ]);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "open_id is missing; content is missing");
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations.len(), 2);
        assert_eq!(request.field_violations[0].field, "open_id");
    }

    #[test]
    fn quotas_start_again_at_midnight_in_beijing() {
        // 2026-11-21 15:59:00 UTC is one minute before midnight in Beijing.
        let now = UNIX_EPOCH + Duration::from_secs(1_795_276_740);
        assert_eq!(until_beijing_midnight(now), Duration::from_secs(60));
    }
}
