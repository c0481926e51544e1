//! Log-outs and bans: judged by the user's state, durable like everything else, then told to every gateway.

use std::sync::Arc;

use chappe_schema::{
    access::Access,
    error::{Code, Error},
    event::Event,
    id::{ConnectionSlot, GatewayId, UserId},
    wire::{Asked, AskedAccess, Correlation, ToGateway},
};

use super::{InHand, Phase, Shard, Slot, UserRelease, users::Parked};
use crate::user::{Client, Connection, User};

/// A log-out, or a change of a ban, that waits for its commit.
#[derive(Debug)]
pub(super) struct Change {
    user: UserId,
    event: Arc<Event>,
    /// What stands after it.
    access: Arc<Access>,
}

impl Change {
    pub(super) const fn user(&self) -> &UserId {
        &self.user
    }
}

impl Shard {
    /// A gateway asks what stands against a user.
    pub(super) fn ask_access(&mut self, from: GatewayId, asked: Arc<AskedAccess>) {
        let request = InHand::AskAccess(from, asked.correlation);
        let id = asked.user.clone();
        let work = |shard: &mut Self| {
            if shard.is_stopping() {
                let error = Error::new(Code::GoingAway).after_ms(1000);
                return shard.tell_access(from, asked.correlation, Err(error));
            }
            let Some(Parked::AskAccess(from, asked)) = shard.user_or_park(&id, Parked::AskAccess(from, asked)) else {
                return;
            };
            let Some(user) = shard.users.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
            let (head, access) = (user.head, user.access());
            shard.wait_user(&id, head, UserRelease::Access(from, asked, access));
        };
        self.guarded_for(Some(request), || id.clone().into(), work);
    }

    pub(super) fn tell_access(
        &mut self,
        gateway: GatewayId,
        correlation: Correlation,
        result: Result<Arc<Access>, Error>,
    ) {
        if self.in_hand == Some(InHand::AskAccess(gateway, correlation)) {
            self.kept();
        }
        self.send_to_gateway(gateway, ToGateway::Access(correlation, result));
    }

    /// A command about the log-outs and the ban of a user who is ready.
    pub(super) fn access_command(&mut self, id: &UserId, from: GatewayId, asked: &Asked) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        let Slot { phase: Phase::Ready(user), line, .. } = &mut slot.slot else { return };
        let judged = if line.admits(user.head + 1) {
            user.judge_access(&asked.actor, asked.id, &asked.command, now)
        } else {
            Err(Error::new(Code::Overloaded).after_ms(200))
        };
        if let Ok(Some(event)) = &judged {
            slot.append(Arc::clone(event), &mut self.flush);
        }
        let Some(user) = slot.ready() else { return };
        let appended = judged.as_ref().ok().and_then(Clone::clone);
        let change = appended.map(|event| Change { user: id.clone(), event, access: user.access() });
        let result = judged.map(|_| user.answer_access(asked.id, &asked.command, now));
        let head = user.head;
        self.count_answer(asked, &result);
        // Whoever logs itself out is answered first.
        self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
        if let Some(change) = change {
            self.wait_user(id, head, UserRelease::AccessChanged(Box::new(change)));
        }
    }

    /// It is committed: connections that are over are told so, and every gateway hears what stands now.
    pub(super) fn access_changed(&mut self, change: &Change) {
        let Change { user: id, event, access } = change;
        let now = self.now;
        let mut ended: Vec<(Connection, Error)> = Vec::new();
        if let Some(slot) = self.users.get_mut(id) {
            let mut end = |client: &Client| {
                let error = User::ended_by(event, access, client, now);
                ended.extend(error.map(|error| (client.connection, error)));
            };
            slot.saved.iter().for_each(&mut end);
            if let Some(user) = slot.slot.ready() {
                user.connections.iter().for_each(&mut end);
            }
        }
        self.forget_connections(id, |known| ended.iter().any(|(connection, _)| *connection == known));
        let gateways: Vec<GatewayId> = self.gateways.iter().map(|gateway| gateway.id).collect();
        for gateway in gateways {
            let changed = ToGateway::AccessChanged { user: id.clone(), access: Arc::clone(access) };
            self.send_to_gateway(gateway, changed);
            let here = ended.iter().filter(|(connection, _)| connection.gateway == gateway);
            let connections: Vec<ConnectionSlot> = here.map(|(connection, _)| connection.slot).collect();
            // They are told the same: it is one change.
            if let Some((_, error)) = ended.first().filter(|_| !connections.is_empty()) {
                self.send_to_gateway(gateway, ToGateway::End { connections, error: error.clone() });
            }
        }
    }
}
