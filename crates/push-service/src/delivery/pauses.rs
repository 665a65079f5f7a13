//! What takes no messages for a while, so that nobody runs into the same refusal a thousand times.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{message::Lane, metrics};

/// WeChat counts as unreachable after so many connections in a row that did not come about.
const IN_A_ROW: u32 = 8;
/// How long nothing is sent then: messages that were not sent cost nothing but their statements.
const UNREACHABLE: Duration = Duration::from_secs(2);

/// Apps, and interfaces of apps, that wait: for a token, or for a quota of WeChat's. Each replica finds out by itself, at
/// the cost of one message.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    until: Mutex<HashMap<Waits, Duration>>,
    unreachable: AtomicU32,
}

/// None is any.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waits {
    app_id: Option<String>,
    kind: Option<&'static str>,
}

impl Pauses {
    /// Nothing of this app, or of this kind of it, is sent before `until` of elapsed time.
    pub(super) fn pause(&self, app_id: &str, kind: Option<&'static str>, until: Duration) {
        let waits = Waits {
            app_id: Some(app_id.to_owned()),
            kind,
        };
        if self.extend(waits, until) {
            metrics::paused(kind.map_or("token", |_| "quota"));
        }
    }

    /// Returns whether it is new. A pause is never cut short: after a day's quota is used up, a message that was on the wire
    /// may still meet a minute's.
    fn extend(&self, waits: Waits, until: Duration) -> bool {
        match self.lock().entry(waits) {
            Entry::Occupied(mut known) => {
                let latest = until.max(*known.get());
                known.insert(latest);
                false
            }
            Entry::Vacant(new) => {
                new.insert(until);
                true
            }
        }
    }

    /// Notes whether WeChat could be connected to. Nothing at all is sent for a while once it could not, again and again.
    pub(super) fn reached(&self, reached: bool, now: Duration) {
        if reached {
            self.unreachable.store(0, Ordering::Relaxed);
        } else if self.unreachable.fetch_add(1, Ordering::Relaxed) + 1 >= IN_A_ROW {
            let everything = Waits {
                app_id: None,
                kind: None,
            };
            if self.extend(everything, now + UNREACHABLE) {
                metrics::paused("unreachable");
            }
        }
    }

    /// How long a lane waits still; none where it does not.
    pub(super) fn left(&self, lane: &Lane, now: Duration) -> Option<Duration> {
        let mut pauses = self.lock();
        pauses.retain(|_, until| *until > now);
        let until = pauses
            .iter()
            .filter(|(waits, _)| {
                let app_id = waits.app_id.as_deref();
                app_id.is_none_or(|app_id| app_id == lane.app_id)
                    && waits.kind.is_none_or(|kind| kind == lane.kind)
            })
            .map(|(_, until)| *until)
            .max()?;
        Some(until - now)
    }

    /// What waits now, and for how long: an app, or all of them, and a kind, or all.
    pub(super) fn all(
        &self,
        now: Duration,
    ) -> Vec<(Option<String>, Option<&'static str>, Duration)> {
        let pauses = self.lock();
        let left = pauses.iter().filter_map(|(waits, until)| {
            let left = until.checked_sub(now)?;
            Some((waits.app_id.clone(), waits.kind, left))
        });
        left.collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Waits, Duration>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use wechat::AppId;

    use super::*;

    #[test]
    fn a_pause_holds_its_interface_and_ends() {
        let pauses = Pauses::default();
        let at = Duration::from_secs;
        let app_id = AppId::try_from("wx0000000000000001").unwrap();
        let lane = |kind| Lane::of_caller(&app_id, kind, "crm");
        pauses.pause(app_id.as_str(), Some("template"), at(10));
        assert_eq!(pauses.left(&lane("template"), at(4)), Some(at(6)));
        assert_eq!(pauses.left(&lane("customer"), at(4)), None);
        assert_eq!(pauses.left(&lane("template"), at(10)), None);

        pauses.pause(app_id.as_str(), None, at(20));
        assert_eq!(pauses.left(&lane("customer"), at(11)), Some(at(9)));
        let other = AppId::try_from("wx0000000000000002").unwrap();
        let other = Lane::of_caller(&other, "customer", "crm");
        assert_eq!(pauses.left(&other, at(11)), None);
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let pauses = Pauses::default();
        let at = Duration::from_secs;
        let app_id = AppId::try_from("wx0000000000000001").unwrap();
        let lane = Lane::of_caller(&app_id, "template", "crm");
        let pause = |until| pauses.pause(app_id.as_str(), Some("template"), at(until));
        pause(3600);
        pause(60);
        assert_eq!(pauses.left(&lane, at(0)), Some(at(3600)));
        pause(7200);
        assert_eq!(pauses.left(&lane, at(0)), Some(at(7200)));
    }

    #[test]
    fn everything_waits_once_wechat_cannot_be_reached() {
        let pauses = Pauses::default();
        let app_id = AppId::try_from("wx0000000000000001").unwrap();
        let lane = Lane::of_caller(&app_id, "template", "crm");
        let now = Duration::from_secs(5);
        let fail = |times| (0..times).for_each(|_| pauses.reached(false, now));
        fail(IN_A_ROW - 1);
        pauses.reached(true, now);
        fail(IN_A_ROW - 1);
        assert_eq!(pauses.left(&lane, now), None);
        fail(1);
        assert_eq!(pauses.left(&lane, now), Some(UNREACHABLE));
        assert_eq!(pauses.left(&lane, now + UNREACHABLE), None);
    }
}
