//! When the service takes traffic.

use service_kit::settings::DatabaseUrl;
use test_support::{MariaDb, Redis, eventually};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::world::{PATIENCE, Setup, World};

async fn health(world: &World) -> ServingStatus {
    let mut client = HealthClient::new(world.channel());
    let request = HealthCheckRequest {
        service: "wxhub.auth.v1.AuthService".to_owned(),
    };
    client.check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn pending_migrations_keep_it_from_being_ready() {
    let database = MariaDb::database().await;
    let database = DatabaseUrl::new(database.url());
    let world = World::start(Setup {
        redis: Some(Redis::start().await),
        database: Some(database),
        ..Setup::default()
    })
    .await;
    assert!(!world.is_ready().await);
    assert_eq!(health(&world).await, ServingStatus::NotServing);
    let answer = world.post_login(&world.js_code(None)).await;
    assert_eq!(answer.status(), 503);

    auth_service::migrate(&world.database).await.unwrap();
    // Once more changes nothing.
    auth_service::migrate(&world.database).await.unwrap();
    eventually("it is ready", PATIENCE, async || world.is_ready().await).await;
    eventually("gRPC health says so", PATIENCE, async || {
        health(&world).await == ServingStatus::Serving
    })
    .await;
    world.login(&world.js_code(None)).await;
}

#[tokio::test]
async fn embedded_it_migrates_by_itself() {
    let world = World::embedded().await;
    eventually("it is ready", PATIENCE, async || world.is_ready().await).await;
}

#[tokio::test]
async fn logins_and_checks_are_counted() {
    let world = World::embedded().await;
    let token = world.login(&world.js_code(None)).await;
    world.me(&token).await;
    world.me("nothing").await;
    world.post_login("made-up").await;
    let metrics = world.metrics().await;
    for series in [
        "wxhub_auth_logins_total{app=\"shop\",outcome=\"signed_in\"}",
        "wxhub_auth_logins_total{app=\"shop\",outcome=\"refused\"}",
        "wxhub_auth_session_verifications_total{outcome=\"valid\"}",
        "wxhub_auth_session_verifications_total{outcome=\"invalid\"}",
    ] {
        assert!(metrics.contains(series), "{series} is not in:\n{metrics}");
    }
}
