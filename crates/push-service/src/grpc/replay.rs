//! Messages by filter: listed, and queued again.

use std::sync::Arc;

use prost_types::Timestamp;
use proto::push::v1::{
    ListMessagesRequest, ListMessagesResponse, MessageFilter, MessageState, RetryMessagesRequest,
    RetryMessagesResponse,
};
use service_kit::Caller;
use tonic::Status;
use uuid::Uuid;
use wechat::OpenId;

use super::{Service, content::non_empty, message::moment_from_pb, paging};
use crate::{
    error::Error,
    message::{Filter, Found, Shown, Violation},
};

impl Service {
    pub(super) async fn list_messages(
        &self,
        caller: &Arc<Caller>,
        request: ListMessagesRequest,
    ) -> Result<ListMessagesResponse, Status> {
        let filter = self.filter(caller, request.filter)?;
        let size = paging::size(request.page_size)?;
        let below = paging::below(&request.page_token)?;
        let Found { messages, down_to } = self.messages.list(&filter, below, size).await?;
        let messages = messages.into_iter().map(|message| self.to_pb(message));
        Ok(ListMessagesResponse {
            messages: messages.collect(),
            next_page_token: paging::token(down_to),
        })
    }

    pub(super) async fn retry_messages(
        &self,
        caller: &Arc<Caller>,
        request: RetryMessagesRequest,
    ) -> Result<RetryMessagesResponse, Status> {
        let mut filter = self.filter(caller, request.filter)?;
        if !filter.states.is_empty() && !filter.states.contains(&Shown::Failed) {
            let problem = "must be empty or hold MESSAGE_STATE_FAILED: nothing else is retried";
            return Err(invalid(vec![violation("states", problem)]));
        }
        filter.states = vec![Shown::Failed];
        let below = paging::below(&request.page_token)?;
        let retried = self
            .messages
            .retry_all(caller, &filter, below, request.dry_run);
        let Found { messages, down_to } = retried.await?;
        Ok(RetryMessagesResponse {
            count: i64::try_from(messages).unwrap_or(i64::MAX),
            next_page_token: paging::token(down_to),
        })
    }

    fn filter(&self, caller: &Caller, filter: Option<MessageFilter>) -> Result<Filter, Status> {
        let filter = filter.unwrap_or_default();
        if filter.app_id.is_empty() {
            let problem = "must be an app's app_id or name";
            return Err(invalid(vec![violation("app_id", problem)]));
        }
        let app = caller.app(&self.catalog.current(), &filter.app_id)?;
        let mut violations = Vec::new();
        let mut states = Vec::new();
        for state in filter.states {
            match MessageState::try_from(state).ok().and_then(shown) {
                Some(state) => states.push(state),
                None => violations.push(violation("states", "holds a state that is none")),
            }
        }
        let broadcast_id = non_empty(filter.broadcast_id).and_then(|id| {
            let id = Uuid::try_parse(&id).ok();
            if id.is_none() {
                violations.push(violation("broadcast_id", "must be the id of a broadcast"));
            }
            id
        });
        let open_id = non_empty(filter.open_id);
        if open_id
            .clone()
            .is_some_and(|id| OpenId::try_from(id).is_err())
        {
            let problem = "must be the user's openid, as WeChat gave it";
            violations.push(violation("open_id", problem));
        }
        let mut read = |field, time: Option<Timestamp>| {
            let time = moment_from_pb(time?);
            if time.is_none() {
                violations.push(violation(field, "must be a time of the years 1970 to 9999"));
            }
            time
        };
        let start = read("start_time", filter.start_time);
        let end = read("end_time", filter.end_time);
        if start.zip(end).is_some_and(|(start, end)| start >= end) {
            violations.push(violation("end_time", "must be later than start_time"));
        }
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        Ok(Filter {
            app_id: app.app_id.clone(),
            states,
            broadcast_id,
            open_id,
            start,
            end,
            errcode: filter.errcode,
        })
    }
}

fn invalid(violations: Vec<Violation>) -> Status {
    Error::Invalid(violations).into()
}

fn violation(field: &str, problem: &str) -> Violation {
    (format!("filter.{field}"), problem.to_owned())
}

fn shown(state: MessageState) -> Option<Shown> {
    Some(match state {
        MessageState::Unspecified => return None,
        MessageState::Scheduled => Shown::Scheduled,
        MessageState::Queued => Shown::Queued,
        MessageState::Sending => Shown::Sending,
        MessageState::Sent => Shown::Sent,
        MessageState::Delivered => Shown::Delivered,
        MessageState::Failed => Shown::Failed,
        MessageState::Cancelled => Shown::Cancelled,
        MessageState::Expired => Shown::Expired,
    })
}
