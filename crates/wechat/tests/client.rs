//! The client against a local server that gives recorded answers, and against connections that
//! misbehave.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    error::Error as _,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use url::Url;
use wechat::{
    AccessToken, AppId, AppSecret, BuildError, Class, Client, ClientOptions, CustomerContent,
    CustomerMessage, ErrCode, Error, FormTemplateMessage, Issued, MiniProgramLink, OAuthGrant,
    OAuthRequest, OAuthScope, OAuthUser, OpenId, RefreshToken, SessionKey, SubscribeMessage,
    TemplateMessage, Ticket, TicketType, Typing, TypingCommand, UserToken, oauth_authorize_url,
};

const TOKEN: &str = "50_tok-en_S3CRET";
const SECRET: &str = "s3cret&+ /secret";
const CODE: &str = "c0de+c0de";

/// What the server saw.
#[derive(Debug)]
struct Seen {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: String,
}

/// What the server says to everything.
#[derive(Clone)]
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
}

impl From<&str> for Answer {
    fn from(body: &str) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json; encoding=utf-8",
            body: body.into(),
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (
            self.status,
            [
                (header::CONTENT_TYPE, self.content_type),
                (header::LOCATION, "/elsewhere"),
            ],
            self.body,
        )
            .into_response()
    }
}

/// A WeChat of one answer; stops when dropped.
struct WeChat {
    address: SocketAddr,
    client: Client,
    seen: Arc<Mutex<Vec<Seen>>>,
    _server: JoinSet<()>,
}

impl WeChat {
    async fn answering(answer: impl Into<Answer>) -> Self {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let router = Router::new()
            .fallback(record)
            .with_state((Arc::clone(&seen), answer.into()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            client: client(address),
            seen,
            _server: server,
        }
    }

    /// The one request that was made.
    fn seen(&self) -> Seen {
        let mut seen = self.seen.lock().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.pop().unwrap()
    }
}

async fn record(
    State((seen, answer)): State<(Arc<Mutex<Vec<Seen>>>, Answer)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    let body = String::from_utf8(body.into()).unwrap();
    seen.lock().unwrap().push(Seen {
        method,
        path: uri.path().to_owned(),
        query,
        headers,
        body,
    });
    answer
}

/// A server that treats its connections by hand; stops when dropped.
async fn raw<F: Future<Output = io::Result<()>> + Send>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (Client, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // The client may hang up first.
            let _ = serve(stream).await;
        }
    });
    (client, server)
}

async fn read_head(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(())
}

fn client(address: SocketAddr) -> Client {
    client_for(&format!("http://{address}"), Duration::from_secs(20))
}

fn client_for(url: &str, timeout: Duration) -> Client {
    client_with(ClientOptions {
        timeout,
        ..ClientOptions::new(Url::parse(url).unwrap())
    })
}

fn client_with(options: ClientOptions) -> Client {
    // Whoever comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(options).unwrap()
}

fn app() -> AppId {
    "wx0000000000000001".parse().unwrap()
}

fn user() -> OpenId {
    "oUser".parse().unwrap()
}

fn secret() -> AppSecret {
    AppSecret::new(SECRET)
}

fn token() -> AccessToken {
    AccessToken::new(TOKEN)
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn customer_text() -> CustomerMessage {
    CustomerMessage {
        to_user: user(),
        kf_account: None,
        content: CustomerContent::Text {
            content: "你好 <b>&".to_owned(),
        },
    }
}

/// Every text under which an error may be logged.
fn shown(error: &Error) -> String {
    let mut shown = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(error) = source {
        shown.push_str(&format!("\n{error} {error:?}"));
        source = error.source();
    }
    shown
}

fn assert_reveals_nothing(text: &str) {
    let escaped: String = url::form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    for revealing in [
        TOKEN,
        SECRET,
        CODE,
        &escaped,
        "s3cret",
        "S3CRET",
        "c0de",
        "access_token=",
        "secret=",
        "http://",
    ] {
        assert!(!text.contains(revealing), "{revealing} in {text}");
    }
}

#[tokio::test]
async fn a_classic_token_is_fetched_by_get() {
    let wechat = WeChat::answering(r#"{"access_token":"50_new","expires_in":7200}"#).await;
    let issued = wechat.client.access_token(&app(), &secret()).await.unwrap();
    assert_eq!(
        issued,
        Issued {
            value: AccessToken::new("50_new"),
            expires_in: Duration::from_secs(7200)
        }
    );

    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str(), seen.body.as_str()),
        (Method::GET, "/cgi-bin/token", "")
    );
    assert_eq!(
        seen.query,
        pairs(&[
            ("grant_type", "client_credential"),
            ("appid", "wx0000000000000001"),
            ("secret", SECRET)
        ])
    );
    assert_eq!(
        seen.headers[header::USER_AGENT],
        concat!("wxhub/", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn a_stable_token_is_fetched_by_post() {
    for force in [false, true] {
        let wechat = WeChat::answering(r#"{"access_token":"50_new","expires_in":345}"#).await;
        let issued = wechat
            .client
            .stable_access_token(&app(), &secret(), force)
            .await
            .unwrap();
        assert_eq!(
            issued,
            Issued {
                value: AccessToken::new("50_new"),
                expires_in: Duration::from_secs(345)
            }
        );

        let seen = wechat.seen();
        assert_eq!(
            (seen.method, seen.path.as_str()),
            (Method::POST, "/cgi-bin/stable_token")
        );
        assert_eq!(seen.query, []);
        assert_eq!(seen.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(
            seen.body,
            format!(
                r#"{{"grant_type":"client_credential","appid":"wx0000000000000001","secret":"{SECRET}","force_refresh":{force}}}"#
            )
        );
    }
}

#[tokio::test]
async fn tickets_of_both_types_are_fetched() {
    for (kind, name) in [
        (TicketType::Jsapi, "jsapi"),
        (TicketType::WxCard, "wx_card"),
    ] {
        let wechat =
            WeChat::answering(r#"{"errcode":0,"errmsg":"ok","ticket":"bxLd","expires_in":7200}"#)
                .await;
        let issued = wechat.client.ticket(&token(), kind).await.unwrap();
        assert_eq!(
            issued,
            Issued {
                value: Ticket::new("bxLd"),
                expires_in: Duration::from_secs(7200)
            }
        );

        let seen = wechat.seen();
        assert_eq!(
            (seen.method, seen.path.as_str()),
            (Method::GET, "/cgi-bin/ticket/getticket")
        );
        assert_eq!(
            seen.query,
            pairs(&[("access_token", TOKEN), ("type", name)])
        );
    }
}

#[tokio::test]
async fn a_code_becomes_a_session() {
    let wechat =
        WeChat::answering(r#"{"session_key":"tiihtNczf5v6AKRyjwEUhQ==","openid":"oUser"}"#).await;
    let session = wechat
        .client
        .code_to_session(&app(), &secret(), CODE)
        .await
        .unwrap();
    assert_eq!((session.open_id, session.union_id), (user(), None));
    assert_eq!(session.session_key.expose(), "tiihtNczf5v6AKRyjwEUhQ==");

    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::GET, "/sns/jscode2session")
    );
    assert_eq!(
        seen.query,
        pairs(&[
            ("appid", "wx0000000000000001"),
            ("secret", SECRET),
            ("js_code", CODE),
            ("grant_type", "authorization_code")
        ])
    );
}

#[tokio::test]
async fn a_session_may_name_a_union_id() {
    for (union_id, expected) in [
        ("\"ocMvos6NjeK\"", Some("ocMvos6NjeK")),
        ("\"\"", None),
        ("null", None),
    ] {
        let body =
            format!(r#"{{"errcode":0,"openid":"oUser","session_key":"k","unionid":{union_id}}}"#);
        let wechat = WeChat::answering(body.as_str()).await;
        let session = wechat
            .client
            .code_to_session(&app(), &secret(), CODE)
            .await
            .unwrap();
        assert_eq!(session.union_id.as_ref().map(|id| id.as_str()), expected);
    }
}

#[test]
fn the_authorize_page_has_wechats_order_and_fragment() {
    let redirect_uri = Url::parse("https://h5.example.com/oauth/news/callback?a=b&c=d e").unwrap();
    let app = app();
    let request = |scope, force_popup| OAuthRequest {
        app_id: &app,
        redirect_uri: &redirect_uri,
        scope,
        state: "a1B2",
        force_popup,
    };
    let encoded = "https%3A%2F%2Fh5.example.com%2Foauth%2Fnews%2Fcallback%3Fa%3Db%26c%3Dd%2520e";
    let open_url = Url::parse("https://open.weixin.qq.com").unwrap();
    assert_eq!(
        oauth_authorize_url(&open_url, &request(OAuthScope::Base, false)).as_str(),
        format!(
            "https://open.weixin.qq.com/connect/oauth2/authorize?appid=wx0000000000000001&redirect_uri={encoded}&response_type=code&scope=snsapi_base&state=a1B2#wechat_redirect"
        )
    );
    let open_url = Url::parse("http://127.0.0.1:8090/open/").unwrap();
    assert_eq!(
        oauth_authorize_url(&open_url, &request(OAuthScope::UserInfo, true)).as_str(),
        format!(
            "http://127.0.0.1:8090/open/connect/oauth2/authorize?appid=wx0000000000000001&redirect_uri={encoded}&response_type=code&scope=snsapi_userinfo&state=a1B2&forcePopup=true#wechat_redirect"
        )
    );
}

#[tokio::test]
async fn an_oauth_code_is_exchanged() {
    let wechat = WeChat::answering(
        r#"{"access_token":"u1","expires_in":7200,"refresh_token":"r1","openid":"oUser","scope":"snsapi_base,snsapi_userinfo,snsapi_new","unionid":"ocMvos6NjeK","is_snapshotuser":0}"#,
    )
    .await;
    let grant = wechat
        .client
        .oauth_access_token(&app(), &secret(), CODE)
        .await
        .unwrap();
    assert_eq!(
        grant,
        OAuthGrant {
            access_token: UserToken::new("u1"),
            expires_in: Duration::from_secs(7200),
            refresh_token: RefreshToken::new("r1"),
            open_id: user(),
            scopes: vec![OAuthScope::Base, OAuthScope::UserInfo],
            union_id: Some("ocMvos6NjeK".parse().unwrap()),
            is_snapshot_user: false,
        }
    );
    let shown = format!("{grant:?}");
    assert!(
        !shown.contains("\"u1") && !shown.contains("\"r1"),
        "{shown}"
    );

    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::GET, "/sns/oauth2/access_token")
    );
    assert_eq!(
        seen.query,
        pairs(&[
            ("appid", "wx0000000000000001"),
            ("secret", SECRET),
            ("code", CODE),
            ("grant_type", "authorization_code")
        ])
    );
}

#[tokio::test]
async fn a_snapshots_user_is_told() {
    for (flag, expected) in [
        (r#","is_snapshotuser":1"#, true),
        (r#","is_snapshotuser":"1""#, true),
        (r#","is_snapshotuser":0"#, false),
        (r#","is_snapshotuser":null"#, false),
        ("", false),
    ] {
        let body = format!(
            r#"{{"access_token":"u","expires_in":7200,"refresh_token":"r","openid":"oUser","scope":"snsapi_base"{flag}}}"#
        );
        let wechat = WeChat::answering(body.as_str()).await;
        let grant = wechat
            .client
            .oauth_access_token(&app(), &secret(), CODE)
            .await
            .unwrap();
        assert_eq!(
            (grant.is_snapshot_user, grant.union_id),
            (expected, None),
            "{flag}"
        );
    }
}

#[tokio::test]
async fn an_oauth_user_is_described() {
    let wechat = WeChat::answering(
        r#"{"openid":"oUser","nickname":"张三 😀","sex":"0","province":"","city":"","country":"","headimgurl":"https://thirdwx.qlogo.cn/x/132","privilege":[],"unionid":"ocMvos6NjeK"}"#,
    )
    .await;
    let described = wechat
        .client
        .oauth_user_info(&UserToken::new(TOKEN), &user())
        .await
        .unwrap();
    assert_eq!(
        described,
        OAuthUser {
            open_id: user(),
            nickname: "张三 😀".to_owned(),
            head_img_url: Some("https://thirdwx.qlogo.cn/x/132".to_owned()),
            union_id: Some("ocMvos6NjeK".parse().unwrap()),
        }
    );
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::GET, "/sns/userinfo")
    );
    assert_eq!(
        seen.query,
        pairs(&[
            ("access_token", TOKEN),
            ("openid", "oUser"),
            ("lang", "zh_CN")
        ])
    );

    let wechat = WeChat::answering(r#"{"openid":"oUser","nickname":"","headimgurl":""}"#).await;
    let described = wechat
        .client
        .oauth_user_info(&UserToken::new(TOKEN), &user())
        .await
        .unwrap();
    assert_eq!(
        (
            described.nickname.as_str(),
            described.head_img_url,
            described.union_id
        ),
        ("", None, None)
    );
}

/// Of the empty text, under the key `k`.
const SIGNATURE: &str = "8bb990c40a7d61cb97597a942125025be50ac8beb74436e3735b98893a7f6620";

#[tokio::test]
async fn a_session_key_is_checked() {
    for (answer, expected) in [
        (r#"{"errcode":0,"errmsg":"ok"}"#, true),
        (
            r#"{"errcode":87009,"errmsg":"invalid signature rid: 5f1e"}"#,
            false,
        ),
        (
            r#"{"errcode":87007,"errmsg":"session_key is not existd or expired"}"#,
            false,
        ),
    ] {
        let wechat = WeChat::answering(answer).await;
        let checked = wechat
            .client
            .check_session_key(&token(), &user(), &SessionKey::new("k"))
            .await
            .unwrap();
        assert_eq!(checked, expected, "{answer}");
        let seen = wechat.seen();
        assert_eq!(
            (seen.method, seen.path.as_str()),
            (Method::GET, "/wxa/checksession")
        );
        assert_eq!(
            seen.query,
            pairs(&[
                ("access_token", TOKEN),
                ("openid", "oUser"),
                ("signature", SIGNATURE),
                ("sig_method", "hmac_sha256")
            ])
        );
    }

    let wechat = WeChat::answering(r#"{"errcode":40003,"errmsg":"invalid openid"}"#).await;
    let error = wechat
        .client
        .check_session_key(&token(), &user(), &SessionKey::new("k"))
        .await
        .unwrap_err();
    assert_eq!(error.errcode(), Some(ErrCode::INVALID_OPEN_ID));
}

#[tokio::test]
async fn a_session_key_is_reset() {
    let wechat = WeChat::answering(
        r#"{"errcode":0,"errmsg":"ok","openid":"oUser","session_key":"tiihtNczf5v6AKRyjwEUhQ=="}"#,
    )
    .await;
    let key = wechat
        .client
        .reset_session_key(&token(), &user(), &SessionKey::new("k"))
        .await
        .unwrap();
    assert_eq!(key, SessionKey::new("tiihtNczf5v6AKRyjwEUhQ=="));
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::GET, "/wxa/resetusersessionkey")
    );
    assert_eq!(
        seen.query,
        pairs(&[
            ("access_token", TOKEN),
            ("openid", "oUser"),
            ("signature", SIGNATURE),
            ("sig_method", "hmac_sha256")
        ])
    );

    let wechat = WeChat::answering(r#"{"errcode":87009,"errmsg":"invalid signature"}"#).await;
    let error = wechat
        .client
        .reset_session_key(&token(), &user(), &SessionKey::new("k"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Grant);
}

#[tokio::test]
async fn a_phone_number_is_fetched() {
    for (country_code, open_id, body) in [
        ("\"86\"", None, r#"{"code":"c0de+c0de"}"#),
        (
            "86",
            Some(user()),
            r#"{"code":"c0de+c0de","openid":"oUser"}"#,
        ),
    ] {
        let answer = format!(
            r#"{{"errcode":0,"errmsg":"ok","phone_info":{{"phoneNumber":"13580006666","purePhoneNumber":"13580006666","countryCode":{country_code},"watermark":{{"timestamp":1637744274,"appid":"wx0000000000000001"}}}}}}"#
        );
        let wechat = WeChat::answering(answer.as_str()).await;
        let phone = wechat
            .client
            .phone_number(&token(), CODE, open_id.as_ref())
            .await
            .unwrap();
        assert_eq!(
            (
                phone.phone_number.as_str(),
                phone.pure_phone_number.as_str(),
                phone.country_code.as_str()
            ),
            ("13580006666", "13580006666", "86")
        );
        assert_eq!(format!("{phone:?}"), "PhoneNumber(redacted)");
        let seen = wechat.seen();
        assert_eq!(
            (seen.method, seen.path.as_str(), seen.body.as_str()),
            (Method::POST, "/wxa/business/getuserphonenumber", body)
        );
        assert_eq!(seen.query, pairs(&[("access_token", TOKEN)]));
    }
}

#[tokio::test]
async fn every_kind_of_message_goes_to_its_interface() {
    let data = || [("thing1".to_owned(), "张三 <&>".to_owned())].into();
    let template = TemplateMessage {
        to_user: user(),
        template_id: "T".to_owned(),
        url: None,
        mini_program: Some(MiniProgramLink {
            app_id: "wx2".to_owned(),
            page_path: "i?a=b&c".to_owned(),
        }),
        client_msg_id: Some("m1".to_owned()),
        data: data(),
    };
    let subscribe = SubscribeMessage {
        to_user: user(),
        template_id: "T".to_owned(),
        page: Some("i?a=b".to_owned()),
        state: None,
        lang: Some("zh_CN".to_owned()),
        data: data(),
    };
    let form = FormTemplateMessage {
        to_user: user(),
        template_id: "T".to_owned(),
        page: None,
        form_id: "F".to_owned(),
        emphasis_keyword: None,
        data: data(),
    };
    let sent = || WeChat::answering(r#"{"errcode":0,"errmsg":"ok","msgid":3717005636572528642}"#);

    let wechat = sent().await;
    let id = wechat
        .client
        .send_template(&token(), &template)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(id.as_str(), "3717005636572528642");
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::POST, "/cgi-bin/message/template/send")
    );
    assert_eq!(seen.query, pairs(&[("access_token", TOKEN)]));
    assert_eq!(
        seen.body,
        r#"{"touser":"oUser","template_id":"T","miniprogram":{"appid":"wx2","pagepath":"i?a=b&c"},"client_msg_id":"m1","data":{"thing1":{"value":"张三 <&>"}}}"#
    );

    let wechat = sent().await;
    wechat
        .client
        .send_subscribe(&token(), &subscribe)
        .await
        .unwrap();
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::POST, "/cgi-bin/message/subscribe/send")
    );
    assert_eq!(
        seen.body,
        r#"{"touser":"oUser","template_id":"T","page":"i?a=b","lang":"zh_CN","data":{"thing1":{"value":"张三 <&>"}}}"#
    );

    let wechat = sent().await;
    wechat
        .client
        .send_form_template(&token(), &form)
        .await
        .unwrap();
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::POST, "/cgi-bin/message/wxopen/template/send")
    );
    assert_eq!(
        seen.body,
        r#"{"touser":"oUser","template_id":"T","form_id":"F","data":{"thing1":{"value":"张三 <&>"}}}"#
    );

    let wechat = sent().await;
    wechat
        .client
        .send_customer(&token(), &customer_text())
        .await
        .unwrap();
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str()),
        (Method::POST, "/cgi-bin/message/custom/send")
    );
    assert_eq!(
        seen.body,
        r#"{"touser":"oUser","msgtype":"text","text":{"content":"你好 <b>&"}}"#
    );
}

#[tokio::test]
async fn typing_goes_to_the_interface_of_the_kind_of_account() {
    let typing = |command| Typing {
        to_user: customer_text().to_user,
        command,
    };
    let wechat = WeChat::answering(r#"{"errcode":0,"errmsg":"ok"}"#).await;
    let shown = typing(TypingCommand::Typing);
    wechat.client.send_typing(&token(), &shown).await.unwrap();
    let seen = wechat.seen();
    assert_eq!(
        (seen.method, seen.path.as_str(), seen.body.as_str()),
        (
            Method::POST,
            "/cgi-bin/message/custom/typing",
            r#"{"touser":"oUser","command":"Typing"}"#
        )
    );

    let wechat = WeChat::answering(r#"{"errcode":45081,"errmsg":"typing already"}"#).await;
    let taken_back = typing(TypingCommand::CancelTyping);
    let token = token();
    let sent = wechat.client.send_mini_program_typing(&token, &taken_back);
    let errcode = sent.await.unwrap_err().errcode();
    assert_eq!(errcode, Some(ErrCode::ALREADY_TYPING));
    let seen = wechat.seen();
    assert_eq!(
        (seen.path.as_str(), seen.body.as_str()),
        (
            "/cgi-bin/message/custom/business/typing",
            r#"{"touser":"oUser","command":"CancelTyping"}"#
        )
    );
}

#[tokio::test]
async fn message_ids_keep_their_digits_and_may_be_absent() {
    for (answer, expected) in [
        (
            r#"{"errcode":0,"errmsg":"ok","msgid":200228332}"#,
            Some("200228332"),
        ),
        (
            r#"{"errcode":0,"errmsg":"ok","msgid":123456789012345678901234}"#,
            Some("123456789012345678901234"),
        ),
        (
            r#"{"errcode":0,"errmsg":"ok","msgid":"a1_b"}"#,
            Some("a1_b"),
        ),
        (r#"{"errcode":0,"errmsg":"ok","msgid":null}"#, None),
        (r#"{"errcode":0,"errmsg":"ok"}"#, None),
        (r#"{"errcode":"0","errmsg":"ok"}"#, None),
    ] {
        let wechat = WeChat::answering(answer).await;
        let id = wechat
            .client
            .send_customer(&token(), &customer_text())
            .await
            .unwrap();
        assert_eq!(id.as_ref().map(|id| id.as_str()), expected, "{answer}");
    }
}

#[tokio::test]
async fn api_addresses_are_listed() {
    let wechat = WeChat::answering(r#"{"ip_list":["101.226.62.77","101.226.0.0/16"]}"#).await;
    assert_eq!(
        wechat.client.api_domain_ip(&token()).await.unwrap(),
        ["101.226.62.77", "101.226.0.0/16"]
    );
    assert_eq!(wechat.seen().path, "/cgi-bin/get_api_domain_ip");
}

#[tokio::test]
async fn json_comes_as_plain_text_with_a_byte_order_mark_or_control_characters() {
    for body in [
        &b"\xef\xbb\xbf{\"access_token\":\"t\",\"expires_in\":7200}"[..],
        b"\r\n {\"errcode\":0,\"errmsg\":\"ok\",\"access_token\":\"t\",\"expires_in\":7200}\r\n",
        b"{\"errcode\":\"0\",\"access_token\":\"t\",\"expires_in\":\"7200\"}",
        b"{\"nickname\":\"a\x07\xf0\x9f\",\"access_token\":\"t\",\"expires_in\":7200}",
        b"{\"nickname\":\"\\ud83d\",\"access_token\":\"t\",\"expires_in\":7200}",
    ] {
        let answer = Answer {
            status: StatusCode::OK,
            content_type: "text/plain",
            body: body.to_vec(),
        };
        let wechat = WeChat::answering(answer).await;
        let issued = wechat.client.access_token(&app(), &secret()).await.unwrap();
        assert_eq!(
            (issued.value.expose(), issued.expires_in.as_secs()),
            ("t", 7200)
        );
    }
}

#[tokio::test]
async fn errors_are_told_by_errcode_whatever_the_status() {
    for (status, errcode) in [
        (200, "40001"),
        (200, "\"40001\""),
        (412, "40001"),
        (500, "\"40001\""),
    ] {
        let body = format!(
            r#"{{"errcode":{errcode},"errmsg":"invalid credential, access_token is invalid or not latest rid: 5f1e-0a1b-4e5f"}}"#
        );
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer {
            status,
            content_type: "text/plain",
            body: body.into_bytes(),
        };
        let wechat = WeChat::answering(answer).await;
        let error = wechat
            .client
            .send_customer(&token(), &customer_text())
            .await
            .unwrap_err();
        let Error::Api(api) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(api.endpoint, "/cgi-bin/message/custom/send");
        assert_eq!(api.errcode, ErrCode::INVALID_CREDENTIAL);
        assert!(api.errmsg.starts_with("invalid credential"));
        assert_eq!(error.rid(), Some("5f1e-0a1b-4e5f"));
        assert_eq!((error.class(), error.is_ambiguous()), (Class::Token, false));
    }
}

#[tokio::test]
async fn an_error_without_a_text_is_an_error() {
    let wechat = WeChat::answering(r#"{"errcode":-1}"#).await;
    let error = wechat
        .client
        .send_customer(&token(), &customer_text())
        .await
        .unwrap_err();
    assert_eq!(
        (error.errcode(), error.is_ambiguous()),
        (Some(ErrCode::SYSTEM_ERROR), true)
    );
}

#[tokio::test]
async fn an_answer_that_is_none_of_wechats_is_garbage() {
    let html = "<html><head><title>502 Bad Gateway</title></head></html>";
    for (status, body) in [
        (502, html),
        (200, html),
        (200, ""),
        (200, "null"),
        (200, "[0,\"ok\"]"),
        (200, r#"{"errcode":0,"errmsg":"ok""#),
        (200, r#"{"errcode":"none"}"#),
        (200, r#"{"errcode":{}}"#),
        (302, "{}"),
        (500, r#"{"message":"internal"}"#),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let wechat = WeChat::answering(Answer {
            status,
            content_type: "text/html",
            body: body.into(),
        })
        .await;
        let error = wechat
            .client
            .send_customer(&token(), &customer_text())
            .await
            .unwrap_err();
        let Error::Garbage {
            endpoint,
            status: shown,
            ..
        } = &error
        else {
            panic!("{body}: {error:?}")
        };
        assert_eq!(
            (*endpoint, *shown),
            ("/cgi-bin/message/custom/send", status.as_u16())
        );
        assert!(error.is_ambiguous());
        // One request: redirects are not followed, nothing is repeated.
        wechat.seen();
    }
}

#[tokio::test]
async fn a_credential_without_its_fields_is_garbage() {
    for body in [
        r#"{"access_token":"50_S3CRET"}"#,
        r#"{"access_token":"50_S3CRET","expires_in":"50_S3CRET"}"#,
        r#"{"access_token":"50_S3CRET","expires_in":-1}"#,
        r#"{"access_token":"","expires_in":7200}"#,
        "{}",
    ] {
        let wechat = WeChat::answering(body).await;
        let error = wechat
            .client
            .access_token(&app(), &secret())
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::Garbage { status: 200, .. }),
            "{error:?}"
        );
        assert_reveals_nothing(&shown(&error));
    }
}

#[tokio::test]
async fn an_answer_is_read_up_to_a_limit() {
    let padded = |length: usize| {
        let body = r#"{"errcode":0,"errmsg":"ok","msgid":1}"#;
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let wechat = WeChat::answering(padded(1024 * 1024).as_str()).await;
    assert!(
        wechat
            .client
            .send_customer(&token(), &customer_text())
            .await
            .unwrap()
            .is_some()
    );
    let wechat = WeChat::answering(padded(1024 * 1024 + 1).as_str()).await;
    let error = wechat
        .client
        .send_customer(&token(), &customer_text())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Garbage { status: 200, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let (client, _server) = raw(|mut stream| async move {
        read_head(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{").await?;
        loop {
            stream.write_all(&[b' '; 64 * 1024]).await?;
        }
    })
    .await;
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(matches!(error, Error::Garbage { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refused_connection_means_not_sent() {
    // Bound, so that nobody else gets the port, but not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let client = client(socket.local_addr().unwrap());
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotSent {
                endpoint: "/cgi-bin/token",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!error.is_ambiguous());
    assert!(error.source().is_some());
    assert_reveals_nothing(&shown(&error));
}

#[tokio::test]
async fn an_unknown_host_means_not_sent() {
    // Below localhost nothing is asked of the network; where the name resolves, port 1 refuses.
    let client = client_for("http://wechat.localhost:1", Duration::from_secs(20));
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
    assert_reveals_nothing(&shown(&error));
}

#[tokio::test]
async fn a_failed_tls_handshake_means_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let client = client_for(&format!("https://{address}"), Duration::from_secs(20));
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
    assert_reveals_nothing(&shown(&error));
}

#[tokio::test]
async fn a_stalled_tls_handshake_means_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let client = client_with(ClientOptions {
        timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_millis(50),
        ..ClientOptions::new(Url::parse(&url).unwrap())
    });
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
    assert_reveals_nothing(&shown(&error));
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client_for(&url, Duration::from_millis(100));
    let error = client
        .send_customer(&token(), &customer_text())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                endpoint: "/cgi-bin/message/custom/send"
            }
        ),
        "{error:?}"
    );
    assert!(error.is_ambiguous());
    assert_reveals_nothing(&shown(&error));
}

#[tokio::test]
async fn a_trickle_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
    let client = client_for(&url, Duration::from_millis(100));
    let error = client.access_token(&app(), &secret()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_is_interrupted() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"errcode\":0",
        "SMTP\r\n\r\n",
    ] {
        let (client, _server) = raw(move |mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(answer.as_bytes()).await
        })
        .await;
        let error = client.access_token(&app(), &secret()).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Interrupted {
                    endpoint: "/cgi-bin/token",
                    ..
                }
            ),
            "{answer}: {error:?}"
        );
        assert!(error.is_ambiguous());
        assert_reveals_nothing(&shown(&error));
    }
}

#[tokio::test]
async fn an_errmsg_that_repeats_a_secret_does_not_reveal_it() {
    let echo =
        format!(r#"{{"errcode":40125,"errmsg":"invalid appsecret {SECRET} {TOKEN} {CODE}"}}"#);
    let wechat = WeChat::answering(echo.as_str()).await;
    let (client, mut errors) = (&wechat.client, Vec::new());
    errors.push(
        client
            .stable_access_token(&app(), &secret(), false)
            .await
            .unwrap_err(),
    );
    errors.push(client.access_token(&app(), &secret()).await.unwrap_err());
    errors.push(
        client
            .code_to_session(&app(), &secret(), CODE)
            .await
            .unwrap_err(),
    );
    errors.push(
        client
            .ticket(&token(), TicketType::Jsapi)
            .await
            .unwrap_err(),
    );
    errors.push(
        client
            .send_customer(&token(), &customer_text())
            .await
            .unwrap_err(),
    );
    let user_token = UserToken::new(TOKEN);
    errors.push(
        client
            .oauth_user_info(&user_token, &user())
            .await
            .unwrap_err(),
    );
    errors.push(
        client
            .oauth_access_token(&app(), &secret(), CODE)
            .await
            .unwrap_err(),
    );
    let own = [SECRET, SECRET, SECRET, TOKEN, TOKEN, TOKEN, SECRET];
    for (error, own) in errors.iter().zip(own) {
        assert!(!shown(error).contains(own), "{error:?}");
    }
}

/// The log of a call, every span and event of every level in it.
async fn log_of<T>(call: impl Future<Output = T>) -> (T, String) {
    let log = Arc::<Mutex<Vec<u8>>>::default();
    let writer = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || Log(Arc::clone(&writer)))
        .finish();
    // Tests run on one thread each, so the guard covers all of the call.
    let guard = tracing::subscriber::set_default(subscriber);
    let result = call.await;
    drop(guard);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    (result, log)
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_call_has_a_span_that_reveals_nothing() {
    let wechat = WeChat::answering(
        r#"{"errcode":45009,"errmsg":"reach max api daily quota limit rid: 5f1e-0a1b"}"#,
    )
    .await;
    let (result, log) = log_of(wechat.client.access_token(&app(), &secret())).await;
    result.unwrap_err();
    for field in [
        r#"otel.kind="client""#,
        r#"endpoint="/cgi-bin/token""#,
        r#"app.id="wx0000000000000001""#,
        r#"http.request.method="GET""#,
        "http.response.status_code=200",
        "wechat.errcode=45009",
        r#"wechat.rid="5f1e-0a1b""#,
        r#"otel.status_code="ERROR""#,
    ] {
        assert!(log.contains(field), "{field} in {log}");
    }
    assert_reveals_nothing(&log);

    let (_, log) = log_of(wechat.client.code_to_session(&app(), &secret(), CODE)).await;
    assert_reveals_nothing(&log);
    let (_, log) = log_of(wechat.client.oauth_access_token(&app(), &secret(), CODE)).await;
    assert_reveals_nothing(&log);
    let user_token = UserToken::new(TOKEN);
    let (_, log) = log_of(wechat.client.oauth_user_info(&user_token, &user())).await;
    assert_reveals_nothing(&log);
    let (_, log) = log_of(wechat.client.send_customer(&token(), &customer_text())).await;
    assert_reveals_nothing(&log);
    assert!(!log.contains("你好") && !log.contains("oUser"), "{log}");
}

#[tokio::test]
async fn wechat_gets_no_trace_context() {
    let wechat = WeChat::answering(r#"{"access_token":"t","expires_in":7200}"#).await;
    let (result, _) = log_of(wechat.client.access_token(&app(), &secret())).await;
    result.unwrap();
    let headers = wechat.seen().headers;
    let mut names: Vec<_> = headers.keys().map(header::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "host", "user-agent"]);
}

#[tokio::test]
async fn a_base_url_may_have_a_path() {
    for base in ["/gateway", "/gateway/"] {
        let wechat = WeChat::answering(r#"{"ip_list":[]}"#).await;
        let client = client_for(
            &format!("http://{}{base}", wechat.address),
            Duration::from_secs(20),
        );
        client.api_domain_ip(&token()).await.unwrap();
        assert_eq!(wechat.seen().path, "/gateway/cgi-bin/get_api_domain_ip");
    }
}

#[test]
fn a_url_that_cannot_be_called_is_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for url in ["ftp://127.0.0.1/", "data:text/plain,x"] {
        let error = Client::new(ClientOptions::new(Url::parse(url).unwrap())).unwrap_err();
        assert!(matches!(error, BuildError::Url), "{error:?}");
    }
}
