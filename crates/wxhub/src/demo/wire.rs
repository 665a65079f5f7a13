//! The wires of the story: gRPC as a team, HTTP as a phone, and the sandbox's levers.

use std::time::Duration;

use anyhow::Context as _;
use proto::{
    auth::v1::auth_service_client::AuthServiceClient,
    push::v1::push_service_client::PushServiceClient,
    token::v1::token_service_client::TokenServiceClient,
};
use reqwest::{Method, Response};
use secrecy::SecretString;
use serde_json::Value;
use service_kit::client::{Peer, PeerChannel};
use tonic::transport::Endpoint;

use super::Endpoints;

/// Longer than any answer takes, WeChat's three attempts at a callback included.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Clients of everything that the story touches.
pub(super) struct Wire {
    pub(super) token: TokenServiceClient<PeerChannel>,
    pub(super) auth: AuthServiceClient<PeerChannel>,
    pub(super) push: PushServiceClient<PeerChannel>,
    http: reqwest::Client,
    auth_http: String,
    sandbox: String,
}

impl Wire {
    pub(super) fn new(at: &Endpoints, key: &SecretString) -> anyhow::Result<Self> {
        let channel = |flag: &str, url: &str| {
            let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| {
                format!("{flag} {url} is no URL (for example: {flag} http://127.0.0.1:50051)")
            })?;
            anyhow::Ok(Peer::new(vec![endpoint], key.clone()).channel())
        };
        Ok(Self {
            token: TokenServiceClient::new(channel("--token-url", &at.token)?),
            auth: AuthServiceClient::new(channel("--auth-url", &at.auth)?),
            push: PushServiceClient::new(channel("--push-url", &at.push)?),
            http: client()?,
            auth_http: trimmed(&at.auth_http),
            sandbox: trimmed(&at.sandbox),
        })
    }

    /// `POST`s to auth-service as a phone would.
    pub(super) async fn post_auth(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.auth_http);
        let answer = self.http.post(&url).json(body).send().await;
        answer.with_context(|| format!("POST {url} was not answered"))
    }

    /// Asks the sandbox.
    pub(super) async fn sandbox_get(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        self.sandbox(Method::GET, path, |request| request.query(query))
            .await
    }

    /// Makes the sandbox do something.
    pub(super) async fn sandbox_post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.sandbox(Method::POST, path, |request| request.json(body))
            .await
    }

    async fn sandbox(
        &self,
        method: Method,
        path: &str,
        fill: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.sandbox);
        let request = fill(self.http.request(method.clone(), &url));
        let answer = request
            .send()
            .await
            .with_context(|| format!("{method} {url} was not answered"))?;
        let status = answer.status();
        let text = answer
            .text()
            .await
            .with_context(|| format!("{method} {url} broke off"))?;
        anyhow::ensure!(
            status.is_success(),
            "{method} {url}: expected 200, got {status}: {text}"
        );
        serde_json::from_str(&text).with_context(|| format!("{method} {url} answered no JSON"))
    }
}

/// Whether a sandbox runs there.
pub(super) async fn answers(sandbox: &str) -> anyhow::Result<bool> {
    let answer = client()?
        .get(format!("{}/healthz", trimmed(sandbox)))
        .send()
        .await;
    Ok(answer.is_ok_and(|answer| answer.status().is_success()))
}

fn client() -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(Duration::from_secs(3))
        .no_proxy();
    Ok(client.build()?)
}

fn trimmed(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}
