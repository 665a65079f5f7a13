//! A service of service-kit's parts, over real sockets.
#![expect(clippy::unwrap_used, reason = "tests")]

mod balance;
mod lifecycle;
mod tls;
