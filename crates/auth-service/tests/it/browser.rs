//! A browser as far as it matters here: it keeps cookies, follows no redirect by itself, and says where its page is from.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use reqwest::{
    Client, Method, RequestBuilder, Response, Url,
    header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE},
    redirect,
};

use crate::world::PATIENCE;

pub(crate) struct Browser {
    http: Client,
    at: SocketAddr,
    cookies: Mutex<BTreeMap<String, String>>,
}

impl Browser {
    pub(crate) fn new(at: SocketAddr) -> Self {
        service_kit::telemetry::install_tls_provider();
        let http = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .unwrap();
        Self {
            http,
            at,
            cookies: Mutex::default(),
        }
    }

    /// The replica that it talks to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at
    }

    /// The cookies that it has by now.
    pub(crate) fn cookies(&self) -> BTreeMap<String, String> {
        self.jar().clone()
    }

    /// Puts a cookie in place, as somebody with access to the browser might.
    pub(crate) fn plant(&self, name: &str, value: &str) {
        self.jar().insert(name.to_owned(), value.to_owned());
    }

    /// Opens a path, or a whole URL as if it led here.
    pub(crate) async fn open(&self, path: &str) -> Response {
        self.send(self.request(Method::GET, path)).await
    }

    /// What a script of a page of `origin` sends with `credentials: "include"`.
    pub(crate) async fn fetch(&self, method: Method, path: &str, origin: &str) -> Response {
        self.send(self.request(method, path).header(ORIGIN, origin))
            .await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let path = match Url::parse(path) {
            Ok(url) => {
                let query = url.query().map(|query| format!("?{query}"));
                format!("{}{}", url.path(), query.unwrap_or_default())
            }
            Err(_) => path.to_owned(),
        };
        self.http
            .request(method, format!("http://{}{path}", self.at))
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Response {
        let cookies: Vec<_> = self
            .cookies()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let request = if cookies.is_empty() {
            request
        } else {
            request.header(COOKIE, cookies.join("; "))
        };
        let answer = request.send().await.unwrap();
        let mut jar = self.jar();
        for (name, value, rest) in set_cookies(&answer) {
            if rest.contains("Max-Age=0") {
                jar.remove(&name);
            } else {
                jar.insert(name, value);
            }
        }
        drop(jar);
        answer
    }

    fn jar(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.cookies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name, value and attributes of each cookie that an answer sets.
pub(crate) fn set_cookies(answer: &Response) -> Vec<(String, String, String)> {
    let lines = answer.headers().get_all(SET_COOKIE).iter();
    lines
        .map(|line| {
            let (pair, rest) = line.to_str().unwrap().split_once("; ").unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.to_owned(), rest.to_owned())
        })
        .collect()
}

/// Where a redirect leads.
pub(crate) fn location(answer: &Response) -> Url {
    assert_eq!(answer.status(), 302, "{answer:?}");
    let location = answer.headers()[LOCATION].to_str().unwrap();
    location.parse().unwrap()
}
