//! Bindings: which WeChat user stands for which account in an app, rows of the `binding` table.
//!
//! An account has one user an app, and a user one account; the table's unique indices say so, whatever happens at once.

mod entity;
mod flow;
mod link;

use std::time::SystemTime;

use chrono::{DateTime, SubsecRound as _, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, DatabaseConnection, EntityTrait as _, QueryFilter as _,
    QuerySelect as _, SqlErr,
};
use service_kit::{
    Clock,
    storage::{self, within_deadline},
};
use uuid::Uuid;
use wechat::{AppId, OpenId};

pub use self::flow::{LINK_LIFE, STATE_LIFE, UNDO};
pub(crate) use self::{
    flow::{BindFlow, Failure, Outcome, Progress},
    link::{link_url, qr_code},
};
use crate::{account::AccountName, error::Error, user::Nickname};

/// What MySQL chooses as a deadlock's victim, or what changes between two looks, is written again this often.
const ATTEMPTS: u32 = 5;

/// Why nothing is bound, or found.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No WeChat user is bound to the account in the app.
    #[error("no WeChat user is bound to this account")]
    Unknown,
    /// The account has a WeChat user already.
    #[error("a WeChat user is bound to this account already: unbind it first")]
    AccountBound,
    /// The WeChat user stands for another account already.
    #[error("this WeChat user is bound to another account already")]
    UserBound,
}

/// A WeChat user bound to an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The row's own id.
    pub id: Uuid,
    /// The account, or a team's own name for somebody.
    pub account: AccountName,
    /// The app.
    pub app_id: AppId,
    /// WeChat's id of the person within the app.
    pub open_id: OpenId,
    /// What they called themselves; may be empty.
    pub nickname: String,
    /// When they were bound.
    pub create_time: SystemTime,
}

impl TryFrom<entity::Model> for Binding {
    type Error = Error;

    fn try_from(row: entity::Model) -> Result<Self, Error> {
        let unreadable = || Error::Stored("binding");
        Ok(Self {
            id: row.id.parse().map_err(|_| unreadable())?,
            account: row.account.parse().map_err(|_| unreadable())?,
            app_id: row.app_id.try_into().map_err(|_| unreadable())?,
            open_id: row.open_id.try_into().map_err(|_| unreadable())?,
            nickname: row.nickname,
            create_time: row.created_at.into(),
        })
    }
}

/// Every binding; clones share them.
#[derive(Debug, Clone)]
pub struct Bindings {
    database: DatabaseConnection,
    clock: Clock,
}

impl Bindings {
    /// Bindings in this database.
    pub fn new(database: DatabaseConnection, clock: Clock) -> Self {
        Self { database, clock }
    }

    /// Binds a WeChat user to an account. Of those who try at once, one succeeds.
    ///
    /// # Errors
    /// [`Refusal::AccountBound`], [`Refusal::UserBound`]; when the database does not answer.
    pub async fn bind(
        &self,
        account: &AccountName,
        app_id: &AppId,
        open_id: &OpenId,
        nickname: Option<&Nickname>,
    ) -> Result<Binding, Error> {
        let now = DateTime::<Utc>::from(self.clock.now()).trunc_subsecs(6);
        let row = entity::Model {
            id: Uuid::now_v7().to_string(),
            account: account.to_string(),
            app_id: app_id.to_string(),
            open_id: open_id.to_string(),
            nickname: nickname
                .map(|nickname| nickname.as_str().to_owned())
                .unwrap_or_default(),
            created_at: now,
        };
        let mut attempt = 1;
        loop {
            let insert = entity::Entity::insert(entity::ActiveModel {
                id: Set(row.id.clone()),
                account: Set(row.account.clone()),
                app_id: Set(row.app_id.clone()),
                open_id: Set(row.open_id.clone()),
                nickname: Set(row.nickname.clone()),
                created_at: Set(row.created_at),
            })
            .exec_without_returning(&self.database);
            let Err(error) = within_deadline(insert).await else {
                return row.try_into();
            };
            // Whatever the error: the row may be there, and its answer was lost or late.
            let found = self.settled(app_id, account).await;
            if found
                .as_ref()
                .is_ok_and(|found| found.as_ref().is_some_and(|found| found.id == row.id))
            {
                return row.try_into();
            }
            let taken = matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)));
            if !taken && !storage::is_deadlock(&error) {
                return Err(error.into());
            }
            if found?.is_some() {
                return Err(Refusal::AccountBound.into());
            }
            if self.of_user(app_id, open_id).await?.is_some() {
                return Err(Refusal::UserBound.into());
            }
            // Whoever was in the way is gone, or had to give way as well.
            if attempt == ATTEMPTS {
                return Err(error.into());
            }
            attempt += 1;
        }
    }

    /// The WeChat user bound to an account in an app.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get(
        &self,
        app_id: &AppId,
        account: &AccountName,
    ) -> Result<Option<Binding>, Error> {
        let row = entity::Entity::find()
            .filter(entity::Column::Account.eq(account.as_str()))
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .one(&self.database);
        within_deadline(row)
            .await?
            .map(Binding::try_from)
            .transpose()
    }

    /// The row of an account in an app, once whoever writes it is done.
    async fn settled(
        &self,
        app_id: &AppId,
        account: &AccountName,
    ) -> Result<Option<entity::Model>, Error> {
        let row = entity::Entity::find()
            .filter(entity::Column::Account.eq(account.as_str()))
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .lock_exclusive()
            .one(&self.database);
        Ok(within_deadline(row).await?)
    }

    /// The account that a WeChat user stands for in an app.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn of_user(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
    ) -> Result<Option<Binding>, Error> {
        let row = entity::Entity::find()
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .filter(entity::Column::OpenId.eq(open_id.as_str()))
            .one(&self.database);
        within_deadline(row)
            .await?
            .map(Binding::try_from)
            .transpose()
    }

    /// What an account is bound to, one an app.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn of_account(&self, account: &AccountName) -> Result<Vec<Binding>, Error> {
        let rows = entity::Entity::find()
            .filter(entity::Column::Account.eq(account.as_str()))
            .all(&self.database);
        let rows = within_deadline(rows).await?.into_iter();
        rows.map(Binding::try_from).collect()
    }

    /// Unbinds an account in an app. Answers whether it was bound.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unbind(&self, app_id: &AppId, account: &AccountName) -> Result<bool, Error> {
        let delete = entity::Entity::delete_many()
            .filter(entity::Column::Account.eq(account.as_str()))
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .exec(&self.database);
        Ok(within_deadline(delete).await?.rows_affected > 0)
    }

    /// Unbinds a WeChat user in an app. Answers whether they were bound.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unbind_user(&self, app_id: &AppId, open_id: &OpenId) -> Result<bool, Error> {
        let delete = entity::Entity::delete_many()
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .filter(entity::Column::OpenId.eq(open_id.as_str()))
            .exec(&self.database);
        Ok(within_deadline(delete).await?.rows_affected > 0)
    }

    /// Removes one binding, and no later one of the same account. Answers whether it was there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn remove(&self, id: Uuid) -> Result<bool, Error> {
        let delete = entity::Entity::delete_by_id(id.to_string()).exec(&self.database);
        Ok(within_deadline(delete).await?.rows_affected > 0)
    }
}
