//! token-client against a token-service of this file's own: what it asks, how often, and what it makes of the answers.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests; expiry is on the wall clock"
)]

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use proto::token::v1::{
    AccessToken, GetAccessTokenRequest, GetAccessTokenResponse, GetTicketRequest,
    GetTicketResponse, ListCredentialsRequest, ListCredentialsResponse, RefreshAccessTokenRequest,
    RefreshAccessTokenResponse, ReportInvalidAccessTokenRequest, ReportInvalidAccessTokenResponse,
    SignJsapiRequest, SignJsapiResponse, WatchAccessTokensRequest, WatchAccessTokensResponse,
    token_service_server::{TokenService, TokenServiceServer},
};
use service_kit::client::Peer;
use test_support::{eventually, free_port};
use token_client::{CallError, TokenClient};
use tokio::{net::TcpListener, runtime::Runtime, sync::broadcast};
use tokio_stream::{
    Stream, StreamExt as _, wrappers::BroadcastStream, wrappers::TcpListenerStream,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status, transport::Endpoint};
use wechat::{ApiError, AppId, ErrCode};

const APP: &str = "wx0000000000000001";
const PATIENCE: Duration = Duration::from_secs(20);

/// A token-service that counts what it is asked.
#[derive(Clone)]
struct Stub(Arc<Inner>);

struct Inner {
    version: AtomicU64,
    gets: AtomicU64,
    reports: Mutex<Vec<(u64, i64)>>,
    /// A report makes the next version.
    replaces: bool,
    rotations: broadcast::Sender<u64>,
}

impl Stub {
    fn new(replaces: bool) -> Self {
        Self(Arc::new(Inner {
            version: AtomicU64::new(1),
            gets: AtomicU64::new(0),
            reports: Mutex::default(),
            replaces,
            rotations: broadcast::Sender::new(16),
        }))
    }

    fn token(version: u64) -> AccessToken {
        AccessToken {
            app_id: APP.to_owned(),
            token: format!("token {version}"),
            version,
            use_until: Some((SystemTime::now() + Duration::from_secs(600)).into()),
            ..AccessToken::default()
        }
    }

    fn current(&self) -> AccessToken {
        Self::token(self.0.version.load(Ordering::SeqCst))
    }

    fn rotate(&self) {
        let version = self.0.version.fetch_add(1, Ordering::SeqCst) + 1;
        let _ = self.0.rotations.send(version);
    }

    fn gets(&self) -> u64 {
        self.0.gets.load(Ordering::SeqCst)
    }

    fn reports(&self) -> Vec<(u64, i64)> {
        self.0.reports.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TokenService for Stub {
    async fn get_access_token(
        &self,
        _: Request<GetAccessTokenRequest>,
    ) -> Result<Response<GetAccessTokenResponse>, Status> {
        self.0.gets.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(GetAccessTokenResponse {
            access_token: Some(self.current()),
        }))
    }

    async fn report_invalid_access_token(
        &self,
        request: Request<ReportInvalidAccessTokenRequest>,
    ) -> Result<Response<ReportInvalidAccessTokenResponse>, Status> {
        let request = request.into_inner();
        let report = (request.version, request.errcode);
        self.0.reports.lock().unwrap().push(report);
        if self.0.replaces {
            self.rotate();
        }
        Ok(Response::new(ReportInvalidAccessTokenResponse {
            access_token: Some(self.current()),
        }))
    }

    type WatchAccessTokensStream =
        Pin<Box<dyn Stream<Item = Result<WatchAccessTokensResponse, Status>> + Send>>;

    async fn watch_access_tokens(
        &self,
        _: Request<WatchAccessTokensRequest>,
    ) -> Result<Response<Self::WatchAccessTokensStream>, Status> {
        let rotations = BroadcastStream::new(self.0.rotations.subscribe());
        let versions = tokio_stream::once(self.current().version)
            .chain(rotations.filter_map(|version| version.ok()));
        Ok(Response::new(Box::pin(versions.map(|version| {
            Ok(WatchAccessTokensResponse {
                access_token: Some(Self::token(version)),
            })
        }))))
    }

    async fn get_ticket(
        &self,
        _: Request<GetTicketRequest>,
    ) -> Result<Response<GetTicketResponse>, Status> {
        Ok(Response::new(GetTicketResponse { ticket: None }))
    }

    async fn sign_jsapi(
        &self,
        _: Request<SignJsapiRequest>,
    ) -> Result<Response<SignJsapiResponse>, Status> {
        Err(service_kit::status::invalid_field("url", "is not signed"))
    }

    async fn refresh_access_token(
        &self,
        _: Request<RefreshAccessTokenRequest>,
    ) -> Result<Response<RefreshAccessTokenResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_credentials(
        &self,
        _: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

/// The stub behind a port, on threads of its own: they end with it, and every connection breaks, as at a crash.
struct Served {
    addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(stub: Stub, port: u16) -> Served {
    // A port that was just given up may need a moment.
    let listener = eventually("the port is free", PATIENCE, async || {
        std::net::TcpListener::bind(("127.0.0.1", port))
    })
    .await;
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let runtime = Runtime::new().unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let (_reporter, health) = tonic_health::server::health_reporter();
        tonic::transport::Server::builder()
            .add_service(health)
            .add_service(TokenServiceServer::new(stub))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    Served {
        addr,
        runtime: Some(runtime),
    }
}

fn client(addr: SocketAddr) -> TokenClient {
    client_of(&[addr])
}

fn client_of(addrs: &[SocketAddr]) -> TokenClient {
    let endpoint = |addr| Endpoint::try_from(format!("http://{addr}")).unwrap();
    let endpoints = addrs.iter().map(endpoint).collect();
    TokenClient::new(&Peer::new(endpoints, "key".into()))
}

fn app() -> AppId {
    APP.parse().unwrap()
}

fn refused(errcode: ErrCode) -> wechat::Error {
    wechat::Error::Api(ApiError {
        endpoint: "/cgi-bin/message/custom/send",
        errcode,
        errmsg: "refused".to_owned(),
        rid: None,
    })
}

#[tokio::test]
async fn a_token_is_fetched_once_and_then_read_from_memory() {
    let stub = Stub::new(true);
    let served = serve(stub.clone(), 0).await;
    let client = client(served.addr);
    assert!(client.cached(&app()).is_none());
    for _ in 0..3 {
        let token = client.access_token(&app()).await.unwrap();
        assert_eq!((token.token.expose(), token.version), ("token 1", 1));
    }
    assert_eq!(stub.gets(), 1);
    drop(served);
    assert!(client.access_token(&app()).await.is_ok());
}

#[tokio::test]
async fn concurrent_misses_are_one_rpc() {
    let stub = Stub::new(true);
    let served = serve(stub.clone(), 0).await;
    let client = client(served.addr);
    let (tracker, app) = (TaskTracker::new(), app());
    for _ in 0..1_000 {
        let (client, app) = (client.clone(), app.clone());
        tracker.spawn(async move {
            let token = client.access_token(&app).await.unwrap();
            assert_eq!(token.version, 1);
        });
    }
    tracker.close();
    tracker.wait().await;
    assert_eq!(stub.gets(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_one_is_killed_and_no_call_fails() {
    let stub = Stub::new(true);
    let (first, second) = (serve(stub.clone(), 0).await, serve(stub.clone(), 0).await);
    let client = client_of(&[first.addr, second.addr]);
    let (app, stop, calls) = (app(), CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, app) = (client.clone(), app.clone());
            let (stop, calls) = (stop.clone(), Arc::clone(&calls));
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    // A report asks token-service each time.
                    client
                        .report(&app, 1, ErrCode::INVALID_CREDENTIAL)
                        .await
                        .unwrap();
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let many_more = async || {
        let enough = calls.load(Ordering::SeqCst) + 200;
        eventually("calls are answered", PATIENCE, async || {
            calls.load(Ordering::SeqCst) >= enough
        })
        .await;
    };
    many_more().await;
    drop(first);
    many_more().await;
    stop.cancel();
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn r07_a_refused_token_is_reported_and_the_call_repeated_once() {
    for errcode in [40001, 40014, 42001] {
        let stub = Stub::new(true);
        let served = serve(stub.clone(), 0).await;
        let client = client(served.addr);
        let called = client
            .with_token(&app(), |token| async move {
                match token.expose() {
                    "token 1" => Err(refused(ErrCode(errcode))),
                    other => Ok(other.to_owned()),
                }
            })
            .await;
        assert_eq!(called.unwrap(), "token 2");
        assert_eq!(stub.reports(), [(1, errcode)]);
        assert_eq!(stub.gets(), 1);
    }
}

#[tokio::test]
async fn r07_the_same_refusal_of_the_new_token_is_the_callers_answer() {
    // Whether the report brought a new token or the same one again.
    for (replaces, expected) in [(true, 2), (false, 1)] {
        let stub = Stub::new(replaces);
        let served = serve(stub.clone(), 0).await;
        let calls = AtomicU64::new(0);
        let called = client(served.addr)
            .with_token(&app(), |_| async {
                calls.fetch_add(1, Ordering::SeqCst);
                Err::<(), _>(refused(ErrCode::INVALID_CREDENTIAL))
            })
            .await;
        let CallError::WeChat(error) = called.unwrap_err() else {
            unreachable!("WeChat refused")
        };
        assert_eq!(error.errcode(), Some(ErrCode::INVALID_CREDENTIAL));
        assert_eq!(calls.load(Ordering::SeqCst), expected);
        assert_eq!(stub.reports().len(), 1);
    }
}

#[tokio::test]
async fn other_refusals_are_not_the_tokens_fault() {
    let stub = Stub::new(true);
    let served = serve(stub.clone(), 0).await;
    let called = client(served.addr)
        .with_token(&app(), |_| async {
            Err::<(), _>(refused(ErrCode::DAILY_QUOTA))
        })
        .await;
    assert!(matches!(called, Err(CallError::WeChat(_))));
    assert!(stub.reports().is_empty());
}

#[tokio::test]
async fn the_watch_brings_rotations_and_survives_a_restart() {
    let port = free_port();
    let stub = Stub::new(true);
    let served = serve(stub.clone(), port).await;
    let client = client(served.addr);
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    tracker.spawn(client.clone().watch(stop.clone()));
    let reaches = async |version: u64| {
        eventually("the watch brings it", PATIENCE, async || {
            client
                .cached(&app())
                .is_some_and(|token| token.version == version)
        })
        .await;
    };
    reaches(1).await;
    stub.rotate();
    reaches(2).await;
    drop(served);
    stub.rotate();
    let _served = serve(stub.clone(), port).await;
    reaches(3).await;
    assert_eq!(stub.gets(), 0);
    stop.cancel();
    tracker.close();
    tokio::time::timeout(PATIENCE, tracker.wait())
        .await
        .unwrap();
}

#[tokio::test]
async fn failures_are_typed() {
    let served = serve(Stub::new(true), 0).await;
    let client = client(served.addr);
    let error = client.sign_jsapi(&app(), "x").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.reason().as_deref(), Some("INVALID_ARGUMENT"));
    let error = client.ticket(&app(), wechat::TicketType::Jsapi).await;
    assert_eq!(error.unwrap_err().code(), Code::Internal);
    drop(served);
    eventually("nobody answers", PATIENCE, async || {
        let error = client.sign_jsapi(&app(), "x").await.err();
        error.is_some_and(|error| error.code() == Code::Unavailable)
    })
    .await;
}
