//! A node that is driven by hand: the production shards and sessions, without tasks, threads, sockets or a clock of their
//! own. For simulators, which decide what arrives when.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use chappe_cluster::{
    control::Outcome,
    link::GatewayPort,
    ownership::{Command, Map},
};
use chappe_schema::{
    id::{GatewayId, Generation, SessionId},
    wire::{ToGateway, ToNode},
};

pub use crate::session::{
    Introduction,
    tenant::{Between, Out},
};
use crate::{
    session::tenant::{Heard, Tenant, Whereabouts},
    shard::supervision::fault::{self, Moment},
    shard::{Abroad, Mail, Parts, Settings, Shard, mailbox::Mailbox, shard_of_partition},
    store::{Shared, nothing::Nothing},
};

/// Two shards: news and questions between them take the same ways as on a machine.
const SHARDS: usize = 2;

/// A node, turn by turn.
pub struct Stepped {
    shards: Vec<Shard>,
    mailboxes: Arc<[Mailbox<Mail>]>,
    tenant: Tenant,
    heard: Mailbox<Heard>,
    now: Arc<AtomicU64>,
    outbox: Vec<Out>,
}

impl Stepped {
    /// A node that has just started; `now` is its clock, `budget_bytes` what its entities may take per shard.
    pub fn new(
        me: Introduction,
        shared: Arc<dyn Shared>,
        generation: Generation,
        now: Arc<AtomicU64>,
        budget_bytes: usize,
    ) -> Self {
        let mailboxes: Arc<[Mailbox<Mail>]> = (0..SHARDS).map(|_| Mailbox::new()).collect();
        let (home, heard) = (Arc::new(Whereabouts::default()), Mailbox::new());
        let shards = (0..SHARDS)
            .map(|index| {
                let (clock, reports) = (Arc::clone(&now), heard.clone());
                let mut shard = Shard::new(Parts {
                    index,
                    peers: Arc::clone(&mailboxes),
                    store: Arc::new(Nothing::default()),
                    settings: Settings { idle_ms: 5_000, budget_bytes, retention_ms: None },
                    clock: Arc::new(move || clock.load(Ordering::Relaxed)),
                    reports: Arc::new(move |report| reports.send(Heard::Report(report))),
                    abroad: Arc::clone(&home) as Arc<dyn Abroad>,
                    unannounced: Vec::new(),
                });
                shard.warm_up();
                shard
            })
            .collect();
        let tenant = Tenant::new(me, Arc::clone(&mailboxes), shared, generation, home, heard.clone());
        Self { shards, mailboxes, tenant, heard, now, outbox: Vec::new() }
    }

    /// A gateway's link is there.
    pub fn attach(&self, id: GatewayId, gateway: &Arc<dyn GatewayPort>) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Mail::Attach(id, Arc::clone(gateway)));
        }
    }

    /// A gateway's link is gone.
    pub fn detach(&self, id: GatewayId) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Mail::Detach(id));
        }
    }

    /// A message from a gateway.
    pub fn receive(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway> {
        let partition = message.partition();
        self.mailboxes[shard_of_partition(partition, SHARDS)].send(Mail::Gateway(from, message));
        Vec::new()
    }

    /// Something from another node.
    pub fn hear(&self, word: Between) {
        self.heard.send(Heard::Word(word));
    }

    /// The way to another node was broken, and is there again.
    pub fn peer_lost(&self, session: SessionId) {
        self.heard.send(Heard::Lost(session));
    }

    /// The control plane shows a newer map.
    pub fn map_changed(&self, map: Map) {
        self.heard.send(Heard::Map(map));
    }

    /// The cluster has answered a proposal.
    pub fn answered(&self, command: Command, outcome: Outcome) {
        self.heard.send(Heard::Answered(command, outcome));
    }

    /// A second has passed.
    pub fn second(&self) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Mail::Tick);
        }
    }

    /// Lets everything that waits take its turn, until nothing does.
    pub fn run(&mut self) {
        let mut mail = Vec::new();
        loop {
            let mut idle = true;
            for (shard, mailbox) in self.shards.iter_mut().zip(self.mailboxes.iter()) {
                mailbox.take_more(&mut mail);
                if !mail.is_empty() {
                    idle = false;
                    shard.turn(&mut mail);
                }
            }
            idle &= self.heard.len() == 0;
            let out = self.tenant.step(self.now.load(Ordering::Relaxed));
            self.outbox.extend(out);
            if idle && self.is_idle() {
                break;
            }
        }
    }

    /// The handling of some entity panics, after so many others, before it has begun or when it is done. Of this thread's
    /// nodes whichever comes to it first.
    pub fn stumble(passes: usize, before: bool) {
        fault::plant(passes, if before { Moment::Before } else { Moment::After });
    }

    /// Nothing panics any more that was to and has not; whether there was such a thing.
    pub fn steady() -> bool {
        fault::dig_up()
    }

    /// Whether nothing waits for its turn.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.heard.len() == 0 && self.mailboxes.iter().all(|mailbox| mailbox.len() == 0)
    }

    /// What is wanted beyond the node.
    pub fn take_out(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.outbox)
    }

    /// The present session and its minute, to be said to the control plane.
    #[must_use]
    pub fn alive(&self) -> Option<(SessionId, u64)> {
        self.tenant.alive()
    }
}
