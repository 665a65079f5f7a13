//! Start, readiness, drain, and what a failing part does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use service_kit::{
    Catalog, CatalogHandle,
    grpc::Routes,
    ops::Readiness,
    run::{Error, Listeners, Server, Workers},
    settings::Listen,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

pub(crate) struct Running {
    pub(crate) addrs: Listen,
    pub(crate) readiness: Readiness,
    pub(crate) shutdown: CancellationToken,
    pub(crate) ended: JoinHandle<Result<(), Error>>,
}

pub(crate) async fn start(http: Router, workers: Workers) -> Running {
    start_at(SocketAddr::from(([127, 0, 0, 1], 0)), http, workers).await
}

/// With gRPC at a given address.
pub(crate) async fn start_at(grpc: SocketAddr, http: Router, workers: Workers) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = Listeners::bind(Listen {
        grpc,
        http: any,
        ops: any,
    })
    .await
    .unwrap();
    let addrs = listeners.addrs().unwrap();
    let readiness = Readiness::default();
    let server = Server {
        name: "probe-service",
        listeners,
        routes: Routes::default(),
        grpc_names: &["wxhub.probe.v1.ProbeService"],
        descriptors: tonic_health::pb::FILE_DESCRIPTOR_SET,
        rules: &[],
        catalog: CatalogHandle::fixed(Catalog::default()),
        tls: None,
        http,
        readiness: readiness.clone(),
        workers,
    };
    let shutdown = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
    let ended = tokio::spawn(server.run(shutdown.clone()));
    Running {
        addrs,
        readiness,
        shutdown,
        ended,
    }
}

async fn fetch(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn health(addr: SocketAddr) -> ServingStatus {
    let channel = Endpoint::try_from(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let request = HealthCheckRequest {
        service: "wxhub.probe.v1.ProbeService".to_owned(),
    };
    HealthClient::new(channel)
        .check(request)
        .await
        .unwrap()
        .into_inner()
        .status()
}

/// Asks again until the answer is the one expected; the test's own timeout is the deadline.
pub(crate) async fn until<T: PartialEq, F: Future<Output = T>>(expected: T, ask: impl Fn() -> F) {
    let wait = async {
        while ask().await != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_service_is_ready_when_it_says_so_and_gone_after_shutdown() {
    let running = start(Router::new(), Workers::default()).await;
    let addrs = running.addrs;
    assert!(fetch(addrs.ops, "/livez").await.starts_with("HTTP/1.0 200"));
    assert!(
        fetch(addrs.ops, "/readyz")
            .await
            .starts_with("HTTP/1.0 503")
    );
    // From the first answer on.
    assert_eq!(health(addrs.grpc).await, ServingStatus::NotServing);

    running.readiness.set_ready();
    assert!(
        fetch(addrs.ops, "/readyz")
            .await
            .starts_with("HTTP/1.0 200")
    );
    until(ServingStatus::Serving, || health(addrs.grpc)).await;
    assert!(
        fetch(addrs.http, "/nothing")
            .await
            .contains("\"code\":\"NOT_FOUND\"")
    );
    until(true, || async {
        fetch(addrs.ops, "/metrics")
            .await
            .contains("wxhub_http_requests_total")
    })
    .await;

    running.shutdown.cancel();
    running.ended.await.unwrap().unwrap();
    assert!(TcpStream::connect(addrs.grpc).await.is_err());
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_service_ends() {
    let (begun, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (in_begun, in_finish) = (Arc::clone(&begun), Arc::clone(&finish));
    let handler = move || async move {
        in_begun.notify_one();
        in_finish.notified().await;
        "done"
    };
    let running = start(
        Router::new().route("/slow", get(handler)),
        Workers::default(),
    )
    .await;
    let addr = running.addrs.http;
    let request = fetch(addr, "/slow");
    let drain = async {
        begun.notified().await;
        running.shutdown.cancel();
        until(true, || async { TcpStream::connect(addr).await.is_err() }).await;
        assert!(
            fetch(running.addrs.ops, "/readyz")
                .await
                .contains("draining")
        );
        finish.notify_one();
    };
    let (answer, ()) = tokio::join!(request, drain);
    assert!(answer.ends_with("done"), "{answer}");
    running.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_that_fails_ends_the_service_and_is_named() {
    let mut workers = Workers::default();
    workers.add("steady worker", |stop| async move {
        stop.cancelled().await;
        Ok::<(), std::io::Error>(())
    });
    workers.add("failing worker", |_| async {
        Err(std::io::Error::other("out of luck"))
    });
    let running = start(Router::new(), workers).await;
    let error = running.ended.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "failing worker of probe-service failed");
}

#[tokio::test]
async fn an_rpc_that_does_not_exist_is_unimplemented() {
    let running = start(Router::new(), Workers::default()).await;
    let channel = Endpoint::try_from(format!("http://{}", running.addrs.grpc))
        .unwrap()
        .connect_lazy();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/wxhub.probe.v1.ProbeService/Probe");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let answer = client
        .unary(
            tonic::Request::new(HealthCheckRequest::default()),
            path,
            codec,
        )
        .await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    running.shutdown.cancel();
    running.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_half_sent_head_and_silent_connections_do_not_delay_shutdown() {
    let running = start(Router::new(), Workers::default()).await;
    let mut half = TcpStream::connect(running.addrs.http).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let silent = TcpStream::connect(running.addrs.http).await.unwrap();
    let watch = watch_health(running.addrs.grpc).await;
    running.readiness.set_ready();
    running.shutdown.cancel();
    // Well before what is left would be cut off.
    let ended = tokio::time::timeout(Duration::from_secs(12), running.ended);
    ended.await.unwrap().unwrap().unwrap();
    drop((half, silent, watch));
}

#[tokio::test]
async fn a_stream_that_never_ends_is_cut_off_at_the_deadline() {
    let silent_grpc = start(Router::new(), Workers::default()).await;
    // It never even shakes hands, so that the server waits for it.
    let mut silent = TcpStream::connect(silent_grpc.addrs.grpc).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0").await.unwrap();
    silent_grpc.shutdown.cancel();
    silent_grpc.ended.await.unwrap().unwrap();
    let mut rest = Vec::new();
    // The server is gone and so is the connection, whether by a reset or an end.
    let _ = silent.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn workers_outlive_requests_in_flight() {
    let (begun, order) = (
        Arc::new(Notify::new()),
        Arc::new(std::sync::Mutex::new(Vec::new())),
    );
    let (in_begun, in_order, work_order) =
        (Arc::clone(&begun), Arc::clone(&order), Arc::clone(&order));
    let handler = move || async move {
        in_begun.notify_one();
        tokio::time::sleep(Duration::from_millis(200)).await;
        in_order.lock().unwrap().push("request");
        "done"
    };
    let mut workers = Workers::default();
    workers.add("worker", |stop| async move {
        stop.cancelled().await;
        work_order.lock().unwrap().push("worker");
        Ok::<(), std::io::Error>(())
    });
    let running = start(Router::new().route("/slow", get(handler)), workers).await;
    let request = fetch(running.addrs.http, "/slow");
    let shut_down = async {
        begun.notified().await;
        running.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(request, shut_down);
    assert!(answer.ends_with("done"), "{answer}");
    running.ended.await.unwrap().unwrap();
    assert_eq!(*order.lock().unwrap(), ["request", "worker"]);
}

/// A stream of health that its client keeps open.
async fn watch_health(addr: SocketAddr) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let channel = Endpoint::try_from(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let request = HealthCheckRequest::default();
    HealthClient::new(channel)
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}
