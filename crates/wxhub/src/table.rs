//! Texts and times in columns.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// Cells of a column start at the same place.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate();
        let cells: Vec<_> = cells
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn rfc_3339(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

pub(crate) fn to_the_second(time: Option<Timestamp>) -> String {
    let time = rfc_3339(time.map(|time| Timestamp { nanos: 0, ..time }));
    time.unwrap_or_else(|| "-".to_owned())
}

/// How far a time is from `now`.
pub(crate) fn from(now: SystemTime, time: Option<Timestamp>) -> String {
    let Some(time) = time.and_then(|time| SystemTime::try_from(time).ok()) else {
        return "-".to_owned();
    };
    match time.duration_since(now) {
        Ok(left) => format!("in {}", lasting(left)),
        Err(error) => format!("{} ago", lasting(error.duration())),
    }
}

/// A duration in two units: `1m01s`.
pub(crate) fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds:02}s"),
        (0..48, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{}d{:02}h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_by_its_distance() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, ahead, past) in [
            (59, "in 59s", "59s ago"),
            (61, "in 1m01s", "1m01s ago"),
            (47 * 3_600, "in 47h00m", "47h00m ago"),
            (7 * 86_400 + 3_600, "in 7d01h", "7d01h ago"),
        ] {
            let apart = Duration::from_secs(seconds);
            assert_eq!(from(now, Some((now + apart).into())), ahead);
            assert_eq!(from(now, Some((now - apart).into())), past);
        }
        assert_eq!(from(now, None), "-");
    }
}
