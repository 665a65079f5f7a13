//! One replica's process: where it stalls and crashes, and its lines to the store and to WeChat.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use token_service::{credential::store::Lease, upstream::Upstream};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use wechat::{AccessToken, AppId, AppSecret, Error, Issued, Ticket, TicketType};

use crate::{
    judge::Call,
    world::{Dice, World},
};

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) replica: usize,
    pub(crate) world: Arc<World>,
    dice: Dice,
    /// Cancelled when it crashes.
    pub(crate) crashed: CancellationToken,
    /// It stands still until then: a stall or a suspend.
    frozen: Mutex<Instant>,
    /// It does not reach the store until then.
    pub(crate) cut: watch::Sender<Instant>,
    /// Under which it may call WeChat.
    pub(crate) lease: Mutex<Option<Lease>>,
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
    pub(crate) fn new(replica: usize, world: Arc<World>) -> Self {
        Self {
            replica,
            dice: world.dice.fork(),
            world,
            crashed: CancellationToken::new(),
            frozen: Mutex::new(Instant::now()),
            cut: watch::Sender::new(Instant::now()),
            lease: Mutex::default(),
        }
    }

    fn note(&self, what: &str) {
        self.world
            .judge()
            .note(format_args!("replica {} {what}", self.replica));
    }

    pub(crate) fn crash(&self) {
        self.note("crashes");
        self.crashed.cancel();
    }

    pub(crate) fn freeze(&self, span: Duration) {
        self.note(&format!("stalls for {span:?}"));
        *self.frozen.lock().unwrap() = Instant::now() + span;
    }

    pub(crate) fn is_frozen(&self) -> bool {
        !self.world.calm.is_cancelled() && Instant::now() < *self.frozen.lock().unwrap()
    }

    pub(crate) fn cut_off(&self, span: Duration) {
        self.note(&format!("loses the store for {span:?}"));
        self.cut.send_replace(Instant::now() + span);
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        !self.world.calm.is_cancelled() && Instant::now() < *self.cut.borrow()
    }

    /// Whether a fault of this probability happens now.
    fn strikes(&self, kind: bool, probability: f64) -> bool {
        kind && !self.world.calm.is_cancelled() && self.dice.chance(probability)
    }

    /// What the next reader does.
    pub(crate) fn whim(&self) -> Option<Whim> {
        if self.strikes(true, 0.02) {
            return Some(Whim::Report);
        }
        let refresh = self.strikes(true, 0.02);
        refresh.then(|| Whim::Refresh {
            force: self.dice.chance(0.2),
        })
    }

    /// Any await: where anything may happen to the process.
    pub(crate) async fn pass(&self) {
        let faults = self.world.faults;
        if self.strikes(faults.crashes, 0.01) {
            self.crash();
        }
        if self.strikes(faults.stalls, 0.04) {
            self.freeze(self.dice.span());
        }
        if self.strikes(faults.cuts, 0.02) {
            self.cut_off(self.dice.span());
        }
        while self.is_frozen() {
            let until = *self.frozen.lock().unwrap();
            self.world.sleep_until(until).await;
        }
        if self.crashed.is_cancelled() {
            pending::<()>().await;
        }
    }

    /// Sends a request to WeChat, which arrives whatever becomes of this process, and awaits its answer.
    async fn call(&self, call: Call) -> Result<Issued<AccessToken>, Error> {
        let world = &self.world;
        let lease = *self.lease.lock().unwrap();
        world.judge().calls(self.replica, call, lease);
        let usual = |most| Duration::from_millis(1 + self.dice.below(most));
        let (mut there, mut back) = (usual(100), usual(100));
        let network = world.faults.network;
        if self.strikes(network, 0.15) {
            there = self.dice.span();
        }
        if self.strikes(network, 0.1) {
            back = self.dice.span();
        }
        let refused = self.strikes(network, 0.05);
        let (tell, answer) = oneshot::channel();
        let request = {
            let world = Arc::clone(world);
            async move {
                sleep(there).await;
                if refused {
                    let _ = tell.send(None);
                    return;
                }
                let (text, expires_in) = match call {
                    Call::Classic => world.wechat().classic(Instant::now()),
                    Call::Stable { force } => world.wechat().stable(force, Instant::now()),
                };
                world.judge().note(format_args!("WeChat answers {text}"));
                sleep(back).await;
                let issued = Issued {
                    value: AccessToken::new(text),
                    expires_in,
                };
                // The sender may be gone.
                let _ = tell.send(Some(issued));
            }
        };
        world.wire.spawn(request);
        let answer = answer.await;
        self.pass().await;
        answer.unwrap().ok_or(Error::Garbage {
            endpoint: "/cgi-bin/token",
            status: 502,
            problem: "a gateway's page".to_owned(),
        })
    }
}

impl Upstream for Process {
    fn access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(self.call(Call::Classic))
    }

    fn stable_access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
        force: bool,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(self.call(Call::Stable { force }))
    }

    fn ticket<'a>(
        &'a self,
        _: &'a AccessToken,
        _: TicketType,
    ) -> BoxFuture<'a, Result<Issued<Ticket>, Error>> {
        unreachable!("nobody asks for tickets here")
    }
}
