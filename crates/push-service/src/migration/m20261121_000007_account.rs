#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// A repeated request_id finds its message by the account that it named, whoever is bound to that by then.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("message", "account").await? {
            return Ok(());
        }
        let account = ColumnDef::new("account").string_len(255).null().to_owned();
        let table = Table::alter()
            .table("message")
            .add_column(account)
            .to_owned();
        manager.alter_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::alter()
            .table("message")
            .drop_column("account")
            .to_owned();
        manager.alter_table(table).await
    }
}
