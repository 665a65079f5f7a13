//! Faults on request.

use std::time::{Duration, Instant};

use sandbox::Fault;
use serde_json::json;

use crate::world::{NEWS, SHOP, SHOP_SECRET, World, errcode};

const TOKEN: &str = "/cgi-bin/token";

fn token_url(world: &World) -> String {
    format!(
        "{}{TOKEN}?grant_type=client_credential&appid={SHOP}&secret={SHOP_SECRET}",
        world.url
    )
}

#[tokio::test]
async fn an_error_code_comes_with_wechats_text_as_often_as_asked() {
    let world = World::start().await;
    world
        .state
        .add_fault(Fault {
            errcode: Some(45011),
            times: 2,
            ..Fault::at(TOKEN)
        })
        .unwrap();
    for _ in 0..2 {
        let answer = world.try_token(SHOP, SHOP_SECRET).await;
        assert_eq!(errcode(&answer), 45011);
        assert!(
            answer["errmsg"]
                .as_str()
                .unwrap()
                .starts_with("api minute-quota reach limit")
        );
    }
    assert_eq!(errcode(&world.try_token(SHOP, SHOP_SECRET).await), 0);
    assert_eq!(world.state.calls(Some(SHOP)).count(TOKEN, "45011"), 2);
}

#[tokio::test]
async fn a_fault_of_one_account_spares_the_others() {
    let world = World::start().await;
    let fault = Fault {
        errcode: Some(-1),
        app_id: Some(SHOP.to_owned()),
        ..Fault::at("*")
    };
    world.state.add_fault(fault).unwrap();
    world.token(NEWS).await;
    assert_eq!(errcode(&world.try_token(SHOP, SHOP_SECRET).await), -1);
}

#[tokio::test]
async fn a_gateways_page_can_stand_in_for_the_answer() {
    let world = World::start().await;
    let fault = Fault {
        status: Some(502),
        body: Some("<html>Bad Gateway".to_owned()),
        ..Fault::at(TOKEN)
    };
    world.state.add_fault(fault).unwrap();
    let response = world.http.get(token_url(&world)).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(response.text().await.unwrap(), "<html>Bad Gateway");
    assert_eq!(world.state.calls(None).count(TOKEN, "http 502"), 1);
}

#[tokio::test]
async fn a_byte_order_mark_and_text_plain_leave_the_answer_right() {
    let world = World::start().await;
    world
        .state
        .add_fault(Fault {
            bom: true,
            text_plain: true,
            ..Fault::at(TOKEN)
        })
        .unwrap();
    let response = world.http.get(token_url(&world)).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain");
    let body = response.bytes().await.unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap()).unwrap();
    assert_eq!(json["expires_in"], 7200);
}

#[tokio::test]
async fn a_delay_comes_before_the_answer() {
    let world = World::start().await;
    world
        .state
        .add_fault(Fault {
            delay_ms: Some(200),
            ..Fault::at(TOKEN)
        })
        .unwrap();
    let started = Instant::now();
    world.token(SHOP).await;
    assert!(started.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_reset_loses_the_answer_and_not_always_the_work() {
    let world = World::start().await;
    let user = world.default_user(NEWS);
    let token = world.token(NEWS).await;
    let url = format!(
        "{}/cgi-bin/message/template/send?access_token={token}",
        world.url
    );
    let body = json!({"touser": user, "template_id": "TEMPLATE_ORDER_PAID", "data": {"thing1": {"value": "茶"}}});
    for (carried_out, received) in [(false, 0), (true, 1)] {
        let fault = Fault {
            reset: true,
            carried_out,
            ..Fault::at("/cgi-bin/message/template/send")
        };
        world.state.add_fault(fault).unwrap();
        let error = world
            .http
            .post(&url)
            .body(body.to_string())
            .send()
            .await
            .unwrap_err();
        assert!(!error.is_timeout() && !error.is_connect());
        assert_eq!(world.state.inbox(None, None).len(), received);
    }
    assert_eq!(
        world
            .state
            .calls(Some(NEWS))
            .count("/cgi-bin/message/template/send", "reset"),
        2
    );
}

#[tokio::test]
async fn cleared_faults_do_not_happen() {
    let world = World::start().await;
    world
        .state
        .add_fault(Fault {
            errcode: Some(-1),
            times: 100,
            ..Fault::at("*")
        })
        .unwrap();
    world.state.clear_faults();
    world.token(SHOP).await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_take_its_request_back() {
    let world = World::start().await;
    let fault = Fault {
        delay_ms: Some(300),
        ..Fault::at(TOKEN)
    };
    world.state.add_fault(fault).unwrap();
    let impatient = world
        .http
        .get(token_url(&world))
        .timeout(Duration::from_millis(50));
    assert!(impatient.send().await.unwrap_err().is_timeout());
    let carried_out = async {
        while world.state.calls(Some(SHOP)).count(TOKEN, "ok") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), carried_out)
        .await
        .unwrap();
}
