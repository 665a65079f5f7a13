//! Web OAuth: the authorize page, in a browser or played, and what its codes are good for.

use axum::http::{Method, StatusCode};
use reqwest::{
    Url,
    header::{ACCEPT_LANGUAGE, COOKIE, LOCATION, SET_COOKIE},
    redirect::Policy,
};
use sandbox::Authorize;
use serde_json::{Value, json};

use crate::world::{NEWS, NEWS_SECRET, SHOP, SHOP_SECRET, World, errcode, text};

const SOMEBODY: &str = "oabcdefghijklmnopqrstuvwxyz1";

fn link(world: &World, app_id: &str, redirect_uri: &str, rest: &str) -> String {
    let url = Url::parse_with_params("http://x/", [("u", redirect_uri)]).unwrap();
    let encoded = url.query().unwrap().trim_start_matches("u=").to_owned();
    format!(
        "{}/connect/oauth2/authorize?appid={app_id}&redirect_uri={encoded}&response_type=code&{rest}#wechat_redirect",
        world.url
    )
}

fn asking(world: &World, scope: &str) -> String {
    let rest = format!("scope={scope}&state=S1");
    link(world, NEWS, "http://127.0.0.1:8081/back?a=b", &rest)
}

fn query(url: &str, name: &str) -> Option<String> {
    let url = Url::parse(url).unwrap();
    url.query_pairs()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The code that somebody's visit makes.
fn code(world: &World, visit: &Authorize) -> String {
    let callback_url = world.state.authorize(visit).unwrap().callback_url.unwrap();
    query(&callback_url, "code").unwrap()
}

fn visit(world: &World, scope: &str) -> Authorize {
    Authorize {
        url: asking(world, scope),
        ..Authorize::default()
    }
}

async fn exchange(world: &World, app_id: &str, secret: &str, code: &str) -> Value {
    let query = format!("appid={app_id}&secret={secret}&code={code}&grant_type=authorization_code");
    world
        .get(&format!("/sns/oauth2/access_token?{query}"))
        .await
}

async fn user_info(world: &World, token: &Value, open_id: &str) -> Value {
    let token = text(token);
    let query = format!("access_token={token}&openid={open_id}&lang=zh_CN");
    world.get(&format!("/sns/userinfo?{query}")).await
}

/// A browser that shows each answer rather than following it.
fn browser() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    builder.redirect(Policy::none()).build().unwrap()
}

#[tokio::test]
async fn base_scope_redirects_at_once_and_tells_the_openid_alone() {
    let world = World::start().await;
    let response = browser()
        .get(asking(&world, "snsapi_base"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::FOUND);
    let location = response.headers()[LOCATION].to_str().unwrap();
    assert!(
        location.starts_with("http://127.0.0.1:8081/back?a=b&code="),
        "{location}"
    );
    assert!(location.ends_with("&state=S1"), "{location}");

    let code = query(location, "code").unwrap();
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    assert_eq!(text(&grant["openid"]), world.default_user(NEWS));
    assert_eq!(
        (&grant["scope"], &grant["expires_in"]),
        (&json!("snsapi_base"), &json!(7200))
    );
    for absent in ["errcode", "unionid", "is_snapshotuser"] {
        assert!(grant.get(absent).is_none(), "{absent}");
    }
    let open_id = text(&grant["openid"]);
    let answer = user_info(&world, &grant["access_token"], &open_id).await;
    assert_eq!(errcode(&answer), 48001);
    let calls = world.state.calls(Some(NEWS));
    assert_eq!(calls.count("/connect/oauth2/authorize", "ok"), 1);
    assert_eq!(calls.count("/sns/oauth2/access_token", "ok"), 1);
    assert_eq!(calls.count("/sns/userinfo", "48001"), 1);
}

#[tokio::test]
async fn consent_tells_nickname_picture_and_unionid() {
    let world = World::start().await;
    let code = code(&world, &visit(&world, "snsapi_userinfo"));
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    let open_id = text(&grant["openid"]);
    let answer = user_info(&world, &grant["access_token"], &open_id).await;
    assert_eq!(answer["openid"], grant["openid"]);
    assert_eq!(answer["unionid"], grant["unionid"]);
    assert!(!text(&answer["nickname"]).is_empty());
    assert!(text(&answer["headimgurl"]).starts_with("https://"));
    // One person in both accounts.
    let login = world.state.login(SHOP, None).unwrap();
    let session = world.exchange(SHOP, SHOP_SECRET, &login.js_code).await;
    assert_eq!(session["unionid"], grant["unionid"]);
}

#[tokio::test]
async fn a_code_is_its_apps_once_for_five_minutes() {
    let mut config = sandbox::Config::dev("http://127.0.0.1:1");
    let mut other = config.accounts[1].clone();
    other.app_id = "wx0000000000000003".to_owned();
    other.original_id = "gh_000000000003".to_owned();
    config.accounts.push(other);
    let world = World::with(config).await;
    let fresh = || code(&world, &visit(&world, "snsapi_base"));

    let code = fresh();
    let other = exchange(&world, "wx0000000000000003", NEWS_SECRET, &code).await;
    assert_eq!(errcode(&other), 40029);
    assert_eq!(
        errcode(&exchange(&world, NEWS, "wrong", &code).await),
        40125
    );
    assert_eq!(
        errcode(&exchange(&world, SHOP, SHOP_SECRET, &code).await),
        40013
    );
    assert_eq!(
        errcode(&exchange(&world, NEWS, NEWS_SECRET, "").await),
        41008
    );
    assert_eq!(
        errcode(&exchange(&world, NEWS, NEWS_SECRET, &code).await),
        0
    );
    assert_eq!(
        errcode(&exchange(&world, NEWS, NEWS_SECRET, &code).await),
        40163
    );
    let late = fresh();
    world.pass(300);
    assert_eq!(
        errcode(&exchange(&world, NEWS, NEWS_SECRET, &late).await),
        40029
    );
}

#[tokio::test]
async fn a_user_token_is_of_one_user_and_expires() {
    let world = World::start().await;
    let code = code(&world, &visit(&world, "snsapi_userinfo"));
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    let (token, open_id) = (text(&grant["access_token"]), text(&grant["openid"]));
    let check = async |token: &str, open_id: &str| {
        let query = format!("access_token={token}&openid={open_id}");
        errcode(&world.get(&format!("/sns/auth?{query}")).await)
    };
    assert_eq!(check(&token, &open_id).await, 0);
    assert_eq!(check(&token, SOMEBODY).await, 40003);
    assert_eq!(check(&token, "").await, 41009);
    assert_eq!(check("", &open_id).await, 41001);
    assert_eq!(check("forged", &open_id).await, 40001);
    // The account's own token is none of a user's, and the other way round.
    let own = world.token(NEWS).await;
    assert_eq!(check(&own, &open_id).await, 40001);
    assert_eq!(world.verdict(&token).await, 40001);
    world.pass(7200);
    assert_eq!(check(&token, &open_id).await, 42001);
    let answer = user_info(&world, &grant["access_token"], &open_id).await;
    assert_eq!(errcode(&answer), 42001);

    let refresh = async |token: &str| {
        let query = format!("appid={NEWS}&grant_type=refresh_token&refresh_token={token}");
        world
            .get(&format!("/sns/oauth2/refresh_token?{query}"))
            .await
    };
    let refreshed = refresh(&text(&grant["refresh_token"])).await;
    assert_eq!(refreshed["scope"], "snsapi_userinfo");
    assert_eq!(check(&text(&refreshed["access_token"]), &open_id).await, 0);
    assert_eq!(errcode(&refresh("forged").await), 40030);
    world.pass(30 * 86_400);
    assert_eq!(
        errcode(&refresh(&text(&grant["refresh_token"])).await),
        42002
    );
}

#[tokio::test]
async fn a_snapshot_shows_a_made_up_user() {
    let world = World::start().await;
    let snapshot = Authorize {
        snapshot: true,
        ..visit(&world, "snsapi_userinfo")
    };
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code(&world, &snapshot)).await;
    assert_eq!(grant["is_snapshotuser"], 1);
    let open_id = text(&grant["openid"]);
    assert_ne!(open_id, world.default_user(NEWS));
    let answer = user_info(&world, &grant["access_token"], &open_id).await;
    assert_eq!(errcode(&answer), 48001);

    // As the link asks for it, unless the user consented before.
    let forced = link(
        &world,
        NEWS,
        "http://localhost/",
        "scope=snsapi_userinfo&state=S1&forceSnapShot=true",
    );
    let follow = async || {
        let response = browser().get(&forced).send().await.unwrap();
        let location = response.headers()[LOCATION].to_str().unwrap().to_owned();
        let code = query(&location, "code").unwrap();
        exchange(&world, NEWS, NEWS_SECRET, &code).await
    };
    assert_eq!(follow().await["is_snapshotuser"], 1);
    code(&world, &visit(&world, "snsapi_userinfo"));
    assert!(follow().await.get("is_snapshotuser").is_none());
}

#[tokio::test]
async fn somebody_refuses() {
    let world = World::start().await;
    let refusal = Authorize {
        refuse: true,
        open_id: Some(SOMEBODY.to_owned()),
        ..visit(&world, "snsapi_userinfo")
    };
    let refused = world.state.authorize(&refusal).unwrap();
    assert_eq!(
        refused.callback_url.as_deref(),
        Some("http://127.0.0.1:8081/back?a=b&state=S1")
    );
    world.state.set_refusals_return(false);
    let refused = world.state.authorize(&refusal).unwrap();
    assert_eq!(refused.callback_url, None);
    let nothing_asked = Authorize {
        refuse: true,
        ..visit(&world, "snsapi_base")
    };
    world.state.authorize(&nothing_asked).unwrap_err();
}

#[tokio::test]
async fn a_wrong_link_is_an_error_page() {
    let world = World::start().await;
    let base = "scope=snsapi_base&state=S1";
    let page = "http://127.0.0.1:8081/back";
    for (app_id, redirect_uri, rest, expected) in [
        (NEWS, "https://evil.example.com/", base, "10003"),
        (NEWS, "http://sub.localhost/", base, "10003"),
        (NEWS, "http://127.0.0.1@evil.example.com/", base, "10003"),
        (NEWS, "javascript:alert(1)", base, "10003"),
        (NEWS, page, "scope=snsapi_login&state=S1", "10005"),
        (NEWS, page, "scope=&state=S1", "10010"),
        (NEWS, "", base, "10011"),
        ("", page, base, "10012"),
        (NEWS, page, "scope=snsapi_base&state=", "10013"),
        (SHOP, page, base, "10016"),
        ("wx9", page, base, "No account"),
        (NEWS, page, "state=S1&scope=snsapi_base", "cannot be opened"),
        (
            NEWS,
            page,
            "scope=snsapi_base&state=S_1",
            "cannot be opened",
        ),
    ] {
        let url = link(&world, app_id, redirect_uri, rest);
        let response = browser().get(&url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let shown = response.text().await.unwrap();
        assert!(shown.contains(expected), "{url}: {shown}");
        let played = Authorize {
            url,
            ..Authorize::default()
        };
        let error = world.state.authorize(&played).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut bare = visit(&world, "snsapi_base");
    bare.url = bare.url.replace("#wechat_redirect", "");
    let error = world.state.authorize(&bare).unwrap_err().to_string();
    assert!(error.contains("#wechat_redirect"), "{error}");
}

#[tokio::test]
async fn the_page_asks_in_the_browsers_language_and_its_buttons_answer() {
    let world = World::start().await;
    let browser = browser();
    let url = asking(&world, "snsapi_userinfo");
    for (language, allow) in [("zh-CN,zh;q=0.9", ">允许<"), ("en-US", ">Allow<")] {
        let request = browser.get(&url).header(ACCEPT_LANGUAGE, language);
        let shown = request.send().await.unwrap().text().await.unwrap();
        assert!(shown.contains(allow), "{shown}");
        assert!(shown.contains("gh_000000000002"), "{shown}");
    }

    let press = async |decision: &str, user: &str| {
        let request = browser.post(&url);
        let body = format!("user={user}&decision={decision}");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(body).send().await.unwrap()
    };
    let second = world.state.user(NEWS, None, None).unwrap();
    let response = press("refuse", &second.open_id).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(
        response.headers()[LOCATION],
        "http://127.0.0.1:8081/back?a=b&state=S1"
    );
    let response = press("allow", &second.open_id).await;
    let location = response.headers()[LOCATION].to_str().unwrap();
    let code = query(location, "code").unwrap();
    let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    assert_eq!(text(&grant["openid"]), second.open_id);
    assert_eq!(
        press("allow", SOMEBODY).await.status(),
        StatusCode::BAD_REQUEST
    );

    // Who consented is not asked again, unless the link insists, and stays who they are.
    let silent = browser.get(&url).header(COOKIE, &cookie).send();
    let silent = silent.await.unwrap();
    assert_eq!(silent.status(), StatusCode::FOUND);
    let code = query(silent.headers()[LOCATION].to_str().unwrap(), "code").unwrap();
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    assert_eq!(text(&grant["openid"]), second.open_id);
    let insistent = url.replace("#", "&forcePopup=true#");
    let asked = browser.get(insistent).header(COOKIE, cookie).send();
    assert_eq!(asked.await.unwrap().status(), StatusCode::OK);

    world.state.set_refusals_return(false);
    let closed = press("refuse", &second.open_id).await;
    assert_eq!(closed.status(), StatusCode::OK);
    assert!(closed.text().await.unwrap().contains("closed"));
}

#[tokio::test]
async fn the_control_side_plays_the_user() {
    let world = World::start().await;
    let body = json!({"url": asking(&world, "snsapi_userinfo"), "open_id": SOMEBODY});
    let (status, authorized) = world.control(Method::POST, "authorize", &body).await;
    assert_eq!(
        (status, &authorized["open_id"]),
        (StatusCode::OK, &json!(SOMEBODY))
    );
    let code = query(&text(&authorized["callback_url"]), "code").unwrap();
    let grant = exchange(&world, NEWS, NEWS_SECRET, &code).await;
    assert_eq!(grant["openid"], SOMEBODY);

    let (status, _) = world
        .control(Method::POST, "refusals", &json!({"return": false}))
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let body = json!({"url": asking(&world, "snsapi_userinfo"), "refuse": true});
    let (_, refused) = world.control(Method::POST, "authorize", &body).await;
    assert_eq!(refused["callback_url"], Value::Null);
    let (status, problem) = world
        .control(Method::POST, "authorize", &json!({"url": "http://x/"}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
}
