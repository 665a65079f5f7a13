//! One call to WeChat for any number of callers and replicas; the old token serves meanwhile.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use proto::token::v1::TicketType;
use sandbox::Fault;
use test_support::eventually;
use tonic::Code;

use crate::world::{KEY, NEWS, PATIENCE, SHOP, World, endpoint};

/// A world whose tokens live for so many seconds.
pub(crate) async fn short_lived(redis: bool, seconds: u32) -> World {
    let mut config = sandbox::Config::dev("http://127.0.0.1:9");
    for account in &mut config.accounts {
        account.expires_in = seconds;
    }
    let redis = if redis {
        Some(test_support::Redis::start().await)
    } else {
        None
    };
    let replicas = if redis.is_some() { 2 } else { 1 };
    World::start(redis, config, replicas).await
}

#[tokio::test]
async fn r02_two_hundred_callers_of_a_cold_cache_cost_one_call() {
    for world in [World::embedded().await, World::on_redis(2).await] {
        for app in [SHOP, NEWS] {
            let slow = Fault {
                delay_ms: Some(300),
                ..Fault::at(endpoint(app))
            };
            world.wechat.add_fault(slow).unwrap();
            let callers: Vec<_> = (0..200)
                .map(|n| world.caller(n % world.replicas.len(), KEY))
                .collect();
            let calls = callers.iter().map(|caller| caller.token(app));
            let tokens = try_join_all(calls).await.unwrap();
            assert!(
                tokens
                    .iter()
                    .all(|token| token.version == tokens[0].version)
            );
            assert!(tokens.iter().all(|token| token.token == tokens[0].token));
            assert_eq!(world.upstream(app), 1);
        }
    }
}

#[tokio::test]
async fn waiters_on_every_replica_share_a_failure_too() {
    let world = World::on_redis(2).await;
    let refused = Fault {
        delay_ms: Some(300),
        errcode: Some(40125),
        times: 10,
        ..Fault::at(endpoint(NEWS))
    };
    world.wechat.add_fault(refused).unwrap();
    let callers = [world.caller(0, KEY), world.caller(1, KEY)];
    let (one, other) = tokio::join!(callers[0].token("news"), callers[1].token("news"));
    for status in [one.unwrap_err(), other.unwrap_err()] {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn r05_the_old_token_serves_while_its_refresh_stalls() {
    for redis in [false, true] {
        let world = short_lived(redis, 20).await;
        let dev = world.dev();
        let before = dev.token("news").await.unwrap();
        let slow = Fault {
            delay_ms: Some(2_000),
            ..Fault::at(endpoint(NEWS))
        };
        world.wechat.add_fault(slow).unwrap();
        let mut slowest = Duration::ZERO;
        let after = eventually(
            "the token is refreshed ahead of its expiry",
            PATIENCE,
            async || {
                let asked = Instant::now();
                let token = dev.token("news").await.unwrap();
                slowest = slowest.max(asked.elapsed());
                (token.version != before.version).then_some(token)
            },
        )
        .await;
        assert!(after.version > before.version);
        assert_ne!(after.token, before.token);
        assert!(slowest < Duration::from_millis(1_500), "{slowest:?}");
        assert_eq!(world.upstream(NEWS), 2);
    }
}

#[tokio::test]
async fn r13_a_replica_that_starts_serves_what_redis_holds() {
    let mut world = World::on_redis(1).await;
    let token = world.dev().token("shop").await.unwrap();
    let ticket = world.dev().ticket("news", TicketType::Jsapi).await.unwrap();
    world.add_replica().await;
    let late = world.caller(1, KEY);
    assert_eq!(late.token("shop").await.unwrap().version, token.version);
    let again = late.ticket("news", TicketType::Jsapi).await.unwrap();
    assert_eq!(
        (again.ticket, again.version),
        (ticket.ticket, ticket.version)
    );
    assert_eq!(world.upstream(SHOP), 1);
}
