//! Who a session belongs to, and who may ask.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use prost_types::Timestamp;
use proto::auth::v1::{
    ListUserSessionsRequest, RevokeAppSessionsRequest, RevokeSessionRequest,
    RevokeUserSessionsRequest, SessionInfo,
};
use redis::AsyncCommands as _;
use secrecy::SecretString;
use service_kit::Sealer;
use test_support::{FaultProxy, Redis, eventually};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{Grpc, KEY, NEWS_KEY, PATIENCE, SHOP, World, error, serve};

/// Somebody else than who signs in first.
const STRANGER: &str = "oStranger0000000000000000000";

with_either_store!(
    a_session_of_another_callers_app_is_as_invalid_as_none,
    sessions_are_separate,
    revoking_all_of_a_user_ends_every_session_of_theirs_and_no_later_one,
    revoking_all_of_an_app_ends_every_session_with_it,
    a_users_sessions_are_listed_and_ended_one_by_one,
    nobody_lists_or_revokes_sessions_of_others_apps,
);

async fn a_session_of_another_callers_app_is_as_invalid_as_none(world: World) {
    let token = world.login(&world.js_code(None)).await;
    let mut news_team = world.caller(NEWS_KEY);
    let refused = news_team.verify(&token).await.unwrap_err();
    let unknown = news_team.verify("no-such-session").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), unknown.message());
    assert_eq!(refused.details(), unknown.details());
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "SESSION_INVALID");

    news_team.revoke(&token).await.unwrap();
    world.caller(KEY).verify(&token).await.unwrap();
}

async fn sessions_are_separate(world: World) {
    let one = world.login(&world.js_code(None)).await;
    let other = world.login(&world.js_code(None)).await;
    assert_ne!(one, other);
    assert_eq!(world.logout(&one).await.status(), 204);
    assert_eq!(world.me(&one).await.status(), 401);
    assert_eq!(world.me(&other).await.status(), 200);
}

#[tokio::test]
async fn without_a_session_me_is_401() {
    let world = World::embedded().await;
    for authorization in [None, Some("Bearer nothing"), Some("Basic dTpw"), Some("")] {
        let (status, body) = error(world.get("/me", authorization).await).await;
        assert_eq!(
            (status, body["code"].as_str()),
            (401, Some("SESSION_INVALID"))
        );
    }
    let answer = world.logout("never-was").await;
    assert_eq!(answer.status(), 204);
}

/// Logs a user in; answers their id, their openid and their session.
async fn sign_in(world: &World, dev: &mut Grpc) -> (String, String, String) {
    let session = dev.login("shop", &world.js_code(None), "").await.unwrap();
    let user = session.user.unwrap();
    (user.user_id, user.open_id, session.session_token)
}

async fn sign_in_again(world: &World, dev: &mut Grpc, open_id: &str) -> String {
    let code = world.js_code(Some(open_id));
    dev.login("shop", &code, "").await.unwrap().session_token
}

async fn is_valid(caller: &mut Grpc, token: &str) -> bool {
    match caller.verify(token).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            false
        }
    }
}

async fn revoke_user(caller: &mut Grpc, user_id: &str) -> Result<(), Status> {
    let user_id = user_id.to_owned();
    let request = RevokeUserSessionsRequest { user_id };
    caller.0.revoke_user_sessions(request).await.map(drop)
}

async fn revoke_app(caller: &mut Grpc, app_id: &str) -> Result<(), Status> {
    let app_id = app_id.to_owned();
    let request = RevokeAppSessionsRequest { app_id };
    caller.0.revoke_app_sessions(request).await.map(drop)
}

async fn revoke_by_id(caller: &mut Grpc, session_id: &str) -> Result<(), Status> {
    let request = RevokeSessionRequest {
        session_id: session_id.to_owned(),
        ..RevokeSessionRequest::default()
    };
    caller.0.revoke_session(request).await.map(drop)
}

/// Every page, each of `page_size`.
async fn list(
    caller: &mut Grpc,
    user_id: &str,
    page_size: i32,
) -> Result<Vec<SessionInfo>, Status> {
    let mut request = ListUserSessionsRequest {
        user_id: user_id.to_owned(),
        page_size,
        page_token: String::new(),
    };
    let mut listed = Vec::new();
    loop {
        let page = caller.0.list_user_sessions(request.clone()).await?;
        let page = page.into_inner();
        listed.extend(page.sessions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(listed);
        }
    }
}

fn at(time: Option<Timestamp>) -> SystemTime {
    time.unwrap().try_into().unwrap()
}

async fn revoking_all_of_a_user_ends_every_session_of_theirs_and_no_later_one(world: World) {
    let mut dev = world.caller(KEY);
    let (user_id, open_id, one) = sign_in(&world, &mut dev).await;
    let other = sign_in_again(&world, &mut dev, &open_id).await;
    let somebody_else = sign_in_again(&world, &mut dev, STRANGER).await;
    for _ in 0..2 {
        revoke_user(&mut dev, &user_id).await.unwrap();
        let new = sign_in_again(&world, &mut dev, &open_id).await;
        assert!(!is_valid(&mut dev, &one).await && !is_valid(&mut dev, &other).await);
        assert!(is_valid(&mut dev, &new).await && is_valid(&mut dev, &somebody_else).await);
        assert_eq!(list(&mut dev, &user_id, 0).await.unwrap().len(), 1);
    }
    assert_eq!(world.me(&one).await.status(), 401);
}

async fn revoking_all_of_an_app_ends_every_session_with_it(world: World) {
    let mut dev = world.caller(KEY);
    let (_, _, one) = sign_in(&world, &mut dev).await;
    let open_id = STRANGER;
    let other = sign_in_again(&world, &mut dev, open_id).await;
    revoke_app(&mut dev, "news").await.unwrap();
    assert!(is_valid(&mut dev, &one).await && is_valid(&mut dev, &other).await);
    revoke_app(&mut dev, "shop").await.unwrap();
    assert!(!is_valid(&mut dev, &one).await && !is_valid(&mut dev, &other).await);
    let new = sign_in_again(&world, &mut dev, open_id).await;
    assert!(is_valid(&mut dev, &new).await);
}

async fn a_users_sessions_are_listed_and_ended_one_by_one(world: World) {
    let mut dev = world.caller(KEY);
    let (user_id, open_id, first) = sign_in(&world, &mut dev).await;
    let mut tokens = vec![first];
    for _ in 0..3 {
        tokens.push(sign_in_again(&world, &mut dev, &open_id).await);
    }
    let listed = list(&mut dev, &user_id, 0).await.unwrap();
    assert_eq!(listed.len(), 4);
    for (info, next) in listed.iter().zip(&listed[1..]) {
        assert!(at(info.create_time) >= at(next.create_time));
    }
    for info in &listed {
        assert_eq!((info.app_id.as_str(), info.client.as_str()), (SHOP, "dev"));
        assert!(at(info.last_seen_time) >= at(info.create_time));
        assert!(at(info.expire_time) > at(info.last_seen_time));
        assert!(!tokens.contains(&info.session_id));
    }
    let paged = list(&mut dev, &user_id, 1).await.unwrap();
    let ids = |listed: &[SessionInfo]| -> Vec<String> {
        listed.iter().map(|info| info.session_id.clone()).collect()
    };
    assert_eq!(ids(&paged), ids(&listed));

    // One by its id, one by its token; both twice.
    for _ in 0..2 {
        revoke_by_id(&mut dev, &listed[0].session_id).await.unwrap();
        dev.revoke(&tokens[0]).await.unwrap();
    }
    let left = list(&mut dev, &user_id, 0).await.unwrap();
    assert_eq!(left.len(), 2);
    assert!(!ids(&left).contains(&listed[0].session_id));
    let mut valid = 0;
    for token in &tokens {
        valid += u32::from(is_valid(&mut dev, token).await);
    }
    assert_eq!(valid, 2);

    for (token, id) in [("x", listed[1].session_id.as_str()), ("", "x"), ("", "")] {
        let request = RevokeSessionRequest {
            session_token: token.to_owned(),
            session_id: id.to_owned(),
        };
        let refused = dev.0.revoke_session(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token} {id}");
    }
    for (page_size, page_token) in [(-1, ""), (1_001, ""), (0, "x"), (0, "eDp5")] {
        let request = ListUserSessionsRequest {
            user_id: user_id.clone(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let refused = dev.0.list_user_sessions(request).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{page_size} {page_token}"
        );
    }
}

async fn nobody_lists_or_revokes_sessions_of_others_apps(world: World) {
    let (mut dev, mut news_team) = (world.caller(KEY), world.caller(NEWS_KEY));
    let (user_id, _, token) = sign_in(&world, &mut dev).await;
    let listed = list(&mut dev, &user_id, 0).await.unwrap();
    let refused = [
        list(&mut news_team, &user_id, 0).await.unwrap_err(),
        revoke_user(&mut news_team, &user_id).await.unwrap_err(),
        revoke_app(&mut news_team, "shop").await.unwrap_err(),
        revoke_app(&mut news_team, "nothing").await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::NotFound);
    }
    let session_id = &listed[0].session_id;
    revoke_by_id(&mut news_team, session_id).await.unwrap();
    assert!(is_valid(&mut dev, &token).await);
}

/// Another replica of the world's service, which reaches Redis by this URL.
async fn replica(world: &World, tasks: &mut JoinSet<()>, redis_url: String) -> SocketAddr {
    let mut config = world.config.clone();
    config.redis_url = Some(SecretString::from(redis_url));
    serve(config, tasks).await.grpc
}

/// Whatever began a second after the revocation is refused.
async fn is_refused_within_a_second(replica: &mut Grpc, token: &str, revoked: Instant) {
    loop {
        let asked = Instant::now();
        if !is_valid(replica, token).await {
            return;
        }
        let late = asked.duration_since(revoked);
        assert!(late < Duration::from_secs(1), "valid {late:?} after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_holds_on_every_replica_within_a_second() {
    let world = World::with_servers().await;
    let mut tasks = JoinSet::new();
    let redis_url = world.redis.as_ref().map(Redis::url).unwrap();
    let there = replica(&world, &mut tasks, redis_url.clone()).await;
    let (mut here, mut there) = (world.caller(KEY), Grpc::connect(there, KEY));

    for told in [true, false] {
        if !told {
            // Neither replica hears of anything from now on.
            let client = redis::Client::open(redis_url.as_str()).unwrap();
            let mut redis = client.get_multiplexed_async_connection().await.unwrap();
            let () = redis::cmd("ACL")
                .arg(&["SETUSER", "default", "-subscribe"])
                .query_async(&mut redis)
                .await
                .unwrap();
            let () = redis::cmd("CLIENT")
                .arg(&["KILL", "TYPE", "pubsub"])
                .query_async(&mut redis)
                .await
                .unwrap();
            let listeners: Vec<(String, u64)> = redis::cmd("PUBSUB")
                .arg(&["NUMSUB", "wxhub:auth:v1:epochs"])
                .query_async(&mut redis)
                .await
                .unwrap();
            assert_eq!(listeners[0].1, 0);
        }
        let (user_id, open_id, token) = sign_in(&world, &mut here).await;
        for by_app in [false, true] {
            let token = if by_app {
                sign_in_again(&world, &mut here, &open_id).await
            } else {
                token.clone()
            };
            assert!(is_valid(&mut there, &token).await);
            if by_app {
                revoke_app(&mut here, "shop").await.unwrap();
            } else {
                revoke_user(&mut here, &user_id).await.unwrap();
            }
            let revoked = Instant::now();
            assert!(!is_valid(&mut here, &token).await);
            is_refused_within_a_second(&mut there, &token, revoked).await;
            // Whoever signs in again lives everywhere, at once.
            let new = sign_in_again(&world, &mut here, &open_id).await;
            assert!(is_valid(&mut there, &new).await);
        }
        let (_, _, token) = sign_in(&world, &mut here).await;
        assert!(is_valid(&mut there, &token).await);
        here.revoke(&token).await.unwrap();
        assert!(!is_valid(&mut there, &token).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_or_comes_back_accepts_nothing_that_was_revoked() {
    let world = World::with_servers().await;
    let mut tasks = JoinSet::new();
    let redis_url = world.redis.as_ref().map(Redis::url).unwrap();
    let proxy = FaultProxy::start(&redis_url).await;
    let cut_off = replica(&world, &mut tasks, proxy.url(&redis_url)).await;
    let (mut here, mut cut_off) = (world.caller(KEY), Grpc::connect(cut_off, KEY));
    let (user_id, _, token) = sign_in(&world, &mut here).await;
    assert!(is_valid(&mut cut_off, &token).await);

    proxy.cut().await;
    let revoked = Instant::now();
    revoke_user(&mut here, &user_id).await.unwrap();
    let refused = cut_off.verify(&token).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    eventually("a second has passed", PATIENCE, async || {
        revoked.elapsed() > Duration::from_secs(1)
    })
    .await;
    proxy.heal().await;
    eventually(
        "it is refused, and never accepted",
        PATIENCE,
        async || match cut_off.verify(&token).await {
            Ok(_) => unreachable!("it was revoked"),
            Err(status) => status.code() == Code::Unauthenticated,
        },
    )
    .await;

    let new = replica(&world, &mut tasks, redis_url).await;
    assert!(!is_valid(&mut Grpc::connect(new, KEY), &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_key_rotates_without_logging_anyone_out() {
    let [old, new] = [
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    ];
    let world = World::with_servers().await;
    let redis_url = world.redis.as_ref().map(Redis::url).unwrap();
    let client = redis::Client::open(redis_url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let mut tokens: Vec<String> = Vec::new();
    let mut open_id = None;
    let mut sealed_by = Vec::new();
    for keys in [old.to_owned(), format!("{new},{old}"), new.to_owned()] {
        let mut tasks = JoinSet::new();
        let mut config = world.config.clone();
        config.sealer = Sealer::from_keys(&SecretString::from(keys)).unwrap();
        let mut caller = Grpc::connect(serve(config, &mut tasks).await.grpc, KEY);
        for token in &tokens {
            assert!(is_valid(&mut caller, token).await);
        }
        let code = world.js_code(open_id.as_deref());
        let session = caller.login("shop", &code, "").await.unwrap();
        open_id = session.user.map(|user| user.open_id);
        tokens.push(session.session_token);

        let keys: Vec<String> = redis.keys("*:session_key").await.unwrap();
        let sealed: String = redis.get(&keys[0]).await.unwrap();
        let key_id = sealed.split('.').nth(1).unwrap().to_owned();
        sealed_by.push(key_id);
    }
    // One session_key, moved to the new key by the next login.
    assert_ne!(sealed_by[0], sealed_by[1]);
    assert_eq!(sealed_by[1], sealed_by[2]);
}
