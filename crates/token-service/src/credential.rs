//! What is kept for each app: its access_token and its tickets, and when each is refreshed and expires.

pub mod failure;
pub mod ledger;
pub mod slot;
pub mod store;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::clock::since_epoch;
use sha2::{Digest as _, Sha256};
use wechat::{AppId, TicketType};

pub use self::failure::Failure;

/// Classic tokens and tickets are refreshed this long before they expire, give or take a tenth.
const LEAD: Duration = Duration::from_secs(600);
/// Before this is left, WeChat answers the same stable token.
const STABLE_LEAD: Duration = Duration::from_secs(290);
/// Over this long the refreshes of stable tokens are spread.
const STABLE_SPREAD: Duration = Duration::from_secs(60);
/// What WeChat's answer may have taken on its way.
const MARGIN: Duration = Duration::from_secs(5);
/// A classic token works for five minutes beside its successor; a copy is used for less.
const OVERLAP: Duration = Duration::from_secs(240);
/// The least time between two refreshes of an app (R8).
const FLOOR: Duration = Duration::from_secs(30);

/// One credential of one app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The app.
    pub app: AppId,
    /// Which of its credentials.
    pub kind: Kind,
}

impl Key {
    /// The app's access_token.
    pub fn access_token(app: &AppId) -> Self {
        Self {
            app: app.clone(),
            kind: Kind::AccessToken,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.app, self.kind.as_str())
    }
}

/// The credentials that an app has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// access_token.
    AccessToken,
    /// jsapi_ticket, which signs pages.
    JsapiTicket,
    /// wx_card ticket, which signs cards.
    WxCardTicket,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::AccessToken, Self::JsapiTicket, Self::WxCardTicket];

    /// Its name in keys of Redis, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::JsapiTicket => "jsapi_ticket",
            Self::WxCardTicket => "wx_card_ticket",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl From<TicketType> for Kind {
    fn from(ticket: TicketType) -> Self {
        match ticket {
            TicketType::Jsapi => Self::JsapiTicket,
            TicketType::WxCard => Self::WxCardTicket,
        }
    }
}

/// How a credential lives, which decides when it is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// A classic token: a new one ends the old one within five minutes.
    Classic,
    /// A stable token: WeChat answers the same one until its last five minutes.
    Stable,
    /// A ticket.
    Ticket,
}

impl Policy {
    /// Its name in the store.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Stable => "stable",
            Self::Ticket => "ticket",
        }
    }

    /// Whether a call whose answer nobody kept may have ended the current one: a classic token is ended by every call, a stable
    /// one by a forced call. Asking once more in normal mode harms neither. Tickets live beside each other.
    pub(crate) const fn ends_by_a_lost_call(self) -> bool {
        matches!(self, Self::Classic | Self::Stable)
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Classic, Self::Stable, Self::Ticket]
            .into_iter()
            .find(|policy| policy.as_str() == name)
    }

    /// When a credential asked for at `asked`, to which WeChat gave `expires_in`, is refreshed and expires. `spread` is
    /// random, from 0 to below 1. With short lives all leads shrink, never beyond half of the life.
    pub fn plan(self, asked: SystemTime, expires_in: Duration, spread: f64) -> Times {
        let life = expires_in - MARGIN.min(expires_in / 2);
        let lead = match self {
            Self::Classic | Self::Ticket => LEAD.mul_f64(0.9 + 0.2 * spread),
            Self::Stable => STABLE_LEAD - STABLE_SPREAD.mul_f64(spread),
        };
        Times {
            refresh: asked + (life - lead.min(life / 2)),
            expire: asked + life,
            floor: asked + FLOOR.min(life / 2),
        }
    }
}

/// The moments of a credential's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// When it is replaced.
    pub refresh: SystemTime,
    /// When it is of no more use.
    pub expire: SystemTime,
    /// Before this no other may replace it.
    pub floor: SystemTime,
}

impl Times {
    /// When it was asked for, by what [`Policy::plan`] made of that.
    pub(crate) fn asked(&self) -> SystemTime {
        let half = self.expire.duration_since(self.floor);
        self.floor - FLOOR.min(half.unwrap_or_default())
    }
}

/// A token or ticket.
#[derive(Clone)]
pub struct Credential {
    /// The text itself.
    pub secret: SecretString,
    /// Grows with every new one; the same text keeps its version.
    pub version: u64,
    /// How it lives.
    pub policy: Policy,
    /// When.
    pub times: Times,
}

impl Credential {
    /// How long ago it was stored first: versions are Unix milliseconds, unless that would set them back.
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        since_epoch(now).saturating_sub(Duration::from_millis(self.version))
    }

    /// What tells this text from another without telling it.
    pub(crate) fn digest(&self) -> String {
        digest(&self.secret)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("version", &self.version)
            .field("policy", &self.policy)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

/// The SHA-256 of a secret, in hex.
pub(crate) fn digest(secret: &SecretString) -> String {
    hex::encode(Sha256::digest(secret.expose_secret().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn credential(policy: Policy, expires_in: u64) -> Credential {
        Credential {
            secret: "s3cr3t".into(),
            version: 1,
            policy,
            times: policy.plan(UNIX_EPOCH, secs(expires_in), 0.5),
        }
    }

    #[test]
    fn r06_classic_tokens_and_tickets_are_refreshed_ten_minutes_ahead() {
        for policy in [Policy::Classic, Policy::Ticket] {
            let earliest = policy.plan(UNIX_EPOCH, secs(7200), 0.999_999);
            let latest = policy.plan(UNIX_EPOCH, secs(7200), 0.0);
            assert_eq!(latest.expire, UNIX_EPOCH + secs(7195));
            assert_eq!(latest.refresh, UNIX_EPOCH + secs(7195 - 540));
            let lead = latest.expire.duration_since(earliest.refresh).unwrap();
            assert!((secs(659)..=secs(660)).contains(&lead), "{lead:?}");
        }
    }

    #[test]
    fn r06_stable_tokens_are_asked_for_in_their_last_minutes() {
        let first = Policy::Stable.plan(UNIX_EPOCH, secs(7200), 0.0);
        let last = Policy::Stable.plan(UNIX_EPOCH, secs(7200), 1.0);
        assert_eq!(
            first.expire.duration_since(first.refresh).unwrap(),
            secs(290)
        );
        assert_eq!(last.expire.duration_since(last.refresh).unwrap(), secs(230));
    }

    #[test]
    fn r06_short_lives_shrink_every_lead() {
        for policy in [Policy::Classic, Policy::Stable, Policy::Ticket] {
            for expires_in in [0, 1, 2, 5, 10, 60, 300] {
                let Times {
                    refresh,
                    expire,
                    floor,
                } = policy.plan(UNIX_EPOCH, secs(expires_in), 0.0);
                let life = expire.duration_since(UNIX_EPOCH).unwrap();
                assert!(life <= secs(expires_in));
                let until_refresh = refresh.duration_since(UNIX_EPOCH).unwrap();
                assert!(until_refresh >= life / 2, "{policy:?} {expires_in}");
                assert!(floor <= refresh.max(UNIX_EPOCH + secs(30)));
            }
        }
    }

    #[test]
    fn debug_tells_no_secret() {
        assert!(!format!("{:?}", credential(Policy::Classic, 1)).contains("s3cr3t"));
    }
}
