//! The time in this WeChat: the machine's, moved forward on request so that a test need not wait for an expiry.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// Time since the Unix epoch, in this WeChat.
pub(crate) type Moment = Duration;

#[derive(Debug, Default)]
pub(crate) struct Clock {
    ahead_seconds: AtomicU64,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the sandbox's own clock, which tests move"
    )]
    pub(crate) fn now(&self) -> Moment {
        let machine = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        machine + Duration::from_secs(self.ahead_seconds.load(Ordering::Relaxed))
    }

    /// Moves the time forward by at most [`Clock::FURTHEST`] in all.
    pub(crate) fn advance(&self, by: Duration) {
        let _ = self
            .ahead_seconds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ahead| {
                Some(
                    ahead
                        .saturating_add(by.as_secs())
                        .min(Self::FURTHEST.as_secs()),
                )
            });
    }

    /// A century: further would leave the calendar's range.
    pub(crate) const FURTHEST: Duration = Duration::from_secs(100 * 365 * 86_400);
}

/// The day by which WeChat counts quotas: it begins at midnight in Beijing.
pub(crate) fn beijing_day(now: Moment) -> u64 {
    (now.as_secs() + 8 * 3600) / 86_400
}
