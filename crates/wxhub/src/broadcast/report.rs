//! Who did not get a broadcast, and why.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::Context as _;
use csv::Writer;
use indicatif::ProgressBar;
use prost_types::Timestamp;
use proto::push::v1::{Broadcast, ListMessagesRequest, Message, MessageFilter, MessageState};

use super::Operator;
use crate::{
    message::shown,
    push::{Patience, counted, counter, note, refused},
    table::rfc_3339,
};

/// Messages of one request, the most.
const PAGE: i32 = 1_000;
/// A message's id is made by one replica's clock, and the end told by another's.
const CLOCKS_APART: i64 = 60;
const HEAD: [&str; 7] = [
    "open_id",
    "message_id",
    "state",
    "errcode",
    "reason",
    "attempts",
    "time",
];

/// What a report is for: people and spreadsheets, or programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Csv,
    Json,
}

impl Operator {
    /// Writes a line for each message that failed or expired: to a file, or to stdout.
    pub(super) async fn report(
        &mut self,
        broadcast: &Broadcast,
        out: Option<&Path>,
        form: Form,
    ) -> anyhow::Result<()> {
        let to: Box<dyn Write + Send> = match out {
            None => Box::new(io::stdout()),
            Some(path) => {
                let file = File::create(path);
                Box::new(file.with_context(|| format!("{} cannot be written", path.display()))?)
            }
        };
        let mut report = Report::to(to, form)?;
        let reading = counter("reading what failed");
        let lines = self.write_report(broadcast, &mut report, &reading).await;
        reading.finish_and_clear();
        let lines = lines?;
        if let Some(path) = out {
            let lines = counted(lines, "message");
            note(&format!("{lines} in {}", path.display()));
        }
        Ok(())
    }

    async fn write_report(
        &mut self,
        broadcast: &Broadcast,
        report: &mut Report,
        reading: &ProgressBar,
    ) -> anyhow::Result<u64> {
        let states = [MessageState::Failed, MessageState::Expired];
        let mut request = ListMessagesRequest {
            filter: Some(MessageFilter {
                app_id: broadcast.app_id.clone(),
                states: states.map(Into::into).to_vec(),
                broadcast_id: broadcast.broadcast_id.clone(),
                // Its messages were all made between the two.
                start_time: shifted(broadcast.create_time, -CLOCKS_APART),
                end_time: shifted(broadcast.end_time, CLOCKS_APART),
                ..MessageFilter::default()
            }),
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut lines = 0;
        let mut patience = Patience::default();
        loop {
            let page = self.rpc.list_messages(request.clone()).await;
            let page = match page {
                Ok(page) => page.into_inner(),
                Err(status) => {
                    let tell = |why: &str| reading.suspend(|| note(why));
                    patience.wait(refused(status), tell).await?;
                    continue;
                }
            };
            patience.renew();
            for message in &page.messages {
                report.write(message)?;
                lines += 1;
            }
            reading.set_position(lines);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                report.flush()?;
                return Ok(lines);
            }
        }
    }
}

/// Where messages are written: as CSV, or an object a line.
enum Report {
    Csv(Box<Writer<Box<dyn Write + Send>>>),
    Json(BufWriter<Box<dyn Write + Send>>),
}

impl Report {
    fn to(to: Box<dyn Write + Send>, form: Form) -> io::Result<Self> {
        if form == Form::Json {
            return Ok(Self::Json(BufWriter::new(to)));
        }
        let mut csv = Writer::from_writer(to);
        csv.write_record(HEAD)?;
        Ok(Self::Csv(Box::new(csv)))
    }

    fn write(&mut self, message: &Message) -> io::Result<()> {
        match self {
            Self::Csv(csv) => csv.write_record(line(message)).map_err(Into::into),
            Self::Json(json) => writeln!(json, "{}", shown::object(message)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Csv(csv) => csv.flush(),
            Self::Json(json) => json.flush(),
        }
    }
}

fn shifted(time: Option<Timestamp>, seconds: i64) -> Option<Timestamp> {
    time.map(|time| Timestamp {
        seconds: time.seconds.saturating_add(seconds),
        ..time
    })
}

fn line(message: &Message) -> [String; 7] {
    let latest = message
        .failed_attempts
        .last()
        .and_then(|failed| failed.time);
    let reason = match message.state() {
        MessageState::Expired if message.errmsg.is_empty() => "its expire_time passed",
        _ => &message.errmsg,
    };
    [
        message.open_id.clone(),
        message.message_id.clone(),
        shown::state(message).to_owned(),
        message.errcode.to_string(),
        reason.to_owned(),
        message.attempts.to_string(),
        rfc_3339(latest.or(message.create_time)).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use proto::push::v1::FailedAttempt;

    use super::*;

    #[test]
    fn a_line_tells_the_latest_failure() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let mut message = Message {
            open_id: "oA".to_owned(),
            message_id: "m1".to_owned(),
            state: MessageState::Failed.into(),
            errcode: 43004,
            errmsg: "require subscribe".to_owned(),
            attempts: 2,
            create_time: at(0),
            failed_attempts: vec![FailedAttempt {
                time: at(60),
                ..FailedAttempt::default()
            }],
            ..Message::default()
        };
        assert_eq!(
            line(&message),
            [
                "oA",
                "m1",
                "FAILED",
                "43004",
                "require subscribe",
                "2",
                "1970-01-01T00:01:00Z"
            ]
        );
        message.set_state(MessageState::Expired);
        message.errmsg.clear();
        message.failed_attempts.clear();
        assert_eq!(
            line(&message)[2..],
            [
                "EXPIRED",
                "43004",
                "its expire_time passed",
                "2",
                "1970-01-01T00:00:00Z"
            ]
        );
    }
}
