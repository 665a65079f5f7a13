#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::prelude::*;

use super::index;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// Expired form_ids are found whoever they belong to.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let expiry = Index::create().col("expire_time").to_owned();
        index(manager, "form", "form_expiry", expiry).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let expiry = Index::drop().name("form_expiry").table("form").to_owned();
        manager.drop_index(expiry).await
    }
}
