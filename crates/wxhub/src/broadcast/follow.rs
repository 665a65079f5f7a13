//! Following a broadcast until it has ended.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use proto::push::v1::{Broadcast, WatchBroadcastRequest};
use service_kit::Clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Operator, send::ways, shown, there};
use crate::{
    operator::print,
    push::{note, refused},
};

/// Between the end of a watch and the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Where there is no terminal, a line is written this often.
const LINES: Duration = Duration::from_secs(5);

/// Where it is told how far a broadcast is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// To whoever is at the terminal.
    Aside,
    /// To a program, by an object a line.
    Json,
}

impl Operator {
    /// Tells how far it is until it has ended, and returns it then; none when `stop` came first. A push-service that goes
    /// away is waited for.
    pub(super) async fn follow(
        &mut self,
        broadcast_id: &str,
        told: Told,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Broadcast>> {
        let mut teller = Teller::new(told);
        let followed = stop.run_until_cancelled(self.watch(broadcast_id, &mut teller));
        let followed = followed.await;
        teller.clear();
        followed.transpose()
    }

    async fn watch(
        &mut self,
        broadcast_id: &str,
        teller: &mut Teller,
    ) -> anyhow::Result<Broadcast> {
        let mut seen = None;
        let mut is_away = false;
        loop {
            let request = WatchBroadcastRequest {
                broadcast_id: broadcast_id.to_owned(),
            };
            let ended = match self.rpc.watch_broadcast(request).await {
                Err(status) => status,
                Ok(answer) => {
                    let mut told = answer.into_inner();
                    loop {
                        match told.message().await {
                            Err(status) => break status,
                            Ok(Some(next)) => {
                                is_away = false;
                                let broadcast = there(next.broadcast)?;
                                teller.tell(&broadcast)?;
                                seen = Some(broadcast);
                            }
                            Ok(None) => match seen.take() {
                                Some(last) => return Ok(last),
                                None => break Status::unavailable("the watch ended"),
                            },
                        }
                    }
                }
            };
            let ended = refused(ended);
            if seen.is_none() || !ended.is_temporary() {
                return Err(ended.into());
            }
            if !is_away {
                teller.note(&format!("{ended}; watching again"));
            }
            is_away = true;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What can be done with a broadcast that nobody follows any more.
pub(super) fn left(broadcast_id: &str) -> String {
    let ways = ways([
        ("follow it", format!("wxhub broadcast watch {broadcast_id}")),
        ("stop it", format!("wxhub broadcast pause {broadcast_id}")),
    ]);
    format!("it goes on by itself\n{ways}")
}

/// Tells how far it is: by a bar on a terminal, and otherwise by a line now and then.
struct Teller {
    to: Told,
    bar: Option<ProgressBar>,
    /// The state that was told, and when.
    told: Option<(i32, Instant)>,
}

impl Teller {
    fn new(to: Told) -> Self {
        let is_seen = to == Told::Aside && io::stderr().is_terminal();
        let bar = is_seen.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent}% {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            to,
            bar,
            told: None,
        }
    }

    fn tell(&mut self, broadcast: &Broadcast) -> anyhow::Result<()> {
        if self.to == Told::Json {
            return print(&shown::object(broadcast).to_string());
        }
        let text = shown::progress(broadcast, Clock::System.now());
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_length(u64::try_from(broadcast.recipients).unwrap_or_default());
            bar.set_position(shown::ended(broadcast));
            return Ok(());
        }
        let told = self
            .told
            .is_some_and(|(state, at)| state == broadcast.state && at.elapsed() < LINES);
        if told {
            return Ok(());
        }
        self.told = Some((broadcast.state, Instant::now()));
        note(&text);
        Ok(())
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
