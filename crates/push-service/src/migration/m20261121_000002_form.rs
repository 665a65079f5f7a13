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
        let form = table(manager, "form")
            .col(ColumnDef::new("app_id").string_len(64).not_null())
            .col(ColumnDef::new("form_id").string_len(128).not_null())
            .col(ColumnDef::new("open_id").string_len(128).not_null())
            .col(moment(manager, "expire_time").not_null())
            .primary_key(Index::create().col("app_id").col("form_id"))
            .to_owned();
        manager.create_table(form).await?;
        let soonest = Index::create()
            .col("app_id")
            .col("open_id")
            .col("expire_time")
            .to_owned();
        index(manager, "form", "form_soonest", soonest).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .drop_table(Table::drop().table("form").to_owned())
            .await
    }
}
