//! What an attempt's result means for a message: pure, so that the whole table is tested.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use service_kit::{catalog::OnAmbiguous, status};
use tonic::Code;
use wechat::{Class, MsgId};

use super::queue::{LEASE, Next, Outcome};
use crate::message::{Content, FailedAttempt, Message};

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
/// How long a message waits that could not be put on the wire, or twice that.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// How long messages wait whose app has no token, but may have one soon.
const NO_TOKEN: Duration = Duration::from_secs(1);
/// How long messages wait whose app gets no token until somebody mends its settings.
const MISCONFIGURED: Duration = Duration::from_secs(60);
/// How long messages wait when a token that was only just replaced is refused as well: token-service replaces none sooner.
const REPLACEABLE: Duration = Duration::from_secs(30);
/// The longest wait that token-service can ask for.
const ASKED: Duration = Duration::from_secs(5 * 60);
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
    /// Its time is over.
    Expire,
}

/// Decides about a message that is due.
pub(super) fn before(message: &Message, content: &Content, circumstances: Circumstances) -> Before {
    if message
        .expire_time
        .is_some_and(|expires| expires <= at(circumstances.now))
    {
        return Before::Expire;
    }
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
        failed_attempts: message.failed_attempts.clone(),
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
    if let Some(wechat::Error::NotSent { .. }) = error {
        // It never was on the wire: that was no attempt, and an outage uses none up.
        outcome.attempts = attempts.saturating_sub(1);
        outcome.next = Next::Queued {
            delay: UNREACHABLE.mul_f64(1.0 + jitter),
        };
        return outcome;
    }
    let retry = |delay| {
        if attempts < MAX_ATTEMPTS {
            Next::Queued { delay }
        } else {
            Next::Failed
        }
    };
    let outcome_unknown = error.is_none_or(wechat::Error::is_ambiguous);
    let failed = FailedAttempt {
        time: at(circumstances.now),
        errcode: outcome.errcode,
        errmsg: outcome.errmsg.clone(),
        outcome_unknown,
    };
    outcome.failed_attempts = Some(failed.after(message));
    if outcome_unknown {
        let sent = match (attempt, message.next_attempt_time) {
            // Its lease began right before it went on the wire; it may have ended long ago.
            (Attempt::Lost, Some(lease_end)) => lease_end - LEASE,
            _ => at(circumstances.now),
        };
        let since = *outcome.ambiguous_time.get_or_insert(sent);
        let guarded = guarded(content, since, circumstances.now);
        if guarded || circumstances.on_ambiguous == OnAmbiguous::AtLeastOnce {
            outcome.next = match attempt {
                // The lease was wait enough, and WeChat has done nothing to be spared for.
                Attempt::Lost if attempts < MAX_ATTEMPTS => Next::First,
                _ => retry(backoff(attempts, jitter)),
            };
        }
        match outcome.next {
            Next::Queued { .. } | Next::First => outcome.possible_duplicate |= !guarded,
            _ => outcome.errmsg = format!("{OUTCOME_UNKNOWN}: {}", outcome.errmsg),
        }
        return outcome;
    }
    let class = error.map_or(Class::Backoff, wechat::Error::class);
    outcome.next = match class {
        Class::Token | Class::Backoff => retry(backoff(attempts, jitter)),
        Class::Minute => retry(MINUTE + backoff(attempts, jitter)),
        Class::Day => retry(next_day(circumstances)),
        Class::Ok
        | Class::Caller
        | Class::Recipient
        | Class::Config
        | Class::Grant
        | Class::Unknown => Next::Failed,
    };
    outcome
}

/// Ends a message whose time is over. What the last attempt came to stays.
pub(super) fn expired(message: &Message) -> Outcome {
    let in_doubt = message.ambiguous_time.is_some();
    Outcome {
        next: Next::Expired,
        attempts: message.attempts,
        errcode: message.errcode,
        errmsg: if in_doubt {
            format!("{OUTCOME_UNKNOWN}: {}", message.errmsg)
        } else {
            message.errmsg.clone()
        },
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
        failed_attempts: message.failed_attempts.clone(),
    }
}

/// How long a message waits at most: then it is told that its time is over.
pub(super) fn until_expiry(message: &Message, delay: Duration, now: SystemTime) -> Duration {
    let left = message
        .expire_time
        .map(|expires| (expires - at(now)).to_std());
    match left {
        Some(left) => delay.min(left.unwrap_or_default()),
        None => delay,
    }
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
        failed_attempts: message.failed_attempts.clone(),
    }
}

/// Puts a message back that did not go on the wire: that was no attempt.
pub(super) fn release(message: &Message, why: String, delay: Duration) -> Outcome {
    Outcome {
        next: Next::Queued { delay },
        attempts: message.attempts,
        errcode: message.errcode,
        errmsg: why,
        possible_duplicate: message.possible_duplicate,
        ambiguous_time: message.ambiguous_time,
        failed_attempts: message.failed_attempts.clone(),
    }
}

/// How long an interface of WeChat's takes no more messages of an app after this refusal; none where it concerns the
/// message alone.
pub(super) fn closed(error: &wechat::Error, circumstances: Circumstances) -> Option<Duration> {
    match error.class() {
        Class::Minute => Some(MINUTE),
        Class::Day => Some(next_day(circumstances)),
        _ => None,
    }
}

/// Until a daily quota resets; waiting messages are spread from then on.
fn next_day(circumstances: Circumstances) -> Duration {
    status::until_beijing_midnight(circumstances.now) + DAY_SPREAD.mul_f64(circumstances.jitter)
}

/// How long a message waits whose app has no token: as long as token-service asks for, at least.
pub(super) fn without_token(error: &token_client::Error, jitter: f64) -> Duration {
    let by_code = match error.code() {
        Code::NotFound
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated => MISCONFIGURED,
        _ => NO_TOKEN,
    };
    let delay = error
        .retry_after()
        .map_or(by_code, |asked| asked.clamp(NO_TOKEN, ASKED));
    delay.mul_f64(1.0 + jitter / 2.0)
}

/// How long messages wait whose app's token is refused and not replaced in time.
pub(super) fn without_answer(jitter: f64) -> Duration {
    NO_TOKEN.mul_f64(1.0 + jitter / 2.0)
}

/// How long messages wait whose app's new token is refused as the old one was: it is of another account, or somebody else
/// refreshes the app. Both end only when somebody mends them, but no message is given up for it at once: a token that was
/// replaced a moment ago may have been replaced again.
pub(super) fn refused_again(jitter: f64) -> Duration {
    REPLACEABLE.mul_f64(1.0 + jitter / 2.0)
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
        failed_attempts: message.failed_attempts.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tonic::Status;
    use wechat::{ApiError, ErrCode};

    use super::*;
    use crate::message::{Customer, State, Template};

    /// 2026-11-21 15:59:00 UTC: one minute before midnight in Beijing.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_276_740)
    }

    const ENDPOINT: &str = "/cgi-bin/message/template/send";

    fn circumstances(on_ambiguous: OnAmbiguous) -> Circumstances {
        Circumstances {
            on_ambiguous,
            now: now(),
            jitter: 0.5,
        }
    }

    fn message() -> Message {
        Message {
            message_id: String::new(),
            app_id: String::new(),
            open_id: String::new(),
            account: None,
            caller: String::new(),
            request_id: None,
            content: String::new(),
            form_id: None,
            state: State::Sending,
            attempts: 1,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time: at(now()),
            schedule_time: None,
            expire_time: None,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: None,
            lane: String::new(),
            broadcast_id: None,
            delivered_time: None,
            failed_attempts: None,
            claim_id: None,
            trace_parent: None,
        }
    }

    fn template() -> Content {
        Content::Template(Template {
            template_id: String::new(),
            url: None,
            mini_program: None,
            data: Default::default(),
        })
    }

    fn customer() -> Content {
        Content::Customer(Customer {
            kf_account: None,
            message: wechat::CustomerContent::Text {
                content: String::new(),
            },
        })
    }

    fn refused(errcode: i64) -> Attempt {
        Attempt::Made(Err(wechat::Error::Api(ApiError {
            endpoint: ENDPOINT,
            errcode: ErrCode(errcode),
            errmsg: "words of WeChat".to_owned(),
            rid: None,
        })))
    }

    fn timed_out() -> Attempt {
        Attempt::Made(Err(wechat::Error::Timeout { endpoint: ENDPOINT }))
    }

    fn decide(attempt: &Attempt) -> Outcome {
        after(
            &message(),
            &customer(),
            1,
            attempt,
            circumstances(OnAmbiguous::AtMostOnce),
        )
    }

    #[test]
    fn wechats_code_decides() {
        for errcode in [40001, 42001, 43108, 61450] {
            let Next::Queued { delay } = decide(&refused(errcode)).next else {
                panic!("{errcode} is not tried again");
            };
            assert_eq!(delay, Duration::from_millis(1_500), "{errcode}");
        }
        assert_eq!(
            decide(&refused(45011)).next,
            Next::Queued {
                delay: Duration::from_millis(61_500)
            }
        );
        // One minute until midnight, and half of the five minutes over which the day's messages are spread.
        assert_eq!(
            decide(&refused(45009)).next,
            Next::Queued {
                delay: Duration::from_secs(60 + 150)
            }
        );
        for errcode in [40003, 43004, 40037, 41028, 47003, 12345] {
            let outcome = decide(&refused(errcode));
            assert_eq!((outcome.next, outcome.errcode), (Next::Failed, errcode));
            assert_eq!(outcome.errmsg, "words of WeChat");
        }
        // 45065: it exists already, the aim is reached.
        for attempt in [refused(45065), Attempt::Made(Ok(None))] {
            assert!(matches!(decide(&attempt).next, Next::Sent { .. }));
        }
    }

    fn is_again(outcome: &Outcome) -> bool {
        matches!(outcome.next, Next::Queued { .. } | Next::First)
    }

    #[test]
    fn the_tenth_attempt_is_the_last() {
        let decide = |attempts| {
            let circumstances = circumstances(OnAmbiguous::AtLeastOnce);
            after(
                &message(),
                &customer(),
                attempts,
                &refused(43108),
                circumstances,
            )
            .next
        };
        assert!(matches!(decide(MAX_ATTEMPTS - 1), Next::Queued { .. }));
        assert_eq!(decide(MAX_ATTEMPTS), Next::Failed);
    }

    #[test]
    fn backoff_doubles_from_a_second_to_a_quarter_of_an_hour() {
        assert_eq!(backoff(1, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(1, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(5, 1.0), Duration::from_secs(32));
        assert_eq!(backoff(10, 1.0), Duration::from_secs(900));
        assert_eq!(backoff(u32::MAX, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn token_service_says_how_long_to_wait() {
        let asked = |delay_s| {
            let error = status::error(Code::Unavailable, "WECHAT_FAILED", "no token")
                .retry_after(Duration::from_secs(delay_s))
                .build();
            without_token(&error.into(), 0.5)
        };
        assert_eq!(asked(40), Duration::from_secs(50));
        assert_eq!(asked(24 * 3600), ASKED.mul_f64(1.25));
        let silent = |code| without_token(&Status::new(code, "no token").into(), 0.0);
        assert_eq!(silent(Code::Unavailable), NO_TOKEN);
        assert_eq!(silent(Code::NotFound), MISCONFIGURED);
    }

    #[test]
    fn an_unknown_outcome_follows_the_apps_choice() {
        for attempt in [timed_out(), refused(-1), Attempt::Lost] {
            let decide = |content: &Content, on_ambiguous| {
                after(
                    &message(),
                    content,
                    1,
                    &attempt,
                    circumstances(on_ambiguous),
                )
            };
            let outcome = decide(&customer(), OnAmbiguous::AtLeastOnce);
            assert!(is_again(&outcome), "{attempt:?}");
            assert!(outcome.possible_duplicate);
            assert_eq!(outcome.ambiguous_time, Some(at(now())));

            let outcome = decide(&customer(), OnAmbiguous::AtMostOnce);
            assert_eq!(
                (outcome.next, outcome.possible_duplicate),
                (Next::Failed, false)
            );
            assert!(
                outcome.errmsg.starts_with("OUTCOME_UNKNOWN: "),
                "{}",
                outcome.errmsg
            );

            // WeChat tells repeats of a template, so that nobody is told twice and nothing is given up.
            let outcome = decide(&template(), OnAmbiguous::AtMostOnce);
            assert!(is_again(&outcome), "{attempt:?}");
            assert!(!outcome.possible_duplicate);
        }
    }

    #[test]
    fn a_template_is_guarded_for_nine_minutes_from_its_first_unknown_outcome() {
        let decide = |age_s: i64, on_ambiguous| {
            let mut message = message();
            message.ambiguous_time = Some(at(now()) - chrono::TimeDelta::seconds(age_s));
            let circumstances = circumstances(on_ambiguous);
            let next = after(&message, &template(), 2, &timed_out(), circumstances);
            assert_eq!(next.ambiguous_time, message.ambiguous_time);
            let again = matches!(next.next, Next::Queued { .. });
            (
                before(&message, &template(), circumstances),
                again,
                next.possible_duplicate,
            )
        };
        let within = 9 * 60 - 1;
        assert_eq!(
            decide(within, OnAmbiguous::AtMostOnce),
            (Before::Send, true, false)
        );
        assert_eq!(
            decide(within + 1, OnAmbiguous::AtMostOnce),
            (Before::GiveUp, false, false)
        );
        assert_eq!(
            decide(within + 1, OnAmbiguous::AtLeastOnce),
            (Before::SendAgain, true, true)
        );
    }

    #[test]
    fn a_lost_attempt_counts_from_when_it_was_sent() {
        let sent = at(now()) - chrono::TimeDelta::minutes(15);
        let mut message = message();
        message.next_attempt_time = Some(sent + LEASE);
        let decide = |on_ambiguous| {
            let circumstances = circumstances(on_ambiguous);
            let outcome = after(&message, &template(), 1, &Attempt::Lost, circumstances);
            assert_eq!(outcome.ambiguous_time, Some(sent));
            outcome
        };
        let outcome = decide(OnAmbiguous::AtMostOnce);
        assert_eq!(outcome.next, Next::Failed);
        assert!(
            outcome.errmsg.starts_with("OUTCOME_UNKNOWN: "),
            "{}",
            outcome.errmsg
        );
        let outcome = decide(OnAmbiguous::AtLeastOnce);
        assert_eq!(outcome.next, Next::First);
        assert!(outcome.possible_duplicate);
    }

    #[test]
    fn a_message_without_a_doubt_just_goes() {
        for content in [template(), customer()] {
            let decision = before(&message(), &content, circumstances(OnAmbiguous::AtMostOnce));
            assert_eq!(decision, Before::Send);
        }
    }

    #[test]
    fn a_message_whose_time_is_over_is_not_sent_and_waits_no_longer_than_that() {
        let now = circumstances(OnAmbiguous::AtLeastOnce).now;
        let expiring = |seconds| Message {
            expire_time: Some(at(now) + chrono::TimeDelta::seconds(seconds)),
            ..message()
        };
        let decide = |message: &Message| {
            before(
                message,
                &customer(),
                circumstances(OnAmbiguous::AtLeastOnce),
            )
        };
        assert_eq!(decide(&expiring(1)), Before::Send);
        assert_eq!(decide(&expiring(0)), Before::Expire);
        assert_eq!(expired(&expiring(0)).next, Next::Expired);

        let minute = Duration::from_secs(60);
        assert_eq!(until_expiry(&message(), minute, now), minute);
        assert_eq!(
            until_expiry(&expiring(5), minute, now),
            Duration::from_secs(5)
        );
        assert_eq!(until_expiry(&expiring(-5), minute, now), Duration::ZERO);
    }
}
