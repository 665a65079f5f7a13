#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod flight;
mod watch;

use std::{
    convert::Infallible,
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::token::v1::{
    self as pb, GetAccessTokenRequest, GetTicketRequest, JsapiSignature,
    ReportInvalidAccessTokenRequest, SignJsapiRequest, token_service_client::TokenServiceClient,
};
use rand::RngExt as _;
use service_kit::client::{Peer, PeerChannel};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use wechat::{AppId, Class, ErrCode, Ticket, TicketType};

use self::{cache::Cache, error::required, flight::Flights};
pub use self::{
    cache::CachedToken,
    error::{CallError, Error},
};

/// How often a call is made whose connection breaks.
const ATTEMPTS: u32 = 3;
/// Before a call is made again, give or take half: by then the endpoint that went away is out of the list.
const PAUSE: Duration = Duration::from_millis(20);

/// A client of token-service. Clones share one channel and one memory.
#[derive(Debug, Clone)]
pub struct TokenClient {
    rpc: TokenServiceClient<PeerChannel>,
    cache: Arc<Cache>,
    fetches: Arc<Flights>,
}

/// A ticket, as [`TokenClient::ticket`] returns it.
#[derive(Debug, Clone)]
pub struct IssuedTicket {
    /// The ticket itself.
    pub ticket: Ticket,
    /// Grows with every new ticket of the app and type.
    pub version: u64,
    /// When WeChat lets it expire.
    pub expire_time: SystemTime,
}

impl TokenClient {
    /// A client that connects when it is first used. Call it within a tokio runtime.
    pub fn new(peer: &Peer) -> Self {
        Self {
            rpc: TokenServiceClient::new(peer.channel()),
            cache: Arc::default(),
            fetches: Arc::default(),
        }
    }

    /// Follows every rotation of the caller's apps until `stop` is cancelled, and comes back by itself when
    /// token-service restarts: a worker for `service_kit::run::Workers`. Run it once per client.
    ///
    /// # Errors
    /// None: the type is what a worker returns.
    pub async fn watch(self, stop: CancellationToken) -> Result<(), Infallible> {
        watch::follow(self.rpc, &self.cache, &stop).await;
        Ok(())
    }

    /// The app's current token: from memory without a lock, else from token-service, which is asked once for all who
    /// want the same at the same time.
    ///
    /// # Errors
    /// [`Error`] with token-service's reason, when memory holds none that may still be used.
    pub async fn access_token(&self, app: &AppId) -> Result<Arc<CachedToken>, Error> {
        if let Some(token) = self.cached(app) {
            return Ok(token);
        }
        let fetch = || {
            let (client, app) = (self.clone(), app.clone());
            async move { client.fetch(&app).await }
        };
        self.fetches.join(app, fetch).await
    }

    async fn fetch(&self, app: &AppId) -> Result<Arc<CachedToken>, Error> {
        let request = GetAccessTokenRequest {
            app_id: app.to_string(),
        };
        let answer = self.call(request, |mut rpc, request| async move {
            rpc.get_access_token(request).await
        });
        self.cache.put(answer.await?.access_token)
    }

    /// What memory holds of the app, if it may still be used: nobody is asked.
    pub fn cached(&self, app: &AppId) -> Option<Arc<CachedToken>> {
        self.cache.get(app)
    }

    /// Calls WeChat with the app's token. When WeChat says that the token is dead (40001, 40014, 42001), reports it and
    /// repeats the call once with the one that replaces it; what the second call returns is the answer.
    ///
    /// # Errors
    /// [`CallError::Token`] when there is no token, [`CallError::WeChat`] with the call's own error.
    pub async fn with_token<T, F>(
        &self,
        app: &AppId,
        call: impl Fn(wechat::AccessToken) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, wechat::Error>>,
    {
        let used = self.access_token(app).await?;
        let refused = match call(used.token.clone()).await {
            Err(error) if error.class() == Class::Token => error,
            outcome => return outcome.map_err(CallError::WeChat),
        };
        let errcode = refused.errcode().unwrap_or(ErrCode::INVALID_CREDENTIAL);
        let replacement = self.report(app, used.version, errcode).await?;
        if replacement.version == used.version {
            return Err(CallError::WeChat(refused));
        }
        call(replacement.token.clone())
            .await
            .map_err(CallError::WeChat)
    }

    /// Says that WeChat refused a token, by the version that [`TokenClient::access_token`] returned with it, and returns
    /// the one that replaces it.
    ///
    /// # Errors
    /// [`Error`] with token-service's reason.
    pub async fn report(
        &self,
        app: &AppId,
        version: u64,
        errcode: ErrCode,
    ) -> Result<Arc<CachedToken>, Error> {
        let request = ReportInvalidAccessTokenRequest {
            app_id: app.to_string(),
            version,
            errcode: errcode.0,
        };
        let answer = self.call(request, |mut rpc, request| async move {
            rpc.report_invalid_access_token(request).await
        });
        self.cache.put(answer.await?.access_token)
    }

    /// The app's current ticket, from token-service's memory.
    ///
    /// # Errors
    /// [`Error`] with token-service's reason.
    pub async fn ticket(&self, app: &AppId, kind: TicketType) -> Result<IssuedTicket, Error> {
        let kind = match kind {
            TicketType::Jsapi => pb::TicketType::Jsapi,
            TicketType::WxCard => pb::TicketType::WxCard,
        };
        let request = GetTicketRequest {
            app_id: app.to_string(),
            r#type: kind.into(),
        };
        let answer = self.call(request, |mut rpc, request| async move {
            rpc.get_ticket(request).await
        });
        let ticket = required(answer.await?.ticket, "ticket")?;
        Ok(IssuedTicket {
            version: ticket.version,
            expire_time: required(
                ticket.expire_time.and_then(|time| time.try_into().ok()),
                "ticket.expire_time",
            )?,
            ticket: Ticket::new(ticket.ticket),
        })
    }

    /// Signs a page's URL for `wx.config`.
    ///
    /// # Errors
    /// [`Error`] with token-service's reason, such as a host that the app does not list.
    pub async fn sign_jsapi(&self, app: &AppId, url: &str) -> Result<JsapiSignature, Error> {
        let request = SignJsapiRequest {
            app_id: app.to_string(),
            url: url.to_owned(),
        };
        let answer = self.call(request, |mut rpc, request| async move {
            rpc.sign_jsapi(request).await
        });
        required(answer.await?.jsapi_signature, "jsapi_signature")
    }

    /// Makes a call, and makes it again when its connection breaks: another endpoint may be up, and no RPC of
    /// token-service does more when it comes twice.
    async fn call<Q, A, F>(
        &self,
        request: Q,
        rpc: impl Fn(TokenServiceClient<PeerChannel>, Q) -> F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 1;
        loop {
            let status = match rpc(self.rpc.clone(), request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            // What token-service says itself has no source.
            if attempt == ATTEMPTS || status.source().is_none() {
                return Err(status.into());
            }
            attempt += 1;
            let jittered = PAUSE.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::time::sleep(jittered).await;
        }
    }
}
