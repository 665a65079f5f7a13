//! Whether WeChat still takes a token that its users doubt.
//!
//! An SDK behind the door of [`crate::http`] cannot report a dead token: all it does is ask again. So who asks again is answered
//! only after WeChat was asked, too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret as _;
use tracing::{debug, info};
use wechat::{AccessToken, AppId, Class, Client, ErrCode};

use crate::{
    broker::Broker,
    credential::{Key, slot::Held, store::PROBES_APART},
    error::Error,
    report,
};

/// Who gets a version twice within this may have found it dead.
const AGAIN: Duration = Duration::from_secs(60);

/// Who got which version, and what WeChat said when it was asked.
#[derive(Debug)]
pub(crate) struct Prober {
    broker: Broker,
    wechat: Arc<Client>,
    /// The last version that each caller got, by its name: no more than callers and apps are in `wxhub.toml`.
    given: Mutex<HashMap<(String, AppId), Given>>,
    probes: Mutex<HashMap<AppId, Arc<LastProbe>>>,
}

#[derive(Debug, Clone, Copy)]
struct Given {
    version: u64,
    at: Duration,
}

/// Locked while WeChat is asked: whoever comes meanwhile waits for the same answer.
type LastProbe = tokio::sync::Mutex<Option<Probe>>;

#[derive(Debug)]
struct Probe {
    version: u64,
    at: Duration,
    /// The code with which WeChat refused the token.
    refused: Option<ErrCode>,
}

impl Prober {
    /// Asks through `wechat`, whose timeout is the deadline of a probe.
    pub(crate) fn new(broker: Broker, wechat: Arc<Client>) -> Self {
        Self {
            broker,
            wechat,
            given: Mutex::default(),
            probes: Mutex::default(),
        }
    }

    /// Notes that `caller` gets a version, and tells whether it got the same a short while ago.
    pub(crate) fn gets_again(&self, caller: &str, app: &AppId, version: u64) -> bool {
        let at = self.broker.clock().elapsed();
        let given = Given { version, at };
        let before = lock(&self.given).insert((caller.to_owned(), app.clone()), given);
        before.is_some_and(|before| before.version == version && at < before.at + AGAIN)
    }

    /// What is to be used instead of `held`: its replacement when WeChat refuses it, else itself.
    ///
    /// # Errors
    /// What [`report::report`] fails with.
    pub(crate) async fn verified(&self, key: &Key, held: Arc<Held>) -> Result<Arc<Held>, Error> {
        let version = held.credential.version;
        match self.refused(key, &held).await {
            None => Ok(held),
            Some(errcode) => report::report(&self.broker, key, version, errcode).await,
        }
    }

    async fn refused(&self, key: &Key, held: &Held) -> Option<ErrCode> {
        let version = held.credential.version;
        let probe = Arc::clone(lock(&self.probes).entry(key.app.clone()).or_default());
        let mut last = probe.lock().await;
        let at = self.broker.clock().elapsed();
        if let Some(probe) = last.as_ref().filter(|probe| at < probe.at + PROBES_APART) {
            return probe.refused.filter(|_| probe.version == version);
        }
        // Another replica may have asked a moment ago. While the store is away, each limits itself.
        let now = self.broker.clock().now();
        if let Ok(false) = self.broker.store().probe(key, now).await {
            return None;
        }
        // Noted before it is sent: it counts also when who asked hangs up.
        let probe = last.insert(Probe {
            version,
            at,
            refused: None,
        });
        let token = AccessToken::new(held.credential.secret.expose_secret());
        let answer = self.wechat.api_domain_ip(&token).await;
        probe.refused = match &answer {
            Ok(_) => None,
            Err(error) => error.errcode().filter(|code| code.class() == Class::Token),
        };
        match (&answer, probe.refused) {
            (_, Some(errcode)) => {
                info!(app.id = %key.app, version, errcode = errcode.0, "a token that was doubted is dead");
            }
            (Ok(_), None) => debug!(app.id = %key.app, version, "a token that was doubted works"),
            (Err(error), None) => {
                debug!(app.id = %key.app, version, error = %error, "a token that was doubted cannot be probed");
            }
        }
        probe.refused
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
