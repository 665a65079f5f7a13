//! Messages: what is said, checked before it is accepted, and stored before the answer.

mod content;
#[expect(unreachable_pub, reason = "sea-orm derives public items")]
mod entity;
pub(crate) mod store;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue};
use service_kit::{Caller, CatalogHandle, Clock, trace};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, info};
use uuid::Uuid;
use wechat::{AppId, OpenId};

use self::store::Inserted;
pub(crate) use self::{
    content::{Content, Customer, FormTemplate, Link, Outbound, Subscribe, Template, Violation},
    entity::{Model as Message, State},
};
use crate::{database, doorbell::Doorbell, error::Error, form, metrics};

/// W3C trace context.
const TRACE_PARENT: &str = "traceparent";
/// How often storing is tried again when somebody else took the form_id or the request_id at the same time.
const TRIES: usize = 16;
/// A store that takes longer to commit counts as away. The message may be stored all the same: that is what request_id
/// is for.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// A message to be accepted, its fields checked.
#[derive(Debug, Clone)]
pub(crate) struct NewMessage {
    pub(crate) app_id: AppId,
    pub(crate) open_id: OpenId,
    pub(crate) caller: String,
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
    pub(crate) doorbell: Doorbell,
    pub(crate) catalog: CatalogHandle,
    pub(crate) clock: Clock,
    /// What goes on although its caller hung up; shutdown waits for it.
    pub(crate) tasks: TaskTracker,
}

impl Messages {
    /// Stores a message, or finds the one that the same request_id stored before. Once begun it runs to its end, whether
    /// or not the caller still waits.
    pub(crate) async fn accept(&self, new: NewMessage) -> Result<Message, Error> {
        let this = self.clone();
        let kind = new.content.kind();
        let accepting = async move {
            let stored = tokio::time::timeout(STORE_TIMEOUT, this.store_once(new)).await;
            let (message, fresh) = stored.map_err(|_| Error::DatabaseTimeout)??;
            if fresh {
                metrics::accepted(kind);
                this.tasks.spawn({
                    let doorbell = this.doorbell.clone();
                    async move { doorbell.ring().await }
                });
            }
            Ok(message)
        }
        .in_current_span();
        self.tasks
            .spawn(accepting)
            .await
            .map_err(|_| Error::Panicked)?
    }

    /// The message, and whether it is new.
    async fn store_once(&self, new: NewMessage) -> Result<(Message, bool), Error> {
        for _ in 0..TRIES {
            if let Some(first) = self.first(&new).await? {
                return Ok((first, false));
            }
            let form = match &new.content {
                Content::FormTemplate(content) if content.form_id.is_none() => {
                    let form = self.forms.soonest(&new.app_id, &new.open_id).await?;
                    Some(form.ok_or(Error::NoForm)?)
                }
                _ => None,
            };
            let message = self.row(&new, form);
            match self.store.insert(&message).await? {
                Inserted::Stored => return Ok((message, true)),
                // Somebody was faster with the form_id, or with the request_id.
                Inserted::FormTaken | Inserted::RequestRepeated => {}
            }
        }
        Err(Error::Contended)
    }

    /// What the same caller, app and request_id stored before.
    async fn first(&self, new: &NewMessage) -> Result<Option<Message>, Error> {
        let Some(request_id) = &new.request_id else {
            return Ok(None);
        };
        let first = self
            .store
            .by_request(&new.app_id, &new.caller, request_id)
            .await?;
        let same = |first: &Message| {
            first.open_id == new.open_id.as_str()
                && (first.schedule_time, first.expire_time) == (new.schedule_time, new.expire_time)
                && Content::from_json(&first.content).is_ok_and(|content| content == new.content)
        };
        match first {
            Some(first) if !same(&first) => Err(Error::RequestIdReused),
            first => Ok(first),
        }
    }

    fn row(&self, new: &NewMessage, form_id: Option<String>) -> Message {
        let now = database::moment(&self.clock);
        Message {
            message_id: Uuid::now_v7().to_string(),
            app_id: new.app_id.to_string(),
            open_id: new.open_id.to_string(),
            caller: new.caller.clone(),
            request_id: new.request_id.clone(),
            content: new.content.to_json(),
            form_id,
            state: State::Queued,
            attempts: 0,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time: now,
            schedule_time: new.schedule_time,
            expire_time: new.expire_time,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: Some(new.schedule_time.unwrap_or(now)),
            claim_id: None,
            trace_parent: trace_parent(),
        }
    }

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
}

impl Messages {
    /// Takes a message back before it goes on the wire. One that was taken back before is no error.
    pub(crate) async fn cancel(
        &self,
        caller: &Arc<Caller>,
        message_id: &str,
    ) -> Result<Message, Error> {
        let message = self.get(caller, message_id).await?;
        let cancelled = self.store.cancel(&message.message_id).await?;
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
        let queued = self.store.retry(&message.message_id).await?;
        let message = self.get(caller, &message.message_id).await?;
        if queued {
            info!(
                message.id = message.message_id,
                by = caller.name,
                "queued again by hand"
            );
            self.doorbell.ring().await;
            return Ok(message);
        }
        match message.state {
            State::Queued | State::Sending => Ok(message),
            _ => Err(Error::NotRetryable(message.state)),
        }
    }
}

/// The trace of the caller, as a `traceparent`: what sends the message later goes on in it.
fn trace_parent() -> Option<String> {
    let mut headers = HeaderMap::new();
    trace::inject(&mut headers);
    let value = headers.get(TRACE_PARENT)?.to_str().ok()?;
    Some(value.to_owned())
}

/// Makes `span` a part of the trace in which the message was accepted.
pub(crate) fn resume_trace(span: &Span, message: &Message) {
    let value = message.trace_parent.as_deref().map(HeaderValue::from_str);
    if let Some(Ok(value)) = value {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(TRACE_PARENT), value)]);
        trace::continue_from(span, &headers);
    }
}
