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

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue};
use service_kit::{Caller, CatalogHandle, Clock, storage::within_deadline, trace};
use tokio_util::task::TaskTracker;
use tracing::{Span, info};
use uuid::Uuid;
use wechat::{AppId, ErrCode, OpenId};

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

/// How often a retry looks for a form_id when somebody else was faster.
const FORMS_TRIED: usize = 16;

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
        let queued = self.requeue(&message).await?;
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

    /// Queues a message that failed. Returns whether it was queued.
    async fn requeue(&self, message: &Message) -> Result<bool, Error> {
        if !message.has_spent_form() {
            return Ok(self.store.retry(message).await?);
        }
        let open_id = OpenId::try_from(message.open_id.clone());
        let app_id = AppId::try_from(message.app_id.clone());
        let (Ok(app_id), Ok(open_id)) = (app_id, open_id) else {
            return Err(Error::NoForm);
        };
        let none = HashSet::new();
        // Another of the pool's: with its own it would fail the same way for ever.
        for _ in 0..FORMS_TRIED {
            let form = self
                .forms
                .soonest(&app_id, &open_id, &none, message.schedule_time);
            let form = within_deadline(form).await?.ok_or(Error::NoForm)?;
            if let Some(queued) = self.store.retry_with(message, &form).await? {
                return Ok(queued);
            }
        }
        Err(Error::Contended)
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
        let (spent, messages): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(Message::has_spent_form);
        let mut queued = self.store.retry_all(messages).await?;
        for message in spent {
            match self.requeue(&message).await {
                Ok(again) => queued += u64::from(again),
                // It stays FAILED until its user earns another.
                Err(Error::NoForm) => {}
                Err(error) => return Err(error),
            }
        }
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

impl Message {
    /// Whether it failed for the form_id that it took from the pool, with which it would fail again.
    fn has_spent_form(&self) -> bool {
        let spent = [ErrCode::INVALID_FORM_ID, ErrCode::FORM_ID_USED];
        self.state == State::Failed
            && self.form_id.is_some()
            && spent.contains(&ErrCode(self.errcode))
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
