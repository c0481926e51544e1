//! A node's shards together, as gateways see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chappe_cluster::{
    control::{ControlPlane, KEEPALIVE_MS},
    link::{GatewayPort, NodePort},
    process::config::Period,
};
use chappe_schema::{
    error::{Code, Error},
    id::{GatewayId, Generation, Millis, SessionId},
    limit::SHARD_QUEUE_MAX,
    wire::{ToGateway, ToNode},
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};

use crate::{
    config::Config,
    session::tenant::{Heard, Tenant, Whereabouts},
    shard::{Abroad, Alone, Mail, Parts, Report, Settings, Shard, mailbox::Mailbox, shard_of, shard_of_partition},
    store::{self, Shared, Store, nothing::Nothing},
};

pub use crate::session::{
    Introduction,
    tenant::{Between, Out},
};

/// The wall clock, in milliseconds since the Unix epoch.
#[must_use]
pub fn wall_clock() -> Millis {
    // A clock before 1970 is as good as one at 1970: stamps never fall along a log.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// A running node.
pub struct Node {
    mailboxes: Arc<[Mailbox<Mail>]>,
    /// What the sessions are told, where there are any.
    heard: Option<Mailbox<Heard>>,
    generation: Generation,
    stopping: AtomicBool,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    shards: JoinSet<()>,
    ticker: JoinHandle<()>,
}

/// What a node is started with.
pub struct Start {
    /// What can be set.
    pub config: Config,
    /// The log.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    /// Called with a sentence when the session is over for good: nothing can be acknowledged any more.
    pub dead: Arc<dyn Fn(String) + Send + Sync>,
}

/// What a node of a cluster is started with.
pub struct Join {
    /// What can be set.
    pub config: Config,
    /// Who this node is to the others.
    pub me: Introduction,
    /// The log that all share.
    pub shared: Arc<dyn Shared>,
    /// Identity of its history.
    pub generation: Generation,
    /// What the cluster decides.
    pub plane: Arc<dyn ControlPlane>,
    /// The ways to other nodes.
    pub peers: Arc<dyn Peers>,
    /// The time.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    /// Called with a sentence when this node must not go on: the store keeps another history than it serves.
    pub refused: Arc<dyn Fn(String) + Send + Sync>,
}

/// The ways to other nodes. What is sent may be lost.
pub trait Peers: Send + Sync + 'static {
    /// Sends to the node that lives this session.
    fn send(&self, to: SessionId, word: Between);
}

/// How often the sessions look at the time.
const LOOK: Duration = Duration::from_millis(100);

/// The sessions' task: hands on what is heard, as long as the node lives.
async fn live(
    mut tenant: Tenant,
    (home, heard): (Arc<Whereabouts>, Mailbox<Heard>),
    plane: Arc<dyn ControlPlane>,
    peers: Arc<dyn Peers>,
    clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    refused: Arc<dyn Fn(String) + Send + Sync>,
) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = 0;
    loop {
        tokio::select! {
            () = heard.filled() => {}
            () = home.leaving() => {}
            _ = looks.tick() => {}
        }
        let now = clock();
        for out in tenant.step(now) {
            match out {
                Out::Propose(command) => {
                    let (heard, asked) = (heard.clone(), command.clone());
                    plane.propose(command, Box::new(move |outcome| heard.send(Heard::Answered(asked, outcome))));
                }
                Out::Peer(to, word) => peers.send(to, word),
                Out::Refused(why) => refused(why),
            }
        }
        if let Some((session, minute)) = tenant.alive()
            && now.abs_diff(said) >= KEEPALIVE_MS
        {
            said = now;
            plane.keepalive(session, minute);
        }
    }
}

async fn tick(mailboxes: Arc<[Mailbox<Mail>]>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        for mailbox in mailboxes.iter() {
            mailbox.send(Mail::Tick);
        }
    }
}

/// The shards of a node that is being started.
struct Loops {
    mailboxes: Arc<[Mailbox<Mail>]>,
    settings: Settings,
    tasks: JoinSet<()>,
}

impl Loops {
    fn new(config: &Config) -> Self {
        let shards = config.shards();
        let settings = Settings {
            idle_ms: config.idle_after.as_ms(),
            budget_bytes: config.entity_memory.as_usize() / shards,
            retention_ms: (config.retention > Period::ZERO).then(|| config.retention.as_ms()),
        };
        Self { mailboxes: (0..shards).map(|_| Mailbox::new()).collect(), settings, tasks: JoinSet::new() }
    }

    /// Starts a shard for every mailbox, of the parts that are made for it.
    fn run(&mut self, make: impl Fn(usize, Arc<[Mailbox<Mail>]>, Settings) -> Parts) {
        for index in 0..self.mailboxes.len() {
            let shard = Shard::new(make(index, Arc::clone(&self.mailboxes), self.settings.clone()));
            self.tasks.spawn(shard.run());
        }
    }

    fn into_node(self, generation: Generation, heard: Option<Mailbox<Heard>>) -> Arc<Node> {
        let Self { mailboxes, tasks: shards, .. } = self;
        let ticker = tokio::spawn(tick(Arc::clone(&mailboxes)));
        let tasks = Mutex::new(Some(Tasks { shards, ticker }));
        Arc::new(Node { mailboxes, heard, generation, stopping: AtomicBool::new(false), tasks })
    }
}

impl Node {
    /// Starts the shards on the present runtime.
    ///
    /// # Errors
    /// When the store cannot say which announcements are owed.
    pub async fn start(start: Start) -> Result<Arc<Self>, store::Error> {
        let (tx, rx) = oneshot::channel();
        start.store.announced(Box::new(move |result| {
            // The receiver waits just below.
            let _ = tx.send(result);
        }));
        let owed = rx.await.map_err(|_| store::Error::Unavailable("the store gave no answer".to_owned()))??;
        let dead = Arc::clone(&start.dead);
        let reports: Arc<dyn Fn(Report) + Send + Sync> = Arc::new(move |report| {
            if let Report::Ended(_, why) = report {
                dead(why);
            }
        });
        let mut loops = Loops::new(&start.config);
        loops.run(|index, peers, settings| Parts {
            index,
            store: Arc::clone(&start.store),
            settings,
            clock: Arc::clone(&start.clock),
            reports: Arc::clone(&reports),
            abroad: Arc::new(Alone),
            unannounced: owed.iter().filter(|entity| shard_of(entity, peers.len()) == index).cloned().collect(),
            peers,
        });
        Ok(loops.into_node(start.store.session().generation, None))
    }

    /// Starts the shards and the sessions of a node that shares its log with others.
    #[must_use]
    pub fn join(join: Join) -> Arc<Self> {
        let (home, heard) = (Arc::new(Whereabouts::default()), Mailbox::new());
        let mut loops = Loops::new(&join.config);
        loops.run(|index, peers, settings| {
            let reports = heard.clone();
            Parts {
                index,
                peers,
                store: Arc::new(Nothing::default()),
                settings,
                clock: Arc::clone(&join.clock),
                reports: Arc::new(move |report| reports.send(Heard::Report(report))),
                abroad: Arc::clone(&home) as Arc<dyn Abroad>,
                unannounced: Vec::new(),
            }
        });
        let mailboxes = Arc::clone(&loops.mailboxes);
        let tenant = Tenant::new(join.me, mailboxes, join.shared, join.generation, Arc::clone(&home), heard.clone());
        let seen = heard.clone();
        join.plane.watch(Box::new(move |map| seen.send(Heard::Map(map.clone()))));
        loops.tasks.spawn(live(tenant, (home, heard.clone()), join.plane, join.peers, join.clock, join.refused));
        loops.into_node(join.generation, Some(heard))
    }

    /// Something from another node.
    pub fn hear(&self, word: Between) {
        if let Some(heard) = &self.heard {
            heard.send(Heard::Word(word));
        }
    }

    /// The way to the node that lives this session was broken: what was on it is lost. To be said when the way is there
    /// again.
    pub fn peer_lost(&self, session: SessionId) {
        if let Some(heard) = &self.heard {
            heard.send(Heard::Lost(session));
        }
    }

    /// Refuses new commands, flushes what only memory knows, and ends the shards. What was acknowledged was durable
    /// before; this only makes the next start cheaper.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let Some(mut tasks) = self.tasks.lock().take() else { return };
        tasks.ticker.abort();
        let mut flushed = Vec::new();
        for mailbox in self.mailboxes.iter() {
            let (tx, rx) = oneshot::channel();
            mailbox.send(Mail::Stop(tx));
            flushed.push(rx);
        }
        for one in flushed {
            // A shard that is gone has nothing to flush.
            let _ = one.await;
        }
        if self.heard.is_some() {
            // The sessions' task has no end of its own.
            tasks.shards.abort_all();
        }
        while tasks.shards.join_next().await.is_some() {}
    }

    /// Resolves when a shard has ended by itself: it has panicked, and the process must not go on without it.
    pub async fn failed(&self) {
        loop {
            {
                let mut tasks = self.tasks.lock();
                if let Some(tasks) = tasks.as_mut()
                    && !self.stopping.load(Ordering::Relaxed)
                    && tasks.shards.try_join_next().is_some()
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What is answered in place of a shard; what wants no answer gets none.
    fn refusal(message: &ToNode, error: Error) -> Vec<ToGateway> {
        match message {
            ToNode::Command(_, asked) => vec![ToGateway::Reply(asked.correlation, Err(error))],
            ToNode::Connect(_, connecting) => vec![ToGateway::Connected(connecting.correlation, Err(error))],
            ToNode::AskAccess(_, asked) => vec![ToGateway::Access(asked.correlation, Err(error))],
            ToNode::Disconnect { .. } | ToNode::Attend { .. } | ToNode::Interest { .. } => Vec::new(),
        }
    }
}

impl NodePort for Node {
    fn attach(&self, id: GatewayId, gateway: Arc<dyn GatewayPort>) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Mail::Attach(id, Arc::clone(&gateway)));
        }
    }

    fn detach(&self, id: GatewayId) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Mail::Detach(id));
        }
    }

    fn receive(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway> {
        let partition = message.partition();
        let mailbox = &self.mailboxes[shard_of_partition(partition, self.mailboxes.len())];
        let optional = matches!(message, ToNode::Command(..) | ToNode::Connect(..) | ToNode::AskAccess(..));
        if optional && self.stopping.load(Ordering::Relaxed) {
            return Self::refusal(&message, Error::new(Code::GoingAway).after_ms(1000));
        }
        if optional && mailbox.len() >= SHARD_QUEUE_MAX {
            return Self::refusal(&message, Error::new(Code::Overloaded).after_ms(200));
        }
        mailbox.send(Mail::Gateway(from, message));
        Vec::new()
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}
