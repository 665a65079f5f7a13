//! Waiting for a condition.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at a condition: short beside any test, long beside a look.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a look at the world found: the awaited value, or how far things are.
pub trait Condition {
    /// What there is once the condition holds.
    type Value;

    /// The value, or a description of what is still missing.
    ///
    /// # Errors
    /// The condition does not hold yet.
    fn check(self) -> Result<Self::Value, String>;
}

impl Condition for bool {
    type Value = ();

    fn check(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("false".to_owned())
        }
    }
}

impl<T> Condition for Option<T> {
    type Value = T;

    fn check(self) -> Result<T, String> {
        self.ok_or_else(|| "none".to_owned())
    }
}

impl<T, E: Display> Condition for Result<T, E> {
    type Value = T;

    fn check(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Looks every 10 ms until `look` finds its condition to hold, and returns what it found. A look that does not come
/// back counts against the same `timeout`.
///
/// # Panics
/// When `timeout` passes first: with `what` was awaited and what the last look found.
pub async fn eventually<C: Condition>(
    what: &str,
    timeout: Duration,
    mut look: impl AsyncFnMut() -> C,
) -> C::Value {
    let deadline = Instant::now() + timeout;
    let mut last = "the first look did not come back".to_owned();
    while let Ok(found) = timeout_at(deadline, look()).await {
        match found.check() {
            Ok(value) => return value,
            Err(status) => last = status,
        }
        if Instant::now() + INTERVAL >= deadline {
            break;
        }
        sleep(INTERVAL).await;
    }
    panic!("{what}: not within {timeout:?}; last: {last}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_what_the_first_successful_look_found() {
        let mut looks = 0;
        let value = eventually("a third look", Duration::from_secs(1), async || {
            looks += 1;
            (looks == 3).then_some(looks)
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the queue drains: not within 1s; last: 7 left")]
    async fn panics_with_what_the_last_look_found() {
        eventually("the queue drains", Duration::from_secs(1), async || {
            Err::<(), _>("7 left")
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "last: the first look did not come back")]
    async fn a_look_that_hangs_is_a_failure() {
        eventually("an answer", Duration::from_secs(1), async || {
            std::future::pending::<bool>().await
        })
        .await;
    }
}
