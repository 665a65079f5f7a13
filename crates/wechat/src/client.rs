//! The HTTP client: one method per WeChat interface.

mod answer;
mod credential;
mod login;
mod message;
mod oauth;
mod user_data;

use std::{net::IpAddr, time::Duration};

use reqwest::{Method, StatusCode, header, redirect};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{Span, field};
use url::{Host, Url};

pub use self::{
    credential::{Issued, TicketType},
    login::CodeSession,
    oauth::{OAuthGrant, OAuthRequest, OAuthScope, OAuthUser, oauth_authorize_url},
    user_data::PhoneNumber,
};
use crate::{AccessToken, AppId, BuildError, Error, error::TransportError};

/// An answer larger than this is none of WeChat's.
const MAX_ANSWER: usize = 1024 * 1024;

/// Where WeChat is and how long it may take.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The API's base URL.
    pub api_url: Url,
    /// From the start of a call to the end of its answer.
    pub timeout: Duration,
    /// Name resolution, proxy, TCP and TLS; part of `timeout`.
    pub connect_timeout: Duration,
}

impl ClientOptions {
    /// WeChat's own general host.
    pub const API_URL: &'static str = "https://api.weixin.qq.com";

    /// Options for the API at `api_url`, with a timeout of 5 s, of which 2 s to connect.
    pub fn new(api_url: Url) -> Self {
        Self {
            api_url,
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
        }
    }
}

/// A client of the WeChat API. Clones share one pool of connections.
///
/// Calls are answered once or fail: nothing is repeated, no redirect is followed. Each makes one
/// `tracing` span, which stays inside: WeChat gets no trace context. The proxy is the environment's
/// (`HTTPS_PROXY`, `NO_PROXY`), except for loopback addresses.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    api_url: Url,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("host", &self.api_url.host_str())
            .finish_non_exhaustive()
    }
}

/// One call: what differs between interfaces.
struct Call<'a> {
    endpoint: &'static str,
    /// Known where the call names the app itself rather than a token.
    app: Option<&'a AppId>,
    query: &'a [(&'a str, &'a str)],
    /// JSON; its presence makes the call a POST.
    body: Option<Vec<u8>>,
    /// What the caller sent that no error text may repeat.
    secrets: &'a [&'a str],
}

impl Client {
    /// A client with connections of its own.
    ///
    /// # Errors
    /// [`BuildError`] when the URL cannot be called or the process has no rustls provider.
    pub fn new(options: ClientOptions) -> Result<Self, BuildError> {
        let ClientOptions {
            api_url,
            timeout,
            connect_timeout,
        } = options;
        let host = api_url.host().ok_or(BuildError::Url)?;
        if !matches!(api_url.scheme(), "http" | "https") {
            return Err(BuildError::Url);
        }
        // reqwest panics without one.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(BuildError::NoTlsProvider);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("wxhub/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .connect_timeout(connect_timeout)
            .redirect(redirect::Policy::none());
        if is_loopback(&host) {
            builder = builder.no_proxy();
        }
        if api_url.scheme() == "http" {
            // A sandbox must work on a machine without CA certificates, where loading them is an
            // error.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .build()
            .map_err(|error| BuildError::Http(TransportError::http(error)))?;
        Ok(Self { http, api_url })
    }

    async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        token: &AccessToken,
        query: &[(&str, &str)],
    ) -> Result<T, Error> {
        let query = [&[("access_token", token.expose())], query].concat();
        self.call(Call {
            endpoint,
            app: None,
            query: &query,
            body: None,
            secrets: &[token.expose()],
        })
        .await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        token: &AccessToken,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.call(Call {
            endpoint,
            app: None,
            query: &[("access_token", token.expose())],
            body: Some(json_body(endpoint, body)?),
            secrets: &[token.expose()],
        })
        .await
    }

    #[tracing::instrument(
        name = "wechat",
        skip_all,
        fields(
            otel.name = call.endpoint,
            otel.kind = "client",
            otel.status_code = field::Empty,
            endpoint = call.endpoint,
            app.id = call.app.map(AppId::as_str),
            http.request.method = field::Empty,
            http.response.status_code = field::Empty,
            server.address = self.api_url.host_str(),
            wechat.errcode = field::Empty,
            wechat.rid = field::Empty,
        )
    )]
    async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let span = Span::current();
        let result = self.exchange(call, &span).await;
        if let Err(error) = &result {
            span.record("otel.status_code", "ERROR");
            span.record("wechat.errcode", error.errcode().map(|errcode| errcode.0));
            span.record("wechat.rid", error.rid());
        }
        result
    }

    async fn exchange<T: DeserializeOwned>(&self, call: Call<'_>, span: &Span) -> Result<T, Error> {
        let Call {
            endpoint,
            query,
            body,
            secrets,
            ..
        } = call;
        let mut url = at(&self.api_url, endpoint);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        span.record("http.request.method", method.as_str());
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body);
        }

        let response = request
            .send()
            .await
            .map_err(|error| failure(endpoint, error))?;
        span.record("http.response.status_code", response.status().as_u16());
        let (status, body) = read(endpoint, response).await?;
        answer::parse(endpoint, status, &body, secrets)
    }
}

/// `path` below `base`, whose own path is kept.
fn at(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

fn json_body(endpoint: &'static str, body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::NotSent {
        endpoint,
        source: TransportError::body(error),
    })
}

async fn read(
    endpoint: &'static str,
    mut response: reqwest::Response,
) -> Result<(StatusCode, Vec<u8>), Error> {
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| failure(endpoint, error))?
    {
        if body.len() + chunk.len() > MAX_ANSWER {
            let problem = format!("the answer exceeds {MAX_ANSWER} bytes");
            return Err(Error::Garbage {
                endpoint,
                status: status.as_u16(),
                problem,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

fn failure(endpoint: &'static str, error: reqwest::Error) -> Error {
    if error.is_connect() || error.is_builder() {
        Error::NotSent {
            endpoint,
            source: TransportError::http(error),
        }
    } else if error.is_timeout() {
        Error::Timeout { endpoint }
    } else {
        Error::Interrupted {
            endpoint,
            source: TransportError::http(error),
        }
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(address) => IpAddr::V4(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).is_loopback(),
    }
}
