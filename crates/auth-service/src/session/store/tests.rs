use ::redis::AsyncCommands as _;
use secrecy::SecretString;
use service_kit::{Clock, Sealer, clock::millis, storage};
use test_support::{FaultProxy, Redis, eventually};
use tokio::task::JoinSet;

use super::*;
use crate::session::{
    Sessions,
    epoch::{Epoch, Epochs, PAGE},
};

const DAY: u64 = 24 * 3_600_000;
const LIVES: Lives = Lives {
    idle: Duration::from_millis(7 * DAY),
    longest: Duration::from_millis(30 * DAY),
};
const PATIENCE: Duration = Duration::from_secs(30);

fn user() -> UserId {
    "0192f0c1-2345-7000-8000-000000000001".parse().unwrap()
}

/// A session id like no other.
fn id(number: usize) -> SessionId {
    SessionId(crate::session::digest(&number.to_string()))
}

fn session(union_id: Option<&str>) -> Session {
    Session {
        user_id: user(),
        app_id: "wx0000000000000001".parse().unwrap(),
        open_id: "oABC".parse().unwrap(),
        union_id: union_id.map(|id| id.parse().unwrap()),
        created: Clock::System.unix_millis(),
        client: "crm".to_owned(),
        epoch: Epoch(0),
    }
}

fn subjects() -> [Subject; 2] {
    let app_id = "wx0000000000000001".parse().unwrap();
    [Subject::User(user()), Subject::App(app_id)]
}

/// What both twins do.
async fn keeps_sessions(store: Store) {
    for (number, union_id) in [(1, None), (2, Some("u1"))] {
        let (id, session) = (id(number), session(union_id));
        let now = session.created;
        let touch = async || store.touch(&id, LIVES.idle, now).await.unwrap();
        let peek = async || store.peek(std::slice::from_ref(&id), now).await.unwrap();
        assert_eq!((touch().await, peek().await), (None, vec![None]));
        store.insert(&id, &session, LIVES).await.unwrap();
        assert_eq!(touch().await, Some(session.clone()));
        let (found, left) = peek().await.remove(0).unwrap();
        assert_eq!(found, session);
        assert!(is_near(left, LIVES.idle), "{left:?}");
        for _ in 0..2 {
            let ids = [id.clone()];
            store.remove(user(), &ids).await.unwrap();
            assert_eq!((touch().await, peek().await), (None, vec![None]));
        }
    }
}

async fn indexes_the_latest_first(store: Store) {
    let first = session(None);
    let mut expected = Vec::new();
    for number in 0..3 {
        let created = first.created + u64::try_from(number).unwrap();
        let session = Session {
            created,
            ..first.clone()
        };
        store.insert(&id(number), &session, LIVES).await.unwrap();
        let id = id(number);
        expected.insert(0, Indexed { created, id });
    }
    let index = async || store.index(user(), first.created).await.unwrap();
    assert_eq!(index().await, expected);
    let ids = [expected.remove(1).id];
    store.remove(user(), &ids).await.unwrap();
    assert_eq!(index().await, expected);

    // What is too old to live leaves the index with the next login.
    let late = Session {
        created: first.created + millis(LIVES.longest) + 1,
        ..first.clone()
    };
    store.insert(&id(3), &late, LIVES).await.unwrap();
    expected.truncate(1);
    let (created, id) = (late.created, id(3));
    expected.insert(0, Indexed { created, id });
    assert_eq!(index().await, expected);
}

async fn ends_the_oldest_of_too_many(store: Store) {
    let first = session(None);
    for number in 0..=SESSIONS_MAX {
        let session = Session {
            created: first.created + u64::try_from(number).unwrap(),
            ..first.clone()
        };
        store.insert(&id(number), &session, LIVES).await.unwrap();
    }
    let now = first.created;
    let index = store.index(user(), now).await.unwrap();
    assert_eq!(index.len(), SESSIONS_MAX);
    assert_eq!(index.last().unwrap().id, id(1));
    let found = store.peek(&[id(0), id(1)], now).await.unwrap();
    assert!(found[0].is_none() && found[1].is_some());
}

async fn numbers_revocations(store: Store) {
    let [user, app] = subjects();
    let kept = LIVES.longest;
    let now = Clock::System.unix_millis();
    assert_eq!(store.latest().await.unwrap(), None);
    assert_eq!(store.epochs(0).await.unwrap(), Page::default());

    let advance = async |held, subject: Option<&Subject>| {
        store.advance(held, subject, kept, now).await.unwrap()
    };
    let begun = advance(0, None).await;
    assert!(begun >= now);
    let first = advance(0, Some(&user)).await;
    let second = advance(0, Some(&app)).await;
    assert!(begun < first && first < second);
    assert_eq!(store.latest().await.unwrap(), Some(second));
    let page = store.epochs(0).await.unwrap();
    assert_eq!(
        page.revocations,
        [(user.clone(), first), (app.clone(), second)]
    );
    assert_eq!((page.latest, page.next), (Some(second), None));
    let page = store.epochs(first + 1).await.unwrap();
    assert_eq!(page.revocations, [(app.clone(), second)]);

    // A second one of the same user takes the place of the first; what is held elsewhere is surpassed.
    let third = advance(second + 1_000_000_000, Some(&user)).await;
    assert_eq!(third, second + 1_000_000_001);
    let page = store.epochs(0).await.unwrap();
    assert_eq!(
        page.revocations,
        [(app.clone(), second), (user.clone(), third)]
    );

    // What is put back never takes the place of something larger.
    let lost = [(user.clone(), first), (app.clone(), second + 1)];
    store.restore(&lost, second, kept).await.unwrap();
    let page = store.epochs(0).await.unwrap();
    assert_eq!(page.revocations, [(app, second + 1), (user, third)]);
    assert_eq!(page.latest, Some(third));
}

async fn reads_numbers_page_by_page(store: Store) {
    let subject = |number: u64| {
        let id = format!("0192f0c1-2345-7000-8000-{number:012}");
        Subject::User(id.parse().unwrap())
    };
    let all = 2 * u64::try_from(PAGE).unwrap() + 5;
    let many: Vec<_> = (1..=all).map(|number| (subject(number), number)).collect();
    store.restore(&many, all, LIVES.longest).await.unwrap();
    let (mut read, mut from) = (Vec::new(), Some(0));
    while let Some(begin) = from {
        let page = store.epochs(begin).await.unwrap();
        assert!(page.revocations.len() <= PAGE);
        assert_eq!(page.latest, page.next.is_none().then_some(all));
        let known = read.len();
        let more = page.revocations.into_iter();
        // A page begins with the last of the one before.
        read.extend(more.skip(usize::from(known > 0)));
        from = page.next;
    }
    assert_eq!(read, many);
}

async fn keeps_the_latest_session_key(store: Store) {
    let now = Clock::System.unix_millis();
    let kept = async |user: &str| store.session_key(user, now).await.unwrap();
    assert_eq!(kept("wx1:a").await, None);
    for sealed in ["first", "second"] {
        let put = store.put_session_key("wx1:a", sealed, LIVES.longest, now);
        put.await.unwrap();
    }
    assert_eq!(kept("wx1:a").await.as_deref(), Some("second"));
    assert_eq!(kept("wx1:b").await, None);
    let swap = async |user, expected| {
        let swap = store.swap_session_key(user, expected, "third", LIVES.longest, now);
        swap.await.unwrap()
    };
    assert!(!swap("wx1:a", "first").await && !swap("wx1:b", "").await);
    assert!(swap("wx1:a", "second").await);
    assert_eq!(kept("wx1:a").await.as_deref(), Some("third"));
    assert_eq!(kept("wx1:b").await, None);
    store.remove_session_key("wx1:a").await.unwrap();
    assert_eq!(kept("wx1:a").await, None);
}

async fn conforms<F: Future<Output = Store>>(empty: impl Fn() -> F) {
    keeps_sessions(empty().await).await;
    indexes_the_latest_first(empty().await).await;
    ends_the_oldest_of_too_many(empty().await).await;
    numbers_revocations(empty().await).await;
    reads_numbers_page_by_page(empty().await).await;
    keeps_the_latest_session_key(empty().await).await;
}

fn is_near(left: Duration, expected: Duration) -> bool {
    left <= expected && left + Duration::from_secs(60) > expected
}

fn connect(url: &str) -> ConnectionManager {
    storage::redis(&SecretString::from(url)).unwrap()
}

fn store_at(url: &str) -> Store {
    Store::redis(connect(url), Client::open(url).unwrap())
}

#[tokio::test]
async fn memory_conforms() {
    conforms(async || Store::memory()).await;
}

#[tokio::test]
async fn redis_conforms() {
    let redis = Redis::start().await;
    let url = redis.url();
    conforms(async || {
        let () = ::redis::cmd("FLUSHALL")
            .query_async(&mut connect(&url))
            .await
            .unwrap();
        store_at(&url)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn memory_forgets_by_itself() {
    let store = Store::memory();
    let session = session(None);
    store.insert(&id(1), &session, LIVES).await.unwrap();
    let now = session.created;
    let touch = async |now| store.touch(&id(1), LIVES.idle, now).await.unwrap();
    assert!(touch(now + 7 * DAY - 1).await.is_some());
    assert!(touch(now + 13 * DAY).await.is_some());
    assert!(touch(now + 20 * DAY).await.is_none());
    assert!(
        store
            .index(user(), now + 30 * DAY)
            .await
            .unwrap()
            .is_empty()
    );

    let [user, app] = subjects();
    let kept = LIVES.longest;
    store.advance(0, Some(&user), kept, now).await.unwrap();
    store
        .advance(0, Some(&app), kept, now + 30 * DAY + 1)
        .await
        .unwrap();
    let page = store.epochs(0).await.unwrap();
    assert_eq!(page.revocations.len(), 1);
}

#[tokio::test]
async fn redis_is_told_when_to_forget() {
    let redis = Redis::start().await;
    let mut connection = connect(&redis.url());
    let store = store_at(&redis.url());
    let session = session(None);
    store.insert(&id(1), &session, LIVES).await.unwrap();
    let put = store.put_session_key("u", "sealed", LIVES.longest, session.created);
    put.await.unwrap();
    let [user, _] = subjects();
    let advance = store.advance(0, Some(&user), LIVES.longest, 0);
    advance.await.unwrap();
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys.len(), 4);
    for key in keys {
        let left: i64 = connection.pttl(&key).await.unwrap();
        let left = Duration::from_millis(u64::try_from(left).unwrap());
        let expected = if key.ends_with(":session") {
            LIVES.idle
        } else {
            LIVES.longest
        };
        assert!(is_near(left, expected), "{key}: {left:?}");
    }

    // A use lets the session live on, and its record comes with the same command.
    let key = super::redis::session_at(&id(1));
    let () = connection.pexpire(&key, 1_000).await.unwrap();
    store.touch(&id(1), LIVES.idle, 0).await.unwrap().unwrap();
    let left: i64 = connection.pttl(&key).await.unwrap();
    assert!(u64::try_from(left).unwrap() > 6 * DAY);

    // A revocation makes room for itself.
    let old: u64 = session.created - 31 * DAY;
    let key = "wxhub:auth:v1:{epochs}:numbers";
    let () = connection.zadd(key, "user:old", old).await.unwrap();
    let advance = store.advance(0, Some(&user), LIVES.longest, 0);
    advance.await.unwrap();
    let count: usize = connection.zcard(key).await.unwrap();
    assert_eq!(count, 2);
}

fn sessions(store: Store) -> Sessions {
    Sessions::new(store, LIVES.longest, Sealer::ephemeral(), Clock::System)
}

fn epochs(store: Store) -> Epochs {
    Epochs::new(store, Clock::System, LIVES.longest)
}

/// Replicas of one service, whose background work ends with this.
fn follow(tasks: &mut JoinSet<()>, epochs: &Epochs) -> CancellationToken {
    let stop = CancellationToken::new();
    tasks.spawn(epochs.clone().run(stop.clone()));
    stop
}

#[tokio::test]
async fn a_replica_that_starts_knows_earlier_revocations_before_its_first_answer() {
    let redis = Redis::start().await;
    let store = store_at(&redis.url());
    let one = epochs(store.clone());
    let before = Session {
        epoch: one.current().await.unwrap(),
        ..session(None)
    };
    let [user, _] = subjects();
    one.revoke(user).await.unwrap();

    // Nothing runs in the background.
    let other = epochs(store);
    assert!(!other.ended(&before));
    other.refresh().await.unwrap();
    assert!(other.ended(&before));
}

#[tokio::test]
async fn nothing_is_accepted_on_knowledge_older_than_a_second() {
    let redis = Redis::start().await;
    let store = store_at(&redis.url());
    let clock = Clock::tokio(std::time::SystemTime::UNIX_EPOCH);
    let (one, other) = (
        epochs(store.clone()),
        Epochs::new(store, clock.clone(), LIVES.longest),
    );
    let before = Session {
        epoch: other.current().await.unwrap(),
        ..session(None)
    };
    other.refresh().await.unwrap();
    let [user, _] = subjects();
    one.revoke(user).await.unwrap();
    // As long as the machine sleeps, no poll runs.
    clock.suspend(Duration::from_secs(1));
    other.refresh().await.unwrap();
    assert!(other.ended(&before));

    redis.kill();
    clock.suspend(Duration::from_secs(1));
    let asks = (0..100).map(|_| {
        let other = other.clone();
        async move { other.refresh().await.is_err() }
    });
    let began = std::time::Instant::now();
    let refused = futures_util::future::join_all(asks).await;
    assert!(refused.into_iter().all(|refused| refused));
    // One look for all of them.
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn revocations_that_redis_lost_are_put_back_and_later_logins_live() {
    let redis = Redis::start().await;
    let store = store_at(&redis.url());
    let one = epochs(store.clone());
    let [user, app] = subjects();
    let old = Session {
        epoch: one.current().await.unwrap(),
        ..session(None)
    };
    one.revoke(user.clone()).await.unwrap();
    one.refresh().await.unwrap();

    redis.restart().await;
    let mut tasks = JoinSet::new();
    let stop = follow(&mut tasks, &one);
    // Somebody else starts with nothing, and revokes at once.
    let other = epochs(store.clone());
    eventually("Redis is back", PATIENCE, async || {
        other.current().await.map(drop)
    })
    .await;
    other.revoke(app.clone()).await.unwrap();
    let new = Session {
        epoch: other.current().await.unwrap(),
        ..session(None)
    };
    eventually("the lost one is back", PATIENCE, async || {
        let page = store.epochs(0).await.unwrap();
        let subjects: Vec<_> = page.revocations.into_iter().map(|found| found.0).collect();
        subjects == [user.clone(), app.clone()]
    })
    .await;
    stop.cancel();
    tasks.join_all().await;

    let late = epochs(store);
    for epochs in [&one, &other, &late] {
        eventually("all know the same", PATIENCE, async || {
            epochs.refresh().await.unwrap();
            epochs.ended(&old) && !epochs.ended(&new)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_heard_at_once_and_without_hearing_within_a_second() {
    let redis = Redis::start().await;
    let url = redis.url();
    let ear = FaultProxy::start(&url).await;
    let deaf = Store::redis(connect(&url), Client::open(ear.url(&url)).unwrap());
    ear.cut().await;
    let hearing = store_at(&url);
    let mut tasks = JoinSet::new();
    for (replica, revoker) in [(deaf, hearing.clone()), (hearing.clone(), hearing)] {
        let (replica, revoker) = (epochs(replica), epochs(revoker));
        let stop = follow(&mut tasks, &replica);
        let before = Session {
            epoch: revoker.current().await.unwrap(),
            ..session(None)
        };
        eventually("it has looked", PATIENCE, async || {
            replica.refresh().await.map(drop)
        })
        .await;
        let [user, _] = subjects();
        revoker.revoke(user).await.unwrap();
        eventually("it knows", PATIENCE, async || replica.ended(&before)).await;
        stop.cancel();
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn a_session_and_its_place_in_the_index_are_small() {
    let redis = Redis::start().await;
    let mut connection = connect(&redis.url());
    let sessions = sessions(store_at(&redis.url()));
    let user = crate::user::User {
        user_id: user(),
        app_id: "wx0000000000000001".parse().unwrap(),
        open_id: "oGZUI0egBJY1zhBYw2KhdUfwVJJE".parse().unwrap(),
        union_id: Some("oGZUI0egBJY1zhBYw2KhdUfwVJJE".parse().unwrap()),
        nickname: None,
        create_time: std::time::SystemTime::UNIX_EPOCH,
        last_login_time: std::time::SystemTime::UNIX_EPOCH,
    };
    let epoch = sessions.epoch().await.unwrap();
    let client = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile";
    sessions.open(epoch, &user, client).await.unwrap();
    let keys: Vec<String> = connection.keys("*:session*").await.unwrap();
    assert_eq!(keys.len(), 2);
    let mut bytes = 0;
    for key in keys {
        let usage: u64 = ::redis::cmd("MEMORY")
            .arg("USAGE")
            .arg(key)
            .query_async(&mut connection)
            .await
            .unwrap();
        bytes += usage;
    }
    assert!(bytes < 650, "{bytes} bytes");
}
