//! Following rotations: the current token of each app, then every new one. A reader that is slow misses the ones between, and
//! holds up nobody.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures_util::{Stream, stream};
use service_kit::{Caller, ops::Phase};
use tokio::sync::watch;
use wechat::AppId;

use crate::{
    broker::Broker,
    credential::{Key, slot::Held},
};

/// Which apps a stream tells of.
#[derive(Debug)]
pub enum Apps {
    /// These.
    Named(Vec<AppId>),
    /// All that the caller may read.
    Of(Arc<Caller>),
}

/// One reader's place.
struct Watch {
    broker: Broker,
    apps: Apps,
    rotations: watch::Receiver<u64>,
    catalog: watch::Receiver<u64>,
    phase: watch::Receiver<Phase>,
    /// Apps to look at before waiting again.
    pending: VecDeque<AppId>,
    /// What each app's reader has, by version and by when it is replaced.
    sent: HashMap<AppId, (u64, std::time::SystemTime)>,
}

/// The tokens of `apps` from now on; those of named apps are fetched when there are none. The stream ends when the service drains, and when the catalog changes: the caller opens it
/// again, and is checked anew.
pub fn follow(
    broker: Broker,
    apps: Apps,
    phase: watch::Receiver<Phase>,
) -> impl Stream<Item = (AppId, Arc<Held>)> + Send {
    let mut watch = Watch {
        rotations: broker.rotations(),
        catalog: broker.catalog().changes(),
        phase,
        pending: VecDeque::new(),
        sent: HashMap::new(),
        apps,
        broker,
    };
    watch.pending = watch.all();
    if let Apps::Named(apps) = &watch.apps {
        for app in apps {
            watch.broker.prefetch(&Key::access_token(app));
        }
    }
    stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Some((item, watch))
    })
}

impl Watch {
    fn all(&self) -> VecDeque<AppId> {
        match &self.apps {
            Apps::Named(apps) => apps.iter().cloned().collect(),
            Apps::Of(caller) => {
                let catalog = self.broker.catalog().current();
                let apps = catalog.apps().iter().map(|app| &app.app_id);
                apps.filter(|app| caller.apps.contains(app))
                    .cloned()
                    .collect()
            }
        }
    }

    async fn next(&mut self) -> Option<(AppId, Arc<Held>)> {
        loop {
            while let Some(app) = self.pending.pop_front() {
                if let Some(held) = self.news(&app) {
                    return Some((app, held));
                }
            }
            tokio::select! {
                changed = self.rotations.changed() => changed.ok()?,
                changed = self.catalog.changed() => { let _ = changed; return None; }
                _ = self.phase.wait_for(|phase| *phase == Phase::Draining) => return None,
            }
            self.pending = self.all();
        }
    }

    /// The app's token, when the reader does not have it yet.
    fn news(&mut self, app: &AppId) -> Option<Arc<Held>> {
        let key = Key::access_token(app);
        let held = self.broker.existing(&key)?.valid()?;
        let place = (held.credential.version, held.refresh_time());
        let before = self.sent.insert(key.app, place);
        (before != Some(place)).then_some(held)
    }
}
