//! Indexes of `user`: an app's users by id, and one person's users by unionid.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[derive(DeriveIden)]
enum User {
    Table,
    Id,
    AppId,
    UnionId,
}

const BY_APP: &str = "user_app_id_id";
const BY_PERSON: &str = "user_union_id_app_id_id";

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait leaves them out, and async_trait binds them where they are written"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Each on its own: MySQL commits each, and a run that broke off goes on where it ended.
        if !manager.has_index("user", BY_APP).await? {
            let by_app = Index::create()
                .name(BY_APP)
                .table(User::Table)
                .col(User::AppId)
                .col(User::Id)
                .take();
            manager.create_index(by_app).await?;
        }
        if !manager.has_index("user", BY_PERSON).await? {
            let by_person = Index::create()
                .name(BY_PERSON)
                .table(User::Table)
                .col(User::UnionId)
                .col(User::AppId)
                .col(User::Id)
                .take();
            manager.create_index(by_person).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in [BY_APP, BY_PERSON] {
            let mut index = Index::drop();
            index.name(name).table(User::Table);
            manager.drop_index(index).await?;
        }
        Ok(())
    }
}
