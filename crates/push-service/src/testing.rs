//! What the tests of several modules stand on.

use service_kit::{CatalogHandle, Clock, cli::Service as _, settings::DatabaseUrl, storage};
use tempfile::TempDir;

use crate::{PushService, database::Database, migration::Migrator};

/// A catalog with one official account, `wx0000000000000002`.
pub(crate) fn catalog(folder: &TempDir) -> CatalogHandle {
    let path = folder.path().join("wxhub.toml");
    let text = "[[apps]]\napp_id = \"wx0000000000000002\"\nname = \"news\"\nkind = \"official_account\"\nsecret = \"unused\"\n";
    std::fs::write(&path, text).unwrap();
    let (catalog, _) = CatalogHandle::load(path, PushService::NEEDS).unwrap();
    catalog
}

/// The URL of a SQLite file.
pub(crate) fn sqlite(folder: &TempDir) -> String {
    format!("sqlite://{}", folder.path().join("push.sqlite").display())
}

/// A database whose migrations are applied.
pub(crate) async fn database(url: &str) -> Database {
    let url = DatabaseUrl::new(url.to_owned());
    let connection = storage::database(&url).await.unwrap();
    storage::migrate::<Migrator>(&connection).await.unwrap();
    Database {
        connection,
        clock: Clock::System,
    }
}

/// Each a test on SQLite, and one on MariaDB, with an empty database.
macro_rules! on_both {
    ($(async fn $name:ident($database:ident: Database) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn run($database: Database) $body

            #[tokio::test]
            async fn sqlite() {
                let folder = tempfile::tempdir().unwrap();
                run(crate::testing::database(&crate::testing::sqlite(&folder)).await).await;
            }

            #[tokio::test]
            async fn maria_db() {
                let database = test_support::MariaDb::database().await;
                run(crate::testing::database(database.url()).await).await;
            }
        }
    )*};
}
pub(crate) use on_both;
