#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::prelude::*;

use super::{index, moment, table};

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let receipt = table(manager, "receipt")
            .col(ColumnDef::new("app_id").string_len(64).not_null())
            .col(ColumnDef::new("wechat_msg_id").string_len(128).not_null())
            .col(ColumnDef::new("delivered").boolean().not_null())
            .col(ColumnDef::new("errcode").big_integer().not_null())
            .col(ColumnDef::new("status").string_len(512).not_null())
            .col(moment(manager, "create_time").not_null())
            .primary_key(Index::create().col("app_id").col("wechat_msg_id"))
            .to_owned();
        manager.create_table(receipt).await?;
        let oldest = Index::create().col("create_time").to_owned();
        index(manager, "receipt", "receipt_oldest", oldest).await?;
        // WeChat's ids are unique within an app alone.
        let wechat_msg = Index::create()
            .col("app_id")
            .col("wechat_msg_id")
            .to_owned();
        index(manager, "message", "message_receipt", wechat_msg).await?;
        if manager.has_index("message", "message_wechat_msg").await? {
            let without_app = Index::drop()
                .name("message_wechat_msg")
                .table("message")
                .to_owned();
            manager.drop_index(without_app).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let without_app = Index::create().col("wechat_msg_id").to_owned();
        index(manager, "message", "message_wechat_msg", without_app).await?;
        let with_app = Index::drop()
            .name("message_receipt")
            .table("message")
            .to_owned();
        manager.drop_index(with_app).await?;
        manager
            .drop_table(Table::drop().table("receipt").to_owned())
            .await
    }
}
