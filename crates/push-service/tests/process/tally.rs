//! What became of every message, by the callers, the database, and WeChat.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sandbox::MessageKind;
use serde_json::Value;

use crate::{cluster::Cluster, load::is_template};

/// The states of the protocol, as the database has them.
const SENT: [i8; 2] = [4, 5];

/// What is counted when all is over.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Different messages that callers were told of.
    pub(crate) accepted: usize,
    /// Rows in the database that are SENT or DELIVERED.
    pub(crate) sent: usize,
    /// Different messages that users got.
    pub(crate) delivered: usize,
    /// Messages accepted that users did not get, or that ended otherwise than SENT, with why.
    pub(crate) lost: Vec<String>,
    /// Repeats that users got where an outcome was unknown and WeChat tells no repeats: possible_duplicate says so.
    pub(crate) ambiguous: usize,
    /// Repeats that users got for any other reason.
    pub(crate) unambiguous: Vec<String>,
    /// Messages whose user may have got them twice, as they say themselves.
    pub(crate) possible: usize,
    /// How many attempts had an unknown outcome, by what is known of them.
    pub(crate) unknown: BTreeMap<String, usize>,
}

impl Tally {
    /// Counts what became of messages 0 to `messages`, of which callers were told `accepted`.
    pub(crate) async fn count(cluster: &Cluster, messages: usize, accepted: usize) -> Self {
        let mut got: HashMap<usize, usize> = HashMap::new();
        for message in cluster.wechat.inbox(None, None) {
            let text = match message.kind {
                MessageKind::Template => message.message.pointer("/data/thing1/value"),
                MessageKind::Customer => message.message.pointer("/text/content"),
                _ => None,
            };
            let number = text.and_then(|text| text.as_str()?.parse().ok());
            *got.entry(number.expect("a message of ours")).or_default() += 1;
        }
        let mut tally = Self {
            accepted,
            delivered: got.len(),
            ..Self::default()
        };
        let rows = cluster
            .query("SELECT request_id, state, attempts, possible_duplicate, errcode, errmsg, failed_attempts FROM message")
            .await
            .unwrap();
        let mut stored = vec![false; messages];
        for row in rows {
            let request_id: String = row.try_get("", "request_id").unwrap();
            let number: usize = request_id
                .trim_start_matches("request-")
                .parse()
                .expect("a request of ours");
            assert!(!stored[number], "{request_id} is stored twice");
            stored[number] = true;
            let got = got.get(&number).copied().unwrap_or_default();
            let state: i8 = row.try_get("", "state").unwrap();
            let attempts: u32 = row.try_get("", "attempts").unwrap();
            let possible: bool = row.try_get("", "possible_duplicate").unwrap();
            tally.possible += usize::from(possible);
            let failed: Option<String> = row.try_get("", "failed_attempts").unwrap();
            let failed: Vec<Value> =
                failed.map_or_else(Vec::new, |failed| serde_json::from_str(&failed).unwrap());
            for failed in failed {
                if failed["outcome_unknown"].as_bool().unwrap() {
                    // What follows is WeChat's number of the call.
                    let reason = failed["errmsg"].as_str().unwrap();
                    let reason = reason.split(" rid: ").next().unwrap().to_owned();
                    *tally.unknown.entry(reason).or_default() += 1;
                }
            }
            let line = || {
                let errcode: i64 = row.try_get("", "errcode").unwrap();
                let errmsg: String = row.try_get("", "errmsg").unwrap();
                format!(
                    "{request_id}: state {state}, got {got} times, attempts {attempts}, possible_duplicate {possible}, {errcode} {errmsg}"
                )
            };
            if SENT.contains(&state) {
                tally.sent += 1;
            }
            if got == 0 || !SENT.contains(&state) {
                tally.lost.push(line());
            }
            if got > 1 {
                if possible && !is_template(number) {
                    tally.ambiguous += got - 1;
                } else {
                    tally.unambiguous.push(line());
                }
            }
        }
        let missing = stored.iter().enumerate().filter(|(_, stored)| !**stored);
        let missing =
            missing.map(|(number, _)| format!("request-{number}: accepted, and not stored"));
        tally.lost.extend(missing);
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted {}, sent {}, delivered {}, lost {}, duplicated {} (of ambiguous sends that WeChat tells no repeats of: {}; others: {}); marked possible_duplicate: {}; attempts of unknown outcome: {:?}",
            self.accepted,
            self.sent,
            self.delivered,
            self.lost.len(),
            self.ambiguous + self.unambiguous.len(),
            self.ambiguous,
            self.unambiguous.len(),
            self.possible,
            self.unknown,
        )
    }
}
