//! Codes that a mini program's server exchanges for a user.

use crate::world::{NEWS, NEWS_SECRET, SHOP, SHOP_SECRET, World, errcode, text};

#[tokio::test]
async fn a_code_is_its_user_once() {
    let world = World::start().await;
    let login = world.state.login(SHOP, None).unwrap();
    let session = world.exchange(SHOP, SHOP_SECRET, &login.js_code).await;
    assert!(session.get("errcode").is_none());
    assert_eq!(text(&session["openid"]), login.open_id);
    assert_eq!(text(&session["openid"]), world.default_user(SHOP));
    assert_eq!(text(&session["session_key"]).len(), 24);
    assert_eq!(text(&session["unionid"]).len(), 28);
    assert_eq!(
        errcode(&world.exchange(SHOP, SHOP_SECRET, &login.js_code).await),
        40163
    );
}

#[tokio::test]
async fn a_code_lasts_five_minutes() {
    let world = World::start().await;
    let login = world.state.login(SHOP, None).unwrap();
    world.pass(300);
    assert_eq!(
        errcode(&world.exchange(SHOP, SHOP_SECRET, &login.js_code).await),
        40029
    );
}

#[tokio::test]
async fn a_code_is_of_its_app_and_needs_the_secret() {
    let mut config = sandbox::Config::dev("http://127.0.0.1:1");
    let mut other = config.accounts[0].clone();
    other.app_id = "wx0000000000000003".to_owned();
    other.original_id = "gh_000000000003".to_owned();
    config.accounts.push(other);
    let world = World::with(config).await;
    let code = world.state.login(SHOP, None).unwrap().js_code;
    assert_eq!(
        errcode(
            &world
                .exchange("wx0000000000000003", SHOP_SECRET, &code)
                .await
        ),
        40029
    );
    assert_eq!(errcode(&world.exchange(SHOP, "wrong", &code).await), 40125);
    assert_eq!(
        errcode(&world.exchange("wx9", SHOP_SECRET, &code).await),
        40013
    );
    assert_eq!(
        errcode(&world.exchange(NEWS, NEWS_SECRET, &code).await),
        40013
    );
    assert_eq!(errcode(&world.exchange(SHOP, SHOP_SECRET, "").await), 41008);
    assert_eq!(
        errcode(&world.exchange(SHOP, SHOP_SECRET, "forged").await),
        40029
    );
    assert_eq!(errcode(&world.exchange(SHOP, SHOP_SECRET, &code).await), 0);
}

#[tokio::test]
async fn a_named_user_exists_from_then_on_and_every_login_renews_the_session_key() {
    let world = World::start().await;
    let open_id = "oabcdefghijklmnopqrstuvwxyz1";
    let mut keys = Vec::new();
    for _ in 0..2 {
        let code = world.state.login(SHOP, Some(open_id)).unwrap().js_code;
        let session = world.exchange(SHOP, SHOP_SECRET, &code).await;
        assert_eq!(session["openid"], open_id);
        keys.push(text(&session["session_key"]));
    }
    assert_ne!(keys[0], keys[1]);
}
