//! The statements that bring receipts and messages together.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveEnum as _, ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, FromQueryResult,
    IntoActiveModel as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    TransactionTrait as _,
    sea_query::{Expr, OnConflict},
};
use service_kit::storage::{is_deadlock, within_deadline};
use tracing::info;

use super::{
    Fate, Receipt,
    entity::{Column, Entity, Model},
    same_words,
};
use crate::{
    broadcast::Tally,
    database::{self, Database, padded},
    message::{
        FailedAttempt, State,
        entity::{Column as MessageColumn, Entity as Messages},
    },
    metrics,
    prune::Pruned,
};

/// How long a receipt waits for its message.
const KEPT: Duration = Duration::from_secs(3_600);
/// How often a statement that MySQL rolled back to let another one pass is tried.
const TRIES: usize = 5;
/// Begins the errmsg of a message that WeChat accepted and did not deliver.
const NOT_DELIVERED: &str = "NOT_DELIVERED";

/// Reads and writes receipts.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) database: Database,
}

/// A message that receipts are about.
#[derive(Debug, FromQueryResult)]
struct Found {
    message_id: String,
    wechat_msg_id: Option<String>,
    state: State,
    broadcast_id: Option<String>,
}

impl Store {
    /// Writes down what WeChat told of one app's messages: in their rows, or where those are not there yet, for later.
    pub(super) async fn record(&self, app_id: &str, receipts: Vec<Receipt>) -> Result<(), DbErr> {
        let now = database::moment(&self.database.clock);
        let receipts = receipts.into_iter().map(|Receipt { msg_id, fate }| {
            let (delivered, errcode, status) = match fate {
                Fate::Delivered => (true, 0, String::new()),
                Fate::Failed { errcode, status } => (false, errcode, status),
            };
            let receipt = Model {
                app_id: app_id.to_owned(),
                wechat_msg_id: msg_id.to_string(),
                delivered,
                errcode,
                status,
                create_time: now,
            };
            (receipt.wechat_msg_id.clone(), receipt)
        });
        let early = self.tell(app_id, receipts.collect()).await?;
        if early.is_empty() {
            return Ok(());
        }
        metrics::receipts("kept", early.len() as u64);
        retried(|| self.keep(early.values())).await?;
        self.tell(app_id, early).await?;
        Ok(())
    }

    /// Takes kept receipts to these messages, whose outcomes are committed.
    pub(super) async fn take_up(&self, app_id: &str, msg_ids: Vec<&str>) -> Result<(), DbErr> {
        let query = Entity::find()
            .filter(Column::AppId.eq(app_id))
            .filter(Column::WechatMsgId.is_in(padded(&msg_ids).copied()))
            .all(&self.database.connection);
        let kept = within_deadline(query).await?;
        let kept = kept
            .into_iter()
            .map(|receipt| (receipt.wechat_msg_id.clone(), receipt));
        self.tell(app_id, kept.collect()).await?;
        Ok(())
    }

    /// Moves messages on and answers the receipts, by their message's id, that may still be of use: those of messages
    /// that are not SENT yet. A failure is also kept for a repeat to which WeChat answers with the first one's id.
    async fn tell(
        &self,
        app_id: &str,
        mut receipts: BTreeMap<String, Model>,
    ) -> Result<BTreeMap<String, Model>, DbErr> {
        if receipts.is_empty() {
            return Ok(receipts);
        }
        let msg_ids: Vec<_> = receipts.keys().collect();
        let query = Messages::find()
            .select_only()
            .columns([
                MessageColumn::MessageId,
                MessageColumn::WechatMsgId,
                MessageColumn::State,
                MessageColumn::BroadcastId,
            ])
            .filter(MessageColumn::AppId.eq(app_id))
            .filter(MessageColumn::WechatMsgId.is_in(padded(&msg_ids).copied()))
            .into_model::<Found>()
            .all(&self.database.connection);
        let found = within_deadline(query).await?;
        let mut delivered: BTreeMap<(Option<String>, DateTime<Utc>), Vec<String>> = BTreeMap::new();
        let mut failed = Vec::new();
        for message in found {
            let Some(receipt) = message.wechat_msg_id.and_then(|id| receipts.get(&id)) else {
                continue;
            };
            match (message.state, receipt.delivered) {
                (State::Sent, true) => delivered
                    .entry((message.broadcast_id, receipt.create_time))
                    .or_default()
                    .push(message.message_id),
                (State::Sent, false) => failed.push((message.message_id, receipt.clone())),
                (State::Delivered, true) => {}
                _ => continue,
            }
            if receipt.delivered {
                let id = receipt.wechat_msg_id.clone();
                receipts.remove(&id);
            }
        }
        if !delivered.is_empty() || !failed.is_empty() {
            retried(|| self.advance(&delivered, &failed)).await?;
        }
        Ok(receipts)
    }

    /// SENT becomes DELIVERED or FAILED, all of it or nothing.
    async fn advance(
        &self,
        delivered: &BTreeMap<(Option<String>, DateTime<Utc>), Vec<String>>,
        failed: &[(String, Model)],
    ) -> Result<(), DbErr> {
        let query = async {
            let transaction = self.database.connection.begin().await?;
            let (mut got, mut missed) = (0, 0);
            let mut tally = Tally::default();
            for ((broadcast_id, time), message_ids) in delivered {
                let update = Messages::update_many()
                    .col_expr(
                        MessageColumn::State,
                        Expr::value(State::Delivered.to_value()),
                    )
                    .col_expr(MessageColumn::DeliveredTime, Expr::value(*time))
                    .filter(MessageColumn::MessageId.is_in(padded(message_ids)))
                    .filter(MessageColumn::State.eq(State::Sent))
                    .exec(&transaction);
                let count = update.await?.rows_affected;
                tally.moved(
                    broadcast_id.as_deref(),
                    State::Sent,
                    State::Delivered,
                    count,
                );
                got += count;
            }
            for (message_id, receipt) in failed {
                missed += self
                    .fail(&transaction, message_id, receipt, &mut tally)
                    .await?;
            }
            tally.write(&transaction).await?;
            transaction.commit().await?;
            metrics::receipts("delivered", got);
            metrics::receipts("failed", missed);
            Ok(())
        };
        within_deadline(query).await
    }

    /// Returns how many messages failed: one, or none when another receipt came first.
    async fn fail(
        &self,
        connection: &impl ConnectionTrait,
        message_id: &str,
        receipt: &Model,
        tally: &mut Tally,
    ) -> Result<u64, DbErr> {
        let Some(message) = Messages::find_by_id(message_id).one(connection).await? else {
            return Ok(0);
        };
        let errmsg = errmsg(receipt);
        let attempt = FailedAttempt {
            time: receipt.create_time,
            errcode: receipt.errcode,
            errmsg: errmsg.clone(),
            outcome_unknown: false,
        };
        let updated = Messages::update_many()
            .col_expr(MessageColumn::State, Expr::value(State::Failed.to_value()))
            .col_expr(MessageColumn::Errcode, Expr::value(receipt.errcode))
            .col_expr(MessageColumn::Errmsg, Expr::value(errmsg.as_str()))
            .col_expr(
                MessageColumn::FailedAttempts,
                Expr::value(attempt.after(&message)),
            )
            .filter(MessageColumn::MessageId.eq(message_id))
            .filter(MessageColumn::State.eq(State::Sent))
            .exec(connection)
            .await?;
        let count = updated.rows_affected;
        tally.moved(
            message.broadcast_id.as_deref(),
            State::Sent,
            State::Failed,
            count,
        );
        if count > 0 {
            info!(
                message.id = message_id,
                errcode = receipt.errcode,
                "not delivered: {errmsg}"
            );
        }
        Ok(count)
    }

    /// Removes receipts that waited long enough; one whose message was SENT in the meantime, by a worker that died
    /// before it looked for receipts, finds it now.
    pub(crate) async fn prune(&self, limit: u64) -> Result<Pruned, DbErr> {
        let kept = TimeDelta::from_std(KEPT).unwrap_or_default();
        let over = database::moment(&self.database.clock) - kept;
        let query = Entity::find()
            .filter(Column::CreateTime.lt(over))
            .order_by_asc(Column::CreateTime)
            .limit(limit)
            .all(&self.database.connection);
        let found = within_deadline(query).await?;
        let more = found.len() as u64 == limit;
        let mut by_app: BTreeMap<String, BTreeMap<String, Model>> = BTreeMap::new();
        for receipt in found {
            let receipts = by_app.entry(receipt.app_id.clone()).or_default();
            receipts.insert(receipt.wechat_msg_id.clone(), receipt);
        }
        let mut rows = 0;
        for (app_id, receipts) in by_app {
            let msg_ids: Vec<_> = receipts.keys().cloned().collect();
            self.tell(&app_id, receipts).await?;
            let delete = Entity::delete_many()
                .filter(Column::AppId.eq(app_id))
                .filter(Column::WechatMsgId.is_in(padded(&msg_ids)))
                .exec(&self.database.connection);
            rows += within_deadline(delete).await?.rows_affected;
        }
        Ok(Pruned { rows, more })
    }

    /// The first receipt of a message counts.
    async fn keep(&self, receipts: impl Iterator<Item = &Model>) -> Result<(), DbErr> {
        let key = [Column::AppId, Column::WechatMsgId];
        let known = OnConflict::columns(key).do_nothing_on(key).to_owned();
        let query = Entity::insert_many(receipts.cloned().map(Model::into_active_model))
            .on_conflict(known)
            .exec_without_returning(&self.database.connection);
        within_deadline(query).await?;
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    /// WeChat's ids of the messages whose receipts are kept.
    pub(crate) async fn kept(&self) -> Vec<String> {
        let kept = Entity::find().order_by_asc(Column::WechatMsgId);
        let kept = kept.all(&self.database.connection).await.unwrap();
        kept.into_iter()
            .map(|receipt| receipt.wechat_msg_id)
            .collect()
    }
}

/// In WeChat's words, and in plain ones where they say more.
fn errmsg(receipt: &Model) -> String {
    let status = match receipt.status.as_str() {
        "" => "WeChat gives no reason",
        status => status,
    };
    if same_words(status, "failed:user block") {
        return format!("{NOT_DELIVERED}: {status} (the user refuses the account's messages)");
    }
    format!("{NOT_DELIVERED}: {status}")
}

/// Again when MySQL rolled it back to let another one pass.
async fn retried<F: Future<Output = Result<(), DbErr>>>(
    statement: impl Fn() -> F,
) -> Result<(), DbErr> {
    let mut tries = 1;
    loop {
        match statement().await {
            Err(error) if is_deadlock(&error) && tries < TRIES => tries += 1,
            ended => return ended,
        }
    }
}
