//! How many messages are under way at a time: fewer when WeChat does not keep up. Without it a WeChat that is slow for a
//! while is asked more at once than it answers in time, and what is answered too late is asked again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{CONCURRENCY, UPSTREAM_DEADLINE};

/// An answer after this is a sign of more to come that are too late.
const SLOW: Duration = Duration::from_millis(1_500);
/// There is always room for so many.
const LEAST: usize = 32;
/// So many slow answers, and one of so many answers, are too many.
const FEW: usize = 4;
const SHARE: usize = 20;
/// So many more after as many answers in time as there is room for.
const MORE: usize = 8;

/// Additive increase and multiplicative decrease, as TCP has them (RFC 5681).
#[derive(Debug)]
pub(crate) struct Window(Mutex<State>);

#[derive(Debug)]
struct State {
    limit: usize,
    /// Answers in time, and slow ones, since it last changed.
    in_time: usize,
    slow: usize,
    /// Elapsed time before which slow answers are of what was under way at the last change.
    until: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self(Mutex::new(State {
            limit: CONCURRENCY,
            in_time: 0,
            slow: 0,
            until: Duration::ZERO,
        }))
    }
}

impl Window {
    /// How many may be under way.
    pub(super) fn limit(&self) -> usize {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.limit
    }

    /// Takes note of a call to WeChat that took so long, whatever came of it.
    pub(super) fn ended(&self, took: Duration, now: Duration) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if took < SLOW {
            state.in_time += 1;
            if state.in_time >= state.limit {
                (state.in_time, state.slow) = (0, 0);
                state.limit = (state.limit + MORE).min(CONCURRENCY);
            }
        } else if now >= state.until {
            state.slow += 1;
            // A few are slow on any day.
            if state.slow >= FEW && state.slow * SHARE > state.slow + state.in_time {
                (state.in_time, state.slow) = (0, 0);
                state.limit = (state.limit / 2).max(LEAST);
                state.until = now + UPSTREAM_DEADLINE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(50);

    fn slow(window: &Window, now: Duration) {
        for _ in 0..FEW {
            window.ended(SLOW, now);
        }
    }

    #[test]
    fn slow_answers_halve_it_once_for_what_was_under_way() {
        let window = Window::default();
        assert_eq!(window.limit(), CONCURRENCY);
        let mut now = Duration::from_secs(60);
        for _ in 0..CONCURRENCY {
            window.ended(SLOW, now);
            now += Duration::from_millis(2);
        }
        assert_eq!(window.limit(), CONCURRENCY / 2);
        for _ in 0..100 {
            now += UPSTREAM_DEADLINE;
            slow(&window, now);
        }
        assert_eq!(window.limit(), LEAST);
    }

    #[test]
    fn a_few_slow_answers_among_many_change_nothing() {
        let window = Window::default();
        for number in 0..100_000 {
            let took = if number % 100 == 99 { SLOW } else { QUICK };
            window.ended(took, Duration::from_millis(number));
        }
        assert_eq!(window.limit(), CONCURRENCY);
    }

    #[test]
    fn it_grows_with_what_is_answered_in_time() {
        let window = Window::default();
        let now = Duration::from_secs(60);
        slow(&window, now);
        let halved = window.limit();
        assert_eq!(halved, CONCURRENCY / 2);
        for _ in 0..halved {
            window.ended(QUICK, now);
        }
        assert_eq!(window.limit(), halved + MORE);
        for _ in 0..CONCURRENCY * CONCURRENCY {
            window.ended(QUICK, now);
        }
        assert_eq!(window.limit(), CONCURRENCY);
    }
}
