//! A node's shards together, as gateways see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chappe_cluster::link::{GatewayPort, NodePort};
use chappe_schema::{
    error::{Code, Error},
    id::{EntityId, GatewayId, Generation, Millis},
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
    shard::{Alone, Mail, Parts, Report, Settings, Shard, mailbox::Mailbox, shard_of, shard_of_partition},
    store::{self, Store},
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

impl Node {
    /// Starts the shards on the present runtime.
    ///
    /// # Errors
    /// When the store cannot say which announcements are owed.
    pub async fn start(start: Start) -> Result<Arc<Self>, store::Error> {
        let shards = start.config.shards();
        let (tx, rx) = oneshot::channel();
        start.store.announced(Box::new(move |result| {
            // The receiver waits just below.
            let _ = tx.send(result);
        }));
        let owed = rx.await.map_err(|_| store::Error::Unavailable("the store gave no answer".to_owned()))??;
        let mailboxes: Arc<[Mailbox<Mail>]> = (0..shards).map(|_| Mailbox::new()).collect();
        let settings = Settings {
            idle_ms: start.config.idle_after.as_ms(),
            budget_bytes: start.config.entity_memory.as_usize() / shards,
        };
        let dead = Arc::clone(&start.dead);
        let reports: Arc<dyn Fn(Report) + Send + Sync> = Arc::new(move |report| {
            if let Report::Ended(_, why) = report {
                dead(why);
            }
        });
        let mut tasks = JoinSet::new();
        for index in 0..shards {
            let shard = Shard::new(Parts {
                index,
                peers: Arc::clone(&mailboxes),
                store: Arc::clone(&start.store),
                settings: settings.clone(),
                clock: Arc::clone(&start.clock),
                reports: Arc::clone(&reports),
                abroad: Arc::new(Alone),
                unannounced: owed.iter().filter(|entity| shard_of(entity, shards) == index).cloned().collect(),
            });
            tasks.spawn(shard.run());
        }
        let ticked = Arc::clone(&mailboxes);
        let ticker = tokio::spawn(async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                seconds.tick().await;
                for mailbox in ticked.iter() {
                    mailbox.send(Mail::Tick);
                }
            }
        });
        Ok(Arc::new(Self {
            mailboxes,
            generation: start.store.session().generation,
            stopping: AtomicBool::new(false),
            tasks: Mutex::new(Some(Tasks { shards: tasks, ticker })),
        }))
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
            ToNode::Disconnect { .. } | ToNode::Interest { .. } => Vec::new(),
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
        let partition = match &message {
            ToNode::Command(lane, _) | ToNode::Connect(lane, _) | ToNode::AskAccess(lane, _) => lane.partition,
            ToNode::Disconnect { user, .. } => EntityId::User(user.clone()).partition(),
            ToNode::Interest { conversation, .. } => EntityId::Conversation(*conversation).partition(),
        };
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
