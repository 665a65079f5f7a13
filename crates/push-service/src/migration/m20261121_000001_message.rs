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
        let message = table(manager, "message")
            .col(
                ColumnDef::new("message_id")
                    .char_len(36)
                    .not_null()
                    .primary_key(),
            )
            .col(ColumnDef::new("app_id").string_len(64).not_null())
            .col(ColumnDef::new("open_id").string_len(128).not_null())
            .col(ColumnDef::new("caller").string_len(128).not_null())
            .col(ColumnDef::new("request_id").string_len(128).null())
            .col(ColumnDef::new("content").text().not_null())
            .col(ColumnDef::new("form_id").string_len(128).null())
            .col(ColumnDef::new("state").tiny_integer().not_null())
            .col(ColumnDef::new("attempts").unsigned().not_null())
            .col(ColumnDef::new("possible_duplicate").boolean().not_null())
            .col(ColumnDef::new("errcode").big_integer().not_null())
            .col(ColumnDef::new("errmsg").string_len(512).not_null())
            .col(ColumnDef::new("wechat_msg_id").string_len(128).null())
            .col(moment(manager, "create_time").not_null())
            .col(moment(manager, "sent_time").null())
            .col(moment(manager, "ambiguous_time").null())
            .col(moment(manager, "next_attempt_time").null())
            .col(ColumnDef::new("claim_id").char_len(36).null())
            .col(ColumnDef::new("trace_parent").string_len(64).null())
            .to_owned();
        manager.create_table(message).await?;
        let idempotency = Index::create()
            .col("app_id")
            .col("caller")
            .col("request_id")
            .unique()
            .to_owned();
        index(manager, "message", "message_request", idempotency).await?;
        let due = Index::create()
            .col("state")
            .col("next_attempt_time")
            .to_owned();
        index(manager, "message", "message_due", due).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .drop_table(Table::drop().table("message").to_owned())
            .await
    }
}
