//! The `receipt` table: receipts that found no message yet.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "receipt")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub app_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub wechat_msg_id: String,
    pub delivered: bool,
    /// WeChat's, where it gives one.
    pub errcode: i64,
    /// What it says where the message was not delivered.
    pub status: String,
    /// When it came.
    pub create_time: DateTimeUtc,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
