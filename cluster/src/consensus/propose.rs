//! How a proposal finds whoever leads, and what can be said of it afterwards.
//!
//! A proposal is given to Raft once at most. Until it is, it may go from node to node; once it is, there is an answer or nobody
//! knows. A giver that has sealed its partitions unseals them when it hears that certainly nothing will come of its
//! commit, so that word is only said when no node has given it to Raft.

use std::time::Duration;

use chappe_schema::id::NodeUid;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Shared, meter,
    transport::Unasked,
    wire::{Ask, Reply, Request, Say},
};
use crate::{
    control::{Answer, Done, Outcome},
    ownership::Command,
};

/// How long a proposal looks for whoever leads: an election, and a second one.
const SEARCH: Duration = Duration::from_secs(5);

/// Between two looks.
const RETRY: Duration = Duration::from_millis(50);

/// How long an answer may take once Raft has the command. Then it is unknown; it may yet be applied.
pub(super) const ANSWER: Duration = Duration::from_secs(3);

/// The word that whoever proposes is told what came of it, however this node ends.
pub(super) struct Pledge(pub(super) Option<Done>);

impl Pledge {
    pub(super) fn keep(mut self, outcome: Outcome) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Pledge {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Outcome::Unknown);
        }
    }
}

enum Tried {
    Given(Outcome),
    /// No node has given it to Raft.
    NotGiven,
}

impl Shared {
    /// Sees a proposal of this node through.
    pub(super) async fn propose(&self, command: Command) -> Outcome {
        let outcome = self.see_through(command).await;
        meter::proposed(&outcome);
        outcome
    }

    async fn see_through(&self, command: Command) -> Outcome {
        let deadline = Instant::now() + SEARCH;
        loop {
            if let Tried::Given(outcome) = self.try_once(&command).await {
                return outcome;
            }
            if Instant::now() >= deadline {
                return Outcome::Unavailable;
            }
            sleep(RETRY).await;
        }
    }

    async fn try_once(&self, command: &Command) -> Tried {
        match self.leader() {
            None => Tried::NotGiven,
            Some(leader) if leader == self.node => self.give(command.clone()).await,
            Some(leader) => self.send(leader, command.clone()).await,
        }
    }

    /// A proposal of another node: this one gives it to Raft if it leads, and does not send it on.
    pub(super) async fn serve_proposal(&self, command: Command) -> Say {
        match self.give(command).await {
            Tried::NotGiven => Say::NotLeader(self.leader().filter(|leader| *leader != self.node)),
            Tried::Given(Outcome::Answered(answer)) => Say::Answered(answer),
            Tried::Given(_) => Say::Unknown,
        }
    }

    async fn give(&self, command: Command) -> Tried {
        let leads = self.metrics().is_some_and(|metrics| metrics.current_leader == Some(self.node.0));
        if !leads {
            return Tried::NotGiven;
        }
        Tried::Given(self.write(command).await.map_or(Outcome::Unknown, Outcome::Answered))
    }

    /// Gives a command to Raft. Nothing means that nobody knows: also when Raft says that another leads now, as the command may
    /// have been in the log by then, and may be on others'.
    pub(super) async fn write(&self, command: Command) -> Option<Answer> {
        let raft = &self.running.get()?.raft;
        let response = timeout(ANSWER, raft.client_write(command)).await.ok()?.ok()?;
        response.data.0
    }

    async fn send(&self, leader: NodeUid, command: Command) -> Tried {
        let group = self.running.get().map(|running| running.group);
        let asked = self.view.transport.ask(leader, Request { group, ask: Ask::Propose(command) });
        match timeout(ANSWER + Duration::from_secs(1), asked).await {
            Ok(Ok(Reply(Say::Answered(answer)))) => Tried::Given(Outcome::Answered(answer)),
            Ok(Ok(Reply(Say::NotLeader(other)))) => {
                self.view.doubt(leader, other);
                Tried::NotGiven
            }
            Ok(Ok(Reply(Say::Elsewhere)) | Err(Unasked::Unreachable)) => Tried::NotGiven,
            _ => Tried::Given(Outcome::Unknown),
        }
    }
}
