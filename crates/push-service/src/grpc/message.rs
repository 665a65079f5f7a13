//! Messages: sent, looked at, taken back, queued again.

use std::{sync::Arc, time::SystemTime};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use prost_types::Timestamp;
use proto::push::v1::{
    self as pb, BatchSendError, BatchSendMessagesRequest, BatchSendMessagesResponse,
    BatchSendResult, CancelMessageRequest, CancelMessageResponse, FieldViolation,
    GetMessageRequest, GetMessageResponse, RetryMessageRequest, RetryMessageResponse,
    SendMessageRequest, SendMessageResponse, batch_send_result,
};
use service_kit::{App, Caller};
use tonic::Status;
use tonic_types::StatusExt as _;
use wechat::OpenId;

use super::{
    Service,
    content::{content_from_pb, non_empty},
};
use crate::{
    account::MAX_ACCOUNT,
    database::{is_key, moment},
    error::Error,
    message::{
        FailedAttempt, Message, NewMessage, Recipient, Sender, Shown, Violation, expires_too_soon,
    },
};

/// The longest request_id, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// The most messages of a batch.
const MAX_BATCH: usize = 1_000;
/// Messages are planned no farther ahead.
const FARTHEST: TimeDelta = TimeDelta::days(366);

impl Service {
    pub(super) async fn send_message(
        &self,
        caller: &Arc<Caller>,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Status> {
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let new = new_message(&app, request, moment(&self.messages.clock))?;
        let message = self.messages.accept(sender(caller, &app), new).await?;
        Ok(SendMessageResponse {
            message: Some(self.to_pb(message)),
        })
    }

    pub(super) async fn batch_send_messages(
        &self,
        caller: &Arc<Caller>,
        request: BatchSendMessagesRequest,
    ) -> Result<BatchSendMessagesResponse, Status> {
        let catalog = self.catalog.current();
        let app = caller.app(&catalog, &request.app_id)?;
        if !(1..=MAX_BATCH).contains(&request.messages.len()) {
            let problem = format!("must be 1 to {MAX_BATCH}");
            return Err(Error::Invalid(vec![("messages".to_owned(), problem)]).into());
        }
        let now = moment(&self.messages.clock);
        let mut refused = Vec::new();
        let mut checked = Vec::new();
        for (place, message) in request.messages.into_iter().enumerate() {
            let same_app = message.app_id.is_empty()
                || catalog
                    .app(&message.app_id)
                    .is_some_and(|named| named.app_id == app.app_id);
            let new = if same_app {
                new_message(&app, message, now)
            } else {
                let problem = "must be empty, or name the app of the batch";
                Err(Error::Invalid(vec![(
                    "app_id".to_owned(),
                    problem.to_owned(),
                )]))
            };
            match new {
                Ok(new) => checked.push(new),
                Err(error) => refused.push((place, error)),
            }
        }
        let accepted = if checked.is_empty() {
            Vec::new()
        } else {
            let sender = sender(caller, &app);
            self.messages.accept_all(sender, checked).await?
        };
        let mut results: Vec<_> = accepted
            .into_iter()
            .map(|result| self.result(result))
            .collect();
        // Places count from the front: each goes back to where it was.
        for (place, error) in refused {
            results.insert(place, self.result(Err(error)));
        }
        Ok(BatchSendMessagesResponse { results })
    }

    pub(super) async fn get_message(
        &self,
        caller: &Arc<Caller>,
        request: GetMessageRequest,
    ) -> Result<GetMessageResponse, Status> {
        let message = self.messages.get(caller, &request.message_id).await?;
        Ok(GetMessageResponse {
            message: Some(self.to_pb(message)),
        })
    }

    pub(super) async fn cancel_message(
        &self,
        caller: &Arc<Caller>,
        request: CancelMessageRequest,
    ) -> Result<CancelMessageResponse, Status> {
        let message = self.messages.cancel(caller, &request.message_id).await?;
        Ok(CancelMessageResponse {
            message: Some(self.to_pb(message)),
        })
    }

    pub(super) async fn retry_message(
        &self,
        caller: &Arc<Caller>,
        request: RetryMessageRequest,
    ) -> Result<RetryMessageResponse, Status> {
        let message = self.messages.retry(caller, &request.message_id).await?;
        Ok(RetryMessageResponse {
            message: Some(self.to_pb(message)),
        })
    }

    pub(super) fn to_pb(&self, message: Message) -> pb::Message {
        to_pb(message, moment(&self.messages.clock))
    }

    fn result(&self, result: Result<Message, Error>) -> BatchSendResult {
        let result = match result {
            Ok(message) => batch_send_result::Result::Message(Box::new(self.to_pb(message))),
            Err(error) => batch_send_result::Result::Error(batch_error(&Status::from(error))),
        };
        BatchSendResult {
            result: Some(result),
        }
    }
}

pub(super) fn sender(caller: &Caller, app: &App) -> Sender {
    Sender {
        app_id: app.app_id.clone(),
        caller: caller.name.clone(),
    }
}

/// What SendMessage would have answered, as data.
fn batch_error(status: &Status) -> BatchSendError {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.iter());
    BatchSendError {
        reason: details
            .error_info()
            .map(|info| info.reason.clone())
            .unwrap_or_default(),
        message: status.message().to_owned(),
        field_violations: violations
            .into_iter()
            .flatten()
            .map(|violation| FieldViolation {
                field: violation.field.clone(),
                description: violation.description.clone(),
            })
            .collect(),
    }
}

fn new_message(
    app: &App,
    request: SendMessageRequest,
    now: DateTime<Utc>,
) -> Result<NewMessage, Error> {
    let mut violations: Vec<Violation> = Vec::new();
    let (schedule_time, expire_time) = times(&request, now, &mut violations);
    let recipient = match recipient(request.open_id, request.account) {
        Ok(recipient) => Some(recipient),
        Err(violation) => {
            violations.push(violation);
            None
        }
    };
    check_request_id(&request.request_id, &mut violations);
    let content = match request.content {
        None => {
            let problem = "must be one of template, subscribe, customer and form_template";
            violations.push(("content".to_owned(), problem.to_owned()));
            None
        }
        Some(content) => match content_from_pb(app, content) {
            Ok(content) => {
                violations.extend(content.violations(app));
                Some(content)
            }
            Err(violation) => {
                violations.push(violation);
                None
            }
        },
    };
    match (recipient, content) {
        (Some(recipient), Some(content)) if violations.is_empty() => Ok(NewMessage {
            recipient,
            request_id: non_empty(request.request_id),
            content,
            schedule_time,
            expire_time,
        }),
        _ => Err(Error::Invalid(violations)),
    }
}

/// Whom a request means: by openid or by account, and never by both.
pub(super) fn recipient(open_id: String, account: String) -> Result<Recipient, Violation> {
    let wrong = |field: &str, problem: String| Err((field.to_owned(), problem));
    match (open_id.is_empty(), account.is_empty()) {
        (false, false) => wrong("account", "must be empty where open_id is given".to_owned()),
        (true, true) => wrong("open_id", "must be given, or else account".to_owned()),
        (false, true) => match OpenId::try_from(open_id) {
            Ok(open_id) => Ok(Recipient::OpenId(open_id)),
            Err(_) => wrong(
                "open_id",
                "must be the user's openid, as WeChat gave it".to_owned(),
            ),
        },
        (true, false) if account.chars().count() > MAX_ACCOUNT => wrong(
            "account",
            format!("must be at most {MAX_ACCOUNT} characters"),
        ),
        (true, false) => Ok(Recipient::Account(account)),
    }
}

pub(super) fn check_request_id(request_id: &str, violations: &mut Vec<Violation>) {
    if request_id.len() > MAX_REQUEST_ID || !is_key(request_id) {
        violations.push((
            "request_id".to_owned(),
            format!("must be at most {MAX_REQUEST_ID} visible ASCII characters"),
        ));
    }
}

/// A time of the field, where one is given.
pub(super) fn read_time(
    field: &str,
    time: Option<Timestamp>,
    now: DateTime<Utc>,
    violations: &mut Vec<Violation>,
) -> Option<DateTime<Utc>> {
    let time = moment_from_pb(time?).filter(|time| *time <= now + FARTHEST);
    if time.is_none() {
        let problem = format!("must be a time within {} days", FARTHEST.num_days());
        violations.push((field.to_owned(), problem));
    }
    // The database keeps microseconds, and a repeated request has to compare equal.
    time.map(|time| time.trunc_subsecs(6))
}

/// When the message may go out, from and until; nothing where it may always. Whether it is too late by now is asked of
/// a new message alone, once it is known for one: a repeat may come when the first message's time is over.
fn times(
    request: &SendMessageRequest,
    now: DateTime<Utc>,
    violations: &mut Vec<Violation>,
) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
    let schedule_time = read_time("schedule_time", request.schedule_time, now, violations);
    let expire_time = read_time("expire_time", request.expire_time, now, violations);
    if expire_time.is_some() && expire_time <= schedule_time {
        violations.push(expires_too_soon());
    }
    (schedule_time, expire_time)
}

fn to_pb(message: Message, now: DateTime<Utc>) -> pb::Message {
    let failed_attempts = FailedAttempt::all(&message);
    let failed_attempts = failed_attempts.into_iter().map(|failed| pb::FailedAttempt {
        time: Some(timestamp(failed.time)),
        errcode: failed.errcode,
        errmsg: failed.errmsg,
        outcome_unknown: failed.outcome_unknown,
    });
    pb::Message {
        failed_attempts: failed_attempts.collect(),
        state: state(Shown::of(&message, now)).into(),
        schedule_time: message.schedule_time.map(timestamp),
        expire_time: message.expire_time.map(timestamp),
        message_id: message.message_id,
        app_id: message.app_id,
        open_id: message.open_id,
        request_id: message.request_id.unwrap_or_default(),
        attempts: message.attempts,
        possible_duplicate: message.possible_duplicate,
        errcode: message.errcode,
        errmsg: message.errmsg,
        wechat_msg_id: message.wechat_msg_id.unwrap_or_default(),
        create_time: Some(timestamp(message.create_time)),
        sent_time: message.sent_time.map(timestamp),
        next_attempt_time: message.next_attempt_time.map(timestamp),
        delivered_time: message.delivered_time.map(timestamp),
        broadcast_id: message.broadcast_id.unwrap_or_default(),
        caller: message.caller,
        account: message.account.unwrap_or_default(),
    }
}

pub(super) fn state(state: Shown) -> pb::MessageState {
    match state {
        Shown::Scheduled => pb::MessageState::Scheduled,
        Shown::Queued => pb::MessageState::Queued,
        Shown::Sending => pb::MessageState::Sending,
        Shown::Sent => pb::MessageState::Sent,
        Shown::Delivered => pb::MessageState::Delivered,
        Shown::Failed => pb::MessageState::Failed,
        Shown::Cancelled => pb::MessageState::Cancelled,
        Shown::Expired => pb::MessageState::Expired,
    }
}

/// A time that every engine can keep and compare: of the years 1970 to 9999.
pub(super) fn moment_from_pb(time: Timestamp) -> Option<DateTime<Utc>> {
    /// 9999-12-31, so that a little more still has four digits.
    const LAST: i64 = 253_402_214_400;
    let time = DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)?;
    (0..LAST).contains(&time.timestamp()).then_some(time)
}

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    SystemTime::from(time).into()
}
