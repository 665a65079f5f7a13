//! Handles to Redis and the database.

use std::time::Duration;

use redis::{
    Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;
use secrecy::{ExposeSecret as _, SecretString};

use crate::settings::DatabaseUrl;

/// Redis answers a command within this, or counts as away; while a connection is made anew, twice as long again.
pub const REDIS_TIMEOUT: Duration = Duration::from_millis(1_000);
/// A connection of the pool is got within this, or the database counts as away.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that many tasks share and that comes back by itself. It is made at first use, so that a service starts
/// while Redis is away.
///
/// # Errors
/// When the URL is malformed.
pub fn redis(url: &SecretString) -> redis::RedisResult<ConnectionManager> {
    let client = Client::open(url.expose_secret())?;
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(REDIS_TIMEOUT))
        .set_connection_timeout(Some(REDIS_TIMEOUT))
        .set_number_of_retries(1)
        .set_max_delay(Duration::from_millis(500));
    ConnectionManager::new_lazy_with_config(client, config)
}

/// A pool of connections to MySQL, or one SQLite file (WAL, busy timeout). MySQL may be away when the service starts.
///
/// # Errors
/// When the URL is malformed or the file cannot be opened.
pub async fn database(url: &DatabaseUrl) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(url.expose());
    options
        .max_connections(20)
        .acquire_timeout(DATABASE_TIMEOUT)
        .connect_timeout(DATABASE_TIMEOUT)
        .connect_lazy(true)
        .sqlx_logging(false);
    if url.is_sqlite() {
        options.connect_lazy(false).map_sqlx_sqlite_opts(|options| {
            options
                .create_if_missing(true)
                .journal_mode(sea_orm::sqlx::sqlite::SqliteJournalMode::Wal)
                .busy_timeout(Duration::from_secs(5))
        });
    }
    Database::connect(options).await
}

/// Applies the migrations of `M` that are not applied yet.
///
/// # Errors
/// When the database refuses.
pub async fn migrate<M: MigratorTrait>(database: &DatabaseConnection) -> Result<(), DbErr> {
    M::up(database, None).await
}

/// How many migrations of `M` are not applied yet.
///
/// # Errors
/// When the database does not answer.
pub async fn pending<M: MigratorTrait>(database: &DatabaseConnection) -> Result<usize, DbErr> {
    Ok(M::get_pending_migrations_read_only(database).await?.len())
}
