//! Who is known: found, listed, linked across apps, deleted.

use auth_service::user::Users;
use proto::auth::v1::{
    BatchGetUsersRequest, DeleteUserRequest, GetUserRequest, ListUsersRequest, User,
};
use service_kit::{Clock, storage};
use tonic::{Code, Status};

use crate::world::{Grpc, KEY, NEWS, NEWS_KEY, SHOP, World};

with_either_store!(
    an_apps_users_are_listed_in_order_page_by_page,
    a_person_is_linked_across_apps_as_soon_as_the_unionid_is_known,
    many_users_are_got_at_once,
    a_deleted_user_is_gone_and_comes_back_as_a_new_one,
    wrong_lists_are_refused,
);

/// Notes a login as the service does, for an app whose logins need a browser.
async fn note(world: &World, app_id: &str, open_id: &str, union_id: Option<&str>) -> String {
    let users = Users::new(storage::database(&world.database).await.unwrap());
    let (app_id, open_id) = (app_id.parse().unwrap(), open_id.parse().unwrap());
    let union_id = union_id.map(|id| id.parse().unwrap());
    let user = users
        .logged_in(
            &app_id,
            &open_id,
            union_id.as_ref(),
            None,
            Clock::System.now(),
        )
        .await
        .unwrap();
    user.user_id.to_string()
}

fn of_app(app_id: &str) -> ListUsersRequest {
    ListUsersRequest {
        app_id: app_id.to_owned(),
        ..ListUsersRequest::default()
    }
}

fn of_person(union_id: &str) -> ListUsersRequest {
    ListUsersRequest {
        union_id: union_id.to_owned(),
        ..ListUsersRequest::default()
    }
}

/// Every page's ids, and how many pages there were.
async fn list(
    caller: &mut Grpc,
    mut request: ListUsersRequest,
) -> Result<(Vec<String>, usize), Status> {
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let page = caller.0.list_users(request.clone()).await?.into_inner();
        ids.extend(page.users.into_iter().map(|user| user.user_id));
        pages += 1;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok((ids, pages));
        }
    }
}

async fn batch(caller: &mut Grpc, user_ids: &[String]) -> Result<Vec<User>, Status> {
    let user_ids = user_ids.to_vec();
    let request = BatchGetUsersRequest { user_ids };
    Ok(caller.0.batch_get_users(request).await?.into_inner().users)
}

async fn delete(caller: &mut Grpc, user_id: &str) -> Result<(), Status> {
    let user_id = user_id.to_owned();
    let request = DeleteUserRequest { user_id };
    caller.0.delete_user(request).await.map(drop)
}

async fn an_apps_users_are_listed_in_order_page_by_page(world: World) {
    let (mut dev, mut news_team) = (world.caller(KEY), world.caller(NEWS_KEY));
    let mut expected = Vec::new();
    for number in 0..5 {
        // Neither openids nor repeated logins change the order.
        let open_id = format!("o{}", 9 - number);
        expected.push(note(&world, SHOP, &open_id, None).await);
        note(&world, SHOP, "o9", None).await;
    }
    let news = note(&world, NEWS, "oNews", None).await;
    for (page_size, pages) in [(0, 1), (5, 1), (4, 2), (1, 5)] {
        let request = ListUsersRequest {
            page_size,
            ..of_app("shop")
        };
        let listed = list(&mut dev, request).await.unwrap();
        assert_eq!(listed, (expected.clone(), pages));
    }
    let listed = list(&mut news_team, of_app(NEWS)).await.unwrap();
    assert_eq!(listed.0, [news]);
    let refused = list(&mut news_team, of_app(SHOP)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

async fn a_person_is_linked_across_apps_as_soon_as_the_unionid_is_known(world: World) {
    let (mut dev, mut news_team) = (world.caller(KEY), world.caller(NEWS_KEY));
    let shop = note(&world, SHOP, "oShop", None).await;
    let news = note(&world, NEWS, "oNews", Some("oUnion")).await;
    let listed = list(&mut dev, of_person("oUnion")).await.unwrap();
    assert_eq!(listed.0, [news.as_str()]);

    note(&world, SHOP, "oShop", Some("oUnion")).await;
    // A login that does not tell it takes nothing away.
    note(&world, SHOP, "oShop", None).await;
    let request = ListUsersRequest {
        page_size: 1,
        ..of_person("oUnion")
    };
    let listed = list(&mut dev, request).await.unwrap();
    assert_eq!(listed, (vec![shop, news.clone()], 2));
    // To others only what is of their apps is told.
    let listed = list(&mut news_team, of_person("oUnion")).await.unwrap();
    assert_eq!(listed.0, [news]);
    let listed = list(&mut dev, of_person("ounion")).await.unwrap();
    assert_eq!(listed.0, Vec::<String>::new());
}

async fn many_users_are_got_at_once(world: World) {
    let (mut dev, mut news_team) = (world.caller(KEY), world.caller(NEWS_KEY));
    let shop = note(&world, SHOP, "oShop", None).await;
    let news = note(&world, NEWS, "oNews", None).await;
    let unknown = "0192f0c1-2345-7000-8000-000000000001".to_owned();
    let ids = [news.clone(), unknown, shop.to_uppercase(), news.clone()];
    let found = batch(&mut dev, &ids).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|user| user.user_id).collect();
    assert_eq!(found, [news.clone(), shop, news.clone()]);
    let found = batch(&mut news_team, &ids).await.unwrap();
    assert!(found.iter().all(|user| user.user_id == news));

    assert_eq!(batch(&mut dev, &[]).await.unwrap(), []);
    for ids in [vec!["x".to_owned()], vec![news; 1_001]] {
        let refused = batch(&mut dev, &ids).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

async fn a_deleted_user_is_gone_and_comes_back_as_a_new_one(world: World) {
    let (mut dev, mut news_team) = (world.caller(KEY), world.caller(NEWS_KEY));
    let session = dev
        .login("shop", &world.js_code(None), "小明")
        .await
        .unwrap();
    let user = session.user.unwrap();
    delete(&mut news_team, &user.user_id).await.unwrap();
    dev.verify(&session.session_token).await.unwrap();

    for _ in 0..2 {
        delete(&mut dev, &user.user_id).await.unwrap();
        let refused = dev.verify(&session.session_token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let request = GetUserRequest {
            user_id: user.user_id.clone(),
            ..GetUserRequest::default()
        };
        let refused = dev.user(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }
    if let Some(redis) = &world.redis {
        let client = redis::Client::open(redis.url()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let keys: Vec<String> = redis::AsyncCommands::keys(&mut redis, "*:session_key")
            .await
            .unwrap();
        assert_eq!(keys, Vec::<String>::new());
    }

    let code = world.js_code(Some(&user.open_id));
    let session = dev.login("shop", &code, "").await.unwrap();
    let again = session.user.unwrap();
    assert_eq!(again.open_id, user.open_id);
    assert_ne!(again.user_id, user.user_id);
    assert_eq!(again.nickname, "");
    dev.verify(&session.session_token).await.unwrap();
}

async fn wrong_lists_are_refused(world: World) {
    let mut dev = world.caller(KEY);
    let with = |change: fn(&mut ListUsersRequest)| {
        let mut request = of_app("shop");
        change(&mut request);
        request
    };
    for request in [
        with(|request| request.app_id.clear()),
        with(|request| request.union_id = "oUnion".to_owned()),
        with(|request| request.page_size = -1),
        with(|request| request.page_size = 1_001),
        with(|request| request.page_token = "x".to_owned()),
        of_person("no such id"),
    ] {
        let refused = list(&mut dev, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let refused = delete(&mut dev, "x").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
