//! WeChat, Redis or the database away: an answer at once, and everything as before when they are back.

use std::time::{Duration, Instant};

use serde_json::json;
use service_kit::settings::DatabaseUrl;
use test_support::{MariaDb, Redis, eventually};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::world::{KEY, PATIENCE, Setup, World, error};

/// Only what hangs takes longer, on whatever machine.
const HANG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn wechat_away_is_503_with_retry_after() {
    let world = World::embedded().await;
    for break_it in [
        |fault: &mut sandbox::Fault| fault.reset = true,
        |fault: &mut sandbox::Fault| {
            fault.status = Some(502);
            fault.body = Some("<html>Bad Gateway</html>".to_owned());
        },
    ] {
        world.fault(break_it);
        let answer = world.post_login(&world.js_code(None)).await;
        assert_eq!(answer.headers()["retry-after"], "1");
        let (status, body) = error(answer).await;
        assert_eq!((status, &body["code"]), (503, &json!("WECHAT_UNAVAILABLE")));
    }
}

#[tokio::test]
async fn a_code_whose_exchange_failed_can_be_tried_again() {
    let world = World::embedded().await;
    let code = world.js_code(None);
    world.fault(|fault| fault.reset = true);
    assert_eq!(world.post_login(&code).await.status(), 503);
    eventually("the retry logs in", PATIENCE, async || {
        world.post_login(&code).await.status() == 204
    })
    .await;
    assert_eq!(world.exchanges(), 2);
}

#[tokio::test]
async fn with_redis_away_nothing_hangs_and_no_code_is_spent() {
    let world = World::with_servers().await;
    let token = world.login(&world.js_code(None)).await;
    let redis = world.redis.as_ref().unwrap();
    let mut dev = world.caller(KEY);
    eventually("it is ready", PATIENCE, async || world.is_ready().await).await;
    for stop in [Redis::pause as fn(&Redis), |redis: &Redis| {
        redis.resume();
        redis.kill();
    }] {
        stop(redis);
        let code = world.js_code(None);
        let exchanges = world.exchanges();
        let began = Instant::now();
        let answer = world.post_login(&code).await;
        assert_eq!(answer.headers()["retry-after"], "1");
        let (status, body) = error(answer).await;
        assert_eq!((status, &body["code"]), (503, &json!("STORE_UNAVAILABLE")));
        assert_eq!(world.me(&token).await.status(), 503);
        let status = dev.verify(&token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_error_details().retry_info().is_some());
        assert!(began.elapsed() < HANG, "{:?}", began.elapsed());
        assert_eq!(world.exchanges(), exchanges);
    }
    assert!(world.is_ready().await);

    redis.restart().await;
    let code = world.js_code(None);
    eventually("a login works again", PATIENCE, async || {
        world.post_login(&code).await.status() == 204
    })
    .await;
}

#[tokio::test]
async fn with_the_database_away_sessions_verify_and_a_codes_exchange_is_kept() {
    let server = MariaDb::start().await;
    let database = DatabaseUrl::new(server.create_database().await.url());
    auth_service::migrate(&database).await.unwrap();
    let world = World::start(Setup {
        redis: Some(Redis::start().await),
        database: Some(database),
        ..Setup::default()
    })
    .await;
    let token = world.login(&world.js_code(None)).await;
    let mut dev = world.caller(KEY);
    eventually("it is ready", PATIENCE, async || world.is_ready().await).await;

    let code = world.js_code(None);
    for stop in [MariaDb::pause as fn(&MariaDb), |server: &MariaDb| {
        server.resume();
        server.kill();
    }] {
        stop(&server);
        let began = Instant::now();
        let answer = world.post_login(&code).await;
        let (status, body) = error(answer).await;
        assert_eq!((status, &body["code"]), (503, &json!("STORE_UNAVAILABLE")));
        assert!(began.elapsed() < HANG, "{:?}", began.elapsed());
        dev.verify(&token).await.unwrap();
    }
    assert!(world.is_ready().await);

    server.restart().await;
    eventually("the code logs in", PATIENCE, async || {
        world.post_login(&code).await.status() == 204
    })
    .await;
    assert_eq!(world.exchanges(), 2);
}
