//! Every way to get no token, ticket or signature.

use std::{sync::Arc, time::Duration};

use wechat::AppId;

use crate::{credential::Failure, jsapi};

/// Why a request is not fulfilled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// WeChat gave none; nothing is asked again before the failure's time.
    #[error("app {app}: {}", failure.cause)]
    Failed {
        /// The app.
        app: AppId,
        /// What happened.
        failure: Arc<Failure>,
    },
    /// The store does not answer, and without it nobody knows who refreshes.
    #[error("the store of credentials does not answer")]
    StoreUnavailable,
    /// No refresh ended in time.
    #[error("app {app}: the refresh takes longer than a caller waits")]
    TooSlow {
        /// The app.
        app: AppId,
    },
    /// Another refresh now would burn the app's quota (R8).
    #[error("app {app}: the current version is too new to be replaced")]
    TooSoon {
        /// The app.
        app: AppId,
        /// When it may be.
        retry_after: Duration,
    },
    /// The app's forced refreshes are used up, or the last one was less than 30 s ago.
    #[error("app {app}: no forced refresh is left for {} s", retry_after.as_secs().max(1))]
    ForceSpent {
        /// The app.
        app: AppId,
        /// When there may be one.
        retry_after: Duration,
    },
    /// The day's calls to WeChat for this credential are used up, or what is left is kept for refreshes that somebody asked for.
    #[error("app {app}: the day's calls to WeChat are used up")]
    QuotaSpent {
        /// The app.
        app: AppId,
        /// When the quota begins anew.
        retry_after: Duration,
    },
    /// The app left `wxhub.toml` meanwhile.
    #[error("app {app} is not in wxhub.toml any more")]
    AppGone {
        /// The app.
        app: AppId,
    },
    /// A report names a version that was never issued.
    #[error("names a version that was never issued")]
    UnknownVersion,
    /// The page's URL cannot be signed.
    #[error(transparent)]
    Url(#[from] jsapi::UrlError),
}
