//! The door for SDKs: what they send, what they get, and how one with a dead token gets out of it.

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use proto::token::v1::TicketType;
use sandbox::Fault;
use serde_json::{Value, json};
use test_support::{Process, eventually, free_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::form_urlencoded::Serializer;

use crate::{
    rpc::seconds_left,
    world::{CATALOG, KEY, NEWS, NEWS_KEY, PATIENCE, SHOP, World, get},
};

const TOKEN: &str = "/cgi-bin/token";
const STABLE_TOKEN: &str = "/cgi-bin/stable_token";
const TICKET: &str = "/cgi-bin/ticket/getticket";
const PROBE: &str = "/cgi-bin/get_api_domain_ip";
/// A dead token is replaced when it is older than the 30 s that lie between two refreshes.
const FLOOR_AND_MORE: Duration = Duration::from_secs(45);

/// One request as some SDK writes it.
struct Ask<'a> {
    method: &'a str,
    target: String,
    content_type: Option<&'a str>,
    body: Vec<u8>,
}

impl Ask<'_> {
    fn get(path: &str, query: &[(&str, &str)]) -> Self {
        let query = Serializer::new(String::new()).extend_pairs(query).finish();
        Self {
            method: "GET",
            target: format!("{path}?{query}"),
            content_type: None,
            body: Vec::new(),
        }
    }

    fn token(app: &str, key: &str) -> Self {
        let query = [
            ("grant_type", "client_credential"),
            ("appid", app),
            ("secret", key),
        ];
        Self::get(TOKEN, &query)
    }

    fn stable_token(body: impl Into<Vec<u8>>) -> Self {
        Self {
            method: "POST",
            target: STABLE_TOKEN.to_owned(),
            content_type: Some("application/json"),
            body: body.into(),
        }
    }

    fn forced(app: &str, key: &str) -> Self {
        let mut body = fields(app, key);
        body["force_refresh"] = true.into();
        Self::stable_token(body.to_string())
    }

    fn ticket(token: &str, kind: &str) -> Self {
        Self::get(TICKET, &[("access_token", token), ("type", kind)])
    }

    /// Head and body of the answer.
    async fn raw(&self, door: SocketAddr) -> (String, Vec<u8>) {
        let mut request = format!(
            "{} {} HTTP/1.1\r\nHost: door\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.method,
            self.target,
            self.body.len()
        );
        if let Some(content_type) = self.content_type {
            write!(request, "Content-Type: {content_type}\r\n").unwrap();
        }
        request.push_str("\r\n");
        let mut stream = TcpStream::connect(door).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // It may have seen enough before the end of the body.
        let _ = stream.write_all(&self.body).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.unwrap() + 4);
        (String::from_utf8(answer).unwrap().to_lowercase(), body)
    }

    /// The answer's JSON, which comes with status 200 whatever it says.
    async fn to(&self, world: &World) -> Value {
        let (head, body) = self.raw(world.replicas[0].addrs.http).await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        serde_json::from_slice(&body).unwrap()
    }

    async fn errcode(&self, world: &World) -> i64 {
        let answer = self.to(world).await;
        assert!(answer["errmsg"].is_string(), "{answer}");
        answer["errcode"].as_i64().unwrap()
    }
}

fn fields(app: &str, key: &str) -> Value {
    json!({"grant_type": "client_credential", "appid": app, "secret": key})
}

fn probes(world: &World) -> u64 {
    world.wechat.calls(None).total(PROBE)
}

#[tokio::test]
async fn a_callers_key_for_the_secret_gets_the_current_token_in_wechats_shape() {
    let world = World::embedded().await;
    for (name, app) in [("shop", SHOP), ("news", NEWS)] {
        let token = world.dev().token(app).await.unwrap();
        let asks = [
            Ask::token(app, KEY),
            Ask::token(name, KEY),
            Ask::stable_token(fields(app, KEY).to_string()),
        ];
        for ask in asks {
            let answer = ask.to(&world).await;
            assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
            assert_eq!(answer["access_token"], token.token);
            // R12: of a classic token to the end of its overlap, not to its own expiry.
            let left = answer["expires_in"].as_u64().unwrap();
            let used_up = seconds_left(token.use_until);
            assert!(left.abs_diff(used_up) <= 1, "{left} {used_up}");
        }
        assert_eq!(world.upstream(app), 1);
    }
}

#[tokio::test]
async fn a_body_is_json_whatever_its_content_type_says() {
    let world = World::embedded().await;
    let token = world.dev().token(SHOP).await.unwrap().token;
    let types = [
        None,
        Some("application/json"),
        Some("application/json; charset=utf-8"),
        Some("text/plain; charset=ISO-8859-1"),
        Some("application/x-www-form-urlencoded"),
        Some("*/*"),
    ];
    for content_type in types {
        let mut body = fields(SHOP, KEY);
        body["force_refresh"] = false.into();
        let ask = Ask {
            content_type,
            ..Ask::stable_token(format!(" \r\n{body:#}\n"))
        };
        assert_eq!(
            ask.to(&world).await["access_token"],
            token,
            "{content_type:?}"
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_by_wechats_codes() {
    let world = World::embedded().await;
    let method = |method, ask| Ask { method, ..ask };
    let lacking = |field: &str| {
        let mut body = fields(SHOP, KEY);
        body[field].take();
        Ask::stable_token(body.to_string())
    };
    let credential = ("grant_type", "client_credential");
    let cases = [
        (40002, Ask::get(TOKEN, &[])),
        (
            40002,
            Ask::get(TOKEN, &[("grant_type", "authorization_code")]),
        ),
        (41002, Ask::get(TOKEN, &[credential])),
        (
            41002,
            Ask::get(TOKEN, &[credential, ("appid", ""), ("secret", KEY)]),
        ),
        (41004, Ask::get(TOKEN, &[credential, ("appid", SHOP)])),
        (40125, Ask::token(SHOP, "another")),
        // Who has no key learns of no app.
        (40125, Ask::token("wx00000000000000ff", "another")),
        (40013, Ask::token("wx00000000000000ff", KEY)),
        (40013, Ask::token(SHOP, NEWS_KEY)),
        (43001, method("POST", Ask::token(SHOP, KEY))),
        (40002, lacking("grant_type")),
        (41002, lacking("appid")),
        (41004, lacking("secret")),
        (
            40125,
            Ask::stable_token(fields(SHOP, "another").to_string()),
        ),
        (40013, Ask::stable_token(fields(SHOP, NEWS_KEY).to_string())),
        (
            43002,
            method("GET", Ask::stable_token(fields(SHOP, KEY).to_string())),
        ),
        (44002, Ask::stable_token("")),
        (44002, Ask::stable_token(" \n")),
        (47001, Ask::stable_token("grant_type=client_credential")),
        (
            47001,
            Ask::stable_token(r#"{"grant_type":"client_credential","#),
        ),
        (
            47001,
            Ask::stable_token(format!(r#"["client_credential","{SHOP}","{KEY}"]"#)),
        ),
        (47001, Ask::stable_token(r#"{"appid":1}"#)),
        (47001, Ask::stable_token(vec![0xff; 16])),
        (47001, Ask::stable_token(vec![b' '; 70_000])),
        (40097, Ask::get(TICKET, &[])),
        (40097, Ask::ticket("some", "sdk")),
        (41001, Ask::get(TICKET, &[("type", "jsapi")])),
        (40001, Ask::ticket("some", "jsapi")),
        (43001, method("PUT", Ask::ticket("some", "jsapi"))),
    ];
    for (errcode, ask) in cases {
        let told = ask.errcode(&world).await;
        assert_eq!(told, errcode, "{} {}", ask.method, ask.target);
    }
    // None of it cost a call.
    assert_eq!(world.upstream(SHOP) + world.upstream(NEWS), 0);
}

#[tokio::test]
async fn a_caller_without_the_scope_is_told_which_one() {
    let world = World::embedded().await;
    world.write_catalog(&CATALOG.replacen("\"token.read\", ", "", 1));
    eventually("the catalog is read again", PATIENCE, async || {
        let answer = Ask::token(SHOP, KEY).to(&world).await;
        let told = answer["errmsg"].as_str().unwrap_or_default();
        (answer["errcode"] == 48001 && told.contains("token.read"))
            .then_some(())
            .ok_or(answer)
    })
    .await;
}

#[tokio::test]
async fn a_ticket_is_for_whoever_shows_the_apps_token() {
    let world = World::embedded().await;
    let dev = world.dev();
    let token = Ask::token(NEWS, NEWS_KEY).to(&world).await;
    let token = token["access_token"].as_str().unwrap();
    let kinds = [
        ("jsapi", TicketType::Jsapi),
        ("wx_card", TicketType::WxCard),
    ];
    for (kind, wanted) in kinds {
        let answer = Ask::ticket(token, kind).to(&world).await;
        let ticket = dev.ticket(NEWS, wanted).await.unwrap().ticket;
        assert_eq!(answer["ticket"], ticket);
        assert_eq!(
            (answer["errcode"].as_i64(), answer["errmsg"].as_str()),
            (Some(0), Some("ok"))
        );
        assert!(answer["expires_in"].as_u64().unwrap() > 7_000, "{answer}");
    }
    assert_eq!(world.wechat.calls(Some(NEWS)).total(TICKET), 2);
    assert_eq!(Ask::ticket(KEY, "jsapi").errcode(&world).await, 40001);
    let shortened = &token[..token.len() - 1];
    assert_eq!(Ask::ticket(shortened, "jsapi").errcode(&world).await, 40001);
}

#[tokio::test]
async fn r07_a_ticket_whose_token_wechat_refuses_sends_no_sdk_into_a_loop() {
    let world = World::embedded().await;
    let token = Ask::token(NEWS, KEY).to(&world).await;
    let token = token["access_token"].as_str().unwrap();
    let fault = Fault {
        errcode: Some(40001),
        times: 10,
        ..Fault::at(TICKET)
    };
    world.wechat.add_fault(fault).unwrap();
    for _ in 0..3 {
        assert_eq!(Ask::ticket(token, "jsapi").errcode(&world).await, -1);
    }
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn what_wechat_refuses_is_told_in_its_words_and_what_passes_is_minus_one() {
    let world = World::embedded().await;
    for errcode in [45009, 40164] {
        let app = if errcode == 45009 { SHOP } else { NEWS };
        let fault = Fault {
            errcode: Some(errcode),
            ..Fault::at(crate::world::endpoint(app))
        };
        world.wechat.add_fault(fault).unwrap();
        let answer = Ask::token(app, KEY).to(&world).await;
        assert_eq!(answer["errcode"], errcode, "{answer}");
        assert!(
            answer["errmsg"].as_str().unwrap().contains("rid"),
            "{answer}"
        );
        // It is remembered: no second call.
        assert_eq!(Ask::token(app, KEY).errcode(&world).await, errcode);
        assert_eq!(world.upstream(app), 1);
    }

    let world = World::embedded().await;
    let fault = Fault {
        reset: true,
        ..Fault::at(TOKEN)
    };
    world.wechat.add_fault(fault).unwrap();
    let answer = Ask::token(NEWS, KEY).to(&world).await;
    assert_eq!(answer["errcode"], -1, "{answer}");
    assert!(answer["errmsg"].as_str().unwrap().contains("try again in"));
}

#[tokio::test]
async fn who_asks_again_has_the_token_probed_once_in_a_while() {
    let world = World::embedded().await;
    let first = Ask::token(NEWS, KEY).to(&world).await;
    Ask::token(NEWS, NEWS_KEY).to(&world).await;
    assert_eq!(probes(&world), 0, "each asked once");
    for _ in 0..10 {
        let again = Ask::token(NEWS, KEY).to(&world).await;
        assert_eq!(again["access_token"], first["access_token"]);
    }
    Ask::token(NEWS, NEWS_KEY).to(&world).await;
    assert_eq!(probes(&world), 1);
    assert_eq!(world.upstream(NEWS), 1);

    // Another app is another matter.
    Ask::token(SHOP, KEY).to(&world).await;
    Ask::token(SHOP, KEY).to(&world).await;
    assert_eq!(probes(&world), 2);
}

#[tokio::test]
async fn replicas_probe_no_more_often_than_one() {
    let world = World::on_redis(3).await;
    for replica in &world.replicas {
        for _ in 0..3 {
            let (head, _) = Ask::token(NEWS, KEY).raw(replica.addrs.http).await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
        }
    }
    assert_eq!((probes(&world), world.upstream(NEWS)), (1, 1));
}

#[tokio::test]
async fn a_probe_that_wechat_does_not_answer_condemns_no_token() {
    let world = World::embedded().await;
    let first = Ask::token(NEWS, KEY).to(&world).await;
    let fault = Fault {
        delay_ms: Some(60_000),
        ..Fault::at(PROBE)
    };
    world.wechat.add_fault(fault).unwrap();
    let asked = tokio::time::Instant::now();
    let again = Ask::token(NEWS, KEY).to(&world).await;
    assert_eq!(again["access_token"], first["access_token"]);
    let took = asked.elapsed();
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn a_forced_request_is_refused_unless_the_token_is_dead() {
    let world = World::embedded().await;
    let first = Ask::token(SHOP, KEY).to(&world).await;
    let refused = Ask::forced(SHOP, KEY).to(&world).await;
    assert_eq!(refused["errcode"], 48001, "{refused}");
    let told = refused["errmsg"].as_str().unwrap();
    assert!(told.contains("leave force_refresh out"), "{told}");
    assert_eq!((probes(&world), world.upstream(SHOP)), (1, 1));

    world.wechat.invalidate(SHOP).unwrap();
    let replaced = eventually(
        "a forced request gets another",
        FLOOR_AND_MORE,
        async || {
            let answer = Ask::forced(SHOP, KEY).to(&world).await;
            match answer["access_token"].as_str() {
                Some(token) => Ok(token.to_owned()),
                None => Err(answer),
            }
        },
    )
    .await;
    assert_ne!(first["access_token"], replaced);
    let current = Ask::token(SHOP, NEWS_KEY).errcode(&world).await;
    assert_eq!(current, 40013);
    assert_eq!(world.dev().token(SHOP).await.unwrap().token, replaced);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_and_no_body_is_too_much_for_it() {
    let world = World::embedded().await;
    let door = world.replicas[0].addrs.http;
    let name = prop_oneof![
        Just("grant_type".to_owned()),
        Just("appid".to_owned()),
        Just("secret".to_owned()),
        Just("access_token".to_owned()),
        Just("type".to_owned()),
        any::<String>(),
    ];
    let value = prop_oneof![
        Just("client_credential".to_owned()),
        Just(SHOP.to_owned()),
        Just("jsapi".to_owned()),
        any::<String>(),
    ];
    let pairs = proptest::collection::vec((name, value), 0..6);
    let query = prop_oneof![
        pairs
            .clone()
            .prop_map(|pairs| Serializer::new(String::new()).extend_pairs(pairs).finish()),
        "[!-\"$-~]{0,100}",
    ];
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        pairs.prop_map(|pairs| {
            let object = pairs.into_iter().map(|(name, value)| (name, value.into()));
            Value::Object(object.collect()).to_string().into_bytes()
        }),
        any::<String>().prop_map(|text| format!("{{\"appid\":{text}}}").into_bytes()),
    ];
    let path = proptest::sample::select(vec![TOKEN, STABLE_TOKEN, TICKET]);
    let method = proptest::sample::select(vec!["GET", "POST", "DELETE"]);
    let requests = (method, path, query, body);
    let handle = tokio::runtime::Handle::current();
    let cases = tokio::task::spawn_blocking(move || {
        let mut runner = TestRunner::new(Config {
            cases: 300,
            failure_persistence: None,
            ..Config::default()
        });
        runner.run(&requests, |(method, path, query, body)| {
            let ask = Ask {
                method,
                target: format!("{path}?{query}"),
                content_type: None,
                body,
            };
            let (head, body) = handle.block_on(ask.raw(door));
            // A target that is none is refused before it gets to a handler.
            if !head.starts_with("http/1.1 400 ") {
                prop_assert!(head.starts_with("http/1.1 200 "), "{}", head);
                let answer: Value = serde_json::from_slice(&body).unwrap();
                prop_assert!(answer["errcode"].as_i64().is_some_and(|code| code != 0));
            }
            Ok(())
        })
    });
    cases.await.unwrap().unwrap();
    assert!(Ask::token(SHOP, KEY).to(&world).await["access_token"].is_string());
}

#[tokio::test]
async fn nothing_secret_is_logged() {
    let world = World::embedded().await;
    let (http, ops) = (free_port(), free_port());
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("wxhub.toml");
    std::fs::write(&catalog, CATALOG).unwrap();
    let addrs = [
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{http}"),
        format!("127.0.0.1:{ops}"),
    ];
    let env = [
        ("WXHUB_EMBEDDED", "1"),
        ("WXHUB_CONFIG", catalog.to_str().unwrap()),
        ("WXHUB_GRPC_ADDR", addrs[0].as_str()),
        ("WXHUB_HTTP_ADDR", addrs[1].as_str()),
        ("WXHUB_OPS_ADDR", addrs[2].as_str()),
        ("WXHUB_WECHAT_API_URL", world.wechat.url()),
        ("RUST_LOG", "debug"),
    ];
    let service = Process::start(env!("CARGO_BIN_EXE_token-service"), [], env);
    let ops: SocketAddr = addrs[2].parse().unwrap();
    eventually("the service is ready", PATIENCE, async || {
        TcpStream::connect(ops).await.map(drop)
    })
    .await;
    eventually("the service is ready", PATIENCE, async || {
        let answer = get(ops, "/readyz").await;
        answer
            .starts_with("HTTP/1.0 200")
            .then_some(())
            .ok_or(answer)
    })
    .await;

    let door = addrs[1].parse().unwrap();
    let (_, answer) = Ask::token(NEWS, KEY).raw(door).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let token = answer["access_token"].as_str().unwrap();
    let (_, answer) = Ask::ticket(token, "jsapi").raw(door).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let ticket = answer["ticket"].as_str().unwrap();
    Ask::forced(NEWS, KEY).raw(door).await;
    Ask::token(NEWS, "wrong-key").raw(door).await;
    Ask::stable_token(r#"{"secret":"broken-key","#)
        .raw(door)
        .await;
    Ask::ticket("unknown-token", "jsapi").raw(door).await;

    service.line("\"errcode\":40001", PATIENCE).await;
    service.terminate();
    service.wait(PATIENCE).await;
    let log = [service.stdout(), service.stderr()].concat().join("\n");
    assert!(log.contains("/cgi-bin/stable_token"), "{log}");
    let secrets = [
        token,
        ticket,
        KEY,
        "wrong-key",
        "broken-key",
        "unknown-token",
        "dev-secret-news",
    ];
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in:\n{log}");
    }
}

#[tokio::test]
async fn unmodified_wechatpy_works_with_only_its_host_changed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/sdk-venv/bin/python");
    assert!(
        python.exists(),
        "there is no {}: ./scripts/test makes it, or `python3 -m venv target/sdk-venv && \
         target/sdk-venv/bin/pip install -r crates/token-service/tests/requirements.txt`",
        python.display()
    );
    let world = World::embedded().await;
    let script = root.join("tests/it/door.py");
    let door = format!("http://{}", world.replicas[0].addrs.http);
    let args = [script.to_str().unwrap(), &door, world.wechat.url(), KEY];
    let sdk = Process::start(&python, args, []);
    let status = sdk.wait(FLOOR_AND_MORE + PATIENCE).await;
    let said = [sdk.stdout(), sdk.stderr()].concat().join("\n");
    assert!(status.success(), "{said}");
    assert!(said.contains("wechatpy is content"), "{said}");
}
