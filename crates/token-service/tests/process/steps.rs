//! What the replicas do in Redis, as it sees it (`MONITOR`): who takes a lease, begins its call, stores a value.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::cluster::{App, Cluster, replica_of};

/// One step of a refresh, at the moment when this process heard of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) at: Instant,
    pub(crate) app: usize,
    pub(crate) replica: Option<usize>,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// It took the lease.
    Leased,
    /// It is about to call WeChat.
    Begun,
    /// It stored what WeChat answered.
    Stored {
        /// Under this version.
        version: u64,
    },
}

impl What {
    pub(crate) fn is_leased(&self) -> bool {
        matches!(self, Self::Leased)
    }

    pub(crate) fn is_begun(&self) -> bool {
        matches!(self, Self::Begun)
    }

    pub(crate) fn is_stored(&self) -> bool {
        matches!(self, Self::Stored { .. })
    }
}

/// All steps since the start.
#[derive(Clone)]
pub(crate) struct Steps {
    seen: Arc<Mutex<Vec<Step>>>,
    count: watch::Receiver<usize>,
}

impl Steps {
    /// Follows Redis until `tasks` ends.
    pub(crate) async fn follow(cluster: &Cluster, tasks: &mut JoinSet<()>) -> Self {
        let client = redis::Client::open(cluster.redis.url()).unwrap();
        let monitor = client.get_async_monitor().await.unwrap();
        let seen = Arc::new(Mutex::default());
        let (told, count) = watch::channel(0);
        let steps = Self {
            seen: Arc::clone(&seen),
            count,
        };
        let mut reader = Reader {
            records: records(&cluster.apps),
            users: HashMap::new(),
            redis: cluster.connect().await,
            caller: None,
        };
        tasks.spawn(async move {
            let mut lines = monitor.into_on_message::<String>();
            while let Some(line) = lines.next().await {
                if let Some(step) = reader.read(&line).await {
                    seen.lock().unwrap().push(step);
                    told.send_modify(|count| *count += 1);
                }
            }
        });
        steps
    }

    pub(crate) fn all(&self) -> Vec<Step> {
        self.seen.lock().unwrap().clone()
    }

    /// The first step that `wanted` takes, now or within `patience`.
    pub(crate) async fn first(
        &self,
        patience: Duration,
        wanted: impl Fn(&Step) -> bool,
    ) -> Option<Step> {
        let mut count = self.count.clone();
        let found = async {
            loop {
                count.borrow_and_update();
                let found = self.seen.lock().unwrap().iter().copied().find(&wanted);
                match found {
                    Some(step) => return step,
                    None => count.changed().await.expect("Redis is followed"),
                }
            }
        };
        timeout(patience, found).await.ok()
    }
}

fn records(apps: &[App]) -> HashMap<String, usize> {
    let records = apps.iter().map(App::record);
    records.enumerate().map(|(app, key)| (key, app)).collect()
}

/// Makes steps of `MONITOR`'s lines: `1339518083.107412 [0 127.0.0.1:60866] "HSET" "key" "field" "value"`, where `lua` in
/// place of the address means the script of the line before.
struct Reader {
    records: HashMap<String, usize>,
    /// The user behind each connection.
    users: HashMap<String, usize>,
    redis: MultiplexedConnection,
    /// Whose script runs.
    caller: Option<usize>,
}

impl Reader {
    async fn read(&mut self, line: &str) -> Option<Step> {
        let (source, command) = line.split_once('[')?.1.split_once("] ")?;
        let source = source.split_once(' ')?.1;
        if source != "lua" {
            if command.starts_with("\"AUTH\"") {
                // A new connection, perhaps on the port of an old one.
                self.users.remove(source);
            }
            self.caller = self.replica(source).await;
            return None;
        }
        let mut words = command.trim_matches('"').split("\" \"");
        if words.next()? != "HSET" {
            return None;
        }
        let app = *self.records.get(words.next()?)?;
        let words: Vec<_> = words.collect();
        let field = |name| words.chunks(2).find(|pair| pair[0] == name);
        let what = if field("granted").is_some() {
            What::Leased
        } else if field("begun").is_some() {
            What::Begun
        } else if field("written").is_some() {
            let version = field("version")?[1].parse().unwrap();
            What::Stored { version }
        } else {
            return None;
        };
        Some(Step {
            at: Instant::now(),
            app,
            replica: self.caller,
            what,
        })
    }

    async fn replica(&mut self, address: &str) -> Option<usize> {
        if !self.users.contains_key(address) {
            let list: String = redis::cmd("CLIENT")
                .arg("LIST")
                .query_async(&mut self.redis)
                .await
                .unwrap();
            self.users.extend(list.lines().filter_map(|line| {
                let field = |name| line.split(' ').find_map(|pair| pair.strip_prefix(name));
                Some((field("addr=")?.to_owned(), replica_of(field("user=")?)?))
            }));
        }
        self.users.get(address).copied()
    }
}
