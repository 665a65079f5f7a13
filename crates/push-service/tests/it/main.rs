//! push-service over real sockets: against the sandbox, with stand-ins for token- and auth-service, on SQLite and memory
//! as on MariaDB and Redis.
// The futures of whole servers nest deep.
#![recursion_limit = "256"]
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod accept;
mod account;
mod batch;
mod broadcast;
mod callback;
mod delivery;
mod form;
mod hang_up;
mod lifecycle;
mod receipt;
mod recovery;
mod replay;
mod schedule;
mod stand_in;
mod typing;
mod world;
