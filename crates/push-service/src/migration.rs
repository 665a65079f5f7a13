//! push-service's tables. Published migrations are never changed; new ones are added at the end.
//!
//! MySQL commits each statement by itself, so that a run may break off between any two: each makes only what is not there.

mod m20261121_000001_message;
mod m20261121_000002_form;
mod m20261121_000003_message_time;
mod m20261121_000004_lane;
mod m20261121_000005_receipt;
mod m20261121_000006_broadcast;
mod m20261121_000007_account;
mod m20261121_000008_form_expiry;
mod m20261121_000009_form_used;
mod m20261121_000010_every_lane;

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DatabaseBackend, DynIden},
};

/// Applied by the verb `migrate`, and by `serve` on SQLite.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_message::Migration),
            Box::new(m20261121_000002_form::Migration),
            Box::new(m20261121_000003_message_time::Migration),
            Box::new(m20261121_000004_lane::Migration),
            Box::new(m20261121_000005_receipt::Migration),
            Box::new(m20261121_000006_broadcast::Migration),
            Box::new(m20261121_000007_account::Migration),
            Box::new(m20261121_000008_form_expiry::Migration),
            Box::new(m20261121_000009_form_used::Migration),
            Box::new(m20261121_000010_every_lane::Migration),
        ]
    }

    /// Each service keeps its own, so that several may share one database.
    fn migration_table_name() -> DynIden {
        "push_migrations".into_iden()
    }
}

/// A table whose texts compare by case on every engine: openids differ in case alone. MariaDB still takes no account of
/// spaces at the end, so that what is told apart by a text has none.
fn table(manager: &SchemaManager<'_>, name: &'static str) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    if manager.get_database_backend() == DatabaseBackend::MySql {
        table.character_set("utf8mb4").collate("utf8mb4_bin");
    }
    table
}

/// Makes an index of a table, unless it is there.
async fn index(
    manager: &SchemaManager<'_>,
    table: &'static str,
    name: &'static str,
    mut index: IndexCreateStatement,
) -> Result<(), DbErr> {
    if manager.has_index(table, name).await? {
        return Ok(());
    }
    manager
        .create_index(index.name(name).table(table).take())
        .await
}

/// A moment in UTC, to the microsecond.
fn moment(manager: &SchemaManager<'_>, name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    if manager.get_database_backend() == DatabaseBackend::MySql {
        column.custom("DATETIME(6)");
    } else {
        column.date_time();
    }
    column
}

#[cfg(test)]
mod tests {
    use sea_orm_migration::sea_orm::ConnectionTrait as _;
    use service_kit::{settings::DatabaseUrl, storage};
    use test_support::MariaDb;

    use super::*;

    const INDICES: [(&str, &str); 9] = [
        ("message", "message_lane"),
        ("message", "message_app"),
        ("message", "message_receipt"),
        ("receipt", "receipt_oldest"),
        ("form", "form_soonest"),
        ("form", "form_expiry"),
        ("broadcast", "broadcast_request"),
        ("broadcast", "broadcast_app"),
        ("broadcast", "broadcast_state"),
    ];
    const COLUMNS: [(&str, &str); 2] = [("message", "expire_time"), ("form", "used")];

    #[tokio::test]
    async fn a_run_that_broke_off_is_taken_up_in_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.sqlite");
        breaks_off_and_is_taken_up(&format!("sqlite://{}", file.display())).await;
    }

    #[tokio::test]
    async fn a_run_that_broke_off_is_taken_up_in_mariadb() {
        breaks_off_and_is_taken_up(MariaDb::database().await.url()).await;
    }

    #[tokio::test]
    async fn what_failed_before_there_were_lanes_gets_one_in_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.sqlite");
        every_row_gets_a_lane(&format!("sqlite://{}", file.display())).await;
    }

    #[tokio::test]
    async fn what_failed_before_there_were_lanes_gets_one_in_mariadb() {
        every_row_gets_a_lane(MariaDb::database().await.url()).await;
    }

    async fn every_row_gets_a_lane(url: &str) {
        let url = DatabaseUrl::new(url.to_owned());
        let database = storage::database(&url).await.unwrap();
        // Where messages had no lanes yet.
        Migrator::up(&database, Some(3)).await.unwrap();
        for (number, state) in (2..=8).enumerate() {
            let columns = "message_id, app_id, open_id, caller, content, state, attempts, possible_duplicate, errcode, errmsg, create_time";
            let row = format!(
                "'{number:036}', 'wx1', 'o1', 'dev', '', {state}, 0, FALSE, 0, '', '2026-11-21 10:00:00'"
            );
            database
                .execute_unprepared(&format!("INSERT INTO message ({columns}) VALUES ({row})"))
                .await
                .unwrap();
        }
        storage::migrate::<Migrator>(&database).await.unwrap();
        let lanes = sea_orm_migration::sea_orm::Statement::from_string(
            database.get_database_backend(),
            "SELECT lane FROM message",
        );
        for row in database.query_all_raw(lanes).await.unwrap() {
            let lane: String = row.try_get_by_index(0).unwrap();
            assert_eq!(lane, "0/wx1/any/dev");
        }
    }

    async fn breaks_off_and_is_taken_up(url: &str) {
        let url = DatabaseUrl::new(url.to_owned());
        let database = storage::database(&url).await.unwrap();
        storage::migrate::<Migrator>(&database).await.unwrap();
        let manager = SchemaManager::new(&database);
        // As after a crash between two statements, before any migration was noted.
        for (table, name) in INDICES {
            let index = Index::drop().name(name).table(table).to_owned();
            manager.drop_index(index).await.unwrap();
        }
        for (table, name) in COLUMNS {
            let column = Table::alter().table(table).drop_column(name).to_owned();
            manager.alter_table(column).await.unwrap();
        }
        let noted = "DELETE FROM push_migrations";
        database.execute_unprepared(noted).await.unwrap();

        storage::migrate::<Migrator>(&database).await.unwrap();
        for (table, name) in INDICES {
            assert!(manager.has_index(table, name).await.unwrap(), "{name}");
        }
        for (table, name) in COLUMNS {
            assert!(manager.has_column(table, name).await.unwrap(), "{name}");
        }
    }
}
