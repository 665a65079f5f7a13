//! Who a session belongs to, and who may ask.

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::world::{KEY, NEWS_KEY, World, error};

with_either_store!(
    a_session_of_another_callers_app_is_as_invalid_as_none,
    sessions_are_separate,
);

async fn a_session_of_another_callers_app_is_as_invalid_as_none(world: World) {
    let token = world.login(&world.js_code(None)).await;
    let mut news_team = world.caller(NEWS_KEY);
    let refused = news_team.verify(&token).await.unwrap_err();
    let unknown = news_team.verify("no-such-session").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), unknown.message());
    assert_eq!(refused.details(), unknown.details());
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "SESSION_INVALID");

    news_team.revoke(&token).await.unwrap();
    world.caller(KEY).verify(&token).await.unwrap();
}

async fn sessions_are_separate(world: World) {
    let one = world.login(&world.js_code(None)).await;
    let other = world.login(&world.js_code(None)).await;
    assert_ne!(one, other);
    assert_eq!(world.logout(&one).await.status(), 204);
    assert_eq!(world.me(&one).await.status(), 401);
    assert_eq!(world.me(&other).await.status(), 200);
}

#[tokio::test]
async fn without_a_session_me_is_401() {
    let world = World::embedded().await;
    for authorization in [None, Some("Bearer nothing"), Some("Basic dTpw"), Some("")] {
        let (status, body) = error(world.get("/me", authorization).await).await;
        assert_eq!(
            (status, body["code"].as_str()),
            (401, Some("SESSION_INVALID"))
        );
    }
    let answer = world.logout("never-was").await;
    assert_eq!(answer.status(), 204);
}
