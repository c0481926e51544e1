//! Rule 8: on a connection the seqs of a conversation rise by one. A resume says where they begin, a resync that some
//! were dropped, and then their history must be read.

use hashbrown::HashMap;

use super::{Oracle, Rule, dense::Hole};
use crate::history::{Connection, Conversation, User};

#[derive(Debug, Default)]
pub(super) struct Streams {
    cursors: HashMap<(Connection, Conversation), Cursor>,
    holes: Vec<Hole>,
}

#[derive(Debug)]
struct Cursor {
    next: u64,
    /// After a resync the next event may stand anywhere above.
    free: bool,
}

impl Oracle {
    pub(super) fn streamed(&mut self, connection: Connection, user: User, conversation: Conversation, seq: u64) {
        let cursor =
            self.streams.cursors.entry((connection, conversation)).or_insert(Cursor { next: seq, free: false });
        let (next, free) = (cursor.next, cursor.free);
        cursor.next = next.max(seq + 1);
        cursor.free = false;
        if seq == next {
            if !free {
                // What was to be fetched may come as events after all, when the client connects again before it has fetched.
                self.views.of(user, conversation).came(seq);
            }
            return;
        }
        if seq < next {
            let (name, place) = (self.names.user(user), self.names.conversation(conversation));
            self.findings.report(Rule::Stream, || {
                format!("connection {} of {name} was given seq {seq} of {place} after {}", connection.0, next - 1)
            });
        } else if free {
            self.views.of(user, conversation).owe(next, seq - 1);
        } else {
            self.streams.holes.push(Hole { user, conversation, from: next, upto: seq - 1, otherwise: Rule::Stream });
        }
    }

    pub(super) fn resumed(&mut self, connection: Connection, conversation: Conversation, from: u64) {
        self.streams.cursors.insert((connection, conversation), Cursor { next: from + 1, free: false });
    }

    pub(super) fn resynced(&mut self, connection: Connection, conversation: Conversation, head: u64) {
        self.findings.stats.resyncs += 1;
        let user = self.user_of(connection);
        // Without a position the connection has nothing to repair; what follows fixes its cursor.
        let Some(cursor) = self.streams.cursors.get_mut(&(connection, conversation)) else { return };
        cursor.free = true;
        let next = cursor.next;
        self.views.of(user, conversation).owe(next, head);
    }

    pub(super) fn finish_streams(&mut self) {
        let holes = std::mem::take(&mut self.streams.holes);
        self.decide_holes(&holes);
        for ((user, conversation), view) in self.views.iter() {
            // Who is no member any more may not read.
            if view.visible.last().is_some_and(|(_, upto)| *upto != u64::MAX) {
                continue;
            }
            for (from, upto) in &view.debts {
                let (name, place) = (self.names.user(*user), self.names.conversation(*conversation));
                self.findings.report(Rule::Stream, || {
                    format!("{name} was told to resync {place}, and never read {from}..={upto}")
                });
            }
        }
    }
}
