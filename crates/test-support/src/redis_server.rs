//! A Redis of one's own.

use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::{eventually, free_port};

/// Starting takes some 10 ms; on a busy machine many tests start theirs at once.
const START: Duration = Duration::from_secs(30);

/// A redis-server without persistence on a free port of 127.0.0.1. It and its folder are gone on drop.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    // Before the folder: fields drop in order, and the server goes before its files.
    process: Mutex<Option<Child>>,
    folder: TempDir,
}

impl Redis {
    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When redis-server is not installed or does not start, with its log.
    pub async fn start() -> Self {
        let redis = Self {
            port: free_port(),
            process: Mutex::new(None),
            folder: child::folder("redis"),
        };
        redis.restart().await;
        redis
    }

    /// Its address: `redis://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the server as a power cut would. Connections to it break, new ones are refused.
    pub fn kill(&self) {
        self.process.lock().expect("no holder panics").take();
    }

    /// Starts the server, after killing it when it runs: on the same port, and empty.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn restart(&self) {
        self.kill();
        let log = self.folder.path().join("redis.log");
        let mut command = Command::new(child::program(&["redis-server", "valkey-server"]));
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.folder.path())
            .stdout(child::log_file(&log))
            .stderr(child::log_file(&log));
        let process = Child::spawn(&mut command, Some(self.folder.path()));
        let id = process.id();
        *self.process.lock().expect("no holder panics") = Some(process);

        eventually("redis-server answers", START, async || {
            // Our own answers: another process could have taken the port.
            match server_process_id(&self.url()).await {
                Ok(answering) if answering == id => Ok(()),
                Ok(other) => Err(format!(
                    "process {other} answers in place of {id}\n{}",
                    child::log_tail(&log)
                )),
                Err(error) => Err(format!("{error}\n{}", child::log_tail(&log))),
            }
        })
        .await;
    }

    /// Stops the server without closing a connection (SIGSTOP): it hangs, as an overloaded machine does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.process
            .lock()
            .expect("no holder panics")
            .as_mut()
            .expect("the server runs")
            .signal(signal);
    }
}

async fn server_process_id(url: &str) -> redis::RedisResult<u32> {
    let mut connection = redis::Client::open(url)?
        .get_multiplexed_async_connection()
        .await?;
    let info: redis::InfoDict = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut connection)
        .await?;
    Ok(info
        .get("process_id")
        .expect("INFO server has a process_id"))
}

#[cfg(test)]
mod tests {
    use redis::AsyncCommands as _;

    use super::*;

    async fn connect(redis: &Redis) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        redis::Client::open(redis.url())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
    }

    #[tokio::test]
    async fn a_restart_is_empty_and_on_the_same_port() {
        let redis = Redis::start().await;
        let mut connection = connect(&redis).await.unwrap();
        let () = connection.set("key", "value").await.unwrap();
        assert_eq!(connection.get("key").await, Ok(Some("value".to_owned())));

        redis.kill();
        assert!(connection.get::<_, Option<String>>("key").await.is_err());
        assert!(connect(&redis).await.is_err());

        redis.restart().await;
        let mut connection = connect(&redis).await.unwrap();
        assert_eq!(connection.get("key").await, Ok(None::<String>));
    }

    #[tokio::test]
    async fn a_paused_server_hangs_until_it_is_resumed() {
        let redis = Redis::start().await;
        let mut connection = connect(&redis).await.unwrap();

        redis.pause();
        let error = connection
            .set::<_, _, ()>("key", "value")
            .await
            .unwrap_err();
        assert!(error.is_timeout(), "{error}");

        redis.resume();
        eventually("the server answers again", START, async || {
            connection.get::<_, Option<String>>("key").await.map(|_| ())
        })
        .await;
    }

    #[tokio::test]
    async fn drop_ends_the_server_and_removes_its_folder() {
        let redis = Redis::start().await;
        let (folder, url) = (redis.folder.path().to_owned(), redis.url());
        drop(redis);
        assert!(!folder.exists());
        assert!(server_process_id(&url).await.is_err());
    }

    #[tokio::test]
    async fn servers_run_side_by_side() {
        let (one, other) = tokio::join!(Redis::start(), Redis::start());
        let () = connect(&one)
            .await
            .unwrap()
            .set("key", "one")
            .await
            .unwrap();
        assert_eq!(
            connect(&other).await.unwrap().get("key").await,
            Ok(None::<String>)
        );
    }
}
