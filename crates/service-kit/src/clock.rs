//! Time as an input: the wall clock, and elapsed time that goes on while the machine is suspended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the time. Timers use `tokio::time`; whatever compares or stores a moment asks this.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's clocks.
    System,
    /// Tokio's clock on top of a fixed wall time: a test with paused time moves both.
    Tokio {
        /// The wall time at `start`.
        wall: SystemTime,
        /// Where elapsed time counts from.
        start: tokio::time::Instant,
        /// Milliseconds that the machine was suspended; timers did not see them.
        suspended: Arc<AtomicU64>,
    },
}

impl Clock {
    /// A clock for tests: it stands at `wall` now and moves with tokio's time.
    pub fn tokio(wall: SystemTime) -> Self {
        Self::Tokio {
            wall,
            start: tokio::time::Instant::now(),
            suspended: Arc::default(),
        }
    }

    /// For tests: the machine of this clock and its clones wakes up after `pause`, of which its timers know nothing. The
    /// system's clock takes no orders.
    pub fn suspend(&self, pause: Duration) {
        if let Self::Tokio { suspended, .. } = self {
            suspended.fetch_add(millis(pause), Ordering::Relaxed);
        }
    }

    /// The wall time.
    pub fn now(&self) -> SystemTime {
        match self {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that reads the wall clock"
            )]
            Self::System => SystemTime::now(),
            Self::Tokio { wall, .. } => *wall + self.elapsed(),
        }
    }

    /// The wall time in Unix milliseconds.
    pub fn unix_millis(&self) -> u64 {
        millis(since_epoch(self.now()))
    }

    /// The wall time in Unix seconds.
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(since_epoch(self.now()).as_secs()).unwrap_or(i64::MAX)
    }

    /// Time since some fixed moment. It never goes back, and it counts suspend (`CLOCK_BOOTTIME`), so that a
    /// machine that slept for an hour does not believe its values to be fresh.
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::System => boottime(),
            Self::Tokio {
                start, suspended, ..
            } => start.elapsed() + Duration::from_millis(suspended.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(target_os = "linux")]
fn boottime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Elsewhere the monotonic clock has to do: it may stand still during suspend.
#[cfg(not(target_os = "linux"))]
fn boottime() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// A moment as time since the Unix epoch; zero for moments before it.
pub fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_tests_moves_with_tokio_time() {
        let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(100));
        tokio::time::advance(Duration::from_millis(2_500)).await;
        assert_eq!(clock.unix_millis(), 102_500);
        assert_eq!(clock.unix_seconds(), 102);
        assert_eq!(clock.elapsed(), Duration::from_millis(2_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspend_moves_both_times_but_no_timer() {
        let clock = Clock::tokio(UNIX_EPOCH);
        let timer = tokio::time::Instant::now();
        clock.suspend(Duration::from_secs(60));
        assert_eq!(clock.unix_seconds(), 60);
        assert_eq!(clock.elapsed(), Duration::from_secs(60));
        assert_eq!(timer.elapsed(), Duration::ZERO);
    }

    #[test]
    fn system_clock_never_goes_back() {
        let first = Clock::System.elapsed();
        assert!(Clock::System.elapsed() >= first);
    }
}
