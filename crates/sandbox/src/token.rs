//! Access tokens and tickets: who holds which, until when, and what a new one does to the older.
//!
//! The classic and the stable tokens of an account are two rings that never touch each other.

use std::{collections::VecDeque, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    clock::{Moment, beijing_day},
    error::ApiError,
};

/// How long an old token works beside its successor, and how long before its end a stable one is replaced.
const OVERLAP: Duration = Duration::from_secs(300);
/// The least time between two forced refreshes of a stable token.
const FORCE_INTERVAL: Duration = Duration::from_secs(30);
/// Forced refreshes a day.
const FORCES_A_DAY: u32 = 20;
/// Older tokens than these are no different from ones that never were.
const REMEMBERED: usize = 4;

/// A token, and the seconds that it has left.
pub(crate) type Grant = (String, u64);

struct Issued {
    value: String,
    at: Moment,
    expires: Moment,
}

/// The tokens of one kind of one account, the current one last.
#[derive(Default)]
pub(crate) struct TokenRing {
    issued: VecDeque<Issued>,
}

impl TokenRing {
    /// Issues a token; the one before has five minutes left, any older is dead.
    pub(crate) fn issue(&mut self, now: Moment, life: Duration) -> Grant {
        let value = mint_token();
        self.issued.push_back(Issued {
            value: value.clone(),
            at: now,
            expires: now + life,
        });
        if self.issued.len() > REMEMBERED {
            self.issued.pop_front();
        }
        (value, life.as_secs())
    }

    /// Whether `token` is of this ring (`None` when it is not), and what WeChat says about it.
    pub(crate) fn check(&self, token: &str, now: Moment) -> Option<Result<(), ApiError>> {
        let position = self
            .issued
            .iter()
            .position(|issued| issued.value == token)?;
        let issued = self.issued.get(position)?;
        let replaced = match self.issued.len() - position {
            1 => false,
            2 => self
                .issued
                .back()
                .is_some_and(|next| now >= next.at + OVERLAP),
            _ => true,
        };
        Some(if replaced {
            Err(ApiError::INVALID_CREDENTIAL)
        } else if now >= issued.expires {
            Err(ApiError::ACCESS_TOKEN_EXPIRED)
        } else {
            Ok(())
        })
    }

    /// How long ago another was issued after `token`; `None` when it is the newest, or not of this ring.
    pub(crate) fn superseded_for(&self, token: &str, now: Moment) -> Option<Duration> {
        let mut later = self.issued.iter().skip_while(|one| one.value != token);
        later.next()?;
        Some(now.saturating_sub(later.next()?.at))
    }

    /// Kills every token.
    pub(crate) fn invalidate(&mut self) {
        self.issued.clear();
    }
}

/// The tokens of `/cgi-bin/stable_token` of one account.
#[derive(Default)]
pub(crate) struct StableTokens {
    ring: TokenRing,
    forced: Option<Moment>,
    forced_day: u64,
    forced_today: u32,
}

impl StableTokens {
    /// The current token, or another when it is in its last five minutes (half of a life shorter than ten), or when
    /// `force` asks for one and may: 30 seconds apart and twenty times a day.
    pub(crate) fn get(&mut self, now: Moment, life: Duration, force: bool) -> Grant {
        let forced = force && self.force(now);
        if let Some(current) = self.ring.issued.back().filter(|_| !forced) {
            let left = current.expires.saturating_sub(now);
            if left > OVERLAP.min(life / 2) {
                return (current.value.clone(), left.as_secs());
            }
        }
        self.ring.issue(now, life)
    }

    fn force(&mut self, now: Moment) -> bool {
        if self.forced_day != beijing_day(now) {
            self.forced_day = beijing_day(now);
            self.forced_today = 0;
        }
        let apart = self.forced.is_none_or(|last| now >= last + FORCE_INTERVAL);
        if !apart || self.forced_today >= FORCES_A_DAY {
            return false;
        }
        self.forced = Some(now);
        self.forced_today += 1;
        true
    }

    pub(crate) fn check(&self, token: &str, now: Moment) -> Option<Result<(), ApiError>> {
        self.ring.check(token, now)
    }

    pub(crate) fn superseded_for(&self, token: &str, now: Moment) -> Option<Duration> {
        self.ring.superseded_for(token, now)
    }

    pub(crate) fn invalidate(&mut self) {
        self.ring.invalidate();
    }
}

/// Whether `text` could be a token at all: a number, an underscore, and base64 of some length.
pub(crate) fn is_well_formed(text: &str) -> bool {
    text.split_once('_').is_some_and(|(number, rest)| {
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && rest.len() >= 32
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    })
}

pub(crate) fn mint_token() -> String {
    format!(
        "50_{}",
        BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 96]>())
    )
}

/// A `jsapi` or `wx_card` ticket; those before it stay good.
pub(crate) fn mint_ticket() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 64]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(7200);
    const fn at(seconds: u64) -> Moment {
        Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn a_token_outlives_its_successors_issue_by_five_minutes() {
        let mut ring = TokenRing::default();
        let (first, _) = ring.issue(at(0), LIFE);
        ring.issue(at(100), LIFE);
        assert_eq!(ring.check(&first, at(399)), Some(Ok(())));
        let superseded = ring.superseded_for(&first, at(399));
        assert_eq!(superseded, Some(Duration::from_secs(299)));
        assert_eq!(
            ring.check(&first, at(400)),
            Some(Err(ApiError::INVALID_CREDENTIAL))
        );
    }

    #[test]
    fn a_token_is_dead_once_two_newer_exist() {
        let mut ring = TokenRing::default();
        let (first, _) = ring.issue(at(0), LIFE);
        let (second, _) = ring.issue(at(1), LIFE);
        ring.issue(at(2), LIFE);
        assert_eq!(
            ring.check(&first, at(3)),
            Some(Err(ApiError::INVALID_CREDENTIAL))
        );
        assert_eq!(ring.check(&second, at(3)), Some(Ok(())));
    }

    #[test]
    fn the_current_token_expires() {
        let mut ring = TokenRing::default();
        let (token, _) = ring.issue(at(0), LIFE);
        assert_eq!(ring.check(&token, at(7199)), Some(Ok(())));
        assert_eq!(ring.superseded_for(&token, at(7199)), None);
        assert_eq!(
            ring.check(&token, at(7200)),
            Some(Err(ApiError::ACCESS_TOKEN_EXPIRED))
        );
    }

    #[test]
    fn a_stable_token_stays_until_its_last_five_minutes() {
        let mut stable = StableTokens::default();
        let (first, _) = stable.get(at(0), LIFE, false);
        assert_eq!(stable.get(at(6899), LIFE, false), (first.clone(), 301));
        let (second, left) = stable.get(at(6900), LIFE, false);
        assert_ne!(first, second);
        assert_eq!(left, 7200);
        assert_eq!(stable.check(&first, at(6901)), Some(Ok(())));
    }

    #[test]
    fn forcing_needs_thirty_seconds_between() {
        let mut stable = StableTokens::default();
        let (first, _) = stable.get(at(0), LIFE, false);
        let (second, _) = stable.get(at(1), LIFE, true);
        assert_ne!(first, second);
        assert_eq!(stable.get(at(30), LIFE, true).0, second);
        let (third, _) = stable.get(at(31), LIFE, true);
        assert_ne!(second, third);
        assert_eq!(
            stable.check(&first, at(31)),
            Some(Err(ApiError::INVALID_CREDENTIAL))
        );
    }

    #[test]
    fn forcing_works_twenty_times_a_day() {
        let mut stable = StableTokens::default();
        stable.get(at(0), LIFE, false);
        let tokens: Vec<_> = (1..=21)
            .map(|n| stable.get(at(n * 30), LIFE, true).0)
            .collect();
        assert_ne!(tokens[18], tokens[19]);
        assert_eq!(tokens[19], tokens[20]);
    }

    #[test]
    fn what_is_minted_is_well_formed() {
        assert!(is_well_formed(&mint_token()));
        for text in [
            "",
            "50_",
            "50_short",
            "x_0123456789012345678901234567890123456789",
            "no-underscore",
        ] {
            assert!(!is_well_formed(text), "{text}");
        }
    }
}
