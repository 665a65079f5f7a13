//! Broadcasts: created, given recipients, steered, followed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use prost_types::Timestamp;
use proto::push::v1::{
    self as pb, AddBroadcastRecipientsRequest, AddBroadcastRecipientsResponse,
    CancelBroadcastRequest, CancelBroadcastResponse, CreateBroadcastRequest,
    CreateBroadcastResponse, GetBroadcastRequest, GetBroadcastResponse, ListBroadcastsRequest,
    ListBroadcastsResponse, PauseBroadcastRequest, PauseBroadcastResponse, ResumeBroadcastRequest,
    ResumeBroadcastResponse, StartBroadcastRequest, StartBroadcastResponse, WatchBroadcastRequest,
    WatchBroadcastResponse, create_broadcast_request, send_message_request,
};
use service_kit::{App, Caller, ops::Phase, status};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval, timeout},
};
use tonic::{Status, Streaming};
use tracing::debug;
use uuid::Uuid;
use wechat::OpenId;

use super::{
    Service,
    content::{content_from_pb, non_empty},
    message::{check_request_id, read_time, sender, timestamp},
    paging,
};
use crate::{
    broadcast::{Broadcast, NewBroadcast, State},
    database::moment,
    error::Error,
    message::Violation,
};

/// The most recipients of one part.
const MAX_PART: usize = 10_000;
/// The next part of an upload comes within this.
const NEXT_PART: Duration = Duration::from_secs(60);
/// How often a broadcast that is watched is looked at.
const LOOK: Duration = Duration::from_secs(1);

impl Service {
    pub(super) async fn create_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: CreateBroadcastRequest,
    ) -> Result<CreateBroadcastResponse, Status> {
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let new = self.new_broadcast(&app, request)?;
        let broadcast = self.broadcasts.create(&sender(caller, &app), new).await?;
        Ok(CreateBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    fn new_broadcast(
        &self,
        app: &App,
        request: CreateBroadcastRequest,
    ) -> Result<NewBroadcast, Error> {
        use create_broadcast_request::Content as Pb;

        let mut violations: Vec<Violation> = Vec::new();
        let now = moment(&self.messages.clock);
        let expire_time = read_time("expire_time", request.expire_time, now, &mut violations);
        check_request_id(&request.request_id, &mut violations);
        let content = request.content.map(|content| match content {
            Pb::Template(template) => send_message_request::Content::Template(template),
            Pb::Subscribe(subscribe) => send_message_request::Content::Subscribe(subscribe),
            Pb::Customer(customer) => send_message_request::Content::Customer(customer),
        });
        let content = match content.map(|content| content_from_pb(app, content)) {
            None => {
                let problem = "must be one of template, subscribe and customer";
                violations.push(("content".to_owned(), problem.to_owned()));
                None
            }
            Some(Ok(content)) => {
                violations.extend(content.violations(app));
                Some(content)
            }
            Some(Err(violation)) => {
                violations.push(violation);
                None
            }
        };
        match content {
            Some(content) if violations.is_empty() => Ok(NewBroadcast {
                request_id: non_empty(request.request_id),
                content,
                expire_time,
            }),
            _ => Err(Error::Invalid(violations)),
        }
    }

    pub(super) async fn add_broadcast_recipients(
        &self,
        caller: &Arc<Caller>,
        mut parts: Streaming<AddBroadcastRecipientsRequest>,
    ) -> Result<AddBroadcastRecipientsResponse, Status> {
        let mut broadcast: Option<Broadcast> = None;
        let (mut named, mut added) = (0, 0);
        loop {
            let part = timeout(NEXT_PART, parts.message()).await;
            let Some(part) = part.map_err(|_| Error::UploadStalled)?? else {
                break;
            };
            let broadcast = match &mut broadcast {
                Some(first) if names(&part.broadcast_id, first) => first,
                Some(_) => {
                    let problem = "must be the same in every part, or empty after the first";
                    return Err(status::invalid_field("broadcast_id", problem));
                }
                none => none.insert(self.broadcasts.get(caller, &part.broadcast_id).await?),
            };
            let users = users(part.open_ids, named)?;
            added += self.broadcasts.add(broadcast, &users).await?;
            named += users.len() as u64;
        }
        let Some(broadcast) = broadcast else {
            return Err(status::invalid_field(
                "broadcast_id",
                "must be given in the first part",
            ));
        };
        let broadcast = self.broadcasts.get(caller, &broadcast.broadcast_id).await?;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(AddBroadcastRecipientsResponse {
            broadcast: Some(self.broadcast(broadcast)),
            added: count(added),
            repeated_count: count(named - added),
        })
    }

    pub(super) async fn start_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: StartBroadcastRequest,
    ) -> Result<StartBroadcastResponse, Status> {
        let broadcast = self.broadcasts.start(caller, &request.broadcast_id).await?;
        Ok(StartBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    pub(super) async fn get_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: GetBroadcastRequest,
    ) -> Result<GetBroadcastResponse, Status> {
        let broadcast = self.broadcasts.get(caller, &request.broadcast_id).await?;
        Ok(GetBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    pub(super) async fn list_broadcasts(
        &self,
        caller: &Arc<Caller>,
        request: ListBroadcastsRequest,
    ) -> Result<ListBroadcastsResponse, Status> {
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let size = paging::size(request.page_size)?;
        let below = paging::below(&request.page_token)?;
        let found = self.broadcasts.list(&app.app_id, below, size).await?;
        let more = found.len() as u64 == size;
        let last = found.last().filter(|_| more);
        Ok(ListBroadcastsResponse {
            next_page_token: paging::token(
                last.and_then(|last| Uuid::try_parse(&last.broadcast_id).ok()),
            ),
            broadcasts: found
                .into_iter()
                .map(|found| self.broadcast(found))
                .collect(),
        })
    }

    pub(super) async fn pause_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: PauseBroadcastRequest,
    ) -> Result<PauseBroadcastResponse, Status> {
        let broadcast = self.broadcasts.pause(caller, &request.broadcast_id).await?;
        Ok(PauseBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    pub(super) async fn resume_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: ResumeBroadcastRequest,
    ) -> Result<ResumeBroadcastResponse, Status> {
        let broadcast = self
            .broadcasts
            .resume(caller, &request.broadcast_id)
            .await?;
        Ok(ResumeBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    pub(super) async fn cancel_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: CancelBroadcastRequest,
    ) -> Result<CancelBroadcastResponse, Status> {
        let broadcast = self
            .broadcasts
            .cancel(caller, &request.broadcast_id)
            .await?;
        Ok(CancelBroadcastResponse {
            broadcast: Some(self.broadcast(broadcast)),
        })
    }

    pub(super) async fn watch_broadcast(
        &self,
        caller: &Arc<Caller>,
        request: WatchBroadcastRequest,
    ) -> Result<impl Stream<Item = Result<WatchBroadcastResponse, Status>> + use<>, Status> {
        let broadcast = self.broadcasts.get(caller, &request.broadcast_id).await?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Watch {
            service: self.clone(),
            caller: Arc::clone(caller),
            broadcast_id: broadcast.broadcast_id,
            told: None,
            look,
            phase: self.readiness.watch(),
        };
        Ok(stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.changed().await? {
                Ok(broadcast) => Some((Ok(broadcast), Some(watch))),
                Err(error) => Some((Err(error.into()), None)),
            }
        }))
    }

    fn broadcast(&self, broadcast: Broadcast) -> pb::Broadcast {
        let rate = self.broadcasts.rate(&broadcast);
        to_pb(broadcast, rate, self.messages.clock.now())
    }
}

/// One watcher's place.
struct Watch {
    service: Service,
    caller: Arc<Caller>,
    broadcast_id: String,
    /// What was told last, with its rate.
    told: Option<(Broadcast, f64)>,
    look: Interval,
    phase: watch::Receiver<Phase>,
}

impl Watch {
    /// The broadcast once it differs from what was told; none when that was its end. A database that does not answer
    /// is waited for.
    async fn changed(&mut self) -> Option<Result<WatchBroadcastResponse, Error>> {
        if self.told.as_ref().is_some_and(|(told, _)| told.is_over()) {
            return None;
        }
        let broadcasts = &self.service.broadcasts;
        loop {
            tokio::select! {
                _ = self.look.tick() => {}
                _ = self.phase.wait_for(|phase| *phase == Phase::Draining) => {
                    return Some(Err(Error::ShuttingDown));
                }
            }
            match broadcasts.get(&self.caller, &self.broadcast_id).await {
                Ok(broadcast) => {
                    let now = (broadcast.clone(), broadcasts.rate(&broadcast));
                    if self.told.as_ref() != Some(&now) {
                        self.told = Some(now);
                        let broadcast = Some(self.service.broadcast(broadcast));
                        return Some(Ok(WatchBroadcastResponse { broadcast }));
                    }
                }
                Err(Error::Database(error)) => debug!("a watcher waits for the database: {error}"),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Whether a part of an upload is for this broadcast.
fn names(broadcast_id: &str, broadcast: &Broadcast) -> bool {
    broadcast_id.is_empty()
        || Uuid::try_parse(broadcast_id).is_ok_and(|id| id.to_string() == broadcast.broadcast_id)
}

/// The users of a part of an upload in which so many were named before.
fn users(open_ids: Vec<String>, before: u64) -> Result<Vec<OpenId>, Error> {
    if open_ids.len() > MAX_PART {
        let problem = format!("must be at most {MAX_PART} in one part");
        return Err(Error::Invalid(vec![("open_ids".to_owned(), problem)]));
    }
    let mut users = Vec::with_capacity(open_ids.len());
    for (place, open_id) in open_ids.into_iter().enumerate() {
        let user = OpenId::try_from(open_id).map_err(|_| {
            let nth = before + place as u64 + 1;
            let problem = format!(
                "must be a user's openid, as WeChat gave it (it is number {nth} of the upload; those of the parts before are added)"
            );
            Error::Invalid(vec![(format!("open_ids[{place}]"), problem)])
        })?;
        users.push(user);
    }
    Ok(users)
}

fn to_pb(broadcast: Broadcast, rate: f64, now: SystemTime) -> pb::Broadcast {
    let state = match broadcast.state {
        State::Draft => pb::BroadcastState::Draft,
        State::Running => pb::BroadcastState::Running,
        State::Paused => pb::BroadcastState::Paused,
        State::Cancelled | State::Cancelling => pb::BroadcastState::Cancelled,
        State::Finished => pb::BroadcastState::Finished,
    };
    pb::Broadcast {
        state: state.into(),
        waiting: broadcast.waiting(),
        estimated_finish_time: finish(broadcast.waiting(), rate, now),
        rate,
        // One that finished runs again when messages of it are retried.
        end_time: broadcast
            .end_time
            .filter(|_| broadcast.state != State::Running)
            .map(timestamp),
        recipients: broadcast.recipients,
        sent: broadcast.sent,
        delivered: broadcast.delivered,
        failed: broadcast.failed,
        cancelled: broadcast.cancelled,
        expired: broadcast.expired,
        create_time: Some(timestamp(broadcast.create_time)),
        start_time: broadcast.start_time.map(timestamp),
        expire_time: broadcast.expire_time.map(timestamp),
        broadcast_id: broadcast.broadcast_id,
        app_id: broadcast.app_id,
        caller: broadcast.caller,
        request_id: broadcast.request_id.unwrap_or_default(),
    }
}

/// When so many will have come to their end at this rate.
fn finish(waiting: i64, rate: f64, now: SystemTime) -> Option<Timestamp> {
    let waiting = u32::try_from(waiting).ok().filter(|waiting| *waiting > 0)?;
    let left = Duration::try_from_secs_f64(f64::from(waiting) / rate).ok()?;
    now.checked_add(left).map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_from_the_rate() {
        let now = SystemTime::UNIX_EPOCH;
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        assert_eq!(finish(1_000, 20.0, now), at(50));
        assert_eq!(finish(1_000, 0.0, now), None);
        assert_eq!(finish(0, 20.0, now), None);
    }

    #[test]
    fn an_openid_that_is_none_is_named_by_its_place() {
        let list = |bad: &str| vec!["oA".to_owned(), bad.to_owned()];
        assert_eq!(users(list("oB"), 0).unwrap().len(), 2);
        let Err(Error::Invalid(violations)) = users(list("小明"), 10_000) else {
            panic!("it was taken");
        };
        let [(field, problem)] = &violations[..] else {
            panic!("{violations:?}");
        };
        assert_eq!(field, "open_ids[1]");
        assert!(problem.contains("number 10002"), "{problem}");
    }
}
