//! The message table's statements.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum as _, ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, SqlErr, TransactionTrait as _, UpdateMany,
    sea_query::{Expr, Query},
};
use service_kit::storage::{self, within_deadline};

use super::{
    Sender,
    entity::{Column, Entity, Model, State},
};
use crate::{broadcast::Tally, database::Database, form};

/// Reads and writes messages.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) database: Database,
}

/// What became of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// All of it is committed.
    Stored,
    /// A request_id is taken, or is being taken: nothing was stored.
    RequestRepeated,
    /// A form_id was used by another message: nothing was stored.
    FormTaken,
}

/// What became of the statement. One that was in the way of another tells the same as a taken request_id: that it is to
/// be tried again.
fn inserted(executed: Result<(), DbErr>) -> Result<Inserted, DbErr> {
    match executed {
        Ok(()) => Ok(Inserted::Stored),
        Err(error)
            if storage::is_deadlock(&error)
                || matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
        {
            Ok(Inserted::RequestRepeated)
        }
        Err(error) => Err(error),
    }
}

impl Store {
    /// Stores messages together with their request_ids, and takes their form_ids out of the pool: all or nothing.
    pub(crate) async fn insert(&self, messages: &[Model]) -> Result<Inserted, DbErr> {
        let connection = &self.database.connection;
        if messages.iter().all(|message| message.form_id.is_none()) {
            // A statement is a transaction of its own, and asks the server once.
            return inserted(self.insert_into(connection, messages).await);
        }
        let transaction = connection.begin().await?;
        if inserted(self.insert_into(&transaction, messages).await)? == Inserted::RequestRepeated {
            transaction.rollback().await?;
            return Ok(Inserted::RequestRepeated);
        }
        for message in messages {
            if let Some(form_id) = &message.form_id
                && !form::Store::take(&transaction, &message.app_id, form_id).await?
            {
                transaction.rollback().await?;
                return Ok(Inserted::FormTaken);
            }
        }
        transaction.commit().await?;
        Ok(Inserted::Stored)
    }

    /// The rows alone, as a part of a transaction.
    pub(crate) async fn insert_into(
        &self,
        connection: &impl ConnectionTrait,
        messages: &[Model],
    ) -> Result<(), DbErr> {
        let mut insert = Query::insert();
        insert.into_table(Entity).columns([
            Column::MessageId,
            Column::AppId,
            Column::OpenId,
            Column::Account,
            Column::Caller,
            Column::RequestId,
            Column::Content,
            Column::FormId,
            Column::State,
            Column::Attempts,
            Column::PossibleDuplicate,
            Column::Errcode,
            Column::Errmsg,
            Column::CreateTime,
            Column::ScheduleTime,
            Column::ExpireTime,
            Column::NextAttemptTime,
            Column::Lane,
            Column::BroadcastId,
            Column::TraceParent,
        ]);
        for message in messages {
            // Due by the database's clock, as everything that makes a message due.
            let due = message
                .schedule_time
                .map_or_else(|| self.database.now(), Expr::value);
            insert
                .values([
                    message.message_id.clone().into(),
                    message.app_id.clone().into(),
                    message.open_id.clone().into(),
                    message.account.clone().into(),
                    message.caller.clone().into(),
                    message.request_id.clone().into(),
                    message.content.clone().into(),
                    message.form_id.clone().into(),
                    message.state.to_value().into(),
                    message.attempts.into(),
                    message.possible_duplicate.into(),
                    message.errcode.into(),
                    message.errmsg.clone().into(),
                    message.create_time.into(),
                    message.schedule_time.into(),
                    message.expire_time.into(),
                    due,
                    message.lane.clone().into(),
                    message.broadcast_id.clone().into(),
                    message.trace_parent.clone().into(),
                ])
                .map_err(|error| DbErr::Custom(error.to_string()))?;
        }
        connection.execute(&insert).await?;
        Ok(())
    }

    /// The message with this id.
    pub(crate) async fn find(&self, message_id: &str) -> Result<Option<Model>, DbErr> {
        let query = Entity::find_by_id(message_id).one(&self.database.connection);
        within_deadline(query).await
    }

    /// The messages that these request_ids stored.
    pub(crate) async fn by_requests(
        &self,
        sender: &Sender,
        request_ids: Vec<&str>,
    ) -> Result<Vec<Model>, DbErr> {
        if request_ids.is_empty() {
            return Ok(Vec::new());
        }
        Entity::find()
            .filter(Column::AppId.eq(sender.app_id.as_str()))
            .filter(Column::Caller.eq(sender.caller.as_str()))
            .filter(Column::RequestId.is_in(request_ids))
            .all(&self.database.connection)
            .await
    }

    /// Takes a message back that is not on the wire. Returns whether it was taken.
    pub(crate) async fn cancel(&self, message: &Model) -> Result<bool, DbErr> {
        let update = Entity::update_many()
            .col_expr(Column::State, Expr::value(State::Cancelled.to_value()))
            .col_expr(Column::NextAttemptTime, Expr::value(None::<DateTime<Utc>>))
            .col_expr(Column::ClaimId, Expr::value(None::<String>))
            .filter(Column::MessageId.eq(&message.message_id))
            .filter(Column::State.eq(State::Queued));
        self.counted(message, State::Queued, State::Cancelled, update)
            .await
    }

    /// Queues a message that failed. Returns whether it was queued.
    pub(crate) async fn retry(&self, message: &Model) -> Result<bool, DbErr> {
        let update = self
            .requeuing()
            .filter(Column::MessageId.eq(&message.message_id));
        self.counted(message, State::Failed, State::Queued, update)
            .await
    }

    /// The same with another form_id, which is taken out of the pool. Returns nothing when somebody else took it.
    pub(crate) async fn retry_with(
        &self,
        message: &Model,
        form_id: &str,
    ) -> Result<Option<bool>, DbErr> {
        let update = self
            .requeuing()
            .col_expr(Column::FormId, Expr::value(form_id))
            .filter(Column::MessageId.eq(&message.message_id));
        // No part of a broadcast has a form_id: there are no counters to keep.
        let query = async {
            let transaction = self.database.connection.begin().await?;
            if update.exec(&transaction).await?.rows_affected == 0 {
                transaction.rollback().await?;
                return Ok(Some(false));
            }
            if !form::Store::take(&transaction, &message.app_id, form_id).await? {
                transaction.rollback().await?;
                return Ok(None);
            }
            transaction.commit().await?;
            Ok(Some(true))
        };
        within_deadline(query).await
    }

    /// Queues messages that failed, as if they had never been tried; where an attempt's outcome is unknown the user may
    /// get it twice.
    pub(super) fn requeuing(&self) -> UpdateMany<Entity> {
        let in_doubt = Expr::col(Column::AmbiguousTime).is_not_null();
        Entity::update_many()
            .col_expr(Column::State, Expr::value(State::Queued.to_value()))
            .col_expr(Column::NextAttemptTime, self.database.now())
            .col_expr(Column::Attempts, Expr::value(0))
            .col_expr(
                Column::PossibleDuplicate,
                Expr::col(Column::PossibleDuplicate).or(in_doubt),
            )
            .col_expr(Column::AmbiguousTime, Expr::value(None::<DateTime<Utc>>))
            .filter(Column::State.eq(State::Failed))
    }

    /// Carries out a change of one message's state, together with its broadcast's counters. Returns whether there was
    /// something to change.
    async fn counted(
        &self,
        message: &Model,
        from: State,
        to: State,
        update: UpdateMany<Entity>,
    ) -> Result<bool, DbErr> {
        let mut tally = Tally::default();
        tally.moved(message.broadcast_id.as_deref(), from, to, 1);
        let query = async {
            if tally.is_empty() {
                let written = update.exec(&self.database.connection).await?;
                return Ok(written.rows_affected > 0);
            }
            let transaction = self.database.connection.begin().await?;
            let written = update.exec(&transaction).await?.rows_affected > 0;
            if written {
                tally.write(&transaction).await?;
            }
            transaction.commit().await?;
            Ok(written)
        };
        within_deadline(query).await
    }
}
