//! One replica's process: where it stalls and crashes, and its lines to the store and to WeChat.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use service_kit::Clock;
use token_service::{
    credential::{
        Kind,
        ledger::Ledger,
        store::{LEASE, Lease},
    },
    upstream::Upstream,
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use wechat::{AccessToken, ApiError, AppId, AppSecret, ErrCode, Error, Issued, Ticket, TicketType};

use crate::{
    judge::Call,
    world::{Dice, World, beijing_day},
};

/// A new day begins so long after midnight, since clocks differ.
const SETTLE: Duration = Duration::from_secs(60);
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) replica: usize,
    pub(crate) world: Arc<World>,
    /// Of each credential's own: which of two tasks that wake at once goes first is tokio's to choose, and must change nothing.
    dice: HashMap<Kind, Dice>,
    /// Its own clock, which may be wrong.
    pub(crate) clock: Clock,
    /// Cancelled when it crashes; as with every fault, what else happens at that instant happens.
    pub(crate) crashed: CancellationToken,
    /// It stands still.
    frozen: Mutex<Fault>,
    /// It does not reach the store.
    pub(crate) cut: watch::Sender<Fault>,
    /// It hears no events.
    pub(crate) deaf: watch::Sender<Fault>,
    /// Under which it may call WeChat, and what the ledger said to that.
    pub(crate) leases: Mutex<HashMap<Kind, (Lease, Option<Ledger>)>>,
    /// On which day WeChat told it that the quota is used up.
    told: Mutex<HashMap<Kind, u64>>,
}

/// A fault that begins after an instant, and when it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    after: Instant,
    until: Instant,
}

impl Fault {
    fn of(span: Duration) -> Self {
        let after = Instant::now();
        Self {
            after,
            until: after + span,
        }
    }

    fn lasts(self) -> bool {
        let now = Instant::now();
        self.after < now && now < self.until
    }
}

/// What a reader does with a value besides using it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whim {
    /// Report it, which is a mistake unless it is dead.
    Report,
    /// Have it refreshed, as an operator.
    Refresh { force: bool },
}

impl Process {
    pub(crate) fn new(replica: usize, world: Arc<World>, clock: Clock) -> Self {
        Self {
            replica,
            dice: Kind::ALL.map(|kind| (kind, world.dice.fork())).into(),
            world,
            clock,
            crashed: CancellationToken::new(),
            frozen: Mutex::new(Fault::of(Duration::ZERO)),
            cut: watch::Sender::new(Fault::of(Duration::ZERO)),
            deaf: watch::Sender::new(Fault::of(Duration::ZERO)),
            leases: Mutex::default(),
            told: Mutex::default(),
        }
    }

    pub(crate) fn happens(&self, name: &'static str, what: std::fmt::Arguments<'_>) {
        let replica = self.replica;
        self.world
            .judge()
            .happens(name, format_args!("replica {replica} {what}"));
    }

    pub(crate) fn cut_off(&self, span: Duration) {
        self.happens("cut", format_args!("loses the store for {span:?}"));
        self.cut.send_replace(Fault::of(span));
    }

    fn lasts(&self, fault: Fault) -> bool {
        !self.world.calm.is_cancelled() && fault.lasts()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.lasts(*self.frozen.lock().unwrap())
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.lasts(*self.cut.borrow())
    }

    /// Waits until events come again.
    pub(crate) async fn deafness(&self) {
        loop {
            let faults = [*self.cut.borrow(), *self.deaf.borrow()];
            let Some(fault) = faults.into_iter().find(|fault| self.lasts(*fault)) else {
                return;
            };
            self.world.sleep_until(fault.until).await;
        }
    }

    /// Whether a fault of this probability happens now.
    fn strikes(&self, kind: Kind, fault: bool, probability: f64) -> bool {
        fault && !self.world.calm.is_cancelled() && self.dice[&kind].chance(probability)
    }

    /// What the next reader does.
    pub(crate) fn whim(&self) -> Option<Whim> {
        let dice = &self.world.dice;
        if self.world.calm.is_cancelled() || !dice.chance(0.04) {
            return None;
        }
        Some(*dice.pick(&[
            Whim::Report,
            Whim::Refresh { force: false },
            Whim::Refresh { force: true },
        ]))
    }

    /// Any await of what is done for a credential: where anything may happen to the process.
    pub(crate) async fn pass(&self, kind: Kind) {
        let faults = self.world.faults;
        let span = || self.dice[&kind].span();
        if self.strikes(kind, faults.cuts, 0.02) {
            self.cut_off(span());
        }
        if self.strikes(kind, faults.deafness, 0.02) {
            let span = span();
            self.happens("deafness", format_args!("hears no events for {span:?}"));
            self.deaf.send_replace(Fault::of(span));
        }
        if self.strikes(kind, faults.crashes, 0.01) {
            self.crash().await;
        }
        if self.strikes(kind, faults.stalls, 0.04) {
            self.stall(span()).await;
        }
        while self.is_frozen() {
            let until = self.frozen.lock().unwrap().until;
            self.world.sleep_until(until).await;
        }
    }

    /// Stalls now and then for longer than a lease.
    pub(crate) async fn tarry(&self, kind: Kind) {
        if self.strikes(kind, self.world.faults.stalls, 0.2) {
            self.stall(LEASE + self.dice[&kind].span()).await;
        }
    }

    async fn stall(&self, span: Duration) {
        self.happens("stall", format_args!("stalls for {span:?}"));
        *self.frozen.lock().unwrap() = Fault::of(span);
        self.world.sleep_until(Instant::now() + span).await;
    }

    async fn crash(&self) {
        self.happens("crash", format_args!("crashes"));
        sleep(Duration::from_millis(1)).await;
        self.world.judge().crashed(self.replica);
        self.crashed.cancel();
        pending::<()>().await;
    }

    /// The day by the process's own clock.
    fn day(&self) -> u64 {
        beijing_day(self.clock.now() - SETTLE)
    }

    /// Sends a request to WeChat, which arrives whatever becomes of this process, and awaits its answer.
    async fn call(&self, call: Call, token: Option<String>) -> Result<(String, Duration), Error> {
        let world = &self.world;
        let kind = call.kind();
        let lease = self.leases.lock().unwrap().get(&kind).copied();
        world.judge().calls(self.replica, call, lease);
        if self.told.lock().unwrap().get(&kind) == Some(&self.day()) {
            world
                .judge()
                .breaks("a call of whoever heard that the quota is used up");
        }
        let endpoint = match call {
            Call::Classic => "/cgi-bin/token",
            Call::Stable { .. } => "/cgi-bin/stable_token",
            Call::Ticket => "/cgi-bin/ticket/getticket",
        };
        let usual = |most| Duration::from_millis(1 + self.dice[&kind].below(most));
        let (mut there, mut back) = (usual(100), usual(100));
        let network = world.faults.network;
        if self.strikes(kind, network, 0.03) {
            self.happens("refused call", format_args!("calls from a wrong address"));
            return Err(refused(endpoint, ErrCode::IP_NOT_ALLOWED));
        }
        if self.strikes(kind, network, 0.2) {
            there = self.dice[&kind].span();
        }
        if self.strikes(kind, network, 0.15) {
            back = self.dice[&kind].span();
        }
        let lost = self.strikes(kind, network, 0.05);
        let (tell, answer) = oneshot::channel();
        let request = {
            let (world, crashed) = (Arc::clone(world), self.crashed.clone());
            async move {
                world.travel(there).await;
                world.judge().arrives(kind);
                if lost {
                    world.judge().count("gateway's page");
                    let _ = tell.send(None);
                    return;
                }
                let (now, day) = (world.clock.elapsed(), beijing_day(world.clock.now()));
                let issued = world.wechat().answer(call, token.as_deref(), now, day);
                {
                    let mut judge = world.judge();
                    judge.note(format_args!("WeChat answers {issued:?}"));
                    if there > LEASE {
                        judge.count("late request");
                    }
                    if crashed.is_cancelled() {
                        judge.count("request of the dead");
                    }
                }
                world.travel(back).await;
                // The sender may be gone.
                let _ = tell.send(Some(issued));
            }
        };
        world.judge().departs(kind);
        world.wire.spawn(request);
        if self.strikes(kind, world.faults.crashes, 0.05) {
            self.crash().await;
        }
        let answer = answer.await;
        // Between the answer and its write a stall is worst.
        if self.strikes(kind, world.faults.stalls, 0.1) {
            self.stall(LEASE + self.dice[&kind].span()).await;
        }
        self.pass(kind).await;
        match answer.unwrap() {
            Some(Ok(issued)) => Ok(issued),
            Some(Err(code)) => {
                if code == ErrCode::DAILY_QUOTA {
                    self.told.lock().unwrap().insert(kind, self.day());
                    self.happens("quota used up", format_args!("is told 45009"));
                } else {
                    self.happens("refused ticket", format_args!("is told {code:?}"));
                }
                Err(refused(endpoint, code))
            }
            None => Err(Error::Garbage {
                endpoint,
                status: 502,
                problem: "a gateway's page".to_owned(),
            }),
        }
    }
}

fn refused(endpoint: &'static str, errcode: ErrCode) -> Error {
    Error::Api(ApiError {
        endpoint,
        errcode,
        errmsg: "refused".to_owned(),
        rid: None,
    })
}

fn issued<T>((text, expires_in): (String, Duration), wrap: impl Fn(String) -> T) -> Issued<T> {
    Issued {
        value: wrap(text),
        expires_in,
    }
}

impl Upstream for Process {
    fn access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(async move {
            let answer = self.call(Call::Classic, None).await;
            answer.map(|answer| issued(answer, AccessToken::new))
        })
    }

    fn stable_access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
        force: bool,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(async move {
            let answer = self.call(Call::Stable { force }, None).await;
            answer.map(|answer| issued(answer, AccessToken::new))
        })
    }

    fn ticket<'a>(
        &'a self,
        token: &'a AccessToken,
        _: TicketType,
    ) -> BoxFuture<'a, Result<Issued<Ticket>, Error>> {
        Box::pin(async move {
            let token = token.expose().to_owned();
            let answer = self.call(Call::Ticket, Some(token)).await;
            answer.map(|answer| issued(answer, Ticket::new))
        })
    }
}
