//! Callers that never give up: each message is asked for under its request_id until it is accepted.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use proto::push::v1::{
    self as pb, BatchSendMessagesRequest, BatchSendMessagesResponse, SendMessageRequest,
    batch_send_result, customer_content, send_message_request::Content,
};
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::cluster::{Cluster, NEWS, Rpc, SHOP};

/// Messages of one batch.
const BATCH: usize = 50;
/// Callers at once.
const CALLERS: usize = 4;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Users of the official account.
const FOLLOWERS: usize = 500;
/// Users who write to the mini program at once.
const WRITERS: usize = 16;
/// Every so many batches go message by message.
const SINGLY: usize = 10;
/// Every so many messages are customer-service messages, which WeChat tells no repeats of.
const CUSTOMER: usize = 5;

/// Whether WeChat tells repeats of it by its client_msg_id.
pub(crate) fn is_template(number: usize) -> bool {
    !number.is_multiple_of(CUSTOMER)
}

/// How the messages come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) messages: usize,
    /// A second; none for as fast as they are taken.
    pub(crate) rate: Option<usize>,
    /// No more are asked for while so many wait to be sent.
    pub(crate) backlog: usize,
}

/// What is about to be asked for.
pub(crate) struct Load {
    pace: Pace,
    cluster: Arc<Cluster>,
    followers: Vec<String>,
    writers: Vec<String>,
    /// The next batch.
    next: AtomicUsize,
    accepted: AtomicUsize,
}

impl Load {
    /// Makes those who are written to.
    pub(crate) async fn prepare(cluster: &Arc<Cluster>, pace: Pace) -> Self {
        let followers = (0..FOLLOWERS.min(pace.messages)).map(|_| {
            let user = cluster.wechat.user(NEWS, None, Some(true));
            user.unwrap().open_id
        });
        let followers = followers.collect();
        // One for each customer-service message: WeChat lets a user be written to five times, so there is room for repeats.
        let writers = stream::iter(0..pace.messages.div_ceil(CUSTOMER)).map(|_| cluster.writer());
        let writers = writers.buffer_unordered(WRITERS).collect().await;
        Self {
            pace,
            cluster: Arc::clone(cluster),
            followers,
            writers,
            next: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        }
    }

    /// Runs until all messages are accepted. Returns how many different ones the answers named.
    pub(crate) async fn run(self) -> usize {
        let load = Arc::new(self);
        let begun = Instant::now();
        let callers = (0..CALLERS).map(|_| Arc::clone(&load).call(begun));
        let callers: JoinSet<_> = callers.collect();
        let named = callers.join_all().await;
        let named: HashMap<_, _> = named.into_iter().flatten().collect();
        named.len()
    }

    /// One caller. Returns the message_ids it was told, each with the request's number.
    async fn call(self: Arc<Self>, begun: Instant) -> Vec<(String, usize)> {
        let mut rpc = self.cluster.rpc();
        let mut named = Vec::new();
        loop {
            let batch = self.next.fetch_add(1, Ordering::SeqCst);
            let first = batch * BATCH;
            if first >= self.pace.messages {
                return named;
            }
            let numbers: Vec<_> = (first..self.pace.messages.min(first + BATCH)).collect();
            self.wait_for_its_time(begun, first).await;
            if batch.is_multiple_of(SINGLY) {
                for number in &numbers {
                    named.push((self.send(&mut rpc, *number).await, *number));
                }
            } else {
                let (templates, customer): (Vec<_>, Vec<_>) =
                    numbers.iter().partition(|number| is_template(**number));
                for (app_id, numbers) in [(NEWS, templates), (SHOP, customer)] {
                    if numbers.is_empty() {
                        continue;
                    }
                    let ids = self.send_batch(&mut rpc, app_id, &numbers).await;
                    named.extend(ids.into_iter().zip(numbers));
                }
            }
            self.accepted.fetch_add(numbers.len(), Ordering::SeqCst);
        }
    }

    async fn wait_for_its_time(&self, begun: Instant, first: usize) {
        if let Some(rate) = self.pace.rate {
            let due = Duration::from_secs_f64(first as f64 / rate as f64);
            sleep_until((begun + due).into()).await;
        }
        loop {
            let taken = usize::try_from(self.cluster.taken()).unwrap();
            let accepted = self.accepted.load(Ordering::SeqCst);
            if accepted.saturating_sub(taken) < self.pace.backlog {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn send(&self, rpc: &mut Rpc, number: usize) -> String {
        loop {
            match rpc.send_message(self.request(number)).await {
                Ok(answer) => return answer.into_inner().message.unwrap().message_id,
                Err(status) => expect_passing(&status),
            }
            sleep(PAUSE).await;
        }
    }

    async fn send_batch(&self, rpc: &mut Rpc, app_id: &str, numbers: &[usize]) -> Vec<String> {
        let messages = numbers.iter().map(|number| self.request(*number));
        let request = BatchSendMessagesRequest {
            app_id: app_id.to_owned(),
            messages: messages.collect(),
        };
        loop {
            match rpc.batch_send_messages(request.clone()).await {
                Ok(answer) => return message_ids(answer.into_inner()),
                Err(status) => expect_passing(&status),
            }
            sleep(PAUSE).await;
        }
    }

    /// The same at each call: its text is its number.
    fn request(&self, number: usize) -> SendMessageRequest {
        let (app_id, open_id, content) = if is_template(number) {
            let data = [
                ("thing1", number.to_string()),
                ("amount2", "¥12.50".to_owned()),
                ("time3", "2026-11-21 10:00".to_owned()),
            ];
            let template = pb::TemplateContent {
                template_id: "TEMPLATE_ORDER_PAID".to_owned(),
                url: "https://example.com/orders/1?a=1&b=2".to_owned(),
                mini_program: None,
                data: data.map(|(key, value)| (key.to_owned(), value)).into(),
            };
            let follower = &self.followers[number % self.followers.len()];
            (NEWS, follower, Content::Template(template))
        } else {
            let text = pb::CustomerText {
                content: number.to_string(),
            };
            let customer = pb::CustomerContent {
                kf_account: String::new(),
                message: Some(customer_content::Message::Text(text)),
            };
            let writer = &self.writers[number / CUSTOMER];
            (SHOP, writer, Content::Customer(customer))
        };
        SendMessageRequest {
            app_id: app_id.to_owned(),
            open_id: open_id.clone(),
            request_id: format!("request-{number}"),
            content: Some(content),
            ..SendMessageRequest::default()
        }
    }
}

fn message_ids(answer: BatchSendMessagesResponse) -> Vec<String> {
    let ids = answer
        .results
        .into_iter()
        .map(|result| match result.result {
            Some(batch_send_result::Result::Message(message)) => message.message_id,
            other => panic!("a message of a batch is refused: {other:?}"),
        });
    ids.collect()
}

/// A caller may try again after these alone.
fn expect_passing(status: &tonic::Status) {
    use tonic::Code;
    let passing = matches!(
        status.code(),
        // The last two: its connection broke under the call.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
    );
    assert!(passing, "a message is refused: {status:?}");
}
