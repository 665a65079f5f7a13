#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::prelude::*;

use super::moment;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// When a message may go out at the earliest, and when it is of no use any more.
const COLUMNS: [&str; 2] = ["schedule_time", "expire_time"];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column a statement.
        for name in COLUMNS {
            if manager.has_column("message", name).await? {
                continue;
            }
            let column = moment(manager, name).null().to_owned();
            let table = Table::alter()
                .table("message")
                .add_column(column)
                .to_owned();
            manager.alter_table(table).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in COLUMNS {
            let table = Table::alter().table("message").drop_column(name).to_owned();
            manager.alter_table(table).await?;
        }
        Ok(())
    }
}
