//! What must hold in every schedule, and what happened in one:
//!
//! - stored versions only grow, and what is stored is not replaced by what WeChat issued before it (unless the store was
//!   emptied, and with it the leases that keep calls to WeChat apart);
//! - no call to WeChat starts after its lease's end, or uncounted in the ledger;
//! - a lease is good for one classic call;
//! - a superseded classic token is not served longer than WeChat's overlap less a minute;
//! - nothing expired is served;
//! - a second after the last fault every replica holds what is stored (see [`crate::schedule`]).

use std::{collections::HashMap, fmt::Display, time::Duration};

use secrecy::ExposeSecret as _;
use token_service::credential::{
    Credential,
    store::{LEASE, Lease},
};
use tokio::time::Instant;

use crate::wechat::{OVERLAP, WeChat};

/// The longest that a superseded token is served.
const SUPERSEDED: Duration = OVERLAP.saturating_sub(Duration::from_secs(60));

#[derive(Debug)]
pub(crate) struct Judge {
    start: Instant,
    pub(crate) happened: Vec<String>,
    /// The first promise that was broken.
    pub(crate) broken: Option<String>,
    leases: HashMap<u64, Terms>,
    /// The version that is stored, and the number of its token.
    stored: (u64, usize),
    emptied: bool,
}

/// A lease, and what was done under it.
#[derive(Debug)]
struct Terms {
    end: Instant,
    /// Calls entered in the ledger.
    entered: u32,
    calls: u32,
}

/// A call to WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Classic,
    Stable { force: bool },
}

impl Judge {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            happened: Vec::new(),
            broken: None,
            leases: HashMap::new(),
            stored: (0, 0),
            emptied: false,
        }
    }

    pub(crate) fn note(&mut self, what: impl Display) {
        if self.broken.is_some() {
            return;
        }
        let at = self.start.elapsed();
        self.happened
            .push(format!("{:>9.3} s  {what}", at.as_secs_f64()));
    }

    pub(crate) fn breaks(&mut self, promise: impl Display) {
        self.note(format_args!("BROKEN: {promise}"));
        self.broken.get_or_insert_with(|| promise.to_string());
    }

    pub(crate) fn emptied(&mut self) {
        self.stored = (0, 0);
        self.emptied = true;
        self.note("the store is emptied");
    }

    pub(crate) fn stored(&mut self, credential: &Credential, wechat: &WeChat) {
        let token = wechat.token(credential.secret.expose_secret());
        let stored = (credential.version, token.map_or(0, |token| token.number));
        let before = std::mem::replace(&mut self.stored, stored);
        if stored.0 < before.0 {
            self.breaks("the stored version fell");
        }
        if stored.1 < before.1 && !self.emptied {
            self.breaks("an older token replaced the stored one");
        }
    }

    pub(crate) fn granted(&mut self, lease: Lease) {
        let terms = Terms {
            end: Instant::now() + LEASE,
            entered: 0,
            calls: 0,
        };
        self.leases.insert(lease.fence, terms);
    }

    pub(crate) fn entered(&mut self, lease: Lease) {
        if let Some(terms) = self.leases.get_mut(&lease.fence) {
            terms.entered += 1;
        }
    }

    /// A call starts under `lease`, or without one because the store is away.
    pub(crate) fn calls(&mut self, replica: usize, call: Call, lease: Option<Lease>) {
        self.note(format_args!(
            "replica {replica} calls WeChat: {call:?}, {lease:?}"
        ));
        let Some(lease) = lease else {
            if call != (Call::Stable { force: false }) {
                self.breaks("a call that may harm was made without a lease");
            }
            return;
        };
        let Some(terms) = self.leases.get_mut(&lease.fence) else {
            return self.breaks("a call under a lease that nobody granted");
        };
        terms.calls += 1;
        let late = Instant::now() >= terms.end;
        let uncounted = terms.calls > terms.entered;
        let again = terms.calls > 1 && call == Call::Classic;
        if late {
            self.breaks("a call started after its lease's end");
        }
        if uncounted {
            self.breaks("a call is not in the ledger");
        }
        if again {
            self.breaks("a second classic call under one lease");
        }
    }

    pub(crate) fn served(&mut self, replica: usize, text: &str, wechat: &WeChat) {
        let now = Instant::now();
        let Some(token) = wechat.token(text) else {
            return self.breaks("WeChat never issued what is served");
        };
        if now >= token.expires {
            self.breaks(format_args!(
                "replica {replica} served {text}, which is expired"
            ));
        }
        let since = token.superseded.filter(|_| token.dead.is_some());
        if let Some(since) = since
            && now > since + SUPERSEDED
        {
            let seconds = now.duration_since(since).as_secs();
            self.breaks(format_args!(
                "replica {replica} served {text}, superseded {seconds} s ago"
            ));
        }
    }
}
