//! The database's tables. A published migration is never edited; each works with the code before and after it.

mod m20261121_000001_create_user;
mod m20261121_000002_create_account;
mod m20261121_000003_index_user;

use sea_orm_migration::prelude::*;
use service_kit::{settings::DatabaseUrl, storage};

/// Every migration, in order; applied ones are noted in `auth_migrations`.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_create_user::Migration),
            Box::new(m20261121_000002_create_account::Migration),
            Box::new(m20261121_000003_index_user::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        "auth_migrations".into_iden()
    }
}

/// Brings the tables of auth-service up to date.
///
/// # Errors
/// When the database does not answer or refuses.
pub async fn migrate(url: &DatabaseUrl) -> Result<(), DbErr> {
    let database = storage::database(url).await?;
    storage::migrate::<Migrator>(&database).await?;
    database.close().await
}
