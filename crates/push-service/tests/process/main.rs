//! push-service as processes: three replicas on one MariaDB and one Redis, the sandbox as WeChat, and everything that can
//! go away goes away.
// The futures of sea-orm nest deep.
#![recursion_limit = "256"]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod cluster;
mod fault;
mod load;
mod progress;
mod tally;
