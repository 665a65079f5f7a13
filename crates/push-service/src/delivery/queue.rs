//! The queue's statements: what is due, who holds it, and what became of it.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum as _, ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, TransactionTrait as _,
    sea_query::{Asterisk, CaseStatement, Expr, Query, SelectStatement, UnionType},
};
use service_kit::storage::within_deadline;
use uuid::Uuid;

use super::survey::soonest;
use crate::{
    broadcast::Tally,
    database::{Database, padded},
    message::{
        Message, State,
        entity::{Column, Entity},
    },
};

/// A claimed message is its worker's alone for this long.
pub(super) const LEASE: Duration = Duration::from_secs(8);
/// A survey looks this far ahead, longer than from one poll to the next: what falls due between two leaves at its time.
pub(super) const AHEAD: Duration = Duration::from_millis(1_500);
/// How many lost messages are looked at in one go.
const LOST: u64 = 1_000;
/// The longest errmsg kept, in characters.
const ERRMSG: usize = 512;
/// What a message is due after; of a group, the soonest.
pub(super) const DUE: &str = "next_attempt_time";
pub(super) const SOONEST: &str = "MIN(next_attempt_time)";

/// Reads and writes the queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) database: Database,
}

/// The ids that are due in a lane, the longest due first.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) message_ids: Vec<String>,
    /// How long until the next one of the lane, if that is within [`AHEAD`].
    pub(super) upcoming: Option<Duration>,
}

/// Messages that one worker holds until the lease ends.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: String,
    /// Elapsed time right before the claim: the lease ends [`LEASE`] after it, or later.
    pub(super) since: Duration,
    pub(super) messages: Vec<Message>,
}

/// What an attempt, or its failure to come about, leaves in the row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) next: Next,
    pub(super) attempts: u32,
    pub(super) errcode: i64,
    pub(super) errmsg: String,
    pub(super) possible_duplicate: bool,
    pub(super) ambiguous_time: Option<DateTime<Utc>>,
    pub(super) failed_attempts: Option<String>,
}

/// Where a message goes from an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// WeChat accepted it.
    Sent {
        time: DateTime<Utc>,
        wechat_msg_id: Option<String>,
    },
    /// It is tried (again) after a while.
    Queued { delay: Duration },
    /// It is tried again at once, before all that fell due since it was accepted.
    First,
    /// It is given up.
    Failed,
    /// Its time is over.
    Expired,
}

impl Next {
    fn state(&self) -> State {
        match self {
            Self::Sent { .. } => State::Sent,
            Self::Queued { .. } | Self::First => State::Queued,
            Self::Failed => State::Failed,
            Self::Expired => State::Expired,
        }
    }
}

/// An outcome and the claim under which it is written.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) message_id: String,
    pub(super) claim_id: String,
    pub(super) app_id: String,
    /// The broadcast that counts it.
    pub(super) broadcast_id: Option<String>,
    pub(super) outcome: Outcome,
}

impl Ended {
    /// Whether a broadcast counts it: what waits again does not change its counters.
    fn is_counted(&self) -> bool {
        self.broadcast_id.is_some() && self.outcome.next.state() != State::Queued
    }
}

impl Queue {
    /// What is due in each of these lanes, up to so many of each.
    pub(super) async fn due(&self, lanes: &[(&str, u64)]) -> Result<HashMap<String, Due>, DbErr> {
        let mut branches = lanes.iter().map(|(lane, limit)| self.due_in(lane, *limit));
        let Some(mut query) = branches.next() else {
            return Ok(HashMap::new());
        };
        query.unions(branches.map(|branch| (UnionType::All, branch)));
        let rows = within_deadline(self.database.connection.query_all(&query)).await?;
        let mut found: HashMap<String, Due> = HashMap::new();
        for row in rows {
            let (message_id, lane, micros): (String, String, i64) = (
                row.try_get_by_index(0)?,
                row.try_get_by_index(1)?,
                row.try_get_by_index(2)?,
            );
            let due = found.entry(lane).or_default();
            match u64::try_from(micros) {
                Err(_) | Ok(0) => due.message_ids.push(message_id),
                Ok(ahead) => soonest(&mut due.upcoming, Duration::from_micros(ahead)),
            }
        }
        Ok(found)
    }

    fn due_in(&self, lane: &str, limit: u64) -> SelectStatement {
        let due = Query::select()
            .columns([Column::MessageId, Column::Lane])
            .expr_as(self.database.micros_until(DUE), "micros")
            .from(Entity)
            .and_where(Expr::col(Column::State).eq(State::Queued.to_value()))
            .and_where(Expr::col(Column::Lane).eq(lane))
            .and_where(Expr::col(Column::NextAttemptTime).lte(self.database.after(AHEAD)))
            .order_by(Column::NextAttemptTime, sea_orm::Order::Asc)
            .limit(limit)
            .to_owned();
        // SQLite takes a limit in a part of a union only inside of another select.
        Query::select()
            .column(Asterisk)
            .from_subquery(due, "due")
            .to_owned()
    }

    /// Leases those of these messages that are still due. Whoever claims the same ones at the same time gets none of
    /// them.
    pub(super) async fn claim(&self, message_ids: &[String]) -> Result<Claim, DbErr> {
        let query = async {
            let mut claim = Claim {
                id: Uuid::now_v7().to_string(),
                since: self.database.clock.elapsed(),
                messages: Vec::new(),
            };
            let claimed = Entity::update_many()
                .col_expr(Column::ClaimId, Expr::value(claim.id.as_str()))
                .col_expr(Column::NextAttemptTime, self.database.after(LEASE))
                .filter(Column::MessageId.is_in(padded(message_ids)))
                .filter(Column::State.eq(State::Queued))
                .filter(self.is_due())
                .exec(&self.database.connection)
                .await?;
            if claimed.rows_affected > 0 {
                claim.messages = Entity::find()
                    .filter(Column::MessageId.is_in(padded(message_ids)))
                    .filter(Column::ClaimId.eq(claim.id.as_str()))
                    .all(&self.database.connection)
                    .await?;
            }
            Ok(claim)
        };
        within_deadline(query).await
    }

    fn is_due(&self) -> Expr {
        Expr::col(Column::NextAttemptTime).lte(self.database.now())
    }

    /// Writes down that these messages are about to go on the wire, and leases them anew: from here on nobody sends
    /// them for us. Returns those that the claim still held.
    pub(super) async fn mark_sending(
        &self,
        claim_id: &str,
        message_ids: &[String],
    ) -> Result<Vec<String>, DbErr> {
        let query = async {
            let marked = Entity::update_many()
                .col_expr(Column::State, Expr::value(State::Sending.to_value()))
                .col_expr(Column::Attempts, Expr::col(Column::Attempts).add(1))
                .col_expr(Column::NextAttemptTime, self.database.after(LEASE))
                .filter(Column::MessageId.is_in(padded(message_ids)))
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
                .filter(Column::MessageId.is_in(padded(message_ids)))
                .filter(Column::ClaimId.eq(claim_id))
                .filter(Column::State.eq(State::Sending))
                .into_tuple()
                .all(&self.database.connection)
                .await
        };
        within_deadline(query).await
    }

    /// Writes what became of messages and ends their claims; what a claim holds no more is left alone, so that a second
    /// write of one outcome changes nothing.
    pub(super) async fn write(&self, ended: &[&Ended]) -> Result<(), DbErr> {
        let (counted, others): (Vec<&Ended>, Vec<&Ended>) =
            ended.iter().partition(|ended| ended.is_counted());
        self.write_all(&self.database.connection, &others).await?;
        if !counted.is_empty() && !self.write_counted(&counted).await? {
            // Some claim is over: which, is told one by one.
            for ended in counted {
                self.write_counted(&[ended]).await?;
            }
        }
        Ok(())
    }

    /// Writes outcomes together with the counters of their broadcasts: all of it, or nothing and false when a claim holds
    /// one of them no more.
    async fn write_counted(&self, ended: &[&Ended]) -> Result<bool, DbErr> {
        let mut tally = Tally::default();
        for ended in ended {
            let to = ended.outcome.next.state();
            tally.moved(ended.broadcast_id.as_deref(), State::Sending, to, 1);
        }
        let query = async {
            let transaction = self.database.connection.begin().await?;
            if self.write_all(&transaction, ended).await? != ended.len() {
                transaction.rollback().await?;
                return Ok(false);
            }
            tally.write(&transaction).await?;
            transaction.commit().await?;
            Ok(true)
        };
        within_deadline(query).await
    }

    /// Returns how many of them their claims still held.
    async fn write_all(
        &self,
        connection: &impl ConnectionTrait,
        ended: &[&Ended],
    ) -> Result<usize, DbErr> {
        let (sent, others): (Vec<&Ended>, Vec<&Ended>) = ended
            .iter()
            .partition(|ended| matches!(ended.outcome.next, Next::Sent { .. }));
        let mut written = 0;
        for group in [sent, others] {
            if !group.is_empty() {
                let group: Vec<&Ended> = padded(&group).copied().collect();
                written += self.write_group(connection, &group).await?;
            }
        }
        Ok(written)
    }

    /// All of `group` were sent, or none.
    async fn write_group(
        &self,
        connection: &impl ConnectionTrait,
        group: &[&Ended],
    ) -> Result<usize, DbErr> {
        let none = || Expr::value(None::<DateTime<Utc>>);
        let mut update = Query::update();
        let mut set = |column: Column, value: &dyn Fn(&Ended) -> Expr| {
            update.value(column, each(group, value));
        };
        set(Column::State, &|ended| {
            Expr::value(ended.outcome.next.state().to_value())
        });
        set(Column::NextAttemptTime, &|ended| match ended.outcome.next {
            Next::Queued { delay } => self.database.after(delay),
            Next::First => Expr::col(Column::CreateTime),
            _ => none(),
        });
        set(Column::Attempts, &|ended| {
            Expr::value(ended.outcome.attempts)
        });
        set(Column::Errcode, &|ended| Expr::value(ended.outcome.errcode));
        set(Column::Errmsg, &|ended| {
            let errmsg: String = ended.outcome.errmsg.chars().take(ERRMSG).collect();
            Expr::value(errmsg)
        });
        set(Column::PossibleDuplicate, &|ended| {
            Expr::value(ended.outcome.possible_duplicate)
        });
        set(Column::AmbiguousTime, &|ended| {
            Expr::value(ended.outcome.ambiguous_time)
        });
        set(Column::FailedAttempts, &|ended| {
            Expr::value(ended.outcome.failed_attempts.clone())
        });
        set(Column::ClaimId, &|_| Expr::value(None::<String>));
        if let Some(Next::Sent { .. }) = group.first().map(|ended| &ended.outcome.next) {
            set(Column::SentTime, &|ended| match ended.outcome.next {
                Next::Sent { time, .. } => Expr::value(time),
                _ => none(),
            });
            set(Column::WechatMsgId, &|ended| match &ended.outcome.next {
                Next::Sent { wechat_msg_id, .. } => Expr::value(wechat_msg_id.clone()),
                _ => Expr::value(None::<String>),
            });
        }
        let held = group.iter().map(|ended| {
            let pair = [ended.message_id.as_str(), ended.claim_id.as_str()];
            Expr::tuple(pair.map(Expr::value))
        });
        let columns = [Column::MessageId, Column::ClaimId].map(Expr::col);
        update
            .table(Entity)
            // The first finds the rows, the second holds the claims against them.
            .and_where(
                Expr::col(Column::MessageId)
                    .is_in(group.iter().map(|ended| ended.message_id.as_str())),
            )
            .and_where(Expr::tuple(columns).is_in(held));
        let written = within_deadline(connection.execute(&update)).await?;
        Ok(usize::try_from(written.rows_affected()).unwrap_or(usize::MAX))
    }

    /// Messages whose worker died between saying that it sends and saying what became of it.
    pub(super) async fn lost(&self) -> Result<Vec<Message>, DbErr> {
        let query = Entity::find()
            .filter(Column::State.eq(State::Sending))
            .filter(self.is_due())
            .order_by_asc(Column::NextAttemptTime)
            .limit(LOST)
            .all(&self.database.connection);
        within_deadline(query).await
    }
}

/// A value for each row of an UPDATE; one for all where they do not differ.
fn each(group: &[&Ended], value: &dyn Fn(&Ended) -> Expr) -> Expr {
    let mut values = group
        .iter()
        .map(|ended| (ended.message_id.as_str(), value(ended)));
    let Some((_, first)) = values.next() else {
        return Expr::value(None::<String>);
    };
    if values.clone().all(|(_, value)| value == first) {
        return first;
    }
    values
        .fold(CaseStatement::new(), |case, (message_id, value)| {
            case.case(Expr::col(Column::MessageId).eq(message_id), value)
        })
        .finally(first)
        .into()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use service_kit::{Clock, settings::DatabaseUrl, storage};

    use super::*;
    use crate::{database, message::store::Store, migration::Migrator};

    /// The one that all times here count from.
    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_276_740)
    }

    fn queued(clock: &Clock) -> Message {
        Message {
            message_id: Uuid::now_v7().to_string(),
            app_id: "wx0000000000000002".to_owned(),
            open_id: String::new(),
            account: None,
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
        let at = |wall| Queue {
            database: Database {
                connection: connection.clone(),
                clock: Clock::tokio(wall),
            },
        };
        let early = at(start());
        let message = queued(&early.database.clock);
        let store = Store {
            database: early.database.clone(),
        };
        store.insert(std::slice::from_ref(&message)).await.unwrap();
        let ids = [message.message_id];
        let claim = early.claim(&ids).await.unwrap();

        let marked_at = start() + LEASE;
        let late = at(marked_at);
        assert_eq!(late.mark_sending(&claim.id, &ids).await.unwrap(), ids);
        let sending = store.find(&ids[0]).await.unwrap().unwrap();
        let lease_end = sending.next_attempt_time.map(SystemTime::from);
        assert!(lease_end >= Some(marked_at + LEASE), "{lease_end:?}");
        assert!(late.lost().await.unwrap().is_empty());
    }
}
