//! Which service answers an RPC.
//!
//! A port has one service that is called all the time, beside health and reflection. tonic's router is axum's: made for
//! paths with parameters, it copies and boxes each request and answer once more.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::{body::Body, server::NamedService};
use tower::Service;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The RPCs of a port: those of its service, found by its name alone, and the others.
#[derive(Clone, Default)]
pub struct Routes {
    own: Option<Own>,
    others: tonic::service::Routes,
}

#[derive(Clone)]
struct Own {
    name: &'static str,
    call: Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>,
}

impl Routes {
    /// The RPCs of a service as tonic generates it.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let own = Own {
            name: S::NAME,
            // Such a service is always ready.
            call: Arc::new(move |request| service.clone().call(request)),
        };
        Self {
            own: Some(own),
            others: tonic::service::Routes::default(),
        }
    }

    /// Adds a service that is called now and then.
    pub(crate) fn beside<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.others = self.others.add_service(service).prepare();
        self
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes")
            .field("own", &self.own.as_ref().map(|own| own.name))
            .field("others", &self.others)
            .finish()
    }
}

impl Own {
    fn answers(&self, path: &str) -> bool {
        let rest = path.strip_prefix('/');
        let rest = rest.and_then(|path| path.strip_prefix(self.name));
        rest.is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Answer, <tonic::service::Routes as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.others, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &self.own {
            Some(own) if own.answers(request.uri().path()) => Either::Left((own.call)(request)),
            _ => Either::Right(self.others.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tonic::{Code, Status};

    use super::*;

    #[derive(Clone)]
    struct Echo;

    impl NamedService for Echo {
        const NAME: &'static str = "test.v1.EchoService";
    }

    impl Service<Request<Body>> for Echo {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Answer {
            Box::pin(ready(Ok(Response::default())))
        }
    }

    #[tokio::test]
    async fn an_rpc_goes_to_the_service_of_its_name() {
        let (health, health_service) = tonic_health::server::health_reporter();
        drop(health);
        let mut routes = Routes::new(Echo).beside(health_service);
        let mut code = async |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = routes.call(request).await.unwrap();
            Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
        };
        assert_eq!(code("/test.v1.EchoService/Echo").await, Code::Ok);
        for unknown in ["/test.v1.EchoServices/Echo", "/test.v1.EchoService", "/"] {
            assert_eq!(code(unknown).await, Code::Unimplemented, "{unknown}");
        }
        let health = code("/grpc.health.v1.Health/Check").await;
        assert_ne!(health, Code::Unimplemented);
    }
}
