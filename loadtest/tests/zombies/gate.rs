//! What goes between an owner and the servers passes a gate, which a scene shuts and opens: a statement that has not arrived, an
//! answer that has not come back, as a network or a process that stands still would have it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use chappe_node::store::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Shared, Store, Walked, Written,
};
use chappe_schema::{
    id::{CommandId, ConversationId, EntityId, Generation, Millis, Seq, SessionId, UserId},
    reaction::ReactionKey,
    stored::{StoredId, StoredOverlay, StoredReaction},
};
use parking_lot::Mutex;
use prost::bytes::Bytes;

/// Something of which one kind passes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rows on their way to the servers.
    Append,
    /// That they are durable.
    Appended,
    /// What an owner reads of its own fence.
    FenceAnswer,
    /// Fences of former owners, on their way.
    Fence,
}

type Passing = Box<dyn FnOnce() + Send>;

/// See the module's documentation.
#[derive(Default)]
pub struct Gate {
    /// What waits, of the kinds that do not pass.
    shut: Mutex<HashMap<Kind, Vec<Passing>>>,
    /// Answers to appends that get lost from now on, or have passed.
    lost: AtomicUsize,
    appended: AtomicUsize,
    /// Requests that are neither answered nor held.
    under_way: AtomicU64,
}

impl Gate {
    /// Nothing of this kind passes from now on.
    pub fn shut(&self, kind: Kind) {
        self.shut.lock().entry(kind).or_default();
    }

    /// Everything of this kind passes, first what has waited.
    pub fn open(&self, kind: Kind) {
        let waiting = self.shut.lock().remove(&kind).unwrap_or_default();
        for passing in waiting {
            passing();
        }
    }

    /// How many of this kind wait.
    pub fn held(&self, kind: Kind) -> usize {
        self.shut.lock().get(&kind).map_or(0, Vec::len)
    }

    /// The next answer to an append is that nobody knows.
    pub fn lose_an_answer(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// How many appends have been found durable, whether or not their owner has heard of it.
    pub fn appended(&self) -> usize {
        self.appended.load(Ordering::Relaxed)
    }

    /// Whether nothing is at the servers.
    pub fn is_calm(&self) -> bool {
        let held: usize = self.shut.lock().values().map(Vec::len).sum();
        self.under_way.load(Ordering::SeqCst) <= held as u64
    }

    fn pass(&self, kind: Kind, passing: impl FnOnce() + Send + 'static) {
        let mut shut = self.shut.lock();
        if let Some(waiting) = shut.get_mut(&kind) {
            return waiting.push(Box::new(passing));
        }
        drop(shut);
        passing();
    }
}

/// The store that owners share, behind one owner's gate.
pub struct Gated<S: ?Sized> {
    store: Arc<S>,
    gate: Arc<Gate>,
}

impl<S: ?Sized> Gated<S> {
    pub fn new(store: Arc<S>, gate: Arc<Gate>) -> Self {
        Self { store, gate }
    }

    /// `done`, by which the gate knows that the request is over.
    fn counted<T: Send + 'static>(&self, done: Done<T>) -> Done<T> {
        self.gate.under_way.fetch_add(1, Ordering::SeqCst);
        let gate = Arc::clone(&self.gate);
        Box::new(move |answer| {
            done(answer);
            gate.under_way.fetch_sub(1, Ordering::SeqCst);
        })
    }
}

impl Shared for Gated<dyn Shared> {
    fn enter(&self, session: Session, minute: Arc<AtomicU64>) -> Arc<dyn Store> {
        Arc::new(Gated::new(self.store.enter(session, minute), Arc::clone(&self.gate)))
    }

    fn enrol(&self, session: SessionId, done: Done<Result<Generation, Error>>) {
        self.store.enrol(session, self.counted(done));
    }

    fn fence(&self, sessions: Vec<SessionId>, done: Done<bool>) {
        let (store, done) = (Arc::clone(&self.store), self.counted(done));
        self.gate.pass(Kind::Fence, move || store.fence(sessions, done));
    }

    fn active(&self, session: SessionId, since: u64, done: Done<Result<Vec<EntityId>, Error>>) {
        self.store.active(session, since, self.counted(done));
    }
}

impl Store for Gated<dyn Store> {
    fn session(&self) -> Session {
        self.store.session()
    }

    fn is_fenced(&self) -> bool {
        self.store.is_fenced()
    }

    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>) {
        let (store, gate, done) = (Arc::clone(&self.store), Arc::clone(&self.gate), self.counted(done));
        self.gate.pass(Kind::Append, move || {
            let answer = move |mut outcomes: Vec<Written>| {
                gate.appended.fetch_add(1, Ordering::Relaxed);
                let behind = Arc::clone(&gate);
                gate.pass(Kind::Appended, move || {
                    let take = |lost: usize| lost.checked_sub(1);
                    if behind.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                        outcomes.fill(Written::Unknown);
                    }
                    done(outcomes);
                });
            };
            store.append(group, Box::new(answer));
        });
    }

    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation> {
        let (gate, done) = (Arc::clone(&self.gate), self.counted(done));
        self.store.confirm(Box::new(move |confirmation| gate.pass(Kind::FenceAnswer, move || done(confirmation))))
    }

    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        self.store.recover(entity, ids_since, self.counted(done));
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>) {
        self.store.page(request, self.counted(done));
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {
        self.store.overlays(entity, targets, self.counted(done));
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
        self.store.reactions(entity, target, user, keys, self.counted(done));
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>) {
        self.store.reacted(request, self.counted(done));
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    ) {
        self.store.members(conversation, after, limit, self.counted(done));
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        since: (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    ) {
        self.store.find_id(entity, sender, id, since, self.counted(done));
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>) {
        self.store.purge(purge, self.counted(done));
    }

    fn list_active(&self, entities: Vec<EntityId>, done: Done<Result<(), Error>>) {
        self.store.list_active(entities, self.counted(done));
    }

    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>) {
        self.store.walk(from, limit, all, self.counted(done));
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        self.store.project(writes, self.counted(done));
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>) {
        self.store.announced(self.counted(done));
    }
}
