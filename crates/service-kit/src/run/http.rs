//! The HTTP/1.1 server: axum's own has no limit on how long a client may take to send a request's head.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// A client that has not sent a whole request head by then is dropped; so is an idle one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// On shutdown, what is neither a request being handled nor ends by itself ends after this long.
const STREAM_GRACE: Duration = Duration::from_secs(1);
/// The largest request head.
const HEAD_LIMIT: usize = 32 * 1024;
/// A process takes no more connections at once; more wait to be accepted.
const CONNECTIONS: usize = 10_000;
/// After a failed accept (out of file descriptors, mostly) it takes a breath.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled, then answers what is in flight. Dropping the future cuts every connection.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, router.clone(), stop.clone()));
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Small answers must not wait for each other's acknowledgement; without it they merely do.
    let _ = stream.set_nodelay(true);
    let in_flight = Arc::new(());
    let service = {
        let in_flight = Arc::clone(&in_flight);
        service_fn(move |request: Request<Incoming>| {
            let (router, in_flight) = (router.clone(), Arc::clone(&in_flight));
            async move {
                let response = router.oneshot(request.map(axum::body::Body::new)).await;
                drop(in_flight);
                response
            }
        })
    };
    // This function and the service hold it; so does each request that is not answered yet.
    let idle = || Arc::strong_count(&in_flight) <= 2;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a client's connection ends is the client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // What is left is a request that is being handled, a half-sent head, or a stream without an end.
    while timeout(STREAM_GRACE, connection.as_mut()).await.is_err() && !idle() {}
}

async fn pause_after(error: &io::Error) {
    let of_the_client = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    );
    if !of_the_client {
        tracing::warn!(%error, "no connection can be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
