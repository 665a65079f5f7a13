//! What each RPC answers, and what a bad request gets.

use std::time::{Duration, SystemTime};

use proto::token::v1::{
    CredentialType, ListCredentialsRequest, RefreshAccessTokenRequest,
    ReportInvalidAccessTokenRequest, SignJsapiRequest, TicketType,
};
use sandbox::Fault;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{NEWS, NEWS_KEY, SHOP, World, endpoint, get};

pub(crate) fn seconds_left(time: Option<prost_types::Timestamp>) -> u64 {
    let time = SystemTime::try_from(time.unwrap()).unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "the service runs on the wall clock"
    )]
    let now = SystemTime::now();
    time.duration_since(now).unwrap().as_secs()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "wxhub");
    info.reason
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let request = status.get_details_bad_request().unwrap();
    request.field_violations[0].field.clone()
}

#[tokio::test]
async fn tokens_of_both_modes_come_with_their_times_and_cost_one_call() {
    let world = World::embedded().await;
    let dev = world.dev();
    for (name, app) in [("shop", SHOP), ("news", NEWS)] {
        let token = dev.token(name).await.unwrap();
        assert_eq!(token.app_id, app);
        assert!(seconds_left(token.expire_time) > 7_100);
        let refresh = seconds_left(token.refresh_time);
        let lead = seconds_left(token.expire_time) - refresh;
        let use_until = seconds_left(token.use_until);
        if app == NEWS {
            assert!((538..=661).contains(&lead), "{lead}");
            assert!(use_until.abs_diff(refresh + 240) <= 1, "{use_until}");
        } else {
            assert!((229..=291).contains(&lead), "{lead}");
            assert!(use_until > 7_100);
        }
        let again = dev.token(app).await.unwrap();
        assert_eq!((again.token, again.version), (token.token, token.version));
        assert_eq!(world.upstream(app), 1);
    }
}

#[tokio::test]
async fn a_ticket_comes_by_the_token_and_signs_pages() {
    let world = World::embedded().await;
    let dev = world.dev();
    let ticket = dev.ticket("news", TicketType::Jsapi).await.unwrap();
    assert_eq!(
        (ticket.app_id.as_str(), ticket.r#type()),
        (NEWS, TicketType::Jsapi)
    );
    let card = dev.ticket("news", TicketType::WxCard).await.unwrap();
    assert_ne!(card.ticket, ticket.ticket);

    let request = SignJsapiRequest {
        app_id: "news".to_owned(),
        url: "https://h5.example.com/a?b=1&c=%E4%B8%AD#/route".to_owned(),
    };
    let signed = dev
        .0
        .clone()
        .sign_jsapi(request)
        .await
        .unwrap()
        .into_inner();
    let signed = signed.jsapi_signature.unwrap();
    assert_eq!(signed.url, "https://h5.example.com/a?b=1&c=%E4%B8%AD");
    assert_eq!(signed.nonce_str.len(), 16);
    assert_eq!(signed.expire_time, ticket.expire_time);
    let expected = wechat::jsapi::sign(
        &wechat::Ticket::new(ticket.ticket),
        &signed.nonce_str,
        signed.timestamp,
        &signed.url,
    );
    assert_eq!(signed.signature, expected);
    // One token and two tickets, whatever was asked.
    assert_eq!(world.upstream(NEWS), 1);
    assert_eq!(
        world
            .wechat
            .calls(Some(NEWS))
            .total("/cgi-bin/ticket/getticket"),
        2
    );
}

#[tokio::test]
async fn r10_a_ticket_whose_token_is_refused_reports_it_once() {
    let world = World::embedded().await;
    let dev = world.dev();
    let refused = Fault {
        errcode: Some(40001),
        times: 10,
        ..Fault::at("/cgi-bin/ticket/getticket")
    };
    world.wechat.add_fault(refused).unwrap();
    let status = dev.ticket("news", TicketType::Jsapi).await.unwrap_err();
    // The token is too new to be replaced: no refresh, no loop.
    assert_eq!(reason(&status), "REFRESH_TOO_SOON");
    assert!(
        status
            .get_details_retry_info()
            .unwrap()
            .retry_delay
            .unwrap()
            > Duration::ZERO
    );
    assert_eq!(world.upstream(NEWS), 1);
    assert_eq!(
        world
            .wechat
            .calls(Some(NEWS))
            .total("/cgi-bin/ticket/getticket"),
        1
    );
}

#[tokio::test]
async fn r09_a_wrong_secret_is_told_in_wechats_words_and_not_hammered() {
    let world = World::embedded().await;
    for app in [SHOP, NEWS] {
        world
            .wechat
            .reset_secret(app, "another".to_owned())
            .unwrap();
        for _ in 0..3 {
            let status = world.dev().token(app).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert_eq!(reason(&status), "WECHAT_CONFIG_INVALID");
            let info = status.get_details_error_info().unwrap();
            assert!(["40001", "40125"].contains(&info.metadata["errcode"].as_str()));
            assert!(info.metadata.contains_key("errmsg"));
            assert!(!format!("{status:?}").contains("dev-secret"));
        }
        assert_eq!(world.upstream(app), 1);
    }
}

#[tokio::test]
async fn wechat_away_is_unavailable_with_a_time_to_come_back() {
    let world = World::embedded().await;
    for fault in [
        Fault {
            errcode: Some(-1),
            ..Fault::at("*")
        },
        Fault {
            status: Some(502),
            body: Some("<html>bad gateway</html>".to_owned()),
            ..Fault::at("*")
        },
        Fault {
            reset: true,
            ..Fault::at("*")
        },
    ] {
        let app = if fault.errcode.is_some() { SHOP } else { NEWS };
        world.wechat.add_fault(fault).unwrap();
        loop {
            let Err(status) = world.dev().token(app).await else {
                break;
            };
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(reason(&status), "WECHAT_UNAVAILABLE");
            let retry = status
                .get_details_retry_info()
                .unwrap()
                .retry_delay
                .unwrap();
            assert!(retry <= Duration::from_secs(4), "{retry:?}");
            tokio::time::sleep(retry).await;
        }
        world.wechat.invalidate(app).unwrap();
    }
}

#[tokio::test]
async fn an_answer_called_text_with_a_byte_order_mark_is_understood() {
    let world = World::embedded().await;
    for path in [endpoint(SHOP), endpoint(NEWS), "/cgi-bin/ticket/getticket"] {
        let fault = Fault {
            bom: true,
            text_plain: true,
            ..Fault::at(path)
        };
        world.wechat.add_fault(fault).unwrap();
    }
    world.dev().token("shop").await.unwrap();
    world.dev().ticket("news", TicketType::Jsapi).await.unwrap();
}

#[tokio::test]
async fn an_unknown_app_is_not_found_and_so_is_one_of_others() {
    let world = World::embedded().await;
    let unknown = world.dev().token("nothing").await.unwrap_err();
    let others = world.caller(0, NEWS_KEY).token("shop").await.unwrap_err();
    for status in [unknown, others] {
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(reason(&status), "APP_NOT_FOUND");
    }
    assert_eq!(world.upstream(SHOP), 0);
}

#[tokio::test]
async fn keys_and_scopes_are_checked() {
    let world = World::embedded().await;
    let status = world.caller(0, "nobody's").token("shop").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let request = ListCredentialsRequest::default();
    let mut reader = world.caller(0, NEWS_KEY).0;
    let status = reader.list_credentials(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn bad_fields_are_named() {
    let world = World::embedded().await;
    let dev = world.dev();
    assert_eq!(field(&dev.token("").await.unwrap_err()), "app_id");
    let unspecified = dev.ticket("news", TicketType::Unspecified).await;
    assert_eq!(field(&unspecified.unwrap_err()), "type");
    let version = dev.token("news").await.unwrap().version;
    assert_eq!(field(&dev.report("news", 0).await.unwrap_err()), "version");
    assert_eq!(
        field(&dev.report("news", version + 1).await.unwrap_err()),
        "version"
    );
    let request = ReportInvalidAccessTokenRequest {
        app_id: "news".to_owned(),
        version,
        errcode: 45009,
    };
    let status = dev.0.clone().report_invalid_access_token(request).await;
    assert_eq!(field(&status.unwrap_err()), "errcode");
    let urls = ["", "ftp://h5.example.com/", "https://other.example.com/"];
    let long = format!("https://h5.example.com/{}", "a".repeat(2_048));
    for url in urls.into_iter().chain([long.as_str()]) {
        let request = SignJsapiRequest {
            app_id: "news".to_owned(),
            url: url.to_owned(),
        };
        let status = dev.0.clone().sign_jsapi(request).await.unwrap_err();
        assert_eq!(field(&status), "url");
        if url.contains("other") {
            assert!(
                status
                    .message()
                    .contains("add \"other.example.com\" to its jssdk.hosts")
            );
        }
    }
    for request in [
        ListCredentialsRequest {
            page_size: -1,
            ..Default::default()
        },
        ListCredentialsRequest {
            page_size: 1_001,
            ..Default::default()
        },
        ListCredentialsRequest {
            page_token: "x".to_owned(),
            ..Default::default()
        },
    ] {
        let status = dev.0.clone().list_credentials(request).await.unwrap_err();
        assert!(field(&status).starts_with("page_"));
    }
}

#[tokio::test]
async fn r08_a_token_that_is_too_new_is_not_replaced() {
    let world = World::embedded().await;
    let dev = world.dev();
    let version = dev.token("news").await.unwrap().version;
    let status = dev.report("news", version).await.unwrap_err();
    assert_eq!(reason(&status), "REFRESH_TOO_SOON");
    let request = RefreshAccessTokenRequest {
        app_id: "news".to_owned(),
        force: false,
    };
    let status = dev
        .0
        .clone()
        .refresh_access_token(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "REFRESH_TOO_SOON");
    assert_eq!(world.upstream(NEWS), 1);
}

#[tokio::test]
async fn credentials_are_listed_page_by_page_without_secrets() {
    let world = World::embedded().await;
    let dev = world.dev();
    let token = dev.token("news").await.unwrap();
    dev.ticket("news", TicketType::Jsapi).await.unwrap();
    world
        .wechat
        .reset_secret(SHOP, "another".to_owned())
        .unwrap();
    dev.token("shop").await.unwrap_err();

    let mut listed = Vec::new();
    let mut request = ListCredentialsRequest {
        page_size: 2,
        ..Default::default()
    };
    loop {
        let page = dev
            .0
            .clone()
            .list_credentials(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(!format!("{page:?}").contains(&token.token));
        listed.extend(page.credentials);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let kinds: Vec<_> = listed
        .iter()
        .map(|entry| (entry.app_name.as_str(), entry.r#type()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("shop", CredentialType::AccessToken),
            ("news", CredentialType::AccessToken),
            ("news", CredentialType::JsapiTicket),
        ]
    );
    assert_eq!(listed[0].version, 0);
    assert!(
        listed[0].last_error.contains("WeChat says"),
        "{:?}",
        listed[0]
    );
    assert_eq!(listed[1].version, token.version);
    assert_eq!(listed[1].expire_time, token.expire_time);
    assert_eq!(listed[1].next_refresh_time, token.refresh_time);
    assert_eq!(
        (
            listed[1].last_error.as_str(),
            listed[1].upstream_calls_today
        ),
        ("", 1)
    );
}

#[tokio::test]
async fn the_internal_http_port_answers_not_found_and_metrics_tell_of_reads() {
    let world = World::embedded().await;
    world.dev().token("shop").await.unwrap();
    let addrs = world.replicas[0].addrs;
    let answer = get(addrs.http, "/nothing").await;
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
    assert!(answer.contains("\"code\":\"NOT_FOUND\""), "{answer}");
    let metrics = get(addrs.ops, "/metrics").await;
    for name in ["wxhub_token_reads_total", "wxhub_token_refreshes_total"] {
        assert!(metrics.contains(name), "{name}");
    }
    world.shut_down().await;
}
