//! A row of `binding`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "binding")]
pub struct Model {
    /// UUIDv7, as text.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// The name of a row of `account`, or a team's own name for somebody.
    pub account: String,
    /// Unique with the account, and with the openid.
    pub app_id: String,
    pub open_id: String,
    /// Empty where WeChat gave none.
    pub nickname: String,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
