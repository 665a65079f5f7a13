//! One app's messages of one claim, from the claim to the outcome.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use token_client::CachedToken;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span, warn};
use wechat::{AppId, Class, ErrCode, MsgId, OpenId};

use super::{
    Delivery, UPSTREAM_DEADLINE,
    policy::{self, Attempt, Before},
};
use crate::{
    message::{
        Content, Message, Outbound, resume_trace,
        store::{LEASE, Next, Outcome},
    },
    metrics,
};

/// An outcome that cannot be written for this long is left to the lease: the attempt then counts as ambiguous.
const WRITE_BACK: Duration = Duration::from_secs(120);
const WRITE_BACK_PAUSE: Duration = Duration::from_millis(200);

/// Sends one app's messages of one claim.
pub(super) struct Batch {
    pub(super) delivery: Arc<Delivery>,
    pub(super) app_id: AppId,
    pub(super) claim_id: String,
    /// Once cancelled, nothing more goes on the wire.
    pub(super) stop: CancellationToken,
    /// Elapsed time from which the lease counts: the claim's, then that of SENDING.
    pub(super) since: Duration,
}

/// A message that may go on the wire.
struct Ready {
    /// Its place among the messages on the wire, given back when it is done.
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
        let mut given_up = Vec::new();
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
                Err(outcome) => given_up.push((message, outcome)),
            }
        }
        let this = &self;
        join_all(given_up.iter().map(async |(message, outcome)| {
            this.write_back(message, outcome).await;
        }))
        .await;
        if ready.is_empty() {
            return;
        }
        let tokens = self.delivery.tokens.clone();
        let token = tokens.access_token(&self.app_id);
        match self.stop.clone().run_until_cancelled(token).await {
            Some(Ok(token)) => self.send_all(ready, token).await,
            Some(Err(error)) => {
                warn!("messages wait for a token: {error}");
                let delay = || policy::without_token(&error, rand::random());
                self.release(&ready, Some(&error.to_string()), delay).await;
            }
            // Another worker may send them at once.
            None => self.release(&ready, None, || Duration::ZERO).await,
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
    async fn release(&self, ready: &[Ready], why: Option<&str>, delay: impl Fn() -> Duration) {
        join_all(ready.iter().map(|Ready { message, .. }| {
            let why = why.unwrap_or(&message.errmsg).to_owned();
            let delay = policy::until_expiry(message, delay(), self.delivery.clock.now());
            let outcome = policy::release(message, why, delay);
            async move { self.write_back(message, &outcome).await }
        }))
        .await;
    }

    async fn send_all(&mut self, mut ready: Vec<Ready>, token: Arc<CachedToken>) {
        let ids: Vec<_> = ready
            .iter()
            .map(|ready| ready.message.message_id.clone())
            .collect();
        self.since = self.delivery.clock.elapsed();
        let marked = match self.delivery.store.mark_sending(&self.claim_id, &ids).await {
            Ok(marked) => marked,
            Err(error) => {
                warn!("messages wait, for SENDING could not be written: {error}");
                // It may be written all the same: left alone they would count as lost on the wire.
                let delay = || policy::backoff(0, rand::random());
                return self
                    .release(&ready, Some("the database did not answer"), delay)
                    .await;
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
            return self.write_back(&message, &outcome).await;
        }
        let Tried {
            result,
            attempts,
            wait,
        } = self.attempt(&outbound, &token, message.attempts).await;
        let circumstances = self.delivery.circumstances(&message.app_id);
        let attempt = Attempt::Made(result);
        let mut outcome = policy::after(&message, &content, attempts, &attempt, circumstances);
        if let Next::Queued { delay } = &mut outcome.next {
            *delay = policy::until_expiry(&message, wait.max(*delay), circumstances.now);
        }
        let kind = content.kind();
        let took = self.delivery.clock.elapsed().saturating_sub(started);
        match &outcome.next {
            Next::Sent { time, .. } => {
                metrics::attempt(kind, "sent", took);
                let waited = (*time - message.create_time).to_std().unwrap_or_default();
                metrics::sent(kind, waited);
                debug!(message.id = message.message_id, kind, attempts, "sent");
            }
            Next::Queued { delay } => {
                metrics::attempt(kind, "retry", took);
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
                metrics::attempt(kind, "failed", took);
                warn!(
                    message.id = message.message_id,
                    kind,
                    attempts,
                    errcode = outcome.errcode,
                    "not sent"
                );
            }
        }
        self.write_back(&message, &outcome).await;
        drop(slot);
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
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                warn!("a refused token could not be reported: {error}");
                tried.wait = policy::without_token(&error, rand::random());
            }
            Err(_) => warn!("a new token came too late for this attempt"),
        }
        tried
    }

    async fn call(
        &self,
        outbound: &Outbound,
        token: &CachedToken,
    ) -> Result<Option<MsgId>, wechat::Error> {
        let wechat = &self.delivery.wechat;
        match outbound {
            Outbound::Template(message) => wechat.send_template(&token.token, message).await,
            Outbound::Subscribe(message) => wechat.send_subscribe(&token.token, message).await,
            Outbound::FormTemplate(message) => {
                wechat.send_form_template(&token.token, message).await
            }
            Outbound::Customer(message) => wechat.send_customer(&token.token, message).await,
        }
    }

    /// Writes an outcome, again while the database is away and the attempt would otherwise be in doubt.
    async fn write_back(&self, message: &Message, outcome: &Outcome) {
        let clock = &self.delivery.clock;
        let until = clock.elapsed() + WRITE_BACK;
        loop {
            let written = self
                .delivery
                .store
                .write_back(&message.message_id, &self.claim_id, outcome)
                .await;
            match written {
                Ok(_) => return,
                Err(error) if clock.elapsed() < until => {
                    debug!("the outcome is not written yet: {error}");
                    tokio::time::sleep(WRITE_BACK_PAUSE).await;
                }
                Err(error) => {
                    warn!(
                        message.id = message.message_id,
                        "the outcome could not be written: {error}"
                    );
                    return;
                }
            }
        }
    }
}
