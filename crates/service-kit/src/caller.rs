//! Who calls: every RPC but health and reflection needs a caller's key, and the scope that the RPC demands.

use std::{
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Span;

use crate::{
    catalog::{App, AppList, Catalog, CatalogHandle},
    status::{self, reason},
};

/// What a caller is allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Fetch, watch and report tokens and tickets; sign pages.
    TokenRead,
    /// Log in, verify and revoke a session.
    AuthVerify,
    /// Read users and accounts.
    AuthRead,
    /// Change accounts and bindings; revoke all of a user or an app.
    AuthWrite,
    /// Send messages.
    PushSend,
    /// Read messages.
    PushRead,
    /// Follow what users send.
    InboxRead,
    /// Change the callback's rules.
    RulesWrite,
    /// Refresh tokens by hand; list credentials.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 9] = [
        Self::TokenRead,
        Self::AuthVerify,
        Self::AuthRead,
        Self::AuthWrite,
        Self::PushSend,
        Self::PushRead,
        Self::InboxRead,
        Self::RulesWrite,
        Self::Admin,
    ];

    /// The scope as `wxhub.toml` writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenRead => "token.read",
            Self::AuthVerify => "auth.verify",
            Self::AuthRead => "auth.read",
            Self::AuthWrite => "auth.write",
            Self::PushSend => "push.send",
            Self::PushRead => "push.read",
            Self::InboxRead => "inbox.read",
            Self::RulesWrite => "rules.write",
            Self::Admin => "admin",
        }
    }
}

/// No scope has this name.
#[derive(Debug, thiserror::Error)]
#[error("no such scope")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or(UnknownScope)
    }
}

/// An internal team, or one of the services.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its name in `wxhub.toml`.
    pub name: String,
    /// The apps it may name.
    pub apps: AppList,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

impl Caller {
    /// The app that a request names by app_id or name.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is none, or when it is outside this caller's list: the two are not told apart.
    pub fn app(&self, catalog: &Catalog, id_or_name: &str) -> Result<Arc<App>, Status> {
        if id_or_name.is_empty() {
            return Err(status::invalid_field(
                "app_id",
                "must name an app by its app_id or name",
            ));
        }
        catalog
            .app(id_or_name)
            .filter(|app| self.apps.contains(&app.app_id))
            .cloned()
            .ok_or_else(|| {
                let shown: String = id_or_name.chars().take(64).collect();
                status::error(
                    Code::NotFound,
                    reason::APP_NOT_FOUND,
                    format!("no app {shown:?} is open to caller {:?}", self.name),
                )
                .build()
            })
    }

    /// The caller of a request that came through [`CallerLayer`].
    ///
    /// # Errors
    /// `INTERNAL` when it did not: a server was assembled without the layer.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Status> {
        let caller = request.extensions().get::<Arc<Self>>().cloned();
        caller.ok_or_else(|| Status::internal("the caller was not checked"))
    }
}

/// Which scope each RPC demands: full method path (`/wxhub.token.v1.TokenService/GetAccessToken`) and scope.
pub type Rules = &'static [(&'static str, Scope)];

/// Admits only callers with a known key and the scope of the RPC. A path without a rule is `UNIMPLEMENTED`, so that no
/// RPC is ever open by oversight.
#[derive(Debug, Clone)]
pub struct CallerLayer {
    catalog: CatalogHandle,
    rules: Rules,
}

impl CallerLayer {
    /// Checks against the callers that are in force at each request.
    pub fn new(catalog: CatalogHandle, rules: Rules) -> Self {
        Self { catalog, rules }
    }

    fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        if OPEN.iter().any(|prefix| path.starts_with(prefix)) {
            return Ok(());
        }
        let Some((_, scope)) = self.rules.iter().find(|(rule, _)| *rule == path) else {
            let message = "no such RPC here: is it another service's port?";
            return Err(status::error(Code::Unimplemented, reason::RPC_UNKNOWN, message).build());
        };
        let caller = authenticate(&self.catalog.current(), request.headers())?;
        if !caller.scopes.contains(scope) {
            let message = format!(
                "caller {:?} lacks the scope {}",
                caller.name,
                scope.as_str()
            );
            return Err(
                status::error(Code::PermissionDenied, reason::SCOPE_MISSING, message)
                    .metadata("scope", scope.as_str())
                    .build(),
            );
        }
        Span::current().record("wxhub.caller", &caller.name);
        request.extensions_mut().insert(caller);
        Ok(())
    }
}

/// Health and reflection need no key.
const OPEN: [&str; 2] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
];

/// The caller whose key the `authorization: Bearer <key>` header shows.
fn authenticate(catalog: &Catalog, headers: &http::HeaderMap) -> Result<Arc<Caller>, Status> {
    let refused = |message: &str| {
        status::error(Code::Unauthenticated, reason::CALLER_KEY_INVALID, message).build()
    };
    let header = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| refused("send your caller key as `authorization: Bearer <key>`"))?;
    let key = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let key = key.ok_or_else(|| refused("the authorization header must be `Bearer <key>`"))?;
    let caller = catalog.caller(key).cloned();
    caller.ok_or_else(|| refused("no caller has this key: see [[callers]] in wxhub.toml"))
}

impl<S> Layer<S> for CallerLayer {
    type Service = CallerService<S>;

    fn layer(&self, inner: S) -> CallerService<S> {
        CallerService {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`CallerLayer`].
#[derive(Debug, Clone)]
pub struct CallerService<S> {
    inner: S,
    layer: CallerLayer,
}

impl<S, B> Service<Request<B>> for CallerService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.layer.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::catalog::Needs;

    const RULES: Rules = &[(
        "/wxhub.token.v1.TokenService/GetAccessToken",
        Scope::TokenRead,
    )];

    fn layer() -> CallerLayer {
        let text = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret = "s"

[[callers]]
name = "crm"
key_sha256 = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
apps = []
scopes = ["token.read"]

[[callers]]
name = "reader"
key_sha256 = "580843d03d2216ff1a275d0991bad66e4d1af871171d929e9de604b7959f9bca"
apps = ["*"]
scopes = ["push.read"]
"#;
        let catalog = Catalog::parse(text, Needs::default(), |_| None).unwrap();
        CallerLayer::new(CatalogHandle::fixed(catalog), RULES)
    }

    fn admit(path: &str, authorization: Option<&str>) -> Result<Request<()>, Status> {
        let mut request = Request::builder().uri(path);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let mut request = request.body(()).unwrap();
        layer().admit(&mut request).map(|()| request)
    }

    #[test]
    fn a_known_key_with_the_scope_is_admitted() {
        let request = admit(RULES[0].0, Some("Bearer key")).unwrap();
        assert_eq!(
            request.extensions().get::<Arc<Caller>>().unwrap().name,
            "crm"
        );
    }

    #[test]
    fn a_missing_malformed_or_unknown_key_is_unauthenticated() {
        for authorization in [None, Some("key"), Some("Basic key"), Some("Bearer other")] {
            let status = admit(RULES[0].0, authorization).unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason::CALLER_KEY_INVALID, "wxhub")
            );
            assert!(!status.message().contains("other"));
        }
    }

    #[test]
    fn a_caller_without_the_scope_is_told_which_one_it_lacks() {
        let status = admit(RULES[0].0, Some("Bearer other-key")).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("token.read"));
    }

    #[test]
    fn health_and_reflection_are_open_and_unknown_rpcs_are_not() {
        assert!(admit("/grpc.health.v1.Health/Check", None).is_ok());
        assert!(
            admit(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                None
            )
            .is_ok()
        );
        let status =
            admit("/wxhub.token.v1.TokenService/Forgotten", Some("Bearer key")).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }

    #[test]
    fn an_app_outside_the_list_is_as_unknown_as_one_that_does_not_exist() {
        let catalog = layer().catalog.current();
        let crm = catalog.caller("key").unwrap();
        for app in ["shop", "wx0000000000000001", "nothing"] {
            assert_eq!(crm.app(&catalog, app).unwrap_err().code(), Code::NotFound);
        }
        let reader = catalog.caller("other-key").unwrap();
        assert_eq!(reader.app(&catalog, "shop").unwrap().name, "shop");
    }
}
