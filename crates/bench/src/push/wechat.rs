//! A WeChat that costs next to nothing: it takes every message after 50 ms, and remembers when it came.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use test_support::listener;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::LONGEST;

/// How long WeChat thinks about a message.
const LATENCY: Duration = Duration::from_millis(50);
/// Its ids grow, and are of one length, so that one that comes later is greater as a text, too.
pub(super) const FIRST_MSGID: usize = 2_000_000_000_000_000_000;
const HEADERS_END: &[u8] = b"\r\n\r\n";
const MESSAGE_ID: &str = "\"client_msg_id\":\"";

/// Clones share what came.
#[derive(Clone, Default)]
pub(super) struct WeChat(Arc<Inner>);

#[derive(Default)]
struct Inner {
    arrived: Mutex<HashMap<String, Instant>>,
    /// Messages, those that came twice included.
    messages: AtomicUsize,
    comes: Notify,
}

impl WeChat {
    /// Serves as long as the program runs.
    pub(super) async fn serve(&self) -> anyhow::Result<SocketAddr> {
        let listener = listener().await;
        let addr = listener.local_addr()?;
        let (this, tasks) = (self.clone(), TaskTracker::new());
        let connections = tasks.clone();
        tasks.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let this = this.clone();
                connections.spawn(async move { this.answer(connection).await });
            }
        });
        Ok(addr)
    }

    /// Messages that came so far, each counted once.
    pub(super) fn distinct(&self) -> usize {
        self.arrived().len()
    }

    /// Messages that came more than once.
    pub(super) fn repeated(&self) -> usize {
        self.0.messages.load(Ordering::Relaxed) - self.distinct()
    }

    /// When this message came, once it did.
    pub(super) async fn arrival(&self, message_id: &str) -> anyhow::Result<Instant> {
        let arrival = async {
            loop {
                let comes = self.0.comes.notified();
                let arrived = self.arrived().get(message_id).copied();
                match arrived {
                    Some(at) => return at,
                    None => comes.await,
                }
            }
        };
        let arrival = timeout(LONGEST, arrival).await;
        arrival.with_context(|| format!("message {message_id} did not come"))
    }

    fn arrived(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        let arrived = &self.0.arrived;
        arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, mut connection: TcpStream) -> std::io::Result<()> {
        connection.set_nodelay(true)?;
        let mut request = Vec::with_capacity(2_048);
        while connection.read_buf(&mut request).await? > 0 {
            let Some(body) = body(&request) else {
                continue;
            };
            let answer = match message_id(body) {
                Some(message_id) => {
                    self.arrived()
                        .entry(message_id.to_owned())
                        .or_insert_with(Instant::now);
                    let msgid = FIRST_MSGID + self.0.messages.fetch_add(1, Ordering::Relaxed);
                    self.0.comes.notify_waiters();
                    sleep(LATENCY).await;
                    format!("{{\"errcode\":0,\"errmsg\":\"ok\",\"msgid\":{msgid}}}")
                }
                None => "{\"access_token\":\"token\",\"expires_in\":7200}".to_owned(),
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            );
            connection.write_all(answer.as_bytes()).await?;
            request.clear();
        }
        Ok(())
    }
}

/// The body of a request, once all of it is there.
fn body(request: &[u8]) -> Option<&str> {
    let end = request
        .windows(HEADERS_END.len())
        .position(|window| window == HEADERS_END)?;
    let (headers, body) = request.split_at_checked(end + HEADERS_END.len())?;
    let headers = std::str::from_utf8(headers).ok()?;
    let length = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    (body.len() >= length.unwrap_or(0)).then(|| std::str::from_utf8(body).unwrap_or_default())
}

fn message_id(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once(MESSAGE_ID)?;
    Some(rest.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_with_its_body() {
        let request = b"POST / HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"client_msg_id\":\"m1\"}";
        assert_eq!(body(&request[..60]), None);
        assert_eq!(body(request).and_then(message_id), Some("m1"));
    }

    #[test]
    fn a_request_without_a_body_asks_for_a_token() {
        let request = b"GET /cgi-bin/token HTTP/1.1\r\nhost: h\r\n\r\n";
        assert_eq!(body(request), Some(""));
        assert_eq!(message_id(""), None);
    }
}
