//! Who listens to which large conversation at this gateway.
//!
//! A large conversation sends its events once to every gateway that is interested. Interest is announced before the
//! first listener's `conversation.open` is asked, and withdrawn when the last one goes, under the same lock as the
//! list, so that a node hears the two in the order in which they happened.

use std::borrow::Cow;

use chappe_cluster::link::Links;
use chappe_schema::{
    id::{ConnectionSlot, ConversationId, Partition, Seq, UserId},
    wire::ToNode,
};
use hashbrown::{HashMap, hash_map::Entry};
use parking_lot::Mutex;

use crate::connection::Connections;

/// Listeners by conversation.
pub(crate) struct Listeners {
    shards: [Mutex<Shard>; SHARDS],
}

const SHARDS: usize = 16;

type Shard = HashMap<ConversationId, Audience, foldhash::fast::RandomState>;

type Audience = HashMap<ConnectionSlot, Place, foldhash::fast::RandomState>;

/// Where a listener stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Events above this seq are for it. [`NOT_YET`] until its `open` is answered.
    after: Seq,
    /// The event by which its user became a member.
    joined: Seq,
}

/// A connection, and what it is to be handed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    pub(crate) slot: ConnectionSlot,
    /// Events above this seq.
    pub(crate) after: Seq,
    /// Without what they make of messages before this one, where that is not for newcomers.
    pub(crate) joined: Seq,
}

const NOT_YET: Seq = Seq::MAX;

/// The conversation was small when it was opened: its events come through the user, until it grows.
pub(crate) const SMALL: Seq = Seq::MAX - 1;

impl Listeners {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new(Shard::default())) }
    }

    /// A connection is about to open a conversation. To be called before the node is asked.
    pub(crate) fn announce(&self, conversation: ConversationId, slot: ConnectionSlot, link: &dyn Links) {
        let mut shard = self.shard(conversation);
        let audience = match shard.entry(conversation) {
            Entry::Occupied(audience) => audience.into_mut(),
            Entry::Vacant(none) => {
                link.tell(conversation.partition(), ToNode::Interest { conversation, listening: true });
                none.insert(Audience::default())
            }
        };
        audience.entry(slot).or_insert(Place { after: NOT_YET, joined: Seq::MAX });
    }

    /// Such partitions have owners who know of no listeners here.
    pub(crate) fn announce_again(&self, moved: &dyn Fn(Partition) -> bool, link: &dyn Links) {
        for shard in &self.shards {
            let shard = shard.lock();
            let mut conversations: Vec<_> = shard.keys().filter(|one| moved(one.partition())).copied().collect();
            // In an order that a simulation can repeat.
            conversations.sort_unstable();
            for conversation in conversations {
                link.tell(conversation.partition(), ToNode::Interest { conversation, listening: true });
            }
        }
    }

    /// The node said that the conversation is a large one whose head is `head`: what lies above is for the connection.
    pub(crate) fn listen(&self, conversation: ConversationId, slot: ConnectionSlot, head: Seq, joined: Seq) {
        let mut shard = self.shard(conversation);
        if let Some(place) = shard.get_mut(&conversation).and_then(|audience| audience.get_mut(&slot))
            && place.after == NOT_YET
        {
            *place = Place { after: head, joined };
        }
    }

    /// The node said that the conversation is a small one. Should it grow, the listener is told to fetch what it may
    /// have missed between the two ways of delivery, and hears of everything after.
    pub(crate) fn listen_small(&self, conversation: ConversationId, slot: ConnectionSlot, joined: Seq) {
        self.listen(conversation, slot, SMALL, joined);
    }

    /// These listeners have had everything up to `head`, or were told to fetch it.
    pub(crate) fn advance(&self, conversation: ConversationId, told: &[Listener], head: Seq) {
        if let Some(audience) = self.shard(conversation).get_mut(&conversation) {
            for listener in told {
                if let Some(Place { after, .. }) = audience.get_mut(&listener.slot)
                    && *after != NOT_YET
                    && (*after == SMALL || *after < head)
                {
                    *after = head;
                }
            }
        }
    }

    /// Parts connections into those that listen to what was a large conversation when they opened it (or has become one
    /// since), and the others.
    pub(crate) fn split<'a>(
        &self,
        conversation: ConversationId,
        connections: &'a [ConnectionSlot],
    ) -> (Vec<ConnectionSlot>, Cow<'a, [ConnectionSlot]>) {
        let shard = self.shard(conversation);
        // Nearly always nobody listens: then nothing is copied.
        let Some(audience) = shard.get(&conversation) else { return (Vec::new(), Cow::Borrowed(connections)) };
        let listens =
            |slot: &ConnectionSlot| audience.get(slot).is_some_and(|place| !matches!(place.after, NOT_YET | SMALL));
        let (listening, plain): (Vec<ConnectionSlot>, Vec<ConnectionSlot>) =
            connections.iter().partition(|slot| listens(slot));
        (listening, Cow::Owned(plain))
    }

    /// Whether events are for the connection: its `open` has been answered.
    pub(crate) fn listens(&self, conversation: ConversationId, slot: ConnectionSlot) -> bool {
        let shard = self.shard(conversation);
        shard.get(&conversation).and_then(|audience| audience.get(&slot)).is_some_and(|place| place.after != NOT_YET)
    }

    /// A connection no longer listens.
    pub(crate) fn leave(&self, conversation: ConversationId, slot: ConnectionSlot, link: &dyn Links) {
        self.retain(conversation, link, |listener| listener != slot);
    }

    /// No connection of `user` listens any longer.
    pub(crate) fn remove_user(
        &self,
        conversation: ConversationId,
        user: &UserId,
        connections: &Connections,
        link: &dyn Links,
    ) {
        let slots: Vec<ConnectionSlot> = match self.shard(conversation).get(&conversation) {
            Some(audience) => audience.keys().copied().collect(),
            None => return,
        };
        let table = connections.table();
        let is_theirs = |slot: ConnectionSlot| {
            table.get(slot).and_then(|connection| connection.who()).is_some_and(|who| who.user == *user)
        };
        let theirs: Vec<ConnectionSlot> = slots.into_iter().filter(|slot| is_theirs(*slot)).collect();
        for slot in &theirs {
            if let Some(connection) = table.get(*slot) {
                connection.outbox.lock().shut(conversation);
            }
        }
        drop(table);
        self.retain(conversation, link, |listener| !theirs.contains(&listener));
    }

    /// Those for whom events above their seq are meant, into a buffer that is used again.
    pub(crate) fn list(&self, conversation: ConversationId, into: &mut Vec<Listener>) {
        into.clear();
        if let Some(audience) = self.shard(conversation).get(&conversation) {
            let open = audience.iter().filter(|(_, place)| place.after != NOT_YET);
            into.extend(open.map(|(slot, Place { after, joined })| Listener {
                slot: *slot,
                after: *after,
                joined: *joined,
            }));
        }
    }

    /// Whether anybody listens, or is about to.
    pub(crate) fn any(&self, conversation: ConversationId) -> bool {
        self.shard(conversation).contains_key(&conversation)
    }

    fn retain(&self, conversation: ConversationId, link: &dyn Links, keep: impl Fn(ConnectionSlot) -> bool) {
        let mut shard = self.shard(conversation);
        let Some(audience) = shard.get_mut(&conversation) else { return };
        audience.retain(|listener, _| keep(*listener));
        if audience.is_empty() {
            shard.remove(&conversation);
            link.tell(conversation.partition(), ToNode::Interest { conversation, listening: false });
        }
    }

    fn shard(&self, conversation: ConversationId) -> parking_lot::MutexGuard<'_, Shard> {
        // The last byte is random in every version of ids in use.
        self.shards[usize::from(conversation.0.as_bytes()[15]) % SHARDS].lock()
    }
}
