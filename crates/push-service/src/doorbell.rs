//! The doorbell: tells workers that a message was stored that falls due soon, so that it leaves at its time, or that a
//! broadcast changed. A ring that is lost delays a message until the next poll, never longer.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use redis::{AsyncTypedCommands as _, Client, aio::ConnectionManager};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::storage;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// What every replica subscribes to. A channel keeps nothing, so it needs no TTL.
const CHANNEL: &str = "wxhub:push:v1:doorbell";
/// What is said on it: a message is due, or a broadcast's state changed.
const MESSAGE: &str = "";
const BROADCAST: &str = "broadcast";
/// How long to wait before subscribing again after Redis was lost.
const RECONNECT: Duration = Duration::from_secs(1);

/// Wakes the workers of this process, and with Redis those of every replica.
#[derive(Clone)]
pub(crate) struct Doorbell {
    local: Arc<Notify>,
    broadcasts: Arc<Notify>,
    remote: Option<Remote>,
}

#[derive(Clone)]
struct Remote {
    client: Client,
    publisher: ConnectionManager,
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell")
            .field("redis", &self.remote.is_some())
            .finish()
    }
}

impl Doorbell {
    /// One that is heard in this process alone, or through Redis everywhere.
    pub(crate) fn new(redis: Option<&SecretString>) -> redis::RedisResult<Self> {
        let remote = match redis {
            Some(url) => Some(Remote {
                client: Client::open(url.expose_secret())?,
                publisher: storage::redis(url)?,
            }),
            None => None,
        };
        Ok(Self {
            local: Arc::default(),
            broadcasts: Arc::default(),
            remote,
        })
    }

    /// Tells that something is due.
    pub(crate) async fn ring(&self) {
        self.ring_here();
        self.publish(MESSAGE).await;
    }

    /// The same for who has more to do than to wait for Redis: this process is told at once, the others by a task.
    pub(crate) fn ring_apart(&self, tasks: &TaskTracker) {
        self.ring_here();
        if self.remote.is_some() {
            let this = self.clone();
            tasks.spawn(async move { this.publish(MESSAGE).await });
        }
    }

    /// Tells this process alone.
    pub(crate) fn ring_here(&self) {
        self.local.notify_one();
    }

    /// Tells that a broadcast's state changed.
    pub(crate) async fn ring_broadcasts(&self) {
        self.ring_broadcasts_here();
        self.publish(BROADCAST).await;
    }

    /// Tells this process alone.
    pub(crate) fn ring_broadcasts_here(&self) {
        self.broadcasts.notify_one();
    }

    async fn publish(&self, what: &str) {
        if let Some(remote) = &self.remote {
            let mut publisher = remote.publisher.clone();
            if let Err(error) = publisher.publish(CHANNEL, what).await {
                debug!("the other replicas were not woken: {error}");
            }
        }
    }

    /// Returns when it rang since the last call.
    pub(crate) async fn rung(&self) {
        self.local.notified().await;
    }

    /// Returns when a broadcast's state changed since the last call.
    pub(crate) async fn broadcasts_rung(&self) {
        self.broadcasts.notified().await;
    }

    /// Listens to the other replicas until the token is cancelled; in memory there is nobody to listen to.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let Some(remote) = &self.remote else {
            stop.cancelled().await;
            return Ok(());
        };
        loop {
            let listening = stop.run_until_cancelled(self.listen(&remote.client)).await;
            let Some(ended) = listening else {
                return Ok(());
            };
            if let Err(error) = ended {
                warn!("the doorbell is not heard, messages wait for the poll: {error}");
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(RECONNECT))
                .await
                .is_none()
            {
                return Ok(());
            }
        }
    }

    async fn listen(&self, client: &Client) -> redis::RedisResult<()> {
        let mut pubsub = tokio::time::timeout(storage::REDIS_TIMEOUT, client.get_async_pubsub())
            .await
            .map_err(std::io::Error::from)??;
        pubsub.subscribe(CHANNEL).await?;
        let mut rings = pubsub.into_on_message();
        while let Some(ring) = rings.next().await {
            if ring.get_payload_bytes() == BROADCAST.as_bytes() {
                self.ring_broadcasts_here();
            } else {
                self.ring_here();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use test_support::{Redis, eventually};

    use super::*;

    #[tokio::test]
    async fn a_ring_is_kept_until_somebody_listens() {
        let doorbell = Doorbell::new(None).unwrap();
        doorbell.ring().await;
        doorbell.rung().await;
        let silence = tokio::time::timeout(Duration::from_millis(50), doorbell.rung()).await;
        assert!(silence.is_err());
    }

    #[tokio::test]
    async fn a_ring_beside_work_waits_for_no_redis_that_hangs() {
        // It takes connections, and answers none.
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", mute.local_addr().unwrap());
        let doorbell = Doorbell::new(Some(&url.into())).unwrap();
        let tasks = TaskTracker::new();
        doorbell.ring_apart(&tasks);
        doorbell.rung().await;
        assert_eq!(tasks.len(), 1);
        tasks.close();
        // The others' ring is given up after a while.
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_ring_wakes_the_other_replicas_also_after_redis_was_away() {
        let redis = Redis::start().await;
        let url = redis.url().into();
        let (here, there) = (
            Doorbell::new(Some(&url)).unwrap(),
            Doorbell::new(Some(&url)).unwrap(),
        );
        let stop = CancellationToken::new();
        let listening = TaskTracker::new().spawn(there.clone().run(stop.clone()));
        let heard = async || {
            here.ring().await;
            tokio::time::timeout(Duration::from_millis(200), there.rung())
                .await
                .is_ok()
        };
        eventually("the ring is heard", Duration::from_secs(15), heard).await;
        redis.restart().await;
        eventually("the ring is heard again", Duration::from_secs(15), heard).await;
        stop.cancel();
        listening.await.unwrap().unwrap();
    }
}
