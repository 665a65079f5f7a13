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
        let mut broadcast = table(manager, "broadcast");
        broadcast
            .col(
                ColumnDef::new("broadcast_id")
                    .char_len(36)
                    .not_null()
                    .primary_key(),
            )
            .col(ColumnDef::new("app_id").string_len(64).not_null())
            .col(ColumnDef::new("caller").string_len(128).not_null())
            .col(ColumnDef::new("request_id").string_len(128).null())
            .col(ColumnDef::new("content").text().not_null())
            .col(ColumnDef::new("kind").string_len(32).not_null())
            .col(ColumnDef::new("state").tiny_integer().not_null())
            .col(ColumnDef::new("expanded_to").string_len(128).not_null());
        for counter in [
            "recipients",
            "expanded",
            "sent",
            "delivered",
            "failed",
            "cancelled",
            "expired",
        ] {
            broadcast.col(ColumnDef::new(counter).big_integer().not_null().default(0));
        }
        broadcast
            .col(moment(manager, "create_time").not_null())
            .col(moment(manager, "start_time").null())
            .col(moment(manager, "end_time").null())
            .col(moment(manager, "expire_time").null());
        manager.create_table(broadcast).await?;
        let idempotency = Index::create()
            .col("app_id")
            .col("caller")
            .col("request_id")
            .unique()
            .to_owned();
        index(manager, "broadcast", "broadcast_request", idempotency).await?;
        let listed = Index::create().col("app_id").col("broadcast_id").to_owned();
        index(manager, "broadcast", "broadcast_app", listed).await?;
        let active = Index::create().col("state").to_owned();
        index(manager, "broadcast", "broadcast_state", active).await?;

        let recipient = table(manager, "broadcast_recipient")
            .col(ColumnDef::new("broadcast_id").char_len(36).not_null())
            .col(ColumnDef::new("open_id").string_len(128).not_null())
            .primary_key(Index::create().col("broadcast_id").col("open_id"))
            .to_owned();
        manager.create_table(recipient).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in ["broadcast_recipient", "broadcast"] {
            manager
                .drop_table(Table::drop().table(name).to_owned())
                .await?;
        }
        Ok(())
    }
}
