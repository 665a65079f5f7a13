//! What an attempt's result means for a message: pure, so that the whole table is tested.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use service_kit::{catalog::OnAmbiguous, status};
use wechat::{Class, MsgId};

use crate::message::{
    Content, Message,
    store::{Next, Outcome},
};

/// After this many attempts a message is given up.
pub(super) const MAX_ATTEMPTS: u32 = 10;
/// Backoff is drawn from one second up to a limit that doubles with each attempt, up to the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// WeChat's per-minute limits are over after this.
const MINUTE: Duration = Duration::from_secs(60);
/// After a daily quota resets, waiting messages are spread over this long.
const DAY_SPREAD: Duration = Duration::from_secs(5 * 60);
/// WeChat tells repeats of a template by client_msg_id for ten minutes; the last one leaves room for its own attempt
/// and for clocks that differ.
const GUARDED: Duration = Duration::from_secs(9 * 60);
/// Begins the errmsg of a message whose outcome nobody knows.
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// What an attempt came to.
#[derive(Debug)]
pub(super) enum Attempt {
    /// WeChat answered, or did not.
    Made(Result<Option<MsgId>, wechat::Error>),
    /// Its worker died while it was on the wire.
    Lost,
}

/// The circumstances of a decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    pub(super) on_ambiguous: OnAmbiguous,
    pub(super) now: SystemTime,
    /// 0 to 1, drawn at random.
    pub(super) jitter: f64,
}

/// Whether a due message may go on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    Send,
    /// An earlier attempt may have reached the user.
    SendAgain,
    GiveUp,
}

/// Decides about a message that is due.
pub(super) fn before(message: &Message, content: &Content, circumstances: Circumstances) -> Before {
    match message.ambiguous_time {
        None => Before::Send,
        Some(since) if guarded(content, since, circumstances.now) => Before::Send,
        Some(_) => match circumstances.on_ambiguous {
            OnAmbiguous::AtLeastOnce => Before::SendAgain,
            OnAmbiguous::AtMostOnce => Before::GiveUp,
        },
    }
}

/// Decides what becomes of a message; `attempts` counts the one just made.
pub(super) fn after(
    message: &Message,
    content: &Content,
    attempts: u32,
    attempt: &Attempt,
    circumstances: Circumstances,
) -> Outcome {
    let mut outcome = Outcome {
        next: Next::Failed,
        attempts,
        errcode: 0,
        errmsg: String::new(),
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
    };
    let jitter = circumstances.jitter;
    let error = match attempt {
        Attempt::Made(Ok(msg_id)) => {
            outcome.next = sent(circumstances.now, msg_id.as_ref());
            return outcome;
        }
        Attempt::Made(Err(error)) if error.class() == Class::Ok => {
            outcome.next = sent(circumstances.now, None);
            return outcome;
        }
        Attempt::Made(Err(error)) => Some(error),
        Attempt::Lost => None,
    };
    outcome.errcode = error
        .and_then(wechat::Error::errcode)
        .map_or(0, |code| code.0);
    outcome.errmsg = error.map_or_else(|| "the worker was lost while it sent".to_owned(), text);
    let retry = |delay| {
        if attempts < MAX_ATTEMPTS {
            Next::Queued { delay }
        } else {
            Next::Failed
        }
    };
    if error.is_none_or(wechat::Error::is_ambiguous) {
        let now = at(circumstances.now);
        let since = *outcome.ambiguous_time.get_or_insert(now);
        let guarded = guarded(content, since, circumstances.now);
        if guarded || circumstances.on_ambiguous == OnAmbiguous::AtLeastOnce {
            outcome.next = retry(backoff(attempts, jitter));
        }
        match outcome.next {
            Next::Queued { .. } => outcome.possible_duplicate |= !guarded,
            _ => outcome.errmsg = format!("{OUTCOME_UNKNOWN}: {}", outcome.errmsg),
        }
        return outcome;
    }
    let class = error.map_or(Class::Backoff, wechat::Error::class);
    outcome.next = match class {
        Class::Token | Class::Backoff => retry(backoff(attempts, jitter)),
        Class::Minute => retry(MINUTE + backoff(attempts, jitter)),
        Class::Day => {
            retry(status::until_beijing_midnight(circumstances.now) + DAY_SPREAD.mul_f64(jitter))
        }
        Class::Ok
        | Class::Caller
        | Class::Recipient
        | Class::Config
        | Class::Grant
        | Class::Unknown => Next::Failed,
    };
    outcome
}

/// Gives up a message whose earlier attempt may have reached the user.
pub(super) fn unknown(message: &Message) -> Outcome {
    Outcome {
        next: Next::Failed,
        attempts: message.attempts,
        errcode: message.errcode,
        errmsg: format!("{OUTCOME_UNKNOWN}: {}", message.errmsg),
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
    }
}

/// Puts a message back that did not go on the wire: that was no attempt.
pub(super) fn release(message: &Message, attempts: u32, why: String, delay: Duration) -> Outcome {
    Outcome {
        next: Next::Queued { delay },
        attempts,
        errcode: message.errcode,
        errmsg: why,
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
    }
}

/// Full jitter: between one second and a limit that doubles with each attempt.
pub(super) fn backoff(attempts: u32, jitter: f64) -> Duration {
    let limit = SHORTEST
        .saturating_mul(2_u32.saturating_pow(attempts.max(1)))
        .min(LONGEST);
    SHORTEST + (limit - SHORTEST).mul_f64(jitter)
}

/// Whether WeChat still tells a repeat of this message by its client_msg_id.
fn guarded(content: &Content, since: DateTime<Utc>, now: SystemTime) -> bool {
    let age = (at(now) - since).to_std().unwrap_or_default();
    matches!(content, Content::Template(_)) && age < GUARDED
}

fn sent(now: SystemTime, msg_id: Option<&MsgId>) -> Next {
    Next::Sent {
        time: at(now),
        wechat_msg_id: msg_id.map(ToString::to_string),
    }
}

/// WeChat's own words where it answered, ours where it did not.
fn text(error: &wechat::Error) -> String {
    match error {
        wechat::Error::Api(api) => api.errmsg.clone(),
        other => other.to_string(),
    }
}

fn at(time: SystemTime) -> DateTime<Utc> {
    let millis = service_kit::clock::millis(service_kit::clock::since_epoch(time));
    DateTime::from_timestamp_millis(i64::try_from(millis).unwrap_or(i64::MAX)).unwrap_or_default()
}

/// Gives up a message that cannot be read back.
pub(super) fn broken(message: &Message, why: String) -> Outcome {
    Outcome {
        next: Next::Failed,
        attempts: message.attempts,
        errcode: message.errcode,
        errmsg: why,
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
    }
}
