//! `crates/wechat` against this WeChat: the two read the protocol alike.

use std::collections::BTreeMap;

use sandbox::{Authorize, Config, Deliver, Fault};
use wechat::{
    AppId, AppSecret, Class, Client, ClientOptions, CustomerContent, CustomerMessage, Error,
    FormTemplateMessage, OAuthRequest, OAuthScope, OpenId, SubscribeMessage, TemplateMessage,
    TicketType, oauth_authorize_url,
};

use crate::world::{Callback, NEWS, NEWS_SECRET, SHOP, SHOP_SECRET, World};

fn client(world: &World) -> Client {
    Client::new(ClientOptions::new(world.url.parse().unwrap())).unwrap()
}

fn app(id: &str) -> AppId {
    AppId::try_from(id).unwrap()
}

fn user(world: &World, app_id: &str) -> OpenId {
    OpenId::try_from(world.default_user(app_id)).unwrap()
}

fn data(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn credentials_and_logins_are_understood() {
    let world = World::start().await;
    let client = client(&world);
    let (shop, secret) = (app(SHOP), AppSecret::new(SHOP_SECRET));
    let classic = client.access_token(&shop, &secret).await.unwrap();
    let stable = client
        .stable_access_token(&shop, &secret, false)
        .await
        .unwrap();
    assert_ne!(classic.value, stable.value);
    assert_eq!(classic.expires_in.as_secs(), 7200);
    client
        .ticket(&stable.value, TicketType::Jsapi)
        .await
        .unwrap();
    assert!(
        !client
            .api_domain_ip(&classic.value)
            .await
            .unwrap()
            .is_empty()
    );

    let login = world.state.login(SHOP, None).unwrap();
    let session = client
        .code_to_session(&shop, &secret, &login.js_code)
        .await
        .unwrap();
    assert_eq!(session.open_id.as_str(), login.open_id);
    assert!(session.union_id.is_some());
    let error = client
        .code_to_session(&shop, &secret, &login.js_code)
        .await
        .unwrap_err();
    assert_eq!(error.errcode().unwrap().0, 40163);
    assert!(error.rid().is_some());
}

#[tokio::test]
async fn web_oauth_is_understood() {
    let world = World::start().await;
    let client = client(&world);
    let (news, secret) = (app(NEWS), AppSecret::new(NEWS_SECRET));
    let open_url = world.url.parse().unwrap();
    let redirect_uri = "http://127.0.0.1:8081/oauth/news/callback".parse().unwrap();
    let visit = |scope, force_popup, snapshot| Authorize {
        url: oauth_authorize_url(
            &open_url,
            &OAuthRequest {
                app_id: &news,
                redirect_uri: &redirect_uri,
                scope,
                state: "S1",
                force_popup,
            },
        )
        .into(),
        snapshot,
        ..Authorize::default()
    };
    let grant = async |visit| {
        let callback_url = world.state.authorize(&visit).unwrap().callback_url.unwrap();
        let (_, query) = callback_url.split_once("?code=").unwrap();
        let code = query.strip_suffix("&state=S1").unwrap();
        client
            .oauth_access_token(&news, &secret, code)
            .await
            .unwrap()
    };

    let base = grant(visit(OAuthScope::Base, false, false)).await;
    assert_eq!(base.scopes, [OAuthScope::Base]);
    assert_eq!(base.open_id, user(&world, NEWS));
    assert_eq!((base.union_id, base.is_snapshot_user), (None, false));
    let error = client
        .oauth_user_info(&base.access_token, &base.open_id)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Grant);

    let full = grant(visit(OAuthScope::UserInfo, true, false)).await;
    let described = client
        .oauth_user_info(&full.access_token, &full.open_id)
        .await
        .unwrap();
    assert_eq!(
        (described.open_id, described.union_id),
        (full.open_id, full.union_id)
    );
    assert!(described.head_img_url.is_some());
    let snapshot = grant(visit(OAuthScope::UserInfo, false, true)).await;
    assert!(snapshot.is_snapshot_user);
}

#[tokio::test]
async fn session_keys_and_phone_numbers_are_understood() {
    let world = World::start().await;
    let client = client(&world);
    let (shop, secret) = (app(SHOP), AppSecret::new(SHOP_SECRET));
    let token = client.access_token(&shop, &secret).await.unwrap().value;
    let login = world.state.login(SHOP, None).unwrap();
    let session = client
        .code_to_session(&shop, &secret, &login.js_code)
        .await
        .unwrap();
    let (open_id, key) = (session.open_id, session.session_key);
    assert!(
        client
            .check_session_key(&token, &open_id, &key)
            .await
            .unwrap()
    );
    let fresh = client
        .reset_session_key(&token, &open_id, &key)
        .await
        .unwrap();
    assert!(
        !client
            .check_session_key(&token, &open_id, &key)
            .await
            .unwrap()
    );
    assert!(
        client
            .check_session_key(&token, &open_id, &fresh)
            .await
            .unwrap()
    );

    let code = world.state.phone_code(SHOP, None).unwrap().code;
    let phone = client
        .phone_number(&token, &code, Some(&open_id))
        .await
        .unwrap();
    assert_eq!(
        (phone.country_code.as_str(), phone.phone_number.len()),
        ("86", 11)
    );
    let error = client.phone_number(&token, &code, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Grant);
}

#[tokio::test]
async fn messages_arrive_as_they_were_meant() {
    let callback = Callback::obliging().await;
    let world = World::with(Config::dev(&callback.url)).await;
    let client = client(&world);
    let shop = client
        .access_token(&app(SHOP), &AppSecret::new(SHOP_SECRET))
        .await
        .unwrap()
        .value;
    let news = client
        .access_token(&app(NEWS), &AppSecret::new(NEWS_SECRET))
        .await
        .unwrap()
        .value;
    let values = data(&[
        ("thing1", "茶 <&> \"壶\""),
        ("amount2", "¥12.50"),
        ("time3", "15:01"),
    ]);

    let template = TemplateMessage {
        to_user: user(&world, NEWS),
        template_id: "TEMPLATE_ORDER_PAID".to_owned(),
        url: None,
        mini_program: None,
        client_msg_id: Some("m-1".to_owned()),
        data: values.clone(),
    };
    let msg_id = client
        .send_template(&news, &template)
        .await
        .unwrap()
        .unwrap();
    let subscribe = SubscribeMessage {
        to_user: user(&world, SHOP),
        template_id: "SUBSCRIBE_ORDER_SHIPPED".to_owned(),
        page: None,
        state: None,
        lang: None,
        data: values,
    };
    client.send_subscribe(&shop, &subscribe).await.unwrap();
    let form = FormTemplateMessage {
        to_user: user(&world, SHOP),
        template_id: "FORM_ORDER_PAID".to_owned(),
        page: None,
        form_id: world.state.form(SHOP, None).unwrap().form_id,
        emphasis_keyword: None,
        data: data(&[("keyword1", "茶")]),
    };
    client.send_form_template(&shop, &form).await.unwrap();
    let says = Deliver {
        app_id: NEWS.to_owned(),
        content: Some("hi".to_owned()),
        ..Deliver::default()
    };
    world.state.deliver(says).await.unwrap();
    let customer = CustomerMessage {
        to_user: user(&world, NEWS),
        kf_account: None,
        content: CustomerContent::Text {
            content: "第一行\n\"第二行\"".to_owned(),
        },
    };
    client.send_customer(&news, &customer).await.unwrap();

    let inbox = world.state.inbox(None, None);
    assert_eq!(inbox[0].msgid, Some(msg_id.to_string()));
    let contents: Vec<_> = inbox
        .iter()
        .map(|message| message.content.as_str())
        .collect();
    let order = "thing1: 茶 <&> \"壶\"\namount2: ¥12.50\ntime3: 15:01";
    assert_eq!(
        contents,
        [order, order, "keyword1: 茶", "第一行\n\"第二行\""]
    );
}

#[tokio::test]
async fn faults_are_the_errors_that_they_imitate() {
    let world = World::start().await;
    let client = client(&world);
    let (shop, secret) = (app(SHOP), AppSecret::new(SHOP_SECRET));
    let token = async |fault: Fault| {
        world.state.add_fault(fault).unwrap();
        client.access_token(&shop, &secret).await
    };
    let fault = || Fault::at("/cgi-bin/token");
    assert!(
        token(Fault {
            bom: true,
            text_plain: true,
            ..fault()
        })
        .await
        .is_ok()
    );
    let busy = token(Fault {
        errcode: Some(-1),
        ..fault()
    })
    .await
    .unwrap_err();
    assert!(matches!(busy, Error::Api(_)) && busy.is_ambiguous());
    let reset = token(Fault {
        reset: true,
        ..fault()
    })
    .await
    .unwrap_err();
    assert!(matches!(reset, Error::Interrupted { .. }), "{reset:?}");
    let gateway = Fault {
        status: Some(502),
        body: Some("<html>".to_owned()),
        ..fault()
    };
    assert!(matches!(
        token(gateway).await.unwrap_err(),
        Error::Garbage { status: 502, .. }
    ));
}
