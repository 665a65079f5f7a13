//! Users: each person as one app knows them, a row of the `user` table.

mod entity;

use std::{fmt, str::FromStr, time::SystemTime};

use chrono::{DateTime, SubsecRound as _, Utc};
use sea_orm::{
    ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Select, Set, sea_query::OnConflict,
};
use serde::{Deserialize, Serialize};
use service_kit::storage::{is_deadlock, within_deadline};
use uuid::Uuid;
use wechat::{AppId, OpenId, UnionId};

use crate::error::Error;

/// MySQL may choose one of two logins of a user as a deadlock's victim: it is written again this often.
const ATTEMPTS: u32 = 5;

/// wxhub's id of a user: a UUIDv7, so that ids are in order of first login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(Uuid);

/// A text that is no user id.
#[derive(Debug, thiserror::Error)]
#[error("must be a UUID")]
pub struct InvalidUserId;

impl FromStr for UserId {
    type Err = InvalidUserId;

    fn from_str(text: &str) -> Result<Self, InvalidUserId> {
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidUserId)
    }
}

impl TryFrom<String> for UserId {
    type Error = InvalidUserId;

    fn try_from(text: String) -> Result<Self, InvalidUserId> {
        text.parse()
    }
}

impl From<UserId> for String {
    fn from(id: UserId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// What a person calls themselves: 1 to 64 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nickname(String);

impl Nickname {
    /// Characters of the longest one.
    pub const MAX: usize = 64;

    /// Takes a nickname as a client sends it. Control characters, which real nicknames hold at times, are dropped
    /// rather than a login refused for them; what is left of nothing is none.
    ///
    /// # Errors
    /// When more than [`Nickname::MAX`] characters are left.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        let clean = clean(text);
        let clean = clean.trim();
        if clean.chars().count() > Self::MAX {
            let problem = format!("must be at most {} characters", Self::MAX);
            return Err(Error::field("nickname", problem));
        }
        Ok((!clean.is_empty()).then(|| Self(clean.to_owned())))
    }

    /// Takes a nickname as WeChat tells it: what is too long is cut.
    pub fn shorten(text: &str) -> Option<Self> {
        let clean = clean(text);
        let short: String = clean.trim().chars().take(Self::MAX).collect();
        (!short.is_empty()).then_some(Self(short))
    }

    /// The nickname itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn clean(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).collect()
}

/// A person as one app knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// wxhub's id.
    pub user_id: UserId,
    /// The app.
    pub app_id: AppId,
    /// WeChat's id of the person within the app.
    pub open_id: OpenId,
    /// WeChat's id of the person across the apps of one company.
    pub union_id: Option<UnionId>,
    /// What the person calls themselves.
    pub nickname: Option<String>,
    /// First login.
    pub create_time: SystemTime,
    /// Latest login.
    pub last_login_time: SystemTime,
}

impl TryFrom<entity::Model> for User {
    type Error = Error;

    fn try_from(row: entity::Model) -> Result<Self, Error> {
        let unreadable = || Error::Stored("user");
        Ok(Self {
            user_id: row.id.parse().map_err(|_| unreadable())?,
            app_id: row.app_id.try_into().map_err(|_| unreadable())?,
            open_id: row.open_id.try_into().map_err(|_| unreadable())?,
            union_id: row
                .union_id
                .map(UnionId::try_from)
                .transpose()
                .map_err(|_| unreadable())?,
            nickname: row.nickname,
            create_time: row.created_at.into(),
            last_login_time: row.last_login_at.into(),
        })
    }
}

/// The users of every app.
#[derive(Debug, Clone)]
pub struct Users {
    database: DatabaseConnection,
}

impl Users {
    /// Users in this database.
    pub fn new(database: DatabaseConnection) -> Self {
        Self { database }
    }

    /// Notes a login: makes the user at the first, keeps what is known already at the others. One statement decides,
    /// so that parallel first logins make one user.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn logged_in(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
        union_id: Option<&UnionId>,
        nickname: Option<&Nickname>,
        now: SystemTime,
    ) -> Result<User, Error> {
        let now = DateTime::<Utc>::from(now).trunc_subsecs(6);
        let row = entity::ActiveModel {
            id: Set(Uuid::now_v7().to_string()),
            app_id: Set(app_id.to_string()),
            open_id: Set(open_id.to_string()),
            union_id: Set(union_id.map(UnionId::to_string)),
            nickname: Set(nickname.map(|nickname| nickname.0.clone())),
            created_at: Set(now),
            updated_at: Set(now),
            last_login_at: Set(now),
        };
        let mut known = vec![entity::Column::UpdatedAt, entity::Column::LastLoginAt];
        known.extend(union_id.map(|_| entity::Column::UnionId));
        known.extend(nickname.map(|_| entity::Column::Nickname));
        let mut conflict = OnConflict::columns([entity::Column::AppId, entity::Column::OpenId]);
        conflict.update_columns(known);

        let mut attempt = 1;
        loop {
            let upsert = entity::Entity::insert(row.clone())
                .on_conflict(conflict.clone())
                .exec_without_returning(&self.database);
            match within_deadline(upsert).await {
                Err(error) if is_deadlock(&error) && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                result => {
                    result?;
                    break;
                }
            }
        }
        let user = self.by_open_id(app_id, open_id).await?;
        user.ok_or(Error::UserUnknown)
    }

    /// The user with this id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get(&self, user_id: UserId) -> Result<Option<User>, Error> {
        let row = entity::Entity::find_by_id(user_id.to_string()).one(&self.database);
        within_deadline(row).await?.map(User::try_from).transpose()
    }

    /// The user whom WeChat knows in the app by this openid.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn by_open_id(
        &self,
        app_id: &AppId,
        open_id: &OpenId,
    ) -> Result<Option<User>, Error> {
        let row = entity::Entity::find()
            .filter(entity::Column::AppId.eq(app_id.as_str()))
            .filter(entity::Column::OpenId.eq(open_id.as_str()))
            .one(&self.database);
        within_deadline(row).await?.map(User::try_from).transpose()
    }

    /// The users with these ids, in no order; unknown ones are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn batch(&self, user_ids: &[UserId]) -> Result<Vec<User>, Error> {
        let ids = user_ids.iter().map(UserId::to_string);
        let rows = entity::Entity::find().filter(entity::Column::Id.is_in(ids));
        users(rows.all(&self.database)).await
    }

    /// An app's users in order of first login: those after a user, `size` at most.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn of_app(
        &self,
        app_id: &AppId,
        after: Option<UserId>,
        size: usize,
    ) -> Result<Vec<User>, Error> {
        let rows = entity::Entity::find().filter(entity::Column::AppId.eq(app_id.as_str()));
        self.page(rows, after, size).await
    }

    /// One person's users in these apps, in order of first login: those after a user, `size` at most.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn of_person(
        &self,
        union_id: &UnionId,
        app_ids: &[AppId],
        after: Option<UserId>,
        size: usize,
    ) -> Result<Vec<User>, Error> {
        let app_ids = app_ids.iter().map(AppId::as_str);
        let rows = entity::Entity::find()
            .filter(entity::Column::UnionId.eq(union_id.as_str()))
            .filter(entity::Column::AppId.is_in(app_ids));
        self.page(rows, after, size).await
    }

    async fn page(
        &self,
        rows: Select<entity::Entity>,
        after: Option<UserId>,
        size: usize,
    ) -> Result<Vec<User>, Error> {
        let rows = match after {
            Some(after) => rows.filter(entity::Column::Id.gt(after.to_string())),
            None => rows,
        };
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let rows = rows.order_by_asc(entity::Column::Id).limit(size);
        users(rows.all(&self.database)).await
    }

    /// Removes a user; one that is gone is no error.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete(&self, user_id: UserId) -> Result<(), Error> {
        let row = entity::Entity::delete_by_id(user_id.to_string()).exec(&self.database);
        within_deadline(row).await?;
        Ok(())
    }
}

async fn users(
    rows: impl Future<Output = Result<Vec<entity::Model>, DbErr>>,
) -> Result<Vec<User>, Error> {
    let rows = within_deadline(rows).await?;
    rows.into_iter().map(User::try_from).collect()
}
