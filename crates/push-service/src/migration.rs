//! push-service's tables. Published migrations are never changed; new ones are added at the end.

mod m20261121_000001_message;
mod m20261121_000002_form;
mod m20261121_000003_message_time;

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
    table.table(name);
    if manager.get_database_backend() == DatabaseBackend::MySql {
        table.character_set("utf8mb4").collate("utf8mb4_bin");
    }
    table
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
