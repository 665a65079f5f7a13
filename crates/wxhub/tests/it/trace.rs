//! One trace runs from the caller through push- and token-service to WeChat.

use proto::{
    push::v1::{
        SendMessageRequest, TemplateContent, push_service_client::PushServiceClient,
        send_message_request::Content,
    },
    token::v1::{GetAccessTokenRequest, token_service_client::TokenServiceClient},
};
use serde_json::json;
use test_support::{Collector, eventually};

use crate::running::{Dev, SOON, from_caller};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const NEWS: &str = "wx0000000000000002";

#[tokio::test]
async fn one_trace_runs_from_the_caller_through_push_and_token_to_wechat() {
    let collector = Collector::start().await;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
    ];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let dev = Dev::start(&[], &env).await;

    // push-service has the token in memory, and WeChat has killed it: the send reports it, and is repeated with another.
    // That takes half a minute: token-service lets 30 s pass between two refreshes of an app.
    let mut token = TokenServiceClient::new(dev.channel("token-service"));
    let request = GetAccessTokenRequest {
        app_id: NEWS.to_owned(),
    };
    token
        .get_access_token(from_caller("dev-key", request))
        .await
        .unwrap();
    dev.sandbox("/sandbox/invalidate", &json!({"app_id": NEWS}))
        .await;

    let follower = json!({"app_id": NEWS, "event": "subscribe"});
    let follower = dev.sandbox("/sandbox/deliver", &follower).await;
    let mut request = from_caller(
        "dev-key",
        SendMessageRequest {
            app_id: NEWS.to_owned(),
            open_id: follower["open_id"].as_str().unwrap().to_owned(),
            content: Some(Content::Template(TemplateContent {
                template_id: "TEMPLATE_ORDER_PAID".to_owned(),
                data: [("thing1".to_owned(), "traced".to_owned())].into(),
                ..TemplateContent::default()
            })),
            ..SendMessageRequest::default()
        },
    );
    let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    let mut push = PushServiceClient::new(dev.channel("push-service"));
    push.send_message(request).await.unwrap();

    let expected = [
        "wxhub.push.v1.PushService/SendMessage",
        "/cgi-bin/message/template/send",
        "wxhub.token.v1.TokenService/ReportInvalidAccessToken",
        "/cgi-bin/stable_token",
    ];
    eventually(
        "push, token and WeChat in one trace",
        SOON * 2,
        async || {
            let spans = collector.spans();
            let spans = spans.iter().filter(|span| span.trace_id == TRACE_ID);
            let mut names: Vec<_> = spans.map(|span| span.name.as_str()).collect();
            names.sort_unstable();
            let is_there = |part: &&str| names.iter().any(|name| name.ends_with(*part));
            if expected.iter().all(is_there) {
                Ok(())
            } else {
                Err(names.join("\n"))
            }
        },
    )
    .await;
}
