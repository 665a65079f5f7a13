//! A row of `user`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "user")]
pub struct Model {
    /// UUIDv7, as text: in order of first login.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub app_id: String,
    /// Unique within its app.
    pub open_id: String,
    pub union_id: Option<String>,
    pub nickname: Option<String>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub last_login_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
