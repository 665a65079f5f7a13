//! The `wxhub` command, as a person types it.
// The futures of sea-orm within those of a test nest deeper than the default of 128.
#![recursion_limit = "256"]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod account;
mod broadcast;
mod demo;
mod dev;
mod message;
mod migrate;
mod pages;
mod running;
mod shell;
mod token;
mod trace;
mod user;
