//! The pages of `wxhub dev` in a browser, on a phone and on a desktop, in Chinese and in English. What they look like is
//! left in `target/screenshots`.

use test_support::{Browser, Screen};

use crate::running::Dev;

/// A Chinese one with a phone and an English one at a desk, and the picks of each from two texts.
async fn readers() -> [(Browser, fn([&'static str; 2]) -> &'static str); 2] {
    let (chinese, english) = tokio::join!(
        Browser::start(Screen::Phone, "zh-CN"),
        Browser::start(Screen::Desktop, "en-US"),
    );
    [(chinese, |[zh, _]| zh), (english, |[_, en]| en)]
}

#[tokio::test]
async fn the_phone_writes_and_logs_in() {
    let dev = Dev::start(&[], &[]).await;
    for (browser, pick) in readers().await {
        let language = pick(["zh", "en"]);
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
    for (browser, pick) in readers().await {
        let language = pick(["zh", "en"]);
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
async fn the_debug_page_signs_in_signs_itself_and_decrypts() {
    let dev = Dev::start(&[], &[]).await;
    for (browser, pick) in readers().await {
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
        browser
            .screenshot(&format!("debug-{}", pick(["zh", "en"])))
            .await;

        browser.click("#sign-out").await;
        browser.reads("#me", nobody).await;
        browser.complains_of_nothing().await;
    }
}
