//! Messages to accounts by name.

use std::collections::BTreeSet;

use proto::push::v1::{
    BatchSendMessagesRequest, MessageState, SendMessageRequest, SendTypingRequest,
    batch_send_result::Result as Outcome,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{Backend, NEWS, Running, World, on_both, template};

/// A message to whoever is bound to this account of the official account.
fn to_account(account: &str) -> SendMessageRequest {
    SendMessageRequest {
        account: account.to_owned(),
        ..template("")
    }
}

fn repeatable(account: &str, request_id: &str) -> SendMessageRequest {
    SendMessageRequest {
        request_id: request_id.to_owned(),
        ..to_account(account)
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

async fn batch(app: &Running, messages: Vec<SendMessageRequest>) -> Result<Vec<Outcome>, Status> {
    let request = BatchSendMessagesRequest {
        app_id: "news".to_owned(),
        messages,
    };
    let answer = app.client().batch_send_messages(request).await?;
    let results = answer.into_inner().results.into_iter();
    Ok(results.map(|result| result.result.unwrap()).collect())
}

async fn rows(world: &World) -> usize {
    world.query("SELECT message_id FROM message").await.len()
}

on_both! {
    async fn a_message_to_an_account_reaches_who_is_bound_to_it(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let user = world.user(NEWS);
        world.auth.bind(NEWS, "王小明", &user);
        let accepted = app.send(to_account("王小明")).await.unwrap();
        assert_eq!((accepted.open_id.as_str(), accepted.account.as_str()), (user.as_str(), "王小明"));
        app.until_state(&accepted.message_id, MessageState::Sent).await;
        assert_eq!(world.inbox(&user).len(), 1);

        let typing = SendTypingRequest {
            app_id: "news".to_owned(),
            account: "王小明".to_owned(),
            ..SendTypingRequest::default()
        };
        // Whom it is for is known: nothing was exchanged with them of late.
        let refused = app.client().send_typing(typing).await.unwrap_err();
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(info.metadata["errcode"], "45080");
    }

    async fn a_repeated_request_finds_its_message_whomever_the_account_is_bound_to_since(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let (first, second) = (world.user(NEWS), world.user(NEWS));
        world.auth.bind(NEWS, "wang", &first);
        let accepted = app.send(repeatable("wang", "r-1")).await.unwrap();
        assert_eq!(world.auth.asked(), ["wang"]);

        let repeated = async || app.send(repeatable("wang", "r-1")).await.unwrap().message_id;
        world.auth.bind(NEWS, "wang", &second);
        assert_eq!(repeated().await, accepted.message_id);
        world.auth.unbind(NEWS, "wang");
        assert_eq!(repeated().await, accepted.message_id);
        world.auth.set_away(true);
        assert_eq!(repeated().await, accepted.message_id);
        let results = batch(&app, vec![repeatable("wang", "r-1")]).await.unwrap();
        assert!(matches!(&results[0], Outcome::Message(message) if message.message_id == accepted.message_id));
        assert!(world.auth.asked().is_empty());

        // Another account is another message, and so is an openid, though it is the same user's.
        let by_open_id = SendMessageRequest {
            request_id: "r-1".to_owned(),
            ..template(&first)
        };
        for other in [repeatable("li", "r-1"), by_open_id] {
            let refused = app.send(other).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
        assert_eq!(rows(&world).await, 1);
    }

    async fn nothing_is_stored_while_auth_service_is_away(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let user = world.user(NEWS);
        world.auth.bind(NEWS, "wang", &user);
        world.auth.set_away(true);
        let refused = app.send(repeatable("wang", "r-1")).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "AUTH_UNAVAILABLE"));
        assert!(refused.get_details_retry_info().is_some());
        let messages = vec![template(&user), to_account("wang")];
        let refused = batch(&app, messages).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "AUTH_UNAVAILABLE"));
        assert_eq!(rows(&world).await, 0);

        world.auth.set_away(false);
        app.send(repeatable("wang", "r-1")).await.unwrap();
        assert_eq!(rows(&world).await, 1);
    }

    async fn a_batch_asks_once_for_each_account_and_one_that_is_not_bound_fails_alone(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut messages = Vec::new();
        for number in 0..300 {
            let account = format!("account-{}", number % 100);
            if number < 100 && number != 50 {
                world.auth.bind(NEWS, &account, &world.user(NEWS));
            }
            messages.push(to_account(&account));
        }
        messages.push(to_account(" no name "));
        let results = batch(&app, messages).await.unwrap();
        assert_eq!(results.len(), 301);
        for (number, result) in results.iter().enumerate() {
            match (number, result) {
                (50 | 150 | 250, Outcome::Error(error)) => assert_eq!(error.reason, "ACCOUNT_NOT_BOUND"),
                (300, Outcome::Error(error)) => {
                    assert_eq!(error.reason, "INVALID_ARGUMENT");
                    assert_eq!(error.field_violations[0].field, "account");
                }
                (_, Outcome::Message(message)) => {
                    assert_eq!(message.account, format!("account-{}", number % 100));
                }
                (_, Outcome::Error(error)) => panic!("{number}: {error:?}"),
            }
        }
        let asked = world.auth.asked();
        assert_eq!(asked.len(), 101);
        assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), 101);
        assert_eq!(rows(&world).await, 297);
    }
}

#[tokio::test]
async fn either_an_open_id_or_an_account_is_given() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let both = SendMessageRequest {
        account: "wang".to_owned(),
        ..template("oReader")
    };
    for (request, field) in [
        (both, "account"),
        (template(""), "open_id"),
        (to_account(&"x".repeat(256)), "account"),
        (to_account(" wang"), "account"),
    ] {
        let refused = app.send(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let fields = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields.len(), 1);
        assert_eq!(fields[0].field, field);
    }
    let refused = app.send(to_account("nobody")).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "ACCOUNT_NOT_BOUND")
    );
}
