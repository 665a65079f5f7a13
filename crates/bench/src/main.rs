//! What wxhub costs, as ratios of things measured beside it in the same run: machines differ, and are busy, but in both alike.
//!
//! Each figure is the median of several rounds in which the two sides take turns. Every load is bounded in calls and in
//! time.

// The futures of sea-orm, within those of a load, nest deeper than the default of 128.
#![recursion_limit = "256"]

mod auth;
mod empty;
mod load;
mod push;
mod replicas;
mod stats;
mod token;
mod world;

use clap::{Parser, Subcommand};
use service_kit::{cli, telemetry};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "What wxhub costs, as ratios")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// auth-service
    Auth,
    /// push-service
    Push(push::Options),
    /// token-service and token-client
    Token,
    /// Of that, what three replicas do together
    Replicas,
}

fn main() -> anyhow::Result<()> {
    let what = Cli::parse().what;
    cli::runtime()?.block_on(async {
        // As in production: what logs, spans and metrics cost is part of it.
        let telemetry = telemetry::init("bench")?;
        let measured = match what {
            What::Auth => auth::run().await,
            What::Push(options) => push::run(&options).await,
            What::Token => match token::run().await {
                Ok(()) => replicas::run().await,
                failed => failed,
            },
            What::Replicas => replicas::run().await,
        };
        telemetry.shutdown().await;
        measured
    })
}
