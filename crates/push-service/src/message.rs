//! Messages: what is said, checked before it is accepted, and stored before the answer.

mod accept;
mod content;
#[expect(unreachable_pub, reason = "sea-orm derives public items")]
pub(crate) mod entity;
mod failed_attempt;
mod filter;
mod lane;
mod shown;
pub(crate) mod store;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue};
use service_kit::{Caller, CatalogHandle, Clock, trace};
use tokio_util::task::TaskTracker;
use tracing::{Span, info};
use uuid::Uuid;
use wechat::{AppId, OpenId};

pub(crate) use self::{
    accept::expires_too_soon,
    content::{Content, Customer, FormTemplate, Link, Outbound, Subscribe, Template, Violation},
    entity::{Model as Message, State},
    failed_attempt::FailedAttempt,
    filter::{Filter, Found, REQUEUED, first_id},
    lane::{Lane, Priority},
    shown::Shown,
};
use crate::{account::Accounts, database, doorbell::Doorbell, error::Error, form};

/// W3C trace context.
const TRACE_PARENT: &str = "traceparent";

/// Who says something.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) app_id: AppId,
    pub(crate) caller: String,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipient {
    OpenId(OpenId),
    /// Whoever is bound to the account of this name when the message is accepted.
    Account(String),
}

/// A message to be accepted, its fields checked.
#[derive(Debug, Clone)]
pub(crate) struct NewMessage {
    pub(crate) recipient: Recipient,
    pub(crate) request_id: Option<String>,
    pub(crate) content: Content,
    /// Not before; none for at once.
    pub(crate) schedule_time: Option<DateTime<Utc>>,
    /// Not after.
    pub(crate) expire_time: Option<DateTime<Utc>>,
}

/// Accepts and finds messages.
#[derive(Debug, Clone)]
pub(crate) struct Messages {
    pub(crate) store: store::Store,
    pub(crate) forms: form::Store,
    pub(crate) accounts: Accounts,
    pub(crate) doorbell: Doorbell,
    pub(crate) catalog: CatalogHandle,
    pub(crate) clock: Clock,
    /// What goes on although its caller hung up; shutdown waits for it.
    pub(crate) tasks: TaskTracker,
}

impl Messages {
    /// A message of one of the caller's apps; others are as unknown as those that do not exist.
    pub(crate) async fn get(
        &self,
        caller: &Arc<Caller>,
        message_id: &str,
    ) -> Result<Message, Error> {
        let message_id = Uuid::try_parse(message_id).map_err(|_| Error::MessageNotFound)?;
        let found = self.store.find(&message_id.to_string()).await?;
        let message = found.ok_or(Error::MessageNotFound)?;
        let catalog = self.catalog.current();
        match caller.app(&catalog, &message.app_id) {
            Ok(_) => Ok(message),
            Err(_) => Err(Error::MessageNotFound),
        }
    }

    /// Takes a message back before it goes on the wire. One that was taken back before is no error.
    pub(crate) async fn cancel(
        &self,
        caller: &Arc<Caller>,
        message_id: &str,
    ) -> Result<Message, Error> {
        let message = self.get(caller, message_id).await?;
        let cancelled = self.store.cancel(&message).await?;
        let message = self.get(caller, &message.message_id).await?;
        match message.state {
            State::Cancelled => {
                if cancelled {
                    info!(
                        message.id = message.message_id,
                        by = caller.name,
                        "cancelled"
                    );
                }
                Ok(message)
            }
            _ => Err(Error::NotCancellable(message.state)),
        }
    }

    /// Queues a message again that failed. One that is queued already is no error.
    pub(crate) async fn retry(
        &self,
        caller: &Arc<Caller>,
        message_id: &str,
    ) -> Result<Message, Error> {
        let message = self.get(caller, message_id).await?;
        let queued = self.store.retry(&message).await?;
        let message = self.get(caller, &message.message_id).await?;
        if queued {
            info!(
                message.id = message.message_id,
                by = caller.name,
                "queued again by hand"
            );
            self.doorbell.ring_apart(&self.tasks);
            return Ok(message);
        }
        match message.state {
            State::Queued | State::Sending => Ok(message),
            _ => Err(Error::NotRetryable(message.state)),
        }
    }

    /// A page of messages, the newest first: those below an id, where one is given.
    pub(crate) async fn list(
        &self,
        filter: &Filter,
        below: Option<Uuid>,
        limit: u64,
    ) -> Result<Found<Vec<Message>>, Error> {
        let now = database::moment(&self.clock);
        Ok(self.store.list(filter, below, limit, now).await?)
    }

    /// Queues a part of what failed and fits again, or counts it alone.
    pub(crate) async fn retry_all(
        &self,
        caller: &Caller,
        filter: &Filter,
        below: Option<Uuid>,
        dry_run: bool,
    ) -> Result<Found<u64>, Error> {
        let Found { messages, down_to } = self.list(filter, below, REQUEUED).await?;
        if dry_run || messages.is_empty() {
            return Ok(Found {
                messages: messages.len() as u64,
                down_to,
            });
        }
        let queued = self.store.retry_all(messages).await?;
        if queued > 0 {
            info!(
                app.id = %filter.app_id,
                messages = queued,
                by = caller.name,
                "queued again by hand"
            );
            self.doorbell.ring_apart(&self.tasks);
        }
        Ok(Found {
            messages: queued,
            down_to,
        })
    }
}

/// Makes `span` a part of the trace in which the message was accepted.
pub(crate) fn resume_trace(span: &Span, message: &Message) {
    let value = message.trace_parent.as_deref().map(HeaderValue::from_str);
    if let Some(Ok(value)) = value {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(TRACE_PARENT), value)]);
        trace::continue_from(span, &headers);
    }
}
