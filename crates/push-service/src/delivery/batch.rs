//! One app's messages of one claim, from the claim to the outcome.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use token_client::CachedToken;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span, warn};
use wechat::{AppId, Class, ErrCode, MsgId, OpenId};

use super::{
    Delivery, Outcomes, UPSTREAM_DEADLINE,
    policy::{self, Attempt, Before},
    queue::{LEASE, Next, Outcome},
};
use crate::{
    message::{Content, Message, Outbound, Priority, resume_trace},
    metrics,
};

/// Sends one app's messages of one claim.
pub(super) struct Batch {
    pub(super) delivery: Arc<Delivery>,
    pub(super) outcomes: Outcomes,
    pub(super) app_id: AppId,
    pub(super) claim_id: String,
    /// Once cancelled, nothing more goes on the wire.
    pub(super) stop: CancellationToken,
    /// Elapsed time from which the lease counts: the claim's, then that of SENDING.
    pub(super) since: Duration,
}

/// A message that may go on the wire.
struct Ready {
    /// Its place among the messages under way, given back when its outcome is written.
    slot: OwnedSemaphorePermit,
    message: Message,
    content: Content,
    outbound: Outbound,
}

/// What came of calling WeChat.
struct Tried {
    result: Result<Option<MsgId>, wechat::Error>,
    /// Those made before, and what went on the wire now.
    attempts: u32,
    /// No other token is to be had before.
    wait: Duration,
}

impl Batch {
    /// `slots` are one for each message.
    pub(super) async fn run(mut self, messages: Vec<Message>, mut slots: OwnedSemaphorePermit) {
        let mut ready = Vec::with_capacity(messages.len());
        for mut message in messages {
            let Some(slot) = slots.split(1) else {
                break;
            };
            match self.prepare(&mut message) {
                Ok((content, outbound)) => ready.push(Ready {
                    slot,
                    message,
                    content,
                    outbound,
                }),
                Err(outcome) => {
                    let state = match outcome.next {
                        Next::Expired => "expired",
                        _ => "failed",
                    };
                    metrics::given_up(self.delivery.name(self.app_id.as_str()), state);
                    self.put(&message, *outcome, slot);
                }
            }
        }
        if ready.is_empty() {
            return;
        }
        let tokens = self.delivery.tokens.clone();
        let token = tokens.access_token(&self.app_id);
        match self.stop.clone().run_until_cancelled(token).await {
            Some(Ok(token)) => self.send_all(ready, token).await,
            Some(Err(error)) => {
                warn!("messages wait for a token: {error}");
                let delay = policy::without_token(&error, rand::random());
                let until = self.delivery.clock.elapsed() + delay;
                self.delivery
                    .pauses
                    .pause(self.app_id.as_str(), None, until);
                self.release(ready, Some(&error.to_string()), || delay);
            }
            // Another worker may send them at once.
            None => self.release(ready, None, || Duration::ZERO),
        }
    }

    /// Decides whether a message goes on the wire, or what becomes of it instead.
    fn prepare(&self, message: &mut Message) -> Result<(Content, Outbound), Box<Outcome>> {
        let broken = |why: String| Box::new(policy::broken(message, why));
        let content =
            Content::from_json(&message.content).map_err(|error| broken(error.to_string()))?;
        let to_user = OpenId::try_from(message.open_id.as_str())
            .map_err(|error| broken(error.to_string()))?;
        let circumstances = self.delivery.circumstances(&message.app_id);
        match policy::before(message, &content, circumstances) {
            Before::Send => {}
            Before::SendAgain => message.possible_duplicate = true,
            Before::GiveUp => return Err(Box::new(policy::unknown(message))),
            Before::Expire => return Err(Box::new(policy::expired(message))),
        }
        let outbound =
            content
                .clone()
                .outbound(to_user, &message.message_id, message.form_id.clone());
        Ok((content, outbound))
    }

    /// Puts back what did not go on the wire.
    fn release(&self, ready: Vec<Ready>, why: Option<&str>, delay: impl Fn() -> Duration) {
        for Ready { slot, message, .. } in ready {
            let why = why.unwrap_or(&message.errmsg).to_owned();
            let delay = policy::until_expiry(&message, delay(), self.delivery.clock.now());
            self.put(&message, policy::release(&message, why, delay), slot);
        }
    }

    /// Has an outcome written.
    fn put(&self, message: &Message, outcome: Outcome, slot: OwnedSemaphorePermit) {
        let since = self.delivery.clock.elapsed();
        self.outcomes
            .put(message, &self.claim_id, outcome, since, Some(slot));
    }

    async fn send_all(&mut self, mut ready: Vec<Ready>, token: Arc<CachedToken>) {
        let ids: Vec<_> = ready
            .iter()
            .map(|ready| ready.message.message_id.clone())
            .collect();
        self.since = self.delivery.clock.elapsed();
        let marked = match self.delivery.queue.mark_sending(&self.claim_id, &ids).await {
            Ok(marked) => marked,
            Err(error) => {
                warn!("messages wait, for SENDING could not be written: {error}");
                // It may be written all the same: left alone they would count as lost on the wire.
                let delay = || policy::backoff(0, rand::random());
                return self.release(ready, Some("the database did not answer"), delay);
            }
        };
        ready.retain(|ready| marked.contains(&ready.message.message_id));
        let this = &*self;
        join_all(ready.into_iter().map(|ready| {
            let span = info_span!("send", message.id = ready.message.message_id);
            resume_trace(&span, &ready.message);
            this.send(ready, Arc::clone(&token)).instrument(span)
        }))
        .await;
    }

    /// What is left of the lease.
    fn left(&self) -> Duration {
        (self.since + LEASE).saturating_sub(self.delivery.clock.elapsed())
    }

    /// Whether an attempt that starts now ends within the lease.
    fn holds(&self) -> bool {
        self.left() > UPSTREAM_DEADLINE
    }

    async fn send(&self, ready: Ready, token: Arc<CachedToken>) {
        let started = self.delivery.clock.elapsed();
        let Ready {
            slot,
            message,
            content,
            outbound,
        } = ready;
        if !self.holds() {
            let why = "the lease ended before it went on the wire".to_owned();
            let outcome = policy::release(&message, why, Duration::ZERO);
            return self.put(&message, outcome, slot);
        }
        let Tried {
            result,
            attempts,
            wait,
        } = self.attempt(&outbound, &token, message.attempts).await;
        let circumstances = self.delivery.circumstances(&message.app_id);
        let reached = !matches!(result, Err(wechat::Error::NotSent { .. }));
        let now = self.delivery.clock.elapsed();
        self.delivery.pauses.reached(reached, now);
        if let Err(error) = &result
            && let Some(closed) = policy::closed(error, circumstances)
        {
            let until = now + closed;
            let app_id = self.app_id.as_str();
            let pauses = &self.delivery.pauses;
            pauses.pause(app_id, Some(content.kind()), until);
            warn!(
                kind = content.kind(),
                seconds = closed.as_secs(),
                "messages wait for WeChat's quota: {error}"
            );
        }
        let app = self.delivery.name(&message.app_id);
        let errcode = metrics::errcode(&result);
        let attempt = Attempt::Made(result);
        let mut outcome = policy::after(&message, &content, attempts, &attempt, circumstances);
        if let Next::Queued { delay } = &mut outcome.next {
            *delay = policy::until_expiry(&message, wait.max(*delay), circumstances.now);
        }
        let kind = content.kind();
        let took = self.delivery.clock.elapsed().saturating_sub(started);
        match &outcome.next {
            Next::Sent { time, .. } => {
                metrics::attempt(app, kind, "sent", errcode, took);
                let wanted = message.schedule_time.max(Some(message.create_time));
                let waited = wanted.and_then(|wanted| (*time - wanted).to_std().ok());
                let priority = match message.broadcast_id {
                    None => Priority::Transactional,
                    Some(_) => Priority::Broadcast,
                };
                metrics::sent(kind, priority.name(), waited.unwrap_or_default());
                debug!(message.id = message.message_id, kind, attempts, "sent");
            }
            Next::First => {}
            Next::Queued { delay } => {
                metrics::attempt(app, kind, "retry", errcode, took);
                info!(
                    message.id = message.message_id,
                    kind,
                    attempts,
                    errcode = outcome.errcode,
                    delay_ms = delay.as_millis(),
                    "not sent yet"
                );
            }
            Next::Failed | Next::Expired => {
                metrics::attempt(app, kind, "failed", errcode, took);
                warn!(
                    message.id = message.message_id,
                    kind,
                    attempts,
                    errcode = outcome.errcode,
                    "not sent"
                );
            }
        }
        self.put(&message, outcome, slot);
    }

    /// Sends once; once more with another token when WeChat refuses the first. Without another one the refusal stands.
    async fn attempt(&self, outbound: &Outbound, token: &CachedToken, before: u32) -> Tried {
        let mut tried = Tried {
            result: self.call(outbound, token).await,
            attempts: before + 1,
            wait: Duration::ZERO,
        };
        let errcode = match &tried.result {
            Err(error) if error.class() == Class::Token => error.errcode(),
            _ => return tried,
        };
        let errcode = errcode.unwrap_or(ErrCode::INVALID_CREDENTIAL);
        let report = self
            .delivery
            .tokens
            .report(&self.app_id, token.version, errcode);
        // Later than this a new token is of no use within the lease.
        let in_time = self.left().saturating_sub(UPSTREAM_DEADLINE);
        match tokio::time::timeout(in_time, report).await {
            Ok(Ok(fresh)) if fresh.version != token.version && self.holds() => {
                tried.attempts += 1;
                tried.result = self.call(outbound, &fresh).await;
                if let Err(error) = &tried.result
                    && error.class() == Class::Token
                {
                    warn!("a new token is refused as well: {error}");
                    tried.wait = policy::refused_again(rand::random());
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                warn!("a refused token could not be reported: {error}");
                tried.wait = policy::without_token(&error, rand::random());
            }
            Err(_) => {
                warn!("a new token came too late for this attempt");
                tried.wait = policy::without_answer(rand::random());
            }
        }
        if !tried.wait.is_zero() {
            // The others would be refused as this one was, at the cost of an attempt each.
            let until = self.delivery.clock.elapsed() + tried.wait;
            let pauses = &self.delivery.pauses;
            pauses.pause(self.app_id.as_str(), None, until);
        }
        tried
    }

    async fn call(
        &self,
        outbound: &Outbound,
        token: &CachedToken,
    ) -> Result<Option<MsgId>, wechat::Error> {
        let wechat = &self.delivery.wechat;
        let started = self.delivery.clock.elapsed();
        let result = match outbound {
            Outbound::Template(message) => wechat.send_template(&token.token, message).await,
            Outbound::Subscribe(message) => wechat.send_subscribe(&token.token, message).await,
            Outbound::FormTemplate(message) => {
                wechat.send_form_template(&token.token, message).await
            }
            Outbound::Customer(message) => wechat.send_customer(&token.token, message).await,
        };
        let now = self.delivery.clock.elapsed();
        self.delivery.window.ended(now.saturating_sub(started), now);
        result
    }
}
