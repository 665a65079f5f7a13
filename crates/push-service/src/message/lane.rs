//! Lanes: the queues within the queue, so that nobody waits behind a backlog of somebody else.

use std::fmt::{self, Display, Formatter};

use wechat::AppId;

/// Which messages go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// What a caller sends to a user by itself.
    Transactional,
    /// A part of a broadcast.
    Broadcast,
}

impl Priority {
    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Broadcast => "broadcast",
        }
    }
}

/// Messages that wait for the same things: one app's, of one kind, of one caller or one broadcast. Kept as a text in
/// the row, so that the queue's index keeps them apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lane {
    pub(crate) priority: Priority,
    pub(crate) app_id: String,
    /// [`super::Content::kind`]: WeChat counts its quotas by interface.
    pub(crate) kind: String,
    /// The caller's name, or the broadcast's id.
    pub(crate) whose: String,
}

impl Lane {
    /// Where a caller's own messages wait.
    pub(crate) fn of_caller(app_id: &AppId, kind: &str, caller: &str) -> Self {
        Self {
            priority: Priority::Transactional,
            app_id: app_id.to_string(),
            kind: kind.to_owned(),
            whose: caller.to_owned(),
        }
    }

    /// Where a broadcast's messages wait.
    pub(crate) fn of_broadcast(app_id: &str, kind: &str, broadcast_id: &str) -> Self {
        Self {
            priority: Priority::Broadcast,
            app_id: app_id.to_owned(),
            kind: kind.to_owned(),
            whose: broadcast_id.to_owned(),
        }
    }

    /// Reads a row's lane; none where it is none of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '/');
        let priority = match parts.next()? {
            "0" => Priority::Transactional,
            "1" => Priority::Broadcast,
            _ => return None,
        };
        let mut part = || parts.next().map(str::to_owned);
        Some(Self {
            priority,
            app_id: part()?,
            kind: part()?,
            whose: part()?,
        })
    }
}

impl Display for Lane {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let priority = match self.priority {
            Priority::Transactional => 0,
            Priority::Broadcast => 1,
        };
        write!(f, "{priority}/{}/{}/{}", self.app_id, self.kind, self.whose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_read_back() {
        let app_id = AppId::try_from("wx0000000000000001").unwrap();
        for lane in [
            Lane::of_caller(&app_id, "template", "crm"),
            Lane::of_caller(&app_id, "template", "a/b"),
            Lane::of_broadcast(app_id.as_str(), "subscribe", "0197"),
        ] {
            assert_eq!(Lane::parse(&lane.to_string()), Some(lane));
        }
    }

    #[test]
    fn what_is_no_lane_is_told() {
        for text in ["", "0", "2/a/b/c", "0/a/b"] {
            assert_eq!(Lane::parse(text), None, "{text}");
        }
    }
}
