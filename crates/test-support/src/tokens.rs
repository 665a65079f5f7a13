//! A stand-in for token-service: services meet over gRPC only, in tests too.

use std::{
    collections::HashMap,
    future::pending,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use proto::token::v1::{
    self as wire,
    token_service_server::{TokenService, TokenServiceServer},
};
use tokio::task::JoinSet;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};
use wechat::{AccessToken, AppId, AppSecret, Client, ClientOptions, TicketType};

use crate::listener;

/// Fetches an app's token from the sandbox at first use, and another when it is reported; signs pages of
/// [`Tokens::PAGE_HOST`]. It knows the two apps of the development world. Clones share it.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wechat: Client,
    held: Mutex<HashMap<String, wire::AccessToken>>,
    reports: AtomicU64,
    away: AtomicBool,
    silent: AtomicBool,
}

impl Tokens {
    /// The host whose pages it signs.
    pub const PAGE_HOST: &str = "h5.example.com";

    /// Tokens of the WeChat at this URL.
    pub fn new(wechat_url: &str) -> Self {
        let url = wechat_url.parse().expect("a URL");
        Self(Arc::new(Inner {
            wechat: Client::new(ClientOptions::new(url)).expect("a client of WeChat"),
            held: Mutex::default(),
            reports: AtomicU64::new(0),
            away: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        }))
    }

    /// Serves them on a free port, as long as `tasks` run.
    pub async fn serve(&self, tasks: &mut JoinSet<()>) -> SocketAddr {
        let listener = listener().await;
        let at = listener.local_addr().expect("its address");
        let server = Server::builder().add_service(TokenServiceServer::new(self.clone()));
        let server = server.serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn(async move { server.await.expect("the stand-in serves") });
        at
    }

    /// How often a dead token was reported.
    pub fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::SeqCst)
    }

    /// Makes every call UNAVAILABLE, or none.
    pub fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Lets no call end.
    pub fn silence(&self) {
        self.0.silent.store(true, Ordering::SeqCst);
    }

    async fn current(&self, app_id: &str, dead: Option<u64>) -> Result<wire::AccessToken, Status> {
        if self.0.silent.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        if self.0.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let held = || self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let current = held().get(app_id).cloned();
        if let Some(current) = current.as_ref().filter(|held| Some(held.version) != dead) {
            return Ok(current.clone());
        }
        let secret = match app_id {
            "wx0000000000000001" => "dev-secret-shop",
            "wx0000000000000002" => "dev-secret-news",
            _ => return Err(Status::not_found("no such app")),
        };
        let app = AppId::try_from(app_id).expect("an app_id");
        let secret = AppSecret::new(secret);
        let issued = self.0.wechat.access_token(&app, &secret);
        let issued = issued.await.expect("the sandbox issues a token");
        let until = Some((now() + issued.expires_in).into());
        let fresh = wire::AccessToken {
            app_id: app_id.to_owned(),
            token: issued.value.expose().to_owned(),
            expire_time: until,
            refresh_time: until,
            use_until: until,
            version: current.map_or(1, |held| held.version + 1),
        };
        held().insert(app_id.to_owned(), fresh.clone());
        Ok(fresh)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it stands for another process, whose clock no test moves"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn refuse(problem: &str) -> Status {
    let mut details = ErrorDetails::with_error_info("INVALID_ARGUMENT", "wxhub", []);
    details.add_bad_request_violation("url", problem);
    let message = format!("url {problem}");
    Status::with_error_details(tonic::Code::InvalidArgument, message, details)
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

#[tonic::async_trait]
impl TokenService for Tokens {
    type WatchAccessTokensStream =
        Pin<Box<dyn Stream<Item = Result<wire::WatchAccessTokensResponse, Status>> + Send>>;

    async fn get_access_token(
        &self,
        request: Request<wire::GetAccessTokenRequest>,
    ) -> Answer<wire::GetAccessTokenResponse> {
        let token = self.current(&request.into_inner().app_id, None).await?;
        Ok(Response::new(wire::GetAccessTokenResponse {
            access_token: Some(token),
        }))
    }

    async fn report_invalid_access_token(
        &self,
        request: Request<wire::ReportInvalidAccessTokenRequest>,
    ) -> Answer<wire::ReportInvalidAccessTokenResponse> {
        self.0.reports.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let token = self.current(&request.app_id, Some(request.version)).await?;
        Ok(Response::new(wire::ReportInvalidAccessTokenResponse {
            access_token: Some(token),
        }))
    }

    async fn watch_access_tokens(
        &self,
        _: Request<wire::WatchAccessTokensRequest>,
    ) -> Answer<Self::WatchAccessTokensStream> {
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn sign_jsapi(
        &self,
        request: Request<wire::SignJsapiRequest>,
    ) -> Answer<wire::SignJsapiResponse> {
        let wire::SignJsapiRequest { app_id, url } = request.into_inner();
        let token = self.current(&app_id, None).await?;
        let page = url::Url::parse(&url).map_err(|_| refuse("is not a page's URL"))?;
        if page.host_str() != Some(Self::PAGE_HOST) {
            let problem = format!("is on host {:?}, which is not listed", page.host_str());
            return Err(refuse(&problem));
        }
        let token = AccessToken::new(token.token);
        let ticket = self.0.wechat.ticket(&token, TicketType::Jsapi);
        let ticket = ticket.await.expect("the sandbox issues a ticket");
        let (nonce, timestamp) = ("Wm3WZYTPz0wzccnW", 1_414_587_457);
        let signature = wechat::jsapi::sign(&ticket.value, nonce, timestamp, &url);
        let expires = now() + ticket.expires_in - Duration::from_secs(5);
        Ok(Response::new(wire::SignJsapiResponse {
            jsapi_signature: Some(wire::JsapiSignature {
                app_id,
                nonce_str: nonce.to_owned(),
                timestamp,
                signature,
                url,
                expire_time: Some(expires.into()),
            }),
        }))
    }

    async fn get_ticket(
        &self,
        _: Request<wire::GetTicketRequest>,
    ) -> Answer<wire::GetTicketResponse> {
        absent()
    }

    async fn refresh_access_token(
        &self,
        _: Request<wire::RefreshAccessTokenRequest>,
    ) -> Answer<wire::RefreshAccessTokenResponse> {
        absent()
    }

    async fn list_credentials(
        &self,
        _: Request<wire::ListCredentialsRequest>,
    ) -> Answer<wire::ListCredentialsResponse> {
        absent()
    }
}
