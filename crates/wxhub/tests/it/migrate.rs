//! `wxhub migrate`: every service's tables, by the database's URL alone.

use test_support::{MariaDb, Process};

use crate::running::{SOON, WXHUB};

async fn migrate(url: &str) -> Vec<String> {
    let migrate = Process::start(WXHUB, ["migrate"], [("WXHUB_DATABASE_URL", url)]);
    let status = migrate.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", migrate.stderr().join("\n"));
    migrate.stdout()
}

async fn migrates_once(url: &str) {
    let first = migrate(url).await;
    for service in ["auth-service", "push-service"] {
        assert!(
            first
                .iter()
                .any(|line| line.starts_with(&format!("{service}: applied m2"))),
            "{first:#?}"
        );
    }
    assert_eq!(
        migrate(url).await,
        ["auth-service: up to date", "push-service: up to date"]
    );
}

#[tokio::test]
async fn mariadb_is_migrated_once() {
    migrates_once(MariaDb::database().await.url()).await;
}

#[tokio::test]
async fn sqlite_is_migrated_once() {
    let folder = tempfile::tempdir().unwrap();
    migrates_once(&format!(
        "sqlite://{}",
        folder.path().join("all.sqlite").display()
    ))
    .await;
}

#[tokio::test]
async fn a_missing_url_is_named_with_an_example() {
    let migrate = Process::start(WXHUB, ["migrate"], []);
    assert_eq!(migrate.wait(SOON).await.code(), Some(64));
    let said = migrate.stderr().join("\n");
    assert!(
        said.contains("for example: WXHUB_DATABASE_URL=mysql://"),
        "{said}"
    );
}
