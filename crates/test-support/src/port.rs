//! Ports of 127.0.0.1.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use tokio::net::TcpListener;

/// Below every system's ephemeral range (Linux starts at 32768): no outgoing connection and no bind to port 0 takes
/// one of these while a server that owns it is down.
const RANGE: Range<u16> = 18_000..32_000;

/// A listener on 127.0.0.1 and a port that the system chose.
pub async fn listener() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("127.0.0.1 has a free port")
}

/// A port of 127.0.0.1 on which nothing listens, and which the system gives to nobody by itself. For a server that
/// binds it later, or binds it again after a restart.
#[must_use]
pub fn free_port() -> u16 {
    (0..100)
        .map(|_| RANGE.start + random_below(RANGE.end - RANGE.start))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("127.0.0.1 has a free port")
}

/// Parallel test processes must not walk the range in the same order.
fn random_below(limit: u16) -> u16 {
    let random = RandomState::new().build_hasher().finish() % u64::from(limit);
    u16::try_from(random).expect("below a u16")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_lies_outside_the_ephemeral_range() {
        let port = free_port();
        assert!(RANGE.contains(&port));
        std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[tokio::test]
    async fn two_listeners_have_ports_of_their_own() {
        let (one, other) = (listener().await, listener().await);
        assert_ne!(one.local_addr().unwrap(), other.local_addr().unwrap());
    }
}
