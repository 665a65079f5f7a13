//! token-client against replicas that are killed.

use test_support::eventually;
use token_client::TokenClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use wechat::{AppId, ErrCode};

use crate::cluster::{Cluster, PATIENCE, force};

#[tokio::test]
async fn a_client_survives_one_replica_and_the_restart_of_all() {
    let cluster = Cluster::start(3).await;
    let ids: Vec<AppId> = cluster
        .apps
        .iter()
        .map(|app| app.id.parse().unwrap())
        .collect();
    let client = TokenClient::new(&cluster.peer());
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let client = client.clone();
        async move {
            let _ = client.watch(CancellationToken::new()).await;
        }
    });
    let watched = async |version| {
        eventually("the watch tells of it", PATIENCE, async || {
            let cached = client.cached(&ids[0]);
            cached.is_some_and(|token| token.version >= version)
        })
        .await;
    };
    watched(1).await;
    let first = client.access_token(&ids[0]).await.unwrap();

    // One is gone: the next call, to the others or after it broke on the dead one, is answered.
    cluster.replicas[0].kill();
    for _ in 0..10 {
        let fresh = TokenClient::new(&cluster.peer());
        assert_eq!(
            fresh.access_token(&ids[0]).await.unwrap().version,
            first.version
        );
        // What was replaced long ago costs no refresh: the answer is the current one.
        let told = client.report(&ids[0], 1, ErrCode::INVALID_CREDENTIAL).await;
        assert_eq!(told.unwrap().version, first.version);
    }

    // All are gone: memory serves.
    for replica in &cluster.replicas[1..] {
        replica.kill();
    }
    let cold = TokenClient::new(&cluster.peer());
    let error = cold.access_token(&ids[1]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(
        client.access_token(&ids[0]).await.unwrap().version,
        first.version
    );

    // All are back, with what they had, and so are both clients.
    for replica in &cluster.replicas {
        replica.start(&cluster.apps[2]).await;
    }
    eventually("the client finds them again", PATIENCE, async || {
        cold.access_token(&ids[1]).await
    })
    .await;
    let calls = cluster.apps.iter().map(|app| cluster.calls(app));
    assert_eq!(calls.sum::<u64>(), 3, "a restart refreshes nothing (R13)");
    cluster.age(&cluster.apps[0], PATIENCE * 10).await;
    let second = force(&mut cluster.replicas[1].rpc(), &cluster.apps[0]).await;
    watched(second.unwrap().version).await;
}
