//! How far members have got: watermarks, one set per member, whatever the number of messages.
//!
//! What others see (`delivered_n`, `shown_n`) is apart from what counts of unread messages are made of (`read_n`), which
//! also rises when somebody reads privately, writes, or joins. What has moved since others were told, and what no row
//! holds yet, is noted here until somebody asks.

use std::collections::BTreeSet;

use chappe_schema::{
    error::{Code, Error},
    event::Event,
    id::UserId,
    limit::RECEIPTS_MEMBERS_MAX,
    receipt::{Progress, Progressed, Receipt, ReceiptView, Receipts, Watermarks},
    reply::Reply,
    stored::StoredReceipt,
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    members::{Member, Members},
    state::Conversation,
};

/// Members whose watermarks have moved; most of the time nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unsettled(Option<Box<Lists>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    /// Since the others were told.
    moved: BTreeSet<UserId>,
    /// Since a row was written.
    unkept: BTreeSet<UserId>,
}

impl Unsettled {
    fn settle(&mut self) {
        if self.0.as_ref().is_some_and(|lists| lists.moved.is_empty() && lists.unkept.is_empty()) {
            self.0 = None;
        }
    }

    /// Heap bytes, roughly.
    pub(super) fn heap_bytes(&self) -> usize {
        let entries = self.0.as_ref().map_or(0, |lists| lists.moved.len() + lists.unkept.len());
        if entries == 0 { 0 } else { size_of::<Lists>() + entries * 2 * size_of::<UserId>() }
    }
}

/// What one life of a state leaves to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How far everybody has got.
    pub got: Vec<(UserId, Got)>,
    /// Of whom the others have not been told.
    moved: BTreeSet<UserId>,
}

/// The members of a conversation, while all else of it is read again.
#[derive(Debug)]
pub struct KeptMembers {
    members: Members,
    unsettled: Unsettled,
}

/// Into how many parts very many members are divided, each with a row of its own for how far they have got.
const PARTS: u8 = 64;

/// The part in which a member of very many is. Stored: it never changes.
fn part(user: &UserId) -> u8 {
    1 + (xxh3_64(user.as_str().as_bytes()) % u64::from(PARTS)) as u8
}

/// A member's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Messages read, privately or not.
    pub read_n: u64,
    /// What others see.
    pub marks: Watermarks,
}

impl Conversation {
    /// Whether members see how far the others have got.
    #[must_use]
    pub fn shows_receipts(&self) -> bool {
        let is_small = !self.is_channel() && self.members.len() <= RECEIPTS_MEMBERS_MAX;
        self.exists() && !self.settings.receipts_off && is_small
    }

    /// A member says how far they have got; `private` keeps what they have read from the others.
    ///
    /// # Errors
    /// For whoever is no member, and when there are not so many messages.
    pub fn progress(&mut self, user: &UserId, said: &Progress, private: bool) -> Result<Progressed, Error> {
        self.member(user)?;
        if said.read.max(said.delivered).is_some_and(|n| n > self.n) {
            return Err(Error::invalid("n", format!("the conversation has {} messages", self.n)));
        }
        let shown = self.shows_receipts();
        let Some(member) = self.members.get_mut(user) else { return Err(Code::ConversationNotFound.into()) };
        let before = (member.read_n, member.marks);
        if let Some(n) = said.read {
            member.read_n = member.read_n.max(n);
        }
        if shown {
            // Whoever reads has received.
            let read = said.read.filter(|_| !private).unwrap_or(0);
            let delivered_n = said.delivered.unwrap_or(0).max(read);
            member.marks = member.marks.highest(Watermarks { delivered_n, read_n: read });
        }
        let now = (member.read_n, member.marks);
        if now != before {
            let lists = self.unsettled.0.get_or_insert_default();
            lists.unkept.insert(user.clone());
            if now.1 != before.1 {
                lists.moved.insert(user.clone());
            }
        }
        let counts = self.marks.counts(user, now.0, self.n);
        Ok(Progressed { delivered_n: now.1.delivered_n, read_n: now.0, counts })
    }

    /// Somebody is a member, maybe again: then those who saw them leave have to hear how far they had got.
    pub(super) fn tell_of_return(&mut self, user: &UserId) {
        if self.members.get(user).is_some_and(|member| member.marks != Watermarks::default()) && self.shows_receipts() {
            self.unsettled.0.get_or_insert_default().moved.insert(user.clone());
        }
    }

    /// Whether the others have something to hear.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.unsettled.0.as_ref().is_some_and(|lists| !lists.moved.is_empty())
    }

    /// Whether something stands in no row.
    #[must_use]
    pub fn has_unkept(&self) -> bool {
        self.unsettled.0.as_ref().is_some_and(|lists| !lists.unkept.is_empty())
    }

    /// What has moved since this was asked last.
    pub fn take_moved(&mut self) -> Receipts {
        let moved = self.unsettled.0.as_mut().map(|lists| std::mem::take(&mut lists.moved)).unwrap_or_default();
        self.unsettled.settle();
        let item = |user: UserId| {
            let marks = self.members.get(&user)?.marks;
            Some(Receipt { user, marks })
        };
        Receipts { conversation: self.id, items: moved.into_iter().filter_map(item).collect() }
    }

    /// What stands in no row since this was asked last, and the part of the members whose row it belongs into: all of them
    /// together, unless there are very many. Then there may be more, of other parts.
    pub fn take_unkept(&mut self) -> Option<(u8, Vec<StoredReceipt>)> {
        let are_apart = self.members.are_apart();
        let part_of = |user: &UserId| if are_apart { part(user) } else { 0 };
        let unkept = self.unsettled.0.as_mut().map(|lists| &mut lists.unkept)?;
        let of = part_of(unkept.first()?);
        let unkept: Vec<UserId> = unkept.extract_if(.., |user| part_of(user) == of).collect();
        self.unsettled.settle();
        // Whoever has left may come back.
        let item = |user: &UserId| {
            let Got { read_n, marks } = self.members.ever_known(user)?.got();
            let Watermarks { delivered_n, read_n: shown_n } = marks;
            Some(StoredReceipt { user: user.as_str().to_owned(), read_n, delivered_n, shown_n })
        };
        Some((of, unkept.iter().filter_map(item).collect()))
    }

    /// The members with all that is known of them, so that an idle conversation with very many of them does not read them
    /// again to become a hot one.
    pub fn keep_members(&mut self) -> Option<KeptMembers> {
        let mut members = self.members.are_apart().then(|| std::mem::take(&mut self.members))?;
        members.are_as_of(self.head);
        Some(KeptMembers { members, unsettled: std::mem::take(&mut self.unsettled) })
    }

    /// Takes what [`keep_members`](Self::keep_members) has kept.
    pub fn take_members(&mut self, kept: KeptMembers) {
        (self.members, self.unsettled) = (kept.members, kept.unsettled);
    }

    /// What a later life of this state must know.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let got = self.members.all().map(|member| (member.user.clone(), member.got())).collect();
        let moved = self.unsettled.0.as_ref().map(|lists| lists.moved.clone()).unwrap_or_default();
        Kept { got, moved }
    }

    /// What another life of this state, or a row, knows. Rows may be ahead of the log by what never became part of it.
    pub fn restore(&mut self, user: &UserId, got: Got) {
        let n = self.n;
        let Some(member) = self.members.ever_known_mut(user) else { return };
        member.read_n = member.read_n.max(got.read_n.min(n));
        let Watermarks { delivered_n, read_n } = got.marks;
        member.marks = member.marks.highest(Watermarks { delivered_n: delivered_n.min(n), read_n: read_n.min(n) });
    }

    /// [`restore`](Self::restore) for what an earlier life of this state carries over: it may stand in no row.
    pub fn carry_over(&mut self, kept: Kept) {
        for (user, got) in &kept.got {
            let before = self.members.ever_known(user).map(Member::got);
            self.restore(user, *got);
            if before != self.members.ever_known(user).map(Member::got) {
                self.unsettled.0.get_or_insert_default().unkept.insert(user.clone());
            }
        }
        if !kept.moved.is_empty() {
            self.unsettled.0.get_or_insert_default().moved.extend(kept.moved);
        }
    }

    /// Whom a message has reached: of those who were members when it was sent and are now, its sender aside.
    pub(super) fn receipts_of(&self, message: &Event, after: Option<&UserId>, limit: usize) -> Reply {
        let mut items = Vec::new();
        let (mut members, mut delivered, mut read) = (0, 0, 0);
        let mut more = false;
        for member in self.members.present() {
            if member.user == message.sender || !member.was_there(message.seq) {
                continue;
            }
            let Watermarks { delivered_n, read_n } = member.marks;
            let view = ReceiptView {
                user: member.user.clone(),
                delivered: delivered_n >= message.n,
                read: read_n >= message.n,
            };
            members += 1;
            delivered += u64::from(view.delivered);
            read += u64::from(view.read);
            if after.is_none_or(|after| member.user > *after) {
                match items.len() < limit {
                    true => items.push(view),
                    false => more = true,
                }
            }
        }
        let next_cursor = items.last().filter(|_| more).map(|view: &ReceiptView| view.user.clone());
        Reply::Receipts { items, members, delivered, read, next_cursor }
    }
}

impl Member {
    /// How far they have got.
    #[must_use]
    pub const fn got(&self) -> Got {
        Got { read_n: self.read_n, marks: self.marks }
    }
}

impl From<&StoredReceipt> for Got {
    fn from(stored: &StoredReceipt) -> Self {
        let marks = Watermarks { delivered_n: stored.delivered_n, read_n: stored.shown_n };
        Self { read_n: stored.read_n, marks }
    }
}
