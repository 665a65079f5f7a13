//! What a browser shows of itself: its session, by header or cookie, and the site whose page asks.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request},
};
use serde::Deserialize;
use service_kit::{App, Catalog, http};
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::{Position, Url};
use wechat::AppId;

use crate::{Auth, error::Error, oauth::ReturnTo, session::Token};

/// The cookies of sessions begin so; the app's name follows.
const COOKIE: &str = "wxhub_session_";
/// A browser may remember for this long what a page of another host may ask.
const PREFLIGHT: Duration = Duration::from_secs(600);
/// Says where a request comes from, in browsers that leave out `Origin`.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// A session as it was shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) token: Token,
    /// Whose cookie it was; none when it was a header.
    pub(super) cookie: Option<Arc<App>>,
}

impl Shown {
    /// Whether it may be a session with this app: a cookie's is with the cookie's own.
    pub(super) fn may_be_with(&self, app_id: &AppId, auth: &Auth) -> bool {
        match &self.cookie {
            Some(app) => app.app_id == *app_id,
            None => auth.catalog.current().app(app_id.as_str()).is_some(),
        }
    }
}

/// Which session is meant, where a browser has several.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    app: Option<String>,
}

/// The query of a request, as far as it is read.
pub(super) type WhichQuery = Result<Query<Which>, QueryRejection>;

/// What the cookie of a session with the app is called.
fn cookie_of(app: &App) -> String {
    format!("{COOKIE}{}", app.name)
}

/// A `Set-Cookie` with a session of the app. It is kept as long as a session may live.
pub(super) fn keep(auth: &Auth, app: &App, token: &Token) -> HeaderValue {
    auth.cookies.set(
        &cookie_of(app),
        token.expose(),
        Some(auth.sessions.longest()),
    )
}

/// A `Set-Cookie` that ends it.
pub(super) fn forget(auth: &Auth, app: &App) -> HeaderValue {
    auth.cookies.clear(&cookie_of(app))
}

/// The session with the app that the browser's cookie shows.
pub(super) fn session_with(auth: &Auth, headers: &HeaderMap, app: &App) -> Option<Token> {
    let token = auth.cookies.get(headers, &cookie_of(app))?;
    Token::parse(token).ok()
}

/// The session of the request: that of its `Authorization` header, or of a cookie: the one that `?app=` names, or the
/// only one.
///
/// A cookie comes by itself with whatever page asks, so that it counts only for pages of this service's own host and
/// of those that its app returns to.
///
/// # Errors
/// [`Error::SessionMissing`] when there is none, [`Error::SessionInvalid`] when it cannot be one,
/// [`Error::OriginForbidden`] when the page is of another site; when there are several.
pub(super) fn shown(auth: &Auth, headers: &HeaderMap, which: WhichQuery) -> Result<Shown, Error> {
    let Query(Which { app }) = which.map_err(|_| Error::field("app", "comes twice"))?;
    if headers.contains_key(header::AUTHORIZATION) {
        let token = http::bearer(headers).ok_or(Error::SessionInvalid)?;
        // Whatever is wrong with it, it is no session.
        let token = Token::parse(token).map_err(|_| Error::SessionInvalid)?;
        let cookie = None;
        return Ok(Shown { token, cookie });
    }
    let site = Site::of(auth, headers)?;
    let catalog = auth.catalog.current();
    let app = match app.as_deref().filter(|app| !app.is_empty()) {
        Some(app) => catalog.app(app).cloned().ok_or(Error::AppUnknown)?,
        None => the_only(&signed_in_to(auth, headers, &catalog))?,
    };
    let token = session_with(auth, headers, &app).ok_or(Error::SessionMissing)?;
    site.may_use(&app, auth)?;
    let cookie = Some(app);
    Ok(Shown { token, cookie })
}

/// The apps whose session cookies the browser sent.
fn signed_in_to(auth: &Auth, headers: &HeaderMap, catalog: &Catalog) -> Vec<Arc<App>> {
    let mut apps: Vec<Arc<App>> = Vec::new();
    for (name, _) in auth.cookies.starting(headers, COOKIE) {
        // By its name alone: an app_id names no cookie.
        let app = catalog.app(name).filter(|app| app.name == name);
        if let Some(app) = app
            && !apps.iter().any(|known| known.name == name)
        {
            apps.push(Arc::clone(app));
        }
    }
    apps
}

fn the_only(apps: &[Arc<App>]) -> Result<Arc<App>, Error> {
    match apps {
        [] => Err(Error::SessionMissing),
        [only] => Ok(Arc::clone(only)),
        several => {
            let mut names: Vec<_> = several.iter().map(|app| app.name.as_str()).collect();
            names.sort_unstable();
            let problem = format!(
                "must name one of {}: the browser is signed in to each",
                names.join(", ")
            );
            Err(Error::field("app", problem))
        }
    }
}

/// Refuses what a page of another site makes a browser send with its cookies.
///
/// # Errors
/// [`Error::OriginForbidden`].
pub(super) fn same_site(auth: &Auth, headers: &HeaderMap) -> Result<(), Error> {
    match Site::of(auth, headers)? {
        Site::Own => Ok(()),
        Site::Other(_) => Err(Error::OriginForbidden),
    }
}

/// The site whose page asks.
enum Site<'h> {
    /// This service's own, or no page at all.
    Own,
    /// The page's origin.
    Other(&'h str),
}

impl<'h> Site<'h> {
    fn of(auth: &Auth, headers: &'h HeaderMap) -> Result<Self, Error> {
        let Some(origin) = headers.get(header::ORIGIN) else {
            // Only browsers say so, and all that leave out `Origin` where it matters do.
            let cross = headers
                .get(SEC_FETCH_SITE)
                .is_some_and(|site| site == "cross-site");
            return if cross {
                Err(Error::OriginForbidden)
            } else {
                Ok(Self::Own)
            };
        };
        let origin = origin.to_str().map_err(|_| Error::OriginForbidden)?;
        let is_own = match &auth.public_url {
            Some(url) => origin == url.origin().ascii_serialization(),
            None => is_host(origin, headers),
        };
        Ok(if is_own {
            Self::Own
        } else {
            Self::Other(origin)
        })
    }

    fn may_use(&self, app: &App, auth: &Auth) -> Result<(), Error> {
        match self {
            Self::Other(origin) if !returns_to(auth, app, origin) => Err(Error::OriginForbidden),
            Self::Own | Self::Other(_) => Ok(()),
        }
    }
}

/// Whether the page is of the host that the request is for, where the service does not know its own URL.
fn is_host(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let origin = Url::parse(origin).ok();
    let authority = origin
        .as_ref()
        .map(|url| &url[Position::BeforeHost..Position::AfterPort]);
    host.is_some() && authority == host
}

/// Whether the app returns to pages of this origin.
fn returns_to(auth: &Auth, app: &App, origin: &str) -> bool {
    ReturnTo::parse(origin, &app.oauth_return_hosts, auth.is_plain_http())
        .is_ok_and(|page| page.origin() == origin)
}

/// `OPTIONS` of a route that [`cors`] lets pages ask: a preflight is answered by that layer, which needs a handler here.
pub(super) async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Lets pages of the hosts that apps return to read answers, with the browser's cookies.
pub(super) fn cors(auth: &Auth) -> CorsLayer {
    let auth = auth.clone();
    let allowed = move |origin: &HeaderValue, _: &request::Parts| {
        let catalog = auth.catalog.current();
        origin.to_str().is_ok_and(|origin| {
            catalog
                .apps()
                .iter()
                .any(|app| returns_to(&auth, app, origin))
        })
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .max_age(PREFLIGHT)
}
