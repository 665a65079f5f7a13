//! The quota ledger: what a credential has cost on one day of WeChat's quotas, and what it may cost (R8).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use service_kit::clock::since_epoch;

use super::Policy;

/// Forced refreshes of a stable token: WeChat honours twenty a day; reports leave five to operators.
pub(crate) const FORCED: Budget = Budget {
    calls: 20,
    reserve: 5,
};
/// Forced refreshes that WeChat honours are so far apart.
pub(crate) const FORCE_APART: Duration = Duration::from_secs(30);
/// Shares of a budget, in percent, at which somebody should look.
const ALARMS: [u32; 3] = [50, 80, 95];
/// A day begins so much after midnight: WeChat's clock may be behind, and a call that meets the old day's quota would stop the
/// new day's.
const SETTLE: Duration = Duration::from_secs(60);
/// Beijing's time is ahead of UTC by this, all the year.
const BEIJING: Duration = Duration::from_secs(8 * 3600);
/// Seconds of a day.
const DAY: u64 = 24 * 3600;
/// So many tokens a day that died before their time are no accident (R14).
pub(crate) const FOREIGN: u32 = 3;

/// How many calls a Beijing day may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// All of them.
    pub calls: u32,
    /// Those of them that are kept for [`Use::Reserved`].
    pub reserve: u32,
}

/// What a call is for, as far as budgets are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// What the service does by itself.
    Ordinary,
    /// What somebody asked for, who knows why: the reserve is for this.
    Reserved,
}

impl Budget {
    /// The calls of credentials that live by `policy`. WeChat gives a classic token 2,000 calls a day and a stable one
    /// 500,000, and does not tell of tickets; more than stands here is no use but a fault.
    pub const fn of(policy: Policy) -> Self {
        let calls = match policy {
            Policy::Classic | Policy::Ticket => 2_000,
            Policy::Stable => 10_000,
        };
        Self {
            calls,
            reserve: calls / 10,
        }
    }

    /// How many calls there may be before the next one for `purpose` is one too many.
    pub const fn limit(self, purpose: Use) -> u32 {
        match purpose {
            Use::Ordinary => self.calls - self.reserve,
            Use::Reserved => self.calls,
        }
    }

    /// The share in percent that is reached by the call with this number, if somebody should look.
    pub(crate) fn alarm(self, number: u32) -> Option<u32> {
        let reached = |percent: &u32| number == (self.calls * percent).div_ceil(100);
        ALARMS.into_iter().find(reached)
    }
}

/// A page of the ledger: one credential on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Days since the epoch, in Beijing.
    pub day: u64,
    /// Calls to WeChat.
    pub calls: u32,
    /// Those of them that were forced.
    pub forced: u32,
    /// Tokens that were replaced because WeChat refused them before their time.
    pub rejected: u32,
    /// WeChat said that its own quota is used up.
    pub exhausted: bool,
}

impl Ledger {
    /// The page of the day of `now`: an empty one when that day is newer. Pages are not turned back, for clocks differ.
    #[must_use]
    pub fn on(self, now: SystemTime) -> Self {
        let day = beijing_day(now);
        if day > self.day {
            Self {
                day,
                ..Self::default()
            }
        } else {
            self
        }
    }

    /// What both know: whoever lost the ledger, or a part of it, gets it back.
    #[must_use]
    pub(crate) fn merge(self, other: Self) -> Self {
        match self.day.cmp(&other.day) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Self {
                day: self.day,
                calls: self.calls.max(other.calls),
                forced: self.forced.max(other.forced),
                rejected: self.rejected.max(other.rejected),
                exhausted: self.exhausted || other.exhausted,
            },
        }
    }

    /// When the next call for `purpose` may be made, unless that is now.
    pub(crate) fn spent_until(
        self,
        budget: Budget,
        purpose: Use,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let page = self.on(now);
        let spent = page.exhausted || page.calls >= budget.limit(purpose);
        spent.then(|| reset(now))
    }
}

/// When WeChat's quotas begin anew.
pub(crate) fn reset(now: SystemTime) -> SystemTime {
    let days = Duration::from_secs((beijing_day(now) + 1) * DAY);
    UNIX_EPOCH + days - BEIJING + SETTLE
}

/// The day that WeChat's quotas count by.
pub(crate) fn beijing_day(now: SystemTime) -> u64 {
    (since_epoch(now) + BEIJING - SETTLE).as_secs() / DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    const MORNING: SystemTime = UNIX_EPOCH;
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn r08_alarms_come_at_half_and_at_80_and_95_percent_once_each() {
        for (budget, expected) in [
            (Budget::of(Policy::Classic), [1_000, 1_600, 1_900]),
            (FORCED, [10, 16, 19]),
        ] {
            let alarms: Vec<_> = (0..=budget.calls)
                .filter_map(|number| Some((number, budget.alarm(number)?)))
                .collect();
            assert_eq!(alarms, expected.into_iter().zip(ALARMS).collect::<Vec<_>>());
        }
    }

    #[test]
    fn r08_the_reserve_is_left_to_those_who_asked() {
        let budget = Budget::of(Policy::Classic);
        let mut page = Ledger::default().on(MORNING);
        page.calls = 1_800;
        let midnight = MORNING + 16 * HOUR + SETTLE;
        assert_eq!(
            page.spent_until(budget, Use::Ordinary, MORNING),
            Some(midnight)
        );
        assert_eq!(page.spent_until(budget, Use::Reserved, MORNING), None);
        page.calls = 2_000;
        assert_eq!(
            page.spent_until(budget, Use::Reserved, MORNING),
            Some(midnight)
        );
        assert_eq!(page.spent_until(budget, Use::Ordinary, midnight), None);
        page.calls = 1;
        page.exhausted = true;
        assert_eq!(
            page.spent_until(budget, Use::Reserved, MORNING),
            Some(midnight)
        );
        assert_eq!(page.spent_until(budget, Use::Reserved, midnight), None);
    }

    #[test]
    fn a_day_begins_a_minute_after_midnight() {
        for seconds in [0, 59, 60, 61, 43_200] {
            let now = MORNING + 16 * HOUR + Duration::from_secs(seconds);
            let next = reset(now);
            assert_eq!(beijing_day(next), beijing_day(now) + 1);
            let before = next - Duration::from_secs(1);
            assert_eq!(beijing_day(before), beijing_day(now));
        }
    }

    #[test]
    fn merging_forgets_nothing_of_the_newest_day() {
        let page = |day, calls, exhausted| Ledger {
            day,
            calls,
            exhausted,
            ..Ledger::default()
        };
        let (old, new) = (page(1, 9, true), page(2, 3, false));
        assert_eq!(old.merge(new), new);
        assert_eq!(new.merge(old), new);
        assert_eq!(new.merge(page(2, 1, true)), page(2, 3, true));
    }

    #[test]
    fn a_clock_that_lags_turns_no_page_back() {
        let page = Ledger::default().on(MORNING + 24 * HOUR);
        assert_eq!(page.on(MORNING), page);
    }
}
