//! What stands in for token-service: services meet over gRPC only, in tests too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use proto::token::v1::{
    self as wire,
    token_service_server::{TokenService, TokenServiceServer},
};
use service_kit::status;
use test_support::listener;
use tokio::task::JoinSet;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use wechat::{AccessToken, AppId, AppSecret, Client, ClientOptions, TicketType};

/// The host whose pages it signs.
pub(crate) const PAGE_HOST: &str = "h5.example.com";

/// Fetches an app's token at first use, and another when it is reported.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<Inner>);

struct Inner {
    wechat: Client,
    held: Mutex<HashMap<String, wire::AccessToken>>,
    reports: AtomicU64,
    away: AtomicBool,
}

impl Tokens {
    /// Serves them on a free port, as long as `tasks` run.
    pub(crate) async fn serve(wechat: SocketAddr, tasks: &mut JoinSet<()>) -> (Self, SocketAddr) {
        let options = ClientOptions::new(format!("http://{wechat}").parse().unwrap());
        let tokens = Self(Arc::new(Inner {
            wechat: Client::new(options).unwrap(),
            held: Mutex::default(),
            reports: AtomicU64::new(0),
            away: AtomicBool::new(false),
        }));
        let listener = listener().await;
        let at = listener.local_addr().unwrap();
        let server = Server::builder().add_service(TokenServiceServer::new(tokens.clone()));
        let server = server.serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn(async move { server.await.unwrap() });
        (tokens, at)
    }

    /// How often a dead token was reported.
    pub(crate) fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::SeqCst)
    }

    /// Makes every call UNAVAILABLE, or none.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    async fn current(&self, app_id: &str, dead: Option<u64>) -> Result<wire::AccessToken, Status> {
        if self.0.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let held = self.0.held.lock().unwrap().get(app_id).cloned();
        if let Some(held) = held.as_ref().filter(|held| Some(held.version) != dead) {
            return Ok(held.clone());
        }
        let secret = match app_id {
            "wx0000000000000001" => "dev-secret-shop",
            "wx0000000000000002" => "dev-secret-news",
            _ => return Err(Status::not_found("no such app")),
        };
        let app = AppId::try_from(app_id).unwrap();
        let secret = AppSecret::new(secret);
        let issued = self.0.wechat.access_token(&app, &secret).await.unwrap();
        let until = Some((now() + issued.expires_in).into());
        let fresh = wire::AccessToken {
            app_id: app_id.to_owned(),
            token: issued.value.expose().to_owned(),
            expire_time: until,
            refresh_time: until,
            use_until: until,
            version: held.map_or(1, |held| held.version + 1),
        };
        let mut held = self.0.held.lock().unwrap();
        held.insert(app_id.to_owned(), fresh.clone());
        Ok(fresh)
    }
}

fn now() -> SystemTime {
    service_kit::Clock::System.now()
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

#[tonic::async_trait]
impl TokenService for Tokens {
    type WatchAccessTokensStream = Pin<
        Box<
            dyn futures_util::Stream<Item = Result<wire::WatchAccessTokensResponse, Status>> + Send,
        >,
    >;

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
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }

    async fn sign_jsapi(
        &self,
        request: Request<wire::SignJsapiRequest>,
    ) -> Answer<wire::SignJsapiResponse> {
        let wire::SignJsapiRequest { app_id, url } = request.into_inner();
        let token = self.current(&app_id, None).await?;
        let page: reqwest::Url = url
            .parse()
            .map_err(|_| status::invalid_field("url", "is not a page's URL"))?;
        if page.host_str() != Some(PAGE_HOST) {
            let problem = format!("is on host {:?}, which is not listed", page.host_str());
            return Err(status::invalid_field("url", problem));
        }
        let token = AccessToken::new(token.token);
        let ticket = self
            .0
            .wechat
            .ticket(&token, TicketType::Jsapi)
            .await
            .unwrap();
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
