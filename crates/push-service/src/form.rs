//! form_ids: what a mini program's user earned by submitting a form, good for one message within seven days.

#[expect(unreachable_pub, reason = "sea-orm derives public items")]
mod entity;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, DbErr, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, OnConflict},
};
use service_kit::storage::within_deadline;
use wechat::{AppId, OpenId};

use self::entity::{ActiveModel, Column, Entity};
use crate::{
    database::{self, Database, padded},
    prune::Pruned,
};

/// How long WeChat takes a form_id.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// One with less left is not taken any more: the message has to be sent, too.
const MARGIN: Duration = Duration::from_secs(60);
/// The longest form_id taken, in bytes.
pub(crate) const MAX_FORM_ID: usize = 128;

/// The pool of form_ids.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) database: Database,
}

impl Store {
    /// Keeps a form_id until it expires; one that is known already is left as it is, so that one that was used does not
    /// come back. What expired of the same user goes.
    pub(crate) async fn put(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
        form_id: &str,
    ) -> Result<(), DbErr> {
        let query = async {
            let connection = &self.database.connection;
            let form = ActiveModel {
                app_id: Set(app_id.to_string()),
                form_id: Set(form_id.to_owned()),
                open_id: Set(open_id.to_string()),
                expire_time: Set(database::moment(&self.database.clock) + LIFE),
                used: Set(false),
            };
            let known = OnConflict::columns([Column::AppId, Column::FormId])
                .do_nothing_on([Column::AppId, Column::FormId])
                .to_owned();
            Entity::insert(form)
                .on_conflict(known)
                .exec_without_returning(connection)
                .await?;
            Entity::delete_many()
                .filter(Column::AppId.eq(app_id.as_str()))
                .filter(Column::OpenId.eq(open_id.as_str()))
                .filter(Expr::col(Column::ExpireTime).lte(self.database.now()))
                .exec(connection)
                .await?;
            Ok(())
        };
        within_deadline(query).await
    }

    /// The user's form_id that expires soonest, still in the pool and none of `but`; one that is still good when the
    /// message goes out, where that is planned.
    pub(crate) async fn soonest(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
        but: &HashSet<String>,
        schedule_time: Option<DateTime<Utc>>,
    ) -> Result<Option<String>, DbErr> {
        let planned = schedule_time.map(|time| Expr::col(Column::ExpireTime).gt(time + MARGIN));
        Entity::find()
            .select_only()
            .column(Column::FormId)
            .filter(Column::AppId.eq(app_id.as_str()))
            .filter(Column::OpenId.eq(open_id.as_str()))
            .filter(Column::Used.eq(false))
            .filter(Column::FormId.is_not_in(but))
            .filter(Expr::col(Column::ExpireTime).gt(self.database.after(MARGIN)))
            .filter(Condition::all().add_option(planned))
            .order_by_asc(Column::ExpireTime)
            .into_tuple()
            .one(&self.database.connection)
            .await
    }

    /// Removes form_ids that expired, the longest expired first.
    pub(crate) async fn prune(&self, limit: u64) -> Result<Pruned, DbErr> {
        let query = Entity::find()
            .select_only()
            .columns([Column::AppId, Column::FormId])
            .filter(Expr::col(Column::ExpireTime).lte(self.database.now()))
            .order_by_asc(Column::ExpireTime)
            .limit(limit)
            .into_tuple()
            .all(&self.database.connection);
        let found: Vec<(String, String)> = within_deadline(query).await?;
        let more = found.len() as u64 == limit;
        let mut by_app: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (app_id, form_id) in found {
            by_app.entry(app_id).or_default().push(form_id);
        }
        let mut rows = 0;
        for (app_id, form_ids) in by_app {
            let delete = Entity::delete_many()
                .filter(Column::AppId.eq(app_id))
                .filter(Column::FormId.is_in(padded(&form_ids)))
                .exec(&self.database.connection);
            rows += within_deadline(delete).await?.rows_affected;
        }
        Ok(Pruned { rows, more })
    }

    /// Takes a form_id out of the pool; false when somebody else did. It stays known until it expires: a phone that lost
    /// the answer hands it in again, maybe after its use.
    pub(crate) async fn take(
        connection: &impl ConnectionTrait,
        app_id: &str,
        form_id: &str,
    ) -> Result<bool, DbErr> {
        let taken = Entity::update_many()
            .col_expr(Column::Used, Expr::value(true))
            .filter(Column::AppId.eq(app_id))
            .filter(Column::FormId.eq(form_id))
            .filter(Column::Used.eq(false))
            .exec(connection)
            .await?;
        Ok(taken.rows_affected == 1)
    }
}
