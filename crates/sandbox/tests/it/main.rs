//! The sandbox over real sockets: every rule that a caller of WeChat may trip over.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests: a surprise is a failure"
)]

mod binary;
mod callback;
mod client;
mod control;
mod credential;
mod customer;
mod fault;
mod login;
mod oauth;
mod template;
mod user_data;
mod world;
