//! Ports of 127.0.0.1.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream};
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpListener;

/// Below every system's ephemeral range (Linux starts at 32768): no outgoing connection and no bind to port 0 takes
/// one of these while a server that owns it is down.
const RANGE: Range<u16> = 18_000..32_000;

/// Ports that a test process takes at once. Whoever listens on the first owns the others, whether something listens on
/// those or not; the system frees them at the end of the process, however that comes about.
const BLOCK: u16 = 100;

/// For an answer of this machine to itself.
const ANSWER: Duration = Duration::from_secs(1);

/// What this process has taken.
static TAKEN: Mutex<Vec<Block>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Block {
    _lock: StdListener,
    /// Those that were not given away yet.
    left: Range<u16>,
}

impl Block {
    /// The block that starts at `first`, unless another test process has it.
    fn take(first: u16) -> Option<Self> {
        let lock = StdListener::bind(address(first)).ok()?;
        Some(Self {
            _lock: lock,
            left: first + 1..first + BLOCK,
        })
    }
}

/// A listener on 127.0.0.1 and a port that the system chose.
pub async fn listener() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("127.0.0.1 has a free port")
}

/// A port of 127.0.0.1 on which nothing listens, and which nobody else is given as long as this process lives: neither by
/// the system nor by this function, here or in another test process. For a server that binds it later, or binds it again
/// after a restart.
///
/// # Panics
/// When none is left.
#[must_use]
pub fn free_port() -> u16 {
    let mut taken = TAKEN.lock().expect("no holder panics");
    loop {
        let own = taken.last_mut().map(|block| &mut block.left);
        if let Some(port) = own.and_then(|left| left.find(|port| is_free(*port))) {
            return port;
        }
        // Parallel test processes must not walk the blocks in the same order.
        let blocks = (RANGE.end - RANGE.start) / BLOCK;
        let start = random_below(blocks);
        let block = (0..blocks)
            .map(|block| RANGE.start + (start + block) % blocks * BLOCK)
            .find_map(Block::take)
            .expect("127.0.0.1 has a free block of ports");
        taken.push(block);
    }
}

/// Whether nothing listens. Binds nothing to find that out: a process that another thread is just starting would inherit
/// what is bound here and hold it on until it runs a program of its own, after the port was given away.
fn is_free(port: u16) -> bool {
    TcpStream::connect_timeout(&address(port), ANSWER)
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn random_below(limit: u16) -> u16 {
    let random = RandomState::new().build_hasher().finish() % u64::from(limit);
    u16::try_from(random).expect("below a u16")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_lies_outside_the_ephemeral_range() {
        let port = free_port();
        assert!(RANGE.contains(&port));
        StdListener::bind(address(port)).unwrap();
    }

    #[test]
    fn a_port_is_given_away_once_though_nothing_listens_on_it() {
        let ports = usize::from(BLOCK) + 10;
        let given: HashSet<_> = (0..ports).map(|_| free_port()).collect();
        assert_eq!(given.len(), ports);
    }

    #[test]
    fn a_block_belongs_to_one_process() {
        let port = free_port();
        let first = port - port % BLOCK;
        assert!(Block::take(first).is_none());
    }

    #[test]
    fn a_port_on_which_something_listens_is_not_free() {
        let port = free_port();
        assert!(is_free(port));
        let _listener = StdListener::bind(address(port)).unwrap();
        assert!(!is_free(port));
    }

    #[tokio::test]
    async fn two_listeners_have_ports_of_their_own() {
        let (one, other) = (listener().await, listener().await);
        assert_ne!(one.local_addr().unwrap(), other.local_addr().unwrap());
    }
}
