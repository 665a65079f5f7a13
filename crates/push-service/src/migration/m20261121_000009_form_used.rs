#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// A form_id that was used stays known until it expires: a mini program that hands it in again does not bring it back.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("form", "used").await? {
            return Ok(());
        }
        let used = ColumnDef::new("used")
            .boolean()
            .not_null()
            .default(false)
            .to_owned();
        let table = Table::alter().table("form").add_column(used).to_owned();
        manager.alter_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Whatever came before takes each row for one that waits.
        let used = Query::delete()
            .from_table("form")
            .and_where(Expr::col("used").eq(true))
            .to_owned();
        manager.execute(used).await?;
        let table = Table::alter().table("form").drop_column("used").to_owned();
        manager.alter_table(table).await
    }
}
