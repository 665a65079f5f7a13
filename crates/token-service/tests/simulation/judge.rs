//! What must hold in every schedule, and what happened in one:
//!
//! - stored versions only grow, and what is stored is not replaced by what WeChat issued before it (unless the store was
//!   emptied, and with it the leases that keep calls to WeChat apart);
//! - no call to WeChat starts after its lease's end;
//! - a lease is good for one classic call;
//! - a call is in the ledger before it starts, the ledger forgets none while the store is not emptied, allows none beyond the
//!   day's budget, and none after WeChat said that the quota is used up; whoever heard that himself calls no more on that day,
//!   whatever becomes of the store;
//! - a superseded classic token is not served longer than WeChat's overlap less a minute;
//! - nothing expired is served;
//! - a second after the last fault every replica holds what is stored (see [`crate::schedule`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    time::Duration,
};

use secrecy::ExposeSecret as _;
use service_kit::Clock;
use token_service::credential::{
    Credential, Kind, Policy,
    ledger::{Budget, Ledger, Use},
    store::{LEASE, Lease},
};
use tokio::time::Instant;

use crate::wechat::{OVERLAP, WeChat};

/// The longest that a superseded token is served.
const SUPERSEDED: Duration = OVERLAP.saturating_sub(Duration::from_secs(60));

/// How often each thing happened.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

#[derive(Debug)]
pub(crate) struct Judge {
    /// The true time.
    clock: Clock,
    /// Whether what happens is written down: that takes longer than all the rest.
    notes: bool,
    pub(crate) happened: Vec<String>,
    pub(crate) counts: Counts,
    /// The first promise that was broken.
    pub(crate) broken: Option<String>,
    leases: HashMap<(Kind, u64), Terms>,
    /// The version that is stored, and the number of its text.
    stored: HashMap<Kind, (u64, usize)>,
    pages: HashMap<Kind, Page>,
    emptied: bool,
    /// The day's calls may be used up.
    pub(crate) scarce: bool,
    /// Replicas that live and have seen something of a credential.
    knowing: HashSet<(Kind, usize)>,
    /// Requests on their way.
    under_way: HashMap<Kind, u32>,
    /// Texts asked for while requests were on their way of which nobody knew anything.
    blind: HashSet<String>,
}

/// A lease, and what was done under it.
#[derive(Debug)]
struct Terms {
    end: Duration,
    /// Calls entered in the ledger.
    entered: u32,
    calls: u32,
    /// When it was granted, the store was empty and nobody knew of the requests on their way.
    blind: bool,
}

/// What the ledger must know at least.
#[derive(Debug, Default)]
struct Page {
    day: u64,
    calls: u32,
    exhausted: bool,
}

/// A call to WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Classic,
    Stable { force: bool },
    Ticket,
}

impl Call {
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Classic | Self::Stable { .. } => Kind::AccessToken,
            Self::Ticket => Kind::JsapiTicket,
        }
    }

    /// How many of them a day may see.
    const fn budget(self) -> u32 {
        let policy = match self {
            Self::Classic => Policy::Classic,
            Self::Stable { .. } => Policy::Stable,
            Self::Ticket => Policy::Ticket,
        };
        Budget::of(policy).limit(Use::Reserved)
    }
}

impl Judge {
    pub(crate) fn new(clock: Clock, notes: bool) -> Self {
        Self {
            clock,
            notes,
            happened: Vec::new(),
            counts: Counts::new(),
            broken: None,
            leases: HashMap::new(),
            stored: HashMap::new(),
            pages: HashMap::new(),
            emptied: false,
            scarce: false,
            knowing: HashSet::new(),
            under_way: HashMap::new(),
            blind: HashSet::new(),
        }
    }

    pub(crate) fn note(&mut self, what: impl Display) {
        if self.notes && self.broken.is_none() {
            let at = self.clock.elapsed().as_secs_f64();
            self.happened.push(format!("{at:>9.3} s  {what}"));
        }
    }

    /// Notes and counts it.
    pub(crate) fn happens(&mut self, name: &'static str, what: impl Display) {
        self.count(name);
        self.note(what);
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    pub(crate) fn breaks(&mut self, promise: impl Display) {
        self.note(format_args!("BROKEN: {promise}"));
        self.broken.get_or_insert_with(|| promise.to_string());
    }

    pub(crate) fn emptied(&mut self) {
        self.stored.clear();
        self.pages.clear();
        self.emptied = true;
        self.happens("emptied store", "the store is emptied");
    }

    /// What WeChat answered is written.
    pub(crate) fn written(&mut self, kind: Kind, lease: Lease, text: &str) {
        let terms = self.leases.get(&(kind, lease.fence));
        if terms.is_some_and(|terms| terms.blind) {
            self.count("written blindly");
            self.blind.insert(text.to_owned());
        }
    }

    pub(crate) fn stored(&mut self, kind: Kind, credential: &Credential, wechat: &WeChat) {
        let text = wechat.text(credential.secret.expose_secret());
        let stored = (credential.version, text.map_or(0, |text| text.number));
        let before = self.stored.insert(kind, stored).unwrap_or_default();
        if stored.0 < before.0 {
            self.breaks("the stored version fell");
        }
        if stored.1 < before.1 && !self.emptied {
            self.breaks("an older text replaced the stored one");
        }
    }

    /// The replica has seen something of the credential.
    pub(crate) fn knows(&mut self, replica: usize, kind: Kind) {
        self.knowing.insert((kind, replica));
    }

    /// It has not any more.
    pub(crate) fn crashed(&mut self, replica: usize) {
        self.knowing.retain(|(_, knowing)| *knowing != replica);
    }

    pub(crate) fn departs(&mut self, kind: Kind) {
        *self.under_way.entry(kind).or_default() += 1;
    }

    pub(crate) fn arrives(&mut self, kind: Kind) {
        *self.under_way.entry(kind).or_default() -= 1;
    }

    /// `unknown`: the store knew nothing of the credential.
    pub(crate) fn granted(&mut self, kind: Kind, lease: Lease, unknown: bool) {
        let nobody = !self.knowing.iter().any(|(known, _)| *known == kind);
        let under_way = self.under_way.get(&kind).is_some_and(|count| *count > 0);
        let terms = Terms {
            end: self.clock.elapsed() + LEASE,
            entered: 0,
            calls: 0,
            blind: unknown && nobody && under_way,
        };
        if self.leases.insert((kind, lease.fence), terms).is_some() && !self.emptied {
            self.breaks("a fence was granted twice");
        }
        self.count(if lease.takeover { "takeover" } else { "lease" });
    }

    pub(crate) fn entered(&mut self, kind: Kind, lease: Lease, ledger: Ledger) {
        if let Some(terms) = self.leases.get_mut(&(kind, lease.fence)) {
            terms.entered += 1;
        }
        let page = self.pages.entry(kind).or_default();
        if page.day != ledger.day {
            *page = Page {
                day: ledger.day,
                ..Page::default()
            };
        }
        page.calls += 1;
        if page.exhausted {
            return self.breaks("a call was allowed after the quota was used up");
        }
        if ledger.calls < page.calls {
            self.breaks("the ledger forgot a call");
        }
    }

    /// The store is told that WeChat's quota is used up on the day of the ledger's page.
    pub(crate) fn exhausted(&mut self, kind: Kind, ledger: Ledger) {
        let page = self.pages.entry(kind).or_default();
        if page.day != ledger.day {
            *page = Page {
                day: ledger.day,
                ..Page::default()
            };
        }
        page.exhausted = true;
    }

    /// A call starts under `lease`, or without one because the store is away.
    pub(crate) fn calls(
        &mut self,
        replica: usize,
        call: Call,
        lease: Option<(Lease, Option<Ledger>)>,
    ) {
        self.knows(replica, call.kind());
        self.count(match call {
            Call::Classic => "classic call",
            Call::Stable { force: false } => "stable call",
            Call::Stable { force: true } => "forced call",
            Call::Ticket => "ticket call",
        });
        self.note(format_args!(
            "replica {replica} calls WeChat: {call:?}, {lease:?}"
        ));
        let Some((lease, ledger)) = lease else {
            if call != (Call::Stable { force: false }) {
                self.breaks("a call that may harm was made without a lease");
            }
            return self.count("call without the store");
        };
        if ledger.is_some_and(|ledger| ledger.calls > call.budget()) {
            self.breaks("a call beyond the day's budget");
        }
        let Some(terms) = self.leases.get_mut(&(call.kind(), lease.fence)) else {
            return self.breaks("a call under a lease that nobody granted");
        };
        terms.calls += 1;
        let late = self.clock.elapsed() >= terms.end;
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
        let Some(known) = wechat.text(text) else {
            return self.breaks("WeChat never issued what is served");
        };
        if self.clock.elapsed() >= known.expires {
            self.breaks(format_args!(
                "replica {replica} served {text}, which is expired"
            ));
        }
        // Nobody is served by a machine that sleeps, so that time does not count. No promise can be made where calls are refused
        // for the rest of the day; nor where a request is on its way of which nobody is left to know, for every replica died
        // and the store was emptied. (Short of refreshing twice whatever is asked for the first time.)
        let since = known.superseded.filter(|_| known.dead.is_some());
        let promised = !self.scarce && !self.blind.contains(text);
        if let Some(since) = since.filter(|_| promised)
            && Instant::now() > since + SUPERSEDED
        {
            let seconds = since.elapsed().as_secs();
            self.breaks(format_args!(
                "replica {replica} served {text}, superseded {seconds} s ago"
            ));
        }
    }
}
