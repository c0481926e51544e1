//! What can go wrong, by name; which of it is possible where, and how it is done and undone.

use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    clock::Clock,
    dice::Dice,
    hunger::{Hunger, NoFiles, Stopped},
    relay::Way,
    stage::{Many, One, Stage},
    trace::{self, SYNCS, Trace},
    volume::Volume,
};
use crate::local::{Signal, Which};

/// What a fault is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// One server without any other.
    One,
    /// Nodes and gateways as processes on this machine, over a CQL server.
    Cluster,
    /// The same, each on a host of its own in a network; needs root and `ip`.
    Network,
    /// A cluster over three CQL servers, each of which has a copy of every row.
    Replicas,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A server, or the owner of a conversation, is killed (SIGKILL) and comes back after a while.
    Kill,
    /// Raft's leader is killed.
    KillLeader,
    /// A gateway is killed.
    KillGateway,
    /// All nodes are killed at once.
    KillAll,
    /// A server, or an owner, stands still (SIGSTOP) and goes on.
    Pause,
    /// Raft's leader stands still.
    PauseLeader,
    /// A gateway stands still.
    PauseGateway,
    /// All nodes but one stand still.
    PauseMajority,
    /// A server, or an owner, is asked to end (SIGTERM), and comes back.
    Restart,
    /// A gateway is asked to end, and comes back.
    RestartGateway,
    /// An owner gives away what it owns, and takes its share again.
    Drain,
    /// A server's, or a node's, wall clock is wrong by an hour.
    Clock,
    /// Every sync of the disk takes 200 ms longer.
    SlowSync,
    /// A sync of the disk fails; the server ends, and comes back.
    FailedSync,
    /// The disk has no byte left.
    DiskFull,
    /// A server may open no more files.
    NoFiles,
    /// A server, or an owner, gets a tenth of a CPU.
    Hunger,
    /// One of three CQL servers stands still: nobody is to notice.
    PauseReplica,
    /// Two of three CQL servers stand still: nothing is acknowledged.
    PauseReplicas,
    /// The CQL server hears nothing and says nothing.
    StoreHangs,
    /// The CQL server is gone.
    StoreGone,
    /// An owner sees nobody and nothing.
    CutOff,
    /// An owner sees gateways and the store, and no node.
    CutFromNodes,
    /// Nothing reaches Raft's leader from nodes and gateways.
    LeaderDeaf,
    /// What Raft's leader says reaches no node and no gateway.
    LeaderMute,
    /// Raft's leader and another node do not see each other.
    Bridge,
    /// A gateway sees no node.
    GatewayAlone,
    /// An owner's ways to all others come and go.
    Flapping,
    /// An owner sees all but the store.
    NoStore,
}

/// How far a clock is wrong.
const WRONG_S: i64 = 3_600;

/// What undoes a fault.
#[derive(Debug)]
pub enum Undo {
    /// Start it again.
    Start(Vec<Which>),
    /// Let it go on.
    Continue(Vec<Which>),
    /// Set its clock right.
    Clock(Which),
    /// Let it take its share again.
    Undrain(usize),
    /// Stop what holds up its syncs.
    Trace(Trace),
    /// Give it its store back.
    Store,
    /// Give the disk its space back; it may have ended over it.
    Space,
    /// Let it open files again; it may have ended over it.
    Files(NoFiles),
    /// Let them go on.
    Replicas(Stopped),
    /// Let it run again.
    Hunger(Hunger),
    /// Mend all ways.
    Ways,
}

impl Fault {
    /// All of them.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What happens, in a sentence.
    #[must_use]
    pub fn sentence(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Whether it makes sense there.
    #[must_use]
    pub fn is_of(self, setting: Setting) -> bool {
        match self {
            Self::Kill | Self::Pause | Self::Restart | Self::Hunger => true,
            // A clock is set by a library that programs in other network namespaces read as well; one setting is enough.
            Self::Clock => setting != Setting::Network,
            Self::SlowSync | Self::FailedSync | Self::DiskFull | Self::NoFiles => setting == Setting::One,
            Self::KillLeader
            | Self::KillGateway
            | Self::KillAll
            | Self::PauseLeader
            | Self::PauseGateway
            | Self::PauseMajority
            | Self::RestartGateway
            | Self::Drain => setting != Setting::One,
            Self::StoreHangs | Self::StoreGone => matches!(setting, Setting::Cluster | Setting::Network),
            Self::PauseReplica | Self::PauseReplicas => setting == Setting::Replicas,
            Self::CutOff
            | Self::CutFromNodes
            | Self::LeaderDeaf
            | Self::LeaderMute
            | Self::Bridge
            | Self::GatewayAlone
            | Self::Flapping
            | Self::NoStore => setting == Setting::Network,
        }
    }

    /// Whether somebody may take over meanwhile, or begin anew, who does not know what was only in memory (receipts, for a while).
    #[must_use]
    pub fn forgets(self, setting: Setting) -> bool {
        match self {
            Self::PauseReplica | Self::SlowSync => false,
            // Who stands still, or sees another time, knows everything afterwards; in a cluster another one may have taken over.
            Self::Pause | Self::Hunger | Self::Clock | Self::NoFiles => setting != Setting::One,
            _ => true,
        }
    }

    /// Whether this machine can make it.
    ///
    /// # Errors
    /// With what is missing.
    pub fn available(self) -> Result<(), String> {
        match self {
            Self::Clock => Clock::available(),
            Self::SlowSync | Self::FailedSync => trace::available(),
            Self::DiskFull => Volume::available(),
            _ => Ok(()),
        }
    }

    /// Makes it happen. Returns whom it hit, in words, and what undoes it.
    ///
    /// # Errors
    /// When it cannot be done.
    pub async fn begin(self, stage: &mut Stage, dice: &mut Dice) -> anyhow::Result<(String, Undo)> {
        match stage {
            Stage::One(one) => self.begin_one(one, dice).await,
            Stage::Many(many) => self.begin_many(many, dice).await,
        }
    }

    async fn begin_one(self, one: &mut One, dice: &mut Dice) -> anyhow::Result<(String, Undo)> {
        const IT: Which = Which::Node(0);
        let undo = match self {
            Self::Kill => {
                one.server.kill().await?;
                Undo::Start(vec![IT])
            }
            Self::Pause => {
                one.server.signal(Signal::STOP)?;
                Undo::Continue(vec![IT])
            }
            Self::Restart => {
                one.server.terminate().await?;
                Undo::Start(vec![IT])
            }
            Self::Clock => {
                let clock = one.clock.as_ref().context("clocks are left alone here")?;
                clock.set(if dice.chance(0.5) { WRONG_S } else { -WRONG_S })?;
                Undo::Clock(IT)
            }
            Self::SlowSync | Self::FailedSync => {
                let how = if self == Self::SlowSync { "delay_enter=200000" } else { "error=EIO" };
                let pid = one.server.pid().context("the server does not run")?;
                let trace = Trace::inject(pid, SYNCS, how, &one.server.data_dir().with_extension("strace"))?;
                if self == Self::SlowSync {
                    Undo::Trace(trace)
                } else {
                    one.server.ended().await.context("a failed sync did not end the server")?;
                    Undo::Start(vec![IT])
                }
            }
            Self::DiskFull => {
                one.volume.as_ref().context("the disk is not ours to fill")?.fill(0)?;
                Undo::Space
            }
            Self::NoFiles => Undo::Files(NoFiles::of(one.server.pid().context("the server does not run")?)?),
            Self::Hunger => Undo::Hunger(Hunger::of(one.server.pid().context("the server does not run")?)?),
            other => anyhow::bail!("{} is not for one server", other.name()),
        };
        Ok(("the server".to_owned(), undo))
    }

    async fn begin_many(self, many: &mut Many, dice: &mut Dice) -> anyhow::Result<(String, Undo)> {
        let (nodes, gateways) = (many.nodes(), many.gateways());
        let gateway = dice.below(gateways as u64) as usize;
        let owner = async |many: &Many, dice: &mut Dice| many.owner(dice).await.map(Which::Node);
        let leader = async |many: &Many| many.leader().await.map(Which::Node);
        let mut hit: Vec<Which> = match self {
            Self::Kill | Self::Pause | Self::Restart | Self::Drain | Self::Clock | Self::Hunger => {
                vec![owner(many, dice).await?]
            }
            Self::CutOff | Self::CutFromNodes | Self::Flapping | Self::NoStore => vec![owner(many, dice).await?],
            Self::KillLeader | Self::PauseLeader | Self::LeaderDeaf | Self::LeaderMute | Self::Bridge => {
                vec![leader(many).await?]
            }
            Self::KillGateway | Self::PauseGateway | Self::RestartGateway | Self::GatewayAlone => {
                vec![Which::Gateway(gateway)]
            }
            Self::KillAll => (0..nodes).map(Which::Node).collect(),
            Self::PauseMajority => {
                let spared = dice.below(nodes as u64) as usize;
                (0..nodes).filter(|node| *node != spared).map(Which::Node).collect()
            }
            Self::StoreHangs | Self::StoreGone | Self::PauseReplica | Self::PauseReplicas => Vec::new(),
            Self::SlowSync | Self::FailedSync | Self::DiskFull | Self::NoFiles => {
                anyhow::bail!("{} is for one server", self.name())
            }
        };
        // During another fault some may be gone already.
        let is_of_store = hit.is_empty();
        hit.retain(|which| many.cluster.pid(*which).is_some());
        anyhow::ensure!(is_of_store || !hit.is_empty(), "nobody is there whom it could hit");
        let words = match &hit[..] {
            [] => "the store".to_owned(),
            some => some.iter().map(|which| many.name(*which)).collect::<Vec<_>>().join(", "),
        };
        let undo = match self {
            Self::Kill | Self::KillLeader | Self::KillGateway | Self::KillAll => {
                for which in &hit {
                    many.cluster.signal(*which, Signal::KILL)?;
                }
                for which in &hit {
                    many.cluster.ended(*which).await?;
                }
                Undo::Start(hit)
            }
            Self::Pause | Self::PauseLeader | Self::PauseGateway | Self::PauseMajority => {
                for which in &hit {
                    many.cluster.signal(*which, Signal::STOP)?;
                }
                Undo::Continue(hit)
            }
            Self::Restart | Self::RestartGateway => {
                for which in &hit {
                    many.cluster.signal(*which, Signal::TERM)?;
                    many.cluster.ended(*which).await?;
                }
                Undo::Start(hit)
            }
            Self::Drain => {
                let Which::Node(node) = hit[0] else { anyhow::bail!("a gateway owns nothing") };
                many.cluster.set_drain(node, true).await?;
                Undo::Undrain(node)
            }
            Self::Clock => {
                many.cluster.set_clock(hit[0], if dice.chance(0.5) { WRONG_S } else { -WRONG_S })?;
                Undo::Clock(hit[0])
            }
            Self::PauseReplica | Self::PauseReplicas => {
                let first = dice.below(many.replicas.len().max(1) as u64) as usize;
                let count = if self == Self::PauseReplica { 1 } else { 2 };
                anyhow::ensure!(
                    many.replicas.len() > count,
                    "three CQL servers' processes are to be named (--cql3-pids)"
                );
                let hit = many.replicas.iter().cycle().skip(first).take(count);
                Undo::Replicas(Stopped::all(hit.copied())?)
            }
            Self::Hunger => Undo::Hunger(Hunger::of(many.cluster.pid(hit[0]).context("it does not run")?)?),
            Self::StoreHangs | Self::StoreGone => {
                many.cluster.set_store(if self == Self::StoreHangs { Way::Hangs } else { Way::Gone })?;
                Undo::Store
            }
            _ => {
                self.cut(many, hit[0]).await?;
                Undo::Ways
            }
        };
        Ok((words, undo))
    }

    /// Cuts ways of one process.
    async fn cut(self, many: &Many, which: Which) -> anyhow::Result<()> {
        let network = many.network()?;
        let it = [many.cluster.address(which)];
        let nodes: Vec<_> = many.addresses(true, which);
        let around = [nodes.clone(), many.addresses(false, which)].concat();
        let store = [many.store_address()?];
        match self {
            Self::CutOff => network.part(&it, &[&around[..], &store].concat())?,
            Self::CutFromNodes | Self::GatewayAlone => network.part(&it, &nodes)?,
            Self::LeaderDeaf => network.cut(&around, &it)?,
            Self::LeaderMute => network.cut(&it, &around)?,
            Self::Bridge => network.part(&it, &nodes[..1])?,
            Self::NoStore => network.part(&it, &store)?,
            Self::Flapping => {
                for pause in [250, 250, 250, 250, 1_500, 250] {
                    network.part(&it, &around)?;
                    sleep(Duration::from_millis(pause)).await;
                    network.heal()?;
                    sleep(Duration::from_millis(pause)).await;
                }
            }
            other => anyhow::bail!("{} cuts nothing", other.name()),
        }
        Ok(())
    }
}

impl Undo {
    /// Undoes it.
    ///
    /// # Errors
    /// When a process does not come back, with its last words.
    pub async fn undo(self, stage: &mut Stage) -> anyhow::Result<()> {
        match (self, stage) {
            // Whom it held up may have been killed meanwhile.
            (Self::Trace(trace), _) => drop(trace.detach()),
            (Self::Hunger(hunger), _) => drop(hunger),
            (Self::Replicas(stopped), _) => drop(stopped),
            (Self::Space, Stage::One(one)) => {
                one.volume.as_ref().context("there is no disk of ours")?.empty()?;
                revive(one).await?;
            }
            (Self::Files(files), Stage::One(one)) => {
                drop(files);
                revive(one).await?;
            }
            (Self::Start(_), Stage::One(one)) => one.server.restart().await?,
            (Self::Continue(_), Stage::One(one)) => one.server.signal(Signal::CONT)?,
            (Self::Clock(_), Stage::One(one)) => {
                one.clock.as_ref().context("clocks are left alone here")?.set(0)?;
            }
            (Self::Start(all), Stage::Many(many)) => {
                // Side by side: a majority of them may be needed before one is ready.
                many.cluster.restart_all(&all).await?;
            }
            (Self::Continue(all), Stage::Many(many)) => {
                for which in all {
                    many.cluster.signal(which, Signal::CONT)?;
                }
            }
            (Self::Clock(which), Stage::Many(many)) => many.cluster.set_clock(which, 0)?,
            (Self::Undrain(node), Stage::Many(many)) => many.cluster.set_drain(node, false).await?,
            (Self::Store, Stage::Many(many)) => many.cluster.set_store(Way::Open)?,
            (Self::Ways, Stage::Many(many)) => many.network()?.heal()?,
            (undo, _) => anyhow::bail!("{undo:?} is for something else"),
        }
        Ok(())
    }
}

/// Starts a server again that has ended over a fault, or is about to.
async fn revive(one: &mut One) -> anyhow::Result<()> {
    sleep(Duration::from_millis(500)).await;
    if one.server.has_ended()? {
        one.server.restart().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_a_sentence_and_a_place() {
        for fault in Fault::all() {
            assert!(!fault.name().is_empty() && fault.sentence().len() > 10, "{fault:?}");
            assert!(Setting::value_variants().iter().any(|setting| fault.is_of(*setting)), "{fault:?}");
        }
    }
}
