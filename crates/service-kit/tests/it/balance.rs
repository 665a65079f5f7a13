//! Calls to a service of several endpoints, some of which are down, drain, or come back.

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use service_kit::{
    client::{Peer, PeerChannel},
    run::Workers,
    status::reason,
};
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::lifecycle::{Running, start, start_at, until};

fn channel(addrs: &[SocketAddr]) -> PeerChannel {
    let endpoints = addrs
        .iter()
        .map(|addr| Endpoint::try_from(format!("http://{addr}")).unwrap());
    Peer::new(endpoints.collect(), "key".to_owned().into()).channel()
}

async fn ready() -> Running {
    let running = start(Router::new(), Workers::default()).await;
    running.readiness.set_ready();
    running
}

async fn call(channel: &PeerChannel) -> Result<(), Status> {
    HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .map(drop)
}

/// An address where nobody listens.
async fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn a_dead_endpoint_fails_no_call() {
    let live = ready().await;
    let channel = channel(&[dead().await, live.addrs.grpc, dead().await]);
    for _ in 0..100 {
        call(&channel).await.unwrap();
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_ready_or_drains_gets_no_call() {
    let starting = start(Router::new(), Workers::default()).await;
    let live = ready().await;
    let channel = channel(&[starting.addrs.grpc, live.addrs.grpc]);
    for _ in 0..50 {
        call(&channel).await.unwrap();
    }
    // From now on only `starting` is left, and it says so itself.
    live.shutdown.cancel();
    live.ended.await.unwrap().unwrap();
    starting.readiness.set_ready();
    until(true, || async { call(&channel).await.is_ok() }).await;
}

#[tokio::test]
async fn with_every_endpoint_down_a_call_fails_at_once_until_one_is_back() {
    let addr = dead().await;
    let channel = channel(&[addr]);
    let status = call(&channel).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        reason::PEER_UNAVAILABLE
    );
    assert!(
        !status.message().contains(&addr.port().to_string()),
        "{}",
        status.message()
    );

    let back = start_at(addr, Router::new(), Workers::default()).await;
    back.readiness.set_ready();
    until(true, || async { call(&channel).await.is_ok() }).await;
}

#[tokio::test]
async fn a_service_that_never_answers_costs_a_call_its_deadline_and_no_more() {
    // It accepts and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = channel(&[listener.local_addr().unwrap()]);
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_millis(100));
    let status = HealthClient::new(channel).check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
