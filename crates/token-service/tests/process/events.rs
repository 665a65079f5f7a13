//! How a new value reaches the other replicas: by events, and without them.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use test_support::eventually;

use crate::cluster::{App, Cluster, PATIENCE, force, token, user};

/// Has the app's token replaced, and returns how long it takes until every replica serves the new one.
async fn rotate(cluster: &Cluster, app: &App) -> Duration {
    let fresh = force(&mut cluster.replicas[0].rpc(), app).await.unwrap();
    let stored = Instant::now();
    for replica in &cluster.replicas {
        let rpc = &mut replica.rpc();
        eventually("the replica serves it", PATIENCE, async || {
            token(rpc, app).await.unwrap().version == fresh.version
        })
        .await;
    }
    stored.elapsed()
}

/// Whether replicas may hear events from now on.
async fn allow(redis: &mut MultiplexedConnection, events: bool) {
    for replica in 0..3 {
        let rule = if events { "+subscribe" } else { "-subscribe" };
        let () = redis::cmd("ACL")
            .arg(&["SETUSER", &user(replica), rule])
            .query_async(redis)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_new_value_reaches_every_replica_though_events_are_lost() {
    let cluster = Cluster::start(5).await;
    let mut redis = cluster.connect().await;
    let classic: Vec<_> = cluster.apps.iter().filter(|app| app.classic).collect();
    for app in &classic {
        cluster.age(app, PATIENCE * 10).await;
    }
    println!("by events: within {:?}", rotate(&cluster, classic[0]).await);

    allow(&mut redis, false).await;
    let killed: u64 = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "pubsub"])
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(killed, 3);
    println!(
        "by polling: within {:?}",
        rotate(&cluster, classic[1]).await
    );

    allow(&mut redis, true).await;
    eventually("replicas hear again", PATIENCE, async || {
        let heard: Vec<(String, u64)> = redis::cmd("PUBSUB")
            .arg(&["NUMSUB", "wxhub:token:v1:changed"])
            .query_async(&mut redis)
            .await
            .unwrap();
        heard[0].1 == 3
    })
    .await;
    println!(
        "by events again: within {:?}",
        rotate(&cluster, classic[2]).await
    );
}
