#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// What had failed before there were lanes has none: queued again by hand, it would wait where no worker looks.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let lane = match manager.get_database_backend() {
            DatabaseBackend::MySql => "CONCAT('0/', app_id, '/any/', caller)",
            _ => "'0/' || app_id || '/any/' || caller",
        };
        // Every state there is, so that the index finds the rows and no others are locked.
        let every = format!(
            "UPDATE message SET lane = {lane} WHERE state IN (2, 3, 4, 5, 6, 7, 8) AND lane = ''"
        );
        manager.get_connection().execute_unprepared(&every).await?;
        Ok(())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        // A lane does no harm.
        Ok(())
    }
}
