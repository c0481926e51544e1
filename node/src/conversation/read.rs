//! Reading: what a member may be shown, and how it is put together from the log.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    command::{Command, From},
    error::{Code, Error},
    event::{Event, Fact},
    id::{ConversationId, Seq, UserId},
    limit::{PAGE_BYTES_MAX, PAGE_MAX},
    reaction::ReactionKey,
    reply::{EditView, MemberView, MessageView, ReactionCount, ReactionView, Reply},
    stored::{StoredMentions, StoredOverlay, StoredReaction},
    wire::Actor,
};

use super::{
    decide::Verdict,
    members::{Member, Visible},
    overlay::Fresh,
    state::{Conversation, Target},
};
use crate::store::{Page, PageRequest, Reacted, ReactedRequest, Show};

/// A read of the log that was allowed at some head, and what is to be made of it.
#[derive(Debug)]
pub struct Read {
    conversation: ConversationId,
    head: Seq,
    floor: Seq,
    visible: Visible,
    shape: Shape,
    /// What was not durable when the read was allowed; it wins over what is older in the store.
    fresh: Fresh,
    /// Looked at in vain so far, while the reader was no member.
    passed: usize,
    /// Read so far.
    events: Vec<Arc<Event>>,
    overlays: Vec<(Seq, StoredOverlay)>,
    own: Vec<(Seq, ReactionKey, StoredReaction)>,
}

#[derive(Debug)]
enum Shape {
    Events {
        after: Seq,
        limit: usize,
    },
    /// Messages at or below `upto`, newest first; `above` counts what still lies above.
    Before {
        upto: Seq,
        limit: usize,
        above: bool,
    },
    After {
        from: Seq,
        limit: usize,
        below: bool,
    },
    /// First the lower half, then the upper one.
    AroundBelow {
        at: Seq,
        limit: usize,
    },
    AroundAbove {
        at: Seq,
        limit: usize,
        more_below: bool,
    },
    One {
        seq: Seq,
    },
    /// The chain of edits of a message, from the newest to the oldest.
    History {
        message: Arc<Event>,
        next: Seq,
        deleted: Seq,
        edits: Vec<EditView>,
        bytes: usize,
        more: bool,
    },
    /// Who reacts to a message with a key, by user id.
    Reactions {
        seq: Seq,
        key: ReactionKey,
        after: Option<UserId>,
        limit: usize,
        count: u64,
        /// What the store may not have: by user, the latest.
        fresh: BTreeMap<UserId, StoredReaction>,
        items: Vec<ReactionView>,
    },
}

/// Most events of a time without the reader that one read looks through for what was done to messages they may see. Beyond, the
/// rest of that time is left out: the cost of a page is bounded, however long somebody was away.
pub(super) const PASSED_MAX: usize = 20_000;

/// What a read needs next.
#[derive(Debug)]
pub enum Progress {
    /// This slice of the log.
    More(PageRequest),
    /// This slice of who reacted.
    Reacted(ReactedRequest),
    /// Nothing: here is the answer.
    Done(Result<Reply, Error>),
}

impl Conversation {
    /// Judges a command that changes nothing.
    pub(super) fn read(&self, actor: &Actor, command: &Command) -> Verdict {
        self.try_read(actor, command).unwrap_or_else(|error| Verdict::Answer(Err(error)))
    }

    fn try_read(&self, actor: &Actor, command: &Command) -> Result<Verdict, Error> {
        let member = self.member(&actor.user)?;
        let visible = member.visible(self.settings.history);
        let floor = self.floor.seq().max(visible.floor());
        let is_there = |seq: Seq| self.shows_at(&visible, seq);
        let shape = match command {
            Command::ConversationGet { .. } => {
                return Ok(Verdict::Answer(Ok(Reply::Conversation(Box::new(self.view(member, false))))));
            }
            Command::MemberList { after, limit, .. } => {
                let shown = self.shows_receipts();
                let view = |member: &Member| MemberView {
                    user: member.user.clone(),
                    role: member.role,
                    marks: shown.then_some(member.marks),
                };
                let mut items: Vec<MemberView> =
                    self.members.present_after(after.as_ref()).take(limit + 1).map(view).collect();
                let more = items.len() > *limit;
                items.truncate(*limit);
                let next_cursor = items.last().filter(|_| more).map(|member| member.user.clone());
                return Ok(Verdict::Answer(Ok(Reply::Members { items, next_cursor })));
            }
            Command::ConversationOpen { .. } => {
                return Ok(Verdict::Answer(Ok(Reply::Opened {
                    head: self.head,
                    n: self.n,
                    large: self.is_large(),
                    joined: member.joined,
                })));
            }
            // Said to others by whoever drives the conversation; here it is only judged.
            Command::TypingStart { .. } => return Ok(Verdict::Answer(Ok(Reply::Typing { shown: !self.is_large() }))),
            Command::TypingStop { .. } => return Ok(Verdict::Answer(Ok(Reply::Closed))),
            Command::ConversationClose { .. } => return Ok(Verdict::Answer(Ok(Reply::Closed))),
            Command::EventList { after, limit, .. } => {
                if *after < self.floor.seq() {
                    let floor = self.floor.seq();
                    let detail = format!("the log begins after seq {floor}");
                    return Err(Error::new(Code::HistoryPurged).with_detail(detail).above(floor));
                }
                Shape::Events { after: (*after).max(floor), limit: *limit }
            }
            Command::MessageList { page, .. } => match page.from {
                From::Newest => Shape::Before { upto: self.head, limit: page.limit, above: false },
                From::Before(seq) => {
                    let upto = seq.saturating_sub(1).min(self.head);
                    Shape::Before { upto, limit: page.limit, above: upto < self.head }
                }
                From::After(seq) => {
                    let from = seq.saturating_add(1).max(floor + 1);
                    Shape::After { from, limit: page.limit, below: from > floor + 1 }
                }
                From::Around(seq) => {
                    Shape::AroundBelow { at: seq.clamp(floor + 1, self.head.max(floor + 1)), limit: page.limit }
                }
            },
            Command::MessageGet { seq, .. } if is_there(*seq) => Shape::One { seq: *seq },
            Command::MessageHistory { seq, .. } if is_there(*seq) => {
                let Some(hot) = &self.hot else { return Ok(Verdict::NeedHot) };
                match hot.targets.get(seq) {
                    None => return Ok(Verdict::NeedTarget(*seq)),
                    Some(Target::Missing) => return Err(Code::MessageNotFound.into()),
                    Some(Target::Message(message, overlay)) => Shape::History {
                        message: Arc::clone(message),
                        next: overlay.edit,
                        deleted: overlay.deleted,
                        edits: Vec::new(),
                        bytes: 0,
                        more: false,
                    },
                }
            }
            Command::ReactionList { seq, key, after, limit, .. } if is_there(*seq) => {
                let Some(hot) = &self.hot else { return Ok(Verdict::NeedHot) };
                let overlay = match hot.targets.get(seq) {
                    None => return Ok(Verdict::NeedTarget(*seq)),
                    Some(Target::Missing) => return Err(Code::MessageNotFound.into()),
                    Some(Target::Message(_, overlay)) => overlay,
                };
                let Some(one) = overlay.reactions.iter().find(|one| one.key == key.as_str()) else {
                    return Ok(Verdict::Answer(Ok(Reply::Reactions {
                        items: Vec::new(),
                        count: 0,
                        next_cursor: None,
                    })));
                };
                let rows = hot.overlays.events(*seq).filter_map(|event| {
                    let (with, row) = StoredReaction::of(event)?;
                    (with == key).then(|| (event.sender.clone(), row))
                });
                Shape::Reactions {
                    seq: *seq,
                    key: key.clone(),
                    after: after.clone(),
                    limit: *limit,
                    count: one.count,
                    fresh: rows.collect(),
                    items: Vec::new(),
                }
            }
            Command::ReceiptList { seq, after, limit, .. } if is_there(*seq) => {
                if !self.shows_receipts() {
                    return Err(Code::ReceiptsOff.into());
                }
                let Some(hot) = &self.hot else { return Ok(Verdict::NeedHot) };
                return match hot.targets.get(seq) {
                    None => Ok(Verdict::NeedTarget(*seq)),
                    Some(Target::Missing) => Err(Code::MessageNotFound.into()),
                    // Whoever gets further now has not read what is no longer there.
                    Some(Target::Message(_, overlay)) if overlay.deleted != 0 => Err(Code::MessageDeleted.into()),
                    Some(Target::Message(message, _)) => {
                        Ok(Verdict::Answer(Ok(self.receipts_of(message, after.as_ref(), *limit))))
                    }
                };
            }
            Command::MessageGet { .. }
            | Command::MessageHistory { .. }
            | Command::ReactionList { .. }
            | Command::ReceiptList { .. } => {
                return Err(Code::MessageNotFound.into());
            }
            _ => return Err(Code::UnknownOperation.into()),
        };
        let fresh = match &self.hot {
            Some(hot) => hot.overlays.fresh(&actor.user),
            None => Fresh::nothing(actor.user.clone()),
        };
        let mut read = Read {
            conversation: self.id,
            head: self.head,
            floor,
            visible,
            shape,
            fresh,
            passed: 0,
            events: Vec::new(),
            overlays: Vec::new(),
            own: Vec::new(),
        };
        if let Some(reply) = read.recall(self) {
            return Ok(Verdict::Answer(Ok(reply)));
        }
        Ok(Verdict::Read(read))
    }
}

impl Read {
    /// The answer without the store, where the last events are all that is asked for.
    fn recall(&mut self, state: &Conversation) -> Option<Reply> {
        let Shape::Events { after, limit } = self.shape else { return None };
        if after >= self.head {
            return Some(self.page_of_events());
        }
        let first = after + 1;
        let hot = state.hot.as_ref()?;
        hot.recent.get(first)?;
        let upto = self.head.min((first - 1).saturating_add(limit as u64));
        let mut bytes = 0;
        for seq in first..=upto {
            let event = hot.recent.get(seq)?;
            bytes += event.body_len();
            if bytes > PAGE_BYTES_MAX && !self.events.is_empty() {
                break;
            }
            if self.visible.shows(event) {
                self.events.push(Arc::clone(event));
            }
        }
        // What deletes one of them stands above it, and nothing is missing up to the head.
        for event in hot.recent.iter().filter(|event| event.seq > first) {
            if let Fact::MessageDeleted { .. } = event.fact {
                let overlay = StoredOverlay { as_of: event.seq, deleted: event.seq, ..StoredOverlay::default() };
                self.overlays.push((event.target, overlay));
            }
        }
        // Nothing to be seen so far, but perhaps further on: that is the store's to find.
        if self.events.is_empty() && upto < self.head {
            return None;
        }
        Some(self.page_of_events())
    }

    /// The first slice of the log to look at, or the answer at once.
    #[must_use]
    pub fn begin(mut self) -> (Self, Progress) {
        let progress = self.next();
        (self, progress)
    }

    fn request(&self, from: Seq, upto: Seq, newest_first: bool, show: Show, limit: usize) -> PageRequest {
        PageRequest {
            entity: self.conversation.into(),
            from,
            upto,
            newest_first,
            show,
            limit,
            bytes_max: PAGE_BYTES_MAX,
            reader: (show == Show::Messages).then(|| self.fresh.reader().clone()),
        }
    }

    fn next(&mut self) -> Progress {
        let above = self.floor + 1;
        match &self.shape {
            Shape::Events { after, limit } if *after < self.head => {
                let from = after + 1;
                // Of a time without the reader little is shown, and much may have to be looked at.
                let limit = if self.visible.contains(from) { *limit } else { PAGE_MAX.max(*limit) };
                Progress::More(self.request(from, self.head, false, Show::Events, limit))
            }
            Shape::Events { .. } => Progress::Done(Ok(self.page_of_events())),
            Shape::Before { upto, limit, .. } if *upto >= above => {
                Progress::More(self.request(above, *upto, true, Show::Messages, *limit))
            }
            Shape::Before { above, .. } => Progress::Done(Ok(self.page_of_messages((false, *above)))),
            Shape::After { from, limit, .. } if *from <= self.head => {
                let from = self.visible.next(*from).min(self.head);
                Progress::More(self.request(from, self.head, false, Show::Messages, *limit))
            }
            Shape::After { below, .. } => Progress::Done(Ok(self.page_of_messages((*below, false)))),
            Shape::AroundBelow { at, limit } if *at <= self.head => {
                Progress::More(self.request(above, *at, true, Show::Messages, limit.div_ceil(2)))
            }
            Shape::AroundBelow { .. } => Progress::Done(Ok(self.page_of_messages((false, false)))),
            Shape::AroundAbove { at, limit, .. } if *at < self.head && *limit > 0 => {
                Progress::More(self.request(at + 1, self.head, false, Show::Messages, *limit))
            }
            Shape::AroundAbove { at, more_below, .. } => {
                let more = (*more_below, *at < self.head);
                Progress::Done(Ok(self.page_of_messages(more)))
            }
            Shape::One { seq } => Progress::More(self.request(*seq, *seq, false, Show::Messages, 1)),
            Shape::History { next: 0, .. } => Progress::Done(Ok(self.history())),
            Shape::History { next, .. } => Progress::More(self.request(*next, *next, false, Show::Log, 1)),
            Shape::Reactions { seq, key, after, limit, .. } => Progress::Reacted(ReactedRequest {
                entity: self.conversation.into(),
                target: *seq,
                key: key.clone(),
                after: after.clone(),
                // One more tells whether there is a next page.
                limit: limit + 1,
            }),
        }
    }

    /// Takes the slice that was asked for.
    #[must_use]
    pub fn take(mut self, mut page: Page) -> (Self, Progress) {
        if let Shape::Events { after, .. } = self.shape
            && let Err(error) = cut_at_gap(after, &mut page)
        {
            return (self, Progress::Done(Err(error)));
        }
        let count = page.events.len();
        let visible = &self.visible;
        // A slice of which nothing may be shown is not the end: the next one is looked at.
        let nothing = !page.complete && !page.events.iter().any(|event| visible.shows(event));
        match &mut self.shape {
            Shape::Events { after, .. } if nothing && page.reached > *after => {
                self.passed += count;
                let is_enough = self.passed >= PASSED_MAX;
                *after = if is_enough { visible.next(page.reached + 1) - 1 } else { page.reached };
            }
            Shape::Before { upto, .. } if nothing && (1..=*upto).contains(&page.reached) => *upto = page.reached - 1,
            Shape::After { from, .. } if nothing && page.reached >= *from => *from = page.reached + 1,
            Shape::Events { limit, .. } => {
                let limit = *limit;
                self.collect(page);
                self.events.truncate(limit);
                let progress = Progress::Done(Ok(self.page_of_events()));
                return (self, progress);
            }
            Shape::Before { above, limit, .. } => {
                let more = (count == *limit || !page.complete, *above);
                self.collect(page);
                let progress = Progress::Done(Ok(self.page_of_messages(more)));
                return (self, progress);
            }
            Shape::After { below, limit, .. } => {
                let more = (*below, count == *limit || !page.complete);
                self.collect(page);
                let progress = Progress::Done(Ok(self.page_of_messages(more)));
                return (self, progress);
            }
            Shape::AroundBelow { at, limit } => {
                let more_below = count == limit.div_ceil(2) || !page.complete;
                let rest = *limit - count.min(*limit);
                self.shape = Shape::AroundAbove { at: *at, limit: rest, more_below };
                self.collect(page);
            }
            Shape::AroundAbove { limit, more_below, .. } => {
                let more = (*more_below, count == *limit || !page.complete);
                self.collect(page);
                let progress = Progress::Done(Ok(self.page_of_messages(more)));
                return (self, progress);
            }
            Shape::One { .. } => {
                self.collect(page);
                let message = self.messages().pop().ok_or(Error::new(Code::MessageNotFound));
                return (self, Progress::Done(message.map(|view| Reply::Message(Box::new(view)))));
            }
            Shape::History { next, deleted, edits, bytes, more, .. } => {
                // Removed since the read was allowed, and so is what it edits.
                let Some(event) = page.events.into_iter().next() else {
                    return (self, Progress::Done(Err(Code::MessageNotFound.into())));
                };
                let Fact::MessageUpdated { body, previous, .. } = &event.fact else {
                    return (
                        self,
                        Progress::Done(Err(Error::new(Code::Internal).with_detail("the chain of edits is broken"))),
                    );
                };
                let body = (*deleted == 0).then(|| body.bytes().clone());
                *bytes += body.as_ref().map_or(0, bytes::Bytes::len);
                edits.push(EditView { seq: event.seq, at: event.created_at, body });
                *next = *previous;
                // The newest are there; one answer is bounded like any page.
                if *next != 0 && (edits.len() >= PAGE_MAX || *bytes >= PAGE_BYTES_MAX) {
                    *next = 0;
                    *more = true;
                }
            }
            // Asked for something else, see `take_reacted`.
            Shape::Reactions { .. } => {}
        }
        let progress = self.next();
        (self, progress)
    }

    /// Takes the slice of who reacted that was asked for.
    #[must_use]
    pub fn take_reacted(mut self, page: Reacted) -> (Self, Progress) {
        let Shape::Reactions { after, limit, count, fresh, items, .. } = &mut self.shape else {
            let progress = self.next();
            return (self, progress);
        };
        let reached = page.rows.last().map(|(user, _)| user.clone()).filter(|_| !page.complete);
        let lies_here = |user: &UserId| {
            after.as_ref().is_none_or(|after| user > after) && reached.as_ref().is_none_or(|reached| user <= reached)
        };
        let mut rows: BTreeMap<UserId, StoredReaction> = page.rows.into_iter().collect();
        for (user, row) in fresh.iter().filter(|(user, _)| lies_here(user)) {
            rows.entry(user.clone()).and_modify(|known| *known = newest(*known, *row)).or_insert(*row);
        }
        let present = rows.into_iter().filter(|(_, row)| !row.removed);
        items.extend(present.map(|(user, row)| ReactionView { user, seq: row.seq, at: row.at }));
        if items.len() <= *limit && reached.is_some() {
            *after = reached;
            let progress = self.next();
            return (self, progress);
        }
        let more = items.len() > *limit;
        items.truncate(*limit);
        let next_cursor = items.last().filter(|_| more).map(|item| item.user.clone());
        let reply = Reply::Reactions { items: std::mem::take(items), count: *count, next_cursor };
        (self, Progress::Done(Ok(reply)))
    }

    fn collect(&mut self, page: Page) {
        let visible = &self.visible;
        self.events.extend(page.events.into_iter().filter(|event| visible.shows(event)));
        self.overlays.extend(page.overlays);
        self.own.extend(page.own);
    }

    /// What became of a message.
    fn latest(&self, target: Seq) -> StoredOverlay {
        let stored = self.overlays.iter().find(|(of, _)| *of == target).map(|(_, overlay)| overlay);
        self.fresh.latest(target, stored)
    }

    fn page_of_events(&mut self) -> Reply {
        let known = self.overlays.iter().map(|(target, _)| *target).chain(self.fresh.targets());
        let deleted: Vec<Seq> = known.filter(|target| self.latest(*target).deleted != 0).collect();
        let mut items = std::mem::take(&mut self.events);
        for event in &mut items {
            let is_gone = match &event.fact {
                Fact::MessageNew { .. } => deleted.contains(&event.seq),
                // What was edited may be removed, and the edit not yet.
                Fact::MessageUpdated { .. } => {
                    event.target <= self.floor || deleted.contains(&event.target) || self.visible.veils(event)
                }
                _ => false,
            };
            if is_gone {
                *event = Arc::new(event.without_body());
            }
        }
        Reply::Events { conversation: self.conversation, items, head: self.head, floor: self.floor }
    }

    fn page_of_messages(&mut self, more: (bool, bool)) -> Reply {
        Reply::Messages { items: self.messages(), head: self.head, more }
    }

    fn messages(&mut self) -> Vec<MessageView> {
        let events = std::mem::take(&mut self.events);
        let view = |event: &Arc<Event>| {
            let overlay = self.latest(event.seq);
            let reactions = self.reactions(event.seq, &overlay);
            message_view(event, &overlay, reactions)
        };
        events.iter().map(view).collect()
    }

    fn reactions(&self, target: Seq, overlay: &StoredOverlay) -> Vec<ReactionCount> {
        let own = |key: &str| {
            let stored = self.own.iter().find(|(of, with, _)| *of == target && with.as_str() == key);
            self.fresh.is_own(target, key, stored.map(|(.., row)| *row))
        };
        let counts = overlay.reactions.iter().filter_map(|one| {
            let mine = own(&one.key);
            ReactionKey::new(&one.key).ok().map(|key| ReactionCount { key, count: one.count, mine })
        });
        counts.collect()
    }

    fn history(&mut self) -> Reply {
        let Shape::History { message, deleted, edits, more, .. } = &mut self.shape else {
            return Reply::Edits { items: Vec::new(), deleted: None, more: false };
        };
        let mut items = std::mem::take(edits);
        let body = match &message.fact {
            Fact::MessageNew { body, .. } if *deleted == 0 => Some(body.bytes().clone()),
            _ => None,
        };
        items.push(EditView { seq: message.seq, at: message.created_at, body });
        items.reverse();
        Reply::Edits { items, deleted: (*deleted != 0).then_some(*deleted), more: *more }
    }
}

/// What is older may have been removed since the read was allowed, the upper part before the lower one: a reader who is shown what
/// is above a gap would take themselves to have seen everything.
fn cut_at_gap(after: Seq, page: &mut Page) -> Result<(), Error> {
    let count = (after + 1..).zip(&page.events).take_while(|(seq, event)| event.seq == *seq).count();
    if count > 0 || page.reached <= after {
        if count < page.events.len() {
            page.events.truncate(count);
            (page.reached, page.complete) = (after + count as Seq, false);
        }
        return Ok(());
    }
    let floor = page.events.first().map_or(page.reached, |event| event.seq - 1);
    Err(Error::new(Code::HistoryPurged).with_detail(format!("nothing is left up to seq {floor}")).above(floor))
}

fn newest(one: StoredReaction, other: StoredReaction) -> StoredReaction {
    if one.seq >= other.seq { one } else { other }
}

/// A message as its overlay has left it.
fn message_view(event: &Event, overlay: &StoredOverlay, reactions: Vec<ReactionCount>) -> MessageView {
    let (body, mentions) = match (&event.fact, &overlay.body) {
        _ if overlay.deleted != 0 => (None, None),
        // They were checked when they were written; a program with a bug costs a message its mentions, not its body.
        (_, Some(body)) => (Some(body.clone()), StoredMentions::open(overlay.mentions.clone()).unwrap_or_default()),
        (Fact::MessageNew { body, mentions }, None) => (Some(body.bytes().clone()), mentions.clone()),
        _ => (None, None),
    };
    MessageView {
        seq: event.seq,
        n: event.n,
        sender: event.sender.clone(),
        device: event.device.clone(),
        id: event.id,
        created_at: event.created_at,
        body,
        mentions,
        edited: (overlay.edit != 0 && overlay.deleted == 0).then_some((overlay.edit, overlay.edited_at)),
        deleted: (overlay.deleted != 0).then_some(overlay.deleted),
        reactions,
    }
}
