//! Messages by filter: found window by window, so that a call costs the same however many there are.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, QueryTrait, Select, TransactionTrait as _,
    sea_query::extension::mysql::{IndexHintScope, MySqlSelectStatementExt as _},
};
use service_kit::storage::{self, within_deadline};
use uuid::Uuid;
use wechat::AppId;

use super::{
    Shown, State,
    entity::{Column, Entity, Model},
    store::Store,
};
use crate::broadcast::Tally;

/// Rows that one call looks at, at most.
const WINDOW: u64 = 10_000;
/// Messages that one call queues again, at most.
pub(crate) const REQUEUED: u64 = 1_000;
/// The index that everything here goes by.
const INDEX: &str = "message_app";
/// An id is made right before or after its create_time is read: by no more than this do they differ.
const SLACK: TimeDelta = TimeDelta::seconds(10);
/// How often queueing again is tried when the database let another transaction pass.
const TRIES: usize = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Which messages are meant: those that fit everything that is given.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) app_id: AppId,
    /// In one of these; none is any.
    pub(crate) states: Vec<Shown>,
    pub(crate) broadcast_id: Option<Uuid>,
    pub(crate) open_id: Option<String>,
    /// Accepted then or later.
    pub(crate) start: Option<DateTime<Utc>>,
    /// Accepted before then.
    pub(crate) end: Option<DateTime<Utc>>,
    pub(crate) errcode: Option<i64>,
}

/// What was found, the newest first.
#[derive(Debug)]
pub(crate) struct Found<T> {
    pub(crate) messages: T,
    /// What was looked at goes down to this id: the next call goes on below it. None at the end.
    pub(crate) down_to: Option<Uuid>,
}

impl Filter {
    /// The rows that may be looked at: a range of the index.
    fn range(&self, below: Option<Uuid>) -> Select<Entity> {
        let mut range = Entity::find().filter(Column::AppId.eq(self.app_id.as_str()));
        if let Some(below) = below {
            range = range.filter(Column::MessageId.lt(below.to_string()));
        }
        if let Some(start) = self.start {
            range = range.filter(Column::MessageId.gte(first_id(start - SLACK)));
        }
        if let Some(end) = self.end {
            range = range.filter(Column::MessageId.lt(first_id(end + SLACK)));
        }
        QueryTrait::query(&mut range).force_index(INDEX, IndexHintScope::All);
        range.order_by_desc(Column::MessageId)
    }

    /// What a row in that range has to be, besides; none where every one fits.
    fn rows(&self, now: DateTime<Utc>) -> Option<Condition> {
        let states = self.states.iter().map(|state| state.rows(now));
        let states = states.fold(Condition::any(), Condition::add);
        let rows = Condition::all()
            .add_option((!self.states.is_empty()).then_some(states))
            .add_option(
                self.broadcast_id
                    .map(|id| Column::BroadcastId.eq(id.to_string())),
            )
            .add_option(self.open_id.as_ref().map(|id| Column::OpenId.eq(id)))
            .add_option(self.start.map(|start| Column::CreateTime.gte(start)))
            .add_option(self.end.map(|end| Column::CreateTime.lt(end)))
            .add_option(self.errcode.map(|errcode| Column::Errcode.eq(errcode)));
        (!rows.is_empty()).then_some(rows)
    }
}

/// The least UUIDv7 of a millisecond.
pub(crate) fn first_id(time: DateTime<Utc>) -> String {
    const LATEST: u64 = (1 << 48) - 1;
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or_default();
    let id = uuid::Builder::from_unix_timestamp_millis(millis.min(LATEST), &[0; 10]);
    id.into_uuid().to_string()
}

impl Store {
    /// Up to `limit` messages that fit, below an id. Fewer may be found though more follow.
    pub(crate) async fn list(
        &self,
        filter: &Filter,
        below: Option<Uuid>,
        limit: u64,
        now: DateTime<Utc>,
    ) -> Result<Found<Vec<Model>>, DbErr> {
        self.list_within(WINDOW, filter, below, limit, now).await
    }

    async fn list_within(
        &self,
        window: u64,
        filter: &Filter,
        below: Option<Uuid>,
        limit: u64,
        now: DateTime<Utc>,
    ) -> Result<Found<Vec<Model>>, DbErr> {
        let connection = &self.database.connection;
        let mut floor = None;
        let mut fitting = filter.range(below);
        if let Some(rows) = filter.rows(now) {
            let last = filter.range(below).select_only().column(Column::MessageId);
            let last = last.offset(window - 1).limit(1).into_tuple();
            floor = within_deadline(last.one(connection)).await?;
            fitting = fitting.filter(rows);
        }
        if let Some(floor) = &floor {
            fitting = fitting.filter(Column::MessageId.gte::<&String>(floor));
        }
        let messages = within_deadline(fitting.limit(limit).all(connection)).await?;
        let down_to = match messages.last() {
            Some(last) if messages.len() as u64 == limit => Some(last.message_id.clone()),
            _ => floor,
        };
        let down_to = down_to.map(|id: String| Uuid::try_parse(&id)).transpose();
        Ok(Found {
            messages,
            down_to: down_to.map_err(|error| DbErr::Type(error.to_string()))?,
        })
    }

    /// Queues what failed of these messages as [`Store::retry`] does. Returns how many were queued.
    pub(crate) async fn retry_all(&self, mut messages: Vec<Model>) -> Result<u64, DbErr> {
        // Whoever locks rows locks them in this order.
        messages.sort_by(|one, other| {
            (&one.broadcast_id, &one.message_id).cmp(&(&other.broadcast_id, &other.message_id))
        });
        let mut tries = 0;
        loop {
            tries += 1;
            match within_deadline(self.requeue(&messages)).await {
                Err(error) if storage::is_deadlock(&error) && tries < TRIES => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// One statement a broadcast, each of which tells how many of it went back.
    async fn requeue(&self, messages: &[Model]) -> Result<u64, DbErr> {
        let transaction = self.database.connection.begin().await?;
        let mut requeued = 0;
        let mut tally = Tally::default();
        for of_one in messages.chunk_by(|one, other| one.broadcast_id == other.broadcast_id) {
            let ids = of_one.iter().map(|message| &message.message_id);
            let update = self.requeuing().filter(Column::MessageId.is_in(ids));
            let count = update.exec(&transaction).await?.rows_affected;
            let broadcast_id = of_one.first().and_then(|one| one.broadcast_id.as_deref());
            tally.moved(broadcast_id, State::Failed, State::Queued, count);
            requeued += count;
        }
        tally.write(&transaction).await?;
        transaction.commit().await?;
        Ok(requeued)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;
    use sea_orm::{EntityTrait as _, IntoActiveModel as _};
    use service_kit::{Clock, settings::DatabaseUrl};
    use test_support::MariaDb;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::{database::Database, message::State, migration::Migrator};

    const APP: &str = "wx0000000000000001";

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_276_740, 0).unwrap()
    }

    /// A message of `age` milliseconds.
    fn message(age: i64) -> Model {
        let create_time = now() - TimeDelta::milliseconds(age);
        let millis = u64::try_from(create_time.timestamp_millis()).unwrap();
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random());
        Model {
            message_id: id.into_uuid().to_string(),
            app_id: APP.to_owned(),
            open_id: "oA".to_owned(),
            account: None,
            caller: String::new(),
            request_id: None,
            content: String::new(),
            form_id: None,
            state: State::Sent,
            attempts: 1,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time,
            schedule_time: None,
            expire_time: None,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: None,
            lane: String::new(),
            broadcast_id: None,
            delivered_time: None,
            failed_attempts: None,
            claim_id: None,
            trace_parent: None,
        }
    }

    fn every(app_id: &str) -> Filter {
        Filter {
            app_id: AppId::try_from(app_id).unwrap(),
            states: Vec::new(),
            broadcast_id: None,
            open_id: None,
            start: None,
            end: None,
            errcode: None,
        }
    }

    async fn store(url: &str, messages: &[Model]) -> Store {
        let url = DatabaseUrl::new(url.to_owned());
        let connection = storage::database(&url).await.unwrap();
        storage::migrate::<Migrator>(&connection).await.unwrap();
        let rows = messages
            .iter()
            .cloned()
            .map(|message| message.into_active_model());
        Entity::insert_many(rows).exec(&connection).await.unwrap();
        Store {
            database: Database {
                connection,
                clock: Clock::System,
            },
        }
    }

    /// Every page of at most `limit`, from windows of `window`.
    async fn pages(store: &Store, filter: &Filter, limit: u64, window: u64) -> Vec<String> {
        let mut ids = Vec::new();
        let mut below = None;
        loop {
            let page = store.list_within(window, filter, below, limit, now());
            let page = page.await.unwrap();
            assert!(page.messages.len() as u64 <= limit);
            ids.extend(page.messages.into_iter().map(|message| message.message_id));
            match page.down_to {
                None => return ids,
                Some(down_to) => {
                    assert!(below.is_none_or(|below| down_to < below));
                    below = Some(down_to);
                }
            }
        }
    }

    /// Rows that differ in everything that a filter sees.
    fn various() -> Vec<Model> {
        let broadcasts = [None, Some(Uuid::from_u128(7).to_string())];
        let messages = (0..400_usize).map(|number| Model {
            app_id: [APP, "wx0000000000000002"][usize::from(number % 7 == 0)].to_owned(),
            open_id: ["oA", "oB"][number % 2].to_owned(),
            state: [State::Sent, State::Failed, State::Failed, State::Queued][number % 4],
            errcode: [0, 43004, 45015][number % 3],
            broadcast_id: broadcasts[number / 5 % 2].clone(),
            // Several share a millisecond.
            ..message(i64::try_from(number).unwrap() / 3)
        });
        messages.collect()
    }

    fn fits(message: &Model, filter: &Filter) -> bool {
        let broadcast_id = filter.broadcast_id.map(|id| id.to_string());
        message.app_id == filter.app_id.as_str()
            && (filter.states.is_empty() || filter.states.contains(&Shown::of(message, now())))
            && (broadcast_id.is_none() || message.broadcast_id == broadcast_id)
            && filter
                .open_id
                .as_ref()
                .is_none_or(|id| *id == message.open_id)
            && filter
                .start
                .is_none_or(|start| message.create_time >= start)
            && filter.end.is_none_or(|end| message.create_time < end)
            && filter
                .errcode
                .is_none_or(|errcode| message.errcode == errcode)
    }

    struct Filled {
        runtime: Runtime,
        store: Store,
        messages: Vec<Model>,
        _folder: tempfile::TempDir,
    }

    fn filled() -> &'static Filled {
        static FILLED: OnceLock<Filled> = OnceLock::new();
        FILLED.get_or_init(|| {
            let runtime = Runtime::new().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", folder.path().join("push.sqlite").display());
            let mut messages = various();
            let store = runtime.block_on(store(&url, &messages));
            messages.sort_by(|one, other| other.message_id.cmp(&one.message_id));
            Filled {
                runtime,
                store,
                messages,
                _folder: folder,
            }
        })
    }

    prop_compose! {
        fn filters()(
            states in prop::collection::vec(prop::sample::select(vec![Shown::Sent, Shown::Failed, Shown::Queued]), 0..3),
            of_broadcast: bool,
            open_id in prop::option::of(prop::sample::select(vec!["oA", "oB", "oC"])),
            start in prop::option::of(-5_i64..150),
            length in prop::option::of(1_i64..80),
            errcode in prop::option::of(prop::sample::select(vec![0_i64, 43004, 1])),
        ) -> Filter {
            let start = start.map(|age| now() - TimeDelta::milliseconds(age));
            Filter {
                states,
                broadcast_id: of_broadcast.then_some(Uuid::from_u128(7)),
                open_id: open_id.map(str::to_owned),
                start,
                end: length.map(|length| start.unwrap_or_else(now) + TimeDelta::milliseconds(length)),
                errcode,
                ..every(APP)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pages_together_hold_what_fits_once_the_newest_first(
            filter in filters(),
            limit in 1_u64..60,
            window in 1_u64..60,
        ) {
            let Filled { runtime, store, messages, .. } = filled();
            let fitting = messages.iter().filter(|message| fits(message, &filter));
            let fitting: Vec<_> = fitting.map(|message| message.message_id.clone()).collect();
            let paged = runtime.block_on(pages(store, &filter, limit, window));
            prop_assert_eq!(paged, fitting);
        }
    }

    /// One row of each combination of what a state is told by.
    fn combinations() -> Vec<Model> {
        let times = [
            None,
            Some(now() - TimeDelta::seconds(1)),
            Some(now() + TimeDelta::seconds(1)),
        ];
        let mut messages = Vec::new();
        for state in <State as sea_orm::Iterable>::iter() {
            for attempts in [0, 1] {
                for schedule_time in times {
                    for expire_time in times {
                        for claim_id in [None, Some(Uuid::nil().to_string())] {
                            messages.push(Model {
                                state,
                                attempts,
                                schedule_time,
                                expire_time,
                                claim_id,
                                ..message(0)
                            });
                        }
                    }
                }
            }
        }
        messages
    }

    async fn states_are_found_as_they_are_told(url: &str) {
        let messages = combinations();
        let store = store(url, &messages).await;
        let mut found = 0;
        for state in [
            Shown::Scheduled,
            Shown::Queued,
            Shown::Sending,
            Shown::Sent,
            Shown::Delivered,
            Shown::Failed,
            Shown::Cancelled,
            Shown::Expired,
        ] {
            let filter = Filter {
                states: vec![state],
                ..every(APP)
            };
            let page = store.list(&filter, None, 1_000, now()).await.unwrap();
            for message in &page.messages {
                assert_eq!(Shown::of(message, now()), state, "{message:?}");
            }
            found += page.messages.len();
        }
        assert_eq!(found, messages.len());
    }

    #[tokio::test]
    async fn states_are_found_as_they_are_told_in_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.sqlite");
        states_are_found_as_they_are_told(&format!("sqlite://{}", file.display())).await;
    }

    #[tokio::test]
    async fn states_are_found_as_they_are_told_in_mariadb() {
        states_are_found_as_they_are_told(MariaDb::database().await.url()).await;
    }
}
