//! What every query has: a deadline.

use std::time::Duration;

use sea_orm::DbErr;

use crate::error::Error;

/// The database answers within this, or counts as away.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs a query, or gives it up for lost.
///
/// # Errors
/// When the database refuses or does not answer in time.
pub(crate) async fn within_deadline<T>(
    query: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, Error> {
    match tokio::time::timeout(TIMEOUT, query).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::DatabaseTimeout(TIMEOUT)),
    }
}
