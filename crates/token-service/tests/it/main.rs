//! token-service over real sockets, against the sandbox, on memory and on Redis; and its broker in simulated time.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod catalog;
mod door;
mod outage;
mod rpc;
mod simulated;
mod single_flight;
mod watch;
mod world;
