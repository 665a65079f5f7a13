//! The `account` table (who signs in with a password) and the `binding` table (which WeChat user stands for which
//! account in an app).

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

#[derive(DeriveIden)]
enum Account {
    Table,
    Name,
    PasswordHash,
    Epoch,
    CreatedAt,
    PasswordAt,
}

#[derive(DeriveIden)]
enum Binding {
    Table,
    Id,
    Account,
    AppId,
    OpenId,
    Nickname,
    CreatedAt,
}

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait leaves them out, and async_trait binds them where they are written"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let account = Table::create()
            .table(Account::Table)
            .if_not_exists()
            .col(
                ColumnDef::new(Account::Name)
                    .string_len(64)
                    .not_null()
                    .primary_key(),
            )
            .col(
                ColumnDef::new(Account::PasswordHash)
                    .string_len(255)
                    .not_null(),
            )
            .col(ColumnDef::new(Account::Epoch).char_len(36).not_null())
            .col(moment(mysql, Account::CreatedAt))
            .col(moment(mysql, Account::PasswordAt))
            .take();
        manager.create_table(of_engine(mysql, account)).await?;

        let binding = Table::create()
            .table(Binding::Table)
            .if_not_exists()
            .col(
                ColumnDef::new(Binding::Id)
                    .char_len(36)
                    .not_null()
                    .primary_key(),
            )
            .col(ColumnDef::new(Binding::Account).string_len(64).not_null())
            .col(ColumnDef::new(Binding::AppId).string_len(64).not_null())
            .col(ColumnDef::new(Binding::OpenId).string_len(128).not_null())
            .col(ColumnDef::new(Binding::Nickname).string_len(64).not_null())
            .col(moment(mysql, Binding::CreatedAt))
            .index(
                Index::create()
                    .name("binding_account_app_id")
                    .col(Binding::Account)
                    .col(Binding::AppId)
                    .unique(),
            )
            .index(
                Index::create()
                    .name("binding_app_id_open_id")
                    .col(Binding::AppId)
                    .col(Binding::OpenId)
                    .unique(),
            )
            .take();
        manager.create_table(of_engine(mysql, binding)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let binding = Table::drop().table(Binding::Table).take();
        manager.drop_table(binding).await?;
        let account = Table::drop().table(Account::Table).take();
        manager.drop_table(account).await
    }
}

/// UTC, to the microsecond. SQLite has text for it.
fn moment(mysql: bool, column: impl IntoIden) -> ColumnDef {
    let mut column = ColumnDef::new(column);
    if mysql {
        column.custom("DATETIME(6)");
    } else {
        column.date_time();
    }
    column.not_null().take()
}

/// Names and openids differ in case, and so must what compares them. SQLite compares bytes anyway.
fn of_engine(mysql: bool, mut table: TableCreateStatement) -> TableCreateStatement {
    if mysql {
        table
            .engine("InnoDB")
            .character_set("utf8mb4")
            .collate("utf8mb4_bin");
    }
    table
}
