//! Readers that never stop, and what they must never see.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use token_client::TokenClient;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, token},
    steps::{Step, What},
};

/// Between two reads of one reader.
const PAUSE: Duration = Duration::from_millis(2);
/// A classic token serves so long beside its successor, and no longer: WeChat's five minutes less one.
pub(crate) const OVERLAP: Duration = Duration::from_secs(240);
/// Nobody serves a dead token longer than this once its successor is stored.
pub(crate) const REACH: Duration = Duration::from_secs(1);

/// What the readers saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) reads: AtomicU64,
    pub(crate) failures: Mutex<Vec<String>>,
    /// Versions that went back, by reader and app.
    pub(crate) set_back: Mutex<Vec<String>>,
    /// The longest that WeChat had a newer token than the one that was served.
    superseded: Mutex<Duration>,
    /// Reads of tokens that WeChat refuses, by app and version: the first, the last, and how many.
    pub(crate) dead: Mutex<BTreeMap<(usize, u64), Dead>>,
}

/// A dead token that was served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dead {
    pub(crate) first: Instant,
    pub(crate) last: Instant,
    pub(crate) reads: u64,
}

impl Seen {
    pub(crate) fn superseded(&self) -> Duration {
        *self.superseded.lock().unwrap()
    }

    fn fail(&self, who: &str, error: &dyn Display) {
        let mut failures = self.failures.lock().unwrap();
        failures.push(format!("{who}: {error}"));
    }

    /// What is wrong with the dead tokens that were served: one that was never replaced, or one that was served on although it
    /// was. Of an app that was not `reported`, a token dies only when its successor is made.
    pub(crate) fn served_dead(
        &self,
        steps: &[Step],
        reported: impl Fn(usize) -> bool,
    ) -> Vec<String> {
        let dead = self.dead.lock().unwrap();
        let wrong = dead.iter().filter_map(|((app, version), dead)| {
            let later = |step: &&Step| {
                step.app == *app
                    && matches!(step.what, What::Stored { version: new } if new > *version)
            };
            let name = format!(
                "app {app}, version {version}, dead for {} reads",
                dead.reads
            );
            let Some(stored) = steps.iter().find(later).map(|step| step.at) else {
                return Some(format!("{name}: never replaced"));
            };
            if dead.last > stored + REACH {
                return Some(format!(
                    "{name}: replaced, and served {:?} later",
                    dead.last - stored
                ));
            }
            let early = stored.saturating_duration_since(dead.first);
            (!reported(*app) && early > REACH)
                .then(|| format!("{name}: {early:?} before its successor"))
        });
        wrong.collect()
    }
}

/// One reader's memory.
struct Reader {
    name: String,
    cluster: Arc<Cluster>,
    seen: Arc<Seen>,
    versions: HashMap<usize, u64>,
}

impl Reader {
    /// Judges what it was given.
    fn judge(&mut self, app: usize, token: &str, version: u64, asked: Instant) {
        let (cluster, seen) = (&self.cluster, &self.seen);
        seen.reads.fetch_add(1, Ordering::Relaxed);
        let before = self.versions.insert(app, version).unwrap_or_default();
        if version < before {
            let mut set_back = seen.set_back.lock().unwrap();
            set_back.push(format!(
                "{}: app {app}, {before}, then {version}",
                self.name
            ));
        }
        let standing = cluster
            .wechat
            .standing(&cluster.apps[app].id, token)
            .unwrap();
        if let Some(superseded) = standing.superseded_for {
            let mut longest = seen.superseded.lock().unwrap();
            *longest = superseded.max(*longest);
        }
        if !standing.accepted {
            let mut dead = seen.dead.lock().unwrap();
            let dead = dead.entry((app, version)).or_insert(Dead {
                first: asked,
                last: asked,
                reads: 0,
            });
            dead.last = asked;
            dead.reads += 1;
        }
    }

    /// Straight at one replica. While that is down it waits; what fails while it lives is a failure.
    async fn straight(mut self, replica: usize) {
        let cluster = Arc::clone(&self.cluster);
        let replica = &cluster.replicas[replica];
        loop {
            let Some(life) = replica.alive() else {
                sleep(PAUSE).await;
                continue;
            };
            let mut rpc = replica.rpc();
            for app in (0..cluster.apps.len()).cycle() {
                let asked = Instant::now();
                match token(&mut rpc, &cluster.apps[app]).await {
                    Ok(token) => self.judge(app, &token.token, token.version, asked),
                    Err(status) => {
                        if replica.alive() == Some(life) {
                            self.seen.fail(&self.name, &status);
                        }
                        break;
                    }
                }
                sleep(PAUSE).await;
            }
        }
    }

    /// As a service reads: from token-client's memory, which follows the rotations.
    async fn remembering(mut self) {
        let client = TokenClient::new(&self.cluster.peer());
        let mut watch = JoinSet::new();
        watch.spawn(client.clone().watch(CancellationToken::new()));
        loop {
            self.through(&client).await;
        }
    }

    /// As a program that just started reads: over gRPC, from whichever replica's turn it is.
    async fn balanced(mut self) {
        loop {
            let client = TokenClient::new(&self.cluster.peer());
            // Replicas hear of a rotation one after the other.
            self.versions.clear();
            self.through(&client).await;
        }
    }

    async fn through(&mut self, client: &TokenClient) {
        let cluster = Arc::clone(&self.cluster);
        for (number, app) in cluster.apps.iter().enumerate() {
            let asked = Instant::now();
            match client.access_token(&app.id.parse().unwrap()).await {
                Ok(token) => self.judge(number, token.token.expose(), token.version, asked),
                Err(error) => self.seen.fail(&self.name, &error),
            }
            sleep(PAUSE).await;
        }
    }
}

/// Starts a reader at each replica and two that are balanced over all. They end with `tasks`.
pub(crate) fn read(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let reader = |name: String| Reader {
        name,
        cluster: Arc::clone(cluster),
        seen: Arc::clone(&seen),
        versions: HashMap::new(),
    };
    for replica in 0..cluster.replicas.len() {
        tasks.spawn(reader(format!("reader of replica {replica}")).straight(replica));
    }
    tasks.spawn(reader("balanced reader".to_owned()).balanced());
    tasks.spawn(reader("reader with a memory".to_owned()).remembering());
    seen
}
