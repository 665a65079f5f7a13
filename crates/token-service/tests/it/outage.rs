//! Redis away, hanging, or back and empty (R11), and what the ledger in it tells (R8, R14).

use std::time::{Duration, Instant};

use proto::token::v1::{ListCredentialsRequest, RefreshAccessTokenRequest, TicketType};
use redis::AsyncCommands as _;
use test_support::eventually;
use token_service::credential::ledger::Ledger;
use tonic::Code;

use crate::{
    single_flight::short_lived,
    world::{KEY, NEWS, PATIENCE, SHOP, World, get},
};

async fn redis(world: &World) -> redis::aio::MultiplexedConnection {
    let url = world.redis.as_ref().unwrap().url();
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn record(app: &str) -> String {
    format!("wxhub:token:v1:{{{app}}}:access_token")
}

#[tokio::test]
async fn r11_without_redis_memory_serves_and_classic_apps_get_no_second_refresher() {
    let world = World::on_redis(1).await;
    let dev = world.dev();
    let token = dev.token("shop").await.unwrap();
    world.redis.as_ref().unwrap().kill();
    assert_eq!(dev.token("shop").await.unwrap().version, token.version);
    let status = dev.token("news").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(world.upstream(NEWS), 0);

    // Redis comes back empty: what was held is put back, and everything goes on.
    world.redis.as_ref().unwrap().restart().await;
    let news = eventually("the classic app gets its token", PATIENCE, async || {
        dev.token("news").await
    })
    .await;
    assert!(news.version > 0);
    let mut world = world;
    eventually("the token is put back", PATIENCE, async || {
        let url = world.redis.as_ref().unwrap().url();
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let version: Option<u64> = redis::cmd("HGET")
            .arg("wxhub:token:v1:{wx0000000000000001}:access_token")
            .arg("version")
            .query_async(&mut connection)
            .await
            .unwrap();
        version == Some(token.version)
    })
    .await;
    world.add_replica().await;
    assert_eq!(
        world.caller(1, KEY).token("shop").await.unwrap().version,
        token.version
    );
    assert_eq!(world.upstream(SHOP), 1);
}

#[tokio::test]
async fn a_stable_app_gets_its_token_even_without_redis() {
    let world = World::on_redis(1).await;
    world.redis.as_ref().unwrap().kill();
    let token = world.dev().token("shop").await.unwrap();
    assert_eq!(
        world.dev().token("shop").await.unwrap().version,
        token.version
    );
    assert_eq!(world.upstream(SHOP), 1);
}

#[tokio::test]
async fn r11_while_redis_is_away_stable_apps_go_on_and_classic_ones_wait_on_every_replica() {
    let world = short_lived(true, 12).await;
    let callers = [world.caller(0, KEY), world.caller(1, KEY)];
    for caller in &callers {
        caller.token("shop").await.unwrap();
        caller.token("news").await.unwrap();
    }
    let before = callers[0].token("shop").await.unwrap();
    world.redis.as_ref().unwrap().kill();
    let news = world.upstream(NEWS);

    // The stable one lives for 7 s: it is replaced without a failed read; the classic one is served to its end.
    let mut expired = [false, false];
    eventually("news expires and shop lives on", PATIENCE, async || {
        for (caller, expired) in callers.iter().zip(&mut expired) {
            caller.token("shop").await.unwrap();
            if let Err(status) = caller.token("news").await {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                *expired = true;
            }
        }
        let now = callers[1].token("shop").await.unwrap();
        (expired == [true, true] && now.token != before.token).then_some(())
    })
    .await;
    assert_eq!(world.upstream(NEWS), news, "no second refresher");

    world.redis.as_ref().unwrap().restart().await;
    eventually("both replicas agree again", PATIENCE, async || {
        for app in ["news", "shop"] {
            let one = callers[0].token(app).await.map_err(|_| app)?;
            let other = callers[1].token(app).await.map_err(|_| app)?;
            if one.token != other.token || one.version != other.version {
                return Err(app);
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn r11_a_redis_that_hangs_slows_no_read_and_is_taken_up_again() {
    let world = World::on_redis(2).await;
    let callers = [world.caller(0, KEY), world.caller(1, KEY)];
    for caller in &callers {
        caller.token("news").await.unwrap();
    }
    world.redis.as_ref().unwrap().pause();
    let mut took = Vec::new();
    for caller in callers.iter().cycle().take(20) {
        let asked = Instant::now();
        caller.token("news").await.unwrap();
        took.push(asked.elapsed());
    }
    // Less than Redis is given to answer; a busy machine may hold up one or the other.
    took.sort();
    assert!(took[10] < Duration::from_millis(400), "{took:?}");
    // What is not in memory is refused, not waited for without end.
    let status = callers[0]
        .ticket("news", TicketType::Jsapi)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    world.redis.as_ref().unwrap().resume();
    eventually("tickets come again", PATIENCE, async || {
        callers[1].ticket("news", TicketType::Jsapi).await
    })
    .await;
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn r11_a_redis_that_comes_back_empty_gets_its_ledger_and_values_back() {
    let world = World::on_redis(2).await;
    let token = world.dev().token("news").await.unwrap();
    let _: () = redis(&world)
        .await
        .hset_multiple(record(NEWS), &[("calls", 1_900), ("rejected", 4)])
        .await
        .unwrap();
    let listed = async || {
        let list = world
            .dev()
            .0
            .list_credentials(ListCredentialsRequest::default())
            .await
            .unwrap()
            .into_inner();
        list.credentials
            .into_iter()
            .find(|entry| entry.app_id == NEWS)
            .unwrap()
    };
    eventually("memory knows", PATIENCE, async || {
        (listed().await.upstream_calls_today == 1_900).then_some(())
    })
    .await;
    world.redis.as_ref().unwrap().restart().await;
    eventually("Redis knows again", PATIENCE, async || {
        let fields: Vec<Option<u64>> = redis(&world)
            .await
            .hmget(record(NEWS), &["version", "calls", "rejected"])
            .await
            .unwrap();
        (fields == [Some(token.version), Some(1_900), Some(4)])
            .then_some(())
            .ok_or_else(|| format!("{fields:?}"))
    })
    .await;
    assert_eq!(listed().await.version, token.version);
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn what_a_lost_master_key_sealed_is_replaced_once_it_is_expired_or_by_an_operator() {
    let mut world = World::on_redis(1).await;
    let news = world.dev().token("news").await.unwrap();
    let shop = world.dev().token("shop").await.unwrap();
    world.lose_master_key();
    world.add_replica().await;
    let dev = world.caller(1, KEY);
    // It is alive: another replica may read and refresh it.
    for app in ["news", "shop"] {
        let status = dev.token(app).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
    assert_eq!((world.upstream(NEWS), world.upstream(SHOP)), (1, 1));

    let refresh = RefreshAccessTokenRequest {
        app_id: "shop".to_owned(),
        force: false,
    };
    let answer = dev.0.clone().refresh_access_token(refresh).await.unwrap();
    let refreshed = answer.into_inner().access_token.unwrap();
    assert_eq!(refreshed.token, shop.token);
    assert_eq!(dev.token("shop").await.unwrap().token, shop.token);

    let () = redis(&world)
        .await
        .hset(record(NEWS), "expire", 1)
        .await
        .unwrap();
    let after = eventually(
        "an expired value is in nobody's way",
        PATIENCE,
        async || dev.token("news").await,
    )
    .await;
    assert!(after.version > news.version);
    assert_eq!(world.upstream(NEWS), 2);
}

#[tokio::test]
async fn r08_half_of_a_days_budget_is_told_by_one_alarm() {
    let world = World::on_redis(2).await;
    #[expect(
        clippy::disallowed_methods,
        reason = "the service runs on the wall clock"
    )]
    let today = Ledger::default().on(std::time::SystemTime::now()).day;
    let tickets = record(NEWS).replace("access_token", "jsapi_ticket");
    let page = [
        ("day", today),
        ("calls", 999),
        ("forced", 0),
        ("rejected", 0),
        ("exhausted", 0),
    ];
    let _: () = redis(&world)
        .await
        .hset_multiple(tickets, &page)
        .await
        .unwrap();
    for replica in [0, 1] {
        let caller = world.caller(replica, KEY);
        caller.ticket("news", TicketType::Jsapi).await.unwrap();
    }
    // The replicas share this process, and so its metrics; no other test makes a thousand calls for tickets.
    let metrics = get(world.replicas[0].addrs.ops, "/metrics").await;
    let alarm = metrics.lines().find(|line| {
        line.starts_with("wxhub_token_quota_alarms_total")
            && line.contains("jsapi_ticket")
            && line.contains("percent=\"50\"")
    });
    assert!(alarm.unwrap().ends_with(" 1"), "{alarm:?}");
}

#[tokio::test]
async fn r14_who_else_refreshes_is_told_by_list_credentials_and_metrics() {
    let world = World::on_redis(1).await;
    world.dev().token("news").await.unwrap();
    let _: () = redis(&world)
        .await
        .hset_multiple(record(NEWS), &[("calls", 9), ("rejected", 3)])
        .await
        .unwrap();
    let ops = world.replicas[0].addrs.ops;
    // Other tests of this process have their own worlds and the same metrics: names alone are compared.
    eventually("metrics tell of it", PATIENCE, async || {
        let metrics = get(ops, "/metrics").await;
        let missing = [
            "wxhub_token_foreign_refreshes_today",
            "wxhub_token_forced_refreshes_today",
            "wxhub_token_upstream_calls_today",
            "wxhub_token_age_seconds",
            "wxhub_token_expires_in_seconds",
        ]
        .into_iter()
        .find(|name| !metrics.contains(*name));
        missing.map_or(Ok(()), Err)
    })
    .await;
    let request = ListCredentialsRequest::default();
    eventually("the list tells of it", PATIENCE, async || {
        let list = world.dev().0.list_credentials(request.clone()).await;
        let list = list.unwrap().into_inner();
        let news = list.credentials.iter().find(|entry| entry.app_id == NEWS);
        let news = news.unwrap();
        (news.foreign_refreshes_today == 3 && news.upstream_calls_today == 9).then_some(())
    })
    .await;
}
