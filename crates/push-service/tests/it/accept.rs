//! What is accepted, once, and what is refused with the fields at fault.

use std::time::Duration;

use proto::push::v1::{
    self as pb, MessageState, MiniProgramLink, SendMessageRequest,
    customer_content::Message as Customer, send_message_request::Content,
};
use service_kit::settings::DatabaseUrl;
use test_support::{FaultProxy, MariaDb};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{
    Backend, NEWS, SHOP, World, customer, form_template, is_sent, on_both, subscribe, template,
};

fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let request = status.get_details_bad_request().unwrap();
    request
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

on_both! {
    async fn a_repeated_request_id_returns_the_first_message(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let request = SendMessageRequest { request_id: "order-1".to_owned(), ..template(&open_id) };
        let first = app.send(request.clone()).await.unwrap();
        app.until_state(&first.message_id, MessageState::Sent).await;

        let again = app.send(request.clone()).await.unwrap();
        assert_eq!(again.message_id, first.message_id);
        assert!(is_sent(&again), "{again:?}");
        assert_eq!(again.request_id, "order-1");
        assert_eq!(world.inbox(&open_id).len(), 1);

        let other = world.user(NEWS);
        let mut said_otherwise = request.clone();
        if let Some(Content::Template(template)) = &mut said_otherwise.content {
            template.url.clear();
        }
        for reused in [SendMessageRequest { open_id: other, ..request.clone() }, said_otherwise] {
            let refused = app.send(reused).await.unwrap_err();
            assert_eq!(fields(&refused), ["request_id"]);
        }
        // The same request_id of another app, and of another caller, is another one.
        let shopper = world.user(SHOP);
        let request = SendMessageRequest { request_id: "order-1".to_owned(), ..subscribe(&shopper) };
        let mine = app.send(request.clone()).await.unwrap();
        let theirs = app.client_with("other-key").send_message(request).await.unwrap().into_inner().message.unwrap();
        assert!(mine.message_id != first.message_id && mine.message_id != theirs.message_id);
        app.stop().await;
    }

    async fn one_request_id_sent_at_once_from_everywhere_is_one_message(backend: Backend) {
        let mut world = World::start(backend).await;
        let (app, replica) = (world.app().await, world.app().await);
        let open_id = world.user(NEWS);
        let request = SendMessageRequest { request_id: "same".to_owned(), ..template(&open_id) };
        let calls = (0..16).map(|number| {
            let app = if number % 2 == 0 { &app } else { &replica };
            app.send(request.clone())
        });
        let mut ids: Vec<_> = futures_util::future::join_all(calls)
            .await
            .into_iter()
            .map(|message| message.unwrap().message_id)
            .collect();
        ids.dedup();
        assert_eq!(ids.len(), 1);
        app.until_state(&ids[0], MessageState::Sent).await;
        assert_eq!(world.inbox(&open_id).len(), 1);
        app.stop().await;
        replica.stop().await;
    }
}

#[tokio::test]
async fn every_field_at_fault_is_named() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let refused = async |request: SendMessageRequest| app.send(request).await.unwrap_err();
    let change = |request: SendMessageRequest, change: fn(&mut Content)| {
        let mut request = request;
        change(request.content.as_mut().unwrap());
        request
    };

    let bare = SendMessageRequest {
        app_id: "news".to_owned(),
        request_id: "x".repeat(129),
        ..SendMessageRequest::default()
    };
    assert_eq!(
        fields(&refused(bare).await),
        ["open_id", "request_id", "content"]
    );
    for request_id in ["r1 ", "ré1", "r\n1"] {
        let padded = SendMessageRequest {
            request_id: request_id.to_owned(),
            ..template("o1")
        };
        assert_eq!(fields(&refused(padded).await), ["request_id"]);
    }
    let padded = form_template("o1", "f ");
    assert_eq!(fields(&refused(padded).await), ["form_template.form_id"]);
    let nameless = SendMessageRequest {
        app_id: String::new(),
        ..template("o1")
    };
    assert_eq!(fields(&refused(nameless).await), ["app_id"]);

    // Each kind belongs to one sort of app.
    for (request, app_id, field) in [
        (template("o1"), "shop", "template"),
        (subscribe("o1"), "news", "subscribe"),
        (form_template("o1", "f"), "news", "form_template"),
    ] {
        let request = SendMessageRequest {
            app_id: app_id.to_owned(),
            ..request
        };
        assert_eq!(fields(&refused(request).await), [field]);
    }

    let wrong = change(template("o1"), |content| {
        let Content::Template(template) = content else {
            panic!()
        };
        template.template_id.clear();
        template.url = "javascript:alert(1)".to_owned();
        template.mini_program = Some(MiniProgramLink {
            app_id: "no app".to_owned(),
            page_path: "x".repeat(1_025),
        });
        template.data.insert("thing1".to_owned(), String::new());
        template
            .data
            .insert("remark.DATA".to_owned(), "x".to_owned());
    });
    assert_eq!(
        fields(&refused(wrong).await),
        [
            "template.template_id",
            "template.url",
            "template.mini_program.app_id",
            "template.mini_program.page_path",
            "template.data",
            "template.data.thing1",
        ]
    );

    let wrong = change(subscribe("o1"), |content| {
        let Content::Subscribe(subscribe) = content else {
            panic!()
        };
        subscribe.mini_program_state = "beta".to_owned();
        subscribe.lang = "de_DE".to_owned();
        subscribe.data.insert("thing1".to_owned(), "字".repeat(21));
        subscribe
            .data
            .insert("amount2".to_owned(), "twelve".to_owned());
    });
    assert_eq!(
        fields(&refused(wrong).await),
        [
            "subscribe.mini_program_state",
            "subscribe.lang",
            "subscribe.data.amount2",
            "subscribe.data.thing1"
        ]
    );

    let wrong = change(form_template("o1", "f"), |content| {
        let Content::FormTemplate(form_template) = content else {
            panic!()
        };
        form_template.emphasis_keyword = "keyword9".to_owned();
        form_template.data.clear();
    });
    assert_eq!(
        fields(&refused(wrong).await),
        ["form_template.data", "form_template.emphasis_keyword"]
    );

    for (content, field) in [
        ("", "customer.text.content"),
        (&*"字".repeat(683), "customer.text.content"),
    ] {
        assert_eq!(
            fields(&refused(customer("news", "o1", content)).await),
            [field]
        );
    }
    let wrong = change(customer("news", "o1", "hi"), |content| {
        let Content::Customer(customer) = content else {
            panic!()
        };
        customer.kf_account = "nobody".to_owned();
    });
    assert_eq!(fields(&refused(wrong).await), ["customer.kf_account"]);
    let wrong = change(customer("news", "o1", "hi"), |content| {
        let Content::Customer(customer) = content else {
            panic!()
        };
        customer.message = None;
    });
    assert_eq!(fields(&refused(wrong).await), ["customer.message"]);
    for (app_name, message, expected) in wrong_customer_messages() {
        let said = format!("{message:?}");
        let mut wrong = customer(app_name, "o1", "hi");
        if let Some(Content::Customer(customer)) = &mut wrong.content {
            customer.message = Some(message);
        }
        assert_eq!(fields(&refused(wrong).await), expected, "{said}");
    }
    // 2,048 bytes are taken.
    assert!(
        app.send(customer("news", "o1", &"x".repeat(2_048)))
            .await
            .is_ok()
    );
    app.stop().await;
}

#[tokio::test]
async fn an_app_outside_the_callers_list_is_not_found() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for app_id in ["news", NEWS, "nobody"] {
        let request = SendMessageRequest {
            app_id: app_id.to_owned(),
            ..template("o1")
        };
        let refused = app
            .client_with("other-key")
            .send_message(request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(
            refused.get_details_error_info().unwrap().reason,
            "APP_NOT_FOUND"
        );
    }
    let stranger = app
        .client_with("no-key")
        .send_message(template("o1"))
        .await
        .unwrap_err();
    assert_eq!(stranger.code(), Code::Unauthenticated);
    app.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_unavailable_and_says_when_to_retry() {
    let mut world = World::start(Backend::Servers).await;
    let proxy = FaultProxy::start(world.config.database.expose()).await;
    world.config.database = DatabaseUrl::new(proxy.url(world.config.database.expose()));
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let request = SendMessageRequest {
        request_id: "again".to_owned(),
        ..template(&open_id)
    };
    app.send(template(&open_id)).await.unwrap();

    proxy.cut().await;
    let refused = app.send(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused
            .get_details_retry_info()
            .unwrap()
            .retry_delay
            .unwrap()
            > Duration::ZERO
    );
    assert_eq!(
        refused.get_details_error_info().unwrap().reason,
        "STORE_UNAVAILABLE"
    );

    proxy.heal().await;
    let accepted =
        test_support::eventually("it is accepted again", crate::world::SOON, async || {
            app.send(request.clone()).await
        })
        .await;
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    app.stop().await;
}

/// Whatever a caller that hangs up has seen of the answer, its message is stored or it is not; if it is, it is sent.
#[tokio::test]
async fn a_caller_that_hangs_up_takes_nothing_back() {
    let mut world = World::start(Backend::Servers).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let mut sent = 0;
    for pause_us in (0..6_000_u64).step_by(300) {
        let request = SendMessageRequest {
            request_id: format!("hang-up-{pause_us}"),
            ..template(&open_id)
        };
        let call = app.send(request.clone());
        // The call is dropped wherever it is.
        let _ = tokio::time::timeout(Duration::from_micros(pause_us), call).await;
        // The same request_id finds what was stored, or stores it now: never two.
        let message = app.send(request).await.unwrap();
        app.until_state(&message.message_id, MessageState::Sent)
            .await;
        sent += 1;
        assert_eq!(world.inbox(&open_id).len(), sent);
    }
    app.stop().await;
}

/// A test's database is on the shared server, so that it is there for every test of this binary.
#[tokio::test]
async fn without_its_tables_the_service_is_unavailable_until_they_are_there() {
    let mut world = World::start(Backend::Embedded).await;
    let database = MariaDb::database().await;
    world.config.database = DatabaseUrl::new(database.url());
    let app = world.app().await;
    assert_eq!(app.readiness().await, 503);
    let refused = app.send(template(&world.user(NEWS))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    push_service::migrate(&world.config.database).await.unwrap();
    test_support::eventually("it is ready", crate::world::SOON, async || {
        app.readiness().await == 200
    })
    .await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    app.stop().await;
}

/// Messages of every kind with all that can be wrong with them, by the app that sends them.
fn wrong_customer_messages() -> Vec<(&'static str, Customer, Vec<&'static str>)> {
    let article = || pb::CustomerArticle {
        url: "javascript:alert(1)".to_owned(),
        ..pb::CustomerArticle::default()
    };
    vec![
        (
            "shop",
            Customer::Image(pb::CustomerMedia::default()),
            vec!["customer.image.media_id"],
        ),
        (
            "shop",
            Customer::Voice(pb::CustomerMedia {
                media_id: "M".to_owned(),
            }),
            vec!["customer.voice"],
        ),
        (
            "news",
            Customer::Video(pb::CustomerVideo::default()),
            vec!["customer.video.media_id", "customer.video.thumb_media_id"],
        ),
        (
            "news",
            Customer::Music(pb::CustomerMusic {
                title: "T".to_owned(),
                description: "D".to_owned(),
                url: "https://e.com".to_owned(),
                hq_url: "ftp://e.com".to_owned(),
                thumb_media_id: "含".to_owned(),
            }),
            vec!["customer.music.hq_url", "customer.music.thumb_media_id"],
        ),
        (
            "news",
            Customer::News(article()),
            vec![
                "customer.news.title",
                "customer.news.url",
                "customer.news.picture_url",
                "customer.news.picture_url",
            ],
        ),
        (
            "news",
            Customer::MpNews(pb::CustomerMedia::default()),
            vec!["customer.mp_news.media_id"],
        ),
        (
            "news",
            Customer::MpNewsArticle(pb::CustomerPublishedArticle::default()),
            vec!["customer.mp_news_article.article_id"],
        ),
        (
            "news",
            Customer::Menu(pb::CustomerMenu {
                items: vec![pb::customer_menu::Item::default()],
                ..pb::CustomerMenu::default()
            }),
            vec![
                "customer.menu.items[0].id",
                "customer.menu.items[0].content",
            ],
        ),
        (
            "shop",
            Customer::Card(pb::CustomerCard::default()),
            vec!["customer.card", "customer.card.card_id"],
        ),
        (
            "news",
            Customer::MiniProgramPage(pb::CustomerMiniProgramPage {
                title: "T".to_owned(),
                page_path: "p".to_owned(),
                thumb_media_id: "M".to_owned(),
                ..pb::CustomerMiniProgramPage::default()
            }),
            vec!["customer.mini_program_page.app_id"],
        ),
        (
            "news",
            Customer::Link(pb::CustomerArticle {
                title: "T".to_owned(),
                description: String::new(),
                url: "https://e.com".to_owned(),
                picture_url: "https://e.com/p.png".to_owned(),
            }),
            vec!["customer.link"],
        ),
    ]
}
