//! A sandbox on a free port, and a team's callback server to go with it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, Request},
    http::{HeaderName, Method, StatusCode, header::CONTENT_TYPE},
    routing::any,
};
use sandbox::{Config, Sandbox, State};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub(crate) const SHOP: &str = "wx0000000000000001";
pub(crate) const SHOP_SECRET: &str = "dev-secret-shop";
pub(crate) const NEWS: &str = "wx0000000000000002";
pub(crate) const NEWS_SECRET: &str = "dev-secret-news";

/// A running sandbox; it stops when this is dropped.
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    pub(crate) state: State,
    _server: JoinSet<()>,
}

impl World {
    /// The development world, whose callbacks nobody answers.
    pub(crate) async fn start() -> Self {
        let mut config = Config::dev("http://127.0.0.1:1");
        for account in &mut config.accounts {
            account.callback = None;
        }
        Self::with(config).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::build(config, listener).await.unwrap();
        let (url, state) = (format!("http://{}", sandbox.address()), sandbox.state());
        let mut server = JoinSet::new();
        server.spawn(async move { sandbox.run(CancellationToken::new()).await.unwrap() });
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .no_proxy()
            .build();
        Self {
            url,
            http: http.unwrap(),
            state,
            _server: server,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self
            .http
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.post_text(path, body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: impl Into<reqwest::Body>) -> Value {
        let response = self
            .http
            .post(format!("{}{path}", self.url))
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    /// A request to the control side: the status, and the answer or null.
    pub(crate) async fn control(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let request = self
            .http
            .request(method, format!("{}/sandbox/{path}", self.url));
        let response = request.body(body.to_string()).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    pub(crate) async fn try_token(&self, app_id: &str, secret: &str) -> Value {
        let query = format!("grant_type=client_credential&appid={app_id}&secret={secret}");
        self.get(&format!("/cgi-bin/token?{query}")).await
    }

    /// A fresh classic token.
    pub(crate) async fn token(&self, app_id: &str) -> String {
        let secret = if app_id == SHOP {
            SHOP_SECRET
        } else {
            NEWS_SECRET
        };
        text(&self.try_token(app_id, secret).await["access_token"])
    }

    pub(crate) async fn stable_token(&self, app_id: &str, secret: &str, force: bool) -> Value {
        let body = json!({"grant_type": "client_credential", "appid": app_id, "secret": secret, "force_refresh": force});
        self.post("/cgi-bin/stable_token", &body).await
    }

    /// What WeChat says about a token: 0 when it works.
    pub(crate) async fn verdict(&self, token: &str) -> i64 {
        errcode(
            &self
                .get(&format!("/cgi-bin/get_api_domain_ip?access_token={token}"))
                .await,
        )
    }

    pub(crate) async fn exchange(&self, app_id: &str, secret: &str, js_code: &str) -> Value {
        let query = format!(
            "appid={app_id}&secret={secret}&js_code={js_code}&grant_type=authorization_code"
        );
        self.get(&format!("/sns/jscode2session?{query}")).await
    }

    pub(crate) fn default_user(&self, app_id: &str) -> String {
        let accounts = self.state.accounts();
        accounts
            .into_iter()
            .find(|account| account.app_id == app_id)
            .unwrap()
            .default_open_id
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.state.advance_clock(Duration::from_secs(seconds));
    }
}

pub(crate) fn errcode(answer: &Value) -> i64 {
    answer
        .get("errcode")
        .map_or(0, |code| code.as_i64().unwrap())
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A request that the callback server got.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) method: Method,
    pub(crate) query: HashMap<String, String>,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

/// What the callback server answers: status, content type, body.
pub(crate) type Answered = (u16, &'static str, String);

/// A team's callback server, which answers by a rule and remembers what it got.
pub(crate) struct Callback {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Got>>>,
    _server: JoinSet<()>,
}

impl Callback {
    /// `rule` sees the request and how many came before it.
    pub(crate) async fn start(
        rule: impl Fn(&Got, usize) -> Answered + Clone + Send + Sync + 'static,
    ) -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::clone(&got);
        let handler = move |Query(query): Query<HashMap<String, String>>, request: Request| {
            let (seen, rule) = (Arc::clone(&seen), rule.clone());
            async move {
                let content_type = request
                    .headers()
                    .get(CONTENT_TYPE)
                    .map(|value| value.to_str().unwrap());
                let mut got = Got {
                    method: request.method().clone(),
                    query,
                    content_type: content_type.unwrap_or_default().to_owned(),
                    body: String::new(),
                };
                let body = axum::body::to_bytes(request.into_body(), 65_536)
                    .await
                    .unwrap();
                got.body = String::from_utf8(body.to_vec()).unwrap();
                let before = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(got.clone());
                    seen.len() - 1
                };
                let (status, content_type, body) = rule(&got, before);
                let headers: [(HeaderName, &str); 1] = [(CONTENT_TYPE, content_type)];
                (StatusCode::from_u16(status).unwrap(), headers, body)
            }
        };
        let router = Router::new().fallback(any(handler));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            got,
            _server: server,
        }
    }

    /// A server that answers `success`.
    pub(crate) async fn obliging() -> Self {
        Self::start(|_, _| (200, "text/plain", "success".to_owned())).await
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits until `count` requests have come.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Got> {
        let waiting = async {
            while self.got().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap();
        self.got()
    }
}
