//! Access tokens, tickets and quotas.

use sandbox::Config;
use serde_json::json;

use crate::world::{NEWS, NEWS_SECRET, SHOP, SHOP_SECRET, World, errcode, text};

#[tokio::test]
async fn a_token_has_no_errcode_and_wechats_form() {
    let world = World::start().await;
    let answer = world.try_token(SHOP, SHOP_SECRET).await;
    assert!(answer.get("errcode").is_none());
    assert_eq!(answer["expires_in"], 7200);
    assert!(text(&answer["access_token"]).starts_with("50_"));
}

#[tokio::test]
async fn the_token_before_has_five_minutes_left() {
    let world = World::start().await;
    let first = world.token(SHOP).await;
    let second = world.token(SHOP).await;
    assert_eq!(
        [world.verdict(&first).await, world.verdict(&second).await],
        [0, 0]
    );
    world.pass(300);
    assert_eq!(
        [world.verdict(&first).await, world.verdict(&second).await],
        [40001, 0]
    );
}

#[tokio::test]
async fn a_token_is_dead_once_two_newer_exist() {
    let world = World::start().await;
    let first = world.token(SHOP).await;
    world.token(SHOP).await;
    let third = world.token(SHOP).await;
    assert_eq!(
        [world.verdict(&first).await, world.verdict(&third).await],
        [40001, 0]
    );
}

#[tokio::test]
async fn a_token_expires() {
    let world = World::start().await;
    let token = world.token(SHOP).await;
    world.pass(7200);
    assert_eq!(world.verdict(&token).await, 42001);
}

#[tokio::test]
async fn stable_and_classic_tokens_do_not_touch_each_other() {
    let world = World::start().await;
    let stable = text(&world.stable_token(SHOP, SHOP_SECRET, false).await["access_token"]);
    let classic = world.token(SHOP).await;
    for _ in 0..3 {
        world.token(NEWS).await;
        world.token(SHOP).await;
    }
    assert_eq!(
        [world.verdict(&stable).await, world.verdict(&classic).await],
        [0, 40001]
    );
}

#[tokio::test]
async fn a_stable_token_stays_until_its_last_five_minutes() {
    let world = World::start().await;
    let first = world.stable_token(SHOP, SHOP_SECRET, false).await;
    world.pass(6800);
    let again = world.stable_token(SHOP, SHOP_SECRET, false).await;
    assert_eq!(first["access_token"], again["access_token"]);
    assert!((300..=400).contains(&again["expires_in"].as_u64().unwrap()));
    world.pass(110);
    let next = world.stable_token(SHOP, SHOP_SECRET, false).await;
    assert_ne!(first["access_token"], next["access_token"]);
    assert_eq!(world.verdict(&text(&first["access_token"])).await, 0);
}

#[tokio::test]
async fn forcing_a_stable_token_needs_thirty_seconds_between() {
    let world = World::start().await;
    let force = async || text(&world.stable_token(SHOP, SHOP_SECRET, true).await["access_token"]);
    let first = force().await;
    assert_eq!(first, force().await);
    world.pass(30);
    let second = force().await;
    assert_ne!(first, second);
    world.pass(30);
    force().await;
    assert_eq!(world.verdict(&first).await, 40001);
}

#[tokio::test]
async fn wrong_credentials_are_told_apart() {
    let world = World::start().await;
    let get = async |query: &str| errcode(&world.get(&format!("/cgi-bin/token?{query}")).await);
    assert_eq!(
        get("grant_type=client_credential&appid=wx9&secret=x").await,
        40013
    );
    assert_eq!(get("grant_type=client_credential&secret=x").await, 41002);
    assert_eq!(
        get(&format!("grant_type=client_credential&appid={SHOP}")).await,
        41004
    );
    assert_eq!(
        get(&format!(
            "grant_type=client_credential&appid={SHOP}&secret=x"
        ))
        .await,
        40001
    );
    assert_eq!(
        get(&format!(
            "grant_type=password&appid={SHOP}&secret={SHOP_SECRET}"
        ))
        .await,
        40002
    );
    assert_eq!(errcode(&world.stable_token(SHOP, "x", false).await), 40125);
    assert_eq!(errcode(&world.stable_token("wx9", "x", false).await), 40013);
}

#[tokio::test]
async fn methods_and_bodies_are_checked() {
    let world = World::start().await;
    assert_eq!(errcode(&world.get("/cgi-bin/stable_token").await), 43002);
    assert_eq!(
        errcode(&world.post("/cgi-bin/token", &json!({})).await),
        43001
    );
    assert_eq!(
        errcode(&world.post_text("/cgi-bin/stable_token", "").await),
        44002
    );
    assert_eq!(
        errcode(&world.post_text("/cgi-bin/stable_token", "{").await),
        47001
    );
    assert_eq!(
        errcode(&world.post_text("/cgi-bin/stable_token", "[]").await),
        47001
    );
    assert_eq!(
        errcode(
            &world
                .post_text("/cgi-bin/stable_token", r#"{"appid":"\u4f60"}"#)
                .await
        ),
        40033
    );
    assert_eq!(errcode(&world.get("/cgi-bin/nowhere").await), 40066);
}

#[tokio::test]
async fn an_errors_text_ends_in_its_rid() {
    let world = World::start().await;
    let answer = world.get("/cgi-bin/get_api_domain_ip").await;
    let (message, rid) = answer["errmsg"]
        .as_str()
        .unwrap()
        .split_once(" rid: ")
        .unwrap();
    assert_eq!(message, "access_token missing");
    assert_eq!(rid.split('-').map(str::len).collect::<Vec<_>>(), [8, 8, 8]);
    let calls = world.state.calls(None);
    assert_eq!(calls.log.last().unwrap().rid.as_deref(), Some(rid));
}

#[tokio::test]
async fn tokens_are_missing_malformed_or_dead() {
    let world = World::start().await;
    assert_eq!(
        errcode(&world.get("/cgi-bin/get_api_domain_ip").await),
        41001
    );
    assert_eq!(world.verdict("nonsense").await, 40014);
    assert_eq!(
        world.verdict(&format!("50_{}", "a".repeat(128))).await,
        40001
    );
}

#[tokio::test]
async fn invalidated_tokens_and_reset_secrets_are_dead() {
    let world = World::start().await;
    let token = world.token(SHOP).await;
    let stable = text(&world.stable_token(SHOP, SHOP_SECRET, false).await["access_token"]);
    let other = world.token(NEWS).await;
    world.state.invalidate(SHOP).unwrap();
    assert_eq!(
        [world.verdict(&token).await, world.verdict(&stable).await],
        [40001, 40001]
    );
    assert_eq!(world.verdict(&other).await, 0);
    world.state.reset_secret(SHOP, "fresh".to_owned()).unwrap();
    assert_eq!(errcode(&world.try_token(SHOP, SHOP_SECRET).await), 40001);
    assert_eq!(errcode(&world.try_token(SHOP, "fresh").await), 0);
}

#[tokio::test]
async fn tickets_are_for_holders_of_a_token() {
    let world = World::start().await;
    let token = world.token(NEWS).await;
    let ticket = async |kind: &str| {
        world
            .get(&format!(
                "/cgi-bin/ticket/getticket?access_token={token}&type={kind}"
            ))
            .await
    };
    let (jsapi, card) = (ticket("jsapi").await, ticket("wx_card").await);
    assert_eq!(
        (errcode(&jsapi), &jsapi["errmsg"], &jsapi["expires_in"]),
        (0, &json!("ok"), &json!(7200))
    );
    assert_ne!(jsapi["ticket"], card["ticket"]);
    assert_eq!(errcode(&ticket("other").await), 40097);
}

#[tokio::test]
async fn the_daily_quota_ends_and_can_be_cleared() {
    let mut config = Config::dev("http://127.0.0.1:1");
    config.accounts[1]
        .quotas
        .insert("/cgi-bin/token".to_owned(), 2);
    let world = World::with(config).await;
    world.token(NEWS).await;
    let token = world.token(NEWS).await;
    assert_eq!(errcode(&world.try_token(NEWS, NEWS_SECRET).await), 45009);

    let usage = format!("/cgi-bin/openapi/quota/get?access_token={token}");
    let answer = world
        .post(&usage, &json!({"cgi_path": "/cgi-bin/token"}))
        .await;
    assert_eq!(
        answer["quota"],
        json!({"daily_limit": 2, "used": 2, "remain": 0})
    );
    for (path, code) in [
        ("cgi-bin/token", 76003),
        ("/sns/jscode2session", 76022),
        ("/nowhere", 76021),
    ] {
        assert_eq!(
            errcode(&world.post(&usage, &json!({"cgi_path": path})).await),
            code
        );
    }

    let clear = format!("/cgi-bin/clear_quota?access_token={token}");
    assert_eq!(
        errcode(&world.post(&clear, &json!({"appid": SHOP})).await),
        40013
    );
    assert_eq!(
        errcode(&world.post(&clear, &json!({"appid": NEWS})).await),
        0
    );
    assert_eq!(errcode(&world.try_token(NEWS, NEWS_SECRET).await), 0);
}
