//! The statements of broadcasts and their recipients.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum as _, ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait as _,
    DatabaseBackend, DatabaseTransaction, DbErr, EntityTrait as _, ExprTrait as _,
    IntoActiveModel as _, Iterable as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    SqlErr, Statement, TransactionTrait as _, sea_query::Expr,
};
use service_kit::storage::within_deadline;
use tracing::info;
use wechat::AppId;

use super::{
    State, Tally,
    entity::{Column, Entity, Model},
    recipient,
};
use crate::{
    database::{self, Database},
    message::{self, Message, Sender, first_id},
    prune::Pruned,
};

/// Rows of one transaction: few enough that it holds its locks for milliseconds.
pub(crate) const CHUNK: usize = 1_000;

/// Reads and writes broadcasts.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) database: Database,
}

/// How adding recipients went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// So many were new.
    New(u64),
    /// It takes no more.
    Closed,
}

impl Store {
    /// Stores a draft; false when its request_id is taken.
    pub(crate) async fn insert(&self, broadcast: &Model) -> Result<bool, DbErr> {
        let insert = broadcast
            .clone()
            .into_active_model()
            .reset_all()
            .insert(&self.database.connection);
        match within_deadline(insert).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn find(&self, broadcast_id: &str) -> Result<Option<Model>, DbErr> {
        let query = Entity::find_by_id(broadcast_id).one(&self.database.connection);
        within_deadline(query).await
    }

    /// The one that a request_id stored.
    pub(crate) async fn by_request(
        &self,
        sender: &Sender,
        request_id: &str,
    ) -> Result<Option<Model>, DbErr> {
        let query = Entity::find()
            .filter(Column::AppId.eq(sender.app_id.as_str()))
            .filter(Column::Caller.eq(sender.caller.as_str()))
            .filter(Column::RequestId.eq(request_id))
            .one(&self.database.connection);
        within_deadline(query).await
    }

    /// An app's, the newest first; those below this one.
    pub(crate) async fn list(
        &self,
        app_id: &AppId,
        below: Option<&str>,
        limit: u64,
    ) -> Result<Vec<Model>, DbErr> {
        let mut query = Entity::find().filter(Column::AppId.eq(app_id.as_str()));
        if let Some(below) = below {
            query = query.filter(Column::BroadcastId.lt(below));
        }
        let query = query
            .order_by_desc(Column::BroadcastId)
            .limit(limit)
            .all(&self.database.connection);
        within_deadline(query).await
    }

    /// What these say.
    pub(crate) async fn contents(
        &self,
        broadcast_ids: impl IntoIterator<Item = String>,
    ) -> Result<Vec<(String, String)>, DbErr> {
        let query = Entity::find()
            .select_only()
            .column(Column::BroadcastId)
            .column(Column::Content)
            .filter(Column::BroadcastId.is_in(broadcast_ids))
            .into_tuple()
            .all(&self.database.connection);
        within_deadline(query).await
    }

    /// Those that need looking after.
    pub(crate) async fn active(&self) -> Result<Vec<Model>, DbErr> {
        let query = Entity::find()
            .filter(Column::State.is_in([State::Running, State::Paused, State::Cancelling]))
            .order_by_asc(Column::BroadcastId)
            .all(&self.database.connection);
        within_deadline(query).await
    }

    /// Adds recipients to a draft; who is in it already is not added again.
    pub(crate) async fn add(&self, broadcast_id: &str, open_ids: &[&str]) -> Result<Added, DbErr> {
        let mut sorted = open_ids.to_vec();
        // In one order for all, so that two uploads of one list never wait for each other.
        sorted.sort_unstable();
        let query = async {
            let transaction = self.database.connection.begin().await?;
            // MySQL counts a row for `ON DUPLICATE KEY UPDATE` whether or not it was new.
            let mut sql = match self.database.connection.get_database_backend() {
                DatabaseBackend::MySql => "INSERT IGNORE",
                _ => "INSERT OR IGNORE",
            }
            .to_owned();
            sql.push_str(" INTO broadcast_recipient (broadcast_id, open_id) VALUES ");
            let mut values = Vec::with_capacity(2 * sorted.len());
            for (place, open_id) in sorted.iter().enumerate() {
                let comma = if place == 0 { "" } else { "," };
                // Writing to a text does not fail.
                let _ = write!(sql, "{comma}(?,?)");
                values.push(broadcast_id.into());
                values.push((*open_id).into());
            }
            let backend = self.database.connection.get_database_backend();
            let insert = Statement::from_sql_and_values(backend, sql, values);
            let new = transaction.execute_raw(insert).await?.rows_affected();
            let counted = Entity::update_many()
                .col_expr(
                    Column::Recipients,
                    Expr::col(Column::Recipients).add(i64::try_from(new).unwrap_or(i64::MAX)),
                )
                .filter(Column::BroadcastId.eq(broadcast_id))
                .filter(Column::State.eq(State::Draft))
                .exec(&transaction)
                .await?;
            if counted.rows_affected == 0 {
                transaction.rollback().await?;
                return Ok(Added::Closed);
            }
            transaction.commit().await?;
            Ok(Added::New(new))
        };
        within_deadline(query).await
    }

    /// Moves it from one of these states to another; false when it is in none of them.
    pub(crate) async fn advance(
        &self,
        broadcast_id: &str,
        from: &[State],
        to: State,
    ) -> Result<bool, DbErr> {
        let now = database::moment(&self.database.clock);
        let mut update = Entity::update_many().col_expr(Column::State, to.to_value().into());
        // One that goes on after a pause began before.
        if from == [State::Draft] && to == State::Running {
            update = update.col_expr(Column::StartTime, Expr::value(now));
        }
        if to == State::Cancelling {
            update = update.col_expr(Column::EndTime, Expr::value(now));
            // Whoever has no message gets none. MySQL sets one column after the other.
            let left = Expr::col(Column::Recipients).sub(Expr::col(Column::Expanded));
            update = update
                .col_expr(Column::Cancelled, Expr::col(Column::Cancelled).add(left))
                .col_expr(Column::Expanded, Expr::col(Column::Recipients));
        }
        let update = update
            .filter(Column::BroadcastId.eq(broadcast_id))
            .filter(Column::State.is_in(from.iter().copied()))
            .exec(&self.database.connection);
        Ok(within_deadline(update).await?.rows_affected > 0)
    }

    /// Ends one whose recipients have all come to their end; false when there are others, or somebody else ended it.
    pub(crate) async fn end(
        &self,
        broadcast_id: &str,
        from: State,
        to: State,
    ) -> Result<bool, DbErr> {
        let now = database::moment(&self.database.clock);
        let ended = Expr::col(Column::Sent)
            .add(Expr::col(Column::Delivered))
            .add(Expr::col(Column::Failed))
            .add(Expr::col(Column::Cancelled))
            .add(Expr::col(Column::Expired));
        let mut update = Entity::update_many().col_expr(Column::State, to.to_value().into());
        if to == State::Finished {
            update = update.col_expr(Column::EndTime, Expr::value(now));
        }
        let update = update
            .filter(Column::BroadcastId.eq(broadcast_id))
            .filter(Column::State.eq(from))
            .filter(Expr::col(Column::Recipients).eq(ended))
            .exec(&self.database.connection);
        Ok(within_deadline(update).await?.rows_affected > 0)
    }

    /// The recipients that come next.
    pub(crate) async fn next(&self, broadcast: &Model) -> Result<Vec<String>, DbErr> {
        let query = recipient::Entity::find()
            .select_only()
            .column(recipient::Column::OpenId)
            .filter(recipient::Column::BroadcastId.eq(&broadcast.broadcast_id))
            .filter(recipient::Column::OpenId.gt(&broadcast.expanded_to))
            .order_by_asc(recipient::Column::OpenId)
            .limit(CHUNK as u64)
            .into_tuple()
            .all(&self.database.connection);
        within_deadline(query).await
    }

    /// Puts these recipients' messages into the queue, in place of them. False when somebody else did, or it does not
    /// run any more: then nothing changed.
    pub(crate) async fn expand(
        &self,
        broadcast: &Model,
        messages: &[Message],
    ) -> Result<bool, DbErr> {
        let Some(last) = messages.last() else {
            return Ok(false);
        };
        let query = async {
            let transaction = self.database.connection.begin().await?;
            let count = i64::try_from(messages.len()).unwrap_or(i64::MAX);
            let ours = Entity::update_many()
                .col_expr(Column::ExpandedTo, Expr::value(last.open_id.as_str()))
                .col_expr(Column::Expanded, Expr::col(Column::Expanded).add(count))
                .filter(Column::BroadcastId.eq(&broadcast.broadcast_id))
                .filter(Column::State.eq(State::Running))
                .filter(Column::ExpandedTo.eq(&broadcast.expanded_to))
                .exec(&transaction)
                .await?;
            if ours.rows_affected == 0 {
                transaction.rollback().await?;
                return Ok(false);
            }
            let messages_store = message::store::Store {
                database: self.database.clone(),
            };
            messages_store.insert_into(&transaction, messages).await?;
            self.forget(&transaction, &broadcast.broadcast_id, &last.open_id)
                .await?;
            transaction.commit().await?;
            Ok(true)
        };
        within_deadline(query).await
    }

    /// Removes the recipients up to this one.
    async fn forget(
        &self,
        transaction: &DatabaseTransaction,
        broadcast_id: &str,
        up_to: &str,
    ) -> Result<(), DbErr> {
        recipient::Entity::delete_many()
            .filter(recipient::Column::BroadcastId.eq(broadcast_id))
            .filter(recipient::Column::OpenId.lte(up_to))
            .exec(transaction)
            .await?;
        Ok(())
    }

    /// Takes back some of its messages that are not on the wire; returns whether there may be more.
    pub(crate) async fn cancel_messages(&self, broadcast: &Model) -> Result<bool, DbErr> {
        use message::entity::{Column, Entity};

        let lane = super::lane(broadcast);
        let query = async {
            let found: Vec<String> = Entity::find()
                .select_only()
                .column(Column::MessageId)
                .filter(Column::State.eq(message::State::Queued))
                .filter(Column::Lane.eq(lane))
                .limit(CHUNK as u64)
                .into_tuple()
                .all(&self.database.connection)
                .await?;
            if found.is_empty() {
                return Ok(false);
            }
            let transaction = self.database.connection.begin().await?;
            let cancelled = Entity::update_many()
                .col_expr(
                    Column::State,
                    Expr::value(message::State::Cancelled.to_value()),
                )
                .col_expr(Column::NextAttemptTime, Expr::value(None::<DateTime<Utc>>))
                .col_expr(Column::ClaimId, Expr::value(None::<String>))
                .filter(Column::MessageId.is_in(&found))
                .filter(Column::State.eq(message::State::Queued))
                .exec(&transaction)
                .await?;
            let mut tally = Tally::default();
            tally.moved(
                Some(&broadcast.broadcast_id),
                message::State::Queued,
                message::State::Cancelled,
                cancelled.rows_affected,
            );
            tally.write(&transaction).await?;
            transaction.commit().await?;
            Ok(found.len() == CHUNK)
        };
        within_deadline(query).await
    }

    /// Removes what came to its end before then and has no message left, the oldest first, and cancels drafts that are as
    /// old: their recipients go as those of any other that is cancelled.
    pub(crate) async fn prune(&self, before: DateTime<Utc>, limit: u64) -> Result<Pruned, DbErr> {
        let over = Column::State
            .is_in([State::Cancelled, State::Finished])
            .and(Column::EndTime.lt(before));
        let query = Entity::find()
            .filter(Column::BroadcastId.lt(first_id(before)))
            .filter(Column::State.eq(State::Draft).or(over.clone()))
            .order_by_asc(Column::BroadcastId)
            .limit(limit)
            .all(&self.database.connection);
        let old = within_deadline(query).await?;
        let full = old.len() as u64 == limit;
        let mut rows = 0;
        for broadcast in old {
            let broadcast_id = &broadcast.broadcast_id;
            if broadcast.state == State::Draft {
                let (from, to) = ([State::Draft], State::Cancelling);
                if self.advance(broadcast_id, &from, to).await? {
                    info!(broadcast.id = broadcast_id, "an old draft is cancelled");
                }
            } else if !self.has_messages(&broadcast).await? {
                let delete = Entity::delete_many()
                    .filter(Column::BroadcastId.eq(broadcast_id))
                    .filter(over.clone())
                    .exec(&self.database.connection);
                rows += within_deadline(delete).await?.rows_affected;
            }
        }
        Ok(Pruned {
            rows,
            more: full && rows > 0,
        })
    }

    /// Whether messages of it are stored, in whichever state: any may be queued again, and then says what it says.
    async fn has_messages(&self, broadcast: &Model) -> Result<bool, DbErr> {
        use message::entity::{Column, Entity};

        let query = Entity::find()
            .select_only()
            .column(Column::MessageId)
            .filter(Column::State.is_in(message::State::iter()))
            .filter(Column::Lane.eq(super::lane(broadcast)))
            .into_tuple::<String>()
            .one(&self.database.connection);
        Ok(within_deadline(query).await?.is_some())
    }

    /// Removes some of the recipients of one that is cancelled; returns whether there may be more.
    pub(crate) async fn clear(&self, broadcast_id: &str) -> Result<bool, DbErr> {
        let query = async {
            let found: Vec<String> = recipient::Entity::find()
                .select_only()
                .column(recipient::Column::OpenId)
                .filter(recipient::Column::BroadcastId.eq(broadcast_id))
                .order_by_asc(recipient::Column::OpenId)
                .limit(CHUNK as u64)
                .into_tuple()
                .all(&self.database.connection)
                .await?;
            if let Some(last) = found.last() {
                let transaction = self.database.connection.begin().await?;
                self.forget(&transaction, broadcast_id, last).await?;
                transaction.commit().await?;
            }
            Ok(found.len() == CHUNK)
        };
        within_deadline(query).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{broadcasts, draft};

    #[tokio::test]
    async fn an_old_draft_that_is_cancelled_was_never_started() {
        let (_folder, broadcasts) = broadcasts().await;
        let draft = draft(&broadcasts).await;
        let store = &broadcasts.store;
        let later = draft.create_time + chrono::TimeDelta::seconds(1);
        store.prune(later, 10).await.unwrap();
        let cancelled = store.find(&draft.broadcast_id).await.unwrap().unwrap();
        assert_eq!(cancelled.state, super::State::Cancelling);
        assert_eq!(cancelled.start_time, None);
    }
}
