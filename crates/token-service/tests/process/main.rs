//! token-service as processes: three replicas, one Redis, the sandbox as WeChat, and `kill -9`.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod client;
mod cluster;
mod events;
mod fault;
mod reader;
mod steps;
