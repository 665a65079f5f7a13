//! WatchAccessTokens, alone and through token-client.

use std::time::Duration;

use proto::token::v1::WatchAccessTokensRequest;
use test_support::eventually;
use token_client::TokenClient;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;

use crate::world::{KEY, NEWS, NEWS_KEY, PATIENCE, SHOP, World};

async fn within<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

#[tokio::test]
async fn a_watch_tells_what_is_current_and_then_every_rotation() {
    let mut config = sandbox::Config::dev("http://127.0.0.1:9");
    for account in &mut config.accounts {
        account.expires_in = 8;
    }
    let world = World::start(Some(test_support::Redis::start().await), config, 2).await;
    let first = world.dev().token("news").await.unwrap();

    // At the other replica.
    let mut caller = world.caller(1, KEY).0;
    let request = WatchAccessTokensRequest {
        app_ids: vec!["news".to_owned()],
    };
    let mut tokens = caller
        .watch_access_tokens(request)
        .await
        .unwrap()
        .into_inner();
    let mut before = 0;
    for _ in 0..3 {
        let token = within(tokens.message()).await.unwrap().unwrap();
        let token = token.access_token.unwrap();
        assert_eq!(token.app_id, NEWS);
        assert!(token.version > before && token.version >= first.version);
        before = token.version;
    }
}

#[tokio::test]
async fn a_named_app_is_fetched_for_its_watcher() {
    let world = World::embedded().await;
    let mut caller = world.dev().0;
    let request = WatchAccessTokensRequest {
        app_ids: vec!["shop".to_owned()],
    };
    let mut tokens = caller
        .watch_access_tokens(request)
        .await
        .unwrap()
        .into_inner();
    let token = within(tokens.message()).await.unwrap().unwrap();
    assert_eq!(token.access_token.unwrap().app_id, SHOP);
}

#[tokio::test]
async fn a_watch_of_all_tells_only_of_the_callers_apps_and_ends_at_shutdown() {
    let world = World::embedded().await;
    let mut caller = world.caller(0, NEWS_KEY).0;
    let request = WatchAccessTokensRequest::default();
    let mut tokens = caller
        .watch_access_tokens(request)
        .await
        .unwrap()
        .into_inner();
    world.dev().token("shop").await.unwrap();
    world.dev().token("news").await.unwrap();
    let token = within(tokens.message()).await.unwrap().unwrap();
    assert_eq!(token.access_token.unwrap().app_id, NEWS);
    within(world.shut_down()).await;
    assert!(
        within(tokens.message())
            .await
            .is_ok_and(|end| end.is_none())
    );
}

#[tokio::test]
async fn others_apps_cannot_be_watched() {
    let world = World::embedded().await;
    let mut caller = world.caller(0, NEWS_KEY).0;
    let request = WatchAccessTokensRequest {
        app_ids: vec!["news".to_owned(), "shop".to_owned()],
    };
    let status = caller.watch_access_tokens(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn the_client_serves_from_memory_what_the_watch_brings() {
    let world = World::embedded().await;
    let client = TokenClient::new(&world.peer(0, KEY));
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    tracker.spawn(client.clone().watch(stop.clone()));
    let app = NEWS.parse().unwrap();
    let token = client.access_token(&app).await.unwrap();
    assert_eq!(
        token.version,
        world.dev().token("news").await.unwrap().version
    );

    let signed = client
        .sign_jsapi(&app, "https://h5.example.com/")
        .await
        .unwrap();
    let ticket = client
        .ticket(&app, wechat::TicketType::Jsapi)
        .await
        .unwrap();
    let expected = wechat::jsapi::sign(
        &ticket.ticket,
        &signed.nonce_str,
        signed.timestamp,
        &signed.url,
    );
    assert_eq!(signed.signature, expected);

    // Another caller's first use reaches this client's memory.
    let shop = SHOP.parse().unwrap();
    let version = world.dev().token("shop").await.unwrap().version;
    eventually("the watch brings it", PATIENCE, async || {
        client
            .cached(&shop)
            .is_some_and(|token| token.version == version)
    })
    .await;
    world.shut_down().await;
    assert_eq!(client.access_token(&shop).await.unwrap().version, version);
    stop.cancel();
    tracker.close();
    tokio::time::timeout(Duration::from_secs(5), tracker.wait())
        .await
        .unwrap();
}
