//! Where a message is, as callers are told: some of it lies in the row's times alone.

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait as _, Condition};

use super::{
    Message,
    entity::{Column, State},
};

/// The states of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Scheduled,
    Queued,
    Sending,
    Sent,
    Delivered,
    Failed,
    Cancelled,
    Expired,
}

impl Shown {
    /// Where this message is.
    pub(crate) fn of(message: &Message, now: DateTime<Utc>) -> Self {
        let ahead = message.attempts == 0 && message.schedule_time.is_some_and(|time| time > now);
        // Nobody sends it any more, though nobody may have looked at it yet: its app waits for a quota, say.
        let over =
            message.claim_id.is_none() && message.expire_time.is_some_and(|time| time <= now);
        match message.state {
            State::Queued if over => Self::Expired,
            State::Queued if ahead => Self::Scheduled,
            State::Queued => Self::Queued,
            State::Sending => Self::Sending,
            State::Sent => Self::Sent,
            State::Delivered => Self::Delivered,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
        }
    }

    /// Which rows are there: those that [`Self::of`] says so of.
    pub(crate) fn rows(self, now: DateTime<Utc>) -> Condition {
        let is = |state: State| Condition::all().add(Column::State.eq(state));
        let ahead = Condition::all()
            .add(Column::Attempts.eq(0))
            .add(Column::ScheduleTime.gt(now));
        let not_ahead = Condition::any()
            .add(Column::Attempts.gt(0))
            .add(Column::ScheduleTime.is_null())
            .add(Column::ScheduleTime.lte(now));
        let over = Condition::all()
            .add(Column::ClaimId.is_null())
            .add(Column::ExpireTime.lte(now));
        let not_over = Condition::any()
            .add(Column::ClaimId.is_not_null())
            .add(Column::ExpireTime.is_null())
            .add(Column::ExpireTime.gt(now));
        match self {
            Self::Scheduled => is(State::Queued).add(ahead).add(not_over),
            Self::Queued => is(State::Queued).add(not_ahead).add(not_over),
            Self::Sending => is(State::Sending),
            Self::Sent => is(State::Sent),
            Self::Delivered => is(State::Delivered),
            Self::Failed => is(State::Failed),
            Self::Cancelled => is(State::Cancelled),
            Self::Expired => Condition::any()
                .add(is(State::Expired))
                .add(is(State::Queued).add(over)),
        }
    }
}
