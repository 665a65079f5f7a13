//! 消息推送: calling the account's server, and judging what it answers as WeChat does.

pub(crate) mod push;
mod reply;

use std::time::Duration;

use reqwest::{Client, header::CONTENT_TYPE};
use secrecy::ExposeSecret;
use serde::Serialize;
use wechat::{AppId, crypto};

pub use self::reply::{PassiveReply, Reply};
pub(crate) use self::{push::Push, reply::Answer};
use crate::{
    clock::Clock,
    config::{AccountConfig, CallbackConfig, Format, Kind, Mode},
};

/// How long WeChat waits for an answer, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that connecting may take of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Deliveries of one push in all.
const ATTEMPTS: u32 = 3;
/// What is read of an answer.
const ANSWER_LIMIT: usize = 64 * 1024;

/// How a push went.
#[derive(Debug, Clone, Serialize)]
pub struct Delivery {
    /// The user who sent it.
    pub open_id: String,
    /// The push's `MsgId`, the same in every attempt; events have none.
    pub msg_id: Option<String>,
    /// The HTTP status of the last attempt, if one was answered.
    pub status: Option<u16>,
    /// How often it was delivered, three times at most.
    pub attempts: u32,
    /// The last answer as it came.
    pub raw_body: String,
    /// What the answer means, where it means something.
    pub reply: Option<PassiveReply>,
    /// Why WeChat does not accept the answer.
    pub problem: Option<String>,
    /// What the user then reads in place of a reply.
    pub notice: Option<&'static str>,
}

/// How a URL verification went.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The answer as it came.
    pub body: String,
    /// Whether the answer was the bare `echostr`.
    pub bare: bool,
    /// Why WeChat does not accept the URL.
    pub problem: Option<String>,
}

/// An account's server URL, with what is needed to talk to it.
#[derive(Clone)]
pub(crate) struct Target {
    app_id: AppId,
    kind: Kind,
    original_id: String,
    callback: CallbackConfig,
}

impl Target {
    /// `None` for an account without a callback.
    pub(crate) fn of(account: &AccountConfig) -> Option<Self> {
        Some(Self {
            app_id: AppId::try_from(account.app_id.as_str()).ok()?,
            kind: account.kind,
            original_id: account.original_id.clone(),
            callback: account.callback.clone()?,
        })
    }

    pub(crate) const fn format(&self) -> Format {
        self.callback.format
    }

    fn crypt(&self) -> Option<crypto::MessageCrypt> {
        let key = self
            .callback
            .encoding_aes_key
            .as_ref()?
            .expose_secret()
            .parse()
            .ok()?;
        Some(crypto::MessageCrypt::new(&key, &self.app_id))
    }

    fn notice(&self) -> &'static str {
        match self.kind {
            Kind::OfficialAccount => "该公众号提供的服务出现故障，请稍后再试",
            Kind::MiniProgram => "该小程序客服暂时无法提供服务，请稍后再试",
        }
    }
}

/// The client with which pushes go out: no proxy, no redirects, WeChat's time limits.
pub(crate) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

/// Delivers a push until it is answered with a 2xx, three times at most.
pub(crate) async fn deliver(
    http: &Client,
    clock: &Clock,
    target: &Target,
    push: &Push,
) -> Delivery {
    let sealed = (target.callback.mode != Mode::Plain)
        .then(|| {
            target.crypt().map(|crypt| {
                crypt.encrypt(&push.render(target.callback.format, &target.original_id))
            })
        })
        .flatten();
    let body = push.body(
        target.callback.format,
        target.callback.mode,
        &target.original_id,
        sealed.as_deref(),
    );
    let mut attempts = 0;
    let outcome = loop {
        attempts += 1;
        let outcome = attempt(http, clock, target, push, sealed.as_deref(), &body).await;
        if attempts == ATTEMPTS || outcome.as_ref().is_ok_and(Answer::is_success) {
            break outcome;
        }
    };
    let judged = match &outcome {
        Ok(answer) => reply::judge(answer, target, push),
        Err(problem) => Err(problem.clone()),
    };
    let (reply, problem) = match judged {
        Ok(reply) => (reply, None),
        Err(problem) => (None, Some(problem)),
    };
    let answer = outcome.ok();
    Delivery {
        open_id: push.from.clone(),
        msg_id: push.msg_id.map(|id| id.to_string()),
        status: answer.as_ref().map(|answer| answer.status),
        attempts,
        raw_body: answer.map(|answer| answer.body).unwrap_or_default(),
        reply,
        notice: problem.is_some().then(|| target.notice()),
        problem,
    }
}

async fn attempt(
    http: &Client,
    clock: &Clock,
    target: &Target,
    push: &Push,
    sealed: Option<&str>,
    body: &str,
) -> Result<Answer, String> {
    let content_type = match target.callback.format {
        Format::Xml => "text/xml",
        Format::Json => "application/json",
    };
    let mut query = signed_query(target, clock);
    query.push(("openid", push.from.clone()));
    if let Some(sealed) = sealed {
        let part = |name| {
            query
                .iter()
                .find(|(key, _)| *key == name)
                .map_or("", |(_, value)| value.as_str())
        };
        let token = target.callback.token.expose_secret();
        let signature = crypto::signature(&[token, part("timestamp"), part("nonce"), sealed]);
        query.push(("encrypt_type", "aes".to_owned()));
        query.push(("msg_signature", signature));
    }
    let request = http
        .post(url(target, &query)?)
        .header(CONTENT_TYPE, content_type)
        .body(body.to_owned());
    exchange(request).await
}

/// Saves the URL in the console: WeChat fetches it with a random `echostr`, which must come back bare.
pub(crate) async fn verify(http: &Client, clock: &Clock, target: &Target) -> Verification {
    let echostr = rand::random::<u64>().to_string();
    let mut query = signed_query(target, clock);
    query.push(("echostr", echostr.clone()));
    let outcome = match url(target, &query) {
        Ok(url) => exchange(http.get(url)).await,
        Err(problem) => Err(problem),
    };
    match outcome {
        Err(problem) => Verification {
            status: None,
            body: String::new(),
            bare: false,
            problem: Some(problem),
        },
        Ok(answer) => {
            let bare = answer.body == echostr;
            let problem = if !answer.is_success() {
                Some(format!("answered HTTP {}", answer.status))
            } else if bare {
                None
            } else if answer.body.contains(&echostr) {
                Some("echostr came back with something around it".to_owned())
            } else {
                Some("echostr did not come back".to_owned())
            };
            Verification {
                status: Some(answer.status),
                body: answer.body,
                bare,
                problem,
            }
        }
    }
}

type Query = Vec<(&'static str, String)>;

fn signed_query(target: &Target, clock: &Clock) -> Query {
    let timestamp = clock.now().as_secs().to_string();
    let nonce = rand::random::<u32>().to_string();
    let signature = crypto::signature(&[target.callback.token.expose_secret(), &timestamp, &nonce]);
    vec![
        ("signature", signature),
        ("timestamp", timestamp),
        ("nonce", nonce),
    ]
}

fn url(target: &Target, query: &Query) -> Result<reqwest::Url, String> {
    reqwest::Url::parse_with_params(&target.callback.url, query)
        .map_err(|error| format!("no URL: {error}"))
}

async fn exchange(request: reqwest::RequestBuilder) -> Result<Answer, String> {
    let mut response = request.send().await.map_err(|error| failure(&error))?;
    let status = response.status().as_u16();
    let content_type = response
        .headers()
        .get(CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LIMIT {
            return Err(format!("answered more than {ANSWER_LIMIT} bytes"));
        }
    }
    Ok(Answer {
        status,
        content_type,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn failure(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        format!("no answer within {} seconds", TIMEOUT.as_secs())
    } else if error.is_connect() {
        "could not connect".to_owned()
    } else {
        "the connection broke before the answer was complete".to_owned()
    }
}
