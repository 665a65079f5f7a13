//! The least that an RPC can cost: an empty message in, an empty one out, on a tonic server with nothing around it. It is
//! named as ours are, on the same HTTP/2 settings, and called as tonic's generated clients call.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use service_kit::run;
use tokio_util::task::TaskTracker;
use tonic::{
    GrpcMethod, Request, Response, Status,
    body::Body,
    server::{NamedService, UnaryService},
    transport::{Channel, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::Service;

const SERVICE: &str = "wxhub.bench.v1.EmptyService";
const METHOD: &str = "Call";
const PATH: &str = "/wxhub.bench.v1.EmptyService/Call";

#[derive(Debug, Clone)]
struct Empty;

impl NamedService for Empty {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Empty {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(Answer, request).await)
        })
    }
}

struct Answer;

impl UnaryService<()> for Answer {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

/// Starts the server; it runs as long as the program.
pub(crate) async fn serve() -> anyhow::Result<SocketAddr> {
    let listener = test_support::listener().await;
    let addr = listener.local_addr()?;
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    TaskTracker::new().spawn(
        run::transport()
            .add_service(Empty)
            .serve_with_incoming(connections),
    );
    Ok(addr)
}

/// One call.
pub(crate) async fn call(channel: Channel) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static(PATH);
    let mut request = Request::new(());
    let method = GrpcMethod::new(SERVICE, METHOD);
    request.extensions_mut().insert(method);
    client.unary(request, path, codec).await.map(drop)
}
