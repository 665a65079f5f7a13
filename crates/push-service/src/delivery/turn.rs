//! Whose turn it is: nobody waits behind a backlog of somebody else, and broadcasts wait for everybody.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use super::{ROOM, TOGETHER};
use crate::{
    message::{Lane, Priority},
    rate::Want,
};

/// A lane with no more due messages than this has no backlog: they go first.
const FEW: usize = 16;
/// The most lanes that one claim looks into.
const LANES: usize = 16;
/// How many of them are for broadcasts, where there are any.
const BROADCASTS: usize = 4;
/// While callers with few are about, no more than this of backlogs is claimed at once, and on average one message
/// in this time: as fast as they can they use up what the database or the machine can do, and each step of those with few
/// waits for it.
const POLITE_TOGETHER: usize = 32;
const POLITE_PACE: Duration = Duration::from_micros(1_600);
/// Callers with few are about for so long after some of theirs were picked.
const ABOUT: Duration = Duration::from_secs(2);

/// Lanes to look into.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) lanes: Vec<(String, Option<Lane>)>,
    /// There are more.
    pub(super) left_out: bool,
}

/// What is due in a lane.
#[derive(Debug)]
pub(super) struct Waiting {
    class: Class,
    lane: Option<Lane>,
    message_ids: Vec<String>,
    /// There may be more than was looked at.
    more: bool,
}

/// Messages to claim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picked {
    /// Of callers with few: nothing else is waited for before they are claimed.
    pub(super) few: Part,
    pub(super) rest: Part,
    /// With so many free places it is worth while to come back; none when nothing was left out.
    pub(super) come_back: Option<usize>,
}

/// Messages of one claim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) message_ids: Vec<String>,
    /// How many of them are of an app with a rate.
    pub(super) rated: HashMap<String, u32>,
    /// Whose they are: see [`Lane::whose`].
    pub(super) whose: HashSet<String>,
}

/// For how long it is not polite to claim more of backlogs, once so many were.
pub(super) fn pause(messages: usize) -> Duration {
    POLITE_PACE * u32::try_from(messages).unwrap_or(u32::MAX)
}

/// Callers of whom few were picked lately, and the elapsed time at which they last were.
#[derive(Debug, Default)]
pub(super) struct About(HashMap<String, Duration>);

impl About {
    pub(super) fn add(&mut self, few: &Part, now: Duration) {
        self.0.retain(|_, seen| now < *seen + ABOUT);
        self.0
            .extend(few.whose.iter().map(|whose| (whose.clone(), now)));
    }

    /// Whether one of them is about beside a backlog of somebody else.
    pub(super) fn beside(&self, waiting: &[Waiting], now: Duration) -> bool {
        let mut backlogs = waiting.iter().filter(|lane| lane.class != Class::Few);
        backlogs.any(|backlog| {
            let whose = backlog.lane.as_ref().map(|lane| &lane.whose);
            let others = self.0.iter().filter(|(few, _)| Some(*few) != whose);
            others
                .map(|(_, seen)| *seen + ABOUT)
                .any(|until| now < until)
        })
    }
}

/// Who goes before whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Few of a caller.
    Few,
    /// A caller's backlog.
    Backlog,
    /// Parts of a broadcast.
    Broadcast,
}

impl Class {
    const ALL: [Self; 3] = [Self::Few, Self::Backlog, Self::Broadcast];

    /// How many places it leaves to those before it.
    fn reserve(self, limit: usize) -> usize {
        match self {
            Self::Few => 0,
            Self::Backlog => limit / 8,
            Self::Broadcast => limit / 4,
        }
    }

    /// With so many free places it is worth while to come back for it.
    fn come_back(self, limit: usize) -> usize {
        self.reserve(limit) + room(limit)
    }
}

impl Waiting {
    /// The ids of a lane's due messages, found with this limit.
    pub(super) fn new(lane: Option<&Lane>, message_ids: Vec<String>, limit: usize) -> Self {
        let broadcast = lane.is_some_and(|lane| lane.priority == Priority::Broadcast);
        let class = match message_ids.len() {
            _ if broadcast => Class::Broadcast,
            ..=FEW => Class::Few,
            _ => Class::Backlog,
        };
        Self {
            class,
            lane: lane.cloned(),
            more: message_ids.len() >= limit,
            message_ids,
        }
    }

    fn app_id(&self) -> Option<&String> {
        self.lane.as_ref().map(|lane| &lane.app_id)
    }
}

/// The lanes that a claim looks into: callers' first, and each claim begins with others.
pub(super) fn choose(mut due: Vec<(String, Option<Lane>)>, turn: usize) -> Chosen {
    let left_out = due.len() > LANES;
    if left_out {
        let broadcast = |lane: &Option<Lane>| {
            lane.as_ref()
                .is_some_and(|lane| lane.priority == Priority::Broadcast)
        };
        due.sort_by_key(|(_, lane)| broadcast(lane));
        let mut callers = due;
        let mut broadcasts =
            callers.split_off(callers.partition_point(|(_, lane)| !broadcast(lane)));
        // Callers who wait for their rate do not keep broadcasts of others from being seen.
        let places = LANES - broadcasts.len().min(BROADCASTS);
        rotate(&mut callers, turn, places);
        rotate(&mut broadcasts, turn, LANES - callers.len());
        callers.append(&mut broadcasts);
        due = callers;
    }
    Chosen {
        lanes: due,
        left_out,
    }
}

/// A backlog is worked on whenever so many are done.
pub(super) fn room(limit: usize) -> usize {
    ROOM.min(limit / 2)
}

/// Leaves so many, others each turn.
fn rotate<T>(lanes: &mut Vec<T>, turn: usize, places: usize) {
    let by = turn.wrapping_mul(places).checked_rem(lanes.len());
    lanes.rotate_left(by.unwrap_or_default());
    lanes.truncate(places);
}

/// How many due messages of a lane a claim has to see, with so many free places for those of backlogs and no more than a
/// burst that its app may send.
pub(super) fn limit(free: usize, burst: Option<u32>) -> usize {
    let burst = burst.and_then(|burst| usize::try_from(burst).ok());
    free.min(burst.unwrap_or(TOGETHER)).clamp(FEW + 1, TOGETHER)
}

/// Leaves those with few; whether there are others.
pub(super) fn leave_few(waiting: &mut Vec<Waiting>) -> bool {
    let before = waiting.len();
    waiting.retain(|lane| lane.class == Class::Few);
    waiting.len() < before
}

/// The apps of these lanes.
pub(super) fn apps(waiting: &[Waiting]) -> BTreeSet<&str> {
    let lanes = waiting.iter();
    lanes
        .filter_map(|lane| Some(lane.app_id()?.as_str()))
        .collect()
}

/// What the lanes of one app would send: first those of few, then the others, of which no more than is polite.
pub(super) fn want(waiting: &[Waiting], app_id: &str, polite: bool) -> Want {
    let count = |few: bool| {
        let lanes = waiting.iter();
        let lanes = lanes.filter(|lane| {
            lane.app_id().is_some_and(|of| of == app_id) && (lane.class == Class::Few) == few
        });
        let count = lanes.map(|lane| lane.message_ids.len()).sum::<usize>();
        let most = if polite && !few {
            POLITE_TOGETHER
        } else {
            TOGETHER
        };
        u32::try_from(count.min(most)).unwrap_or(u32::MAX)
    };
    Want {
        urgent: count(true),
        rest: count(false),
    }
}

/// Picks messages for the free places of so many: from each lane in turn, those of few first, and of backlogs no more than
/// is polite. An app with a rate is let no more than is left for it in `rates`.
pub(super) fn pick(
    mut waiting: Vec<Waiting>,
    free: usize,
    limit: usize,
    polite: bool,
    rates: &mut HashMap<String, u32>,
) -> Picked {
    let (mut few, mut rest) = (Part::default(), Part::default());
    for lane in &mut waiting {
        lane.message_ids.reverse();
    }
    for class in Class::ALL {
        let room = free.saturating_sub(class.reserve(limit)).min(TOGETHER);
        let mut room = room.saturating_sub(few.message_ids.len() + rest.message_ids.len());
        if polite && class != Class::Few {
            room = room.min(POLITE_TOGETHER.saturating_sub(rest.message_ids.len()));
        }
        let part = match class {
            Class::Few => &mut few,
            Class::Backlog | Class::Broadcast => &mut rest,
        };
        loop {
            let before = room;
            for lane in waiting.iter_mut().filter(|lane| lane.class == class) {
                let of = lane.lane.as_ref();
                let app_id = of.map(|lane| &lane.app_id);
                let rate = app_id.and_then(|app_id| rates.get_mut(app_id));
                if room == 0 || rate.as_deref() == Some(&0) {
                    continue;
                }
                let Some(message_id) = lane.message_ids.pop() else {
                    continue;
                };
                if let Some((rate, app_id)) = rate.zip(app_id) {
                    *rate -= 1;
                    *part.rated.entry(app_id.clone()).or_default() += 1;
                }
                if let Some(of) = of
                    && !part.whose.contains(&of.whose)
                {
                    part.whose.insert(of.whose.clone());
                }
                room -= 1;
                part.message_ids.push(message_id);
            }
            if room == before {
                break;
            }
        }
    }
    // Whom their rate holds back do not wait for places.
    let held_back = |lane: &Waiting| {
        let rate = lane.app_id().and_then(|app_id| rates.get(app_id));
        rate == Some(&0)
    };
    let left_out = waiting
        .iter()
        .filter(|lane| (lane.more || !lane.message_ids.is_empty()) && !held_back(lane));
    let come_back = left_out.map(|lane| lane.class.come_back(limit)).min();
    Picked {
        few,
        rest,
        come_back,
    }
}

#[cfg(test)]
mod tests {
    use wechat::AppId;

    use super::{super::CONCURRENCY, *};

    fn lane(whose: &str, priority: Priority) -> Lane {
        let app_id = AppId::try_from("wx0000000000000001").unwrap();
        match priority {
            Priority::Transactional => Lane::of_caller(&app_id, "template", whose),
            Priority::Broadcast => Lane::of_broadcast(app_id.as_str(), "template", whose),
        }
    }

    fn waiting(whose: &str, priority: Priority, count: usize, free: usize) -> Waiting {
        let ids = (0..count.min(limit(free, None))).map(|number| format!("{whose}{number}"));
        Waiting::new(
            Some(&lane(whose, priority)),
            ids.collect(),
            limit(free, None),
        )
    }

    fn pick(waiting: Vec<Waiting>, free: usize) -> Picked {
        super::pick(waiting, free, CONCURRENCY, false, &mut HashMap::new())
    }

    #[test]
    fn a_caller_with_few_messages_goes_before_a_backlog() {
        const FREE: usize = CONCURRENCY / 8 + 100;
        let picked = pick(
            vec![
                waiting("a", Priority::Transactional, 1_000_000, FREE),
                waiting("b", Priority::Transactional, 2, FREE),
                waiting("z", Priority::Broadcast, 1_000_000, FREE),
            ],
            FREE,
        );
        assert_eq!(picked.few.message_ids, ["b0", "b1"]);
        assert_eq!(picked.rest.message_ids[0], "a0");
        assert_eq!(
            picked.rest.message_ids.len(),
            FREE - Class::Backlog.reserve(CONCURRENCY) - 2
        );
        assert_eq!(
            picked.come_back,
            Some(Class::Backlog.come_back(CONCURRENCY))
        );
    }

    #[test]
    fn backlogs_share_evenly_and_a_broadcast_takes_what_is_left() {
        let picked = pick(
            vec![
                waiting("z", Priority::Broadcast, 1_000, CONCURRENCY),
                waiting("a", Priority::Transactional, 1_000, CONCURRENCY),
                waiting("b", Priority::Transactional, 40, CONCURRENCY),
            ],
            CONCURRENCY,
        );
        let of = |whose| {
            let ids = picked.rest.message_ids.iter();
            ids.filter(|id| id.starts_with(whose)).count()
        };
        assert_eq!((of("a"), of("b"), of("z")), (TOGETHER - 40, 40, 0));
    }

    #[test]
    fn the_last_places_are_kept_for_those_with_few_messages() {
        let full = Class::Backlog.reserve(CONCURRENCY);
        let backlog = || waiting("a", Priority::Transactional, 1_000, full);
        let picked = pick(vec![backlog()], full);
        assert!(picked.rest.message_ids.is_empty());
        let few = waiting("b", Priority::Transactional, 1, full);
        let picked = pick(vec![backlog(), few], full);
        assert_eq!(picked.few.message_ids, ["b0"]);
        assert!(picked.rest.message_ids.is_empty());
    }

    #[test]
    fn a_backlog_goes_on_with_the_fewest_places() {
        let backlog = waiting("a", Priority::Broadcast, 1_000, 32);
        let picked = super::pick(vec![backlog], 32, 32, false, &mut HashMap::new());
        assert_eq!(picked.rest.message_ids.len(), 24);
        assert_eq!(picked.come_back, Some(8 + 16));
    }

    #[test]
    fn beside_few_of_others_less_of_a_backlog_is_picked() {
        let lanes = || {
            vec![
                waiting("z", Priority::Broadcast, 1_000, CONCURRENCY),
                waiting("a", Priority::Transactional, FEW + 4, CONCURRENCY),
                waiting("b", Priority::Transactional, FEW, CONCURRENCY),
            ]
        };
        let polite =
            |waiting, free| super::pick(waiting, free, CONCURRENCY, true, &mut HashMap::new());
        let picked = polite(lanes(), CONCURRENCY);
        assert_eq!(picked.few.message_ids.len(), FEW);
        assert_eq!(picked.rest.message_ids.len(), POLITE_TOGETHER);
        let of_a = |id: &&String| id.starts_with('a');
        assert_eq!(picked.rest.message_ids.iter().filter(of_a).count(), FEW + 4);
        let picked = polite(lanes(), CONCURRENCY / 8 + FEW + 5);
        assert_eq!(picked.rest.message_ids.len(), 5);
    }

    #[test]
    fn few_are_about_for_a_while_and_only_others_are_polite_to_them() {
        let seconds = Duration::from_secs;
        let few = || vec![waiting("a", Priority::Transactional, 1, CONCURRENCY)];
        let backlog = |whose| waiting(whose, Priority::Transactional, 1_000, CONCURRENCY);
        let mut about = About::default();
        assert!(!about.beside(&[backlog("b")], seconds(60)));
        about.add(&pick(few(), CONCURRENCY).few, seconds(60));
        assert!(about.beside(&[backlog("a"), backlog("b")], seconds(60)));
        assert!(about.beside(&[backlog("b")], seconds(60) + ABOUT / 2));
        assert!(!about.beside(&[backlog("a")], seconds(60)));
        assert!(!about.beside(&few(), seconds(60)));
        assert!(!about.beside(&[backlog("b")], seconds(60) + ABOUT));
        about.add(&Part::default(), seconds(60) + ABOUT);
        assert!(about.0.is_empty());
    }

    #[test]
    fn few_that_their_rate_holds_back_are_not_about() {
        let few = waiting("a", Priority::Transactional, 1, CONCURRENCY);
        let mut rates = HashMap::from([(few.app_id().unwrap().clone(), 0)]);
        let picked = super::pick(vec![few], CONCURRENCY, CONCURRENCY, false, &mut rates);
        assert!(picked.few.whose.is_empty());
    }

    #[test]
    fn when_all_is_taken_nobody_has_to_come_back() {
        let picked = pick(
            vec![waiting("a", Priority::Broadcast, 3, CONCURRENCY)],
            CONCURRENCY,
        );
        assert_eq!(picked.rest.message_ids, ["a0", "a1", "a2"]);
        assert_eq!(picked.come_back, None);
    }

    #[test]
    fn many_lanes_are_looked_into_in_turn_and_callers_first() {
        let due: Vec<_> = (0..100)
            .map(|number| {
                let priority = if number % 2 == 0 {
                    Priority::Broadcast
                } else {
                    Priority::Transactional
                };
                let lane = lane(&number.to_string(), priority);
                (lane.to_string(), Some(lane))
            })
            .collect();
        let mut seen = std::collections::HashSet::new();
        for turn in 0..50 {
            let chosen = choose(due.clone(), turn);
            assert!(chosen.left_out);
            assert_eq!(chosen.lanes.len(), LANES);
            seen.extend(chosen.lanes.into_iter().map(|(text, _)| text));
        }
        let callers = due.iter().filter(|(text, _)| text.starts_with('0'));
        for (text, _) in callers {
            assert!(seen.contains(text), "{text}");
        }
        let broadcasts = seen.iter().filter(|text| text.starts_with('1'));
        assert_eq!(broadcasts.count(), 50);
    }

    #[test]
    fn an_app_is_let_no_more_than_its_rate_and_its_few_go_first() {
        let app_id = lane("a", Priority::Transactional).app_id;
        let waiting = vec![
            waiting("a", Priority::Transactional, 100, CONCURRENCY),
            waiting("b", Priority::Transactional, 3, CONCURRENCY),
        ];
        let wanted = |polite| want(&waiting, &app_id, polite);
        assert_eq!((wanted(false).urgent, wanted(false).rest), (3, 100));
        assert_eq!((wanted(true).urgent, wanted(true).rest), (3, 32));
        let mut rates = HashMap::from([(app_id.clone(), 5)]);
        let picked = super::pick(waiting, CONCURRENCY, CONCURRENCY, false, &mut rates);
        assert_eq!(picked.few.message_ids, ["b0", "b1", "b2"]);
        assert_eq!(picked.few.rated[&app_id], 3);
        assert_eq!(picked.rest.message_ids, ["a0", "a1"]);
        assert_eq!(picked.rest.rated[&app_id], 2);
        assert_eq!((picked.come_back, rates[&app_id]), (None, 0));
    }
}
