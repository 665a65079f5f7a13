//! Start, settings, catalog changes and the door to the operator.

use std::time::Duration;

use proto::push::v1::MessageState;
use service_kit::{Clock, Settings, cli::Service as _};
use test_support::{Collector, Process, eventually};
use tonic::Code;

use crate::world::{self, Backend, NEWS, SOON, World, template};

#[test]
fn every_missing_setting_is_named_with_an_example() {
    let text = push_service::PushService::configure(&Settings::default())
        .unwrap_err()
        .to_string();
    for example in [
        "WXHUB_CONFIG=/etc/wxhub/wxhub.toml",
        "WXHUB_REDIS_URL=redis://",
        "WXHUB_DATABASE_URL=mysql://",
        "WXHUB_TOKEN_URL=http://",
        "WXHUB_AUTH_URL=http://",
    ] {
        assert!(text.contains(example), "{example} is not in:\n{text}");
    }
    let embedded = Settings {
        embedded: Some("1".to_owned()),
        ..Settings::default()
    };
    let text = push_service::PushService::configure(&embedded)
        .unwrap_err()
        .to_string();
    assert!(
        !text.contains("WXHUB_REDIS_URL") && text.contains("WXHUB_AUTH_URL"),
        "{text}"
    );
}

#[tokio::test]
async fn it_is_ready_and_counts_what_it_does() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    eventually("it is ready", SOON, async || app.readiness().await == 200).await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    let refused = app.send(template("oNobody")).await.unwrap();
    app.until_state(&refused.message_id, MessageState::Failed)
        .await;
    let mut later = template(&world.user(NEWS));
    later.schedule_time = Some((Clock::System.now() + Duration::from_secs(3_600)).into());
    app.send(later).await.unwrap();
    app.stop().await;
    // The queue is counted when a replica starts, and from then on now and then.
    let app = world.app().await;
    // Other tests of this process have their own worlds and the same metrics: what they tell is not compared.
    eventually("metrics tell of it", SOON, async || {
        let metrics = app.metrics().await;
        let missing = [
            r#"wxhub_push_messages_accepted_total{kind="template"}"#,
            r#"wxhub_push_attempts_total{app="news",kind="template",outcome="sent",errcode="0"}"#,
            r#"wxhub_push_attempts_total{app="news",kind="template",outcome="failed",errcode="40003"}"#,
            r#"wxhub_push_attempt_duration_seconds_bucket{kind="template",le="0.1"}"#,
            r#"wxhub_push_accepted_to_sent_seconds_bucket{kind="template",priority="transactional",le="0.1"}"#,
            r#"wxhub_push_queue_messages{app="news",kind="template",priority="transactional",state="due"}"#,
            r#"wxhub_push_queue_messages{app="news",kind="template",priority="transactional",state="later"}"#,
            r#"wxhub_push_queue_oldest_seconds{app="news",kind="template",priority="transactional"}"#,
            r#"wxhub_push_broadcasts{state="running"}"#,
            r#"wxhub_push_broadcast_recipients{state="queued"}"#,
            r#"wxhub_push_pruned_rows_total{table="message"}"#,
        ]
        .into_iter()
        .find(|name| !metrics.contains(*name));
        missing.map_or(Ok(()), |name| Err(format!("{name} is not in:\n{metrics}")))
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn an_app_that_leaves_the_catalog_is_not_found_any_more() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    let path = world.folder().join("wxhub.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let renamed = text
        .replace("name = \"news\"", "name = \"gone\"")
        .replace(NEWS, "wx0000000000000099");
    std::fs::write(&path, renamed).unwrap();
    eventually("the app is gone", SOON, async || {
        app.send(template("o1"))
            .await
            .is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    let request = proto::push::v1::GetMessageRequest {
        message_id: accepted.message_id,
    };
    assert_eq!(
        app.client().get_message(request).await.unwrap_err().code(),
        Code::NotFound
    );
    app.stop().await;
}

/// Runs the binary, with a collector to tell its traces to.
#[tokio::test]
async fn one_trace_runs_from_the_caller_to_wechat_and_tells_no_secret() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let world = World::start(Backend::Embedded).await;
    let collector = Collector::start().await;
    let database = world.folder().join("traced.sqlite");
    let anywhere = || "127.0.0.1:0".to_owned();
    let settings = [
        ("WXHUB_CONFIG", world.config.catalog.display().to_string()),
        ("WXHUB_GRPC_ADDR", anywhere()),
        ("WXHUB_HTTP_ADDR", anywhere()),
        ("WXHUB_OPS_ADDR", anywhere()),
        ("WXHUB_EMBEDDED", "1".to_owned()),
        (
            "WXHUB_DATABASE_URL",
            format!("sqlite://{}", database.display()),
        ),
        ("WXHUB_TOKEN_URL", world.services.clone()),
        ("WXHUB_AUTH_URL", world.services.clone()),
        ("WXHUB_CALLER_KEY", "unused".to_owned()),
        ("WXHUB_WECHAT_API_URL", world.sandbox.url().to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        (
            "RUST_LOG",
            "info,push_service=debug,service_kit=debug,wechat=debug".to_owned(),
        ),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let process = Process::start(env!("CARGO_BIN_EXE_push-service"), [], settings);
    let listening = process.line("listening", SOON).await;
    let listening: serde_json::Value = serde_json::from_str(&listening).unwrap();
    let url = format!("http://{}", listening["grpc"].as_str().unwrap());

    let mut client = world::client(&url, "dev-key");
    let open_id = world.user(NEWS);
    let mut request = tonic::Request::new(template(&open_id));
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    client.send_message(request).await.unwrap();

    eventually("the trace is whole", SOON, async || {
        let names: Vec<_> = collector
            .spans()
            .into_iter()
            .filter(|span| span.trace_id == TRACE)
            .map(|span| span.name)
            .collect();
        let whole = [
            "PushService/SendMessage",
            "deliver",
            "send",
            "/cgi-bin/message/template/send",
        ]
        .iter()
        .all(|part| names.iter().any(|name| name.contains(part)));
        if whole {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;
    process.terminate();
    assert!(process.wait(SOON).await.success());

    // Neither logs nor spans tell who was told what, or any secret.
    let told = format!(
        "{:?}{:?}{:?}",
        process.stdout(),
        process.stderr(),
        collector.spans()
    );
    for private in [
        &*open_id,
        "一杯咖啡",
        "dev-key",
        "access_token=",
        world::TOKEN,
        world::KEY,
    ] {
        assert!(!told.contains(private), "{private} is told: {told}");
    }
}
