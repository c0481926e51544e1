//! What a conversation is, and how events change it.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    error::{Code, Error},
    event::{ConversationKind, Encryption, Event, Fact, Settings},
    id::{ConversationId, Epoch, Millis, Seq, UserId},
    limit::{CHANNEL_MEMBERS_MAX, GROUP_MEMBERS_MAX, SMALL_MEMBERS_MAX},
    reply::ConversationView,
    stored::StoredOverlay,
};

use crate::pace::{idle_snapshot_events, snapshot_events};

use super::{
    floor::Floor,
    ids::Ids,
    latest::Latest,
    marks::Marks,
    members::{Member, Members, Visible},
    overlay::{Overlays, fold},
    reactions::Reactors,
    receipts::Unsettled,
    recent::Recent,
};

/// Messages whose present form is kept at hand after an edit or deletion asked for it.
const TARGETS_MAX: usize = 16;

/// A conversation as its owner knows it: the state after event `head`, committed or not. Whatever leaves it waits
/// until `head` is committed.
#[derive(Debug)]
pub struct Conversation {
    /// Which.
    pub id: ConversationId,
    /// The last event.
    pub head: Seq,
    /// Messages so far.
    pub n: u64,
    /// The stamp of the last event; stamps never fall.
    pub last_at: Millis,
    /// The stamp of the first event.
    pub created_at: Millis,
    /// Where its history begins.
    pub floor: Floor,
    /// The epoch under which the last event was written first.
    pub origin: Epoch,
    /// The epoch of the owner whose memory this is, and whose snapshots; read from a snapshot, that of its writer.
    pub owner: Epoch,
    /// What it is.
    pub kind: ConversationKind,
    /// Fixed at creation.
    pub encryption: Encryption,
    /// The hash of the creating command.
    pub creation_hash: u64,
    /// Whether it was deleted: for everybody it does not exist any more.
    pub deleted: bool,
    /// Title, data, history access. Boxed: a conversation costs what it uses.
    pub settings: Box<Settings>,
    /// Members, present and past.
    pub members: Members,
    /// When the last message was stamped; the creation if there is none.
    pub message_at: Millis,
    /// The last message.
    pub latest: Latest,
    /// What counts of unread messages need.
    pub marks: Marks,
    /// Members whose watermarks have moved.
    pub(super) unsettled: Unsettled,
    /// The seq of the last durable (or submitted) snapshot.
    pub snapshot_at: Seq,
    /// Whether that says how long messages are kept.
    pub(super) retention_seen: bool,
    /// And how old the oldest one is.
    pub(super) oldest_seen: bool,
    /// And that the store is rid of what was removed.
    pub(super) removal_seen: bool,
    /// What only a busy conversation needs; an idle one reads it again.
    pub hot: Option<Box<Hot>>,
}

/// The part of the state that an idle conversation does without: all of it can be read again.
#[derive(Debug, Default)]
pub struct Hot {
    /// Known commands.
    pub ids: Ids,
    /// The last events, up to `head`.
    pub recent: Recent,
    /// What became of messages, where the store does not have it yet.
    pub overlays: Overlays,
    /// Messages as they stand now, for judging what is about them.
    pub targets: BTreeMap<Seq, Target>,
    /// Reactions of those who reacted last, for judging more of theirs.
    pub reactors: Reactors,
    /// Who hears of the next event.
    pub audience: Option<Arc<Audience>>,
}

/// A message that a command is about.
#[derive(Clone, Debug)]
pub enum Target {
    /// There is no message at this seq.
    Missing,
    /// There is, and this became of it.
    Message(Arc<Event>, StoredOverlay),
}

/// Who hears of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Audience {
    /// Each of these users, through their user entities.
    Users(Vec<UserId>),
    /// Whoever listens at the gateways; the users here are told besides, because the event is about them.
    Listeners(Vec<UserId>),
}

impl Conversation {
    /// A conversation of which nothing is known: it does not exist until its first event.
    #[must_use]
    pub fn absent(id: ConversationId) -> Self {
        Self {
            id,
            head: 0,
            n: 0,
            last_at: 0,
            created_at: 0,
            floor: Floor::default(),
            origin: 0,
            owner: 0,
            kind: ConversationKind::Group,
            encryption: Encryption::None,
            creation_hash: 0,
            deleted: false,
            settings: Box::default(),
            members: Members::default(),
            message_at: 0,
            latest: Latest::None,
            marks: Marks::default(),
            unsettled: Unsettled::default(),
            snapshot_at: 0,
            retention_seen: true,
            oldest_seen: false,
            removal_seen: true,
            hot: Some(Box::default()),
        }
    }

    /// Whether it was created and not deleted.
    #[must_use]
    pub const fn exists(&self) -> bool {
        self.head > 0 && !self.deleted
    }

    /// Whether it is delivered to listeners instead of to each member's user entity. A channel always is: those who read it
    /// are an audience, and do not see each other, however few they are.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        self.is_channel() || self.members.len() > SMALL_MEMBERS_MAX
    }

    /// Whether few write and many read.
    #[must_use]
    pub const fn is_channel(&self) -> bool {
        matches!(self.kind, ConversationKind::Channel)
    }

    /// Whether whoever wants to becomes a member.
    #[must_use]
    pub const fn lets_in(&self) -> bool {
        self.exists() && self.is_channel() && self.settings.open
    }

    /// How many members it may have.
    #[must_use]
    pub const fn members_max(&self) -> usize {
        if self.is_channel() { CHANNEL_MEMBERS_MAX } else { GROUP_MEMBERS_MAX }
    }

    /// The caller as a member.
    ///
    /// # Errors
    /// `conversation.not_found`, the same for whoever is no member as for whatever does not exist.
    pub fn member(&self, user: &UserId) -> Result<&Member, Error> {
        let member = if self.exists() { self.members.get(user) } else { None };
        member.ok_or(Error::new(Code::ConversationNotFound))
    }

    /// Whether there is an event at `seq` that was not removed, and may be seen by who may see so much.
    pub(super) fn shows_at(&self, visible: &Visible, seq: Seq) -> bool {
        visible.contains(seq) && self.floor.seq() < seq && seq <= self.head
    }

    /// The next event's stamp.
    #[must_use]
    pub fn stamp(&self, now: Millis) -> Millis {
        now.max(self.last_at)
    }

    /// Takes the next event of the log. Total: whatever a log holds can be applied.
    ///
    /// # Panics
    /// When the event is not the next one: the caller has lost its place in the log.
    pub fn apply(&mut self, event: &Arc<Event>) {
        assert_eq!(event.seq, self.head + 1, "event {} applied to a conversation at {}", event.seq, self.head);
        #[cfg(test)]
        fault::strike(event);
        let mut audience_changes = false;
        match &event.fact {
            Fact::ConversationCreated { kind, encryption, settings, members } => {
                self.kind = *kind;
                self.encryption = *encryption;
                self.set(settings);
                self.creation_hash = event.hash;
                self.created_at = event.created_at;
                self.message_at = event.created_at;
                for (user, role) in members {
                    self.members.join(user, *role, event.seq, event.n);
                }
                self.members.shrink();
                audience_changes = true;
            }
            Fact::ConversationUpdated { settings } => self.set(settings),
            Fact::ConversationDeleted => self.deleted = true,
            Fact::MemberJoined { user, role } => {
                self.members.join(user, *role, event.seq, event.n);
                self.tell_of_return(user);
                audience_changes = true;
            }
            Fact::MemberLeft { user } => {
                self.members.leave(user, event.seq, event.sender != *user);
                audience_changes = true;
            }
            Fact::MemberRole { user, role } => self.members.set_role(user, *role, event.seq),
            // Who writes has read up to their own message.
            Fact::MessageNew { mentions, .. } => {
                self.members.read(&event.sender, event.n);
                self.message_at = event.created_at;
                self.floor.message(event.created_at);
                self.marks.mention(event.n, mentions);
            }
            Fact::MessageUpdated { mentions, target_n, .. } if *target_n != 0 => {
                self.marks.mention(*target_n, mentions);
            }
            Fact::MessageDeleted { target_n, .. } if *target_n != 0 => self.marks.delete(*target_n),
            Fact::HistoryPurged { floor, floor_n, oldest_at } => {
                self.floor.rise(*floor, *floor_n, *oldest_at, (event.seq, event.created_at));
                self.marks.purge(*floor_n);
                if self.latest.seq().is_some_and(|seq| seq <= *floor) {
                    self.latest = Latest::None;
                }
                if let Some(hot) = &mut self.hot {
                    hot.targets = hot.targets.split_off(&(floor + 1));
                }
            }
            Fact::MessageUpdated { .. }
            | Fact::MessageDeleted { .. }
            | Fact::ReactionAdded { .. }
            | Fact::ReactionRemoved { .. } => {}
            // Facts of users' logs have no business here; they change nothing.
            Fact::UserJoined { .. }
            | Fact::UserLeft { .. }
            | Fact::ChangesReserved { .. }
            | Fact::UserPreference { .. }
            | Fact::UserLoggedOut(_)
            | Fact::UserBanned(_)
            | Fact::UserUnbanned { .. }
            | Fact::UserPresence { .. }
            | Fact::UserReceipts { .. } => {}
        }
        if self.marks.is_crowded() {
            self.marks.make_room(&self.members);
        }
        self.latest.apply(event);
        self.head = event.seq;
        self.n = event.n;
        self.last_at = event.created_at;
        if let Some(hot) = &mut self.hot {
            hot.apply(event);
            if audience_changes {
                hot.audience = None;
            }
        }
    }

    fn set(&mut self, settings: &Settings) {
        self.retention_seen &= self.settings.retention_secs == settings.retention_secs;
        *self.settings = settings.clone();
    }

    /// Who hears of `event`, which is about to be applied: the members before it, and whoever it is about.
    pub fn audience(&mut self, event: &Event) -> Arc<Audience> {
        // Messages of what was deleted are removed when their time has come, too: nobody is a member any more.
        if self.deleted {
            return Arc::new(Audience::Users(Vec::new()));
        }
        let about = match &event.fact {
            Fact::ConversationCreated { members, .. } => {
                return Arc::new(Audience::Users(members.iter().map(|(user, _)| user.clone()).collect()));
            }
            fact => fact.about(),
        };
        let large = self.is_large();
        // Who is a member already hears of it like everybody else.
        if let Some(user) = about
            && self.members.get(user).is_none()
        {
            return Arc::new(if large {
                Audience::Listeners(vec![user.clone()])
            } else {
                let mut users: Vec<UserId> = self.members.present().map(|member| member.user.clone()).collect();
                users.push(user.clone());
                Audience::Users(users)
            });
        }
        let members = &self.members;
        let make = || {
            Arc::new(if large {
                Audience::Listeners(Vec::new())
            } else {
                Audience::Users(members.present().map(|member| member.user.clone()).collect())
            })
        };
        match &mut self.hot {
            Some(hot) => Arc::clone(hot.audience.get_or_insert_with(make)),
            None => make(),
        }
    }

    /// Whether a snapshot of the present state is worth its row: after so many events, and where whoever looks for what is
    /// overdue must find it there.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        self.head >= self.snapshot_at + snapshot_events()
            || self.floor.set_by() > self.snapshot_at
            || (!self.retention_seen && self.head > self.snapshot_at)
    }

    /// Whether a snapshot is worth its row when the conversation goes to rest, where no messages are kept longer than
    /// `everywhere_ms`.
    #[must_use]
    pub fn snapshot_due_at_rest(&self, everywhere_ms: Option<Millis>) -> bool {
        if self.head <= self.snapshot_at {
            return false;
        }
        // A walk over what is at rest believes what it finds: that there is no message, or nothing at all, which it opens.
        let is_walked = self.snapshot_at != 0 || self.kept_ms(everywhere_ms).is_some();
        let hides_messages = is_walked && self.floor.oldest_at != 0 && !self.oldest_seen;
        let is_unknown = is_walked && self.snapshot_at == 0;
        // Whoever opens it would remove that again.
        let hides_removal = !self.removal_seen && !self.floor.is_purging();
        self.head >= self.snapshot_at + idle_snapshot_events() || hides_messages || is_unknown || hides_removal
    }

    /// This state came from somebody's memory, and nobody knows what the snapshot in the store says. Before the store is rid of
    /// what is removed, one must say so there.
    pub fn distrust_snapshot(&mut self, everywhere_ms: Option<Millis>) {
        if self.floor.is_purging() {
            self.snapshot_at = self.snapshot_at.min(self.floor.set_by() - 1);
        }
        // Nor may the one that is there tell a walk that there is no message.
        if self.floor.oldest_at != 0 && self.kept_ms(everywhere_ms).is_some() {
            self.oldest_seen = false;
            self.snapshot_at = self.snapshot_at.min(self.head.saturating_sub(1));
        }
    }

    /// A snapshot of the present state is on its way.
    pub fn snapshot_taken(&mut self) {
        self.snapshot_at = self.head;
        self.retention_seen = true;
        self.oldest_seen = self.floor.oldest_at != 0;
        self.removal_seen = !self.floor.is_purging();
    }

    /// The message at `seq` was looked up for a command.
    pub fn remember_target(&mut self, seq: Seq, found: Option<(Arc<Event>, Option<StoredOverlay>)>) {
        let Some(hot) = &mut self.hot else { return };
        let target = match found {
            Some((event, overlay)) if event.fact.is_message() => {
                Target::Message(event, hot.overlays.latest(seq, overlay.unwrap_or_default()))
            }
            _ => Target::Missing,
        };
        if hot.targets.len() >= TARGETS_MAX {
            hot.targets.pop_first();
        }
        hot.targets.insert(seq, target);
    }

    /// Whether everything that derives from the events up to `seq` is durable: a snapshot stands for all of it.
    #[must_use]
    pub fn is_derived_upto(&self, seq: Seq) -> bool {
        self.hot.as_ref().is_none_or(|hot| hot.overlays.first().is_none_or(|first| first > seq))
    }

    /// Whether everything that only the hot form knows is durable, so that it may be dropped.
    #[must_use]
    pub fn can_cool(&self) -> bool {
        self.hot.as_ref().is_none_or(|hot| hot.overlays.is_empty())
    }

    /// Becomes idle: everything that can be read again is dropped.
    pub fn cool(&mut self) {
        self.hot = None;
        self.latest.cut();
        self.marks.prune(&self.members);
        self.members.shrink();
    }

    /// Heap and own bytes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let hot = self.hot.as_ref().map_or(0, |hot| {
            size_of::<Hot>()
                + hot.ids.heap_bytes()
                + hot.recent.heap_bytes()
                + hot.overlays.heap_bytes()
                + hot.reactors.heap_bytes()
                + hot.targets.len() * 320
        });
        size_of::<Self>()
            + size_of::<Settings>()
            + self.settings.title.len()
            + self.settings.data.len()
            + self.members.heap_bytes()
            + self.latest.heap_bytes()
            + self.marks.heap_bytes()
            + self.floor.heap_bytes()
            + self.unsettled.heap_bytes()
            + hot
    }

    /// The other member of a direct conversation.
    pub(super) fn other(&self, member: &Member) -> Option<UserId> {
        let mut others = self.members.present().map(|other| &other.user).filter(|other| **other != member.user);
        others.next().filter(|_| self.kind == ConversationKind::Direct).cloned()
    }

    /// The conversation as `user` sees it.
    #[must_use]
    pub fn view(&self, member: &Member, existed: bool) -> ConversationView {
        ConversationView {
            id: self.id,
            kind: self.kind,
            encryption: self.encryption,
            settings: Settings { receipts_off: !self.shows_receipts(), ..(*self.settings).clone() },
            members: self.members.len(),
            large: self.is_large(),
            with: self.other(member),
            role: member.role,
            head: self.head,
            n: self.n,
            floor: self.floor.seq().max(member.visible(self.settings.history).floor()),
            created_at: self.created_at,
            last_at: self.last_at,
            existed,
        }
    }
}

impl Hot {
    fn apply(&mut self, event: &Arc<Event>) {
        self.ids.remember(event);
        self.recent.push(event);
        if !event.fact.is_about_message() {
            return;
        }
        match self.targets.get_mut(&event.target) {
            Some(Target::Message(_, known)) => {
                self.overlays.take(event, Some(known));
                fold(known, event);
            }
            // Found in the log: what there was before, the store knows.
            _ => self.overlays.take(event, None),
        }
        self.reactors.apply(event);
    }
}

/// Lets tests of supervision make an entity panic.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;

    use chappe_schema::{
        event::{Event, Fact},
        id::Seq,
    };

    thread_local! {
        static AT: Cell<Seq> = const { Cell::new(0) };
    }

    /// The next message applied at `seq` panics, once.
    pub(crate) fn at(seq: Seq) {
        AT.set(seq);
    }

    pub(super) fn strike(event: &Event) {
        if AT.get() == event.seq && matches!(event.fact, Fact::MessageNew { .. }) {
            AT.set(0);
            panic!("planted");
        }
    }
}
