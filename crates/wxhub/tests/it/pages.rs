//! The pages of `wxhub dev` in a browser, on a phone and on a desktop, in Chinese and in English. What they look like is
//! left in `target/screenshots`.

use proto::auth::v1::{CreateAccountRequest, auth_service_client::AuthServiceClient};
use serde_json::json;
use test_support::{Browser, Screen};

use crate::running::{Dev, from_caller};

/// A language's name, its tag, and its pick from two texts.
type Language = (
    &'static str,
    &'static str,
    fn([&'static str; 2]) -> &'static str,
);

const LANGUAGES: [Language; 2] = [("zh", "zh-CN", |[zh, _]| zh), ("en", "en-US", |[_, en]| en)];

/// A Chinese reader with a phone, and an English one at a desk.
async fn readers() -> [(Browser, Language); 2] {
    let [chinese, english] = LANGUAGES;
    tokio::join!(
        async { (Browser::start(Screen::Phone, chinese.1).await, chinese) },
        async { (Browser::start(Screen::Desktop, english.1).await, english) },
    )
    .into()
}

#[tokio::test]
async fn the_phone_writes_and_logs_in() {
    let dev = Dev::start(&[], &[]).await;
    for (browser, (language, _, pick)) in readers().await {
        browser.open(&dev.http("sandbox")).await;
        browser.reads("#send", pick(["发送", "Send"])).await;
        browser.fill("#content", "你好 <b>").await;
        browser.click("#send").await;
        browser.reads("#chat .mine", "你好 <b>").await;
        browser.fits().await;
        browser.screenshot(&format!("phone-{language}")).await;

        browser.click("#account option:not(:checked)").await;
        browser.click("#login").await;
        browser.text("#code:not(:empty)").await;
        browser.fits().await;
        browser.screenshot(&format!("phone-shop-{language}")).await;
        browser.complains_of_nothing().await;
    }
}

#[tokio::test]
async fn the_phone_opens_a_link_as_its_user_who_is_asked() {
    let dev = Dev::start(&[], &[]).await;
    let sandbox = dev.http("sandbox");
    let page = format!("{sandbox}/healthz")
        .replace(':', "%3A")
        .replace('/', "%2F");
    let link = format!(
        "{sandbox}/connect/oauth2/authorize?appid=wx0000000000000002&redirect_uri={page}&response_type=code&scope=snsapi_userinfo&state=S1"
    );
    for (browser, (language, _, pick)) in readers().await {
        browser.open(&sandbox).await;
        browser.click("#add").await;
        browser
            .text("#user option:last-child:not(:first-child):checked")
            .await;
        let user = browser.run("return user.value").await;
        browser
            .fill("#link", &format!("{link}#wechat_redirect"))
            .await;
        browser.click("#open").await;

        browser.next_tab().await;
        browser.reads("#allow", pick(["允许", "Allow"])).await;
        assert_eq!(browser.run("return user.value").await, user);
        browser.fits().await;
        browser.screenshot(&format!("authorize-{language}")).await;
        browser.complains_of_nothing().await;
        browser.click("#refuse").await;
        let refused = browser.at("/healthz").await;
        assert_eq!(refused.query(), Some("state=S1"));

        browser.open(&format!("{link}#wechat_redirect")).await;
        browser.click("#allow").await;
        let allowed = browser.at("/healthz?code=").await;
        assert!(allowed.query().unwrap().ends_with("&state=S1"), "{allowed}");

        // A link that is not to the letter is WeChat's to refuse, even to a user who has consented.
        browser.open(&link.replace("&response_type=code", "")).await;
        browser
            .reads(
                "main",
                pick(["该链接无法访问", "This link cannot be opened"]),
            )
            .await;
        browser.fits().await;
        browser
            .screenshot(&format!("authorize-error-{language}"))
            .await;
        browser
            .open(&link.replace("state=S1", "state=S1&forcePopup=true"))
            .await;
        browser.reads("main", "#wechat_redirect").await;
        browser.complains_of_nothing().await;
    }
}

#[tokio::test]
async fn an_h5_page_learns_who_its_user_is() {
    let dev = Dev::start(&[], &[]).await;
    let auth = dev.http("auth-service");
    // Any page will do that is on a host of the app and has no policy of its own.
    let page = format!("{}/healthz?order=7", dev.http("sandbox"));
    let start = |scope: &str, fragment: &str| {
        let page = format!("{page}{fragment}")
            .replace('#', "%23")
            .replace('&', "%26");
        format!("{auth}/oauth/news/start?return_to={page}&scope={scope}")
    };
    let me = format!(
        "return fetch('{auth}/me?app=news', {{credentials: 'include'}}).then((answer) => answer.json())"
    );
    for (browser, (language, _, pick)) in readers().await {
        // Somebody who has not consented yet.
        let user = json!({"app_id": "wx0000000000000002"});
        let user = dev.sandbox("/sandbox/users", &user).await;
        browser.open(&page).await;
        let cookie = format!(
            "wechat_sandbox_user={}; path=/",
            user["union_id"].as_str().unwrap()
        );
        browser.run(&format!("document.cookie = '{cookie}'")).await;

        browser.open(&start("snsapi_userinfo", "#/orders")).await;
        browser.click("#refuse").await;
        let back = browser.at("/healthz").await;
        assert_eq!(back.query(), Some("order=7&error=access_denied"));
        assert_eq!(back.fragment(), Some("/orders"));
        assert_eq!(browser.run(&me).await["code"], "SESSION_INVALID");

        browser.open(&start("snsapi_userinfo", "#/orders")).await;
        browser.click("#allow").await;
        let back = browser.at("/healthz?order=7&wxhub_ticket=").await;
        assert_eq!(back.fragment(), Some("/orders"));
        let signed_in = browser.run(&me).await;
        assert_eq!(signed_in["open_id"], user["open_id"]);
        assert!(
            !signed_in["nickname"].as_str().unwrap().is_empty(),
            "{signed_in}"
        );
        let readable = browser.run("return document.cookie").await;
        assert!(!readable.as_str().unwrap().contains("wxhub"), "{readable}");

        // Whoever is signed in comes straight back, and nothing of WeChat's sticks to the page.
        browser.open(&start("snsapi_userinfo", "")).await;
        let back = browser.at("/healthz?order=7&wxhub_ticket=").await;
        assert!(!back.as_str().contains("wechat_redirect"), "{back}");
        browser
            .run(
                &me.replace("/me", "/logout")
                    .replace("{credentials", "{method: 'POST', credentials")
                    .replace(".json()", ".status"),
            )
            .await;
        assert_eq!(browser.run(&me).await["code"], "SESSION_INVALID");
        browser.open(&start("snsapi_base", "")).await;
        let back = browser.at("/healthz?order=7&wxhub_ticket=").await;
        assert!(!back.as_str().contains("wechat_redirect"), "{back}");
        assert_eq!(browser.run(&me).await["open_id"], signed_in["open_id"]);

        let elsewhere = format!("{auth}/oauth/news/start?return_to=https://evil.example.com/");
        browser.open(&elsewhere).await;
        browser
            .reads("h1", pick(["无法登录", "Cannot sign in"]))
            .await;
        browser.fits().await;
        browser
            .screenshot(&format!("oauth-problem-{language}"))
            .await;
    }
}

#[tokio::test]
async fn an_account_is_bound_to_whoever_scans_its_code() {
    let dev = Dev::start(&[], &[]).await;
    let (auth, sandbox) = (dev.http("auth-service"), dev.http("sandbox"));
    let account = CreateAccountRequest {
        account: "王小明".to_owned(),
        password: "correct horse".to_owned(),
    };
    let mut accounts = AuthServiceClient::new(dev.channel("auth-service"));
    let made = accounts.create_account(from_caller("dev-key", account));
    made.await.unwrap();

    for (language, tag, pick) in LANGUAGES {
        let (desk, phone) = tokio::join!(
            Browser::start(Screen::Desktop, tag),
            Browser::start(Screen::Phone, tag)
        );
        let looks = async |browser: &Browser, name: &str| {
            browser.fits().await;
            browser.complains_of_nothing().await;
            browser.screenshot(&format!("bind-{name}-{language}")).await;
        };

        desk.open(&format!("{auth}/bind")).await;
        desk.reads("h1", pick(["登录账号", "Sign in"])).await;
        desk.fill("[name=account]", "王小明").await;
        desk.fill("[name=password]", "wrong password").await;
        desk.click("button").await;
        desk.text("[role=alert]").await;
        let complaints = desk.complaints().await;
        assert!(
            complaints.iter().all(|one| one.contains("401")),
            "{complaints:?}"
        );
        desk.screenshot(&format!("bind-refused-{language}")).await;
        desk.fill("[name=password]", "correct horse").await;
        desk.click("button").await;
        desk.at("/bind").await;
        desk.reads(
            "#follow",
            pick(["请用微信扫描二维码", "Scan the code with WeChat"]),
        )
        .await;
        let drawn = desk
            .run("return document.querySelector('.qr').naturalWidth")
            .await;
        assert!(drawn.as_u64().unwrap() > 100, "{drawn}");
        looks(&desk, "code").await;

        // What the QR code says is also a link on its page.
        let code = desk
            .run("return document.querySelector('a[href*=scan]').href")
            .await;
        phone.open(&sandbox).await;
        phone.fill("#link", code.as_str().unwrap()).await;
        phone.click("#open").await;
        phone.next_tab().await;
        phone.text("#allow").await;
        desk.reads("#follow", pick(["已扫描", "Scanned"])).await;
        looks(&desk, "scanned").await;
        phone.click("#allow").await;
        phone.reads("h1", pick(["绑定成功", "Bound"])).await;
        phone.reads("main", "王小明").await;
        looks(&phone, "phone").await;
        desk.reads("h1", pick(["已绑定微信", "WeChat is bound"]))
            .await;
        looks(&desk, "bound").await;

        if language == "zh" {
            desk.click("form[action='/bind/unbind'] button").await;
            desk.reads("#follow", "请用微信扫描二维码").await;
        } else {
            phone.click("form[action='/bind/undo'] button").await;
            phone.reads("h1", "Undone").await;
            looks(&phone, "undone").await;
            desk.open(&format!("{auth}/bind")).await;
            desk.text("#follow").await;
        }
        desk.click("form[action='/account/logout'] button").await;
        desk.reads("h1", pick(["登录账号", "Sign in"])).await;

        // The login and the code on a phone, too.
        phone.open(&format!("{auth}/login")).await;
        looks(&phone, "phone-login").await;
        phone.fill("[name=account]", "王小明").await;
        phone.fill("[name=password]", "correct horse").await;
        phone.click("button").await;
        phone.text("#follow").await;
        looks(&phone, "phone-code").await;
    }
}

#[tokio::test]
async fn the_debug_page_signs_in_signs_itself_and_decrypts() {
    let dev = Dev::start(&[], &[]).await;
    for (browser, (language, _, pick)) in readers().await {
        let url = format!("{}/debug", dev.http("auth-service"));
        browser.open(&url).await;
        browser
            .reads("h1", pick(["wxhub 调试页", "wxhub debug page"]))
            .await;
        browser.reads("#config", "\"signature\"").await;
        let nobody = pick(["没有登录", "nobody is signed in"]);
        browser.reads("#me", nobody).await;

        // One is asked for the nickname, the other not at all.
        browser.click(pick(["#sign-in", "#sign-in-silently"])).await;
        if pick(["asked", ""]) == "asked" {
            browser.click("#allow").await;
        }
        browser.reads("#me", "\"open_id\"").await;
        assert!(browser.at("wxhub_ticket=").await.path() == "/debug");
        browser.reads("#config", "\"signature\"").await;
        browser.click("#decrypt").await;
        browser.reads("#data", "\"openId\"").await;
        browser.fits().await;
        browser.run("scrollTo(0, 0)").await;
        browser.screenshot(&format!("debug-{language}")).await;

        browser.click("#sign-out").await;
        browser.reads("#me", nobody).await;
        browser.complains_of_nothing().await;
    }
}
