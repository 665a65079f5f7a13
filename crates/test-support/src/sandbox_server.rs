//! A WeChat of one's own.

use std::ops::Deref;

use sandbox::{Config, State};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::listener;

/// The sandbox on a free port, in the test's own process: what `/sandbox/…` does over HTTP are its methods ([`State`]),
/// such as `login`, `inbox`, `deliver`, `calls`, `add_fault`, `advance_clock` and `invalidate`. Ends with its drop.
#[derive(Debug)]
pub struct Sandbox {
    url: String,
    state: State,
    _stop: DropGuard,
}

impl Sandbox {
    /// The development world, whose accounts are called back under `callback_url` (push-service's URL; any text where
    /// nothing is called back).
    pub async fn start(callback_url: &str) -> Self {
        Self::with_config(Config::dev(callback_url)).await
    }

    /// A world of one's own.
    ///
    /// # Panics
    /// When the configuration is refused.
    pub async fn with_config(config: Config) -> Self {
        let sandbox = sandbox::Sandbox::build(config, listener().await)
            .await
            .expect("the configuration is valid");
        let (url, state) = (format!("http://{}", sandbox.address()), sandbox.state());
        let stop = CancellationToken::new();
        TaskTracker::new().spawn(sandbox.run(stop.clone()));
        Self {
            url,
            state,
            _stop: stop.drop_guard(),
        }
    }

    /// What `WXHUB_WECHAT_API_URL` is to be: `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Deref for Sandbox {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    const TOKEN: &str = "/cgi-bin/token";

    #[tokio::test]
    async fn it_answers_over_http_and_is_driven_in_process() {
        let sandbox = Sandbox::start("http://127.0.0.1:9").await;
        let login = sandbox.login("wx0000000000000001", None).unwrap();
        assert!(!login.js_code.is_empty());
        assert_eq!(sandbox.calls(None).total(TOKEN), 0);

        let mut connection = TcpStream::connect(sandbox.url().trim_start_matches("http://"))
            .await
            .unwrap();
        let request = format!(
            "GET {TOKEN}?grant_type=client_credential&appid=wx0000000000000001&secret=dev-secret-shop HTTP/1.1\r\n\
             Host: sandbox\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("\"access_token\""), "{answer}");
        assert_eq!(sandbox.calls(None).total(TOKEN), 1);
    }
}
