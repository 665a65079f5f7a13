//! How often an account may call, by day in Beijing and by minute.

use std::collections::{BTreeMap, HashMap};

use chrono::DateTime;

use crate::{
    clock::{Moment, beijing_day},
    endpoint::Endpoint,
    error::ApiError,
};

/// Resets that an account has in a month.
const CLEARS_A_MONTH: u32 = 10;

/// What an account has used up.
pub(crate) struct Quota {
    limits: HashMap<Endpoint, u32>,
    day: u64,
    today: HashMap<Endpoint, u32>,
    minute: u64,
    this_minute: HashMap<Endpoint, u32>,
    month: String,
    clears: u32,
}

impl Quota {
    /// WeChat's defaults, and over them what `limits` says by path.
    pub(crate) fn new(limits: &BTreeMap<String, u32>) -> Self {
        let limits = Endpoint::ALL
            .into_iter()
            .filter_map(|endpoint| {
                let limit = limits
                    .get(endpoint.path())
                    .copied()
                    .or_else(|| endpoint.daily_limit())?;
                Some((endpoint, limit))
            })
            .collect();
        Self {
            limits,
            day: 0,
            today: HashMap::new(),
            minute: 0,
            this_minute: HashMap::new(),
            month: String::new(),
            clears: 0,
        }
    }

    /// Counts a call, or refuses it with 45009 or 45011.
    pub(crate) fn count(&mut self, endpoint: Endpoint, now: Moment) -> Result<(), ApiError> {
        self.turn(now);
        let today = self.today.entry(endpoint).or_default();
        if self
            .limits
            .get(&endpoint)
            .is_some_and(|limit| *today >= *limit)
        {
            return Err(ApiError::DAILY_QUOTA);
        }
        let this_minute = self.this_minute.entry(endpoint).or_default();
        if endpoint
            .minute_limit()
            .is_some_and(|limit| *this_minute >= limit)
        {
            return Err(ApiError::MINUTE_QUOTA);
        }
        *today += 1;
        *this_minute += 1;
        Ok(())
    }

    /// The daily limit, `None` without one, and what is used of it.
    pub(crate) fn usage(&mut self, endpoint: Endpoint, now: Moment) -> (Option<u32>, u32) {
        self.turn(now);
        (
            self.limits.get(&endpoint).copied(),
            self.today.get(&endpoint).copied().unwrap_or_default(),
        )
    }

    /// Gives the day's calls back, ten times a month; 48006 after that.
    pub(crate) fn clear(&mut self, now: Moment) -> Result<(), ApiError> {
        let month = beijing_month(now);
        if self.month != month {
            self.month = month;
            self.clears = 0;
        }
        if self.clears >= CLEARS_A_MONTH {
            return Err(ApiError::CLEAR_QUOTA_LIMIT);
        }
        self.clears += 1;
        self.today.clear();
        Ok(())
    }

    fn turn(&mut self, now: Moment) {
        if self.day != beijing_day(now) {
            self.day = beijing_day(now);
            self.today.clear();
        }
        if self.minute != now.as_secs() / 60 {
            self.minute = now.as_secs() / 60;
            self.this_minute.clear();
        }
    }
}

fn beijing_month(now: Moment) -> String {
    let seconds = i64::try_from(now.as_secs() + 8 * 3600).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0)
        .unwrap_or_default()
        .format("%Y-%m")
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_day_turns_at_midnight_in_beijing() {
        let mut quota = Quota::new(&BTreeMap::from([("/cgi-bin/token".to_owned(), 1)]));
        let before_midnight = Duration::from_secs(16 * 3600 - 1);
        assert_eq!(quota.count(Endpoint::Token, before_midnight), Ok(()));
        assert_eq!(
            quota.count(Endpoint::Token, before_midnight),
            Err(ApiError::DAILY_QUOTA)
        );
        assert_eq!(
            quota.count(Endpoint::Token, before_midnight + Duration::from_secs(1)),
            Ok(())
        );
    }

    #[test]
    fn a_month_has_ten_resets() {
        let mut quota = Quota::new(&BTreeMap::new());
        let now = Duration::from_secs(86_400);
        for _ in 0..10 {
            quota.clear(now).unwrap();
        }
        assert_eq!(quota.clear(now), Err(ApiError::CLEAR_QUOTA_LIMIT));
        assert_eq!(quota.clear(now + Duration::from_secs(31 * 86_400)), Ok(()));
    }

    #[test]
    fn a_minute_has_its_own_limit() {
        let mut quota = Quota::new(&BTreeMap::new());
        let now = Duration::from_secs(600);
        for _ in 0..10_000 {
            quota.count(Endpoint::StableToken, now).unwrap();
        }
        assert_eq!(
            quota.count(Endpoint::StableToken, now),
            Err(ApiError::MINUTE_QUOTA)
        );
        assert_eq!(
            quota.count(Endpoint::StableToken, now + Duration::from_secs(60)),
            Ok(())
        );
    }
}
