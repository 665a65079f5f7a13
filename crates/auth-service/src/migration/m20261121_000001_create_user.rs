//! The `user` table: who logged in to which app.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[derive(DeriveIden)]
enum User {
    Table,
    Id,
    AppId,
    OpenId,
    UnionId,
    Nickname,
    CreatedAt,
    UpdatedAt,
    LastLoginAt,
}

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait leaves them out, and async_trait binds them where they are written"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        // UTC, to the microsecond. SQLite has text for it.
        let moment = |column: User| {
            let mut column = ColumnDef::new(column);
            if mysql {
                column.custom("DATETIME(6)");
            } else {
                column.date_time();
            }
            column.not_null().take()
        };
        let mut table = Table::create()
            .table(User::Table)
            .if_not_exists()
            .col(
                ColumnDef::new(User::Id)
                    .char_len(36)
                    .not_null()
                    .primary_key(),
            )
            .col(ColumnDef::new(User::AppId).string_len(64).not_null())
            .col(ColumnDef::new(User::OpenId).string_len(128).not_null())
            .col(ColumnDef::new(User::UnionId).string_len(128).null())
            .col(ColumnDef::new(User::Nickname).string_len(64).null())
            .col(moment(User::CreatedAt))
            .col(moment(User::UpdatedAt))
            .col(moment(User::LastLoginAt))
            .index(
                Index::create()
                    .name("user_app_id_open_id")
                    .col(User::AppId)
                    .col(User::OpenId)
                    .unique(),
            )
            .take();
        if mysql {
            // openids differ in case, and so must what compares them. SQLite compares bytes anyway.
            table
                .engine("InnoDB")
                .character_set("utf8mb4")
                .collate("utf8mb4_bin");
        }
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::drop().table(User::Table).take();
        manager.drop_table(table).await
    }
}
