//! Handles to Redis and the database.

use std::time::Duration;

use redis::{
    Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr, sqlx::Executor as _,
};
use sea_orm_migration::MigratorTrait;
use secrecy::{ExposeSecret as _, SecretString};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{ops::Readiness, settings::DatabaseUrl};

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

/// How MySQL keeps transactions apart.
const READ_COMMITTED: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// A query is answered within this, or the database counts as away.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the database is asked whether its migrations were applied.
const MIGRATIONS_POLL: Duration = Duration::from_secs(1);

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
    if !url.is_sqlite() {
        // Every statement here finds its rows by their keys, so that locks on the gaps between them, which InnoDB takes
        // otherwise, would only have inserts wait.
        options.map_sqlx_mysql_pool_opts(|pool| {
            pool.after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(READ_COMMITTED).await?;
                    Ok(())
                })
            })
        });
    }
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

/// Runs a query, or gives it up for lost: a connection that broke without a word answers never.
///
/// # Errors
/// When the database refuses or does not answer in time.
pub async fn within_deadline<T>(query: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("no answer within {QUERY_TIMEOUT:?}");
            Err(DbErr::Conn(RuntimeErr::Internal(message)))
        }
    }
}

/// Whether MySQL rolled the transaction back to let another one pass (1213): SQLSTATE 40001. The same again may work.
pub fn is_deadlock(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) =
        error
    else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("40001")
}

/// Tells that a service is ready once no migration of `M` is pending, and returns then or when `stop` is cancelled. A
/// service may start before `migrate` ran, and before the database did.
pub async fn await_migrations<M: MigratorTrait>(
    database: &DatabaseConnection,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    let mut told = String::new();
    let mut poll = tokio::time::interval(MIGRATIONS_POLL);
    while stop.run_until_cancelled(poll.tick()).await.is_some() {
        let check = within_deadline(pending::<M>(database));
        let why = match stop.run_until_cancelled(check).await {
            None => return,
            Some(Ok(0)) => {
                info!("ready");
                return readiness.set_ready();
            }
            Some(Ok(pending)) => format!("{pending} migrations are pending: run `migrate`"),
            Some(Err(error)) => format!("whether migrations are pending cannot be told: {error}"),
        };
        if why != told {
            warn!("not ready: {why}");
            told = why;
        }
    }
}
