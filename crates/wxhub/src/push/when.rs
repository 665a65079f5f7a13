//! Times in flags.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;

/// A time: by itself, or by how far from now it is. Which way is said by the flag.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum When {
    At(Timestamp),
    Apart(Duration),
}

impl When {
    /// With a distance from now on.
    pub(crate) fn ahead(self, now: SystemTime) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Apart(distance) => (now + distance).into(),
        }
    }

    /// With a distance up to now.
    pub(crate) fn ago(self, now: SystemTime) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Apart(distance) => (now - distance).into(),
        }
    }
}

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        apart(text)
            .map(Self::Apart)
            .or_else(|| text.parse().ok().map(Self::At))
            .ok_or("must be a time such as 2026-11-21T18:00:00+08:00, or a distance such as 90s, 10m, 2h or 7d")
    }
}

fn apart(text: &str) -> Option<Duration> {
    /// More is none that anybody means.
    const MOST: u64 = 10_000 * 86_400;
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = number.checked_mul(seconds)?;
    (seconds <= MOST).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_by_itself_or_by_its_distance() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_276_740);
        let at = |seconds| Timestamp { seconds, nanos: 0 };
        for text in ["2026-11-21T15:59:00Z", "2026-11-21T23:59:00+08:00"] {
            let when: When = text.parse().unwrap();
            assert_eq!(when, When::At(at(1_795_276_740)), "{text}");
            assert_eq!(when.ahead(now), when.ago(now));
        }
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7_200), ("7d", 604_800)] {
            let when: When = text.parse().unwrap();
            assert_eq!(when.ahead(now), at(1_795_276_740 + seconds), "{text}");
            assert_eq!(when.ago(now), at(1_795_276_740 - seconds), "{text}");
        }
        for text in [
            "",
            "m",
            "10",
            "-1h",
            "1w",
            "tomorrow",
            "10001d",
            "99999999999999999999s",
        ] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
