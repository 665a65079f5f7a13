//! Changes of `wxhub.toml`.

use test_support::eventually;
use tonic::Code;

use crate::world::{CATALOG, NEWS, PATIENCE, SHOP, World};

#[tokio::test]
async fn a_corrected_secret_is_tried_at_once() {
    let world = World::embedded().await;
    world
        .wechat
        .reset_secret(NEWS, "new-secret".to_owned())
        .unwrap();
    let status = world.dev().token("news").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    world.write_catalog(&CATALOG.replace("dev-secret-news", "new-secret"));
    // Without the change the next attempt would be ten seconds away.
    eventually("the new secret is used", PATIENCE, async || {
        world.dev().token("news").await
    })
    .await;
    assert_eq!(world.upstream(NEWS), 2);
}

#[tokio::test]
async fn an_app_comes_and_goes_without_a_restart() {
    let world = World::embedded().await;
    world.dev().token("shop").await.unwrap();
    let renamed = CATALOG.replace("wx0000000000000001", "wx0000000000000003");
    world.write_catalog(&renamed);
    eventually("the app is gone", PATIENCE, async || {
        world
            .dev()
            .token(SHOP)
            .await
            .is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    world.write_catalog(CATALOG);
    eventually("the app is back", PATIENCE, async || {
        world.dev().token(SHOP).await
    })
    .await;
}
