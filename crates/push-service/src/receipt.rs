//! Receipts: what WeChat tells of a message some time after it accepted it.
//!
//! A receipt may come before the send's outcome is written, and even before WeChat's answer. It is looked for among the
//! messages first; one that finds none is kept, and then looks again. Whoever writes outcomes looks for kept receipts
//! afterwards, with [`Receipts::take_up`]. So whichever comes second sees the other, and no receipt is lost.

#[expect(unreachable_pub, reason = "sea-orm derives public items")]
mod entity;
pub(crate) mod store;

use std::{collections::BTreeMap, convert::Infallible};

use sea_orm::DbErr;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wechat::{AppId, MsgId, callback::Inbound};

use self::store::Store;

/// Pushes whose receipts wait to be written; WeChat repeats what finds no room.
const WAITING: usize = 1_024;
/// Pushes whose receipts are written together.
const TOGETHER: usize = 256;
/// The longest status kept, in characters.
const STATUS: usize = 256;

/// What became of a message that WeChat had accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) msg_id: MsgId,
    pub(crate) fate: Fate,
}

/// Whether the user got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered,
    /// `errcode` is 0 where WeChat gives none, `status` is in its words.
    Failed {
        errcode: i64,
        status: String,
    },
}

impl Receipt {
    /// Those that a push carries; most carry none.
    pub(crate) fn all(push: &Inbound) -> Vec<Self> {
        match push.event.as_deref() {
            Some("templatesendjobfinish") => {
                let msg_id = push.msg_id.as_deref();
                let fate = fate(None, push.fields.get("Status"));
                Self::of(msg_id, fate).into_iter().collect()
            }
            Some("subscribe_msg_sent_event") => {
                let wrapper = push.fields.get("SubscribeMsgSentEvent");
                let wrappers = wrapper.map_or_else(|| vec![&push.fields], many);
                let lists = wrappers.into_iter().filter_map(|event| event.get("List"));
                let entries = lists.flat_map(many);
                let receipt = |entry: &Value| {
                    let msg_id = entry.get("MsgID").and_then(text);
                    let fate = fate(entry.get("ErrorCode"), entry.get("ErrorStatus"));
                    Self::of(msg_id.as_deref(), fate)
                };
                entries.filter_map(receipt).collect()
            }
            _ => Vec::new(),
        }
    }

    fn of(msg_id: Option<&str>, fate: Fate) -> Option<Self> {
        let msg_id = MsgId::try_from(msg_id?.trim()).ok()?;
        Some(Self { msg_id, fate })
    }
}

/// Judges by the code where there is one, by the word otherwise; sources differ in its spaces and case.
fn fate(errcode: Option<&Value>, status: Option<&Value>) -> Fate {
    let errcode = errcode
        .and_then(text)
        .and_then(|code| code.trim().parse::<i64>().ok());
    let status = status.and_then(text).unwrap_or_default();
    let delivered = match errcode {
        Some(code) => code == 0,
        None => same_words(&status, "success"),
    };
    if delivered {
        return Fate::Delivered;
    }
    Fate::Failed {
        errcode: errcode.unwrap_or_default(),
        status: status.trim().chars().take(STATUS).collect(),
    }
}

fn same_words(one: &str, other: &str) -> bool {
    let letters = |text: &str| {
        let letters = text.chars().filter(|c| !c.is_whitespace());
        letters.flat_map(char::to_lowercase).collect::<String>()
    };
    letters(one) == letters(other)
}

/// What repeats in XML, and several entries in JSON, are an array; a single one stands by itself.
fn many(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        single => vec![single],
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The receipts of a push could not be written: WeChat has to repeat it.
#[derive(Debug, thiserror::Error)]
#[error("the receipts could not be written")]
pub(crate) struct NotRecorded;

struct Waiting {
    app_id: AppId,
    receipts: Vec<Receipt>,
    recorded: oneshot::Sender<()>,
}

/// Writes receipts down; clones share the queue.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    store: Store,
    waiting: mpsc::Sender<Waiting>,
}

/// The worker behind [`Receipts`]: what comes while it writes is written together.
#[derive(Debug)]
pub(crate) struct Recorder {
    store: Store,
    waiting: mpsc::Receiver<Waiting>,
}

impl Receipts {
    pub(crate) fn new(store: Store) -> (Self, Recorder) {
        let (sender, waiting) = mpsc::channel(WAITING);
        let recorder = Recorder {
            store: store.clone(),
            waiting,
        };
        let receipts = Self {
            store,
            waiting: sender,
        };
        (receipts, recorder)
    }

    /// Returns once the receipts of a push are committed. The same again changes nothing.
    pub(crate) async fn record(
        &self,
        app_id: AppId,
        receipts: Vec<Receipt>,
    ) -> Result<(), NotRecorded> {
        let (sender, recorded) = oneshot::channel();
        let waiting = Waiting {
            app_id,
            receipts,
            recorded: sender,
        };
        self.waiting.send(waiting).await.map_err(|_| NotRecorded)?;
        recorded.await.map_err(|_| NotRecorded)
    }

    /// Gives messages whose SENT was just committed the receipts that came before it.
    /// They are told by their app and WeChat's id.
    pub(crate) async fn take_up(
        &self,
        sent: impl Iterator<Item = (&str, &str)>,
    ) -> Result<(), DbErr> {
        let mut by_app: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (app_id, msg_id) in sent {
            by_app.entry(app_id).or_default().push(msg_id);
        }
        for (app_id, msg_ids) in by_app {
            self.store.take_up(app_id, msg_ids).await?;
        }
        Ok(())
    }
}

impl Recorder {
    /// Writes receipts until the token is cancelled, and then those that wait.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut pushes = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                () = stop.cancelled(), if !self.waiting.is_closed() => self.waiting.close(),
                received = self.waiting.recv_many(&mut pushes, TOGETHER) => match received {
                    0 => return Ok(()),
                    _ => self.write(&mut pushes).await,
                },
            }
        }
    }

    async fn write(&self, pushes: &mut Vec<Waiting>) {
        let mut by_app: BTreeMap<AppId, (Vec<Receipt>, Vec<oneshot::Sender<()>>)> = BTreeMap::new();
        for push in pushes.drain(..) {
            let (receipts, recorded) = by_app.entry(push.app_id).or_default();
            receipts.extend(push.receipts);
            recorded.push(push.recorded);
        }
        for (app_id, (receipts, recorded)) in by_app {
            if let Err(error) = self.store.record(app_id.as_str(), receipts).await {
                warn!(app.id = %app_id, "WeChat has to repeat receipts, for they could not be written: {error}");
                continue;
            }
            for recorded in recorded {
                // Whoever waited for it may have given up.
                let _ = recorded.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json(fields: &Value) -> Vec<Receipt> {
        let mut push = json!({"ToUserName": "gh_1", "FromUserName": "o1", "CreateTime": 1, "MsgType": "event"});
        push.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        Receipt::all(&Inbound::parse(push.to_string().as_bytes()).unwrap())
    }

    fn xml(fields: &str) -> Vec<Receipt> {
        let push = format!(
            "<xml><ToUserName>gh_1</ToUserName><FromUserName>o1</FromUserName><CreateTime>1</CreateTime>\
             <MsgType>event</MsgType>{fields}</xml>"
        );
        Receipt::all(&Inbound::parse(push.as_bytes()).unwrap())
    }

    fn delivered(msg_id: &str) -> Receipt {
        Receipt {
            msg_id: msg_id.parse().unwrap(),
            fate: Fate::Delivered,
        }
    }

    fn failed(msg_id: &str, errcode: i64, status: &str) -> Receipt {
        Receipt {
            msg_id: msg_id.parse().unwrap(),
            fate: Fate::Failed {
                errcode,
                status: status.to_owned(),
            },
        }
    }

    #[test]
    fn a_templates_status_is_compared_without_spaces_and_case() {
        for (status, receipt) in [
            ("success", delivered("200163836")),
            (" Success ", delivered("200163836")),
            (
                "failed:user block",
                failed("200163836", 0, "failed:user block"),
            ),
            (
                "failed: system failed",
                failed("200163836", 0, "failed: system failed"),
            ),
            ("", failed("200163836", 0, "")),
        ] {
            let fields = format!(
                "<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event><MsgID>200163836</MsgID><Status><![CDATA[{status}]]></Status>"
            );
            assert_eq!(xml(&fields), [receipt], "{status}");
        }
        let event = "templateSendJobFinish";
        let twin = json!({"Event": event, "MsgID": 9_007_199_254_740_993_i64, "Status": "success"});
        assert_eq!(json(&twin), [delivered("9007199254740993")]);
    }

    #[test]
    fn a_subscribe_events_list_is_read_in_every_shape() {
        let list = |msg_id: &str, code: &str, status: &str| {
            format!(
                "<List><TemplateId><![CDATA[T]]></TemplateId><MsgID>{msg_id}</MsgID><ErrorCode>{code}</ErrorCode>\
                 <ErrorStatus><![CDATA[{status}]]></ErrorStatus></List>"
            )
        };
        let event = |lists: &str| {
            xml(&format!(
                "<Event>subscribe_msg_sent_event</Event><SubscribeMsgSentEvent>{lists}</SubscribeMsgSentEvent>"
            ))
        };
        let (one, two) = (
            delivered("1864323726461255680"),
            failed("2", 43101, "user refuse"),
        );
        let (first, second) = (
            list("1864323726461255680", "0", "success"),
            list("2", "43101", "user refuse"),
        );
        assert_eq!(event(&first), std::slice::from_ref(&one));
        assert_eq!(
            event(&format!("{first}{second}")),
            [one.clone(), two.clone()]
        );

        let (first, second) = (
            json!({"TemplateId": "T", "MsgID": "1864323726461255680", "ErrorCode": "0", "ErrorStatus": "success"}),
            json!({"TemplateId": "T", "MsgID": 2, "ErrorCode": 43101, "ErrorStatus": "user refuse"}),
        );
        for (list, expected) in [
            (first.clone(), vec![one.clone()]),
            (json!([first]), vec![one.clone()]),
            (json!([first, second]), vec![one, two]),
        ] {
            let event = "subscribe_msg_sent_event";
            assert_eq!(json(&json!({"Event": event, "List": list})), expected);
            let wrapped = json!({"Event": event, "SubscribeMsgSentEvent": {"List": list}});
            assert_eq!(json(&wrapped), expected);
        }
    }

    #[test]
    fn what_names_no_message_is_no_receipt() {
        for fields in [
            json!({"Event": "TEMPLATESENDJOBFINISH", "Status": "success"}),
            json!({"Event": "TEMPLATESENDJOBFINISH", "MsgID": "a b", "Status": "success"}),
            json!({"Event": "subscribe_msg_sent_event"}),
            json!({"Event": "subscribe_msg_sent_event", "List": "none"}),
            json!({"Event": "subscribe_msg_sent_event", "List": [{"MsgID": {}}, 1]}),
            json!({"Event": "subscribe", "MsgID": 1, "Status": "success"}),
        ] {
            assert_eq!(json(&fields), [], "{fields}");
        }
    }
}
