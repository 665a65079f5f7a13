//! The message table's statements.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum as _, ColumnTrait as _, ConnectionTrait as _, DbErr, EntityTrait as _,
    ExprTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, SqlErr,
    TransactionTrait as _,
    sea_query::{Expr, Query},
};
use service_kit::storage::{self, within_deadline};
use uuid::Uuid;

use super::{
    Sender,
    entity::{Column, Entity, Model, State},
};
use crate::{database::Database, form};

/// A claimed message is its worker's alone for this long.
pub(crate) const LEASE: Duration = Duration::from_secs(8);
/// A claim looks this far ahead, so that what falls due between two polls leaves at its time.
pub(crate) const AHEAD: Duration = Duration::from_millis(1_500);
/// How many lost messages are looked at in one go.
const LOST: u64 = 100;

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

/// Messages that one worker holds until the lease ends.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) id: String,
    /// Elapsed time right before the claim: the lease ends [`LEASE`] after it, or later.
    pub(crate) since: Duration,
    pub(crate) messages: Vec<Model>,
    /// How long until the next message falls due, if that is within [`AHEAD`].
    pub(crate) upcoming: Option<Duration>,
}

/// What an attempt, or its failure to come about, leaves in the row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) next: Next,
    pub(crate) attempts: u32,
    pub(crate) errcode: i64,
    pub(crate) errmsg: String,
    pub(crate) possible_duplicate: bool,
    pub(crate) ambiguous_time: Option<DateTime<Utc>>,
}

/// Where a message goes from an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// WeChat accepted it.
    Sent {
        time: DateTime<Utc>,
        wechat_msg_id: Option<String>,
    },
    /// It is tried (again) after a while.
    Queued { delay: Duration },
    /// It is given up.
    Failed,
    /// Its time is over.
    Expired,
}

/// The longest errmsg kept, in characters.
const ERRMSG: usize = 512;

impl Store {
    /// Stores messages together with their request_ids, and takes their form_ids out of the pool: all or nothing.
    pub(crate) async fn insert(&self, messages: &[Model]) -> Result<Inserted, DbErr> {
        let transaction = self.database.connection.begin().await?;
        let mut insert = Query::insert();
        insert.into_table(Entity).columns([
            Column::MessageId,
            Column::AppId,
            Column::OpenId,
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
        match transaction.execute(&insert).await {
            Ok(_) => {}
            Err(error)
                if storage::is_deadlock(&error)
                    || matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
            {
                transaction.rollback().await?;
                return Ok(Inserted::RequestRepeated);
            }
            Err(error) => return Err(error),
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

    /// Leases up to `limit` messages that are due, the longest due first. Whoever claims the same ones at the same
    /// time gets none of them.
    pub(crate) async fn claim(&self, limit: u64) -> Result<Claim, DbErr> {
        let query = async {
            let mut claim = Claim {
                id: Uuid::now_v7().to_string(),
                since: self.database.clock.elapsed(),
                messages: Vec::new(),
                upcoming: None,
            };
            let horizon = Expr::col(Column::NextAttemptTime).lte(self.database.after(AHEAD));
            let found: Vec<(String, i64)> = Entity::find()
                .select_only()
                .column(Column::MessageId)
                .column_as(
                    self.database.micros_until(&Column::NextAttemptTime),
                    "micros",
                )
                .filter(Column::State.eq(State::Queued))
                .filter(horizon)
                .order_by_asc(Column::NextAttemptTime)
                .limit(limit)
                .into_tuple()
                .all(&self.database.connection)
                .await?;
            let first = found
                .iter()
                .find_map(|(_, micros)| u64::try_from(*micros - 1).ok());
            claim.upcoming = first.map(|before| Duration::from_micros(before + 1));
            let due = found.into_iter().filter(|(_, micros)| *micros <= 0);
            let due: Vec<_> = due.map(|(message_id, _)| message_id).collect();
            if due.is_empty() {
                return Ok(claim);
            }
            let claimed = Entity::update_many()
                .col_expr(Column::ClaimId, Expr::value(claim.id.as_str()))
                .col_expr(Column::NextAttemptTime, self.database.after(LEASE))
                .filter(Column::MessageId.is_in(&due))
                .filter(Column::State.eq(State::Queued))
                .filter(self.due())
                .exec(&self.database.connection)
                .await?;
            if claimed.rows_affected > 0 {
                claim.messages = Entity::find()
                    .filter(Column::MessageId.is_in(&due))
                    .filter(Column::ClaimId.eq(claim.id.as_str()))
                    .all(&self.database.connection)
                    .await?;
            }
            Ok(claim)
        };
        within_deadline(query).await
    }

    fn due(&self) -> Expr {
        Expr::col(Column::NextAttemptTime).lte(self.database.now())
    }

    /// Writes down that these messages are about to go on the wire, and leases them anew: from here on nobody sends
    /// them for us. Returns those that the claim still held.
    pub(crate) async fn mark_sending(
        &self,
        claim_id: &str,
        message_ids: &[String],
    ) -> Result<Vec<String>, DbErr> {
        let query = async {
            let marked = Entity::update_many()
                .col_expr(Column::State, Expr::value(State::Sending.to_value()))
                .col_expr(Column::Attempts, Expr::col(Column::Attempts).add(1))
                .col_expr(Column::NextAttemptTime, self.database.after(LEASE))
                .filter(Column::MessageId.is_in(message_ids))
                .filter(Column::ClaimId.eq(claim_id))
                .filter(Column::State.eq(State::Queued))
                .exec(&self.database.connection)
                .await?;
            if usize::try_from(marked.rows_affected).is_ok_and(|rows| rows == message_ids.len()) {
                return Ok(message_ids.to_vec());
            }
            Entity::find()
                .select_only()
                .column(Column::MessageId)
                .filter(Column::MessageId.is_in(message_ids))
                .filter(Column::ClaimId.eq(claim_id))
                .filter(Column::State.eq(State::Sending))
                .into_tuple()
                .all(&self.database.connection)
                .await
        };
        within_deadline(query).await
    }

    /// Writes what became of a message and ends the claim. Returns whether the claim still held it: a second write of
    /// one outcome changes nothing.
    pub(crate) async fn write_back(
        &self,
        message_id: &str,
        claim_id: &str,
        outcome: &Outcome,
    ) -> Result<bool, DbErr> {
        let mut update = Entity::update_many();
        let (state, next_attempt_time) = match &outcome.next {
            Next::Sent {
                time,
                wechat_msg_id,
            } => {
                update = update
                    .col_expr(Column::SentTime, Expr::value(*time))
                    .col_expr(Column::WechatMsgId, Expr::value(wechat_msg_id.clone()));
                (State::Sent, Expr::value(None::<DateTime<Utc>>))
            }
            Next::Queued { delay } => (State::Queued, self.database.after(*delay)),
            Next::Failed => (State::Failed, Expr::value(None::<DateTime<Utc>>)),
            Next::Expired => (State::Expired, Expr::value(None::<DateTime<Utc>>)),
        };
        let errmsg: String = outcome.errmsg.chars().take(ERRMSG).collect();
        let update = update
            .col_expr(Column::State, Expr::value(state.to_value()))
            .col_expr(Column::NextAttemptTime, next_attempt_time)
            .col_expr(Column::Attempts, Expr::value(outcome.attempts))
            .col_expr(Column::Errcode, Expr::value(outcome.errcode))
            .col_expr(Column::Errmsg, Expr::value(errmsg))
            .col_expr(
                Column::PossibleDuplicate,
                Expr::value(outcome.possible_duplicate),
            )
            .col_expr(Column::AmbiguousTime, Expr::value(outcome.ambiguous_time))
            .col_expr(Column::ClaimId, Expr::value(None::<String>))
            .filter(Column::MessageId.eq(message_id))
            .filter(Column::ClaimId.eq(claim_id))
            .exec(&self.database.connection);
        let written = within_deadline(update).await?;
        Ok(written.rows_affected > 0)
    }

    /// Takes a message back that is not on the wire. Returns whether it was taken.
    pub(crate) async fn cancel(&self, message_id: &str) -> Result<bool, DbErr> {
        let update = Entity::update_many()
            .col_expr(Column::State, Expr::value(State::Cancelled.to_value()))
            .col_expr(Column::NextAttemptTime, Expr::value(None::<DateTime<Utc>>))
            .col_expr(Column::ClaimId, Expr::value(None::<String>))
            .filter(Column::MessageId.eq(message_id))
            .filter(Column::State.eq(State::Queued))
            .exec(&self.database.connection);
        let written = within_deadline(update).await?;
        Ok(written.rows_affected > 0)
    }

    /// Queues a message that failed, as if it had never been tried; where an attempt's outcome is unknown the user may
    /// get it twice. Returns whether it was queued.
    pub(crate) async fn retry(&self, message_id: &str) -> Result<bool, DbErr> {
        let in_doubt = Expr::col(Column::AmbiguousTime).is_not_null();
        let update = Entity::update_many()
            .col_expr(Column::State, Expr::value(State::Queued.to_value()))
            .col_expr(Column::NextAttemptTime, self.database.now())
            .col_expr(Column::Attempts, Expr::value(0))
            .col_expr(
                Column::PossibleDuplicate,
                Expr::col(Column::PossibleDuplicate).or(in_doubt),
            )
            .col_expr(Column::AmbiguousTime, Expr::value(None::<DateTime<Utc>>))
            .filter(Column::MessageId.eq(message_id))
            .filter(Column::State.eq(State::Failed))
            .exec(&self.database.connection);
        let written = within_deadline(update).await?;
        Ok(written.rows_affected > 0)
    }

    /// Messages whose worker died between saying that it sends and saying what became of it.
    pub(crate) async fn lost(&self) -> Result<Vec<Model>, DbErr> {
        let query = Entity::find()
            .filter(Column::State.eq(State::Sending))
            .filter(self.due())
            .order_by_asc(Column::NextAttemptTime)
            .limit(LOST)
            .all(&self.database.connection);
        within_deadline(query).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use service_kit::{Clock, settings::DatabaseUrl, storage};

    use super::*;
    use crate::{database, migration::Migrator};

    /// The one that all times here count from.
    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_276_740)
    }

    fn queued(clock: &Clock) -> Model {
        Model {
            message_id: Uuid::now_v7().to_string(),
            app_id: "wx0000000000000002".to_owned(),
            open_id: String::new(),
            caller: String::new(),
            request_id: None,
            content: String::new(),
            form_id: None,
            state: State::Queued,
            attempts: 0,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time: database::moment(clock),
            schedule_time: None,
            expire_time: None,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: None,
            lane: String::new(),
            broadcast_id: None,
            delivered_time: None,
            failed_attempts: None,
            claim_id: None,
            trace_parent: None,
        }
    }

    #[tokio::test]
    async fn sending_begins_with_a_whole_lease() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.sqlite");
        let url = DatabaseUrl::new(format!("sqlite://{}", file.display()));
        let connection = storage::database(&url).await.unwrap();
        storage::migrate::<Migrator>(&connection).await.unwrap();
        let at = |wall| Store {
            database: Database {
                connection: connection.clone(),
                clock: Clock::tokio(wall),
            },
        };
        let early = at(start());
        let message = queued(&early.database.clock);
        early.insert(std::slice::from_ref(&message)).await.unwrap();
        let claim = early.claim(1).await.unwrap();

        let marked_at = start() + LEASE;
        let ids = [message.message_id];
        let late = at(marked_at);
        assert_eq!(late.mark_sending(&claim.id, &ids).await.unwrap(), ids);
        let sending = late.find(&ids[0]).await.unwrap().unwrap();
        let lease_end = sending.next_attempt_time.map(SystemTime::from);
        assert!(lease_end >= Some(marked_at + LEASE), "{lease_end:?}");
        assert!(late.lost().await.unwrap().is_empty());
    }
}
