//! `wxhub migrate`: the tables of every service, with nothing but the database's URL.

use std::io::Write as _;

use anyhow::Context as _;
use sea_orm_migration::{MigratorTrait, sea_orm::DatabaseConnection};
use secrecy::SecretString;
use service_kit::{Problems, Settings, storage};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database, such as mysql://wxhub:password@127.0.0.1:3306/wxhub
    #[arg(
        long,
        env = "WXHUB_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    database_url: Option<SecretString>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    let settings = Settings {
        database_url: args.database_url,
        ..Settings::default()
    };
    let url = settings.database(&mut problems, "wxhub");
    let database = storage::database(&problems.or(url)?)
        .await
        .context("the database cannot be opened")?;
    apply::<auth_service::migration::Migrator>("auth-service", &database).await?;
    apply::<push_service::Migrator>("push-service", &database).await
}

async fn apply<M: MigratorTrait>(
    service: &str,
    database: &DatabaseConnection,
) -> anyhow::Result<()> {
    let failed = || format!("{service} cannot be migrated");
    let pending = M::get_pending_migrations_read_only(database)
        .await
        .with_context(failed)?;
    storage::migrate::<M>(database).await.with_context(failed)?;
    let mut out = std::io::stdout();
    for migration in &pending {
        writeln!(out, "{service}: applied {}", migration.name())?;
    }
    if pending.is_empty() {
        writeln!(out, "{service}: up to date")?;
    }
    Ok(())
}
