//! What must not leave: tokens, codes, session keys, openids, and what WeChat tells of a person.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use proto::auth::v1::GetPhoneNumberRequest;
use sandbox::UserDataKind;
use serde_json::Value;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt::{MakeWriter, format::FmtSpan},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    bind::secrets_of_a_binding,
    oauth::secrets_of_a_sign_in,
    world::{KEY, SHOP, World},
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_holds_no_secret_and_no_openid() {
    // The whole process's, so it holds what tests beside this one log, too: no secret either.
    let log = Log::default();
    let levels = Targets::new()
        .with_default(LevelFilter::DEBUG)
        .with_targets([("h2", LevelFilter::OFF), ("tower", LevelFilter::OFF)]);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(log.clone())
        .with_ansi(false)
        .with_span_events(FmtSpan::FULL)
        .with_filter(levels);
    tracing_subscriber::registry().with(layer).init();

    let world = World::embedded().await;
    let open_id = "oPRIVATEPRIVATEPRIVATEPRIVAT";
    let code = world.js_code(Some(open_id));
    let token = world.login(&code).await;
    world.login(&code).await;
    let mut dev = world.caller(KEY);
    dev.verify(&token).await.unwrap();
    assert_eq!(world.me(&token).await.status(), 200);
    for errcode in [40029, 40125, -1] {
        world.fault(|fault| fault.errcode = Some(errcode));
        world.post_login(&format!("{code}{errcode}")).await;
    }
    world.fault(|fault| fault.reset = true);
    world.post_login(&format!("{code}-reset")).await;
    dev.verify(&format!("{token}x")).await.unwrap_err();
    assert_eq!(world.logout(&token).await.status(), 204);

    let session = world.login(&world.js_code(Some(open_id))).await;
    let data = UserDataKind::UserInfo;
    let data = world.wechat.user_data(SHOP, Some(open_id), data).unwrap();
    let raw_data: Value = serde_json::from_str(data.raw_data.as_ref().unwrap()).unwrap();
    let avatar = raw_data["avatarUrl"].as_str().unwrap();
    let data = serde_json::to_string(&data).unwrap();
    for (session, status) in [(&token, 401), (&session, 200)] {
        let answer = world.post_as(session, "/user-data", data.clone()).await;
        assert_eq!(answer.status(), status);
    }
    let request = GetPhoneNumberRequest {
        app_id: "shop".to_owned(),
        code: world.wechat.phone_code(SHOP, Some(open_id)).unwrap().code,
        open_id: open_id.to_owned(),
    };
    let number = dev.0.get_phone_number(request.clone()).await.unwrap();
    let number = number.into_inner().phone_number;
    dev.0.get_phone_number(request.clone()).await.unwrap_err();

    let oauth = secrets_of_a_sign_in(&world).await;
    let binding = secrets_of_a_binding(&world).await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for told in [
        "signed in",
        "/oauth/{app}/callback",
        "a WeChat user was bound to an account",
        "login failed at WeChat",
        "WeChat refused the code of a phone number",
        "service_kit::http",
        "service_kit::grpc",
    ] {
        assert!(log.contains(told), "{told} is not in:\n{log}");
    }
    // The sandbox is WeChat: what it logs is not ours.
    let ours: Vec<_> = log
        .lines()
        .filter(|line| !line.contains("sandbox"))
        .collect();
    for secret in [
        open_id,
        &code,
        &token,
        "dev-secret-shop",
        KEY,
        avatar,
        &number,
        &request.code,
    ]
    .into_iter()
    .chain(oauth.iter().chain(&binding).map(String::as_str))
    {
        let leak = ours.iter().find(|line| line.contains(secret));
        assert_eq!(leak, None, "{secret}");
    }
}

#[tokio::test]
async fn redis_holds_neither_tokens_nor_session_keys_nor_codes() {
    let world = World::with_servers().await;
    let code = world.js_code(None);
    let token = world.login(&code).await;
    let me: Value = world.me(&token).await.json().await.unwrap();

    let client = redis::Client::open(world.redis.as_ref().unwrap().url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let mut keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut redis)
        .await
        .unwrap();
    keys.sort_by_key(|key| key.rsplit(':').next().unwrap().to_owned());
    let kinds: Vec<_> = keys
        .iter()
        .map(|key| key.rsplit(':').next().unwrap())
        .collect();
    let expected = ["login", "numbers", "session", "session_key", "sessions"];
    assert_eq!(kinds, expected);
    for key in keys {
        assert!(key.starts_with("wxhub:auth:v1:{"), "{key}");
        let left: i64 = redis::cmd("PTTL")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        assert!(left > 0, "{key} has no end");
        let dump: Vec<u8> = redis::cmd("DUMP")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        let found = |text: &str| {
            key.contains(text) || dump.windows(text.len()).any(|part| part == text.as_bytes())
        };
        assert!(!found(&token) && !found(&code), "{key}");
        let open_id = me["open_id"].as_str().unwrap();
        assert!(key.ends_with(":session") || !found(open_id), "{key}");
    }
}
