//! push-service.

mod accept;
mod deliver;
mod fairness;
mod history;
mod pruning;
mod wechat;
mod world;

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

/// Nothing that is waited for takes longer.
const LONGEST: Duration = Duration::from_secs(900);

/// What of push-service is measured, and how large.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// All of them where none is named
    parts: Vec<Part>,
    /// Messages that go from acceptance to the outcome
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Finished messages that fill the table
    #[arg(long, default_value_t = 10_000_000)]
    finished: u64,
    /// Messages of one caller that wait while another sends
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// BatchSendMessages beside bare INSERTs
    Accept,
    /// SendMessage beside a committed INSERT
    Single,
    /// Accepted, sent and written back
    EndToEnd,
    /// From accepted to at WeChat, one at a time
    Latency,
    /// Messages with a schedule_time
    Scheduled,
    /// What the service does with nothing to do
    Idle,
    /// A caller beside the backlog of another
    Fairness,
    /// Callers while old messages are removed
    Pruning,
    /// A table full of finished messages
    History,
}

/// Measures what is asked for, and prints it.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let parts = if options.parts.is_empty() {
        Part::value_variants()
    } else {
        &options.parts
    };
    for part in parts {
        match part {
            Part::Accept => accept::batches().await.context("BatchSendMessages")?,
            Part::Single => accept::single().await.context("SendMessage")?,
            Part::EndToEnd => deliver::end_to_end(options.messages)
                .await
                .context("end to end")?,
            Part::Latency => deliver::latency().await.context("latency")?,
            Part::Scheduled => deliver::scheduled().await.context("scheduled")?,
            Part::Idle => deliver::idle().await.context("idle")?,
            Part::Fairness => fairness::run(options.backlog).await.context("fairness")?,
            Part::Pruning => pruning::run().await.context("pruning")?,
            Part::History => history::run(options.finished).await.context("history")?,
        }
    }
    Ok(())
}
