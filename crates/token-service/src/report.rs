//! Reports of dead tokens: of one version they cause one refresh, however many report it (R1, R7).

use std::sync::Arc;

use tracing::warn;
use wechat::ErrCode;

use crate::{
    broker::{Broker, wish},
    credential::{
        Key,
        slot::{Held, Wish},
    },
    error::Error,
    metrics,
};

/// The value that replaces `version`: the current one when it is newer already, else a refreshed one.
///
/// # Errors
/// [`Error::TooSoon`] when the version is younger than the floor between two refreshes, and what a refresh fails with.
pub async fn report(
    broker: &Broker,
    key: &Key,
    version: u64,
    errcode: ErrCode,
) -> Result<Arc<Held>, Error> {
    let outcome = replace(broker, key, version, errcode).await;
    let counted = match &outcome {
        Ok((_, counted)) => *counted,
        Err(_) => metrics::Report::Refused,
    };
    if let Ok(app) = broker.app(&key.app) {
        metrics::reported(&app.name, counted);
    }
    outcome.map(|(held, _)| held)
}

async fn replace(
    broker: &Broker,
    key: &Key,
    version: u64,
    errcode: ErrCode,
) -> Result<(Arc<Held>, metrics::Report), Error> {
    let slot = broker.slot(key);
    if slot.state().version() < version {
        // Another replica's rotation may not have reached this one yet.
        if let Ok(Some(record)) = broker.load(key).await {
            slot.absorb(record);
        }
        if slot.state().version() < version {
            return Err(Error::UnknownVersion);
        }
    }
    let Some(held) = slot.valid() else {
        let held = broker.get(key).await?;
        return Ok((held, metrics::Report::AlreadyReplaced));
    };
    if held.credential.version > version {
        return Ok((held, metrics::Report::AlreadyReplaced));
    }
    refuse_below_floor(broker, key, &held)?;
    broker.backing_off(&slot)?;
    warn!(
        app.id = %key.app,
        version,
        errcode = errcode.0,
        "WeChat refused the current token: its secret was reset, or somebody else refreshes this app"
    );
    let wish = Wish {
        replace: Some(version),
        ..wish()
    };
    let held = slot
        .ask(wish, |held| held.credential.version > version)
        .await?;
    Ok((held, metrics::Report::Replaced))
}

/// An operator's refresh: whatever failed before, but not below the floor.
///
/// # Errors
/// [`Error::TooSoon`], [`Error::ForceSpent`], and what a refresh fails with.
pub async fn refresh(broker: &Broker, key: &Key, force: bool) -> Result<Arc<Held>, Error> {
    let slot = broker.slot(key);
    if let Some(held) = slot.valid() {
        refuse_below_floor(broker, key, &held)?;
    }
    let version = slot.state().version();
    let wish = Wish {
        operator: true,
        force,
        ..wish()
    };
    slot.ask(wish, |held| held.credential.version > version)
        .await
}

fn refuse_below_floor(broker: &Broker, key: &Key, held: &Held) -> Result<(), Error> {
    let left = held
        .credential
        .times
        .floor
        .duration_since(broker.clock().now());
    match left {
        Ok(retry_after) if !retry_after.is_zero() => Err(Error::TooSoon {
            app: key.app.clone(),
            retry_after,
        }),
        _ => Ok(()),
    }
}
