//! Jumps of a clock: the machine was suspended, or somebody set the time (R16).

use std::time::{Duration, SystemTime};

use service_kit::Clock;
use tokio::time::Instant;

/// Clocks that are this far apart did not just drift.
const JUMP: Duration = Duration::from_secs(5);

/// Where the wall clock, elapsed time, which counts suspend, and timers, which do not, stood at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    wall: SystemTime,
    elapsed: Duration,
    timer: Instant,
}

impl Moment {
    pub(super) fn of(clock: &Clock) -> Self {
        Self {
            wall: clock.now(),
            elapsed: clock.elapsed(),
            timer: Instant::now(),
        }
    }

    /// Whether a clock jumped between this and the later moment.
    pub(super) fn is_far_from(&self, later: &Self) -> bool {
        let elapsed = later.elapsed.saturating_sub(self.elapsed);
        let timer = later.timer.duration_since(self.timer);
        let wall_jumped = match later.wall.duration_since(self.wall) {
            Ok(wall) => wall.abs_diff(elapsed) > JUMP,
            Err(back) => back.duration() + elapsed > JUMP,
        };
        wall_jumped || elapsed.abs_diff(timer) > JUMP
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn moment(start: Instant, wall: u64, elapsed: u64, timer: u64) -> Moment {
        Moment {
            wall: UNIX_EPOCH + Duration::from_secs(wall),
            elapsed: Duration::from_secs(elapsed),
            timer: start + Duration::from_secs(timer),
        }
    }

    #[test]
    fn r16_a_suspend_and_a_set_clock_are_jumps_and_time_that_passes_is_none() {
        let start = Instant::now();
        let before = moment(start, 1_000, 50, 0);
        for (wall, elapsed, timer, jumped) in [
            (1_000, 50, 0, false),
            (1_010, 60, 10, false),
            (8_200, 7_250, 7_200, false),
            (1_014, 60, 10, false),
            // Suspended.
            (1_600, 650, 10, true),
            // Set forward, and back.
            (1_600, 60, 10, true),
            (900, 60, 10, true),
        ] {
            let after = moment(start, wall, elapsed, timer);
            assert_eq!(before.is_far_from(&after), jumped, "{after:?}");
        }
    }
}
