//! A shard drives its share of the node's entities: it takes its mail, lets the pure states decide, sends what they
//! append to the store in groups, and lets nothing out before it is committed.
//!
//! A shard never waits for anything but mail: the store's outcomes come as mail too. One turn takes everything that
//! waits; what the turn appended goes to the store as one group, what it has for a gateway as one batch. In reading order:
//!
//! - [`line`]: the line in which an entity's events wait for the log
//! - [`pump`]: why nothing leaves before a fence read
//! - [`conversations`]: driving conversations
//! - [`reactions`]: what reactions need beside
//! - [`members`]: members who have rows of their own
//! - [`users`]: driving users
//! - [`access`]: their log-outs and bans
//! - [`inbox`]: what users ask of their inbox
//! - [`presence`]: who looks at whom
//! - [`typing`]: who is writing where
//! - [`rebuild`]: reading an entity again
//! - [`receipts`]: how far members have got
//! - [`retention`]: what is kept for a time only
//! - [`resting`]: users who are not in memory
//! - [`recent`]: conversations that were put away a while ago
//! - [`supervision`]: what a panic costs
//! - [`tenure`]: what it may do in which partition
//! - [`handover`]: giving a partition away, and taking one over
//! - [`mailbox`]: how mail arrives

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use chappe_cluster::{link::GatewayPort, ownership::PlanId};
use chappe_schema::{
    access::Access,
    archive::{Inline, SeveralShared},
    error::{Code, Error},
    event::{Event, Fact},
    id::{ConversationId, EntityId, Epoch, GatewayId, Millis, Partition, Seq, SessionId, UserId},
    inbox::Counts,
    limit::{FENCE_UNREAD_MS_MAX, RECOVERIES_MAX},
    presence::{Shown, Watch},
    receipt::{Progress, Progressed, Receipts},
    reply::Reply,
    stored::{StoredId, StoredOverlay},
    wire::{Asked, AskedAccess, Connecting, Correlation, Head, Lane, Owner, ToGateway, ToNode},
};
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    conversation::{Read, ids::prints_since},
    planted::{Bug, is},
    presence::Board,
    store::{self, Append, Confirmation, MemberRows, Page, Projection, Reacted, Recovered, Store, Walked, Written},
    typing::Typing,
    user::{Connection, HeadKnown},
};

mod access;
mod conversations;
mod entities;
pub(crate) mod handover;
mod inbox;
mod line;
pub(crate) mod mailbox;
mod measure;
mod members;
mod presence;
mod pump;
mod reactions;
mod rebuild;
mod receipts;
mod recent;
mod resting;
pub(crate) mod retention;
pub(crate) mod supervision;
mod tenure;
mod typing;
mod users;

#[cfg(test)]
mod tests;

use entities::Entities;
use handover::{Sealing, TenureMail};
use inbox::{Gathering, Told};
use line::Line;
use mailbox::Mailbox;
pub(crate) use measure::Measures;
use pump::Pump;
use reactions::ReactionsFound;
use receipts::{Due, Keeping, Said, Telling};
use recent::Recent;
use resting::Resting;
use retention::{StepDone, Walk};
use supervision::{InHand, WITHDRAWN_MS};
use tenure::{Question, Standing, Tenure, Tenures};

/// Groups of appends that a shard may have at the store at once: while one syncs, the next one waits, so the
/// committer never idles; a third would only make smaller groups.
const GROUPS_MAX: usize = 2;

/// Entities that one turn looks at when memory is short.
const EVICTIONS_PER_TURN: usize = 256;

/// Everything that can reach a shard.
pub(crate) enum Mail {
    /// A gateway is there.
    Attach(GatewayId, Arc<dyn GatewayPort>),
    /// A gateway is gone.
    Detach(GatewayId),
    /// A gateway has said something to an entity of this shard.
    Gateway(GatewayId, ToNode),
    /// Another shard has.
    Peer(PeerMail),
    /// The store has answered that session.
    Store(SessionId, StoreMail),
    /// A partition comes, is given away, or goes.
    Tenure(TenureMail),
    /// A new session begins: whatever was known is forgotten.
    Begin(Arc<dyn Store>),
    /// The present session is over.
    End(String),
    /// These partitions have another owner than before, wherever that is.
    Moved(Arc<[(Partition, Owner)]>),
    /// Something of this conversation may have been kept for too long.
    Overdue(ConversationId),
    /// Something is kept for so short a time, in milliseconds.
    Kept(Millis),
    /// Time passes: once a second.
    Tick,
    /// Flush everything and say when it is done.
    Stop(oneshot::Sender<()>),
}

/// A state of an entity in memory: the epoch of its tenure, and how often it had been read. What was looked up for one state says
/// nothing to another, which may know of what came later only from a snapshot (seed 1062).
pub(crate) type Incarnation = (Epoch, u32);

/// The store's answers.
pub(crate) enum StoreMail {
    Written {
        group: u64,
        outcomes: Vec<Written>,
    },
    Confirmed(Confirmation),
    /// With the epoch of the tenure that asked.
    Recovered(EntityId, Epoch, Result<Recovered, store::Error>),
    Page {
        token: u64,
        page: Result<Page, store::Error>,
    },
    Target {
        conversation: ConversationId,
        of: Incarnation,
        seq: Seq,
        page: Result<Page, store::Error>,
    },
    /// A user's reactions to a message.
    Reactions(ReactionsFound),
    /// Members of a conversation that is being read again.
    Members {
        conversation: ConversationId,
        token: u64,
        page: Result<MemberRows, store::Error>,
    },
    /// Who reacted to a message.
    Reacted {
        token: u64,
        page: Result<Reacted, store::Error>,
    },
    /// Overlays as they were before what a recovery found.
    Overlays {
        conversation: ConversationId,
        of: Incarnation,
        targets: Vec<Seq>,
        found: Result<Vec<(Seq, StoredOverlay)>, store::Error>,
    },
    Id {
        token: u64,
        found: Result<Option<StoredId>, store::Error>,
    },
    Projected {
        token: u64,
        result: Result<(), store::Error>,
    },
    /// A step of a removal is done.
    Retained {
        conversation: ConversationId,
        token: u64,
        done: StepDone,
    },
    /// Some of the conversations that there are.
    Walked(Result<Walked, store::Error>),
}

/// From shard to shard, of one node or of several. Between nodes anything may get lost: whoever needs an answer asks
/// again, and heads are said again.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) enum PeerMail {
    /// A conversation has moved on; these users of the addressed shard are its members.
    News {
        #[rkyv(with = Inline)]
        news: Arc<News>,
        users: Vec<UserId>,
    },
    /// A user must hear a fact, until `Told` says that it is in their log.
    Tell { user: UserId, fact: Fact, conversation: ConversationId },
    /// The user has heard the fact about event `at`.
    Told { conversation: ConversationId, at: Seq, user: UserId },
    /// A user's shard asks where conversations stand.
    AskHeads { user: UserId, conversations: Vec<ConversationId> },
    /// A conversation's owner answers.
    Heads { user: UserId, known: HeadKnown },
    /// A user's shard asks what their inbox shows of conversations.
    AskRows { token: u64, user: UserId, conversations: Vec<ConversationId> },
    /// A conversation's owner answers.
    Row { token: u64, user: UserId, conversation: ConversationId, told: Told },
    /// The user was mentioned in a large conversation, of which news do not come by themselves.
    Mentioned { user: UserId, known: HeadKnown, counts: Counts },
    /// Somebody looks at these users; and what they know of them.
    Watch { watcher: UserId, watches: Vec<(Watch, Option<Shown>)> },
    /// They look at these no longer.
    Unwatch { watcher: UserId, users: Vec<UserId> },
    /// How a user is seen, as the owner of that epoch says; to some who look at them.
    Seen { user: UserId, shown: Shown, epoch: Epoch, watchers: Vec<UserId> },
    /// A user's shard asks how somebody is seen.
    AskSeen { token: u64, asker: UserId, watch: Watch },
    /// Their owner answers.
    ToldSeen { token: u64, asker: UserId, shown: Shown },
    /// A user has got this far in conversations.
    Progress { token: u64, user: UserId, progress: Vec<Progress>, private: bool },
    /// A conversation's owner has noted it: how far they have got, and what is left.
    Progressed {
        token: u64,
        user: UserId,
        conversation: ConversationId,
        result: Result<Progressed, Error>,
        /// Whether something was said of reading: then it has been read, whether or not that is news.
        was_read: bool,
    },
    /// Members of a conversation have got further; these users of the addressed shard are among them.
    Receipts {
        #[rkyv(with = Inline)]
        receipts: Arc<Receipts>,
        users: Vec<UserId>,
    },
}

impl PeerMail {
    /// The partition of the entity that says it, or of the one that it answers.
    pub(crate) fn speaker(&self) -> Partition {
        match self {
            Self::News { news, .. } => news.conversation.partition(),
            Self::Receipts { receipts, .. } => receipts.conversation.partition(),
            Self::Heads { known, .. } | Self::Mentioned { known, .. } => known.conversation.partition(),
            Self::Tell { conversation, .. }
            | Self::Row { conversation, .. }
            | Self::Progressed { conversation, .. } => conversation.partition(),
            Self::Told { user, .. }
            | Self::AskHeads { user, .. }
            | Self::AskRows { user, .. }
            | Self::Watch { watcher: user, .. }
            | Self::Unwatch { watcher: user, .. }
            | Self::Seen { user, .. }
            | Self::AskSeen { asker: user, .. }
            | Self::ToldSeen { asker: user, .. }
            | Self::Progress { user, .. } => user.partition(),
        }
    }

    /// Parts it by those, of so many shards, that drive whom it is for.
    pub(crate) fn by_shard(self, shards: usize) -> Vec<(usize, Self)> {
        let whole = |to: Partition, mail| vec![(shard_of_partition(to, shards), mail)];
        match self {
            Self::News { news, users } => {
                parted(users, shards, UserId::partition, |users| Self::News { news: Arc::clone(&news), users })
            }
            Self::Receipts { receipts, users } => parted(users, shards, UserId::partition, |users| Self::Receipts {
                receipts: Arc::clone(&receipts),
                users,
            }),
            Self::AskHeads { user, conversations } => {
                parted(conversations, shards, ConversationId::partition, |conversations| Self::AskHeads {
                    user: user.clone(),
                    conversations,
                })
            }
            Self::AskRows { token, user, conversations } => {
                parted(conversations, shards, ConversationId::partition, |conversations| Self::AskRows {
                    token,
                    user: user.clone(),
                    conversations,
                })
            }
            Self::Watch { watcher, watches } => parted(
                watches,
                shards,
                |(watch, _)| watch.user.partition(),
                |watches| Self::Watch { watcher: watcher.clone(), watches },
            ),
            Self::Unwatch { watcher, users } => {
                parted(users, shards, UserId::partition, |users| Self::Unwatch { watcher: watcher.clone(), users })
            }
            Self::Seen { user, shown, epoch, watchers } => parted(watchers, shards, UserId::partition, |watchers| {
                Self::Seen { user: user.clone(), shown, epoch, watchers }
            }),
            Self::Progress { token, user, progress, private } => {
                let partition = |progress: &Progress| progress.conversation.partition();
                parted(progress, shards, partition, |progress| Self::Progress {
                    token,
                    user: user.clone(),
                    progress,
                    private,
                })
            }
            Self::Told { conversation, .. } => whole(conversation.partition(), self),
            Self::AskSeen { ref watch, .. } => whole(watch.user.partition(), self),
            Self::Tell { ref user, .. }
            | Self::Heads { ref user, .. }
            | Self::Row { ref user, .. }
            | Self::Mentioned { ref user, .. }
            | Self::Progressed { ref user, .. }
            | Self::ToldSeen { asker: ref user, .. } => whole(user.partition(), self),
        }
    }
}

/// What is in one mail for several entities, in a mail for each shard.
fn parted<T>(
    items: Vec<T>,
    shards: usize,
    partition: impl Fn(&T) -> Partition,
    mail: impl Fn(Vec<T>) -> PeerMail,
) -> Vec<(usize, PeerMail)> {
    let mut by_shard: SmallVec<[Vec<T>; 4]> = std::iter::repeat_with(Vec::new).take(shards).collect();
    for item in items {
        by_shard[shard_of_partition(partition(&item), shards)].push(item);
    }
    let by_shard = by_shard.into_iter().enumerate().filter(|(_, items)| !items.is_empty());
    by_shard.map(|(shard, items)| (shard, mail(items))).collect()
}

/// Committed events of one conversation, shared by everyone who hears of them.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) struct News {
    conversation: ConversationId,
    head: Head,
    /// When the last message was stamped; 0 if none of these events is one.
    message_at: Millis,
    /// None when only the head is said again.
    #[rkyv(with = SeveralShared)]
    events: Arc<[Arc<Event>]>,
    /// Whether later heads will not come to the members by themselves.
    large: bool,
}

/// How a shard behaves.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// An entity that was not used for this long becomes idle, and a user without connections is unloaded.
    pub(crate) idle_ms: u64,
    /// Bytes that entities of this shard may take; beyond, the longest unused are evicted.
    pub(crate) budget_bytes: usize,
    /// No messages are kept longer than this.
    pub(crate) retention_ms: Option<Millis>,
}

/// What shards say of themselves.
pub(crate) enum Report {
    /// The session is over for good, and why: nothing can be acknowledged any more.
    Ended(SessionId, String),
    /// What a partition that is to be given away holds in memory, as far as it is committed.
    Streamed(Partition, PlanId, Vec<handover::Handed>),
    /// A partition is cut; this is what stands.
    Cut(Partition, PlanId, handover::Delta),
}

/// Where mail goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To a shard of this node.
    Shard(usize),
    /// To another node, which lives this session.
    Node(SessionId),
}

/// Where an entity lives, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// On this node.
    Here,
    /// On another one, which lives this session.
    Elsewhere(SessionId),
    /// Nobody owns it at the moment.
    Nowhere,
}

/// The way to entities that other nodes own. Mail may get lost.
pub(crate) trait Abroad: Send + Sync {
    /// Where the entities of a partition live.
    fn home(&self, partition: Partition) -> Home;

    /// Sends to another node. What is for several entities goes in one mail, whatever partitions they are in.
    fn send(&self, to: SessionId, mail: PeerMail);
}

/// Where everything is at home.
pub(crate) struct Alone;

impl Abroad for Alone {
    fn home(&self, _: Partition) -> Home {
        Home::Here
    }

    fn send(&self, _: SessionId, _: PeerMail) {}
}

/// What an entity is doing.
enum Phase<C> {
    /// Its log is being read (or will be, once its line has no rows and a place is free).
    Loading,
    /// It answers.
    Ready(Box<C>),
    /// It is not to be trusted until an operator has looked at it, or for some minutes after panics.
    Withdrawn { until: Millis },
}

/// An entity and what surrounds it.
struct Slot<C, P, R> {
    /// Where it lives.
    partition: Partition,
    /// The epoch under which this session owns it.
    epoch: Epoch,
    phase: Phase<C>,
    line: Line<R>,
    /// What waits until the entity is ready.
    parked: VecDeque<P>,
    /// When it was last used.
    used: Millis,
    /// Whether the store is being asked for it.
    reading: bool,
    panics: SmallVec<[Millis; 4]>,
    /// Reads of the store under way that will be merged with what is in memory: until they are back, nothing that
    /// became durable meanwhile is forgotten.
    looks: u32,
    /// How often its state was read.
    lives: u32,
    bytes: usize,
    /// The seq at which it was shown to the next owner, while its partition is being given away.
    streamed: Option<Seq>,
}

impl<C, P, R> Slot<C, P, R> {
    fn loading(now: Millis, (partition, epoch): (Partition, Epoch)) -> Self {
        Self {
            partition,
            epoch,
            phase: Phase::Loading,
            line: Line::new(0),
            parked: VecDeque::new(),
            used: now,
            reading: false,
            panics: SmallVec::new(),
            looks: 0,
            lives: 0,
            bytes: 0,
            streamed: None,
        }
    }

    /// The core, to look at.
    fn core(&self) -> Option<&C> {
        match &self.phase {
            Phase::Ready(core) => Some(core),
            _ => None,
        }
    }

    fn ready(&mut self) -> Option<&mut C> {
        match &mut self.phase {
            Phase::Ready(core) => Some(core),
            _ => None,
        }
    }

    const fn incarnation(&self) -> Incarnation {
        (self.epoch, self.lives)
    }

    fn is_quiet(&self) -> bool {
        self.line.is_quiet() && self.parked.is_empty() && self.looks == 0 && !self.reading
    }
}

/// What waits for a conversation's commit.
#[derive(Debug)]
enum Release {
    Reply(GatewayId, Correlation, Result<Reply, Error>),
    Read(GatewayId, Correlation, Box<Read>),
    Target(Seq),
    Head(UserId, HeadKnown),
    Row(u64, UserId, Told),
    Mentioned(UserId, HeadKnown, Counts),
    /// A member is writing, or has stopped.
    Typing(GatewayId, Correlation, UserId, bool),
    Progressed(Said, Result<Progressed, Error>),
    Receipts(Receipts),
}

/// What waits for a user's commit.
#[derive(Debug)]
enum UserRelease {
    Reply(UserId, GatewayId, Correlation, Result<Reply, Error>),
    Connect(GatewayId, Arc<Connecting>),
    Told(UserId, ConversationId, Seq),
    Access(GatewayId, Arc<AskedAccess>, Arc<Access>),
    AccessChanged(Box<access::Change>),
    /// A request for the inbox is to be answered.
    Inbox(GatewayId, Arc<Asked>),
    /// Those who look at the user are to see them as they are now.
    Seen(UserId),
    /// The user's connections are to hear how a conversation is marked and read.
    Changed(UserId, ConversationId, Option<(u64, Counts)>),
}

impl Ticket {
    fn partition(&self) -> Partition {
        match self {
            Self::Flight(entity, _) => entity.partition(),
            Self::Conversation(id, _) => id.partition(),
            Self::User(release) => release.user().partition(),
        }
    }
}

impl UserRelease {
    fn user(&self) -> &UserId {
        match self {
            Self::Reply(user, ..) | Self::Told(user, ..) | Self::Changed(user, ..) | Self::Seen(user) => user,
            Self::Connect(_, connecting) => &connecting.actor.user,
            Self::Access(_, asked, _) => &asked.user,
            Self::AccessChanged(change) => change.user(),
            Self::Inbox(_, asked) => &asked.actor.user,
        }
    }
}

/// What waits for a fence read.
#[derive(Debug)]
enum Ticket {
    /// The flight of this entity is durable that it sent under this epoch.
    Flight(EntityId, Epoch),
    Conversation(ConversationId, Release),
    User(UserRelease),
}

/// What a projection does once it is durable.
enum Projected {
    /// Everything that derives from the conversation's events up to here is durable.
    Derived(ConversationId, Seq),
    IdBlock(ConversationId, Seq),
    Inbox(UserId),
    /// How far members of the conversation have got.
    Receipts(ConversationId),
    /// Some rows of members, of those that were taken under this number.
    Members(ConversationId, u64),
    Snapshot(ConversationId, Seq),
    Other,
}

struct GatewaySlot {
    id: GatewayId,
    port: Arc<dyn GatewayPort>,
    batch: Vec<ToGateway>,
}

/// One of a node's loops. See the module's documentation.
pub(crate) struct Shard {
    index: usize,
    peers: Arc<[Mailbox<Mail>]>,
    store: Arc<dyn Store>,
    session: SessionId,
    tenures: Tenures,
    /// Partitions that are being given away.
    sealing: Vec<Sealing>,
    /// Partitions that have another owner, and since when the first of them has.
    moved: HashSet<Partition>,
    moved_at: Millis,
    /// What may not be let out unless a move is aborted.
    withheld: Vec<Ticket>,
    abroad: Arc<dyn Abroad>,
    settings: Settings,
    clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    reports: Arc<dyn Fn(Report) + Send + Sync>,
    now: Millis,
    conversations: Entities<ConversationId, conversations::ConversationSlot>,
    users: Entities<UserId, users::UserSlot>,
    gateways: Vec<GatewaySlot>,
    /// Gateways with listeners of a large conversation. Outlives the conversation's slot: listening activates nothing.
    interest: HashMap<ConversationId, SmallVec<[GatewayId; 2]>, foldhash::fast::FixedState>,
    /// Entities whose earlier life may not have told others everything.
    unannounced: HashSet<EntityId, foldhash::fast::FixedState>,
    /// Facts for users that could not be told; told again with the next tick.
    postponed: Vec<(UserId, Fact, ConversationId)>,
    /// Conversations that have cooled: looked at rarely, and the first to go when memory is short.
    cold: VecDeque<Watched>,
    /// Mail to other shards (and this one), sent at the end of the turn.
    outgoing: Vec<Vec<Mail>>,
    local: VecDeque<PeerMail>,
    /// Entities with an open batch.
    flush: Vec<EntityId>,
    /// Appends on their way, by entity and the epoch of its tenure: a partition may come back to the same session, and what
    /// was sent before must not be taken for what is sent then (seed 535).
    groups: HashMap<u64, Vec<(EntityId, Epoch)>, foldhash::fast::FixedState>,
    projections: Vec<(Projected, Projection)>,
    failed_projections: Vec<(Projected, Projection)>,
    projecting: HashMap<u64, (Vec<Projected>, Vec<Projection>), foldhash::fast::FixedState>,
    reads: HashMap<u64, conversations::Reading, foldhash::fast::FixedState>,
    next_token: u64,
    pump: Pump<Ticket>,
    /// Whether what is durable is committed: no successor can take over while this session lives.
    confirms_at_once: bool,
    /// When the last fence read that came back clean had begun.
    clean_at: Millis,
    /// When the present one has.
    reading_since: Millis,
    /// Users who wait to hear where conversations stand; asked again with every tick where questions may get lost.
    asking_heads: HashSet<UserId, foldhash::fast::FixedState>,
    /// Conversations whose members have not all heard of a change of membership.
    telling: HashSet<ConversationId, foldhash::fast::FixedState>,
    recoveries: usize,
    recoveries_waiting: VecDeque<EntityId>,
    /// Every entity in memory, in the order in which they are looked at: when that is due at the latest, and when it
    /// had been used last by the time it was put here.
    idle: VecDeque<Watched>,
    bytes: usize,
    /// Changes of inboxes so far.
    changes: u64,
    /// Users who are not in memory.
    resting: Resting,
    /// Conversations that were put away though they were active lately.
    recent: Recent,
    /// Conversations whose members are to be told where they stand.
    owing_heads: BTreeSet<ConversationId>,
    /// Users with requests that wait until conversations have said where they stand.
    settling: HashSet<UserId, foldhash::fast::FixedState>,
    /// Pages whose rows are being gathered, by token.
    gatherings: HashMap<u64, Gathering, foldhash::fast::FixedState>,
    /// Requests about receipts that conversations' owners have not answered, by token.
    tellings: HashMap<u64, Telling, foldhash::fast::FixedState>,
    /// Conversations whose members have got further.
    due: Due,
    /// What receipts may be written.
    keeping: Keeping,
    /// Users whose inboxes have changed since their gateways were told.
    noted: Vec<UserId>,
    /// Users who are looked at.
    board: Board,
    /// When to renew the watches of whom; all wait equally long.
    renewals: VecDeque<(Millis, UserId)>,
    /// Questions how somebody is seen, by token.
    asked_seen: HashMap<u64, presence::AskedSeen, foldhash::fast::FixedState>,
    /// When partitions were opened, if that is not long ago; the others when the session began.
    opened: HashMap<Partition, Millis, foldhash::fast::FixedState>,
    began: Millis,
    /// Who is writing.
    typing: Typing,
    /// A look at all conversations, for what is overdue.
    walk: Walk,
    /// The request whose handling is under way, while nobody else keeps it.
    in_hand: Option<InHand>,
    stopping: Option<oneshot::Sender<()>>,
    stopped: bool,
    is_dead: bool,
    measures: Measures,
}

/// An entity that may have gone idle.
struct Watched {
    due: Millis,
    used: Millis,
    entity: EntityId,
}

/// What a shard is made of; see [`Shard::new`] for what it begins with.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) peers: Arc<[Mailbox<Mail>]>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    pub(crate) reports: Arc<dyn Fn(Report) + Send + Sync>,
    pub(crate) abroad: Arc<dyn Abroad>,
    /// Entities of this shard that the store has on its list of announcements.
    pub(crate) unannounced: Vec<EntityId>,
}

impl Shard {
    pub(crate) fn new(parts: Parts) -> Self {
        let session = parts.store.session();
        let confirms_at_once = !parts.store.is_fenced();
        // Who shares the log with nobody owns everything.
        let tenure = if confirms_at_once { Tenure::Open(session.epoch) } else { Tenure::Absent };
        let outgoing = parts.peers.iter().map(|_| Vec::new()).collect();
        Self {
            index: parts.index,
            outgoing,
            peers: parts.peers,
            store: parts.store,
            session: session.id,
            tenures: Tenures::all(tenure),
            sealing: Vec::new(),
            moved: HashSet::default(),
            moved_at: 0,
            withheld: Vec::new(),
            abroad: parts.abroad,
            settings: parts.settings,
            clock: parts.clock,
            reports: parts.reports,
            now: 0,
            conversations: Entities::default(),
            users: Entities::default(),
            gateways: Vec::new(),
            interest: HashMap::default(),
            unannounced: parts.unannounced.into_iter().collect(),
            postponed: Vec::new(),
            cold: VecDeque::new(),
            local: VecDeque::new(),
            flush: Vec::new(),
            groups: HashMap::default(),
            projections: Vec::new(),
            failed_projections: Vec::new(),
            projecting: HashMap::default(),
            reads: HashMap::default(),
            next_token: 0,
            pump: Pump::default(),
            confirms_at_once,
            clean_at: 0,
            reading_since: 0,
            asking_heads: HashSet::default(),
            telling: HashSet::default(),
            recoveries: 0,
            recoveries_waiting: VecDeque::new(),
            idle: VecDeque::new(),
            bytes: 0,
            changes: 0,
            resting: Resting::default(),
            recent: Recent::default(),
            owing_heads: BTreeSet::new(),
            settling: HashSet::default(),
            gatherings: HashMap::default(),
            tellings: HashMap::default(),
            due: Due::default(),
            keeping: Keeping::default(),
            noted: Vec::new(),
            board: Board::default(),
            renewals: VecDeque::new(),
            asked_seen: HashMap::default(),
            opened: HashMap::default(),
            began: 0,
            typing: Typing::default(),
            walk: Walk::default(),
            in_hand: None,
            stopping: None,
            stopped: false,
            is_dead: false,
            measures: Measures::new(),
        }
    }

    /// Runs until stopped.
    pub(crate) async fn run(mut self) {
        let mailbox = self.peers[self.index].clone();
        let mut mail = Vec::new();
        self.warm_up();
        while !self.stopped {
            mailbox.take(&mut mail).await;
            // Whatever is ready to run gets its turn first and adds its mail to this one's: under load groups grow by
            // themselves, when nothing else is ready this costs nothing.
            tokio::task::yield_now().await;
            mailbox.take_more(&mut mail);
            self.turn(&mut mail);
        }
    }

    /// Entities that may owe announcements are read at once, whoever asks for them.
    pub(crate) fn warm_up(&mut self) {
        self.now = (self.clock)();
        self.clean_at = self.now;
        self.began = self.now;
        let owing: Vec<EntityId> = self.unannounced.iter().cloned().collect();
        for entity in owing {
            match entity {
                EntityId::Conversation(id) => self.load_conversation(id),
                EntityId::User(_) => {}
            }
        }
        self.end_turn();
    }

    /// Handles everything in `mail`, then sends what came of it.
    pub(crate) fn turn(&mut self, mail: &mut Vec<Mail>) {
        self.now = (self.clock)();
        self.measures.queue_depth(mail.len());
        for item in mail.drain(..) {
            self.handle(item);
            while let Some(item) = self.local.pop_front() {
                self.peer(item);
            }
        }
        self.end_turn();
    }

    fn end_turn(&mut self) {
        self.tell_receipts();
        while let Some(item) = self.local.pop_front() {
            self.peer(item);
        }
        self.make_room();
        if !self.is_dead {
            self.send_appends();
            self.send_projections();
            self.cut_what_is_quiet();
            self.follow_the_moved();
            self.read_fence(false);
        }
        for (index, mail) in self.outgoing.iter_mut().enumerate() {
            if !mail.is_empty() {
                self.peers[index].send_all(mail.drain(..));
            }
        }
        self.send_batches();
        self.finish_stop();
    }

    fn handle(&mut self, mail: Mail) {
        match mail {
            Mail::Gateway(from, ToNode::Command(lane, asked)) => self.ask(from, lane, Question::Command(asked)),
            Mail::Gateway(from, ToNode::Connect(lane, connecting)) => {
                self.ask(from, lane, Question::Connect(connecting));
            }
            Mail::Gateway(from, ToNode::AskAccess(lane, asked)) => self.ask(from, lane, Question::Access(asked)),
            Mail::Gateway(gateway, ToNode::Disconnect { user, connection }) => {
                self.disconnect(&user, Connection { gateway, slot: connection });
            }
            Mail::Gateway(gateway, ToNode::Attend { user, connection, attention }) => {
                self.attend(&user, Connection { gateway, slot: connection }, attention);
            }
            Mail::Gateway(from, ToNode::Interest { conversation, listening }) => {
                self.listen(from, conversation, listening)
            }
            Mail::Peer(mail) => self.peer(mail),
            Mail::Store(session, mail) if session == self.session => self.stored(mail),
            // For an earlier session, which is over: nothing that it began may have an effect any more.
            Mail::Store(..) => {}
            Mail::Tenure(mail) => self.change_tenure(mail),
            Mail::Begin(store) => self.begin_session(store),
            Mail::End(why) => self.die(why),
            Mail::Moved(partitions) => self.moved(&partitions),
            Mail::Overdue(id) => self.overdue(id),
            Mail::Kept(kept_ms) => self.retention_heard(kept_ms),
            Mail::Tick => self.tick(),
            Mail::Attach(id, port) => self.gateways.push(GatewaySlot { id, port, batch: Vec::new() }),
            Mail::Detach(id) => {
                self.tenures.forget(id);
                self.gateways.retain(|gateway| gateway.id != id);
                self.forget_gateway(id);
                self.interest.retain(|_, gateways| {
                    gateways.retain(|gateway| *gateway != id);
                    !gateways.is_empty()
                });
            }
            Mail::Stop(done) => self.stop(done),
        }
    }

    fn peer(&mut self, mail: PeerMail) {
        match mail {
            PeerMail::News { news, users } => self.news(&news, &users),
            PeerMail::Tell { user, fact, conversation } => self.tell(user, fact, conversation),
            PeerMail::Told { conversation, at, user } => self.told(conversation, at, &user),
            PeerMail::AskHeads { user, conversations } => {
                for conversation in conversations {
                    self.ask_head(conversation, user.clone());
                }
            }
            PeerMail::Heads { user, known } => self.head_known(&user, known),
            PeerMail::AskRows { token, user, conversations } => {
                for conversation in conversations {
                    self.ask_row(conversation, token, user.clone());
                }
            }
            PeerMail::Row { token, user, conversation, told } => self.row_told(token, &user, conversation, told),
            PeerMail::Mentioned { user, known, counts } => self.is_mentioned(&user, known, counts),
            PeerMail::Watch { watcher, watches } => self.watch_users(&watcher, watches),
            PeerMail::Unwatch { watcher, users } => self.unwatch_users(&watcher, &users),
            PeerMail::Seen { user, shown, epoch, watchers } => self.is_seen(&user, shown, epoch, &watchers),
            PeerMail::AskSeen { token, asker, watch } => self.ask_seen(token, asker, watch),
            PeerMail::ToldSeen { token, asker, shown } => self.told_seen(token, &asker, shown),
            PeerMail::Progress { token, user, progress, private } => {
                for progress in progress {
                    self.hear_progress(progress.conversation, Said { token, user: user.clone(), progress, private });
                }
            }
            PeerMail::Progressed { token, user, conversation, result, was_read } => {
                self.progressed(token, &user, conversation, result, was_read);
            }
            PeerMail::Receipts { receipts, users } => self.hear_receipts(&receipts, &users),
        }
    }

    fn stored(&mut self, mail: StoreMail) {
        match mail {
            StoreMail::Written { group, outcomes } => self.written(group, outcomes),
            StoreMail::Confirmed(confirmation) => self.confirmed(confirmation),
            StoreMail::Recovered(entity, epoch, result) => {
                self.recoveries -= 1;
                match entity {
                    _ if self.epoch_of(&entity) != Some(epoch) => {}
                    EntityId::Conversation(id) => self.conversation_recovered(id, result),
                    EntityId::User(id) => self.user_recovered(&id, result),
                }
                self.recover_waiting();
            }
            StoreMail::Page { token, page } => self.page_read(token, page),
            StoreMail::Target { conversation, of, seq, page } => self.target_found(conversation, of, seq, page),
            StoreMail::Reactions(found) => self.reactions_found(found),
            StoreMail::Members { conversation, token, page } => self.members_read(conversation, token, page),
            StoreMail::Reacted { token, page } => self.reacted_read(token, page),
            StoreMail::Overlays { conversation, of, targets, found } => {
                if self.conversations.get(&conversation).is_some_and(|slot| slot.incarnation() == of) {
                    self.overlays_found(conversation, &targets, found);
                }
            }
            StoreMail::Id { token, found } => self.id_found(token, found),
            StoreMail::Projected { token, result } => self.projected(token, result),
            StoreMail::Retained { conversation, token, done } => self.retained(conversation, token, done),
            StoreMail::Walked(result) => self.walked(result),
        }
    }

    // === questions

    /// A gateway's question: begun where this session owns, kept while that is about to be so, refused elsewhere.
    fn ask(&mut self, from: GatewayId, lane: Lane, question: Question) {
        match self.tenures.standing(from, lane) {
            Standing::Current => {}
            Standing::Outdated => return,
            Standing::Refused => return self.refuse(from, lane),
        }
        match self.tenures.at(lane.partition) {
            _ if self.is_dead => self.refuse(from, lane),
            Tenure::Open(_) => self.begin(from, question),
            Tenure::Absent => self.refuse(from, lane),
            Tenure::Opening | Tenure::Sealed(_) | Tenure::Cut(_) => {
                if !self.tenures.park(from, lane, question) {
                    self.refuse(from, lane);
                }
            }
        }
    }

    fn begin(&mut self, from: GatewayId, question: Question) {
        if self.is_cut_off() {
            let error = Error::new(Code::Unavailable).with_detail("the log cannot be reached").after_ms(500);
            return match question {
                Question::Command(asked) => self.reply(from, asked.correlation, Err(error)),
                Question::Connect(connecting) => {
                    self.connected(&connecting.actor.user, from, connecting.correlation, Err(error));
                }
                Question::Access(asked) => self.tell_access(from, asked.correlation, Err(error)),
            };
        }
        if let (Question::Command(asked), Some(ms)) = (&question, self.store.overload()) {
            let error = Error::new(Code::Overloaded).with_detail("the log has too much to do").after_ms(ms);
            return self.reply(from, asked.correlation, Err(error));
        }
        match question {
            Question::Command(asked) => match asked.command.conversation() {
                Some(conversation) => self.command(conversation, from, asked),
                None => self.inbox(from, asked),
            },
            Question::Connect(connecting) => self.connect(from, connecting),
            Question::Access(asked) => self.ask_access(from, asked),
        }
    }

    /// Whether the fence has not been read as clean for too long: nobody can tell whether this session still owns anything.
    const fn is_cut_off(&self) -> bool {
        !self.confirms_at_once && self.now > self.clean_at + FENCE_UNREAD_MS_MAX
    }

    /// The lane's gateway sends all of its queue again, to whoever it finds to be the owner.
    fn refuse(&mut self, from: GatewayId, lane: Lane) {
        self.tenures.refuse(from, lane);
        self.send_to_gateway(from, ToGateway::Moved { lane, owner: None });
    }

    // === to gateways and other shards

    /// Hands out what there is for gateways, in the name of the present session.
    fn send_batches(&mut self) {
        for gateway in &mut self.gateways {
            if !gateway.batch.is_empty() {
                gateway.port.receive(self.session, std::mem::take(&mut gateway.batch));
            }
        }
    }

    fn send_to_gateway(&mut self, gateway: GatewayId, message: ToGateway) {
        // Who is gone needs no answer.
        if let Some(slot) = self.gateways.iter_mut().find(|slot| slot.id == gateway) {
            slot.batch.push(message);
        }
    }

    fn reply(&mut self, gateway: GatewayId, correlation: Correlation, result: Result<Reply, Error>) {
        if self.in_hand == Some(InHand::Command(gateway, correlation)) {
            self.kept();
        }
        self.send_to_gateway(gateway, ToGateway::Reply(correlation, result));
    }

    fn send_to_entity(&mut self, entity: &EntityId, mail: PeerMail) {
        self.send_to_partition(entity.partition(), mail);
    }

    fn send_to_partition(&mut self, partition: Partition, mail: PeerMail) {
        if let Some(place) = self.place(partition) {
            self.send_to_place(place, mail);
        }
    }

    /// Where mail for a partition goes, if somebody owns it.
    fn place(&self, partition: Partition) -> Option<Place> {
        match self.abroad.home(partition) {
            Home::Here => Some(Place::Shard(shard_of_partition(partition, self.peers.len()))),
            Home::Elsewhere(session) => Some(Place::Node(session)),
            Home::Nowhere => None,
        }
    }

    fn send_to_place(&mut self, place: Place, mail: PeerMail) {
        match place {
            Place::Shard(shard) => self.send_to_shard(shard, mail),
            Place::Node(session) => self.abroad.send(session, mail),
        }
    }

    /// Items by where they go: one list for each shard here, and one for each node elsewhere.
    fn by_place<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        partition: impl Fn(&T) -> Partition,
    ) -> SmallVec<[(Place, Vec<T>); 4]> {
        let mut by_place: SmallVec<[(Place, Vec<T>); 4]> = SmallVec::new();
        for item in items {
            let Some(place) = self.place(partition(&item)) else { continue };
            // There are few: shards of this node, and other nodes.
            match by_place.iter_mut().find(|(known, _)| *known == place) {
                Some((_, items)) => items.push(item),
                None => by_place.push((place, vec![item])),
            }
        }
        by_place
    }

    fn send_to_shard(&mut self, shard: usize, mail: PeerMail) {
        if shard == self.index {
            self.local.push_back(mail);
        } else {
            self.outgoing[shard].push(Mail::Peer(mail));
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// A way for the store to answer this shard.
    fn answer<T: 'static>(&self, wrap: impl FnOnce(T) -> StoreMail + Send + 'static) -> store::Done<T> {
        let (mailbox, session) = (self.peers[self.index].clone(), self.session);
        Box::new(move |outcome| mailbox.send(Mail::Store(session, wrap(outcome))))
    }

    // === appends

    fn list_for_flush(flush: &mut Vec<EntityId>, listed: &mut bool, entity: impl Into<EntityId>) {
        if !*listed {
            *listed = true;
            flush.push(entity.into());
        }
    }

    fn send_appends(&mut self) {
        if self.flush.is_empty() || self.groups.len() >= GROUPS_MAX {
            return;
        }
        let mut group = Vec::with_capacity(self.flush.len());
        for entity in std::mem::take(&mut self.flush) {
            let append = match &entity {
                EntityId::Conversation(id) => self.conversations.get_mut(id).and_then(|slot| {
                    slot.line.listed = false;
                    let epoch = slot.epoch;
                    slot.line.fly(entity.clone(), epoch)
                }),
                EntityId::User(id) => self.users.get_mut(id).and_then(|slot| {
                    slot.line.listed = false;
                    let epoch = slot.epoch;
                    slot.line.fly(entity.clone(), epoch)
                }),
            };
            // An entity with a flight on its way is listed again when that one has landed.
            group.extend(append);
        }
        self.append(group);
    }

    fn append(&mut self, group: Vec<Append>) {
        if group.is_empty() {
            return;
        }
        let token = self.token();
        self.groups.insert(token, group.iter().map(|append| (append.entity.clone(), append.epoch)).collect());
        let done = self.answer(move |outcomes| StoreMail::Written { group: token, outcomes });
        self.store.append(group, done);
    }

    fn written(&mut self, group: u64, outcomes: Vec<Written>) {
        let Some(entities) = self.groups.remove(&group) else { return };
        let mut again = Vec::new();
        for ((entity, epoch), outcome) in entities.into_iter().zip(outcomes) {
            if self.epoch_of(&entity) != Some(epoch) {
                // Of a tenure that is over: nothing waits for it.
                continue;
            }
            match outcome {
                Written::Durable if self.confirms_at_once || is(Bug::AckBeforeFence) => self.commit(&entity, epoch),
                Written::Durable => self.pump.issue(Ticket::Flight(entity, epoch)),
                Written::Unknown => again.extend(self.flight(&entity)),
                Written::NotWritten(reason) => self.not_written(&entity, &reason),
                Written::Refused(reason) => self.die(format!("the store refused a write of {entity}: {reason}")),
            }
        }
        if !self.is_dead {
            self.append(again);
        }
    }

    fn flight(&mut self, entity: &EntityId) -> Option<Append> {
        match entity {
            EntityId::Conversation(id) => self.conversations.get_mut(id)?.line.again(),
            EntityId::User(id) => self.users.get_mut(id)?.line.again(),
        }
    }

    /// The epoch under which an entity in memory is owned.
    fn epoch_of(&self, entity: &EntityId) -> Option<Epoch> {
        match entity {
            EntityId::Conversation(id) => self.conversations.get(id).map(|slot| slot.epoch),
            EntityId::User(id) => self.users.get(id).map(|slot| slot.epoch),
        }
    }

    /// What the entity sent under this epoch, which is its tenure's, is committed.
    fn commit(&mut self, entity: &EntityId, epoch: Epoch) {
        if !self.may_release(entity) && !is(Bug::CutReleases) {
            return self.withheld.push(Ticket::Flight(entity.clone(), epoch));
        }
        match entity {
            EntityId::Conversation(id) => self.commit_conversation(*id),
            EntityId::User(id) => self.commit_user(id),
        }
    }

    fn not_written(&mut self, entity: &EntityId, reason: &str) {
        tracing::error!(event = "append_refused", %entity, reason);
        let error = Error::new(Code::Unavailable)
            .with_detail("the log takes no more at the moment; nothing was written")
            .after_ms(1000);
        match entity {
            EntityId::Conversation(id) => self.conversation_lost(*id, &error),
            EntityId::User(id) => self.user_lost(id, &error),
        }
    }

    // === the fence

    /// Lets out what was decided on a committed head: at once where the store needs no fence read. `anyway` reads also
    /// when nothing waits: an owner must know that it still is one.
    fn read_fence(&mut self, anyway: bool) {
        if self.pump.start(anyway) {
            self.reading_since = self.now;
            let done = self.answer(StoreMail::Confirmed);
            if let Some(confirmation) = self.store.confirm(done) {
                self.confirmed(confirmation);
            }
        }
    }

    fn confirmed(&mut self, confirmation: Confirmation) {
        if confirmation == Confirmation::Fenced && !is(Bug::SessionRevived) {
            self.die("this session was superseded by another owner".to_owned());
            return;
        }
        let confirmation = if is(Bug::SessionRevived) { Confirmation::Clean } else { confirmation };
        if confirmation == Confirmation::Clean {
            self.clean_at = self.reading_since;
        }
        for ticket in self.pump.finish(confirmation) {
            self.admit(ticket);
        }
    }

    /// Lets out what a clean fence read covers, unless its partition is cut.
    fn admit(&mut self, ticket: Ticket) {
        match ticket {
            // Else it is of a tenure that is over.
            Ticket::Flight(entity, epoch) if self.epoch_of(&entity) == Some(epoch) => self.commit(&entity, epoch),
            Ticket::Flight(..) => {}
            Ticket::Conversation(id, _) if !self.may_release(&id.into()) && !is(Bug::CutReleases) => {
                self.withheld.push(ticket)
            }
            Ticket::User(ref release) if !self.may_release(&release.user().clone().into()) => {
                self.withheld.push(ticket)
            }
            Ticket::Conversation(id, release) => self.release_conversation(id, release),
            Ticket::User(release) => self.release_user(release),
        }
    }

    /// Whether what was decided by this entity may be let out. Where nothing is ever cut, always.
    fn may_release(&self, entity: &EntityId) -> bool {
        self.confirms_at_once || self.tenures.may_release(entity.partition())
    }

    /// The session is over: nothing is acknowledged any more, and nothing in memory is to be trusted.
    fn die(&mut self, why: String) {
        if !self.is_dead {
            self.is_dead = true;
            tracing::error!(event = "session_ended", why);
            (self.reports)(Report::Ended(self.session, why));
        }
    }

    // === projections

    fn project(&mut self, then: Projected, write: Projection) {
        self.projections.push((then, write));
    }

    fn send_projections(&mut self) {
        if self.projections.is_empty() {
            return;
        }
        let (then, writes): (Vec<_>, Vec<_>) = std::mem::take(&mut self.projections).into_iter().unzip();
        let token = self.token();
        let done = self.answer(move |result| StoreMail::Projected { token, result });
        self.projecting.insert(token, (then, writes.clone()));
        self.store.project(writes, done);
    }

    fn projected(&mut self, token: u64, result: Result<(), store::Error>) {
        let Some((then, writes)) = self.projecting.remove(&token) else { return };
        if let Err(error) = result {
            tracing::warn!(event = "projection_failed", %error);
            // Written again with the next tick: projections may be repeated at will, but not without a pause.
            self.failed_projections.extend(then.into_iter().zip(writes));
            return;
        }
        for done in then {
            match done {
                Projected::Derived(id, upto) => self.derived_durable(id, upto),
                Projected::IdBlock(id, end) => self.id_block_durable(id, end),
                Projected::Inbox(id) => self.inbox_flushed(&id),
                Projected::Receipts(id) => self.receipts_kept(id),
                Projected::Members(id, token) => self.members_durable(id, token),
                Projected::Snapshot(id, seq) => self.snapshot_durable(id, seq),
                Projected::Other => {}
            }
        }
    }

    // === recovery

    fn recover(&mut self, entity: EntityId) {
        let Some(epoch) = self.epoch_of(&entity) else { return };
        if self.recoveries >= RECOVERIES_MAX {
            self.recoveries_waiting.push_back(entity);
            return;
        }
        self.recoveries += 1;
        let back = entity.clone();
        let done = self.answer(move |result| StoreMail::Recovered(back, epoch, result));
        self.store.recover(entity, prints_since(self.now), done);
    }

    fn recover_waiting(&mut self) {
        while self.recoveries < RECOVERIES_MAX
            && let Some(entity) = self.recoveries_waiting.pop_front()
        {
            self.recover(entity);
        }
        self.open_found();
    }

    // === time

    fn tick(&mut self) {
        let mut looks = self.idle.len() + self.cold.len();
        let due = |queue: &VecDeque<Watched>, now| queue.front().is_some_and(|watched| watched.due <= now);
        while looks > 0 && (due(&self.idle, self.now) || due(&self.cold, self.now)) {
            looks -= 1;
            self.look_at_oldest();
        }
        self.projections.append(&mut self.failed_projections);
        for (user, fact, conversation) in std::mem::take(&mut self.postponed) {
            self.local.push_back(PeerMail::Tell { user, fact, conversation });
        }
        self.tick_inbox();
        self.tick_presence();
        self.tick_typing();
        self.tick_receipts();
        self.tick_retention();
        self.measures.entities(self.conversations.len(), self.users.len(), self.resting.len());
        if !self.confirms_at_once && !self.is_dead {
            self.ask_again();
            self.pay_heads();
            self.read_fence(true);
        }
    }

    /// Between nodes questions and news may get lost.
    fn ask_again(&mut self) {
        let asking: Vec<UserId> = self.asking_heads.iter().cloned().collect();
        for user in asking {
            let ask = |shard: &mut Self| {
                if let Some(user) = shard.users.get_mut(&user).and_then(|slot| slot.slot.ready()) {
                    user.ask_again();
                }
                shard.ask_heads(&user);
            };
            self.guarded(|| user.clone().into(), ask);
        }
        self.ask_rows_again();
        self.say_progress_again();
        let telling: Vec<ConversationId> = self.telling.iter().copied().collect();
        for conversation in telling {
            self.tell_again(conversation);
        }
    }

    /// Over budget, the longest watched are put away, unless they were used meanwhile: a second chance for what is in
    /// use. Each turn looks at a few, so that no turn is long.
    fn make_room(&mut self) {
        let mut looks = (self.idle.len() + self.cold.len()).min(EVICTIONS_PER_TURN);
        while looks > 0 && self.is_crowded() {
            looks -= 1;
            self.look_at_oldest();
        }
    }

    const fn is_crowded(&self) -> bool {
        self.bytes > self.settings.budget_bytes
    }

    fn look_at_oldest(&mut self) {
        let cold_first = self.is_crowded() || self.cold.front().is_some_and(|watched| watched.due <= self.now);
        let next =
            if cold_first { self.cold.pop_front().or_else(|| self.idle.pop_front()) } else { self.idle.pop_front() };
        let Some(Watched { used, entity, .. }) = next else { return };
        let looked = self.guarded(
            || entity.clone(),
            |shard| match &entity {
                EntityId::Conversation(id) => shard.rest_conversation(*id, used),
                EntityId::User(id) => shard.rest_user(id, used),
            },
        );
        let again = looked.unwrap_or(Some((self.now + self.settings.idle_ms, used)));
        if let Some((due, used)) = again {
            let queue = if due > self.now + 2 * self.settings.idle_ms { &mut self.cold } else { &mut self.idle };
            queue.push_back(Watched { due, used, entity });
        }
    }

    fn watch(&mut self, entity: impl Into<EntityId>) {
        let (due, used) = (self.now + self.settings.idle_ms, self.now);
        self.idle.push_back(Watched { due, used, entity: entity.into() });
    }

    fn account(bytes: &mut usize, slot: &mut usize, now: usize) {
        *bytes = *bytes + now - *slot;
        *slot = now;
    }

    // === stopping

    fn stop(&mut self, done: oneshot::Sender<()>) {
        self.stopping = Some(done);
        let conversations: Vec<ConversationId> = self.conversations.keys().copied().collect();
        for id in conversations {
            self.guarded(
                || id.into(),
                |shard| {
                    shard.snapshot_before_rest(id);
                    shard.keep_receipts(id);
                },
            );
        }
        let users: Vec<UserId> = self.users.keys().cloned().collect();
        for id in users {
            self.guarded(|| id.clone().into(), |shard| shard.flush_inbox(&id));
        }
    }

    fn finish_stop(&mut self) {
        if self.stopping.is_none() {
            return;
        }
        let busy = !self.is_dead
            && (!self.groups.is_empty()
                || !self.flush.is_empty()
                || !self.projecting.is_empty()
                || !self.projections.is_empty());
        if !busy && let Some(done) = self.stopping.take() {
            self.stopped = true;
            // Whoever asked may have given up waiting.
            let _ = done.send(());
        }
    }

    const fn is_stopping(&self) -> bool {
        self.stopping.is_some() || self.is_dead
    }
}

/// Which shard drives an entity: its partition decides, so that one partition is never split.
pub(crate) fn shard_of(entity: &EntityId, shards: usize) -> usize {
    shard_of_partition(entity.partition(), shards)
}

/// Which shard drives a partition.
pub(crate) const fn shard_of_partition(partition: Partition, shards: usize) -> usize {
    partition.0 as usize % shards
}
