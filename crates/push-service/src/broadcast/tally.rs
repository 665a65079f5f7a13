//! A broadcast's counters, moved with its messages: in the same transaction, so that they are exact.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveEnum as _, ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, ExprTrait as _,
    QueryFilter as _,
    sea_query::{CaseStatement, Expr},
};

use super::{
    State,
    entity::{Column, Entity},
};
use crate::message;

/// What is counted. What waits is the rest of the recipients.
const COUNTERS: [Column; 5] = [
    Column::Sent,
    Column::Delivered,
    Column::Failed,
    Column::Cancelled,
    Column::Expired,
];

/// How many messages of each broadcast went from which state to which.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The changes of [`COUNTERS`], by broadcast: in one order for all writers, so that no two wait for each other.
    changes: BTreeMap<String, [i64; COUNTERS.len()]>,
}

impl Tally {
    /// Notes that so many messages went from one state to another. Those of no broadcast are not counted.
    pub(crate) fn moved(
        &mut self,
        broadcast_id: Option<&str>,
        from: message::State,
        to: message::State,
        count: u64,
    ) {
        let Some(broadcast_id) = broadcast_id else {
            return;
        };
        let (from, to) = (counter(from), counter(to));
        if from == to {
            return;
        }
        let changes = self.changes.entry(broadcast_id.to_owned()).or_default();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        for (counter, by) in [(from, -count), (to, count)] {
            if let Some(change) = counter.and_then(|counter| changes.get_mut(counter)) {
                *change += by;
            }
        }
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.values().flatten().all(|change| *change == 0)
    }

    /// Writes it, in the transaction of the messages themselves. A broadcast that had finished, and has a message in
    /// the queue again, runs again.
    pub(crate) async fn write(&self, connection: &impl ConnectionTrait) -> Result<(), DbErr> {
        for (broadcast_id, changes) in &self.changes {
            if changes.iter().all(|change| *change == 0) {
                continue;
            }
            let mut update = Entity::update_many().filter(Column::BroadcastId.eq(broadcast_id));
            for (column, change) in COUNTERS.into_iter().zip(changes) {
                if *change != 0 {
                    update = update.col_expr(column, Expr::col(column).add(*change));
                }
            }
            if changes.iter().sum::<i64>() < 0 {
                let again = CaseStatement::new()
                    .case(Column::State.eq(State::Finished), State::Running.to_value())
                    .finally(Expr::col(Column::State));
                update = update.col_expr(Column::State, again.into());
            }
            update.exec(connection).await?;
        }
        Ok(())
    }
}

/// The place among [`COUNTERS`] of what counts messages in this state.
fn counter(state: message::State) -> Option<usize> {
    match state {
        message::State::Queued | message::State::Sending => None,
        message::State::Sent => Some(0),
        message::State::Delivered => Some(1),
        message::State::Failed => Some(2),
        message::State::Cancelled => Some(3),
        message::State::Expired => Some(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::State::{Delivered, Failed, Queued, Sending, Sent};

    #[test]
    fn moves_add_up_by_broadcast() {
        let mut tally = Tally::default();
        tally.moved(None, Sending, Sent, 1);
        tally.moved(Some("a"), Queued, Sending, 1);
        assert!(tally.is_empty());
        tally.moved(Some("b"), Sending, Sent, 3);
        tally.moved(Some("a"), Sending, Sent, 1);
        tally.moved(Some("a"), Sent, Delivered, 1);
        tally.moved(Some("a"), Failed, Queued, 1);
        let changes: Vec<_> = tally.changes.into_iter().collect();
        assert_eq!(
            changes,
            [
                ("a".to_owned(), [0, 1, -1, 0, 0]),
                ("b".to_owned(), [3, 0, 0, 0, 0])
            ]
        );
    }
}
