//! Time in the database: one clock for all replicas, where there are several.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseBackend, DatabaseConnection, sea_query::Expr};
use service_kit::Clock;

/// The database and the clock that leases are measured by: the database server's own, so that replicas whose clocks
/// differ agree on when a lease ends. SQLite has no server: there the process's clock is the only one.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) connection: DatabaseConnection,
    pub(crate) clock: Clock,
}

impl Database {
    /// The moment at which the statement runs.
    pub(crate) fn now(&self) -> Expr {
        self.after(Duration::ZERO)
    }

    /// `delay` after the moment at which the statement runs.
    pub(crate) fn after(&self, delay: Duration) -> Expr {
        match self.connection.get_database_backend() {
            DatabaseBackend::MySql => Expr::cust(format!(
                "UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND",
                delay.as_micros()
            )),
            _ => Expr::value(moment(&self.clock) + delay),
        }
    }

    /// Microseconds from the moment at which the statement runs to a time, given as SQL; none or less once it is over.
    pub(crate) fn micros_until(&self, time: &'static str) -> Expr {
        match self.connection.get_database_backend() {
            DatabaseBackend::MySql => Expr::cust(format!(
                "TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), {time})"
            )),
            _ => Expr::cust_with_values(
                format!("CAST((julianday({time}) - julianday(?)) * 86400000000 AS INTEGER)"),
                [moment(&self.clock)],
            ),
        }
    }
}

/// The process's wall time as the database stores it.
pub(crate) fn moment(clock: &Clock) -> DateTime<Utc> {
    let millis = i64::try_from(clock.unix_millis()).unwrap_or(i64::MAX);
    DateTime::from_timestamp_millis(millis).unwrap_or_default()
}

/// Whether every engine tells this text from every other: visible ASCII alone. MariaDB takes `a` and `a ` for the same.
pub(crate) fn is_key(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A list with its last entry repeated up to a power of two: a statement of a few shapes is prepared a few times, whereas
/// one for each number of rows is prepared again and again.
pub(crate) fn padded<T>(list: &[T]) -> impl Iterator<Item = &T> {
    let superfluous = list.len().next_power_of_two() - list.len();
    let last = list.last().into_iter().cycle().take(superfluous);
    list.iter().chain(last)
}
