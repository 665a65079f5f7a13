//! What an attempt failed of, kept in the message's row.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Message;

/// How many are kept, the latest.
const KEPT: usize = 20;
/// The longest errmsg kept, in characters.
const ERRMSG: usize = 256;

/// An attempt that WeChat did not accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedAttempt {
    pub(crate) time: DateTime<Utc>,
    /// 0 where WeChat did not answer.
    pub(crate) errcode: i64,
    pub(crate) errmsg: String,
    /// Nobody knows whether the user got it.
    pub(crate) outcome_unknown: bool,
}

impl FailedAttempt {
    /// Those of a message, oldest first. What cannot be read is left out: it is for people alone.
    pub(crate) fn all(message: &Message) -> Vec<Self> {
        let stored = message.failed_attempts.as_deref();
        stored
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default()
    }

    /// Those of a message with this one, as its row keeps them.
    pub(crate) fn after(mut self, message: &Message) -> String {
        self.errmsg = self.errmsg.chars().take(ERRMSG).collect();
        let mut all = Self::all(message);
        all.push(self);
        let superfluous = all.len().saturating_sub(KEPT);
        all.drain(..superfluous);
        serde_json::to_string(&all).unwrap_or_default()
    }
}
