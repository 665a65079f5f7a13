//! A network that fails on command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::{eventually, free_port};

/// How bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Stalled,
    Delayed(Duration),
}

/// Until nobody holds the listener any more: a process that another thread is just starting has a copy of it until it
/// runs a program of its own.
const COPIES: Duration = Duration::from_secs(30);

/// No end to what passes.
const ENDLESS: usize = usize::MAX;

/// What every connection of a proxy goes by.
#[derive(Debug, Clone)]
struct Gate {
    flow: watch::Sender<Flow>,
    /// Chunks that pass until all is held.
    left: Arc<AtomicUsize>,
}

impl Gate {
    /// Waits until a chunk may pass.
    async fn pass(&self) {
        let mut flow = self.flow.subscribe();
        loop {
            // It does not end before the gate does.
            let now = flow
                .wait_for(|flow| *flow != Flow::Stalled)
                .await
                .map_or(Flow::Stalled, |flow| *flow);
            if self.is_last() {
                self.flow.send_replace(Flow::Stalled);
                continue;
            }
            if let Flow::Delayed(delay) = now {
                sleep(delay).await;
            }
            return;
        }
    }

    /// Takes one of the chunks that may pass; when none is left, it is time to hold them.
    fn is_last(&self) -> bool {
        let next = |left: usize| match left {
            ENDLESS => Some(ENDLESS),
            left => left.checked_sub(1),
        };
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
            .is_err()
    }
}

/// A TCP proxy before a server, which can cut, stall and slow what passes. Ends with its drop.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    upstream: String,
    gate: Gate,
    line: Mutex<Option<Line>>,
}

/// The listener and the connections while the proxy is not cut.
#[derive(Debug)]
struct Line {
    tasks: TaskTracker,
    stop: DropGuard,
}

impl FaultProxy {
    /// A proxy before `upstream`: `host:port`, or a URL with both, such as `redis://127.0.0.1:6379`.
    pub async fn start(upstream: &str) -> Self {
        let proxy = Self {
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
            upstream: authority(upstream).to_owned(),
            gate: Gate {
                flow: watch::Sender::new(Flow::Open),
                left: Arc::new(AtomicUsize::new(ENDLESS)),
            },
            line: Mutex::new(None),
        };
        proxy.heal().await;
        proxy
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` (the upstream's) with this proxy in place of the upstream's host and port.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// Drops every connection and refuses new ones. Both are so once this returns.
    pub async fn cut(&self) {
        if let Some(Line { tasks, stop }) = self.line.lock().await.take() {
            drop(stop);
            tasks.close();
            tasks.wait().await;
            eventually("new connections are refused", COPIES, async || {
                TcpStream::connect(self.address).await.is_err()
            })
            .await;
        }
    }

    /// Holds all bytes, in both directions. Connections stay open and new ones are accepted: the peer just never answers.
    pub fn stall(&self) {
        self.gate.flow.send_replace(Flow::Stalled);
    }

    /// Holds all bytes once `chunks` more have passed, in either direction: what is written at once is one, so that a
    /// conversation can be held at each of its steps.
    pub fn stall_after(&self, chunks: usize) {
        self.gate.left.store(chunks, Ordering::SeqCst);
    }

    /// Returns when bytes are held.
    pub async fn stalled(&self) {
        let mut flow = self.gate.flow.subscribe();
        // The sender lives as long as this proxy.
        let _ = flow.wait_for(|flow| *flow == Flow::Stalled).await;
    }

    /// Lets bytes pass, in each direction, after `delay`.
    pub fn delay(&self, delay: Duration) {
        self.gate.flow.send_replace(Flow::Delayed(delay));
    }

    /// All is well again: accepts connections, and passes on what was held.
    pub async fn heal(&self) {
        self.gate.left.store(ENDLESS, Ordering::SeqCst);
        self.gate.flow.send_replace(Flow::Open);
        let mut line = self.line.lock().await;
        if line.is_none() {
            let listener = eventually("the proxy's port is free", COPIES, || {
                TcpListener::bind(self.address)
            })
            .await;
            let stop = CancellationToken::new();
            let tasks = TaskTracker::new();
            let accepting = accept(
                listener,
                self.upstream.clone(),
                self.gate.clone(),
                stop.clone(),
                tasks.clone(),
            );
            tasks.spawn(accepting);
            *line = Some(Line {
                tasks,
                stop: stop.drop_guard(),
            });
        }
    }
}

/// `host:port` of a URL, or the text itself when it is that.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    gate: Gate,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(Ok((client, _))) = stop.run_until_cancelled(listener.accept()).await {
        let (upstream, gate, stop) = (upstream.clone(), gate.clone(), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(carry(client, &upstream, &gate))
                .await;
        });
    }
}

/// Carries one connection until either side breaks it. A side that only ends its writing is passed on as such.
async fn carry(client: TcpStream, upstream: &str, gate: &Gate) {
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    // Each chunk is to pass at once or after the delay, not after Nagle's.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = server.into_split();
    // An error is a broken connection, which the drop of both halves passes on.
    let _ = tokio::try_join!(
        pass(client_reader, server_writer, gate),
        pass(server_reader, client_writer, gate),
    );
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    gate: &Gate,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        gate.pass().await;
        match buffer.get(..length) {
            Some([]) | None => return to.shutdown().await,
            Some(chunk) => to.write_all(chunk).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::listener;

    /// Echoes until its runtime ends with the test.
    async fn echo_server(tasks: &TaskTracker) -> SocketAddr {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let connections = tasks.clone();
        tasks.spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut reader, mut writer) = connection.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        address
    }

    async fn echo(connection: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        connection.write_u8(byte).await?;
        connection.read_u8().await
    }

    async fn echo_through_proxy() -> (FaultProxy, TcpStream) {
        let upstream = echo_server(&TaskTracker::new()).await;
        let proxy = FaultProxy::start(&upstream.to_string()).await;
        let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(echo(&mut connection, 1).await.unwrap(), 1);
        (proxy, connection)
    }

    #[tokio::test]
    async fn a_cut_drops_connections_and_refuses_new_ones_until_healed() {
        let (proxy, mut connection) = echo_through_proxy().await;
        proxy.cut().await;
        assert!(echo(&mut connection, 2).await.is_err());
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        proxy.heal().await;
        let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(echo(&mut connection, 3).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn it_is_cut_and_healed_while_processes_start() {
        let proxy = FaultProxy::start(&format!("127.0.0.1:{}", free_port())).await;
        let healed = CancellationToken::new();
        let starting = [(); 2].map(|()| {
            let healed = healed.clone();
            std::thread::spawn(move || {
                while !healed.is_cancelled() {
                    std::process::Command::new("true").status().unwrap();
                }
            })
        });
        for _ in 0..500 {
            proxy.cut().await;
            let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            proxy.heal().await;
            TcpStream::connect(proxy.address()).await.unwrap();
        }
        healed.cancel();
        for thread in starting {
            thread.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_and_heal_passes_them_on() {
        let (proxy, mut connection) = echo_through_proxy().await;
        proxy.stall();
        assert!(
            timeout(Duration::from_millis(100), echo(&mut connection, 2))
                .await
                .is_err()
        );
        proxy.heal().await;
        assert_eq!(connection.read_u8().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_conversation_is_held_at_the_step_that_was_named() {
        let (proxy, mut connection) = echo_through_proxy().await;
        // The byte passes, its echo does not.
        proxy.stall_after(1);
        let held = timeout(Duration::from_millis(100), echo(&mut connection, 2));
        assert!(held.await.is_err());
        timeout(Duration::from_secs(10), proxy.stalled())
            .await
            .unwrap();
        proxy.heal().await;
        assert_eq!(connection.read_u8().await.unwrap(), 2);
        assert_eq!(echo(&mut connection, 3).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_delay_slows_each_direction() {
        let (proxy, mut connection) = echo_through_proxy().await;
        proxy.delay(Duration::from_millis(50));
        let start = Instant::now();
        assert_eq!(echo(&mut connection, 2).await.unwrap(), 2);
        assert!(start.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn an_upstream_that_is_down_is_a_dropped_connection() {
        let proxy = FaultProxy::start(&format!("127.0.0.1:{}", free_port())).await;
        let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(echo(&mut connection, 1).await.is_err());
    }

    #[tokio::test]
    async fn an_end_of_writing_passes_through() {
        let (_proxy, mut connection) = echo_through_proxy().await;
        connection.write_all(b"last words").await.unwrap();
        connection.shutdown().await.unwrap();
        let mut rest = String::new();
        connection.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "last words");
    }

    #[tokio::test]
    async fn urls_keep_everything_but_host_and_port() {
        let proxy =
            FaultProxy::start("mysql://root:pw@127.0.0.1:3306/shop?ssl-mode=disabled").await;
        assert_eq!(proxy.upstream, "127.0.0.1:3306");
        assert_eq!(
            proxy.url("mysql://root:pw@127.0.0.1:3306/shop?ssl-mode=disabled"),
            format!("mysql://root:pw@{}/shop?ssl-mode=disabled", proxy.address())
        );
        assert_eq!(
            proxy.url("redis://127.0.0.1:6379"),
            format!("redis://{}", proxy.address())
        );
    }
}
