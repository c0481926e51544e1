//! Members who have rows of their own, where there are too many of them for a snapshot.
//!
//! A snapshot goes without them and is written when the rows are durable of all who have changed since the one before. So
//! what is written for a change of one member is one row, and not a list of a hundred thousand; and rows may be ahead of the
//! snapshot that they are found with, which each of them says (see [`Members`]). When the conversation is read again, they
//! are read page by page. An idle conversation that becomes a hot one keeps them meanwhile: they are as they were.

use chappe_schema::{
    id::{ConversationId, Seq, UserId},
    limit::MEMBER_ROWS_TOGETHER,
    stored::{Corrupt, StoredMember},
};

use super::{Phase, Projected, Shard, StoreMail, conversations::ConversationSlot};
use crate::{
    conversation::{Conversation, KeptMembers, Members},
    pace::member_rows_page,
    store::{self, MemberRows, Projection, Recovered},
};

/// What surrounds the members of a conversation that have rows of their own; nothing for any other.
#[derive(Default)]
pub(super) struct MembersSlot(Option<Box<Rows>>);

#[derive(Default)]
struct Rows {
    /// On their way to the store, ahead of a snapshot.
    writing: Option<Writing>,
    /// Being read.
    reading: Option<Reading>,
    /// Those of the state that is being read again.
    kept: Option<KeptMembers>,
}

/// Rows as everybody stood after some event.
struct Writing {
    token: u64,
    /// The event; not before it is committed are they sent.
    seq: Seq,
    waiting: Vec<StoredMember>,
    /// Calls that have not been answered.
    on_their_way: usize,
}

struct Reading {
    token: u64,
    /// All else that stands of the conversation.
    recovered: Recovered,
    rows: Vec<StoredMember>,
}

/// The members beside a snapshot.
pub(super) enum Gathered {
    /// They stand in it.
    Inside,
    /// As their rows say.
    Rows(Vec<StoredMember>),
    /// As they were in memory.
    Kept(KeptMembers),
}

impl Gathered {
    /// Adds them to the state of a snapshot.
    pub(super) fn install(self, state: &mut Conversation) -> Result<(), Corrupt> {
        match self {
            Self::Inside => {}
            Self::Rows(rows) => state.members = Members::from_rows(rows, state.head)?,
            Self::Kept(kept) => state.take_members(kept),
        }
        Ok(())
    }
}

impl MembersSlot {
    /// Whether nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.0.is_none()
    }

    /// Whether every row is durable that was taken.
    pub(super) fn are_durable(&self) -> bool {
        self.0.as_ref().is_none_or(|rows| rows.writing.is_none())
    }

    /// Takes the rows of whoever has changed since this was done last: they go ahead of a snapshot of the state as it is.
    pub(super) fn take_stale(&mut self, state: &mut Conversation, next_token: &mut u64) {
        let seq = state.head;
        let waiting = state.members.take_stale(seq);
        if !waiting.is_empty() {
            *next_token += 1;
            let writing = Writing { token: *next_token, seq, waiting, on_their_way: 0 };
            self.0.get_or_insert_default().writing = Some(writing);
        }
    }

    /// Sends what was taken, if it is committed.
    pub(super) fn fly(&mut self, id: ConversationId, committed: Seq, writes: &mut Vec<(Projected, Projection)>) {
        let Some(writing) = self.0.as_mut().and_then(|rows| rows.writing.as_mut()) else { return };
        if writing.seq > committed {
            return;
        }
        let mut waiting = std::mem::take(&mut writing.waiting);
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(MEMBER_ROWS_TOGETHER));
            let rows = std::mem::replace(&mut waiting, rest);
            writing.on_their_way += 1;
            writes.push((Projected::Members(id, writing.token), Projection::Members { conversation: id, rows }));
        }
    }

    /// The state is lost, or is another than that of which rows were taken: whoever has changed since the last snapshot
    /// changes again when the log is read.
    pub(super) fn forget_state(&mut self) {
        if let Some(rows) = &mut self.0 {
            (rows.writing, rows.kept) = (None, None);
        }
        self.settle();
    }

    fn settle(&mut self) {
        if self.0.as_ref().is_some_and(|rows| rows.writing.is_none() && rows.reading.is_none() && rows.kept.is_none()) {
            self.0 = None;
        }
    }
}

impl ConversationSlot {
    /// The state, which is whole, is about to be read again because it lacks what an idle one does without.
    pub(super) fn keep_members(&mut self) {
        match &mut self.slot.phase {
            Phase::Ready(state) if state.members.are_apart() => {
                self.members.0.get_or_insert_default().kept = state.keep_members();
            }
            _ => self.keep_for_later(),
        }
    }
}

impl Shard {
    /// What stands of a conversation, with its members; `None` while they are being read.
    pub(super) fn members_to_come(
        &mut self,
        id: ConversationId,
        recovered: Recovered,
    ) -> Option<(Recovered, Gathered)> {
        let snapshot = recovered.snapshot.as_ref();
        let stand_apart = snapshot.is_some_and(|(_, bytes)| Conversation::members_stand_apart(bytes.clone()));
        let slot = self.conversations.get_mut(&id)?;
        let kept = slot.members.0.as_mut().and_then(|rows| rows.kept.take());
        slot.members.settle();
        match kept {
            Some(kept) => Some((recovered, Gathered::Kept(kept))),
            None if !stand_apart => Some((recovered, Gathered::Inside)),
            None => {
                let token = self.token();
                if let Some(slot) = self.conversations.get_mut(&id) {
                    slot.slot.reading = true;
                    let reading = Reading { token, recovered, rows: Vec::new() };
                    slot.members.0.get_or_insert_default().reading = Some(reading);
                }
                self.ask_members(id, token, None);
                None
            }
        }
    }

    fn ask_members(&self, id: ConversationId, token: u64, after: Option<UserId>) {
        let done = self.answer(move |page| StoreMail::Members { conversation: id, token, page });
        self.store.members(id, after, member_rows_page(), done);
    }

    /// A page of members was read.
    pub(super) fn members_read(&mut self, id: ConversationId, token: u64, page: Result<MemberRows, store::Error>) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        // What was begun for a state that is not waited for any more is not gone on with.
        let Some(rows) = slot.members.0.as_mut() else { return };
        let Some(mut reading) = rows.reading.take_if(|reading| reading.token == token) else { return };
        let after = match page {
            Ok(page) => {
                reading.rows.extend(page.rows);
                let last = reading.rows.last().filter(|_| !page.complete);
                last.and_then(|last| UserId::new(&last.user).ok())
            }
            Err(error) => {
                slot.members.settle();
                slot.slot.reading = false;
                return self.conversation_not_read(id, &error);
            }
        };
        if after.is_some() {
            rows.reading = Some(reading);
            return self.ask_members(id, token, after);
        }
        slot.members.settle();
        slot.slot.reading = false;
        self.rebuild_conversation(id, reading.recovered, Gathered::Rows(reading.rows));
    }

    /// Rows are durable.
    pub(super) fn members_durable(&mut self, id: ConversationId, token: u64) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let Some(rows) = slot.members.0.as_mut() else { return };
        let Some(writing) = rows.writing.as_mut().filter(|writing| writing.token == token) else { return };
        writing.on_their_way -= 1;
        if writing.on_their_way == 0 && writing.waiting.is_empty() {
            rows.writing = None;
            slot.members.settle();
            self.guarded(|| id.into(), |shard| shard.project_conversation(id));
        }
    }
}
