//! What wxhub's tests stand on: real servers as child processes on free ports of 127.0.0.1, a proxy that breaks
//! connections on purpose, an OTLP collector, a browser, a stand-in for token-service, and a way to wait for a condition instead of sleeping.
//!
//! Nothing here skips: what cannot start panics with what is missing and its log. Every child process dies with the
//! test process, even when that one is killed, and its temporary folder goes with it.
// The futures of sea-orm nest deeper than the default of 128 when they are optimised.
#![recursion_limit = "256"]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is called by tests only: a panic with a reason is how it reports"
)]

mod browser;
mod child;
mod collector;
mod eventually;
mod maria_db;
mod port;
mod process;
mod proxy;
mod redis_server;
mod sandbox_server;
mod tokens;

pub use browser::{Browser, Screen};
pub use collector::{Collector, Span};
pub use eventually::{Condition, eventually};
pub use maria_db::{Database, MariaDb};
pub use port::{free_port, listener};
pub use process::Process;
pub use proxy::FaultProxy;
pub use redis_server::Redis;
pub use sandbox_server::Sandbox;
pub use tokens::Tokens;
