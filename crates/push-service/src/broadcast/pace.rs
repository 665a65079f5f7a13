//! How fast a broadcast goes, from what was seen of its counters.

use std::{collections::VecDeque, time::Duration};

/// How far back "lately" reaches.
const WINDOW: Duration = Duration::from_secs(10);

/// What was seen of one counter within [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Elapsed time and count, the oldest first.
    seen: VecDeque<(Duration, i64)>,
}

impl Pace {
    /// Takes note of the count at this time.
    pub(super) fn note(&mut self, at: Duration, count: i64) {
        self.seen.push_back((at, count));
        while self
            .seen
            .front()
            .is_some_and(|(time, _)| *time + WINDOW < at)
        {
            self.seen.pop_front();
        }
    }

    /// How much was added in a second; 0 while that cannot be told.
    pub(super) fn rate(&self) -> f64 {
        let (Some((from, first)), Some((to, last))) = (self.seen.front(), self.seen.back()) else {
            return 0.0;
        };
        let (time, count) = (to.saturating_sub(*from), (last - first).max(0));
        if time.is_zero() {
            return 0.0;
        }
        // More than these 32 bits never come to an end in ten seconds.
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_latest_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.rate(), 0.0);
        for second in 0..30 {
            let count = if second < 15 { 0 } else { (second - 15) * 20 };
            pace.note(Duration::from_secs(second), i64::try_from(count).unwrap());
        }
        assert_eq!(pace.rate(), 20.0);
        // Some were queued again.
        let mut pace = Pace::default();
        pace.note(Duration::ZERO, 10);
        pace.note(Duration::from_secs(1), 3);
        assert_eq!(pace.rate(), 0.0);
    }
}
