//! The loop that drives a node's part: it sends proposals and keepalives on their way, and while this node leads it does what
//! [`Leader`] and [`Electorate`] decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chappe_schema::id::{Millis, NodeUid, SessionId};
use openraft::ChangeMembers;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Shared,
    meter::Meter,
    propose::Pledge,
    types::Metrics,
    voters::{Electorate, Resident, Seat},
    wire::{Ask, Reply, Request, Say},
};
use crate::{
    control::{Health, leader::Leader},
    ownership::{Command, Founding, Map, Session},
};

/// What the loop hears.
pub(super) enum Event {
    /// This node proposes.
    Propose { command: Command, pledge: Pledge },
    /// A session of this node is alive.
    Keepalive { session: SessionId, minute: u64 },
    /// A session of any node is alive; said to this node because it leads.
    Heard { session: SessionId, minute: u64 },
    /// What SWIM says.
    Health { node: NodeUid, health: Health },
    /// The leader's proposal has an outcome.
    Settled { reign: u64, answered: bool },
    /// The change of voters is made, or is not.
    Voted { reign: u64, deaf: Vec<NodeUid> },
    /// Whoever left for good was released, or was not.
    Released { reign: u64 },
}

/// How often the leader looks whether there is something to do.
const TICK: Duration = Duration::from_millis(100);

/// How often it looks whether the voters are the right ones.
const VOTERS_MS: Millis = 2_000;

/// How long a change of voters may take: a snapshot and the log have to travel.
const CHANGE: Duration = Duration::from_secs(10);

/// How long a node is not asked again to become a voter that did not learn the log.
const DEAF_MS: Millis = 60_000;

/// How long a keepalive may be on its way.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// From an election to its end.
struct Reign {
    number: u64,
    term: u64,
    leader: Leader,
    electorate: Electorate,
    voters_looked_at: Millis,
    voters_change: bool,
    /// Somebody who left for good is being released.
    releases: bool,
    /// Nodes that did not learn the log, and when that was seen.
    deaf: BTreeMap<NodeUid, Millis>,
}

struct Driver {
    shared: Arc<Shared>,
    began: Instant,
    reign: Option<Reign>,
    reigns: u64,
    down: BTreeSet<NodeUid>,
    meter: Meter,
}

pub(super) async fn drive(shared: Arc<Shared>, mut events: mpsc::UnboundedReceiver<Event>) {
    let mut driver =
        Driver { shared, began: Instant::now(), reign: None, reigns: 0, down: BTreeSet::new(), meter: Meter::new() };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // In this order, always: a flood of events does not keep the leader from leading, and a simulation repeats itself.
        tokio::select! {
            biased;
            _ = ticks.tick() => driver.tick(),
            event = events.recv() => match event {
                Some(event) => driver.hear(event),
                None => return,
            },
        }
    }
}

impl Driver {
    fn now(&self) -> Millis {
        self.began.elapsed().as_millis() as Millis
    }

    fn hear(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Propose { command, pledge } => {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move { pledge.keep(shared.propose(command).await) });
            }
            Event::Keepalive { session, minute } => match &mut self.reign {
                Some(reign) => reign.leader.keepalive(session, minute, now),
                None => {
                    tokio::spawn(send_keepalive(Arc::clone(&self.shared), session, minute));
                }
            },
            Event::Heard { session, minute } => {
                if let Some(reign) = &mut self.reign {
                    reign.leader.keepalive(session, minute, now);
                }
            }
            Event::Health { node, health } => {
                match health {
                    Health::Up => self.down.remove(&node),
                    Health::Down => self.down.insert(node),
                };
                if let Some(reign) = &mut self.reign {
                    reign.leader.health(node, health);
                }
            }
            Event::Settled { reign: number, answered } => {
                if let Some(reign) = self.reign.as_mut().filter(|reign| reign.number == number) {
                    reign.leader.settled();
                    // What failed is tried again in a while, lest nothing else be done.
                    if answered {
                        self.tick();
                    }
                }
            }
            Event::Released { reign: number } => {
                if let Some(reign) = self.reign.as_mut().filter(|reign| reign.number == number) {
                    reign.releases = false;
                }
            }
            Event::Voted { reign: number, deaf } => {
                if let Some(reign) = self.reign.as_mut().filter(|reign| reign.number == number) {
                    reign.voters_change = false;
                    reign.deaf.extend(deaf.into_iter().map(|node| (node, now)));
                }
            }
        }
    }

    fn tick(&mut self) {
        let Some(metrics) = self.shared.metrics() else {
            self.reign = None;
            self.shared.reigns.store(false, Ordering::Relaxed);
            return self.meter.show(&self.shared.view.board.map(), None);
        };
        let now = self.now();
        let map = self.shared.view.board.map();
        let leads = self.leads(&metrics);
        if self.reign.as_ref().is_some_and(|reign| !leads || reign.term != metrics.current_term) {
            tracing::info!(event = "reign_ended", term = metrics.current_term);
            self.reign = None;
        }
        if leads && self.reign.is_none() {
            tracing::info!(event = "reign_began", term = metrics.current_term, map = map.version());
            self.reigns += 1;
            self.meter.reign_began();
            self.reign = Some(Reign {
                number: self.reigns,
                term: metrics.current_term,
                leader: Leader::new(self.shared.settings.pace.timing, now, &map, self.down.iter().copied()),
                electorate: Electorate::default(),
                voters_looked_at: now,
                voters_change: false,
                releases: false,
                deaf: BTreeMap::new(),
            });
        }
        self.shared.reigns.store(leads, Ordering::Relaxed);
        self.notice_deafness(&metrics);
        self.meter.show(&map, self.shared.vitals().as_ref());
        self.lead(now, &map);
        self.look_at_voters(now, &map, &metrics);
    }

    /// Whether this node leads, is heard by a majority, and has applied all that was committed before its election.
    fn leads(&self, metrics: &Metrics) -> bool {
        let heard = |ms: u64| ms < self.shared.settings.pace.unheard();
        metrics.state.is_leader()
            && metrics.current_leader == Some(self.shared.node.0)
            && metrics.millis_since_quorum_ack.is_some_and(heard)
            && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == metrics.current_term)
    }

    /// Whether this node leads and nobody answers.
    fn notice_deafness(&self, metrics: &Metrics) {
        let unheard = |ms: u64| ms >= self.shared.settings.pace.unheard();
        let deaf = metrics.state.is_leader() && metrics.millis_since_quorum_ack.is_some_and(unheard);
        if self.shared.deaf.swap(deaf, Ordering::Relaxed) != deaf {
            tracing::info!(event = "leader_deaf", deaf, term = metrics.current_term);
        }
    }

    fn lead(&mut self, now: Millis, map: &Map) {
        let Some(reign) = &mut self.reign else { return };
        let command = if map.cluster().is_some() { reign.leader.next(now, map) } else { founding(&self.shared) };
        let Some(command) = command else { return };
        tracing::info!(event = "leader_proposes", command = name(&command));
        let (shared, number) = (Arc::clone(&self.shared), reign.number);
        tokio::spawn(async move {
            let answer = shared.write(command).await;
            if let Some(refused) = answer.as_ref().and_then(|answer| answer.result.as_ref().err()) {
                tracing::info!(event = "leader_refused", %refused);
            }
            // What is refused would be refused again, until the map is another.
            let answered = answer.is_some_and(|answer| answer.result.is_ok());
            shared.tell(Event::Settled { reign: number, answered });
        });
    }

    fn look_at_voters(&mut self, now: Millis, map: &Map, metrics: &Metrics) {
        let Some(reign) = &mut self.reign else { return };
        let due = now.saturating_sub(reign.voters_looked_at) >= VOTERS_MS;
        // While two sets of voters decide together, the change before is not done yet.
        let joint = metrics.membership_config.membership().get_joint_config().len() > 1;
        if !due || reign.voters_change || joint || map.cluster().is_none() {
            return;
        }
        reign.voters_looked_at = now;
        map.retired().for_each(|(node, _)| reign.electorate.leave(node));
        let membership = metrics.membership_config.membership();
        let seat = |voter: u64| (NodeUid(voter), membership.get_node(&voter).cloned().unwrap_or_default());
        let voters: BTreeMap<NodeUid, Seat> = membership.voter_ids().map(seat).collect();
        reign.deaf.retain(|_, since| now.saturating_sub(*since) < DEAF_MS);
        let resident = |(_, session): (SessionId, &Session)| {
            let seat = Seat { ordinal: session.ordinal, zone: session.zone.clone() };
            let heard = !self.down.contains(&session.node) && !reign.deaf.contains_key(&session.node);
            let up = session.node == self.shared.node || heard;
            (session.node, Resident { seat, up, drain: session.drain })
        };
        let residents = map.sessions().map(resident).collect();
        let Some(next) = reign.electorate.next(now, &voters, &residents) else {
            // The set that stands is committed: nobody is asked any more who is not in it.
            let stands = metrics.membership_config.log_id() <= &metrics.last_applied;
            let left = map.retired().find(|(node, released)| !released && !voters.contains_key(node));
            if let Some((node, _)) = left.filter(|_| stands && !reign.releases) {
                reign.releases = true;
                let (shared, number) = (Arc::clone(&self.shared), reign.number);
                tokio::spawn(async move {
                    shared.write(Command::RetireNode { node, released: true }).await;
                    shared.tell(Event::Released { reign: number });
                });
            }
            return;
        };
        tracing::info!(event = "voters_change", from = ?voters.keys(), to = ?next.keys());
        reign.voters_change = true;
        let (shared, number) = (Arc::clone(&self.shared), reign.number);
        tokio::spawn(async move {
            let changed = change_voters(&shared, &voters, next).await;
            let deaf = changed.err().map_or_else(Vec::new, |(why, deaf)| {
                tracing::warn!(event = "voters_unchanged", why);
                deaf
            });
            shared.tell(Event::Voted { reign: number, deaf });
        });
    }
}

/// The first command of a cluster, from the node that begins it.
fn founding(shared: &Shared) -> Option<Command> {
    let group = shared.running.get()?.group;
    Some(Command::Found(Founding {
        cluster: group.cluster,
        generation: group.generation,
        partitions: shared.settings.partitions,
        version: shared.settings.version,
    }))
}

async fn send_keepalive(shared: Arc<Shared>, session: SessionId, minute: u64) {
    let group = shared.running.get().map(|running| running.group);
    let Some(leader) = shared.leader().filter(|leader| *leader != shared.node) else { return };
    let asked = shared.view.transport.ask(leader, Request { group, ask: Ask::Keepalive { session, minute } });
    if let Ok(Ok(Reply(Say::NotLeader(other)))) = timeout(KEEPALIVE, asked).await {
        shared.view.doubt(leader, other);
    }
}

/// New voters are learners first, until they have what the leader has; then the set is changed in one joint step, and who is
/// not in it any more is forgotten. Returns the nodes that did not learn: a vote is given to nobody who was not heard.
async fn change_voters(
    shared: &Shared,
    voters: &BTreeMap<NodeUid, Seat>,
    next: BTreeMap<NodeUid, Seat>,
) -> Result<(), (String, Vec<NodeUid>)> {
    let Some(running) = shared.running.get() else { return Ok(()) };
    let raft = &running.raft;
    let failed = |error: &dyn std::error::Error| (error.to_string(), Vec::new());
    let new: Vec<NodeUid> = next.keys().copied().filter(|node| !voters.contains_key(node)).collect();
    for node in &new {
        let seat = next.get(node).cloned().unwrap_or_default();
        // Not waiting: Raft takes a learner for caught up whose distance is small, be it heard or not.
        let added = timeout(CHANGE, raft.add_learner(node.0, seat, false)).await;
        added.map_err(|late| failed(&late))?.map_err(|error| failed(&error))?;
    }
    let goal = raft.metrics().borrow().last_log_index.unwrap_or_default();
    let deaf = learned(shared, &new, goal).await;
    if !deaf.is_empty() {
        let forget = ChangeMembers::RemoveNodes(deaf.iter().map(|node| node.0).collect());
        let forgotten = timeout(CHANGE, raft.change_membership(forget, false)).await;
        forgotten.map_err(|late| failed(&late))?.map_err(|error| failed(&error))?;
        return Err((format!("{deaf:?} did not learn the log"), deaf));
    }
    let set = ChangeMembers::ReplaceAllVoters(next.keys().map(|node| node.0).collect());
    let changed = timeout(CHANGE, raft.change_membership(set, false)).await;
    changed.map_err(|late| failed(&late))?.map_err(|error| failed(&error))?;
    Ok(())
}

/// Waits until these learners have the log up to `goal`; those that have not when time is up.
async fn learned(shared: &Shared, new: &[NodeUid], goal: u64) -> Vec<NodeUid> {
    let until = Instant::now() + CHANGE;
    loop {
        let replication = shared.metrics().and_then(|metrics| metrics.replication).unwrap_or_default();
        let has = |node: &NodeUid| replication.get(&node.0).copied().flatten().is_some_and(|last| last.index >= goal);
        let deaf: Vec<NodeUid> = new.iter().copied().filter(|node| !has(node)).collect();
        if deaf.is_empty() || Instant::now() >= until {
            return deaf;
        }
        sleep(TICK).await;
    }
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Found(_) => "found",
        Command::RegisterSession(_) => "register_session",
        Command::ExpireAndAssign { .. } => "expire_and_assign",
        Command::PlanMoves { .. } => "plan_moves",
        Command::CommitMoves { .. } => "commit_moves",
        Command::AbortMoves { .. } => "abort_moves",
        Command::SetDrain { .. } => "set_drain",
        Command::SplitPartitions { .. } => "split_partitions",
        Command::MarkFenced { .. } => "mark_fenced",
        Command::SetClusterVersion { .. } => "set_cluster_version",
        Command::RetireNode { .. } => "retire_node",
    }
}
