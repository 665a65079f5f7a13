//! The database's tables. A published migration is never edited; each works with the code before and after it.
//!
//! MySQL commits each statement by itself, so that a run may break off between any two: each makes only what is not there.

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

#[cfg(test)]
mod tests {
    use sea_orm_migration::sea_orm::ConnectionTrait as _;
    use test_support::MariaDb;

    use super::*;

    #[tokio::test]
    async fn a_run_that_broke_off_is_taken_up_in_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("auth.sqlite");
        breaks_off_and_is_taken_up(&format!("sqlite://{}", file.display())).await;
    }

    #[tokio::test]
    async fn a_run_that_broke_off_is_taken_up_in_mariadb() {
        breaks_off_and_is_taken_up(MariaDb::database().await.url()).await;
    }

    async fn breaks_off_and_is_taken_up(url: &str) {
        let url = DatabaseUrl::new(url.to_owned());
        let database = storage::database(&url).await.unwrap();
        storage::migrate::<Migrator>(&database).await.unwrap();
        let manager = SchemaManager::new(&database);
        // As after a crash between two statements, before any migration was noted.
        let table = Table::drop().table("binding").to_owned();
        manager.drop_table(table).await.unwrap();
        let index = Index::drop()
            .name("user_app_id_id")
            .table("user")
            .to_owned();
        manager.drop_index(index).await.unwrap();
        let noted = "DELETE FROM auth_migrations";
        database.execute_unprepared(noted).await.unwrap();

        storage::migrate::<Migrator>(&database).await.unwrap();
        assert!(manager.has_table("binding").await.unwrap());
        assert!(manager.has_index("user", "user_app_id_id").await.unwrap());
    }
}
