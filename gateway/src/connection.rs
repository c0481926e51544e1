//! One client's WebSocket, as the rest of the gateway knows it, and the table of all of them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use chappe_schema::{
    access::{By, Token},
    error::{Code, Error},
    id::{ConnectionSlot, DeviceId, GatewayId, SessionId, UserId},
    limit::PRESENCE_IDLE_MS,
    presence::{Attention, Watch},
    wire::Actor,
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::{
    meters::Reason,
    websocket::outbox::{Outbox, Wakers},
};

/// A connection. Its task reads and writes; everybody else pushes into its outbox.
pub(crate) struct Connection {
    /// How nodes name it.
    pub(crate) slot: ConnectionSlot,
    gateway: GatewayId,
    /// What waits to be written. Lock order: the table, then an outbox; never two outboxes.
    pub(crate) outbox: Mutex<Outbox>,
    who: OnceLock<Who>,
    /// The newest token.
    token: Mutex<Token>,
    // Seconds of the gateway's clock; 0 is never.
    opened: u32,
    heard: AtomicU32,
    said: AtomicU32,
    /// Since when the socket takes nothing, though something waits.
    stalled: AtomicU32,
    /// When the token, with its grace, is over.
    expires: AtomicU32,
    /// Since when we have been saying goodbye.
    closing: AtomicU32,
    /// When it last asked for something.
    acted: AtomicU32,
    /// The session that has registered it, of its user's owner; [`NOBODY`] so far.
    owner: AtomicU64,
    /// What its user's owner is told of it.
    attention: Mutex<Attending>,
    /// Numbers its errors.
    errors: AtomicU32,
}

/// What a connection's client has said of its user's attention, and what follows from its silence.
#[derive(Debug, Default)]
struct Attending {
    /// The client says that nobody is at hand.
    is_away: bool,
    /// It has asked for nothing for a while.
    is_idle: bool,
    /// At whom it looks.
    watches: Option<Arc<[Watch]>>,
}

/// Who a connection is, for good.
pub(crate) struct Who {
    pub(crate) user: UserId,
    pub(crate) device: Option<DeviceId>,
}

/// All connections of a gateway.
pub(crate) struct Connections {
    gateway: GatewayId,
    table: RwLock<Table>,
}

/// The table itself, to be held while a batch is delivered.
pub(crate) struct Table {
    places: Vec<Place>,
    /// Places that are free, the longest one first.
    free: VecDeque<u32>,
    len: usize,
}

struct Place {
    /// Which life of the place this is: an event on its way to a former connection must not reach the next one, whose
    /// user may be another.
    life: u32,
    connection: Option<Arc<Connection>>,
}

/// No session.
const NOBODY: SessionId = SessionId::MAX;

/// After so many seconds without a request a connection counts as idle.
const IDLE_S: u32 = (PRESENCE_IDLE_MS / 1000) as u32;

/// Places that a slot's number can name; the bits above count lives. A million connections are far beyond what one
/// process may have files for, and freed places wait in a queue, so 4096 lives take long.
const PLACE_BITS: u32 = 20;
const PLACES_MAX: usize = 1 << PLACE_BITS;
const LIFE_MASK: u32 = (1 << (32 - PLACE_BITS)) - 1;

// === impl Connection ===

impl Connection {
    /// The name that the client is told.
    pub(crate) fn name(&self) -> String {
        self.gateway.connection(self.slot)
    }

    /// A name for one of its errors, under which it stands in the log.
    pub(crate) fn request_id(&self) -> String {
        format!("{:x}-{:x}-{:x}", self.gateway.0, self.slot.0, self.errors.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether what this session says of its user counts: by now that may be a former owner's.
    pub(crate) fn is_of(&self, session: SessionId) -> bool {
        self.owner.load(Ordering::Relaxed) == session
    }

    /// Who it is, once that is known.
    pub(crate) fn who(&self) -> Option<&Who> {
        self.who.get()
    }

    /// Who asks, by the newest token.
    pub(crate) fn actor(&self) -> Option<Actor> {
        let by = By::Token(*self.token.lock());
        self.who.get().map(|who| Actor { user: who.user.clone(), device: who.device.clone(), by })
    }

    /// Says who it is; only the first word counts.
    pub(crate) fn introduce(&self, actor: &Actor) {
        let _ = self.who.set(Who { user: actor.user.clone(), device: actor.device.clone() });
    }

    /// Goes on with this token, until `expires` in seconds of the gateway's clock.
    pub(crate) fn renew(&self, token: Token, expires: u32) {
        *self.token.lock() = token;
        self.expires.store(expires, Ordering::Relaxed);
    }

    /// Notes a sign of life.
    pub(crate) fn hear(&self, now: u32) {
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Notes that it asks for something; what is to be told of that, if it counted as idle.
    pub(crate) fn act(&self, now: u32) -> Option<Attention> {
        self.acted.store(now, Ordering::Relaxed);
        self.set_idle(false)
    }

    /// Notes that it has asked for nothing for a while; what is to be told of that, if it is news.
    pub(crate) fn rest(&self, now: u32) -> Option<Attention> {
        let is_idle = now - self.acted.load(Ordering::Relaxed).min(now) >= IDLE_S;
        if is_idle { self.set_idle(true) } else { None }
    }

    fn set_idle(&self, is_idle: bool) -> Option<Attention> {
        let mut attending = self.attention.lock();
        let was_idle = std::mem::replace(&mut attending.is_idle, is_idle);
        // Whoever has said so is away already.
        (was_idle != is_idle && !attending.is_away).then(|| attending.all())
    }

    /// Its client says whether anybody is at hand; what is to be told of it.
    pub(crate) fn declare(&self, is_away: bool) -> Attention {
        let mut attending = self.attention.lock();
        attending.is_away = is_away;
        attending.all()
    }

    /// Whether nobody is at hand.
    pub(crate) fn is_away(&self) -> bool {
        let attending = self.attention.lock();
        attending.is_away || attending.is_idle
    }

    /// Its client looks at these users, and at nobody else; what is to be told of it.
    pub(crate) fn look(&self, watches: Arc<[Watch]>) -> Attention {
        let mut attending = self.attention.lock();
        attending.watches = Some(watches).filter(|watches| !watches.is_empty());
        attending.all()
    }

    /// All of that, for an owner who knows nothing of it; `None` if there is nothing to know.
    pub(crate) fn attention(&self) -> Option<Attention> {
        Some(self.attention.lock().all()).filter(|attention| *attention != Attention::default())
    }

    /// Notes that something was written, so the socket takes something.
    pub(crate) fn say(&self, now: u32) {
        self.said.store(now, Ordering::Relaxed);
        self.stalled.store(0, Ordering::Relaxed);
    }

    /// Notes that the socket takes nothing.
    pub(crate) fn stall(&self, now: u32) {
        let _ = self.stalled.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that goodbye is being said; returns since when.
    pub(crate) fn close_since(&self, now: u32) -> u32 {
        self.closing.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_else(|since| since).max(1)
    }

    /// Since when goodbye has been said, 0 if it has not.
    pub(crate) fn closing_since(&self) -> u32 {
        self.closing.load(Ordering::Relaxed)
    }

    /// Since when it has been there.
    pub(crate) const fn opened_at(&self) -> u32 {
        self.opened
    }

    /// When it was last heard, when something was last said, since when it stalls, when its token is over.
    pub(crate) fn times(&self) -> (u32, u32, u32, u32) {
        let load = |time: &AtomicU32| time.load(Ordering::Relaxed);
        (load(&self.heard), load(&self.said), load(&self.stalled), load(&self.expires))
    }

    /// Ends it with an error.
    pub(crate) fn close(&self, code: Code, why: Reason, wakers: &mut Wakers) {
        self.outbox.lock().close(&Error::new(code), &self.request_id(), why, wakers);
    }
}

impl Attending {
    fn all(&self) -> Attention {
        Attention { away: self.is_away || self.is_idle, watches: self.watches.clone() }
    }
}

// === impl Connections ===

impl Connections {
    pub(crate) fn new(gateway: GatewayId) -> Self {
        Self { gateway, table: RwLock::new(Table { places: Vec::new(), free: VecDeque::new(), len: 0 }) }
    }

    /// A place for a new connection; `None` when the table is full.
    pub(crate) fn insert(&self, now: u32) -> Option<Arc<Connection>> {
        let mut table = self.table.write();
        let index = match table.free.pop_front() {
            Some(index) => index,
            None if table.places.len() >= PLACES_MAX => return None,
            None => {
                table.places.push(Place { life: 0, connection: None });
                (table.places.len() - 1) as u32
            }
        };
        let place = &mut table.places[index as usize];
        let connection = Arc::new(Connection {
            slot: ConnectionSlot(place.life << PLACE_BITS | index),
            gateway: self.gateway,
            outbox: Mutex::new(Outbox::default()),
            who: OnceLock::new(),
            token: Mutex::default(),
            opened: now,
            heard: AtomicU32::new(now),
            said: AtomicU32::new(now),
            stalled: AtomicU32::new(0),
            expires: AtomicU32::new(u32::MAX),
            closing: AtomicU32::new(0),
            acted: AtomicU32::new(now),
            owner: AtomicU64::new(NOBODY),
            attention: Mutex::default(),
            errors: AtomicU32::new(0),
        });
        place.connection = Some(Arc::clone(&connection));
        table.len += 1;
        Some(connection)
    }

    /// Gives a place back.
    pub(crate) fn remove(&self, slot: ConnectionSlot) {
        let mut table = self.table.write();
        let index = slot.0 & (PLACES_MAX as u32 - 1);
        let Some(place) = table.places.get_mut(index as usize) else { return };
        if place.life != slot.0 >> PLACE_BITS || place.connection.take().is_none() {
            return;
        }
        place.life = (place.life + 1) & LIFE_MASK;
        table.free.push_back(index);
        table.len -= 1;
    }

    /// The table, to look several connections up. Must not be held across another look.
    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.table.read().len
    }

    /// Calls `visit` with every connection, letting others at the table in between.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Arc<Connection>)) {
        const STEP: usize = 1024;
        let mut from = 0;
        loop {
            let table = self.table.read();
            let end = table.places.len().min(from + STEP);
            for place in &table.places[from.min(end)..end] {
                if let Some(connection) = &place.connection {
                    visit(connection);
                }
            }
            if end == table.places.len() {
                return;
            }
            from = end;
        }
    }
}

impl Table {
    /// A session has registered a connection: from now on it hears of its user from there.
    pub(crate) fn registered(&self, slot: ConnectionSlot, session: SessionId) {
        if let Some(connection) = self.get(slot) {
            connection.owner.store(session, Ordering::Relaxed);
        }
    }

    /// Those of these connections that this session has registered.
    pub(crate) fn of_owner(&self, mut slots: Vec<ConnectionSlot>, session: SessionId) -> Vec<ConnectionSlot> {
        slots.retain(|slot| self.get(*slot).is_some_and(|connection| connection.is_of(session)));
        slots
    }

    /// The connection of a slot, if it is still there.
    pub(crate) fn get(&self, slot: ConnectionSlot) -> Option<&Arc<Connection>> {
        let place = self.places.get((slot.0 & (PLACES_MAX as u32 - 1)) as usize)?;
        place.connection.as_ref().filter(|_| place.life == slot.0 >> PLACE_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_never_names_another_connection() {
        let connections = Connections::new(GatewayId(1));
        let first = connections.insert(1).unwrap();
        assert!(connections.table().get(first.slot).is_some());
        connections.remove(first.slot);
        connections.remove(first.slot);
        assert!(connections.table().get(first.slot).is_none());
        let second = connections.insert(1).unwrap();
        assert_ne!(first.slot, second.slot);
        assert!(connections.table().get(first.slot).is_none(), "what was meant for the first never reaches the second");
        assert_eq!(connections.len(), 1);
    }

    #[test]
    fn lives_wrap_around() {
        let connections = Connections::new(GatewayId(1));
        for _ in 0..10_000 {
            let connection = connections.insert(1).unwrap();
            assert!(connections.table().get(connection.slot).is_some());
            connections.remove(connection.slot);
        }
        assert_eq!(connections.len(), 0);
        assert_eq!(connections.table().places.len(), 1);
    }

    #[test]
    fn each_visits_everyone_once() {
        let connections = Connections::new(GatewayId(1));
        let all: Vec<_> = (0..3000).map(|_| connections.insert(1).unwrap()).collect();
        connections.remove(all[5].slot);
        let mut seen = 0;
        connections.each(|_| seen += 1);
        assert_eq!(seen, 2999);
    }

    #[test]
    fn who_asks_for_nothing_is_away_until_they_ask() {
        let connection = Connections::new(GatewayId(1)).insert(10).unwrap();
        assert_eq!((connection.attention(), connection.rest(9 + IDLE_S)), (None, None));
        let away = Attention { away: true, watches: None };
        assert_eq!(connection.rest(10 + IDLE_S), Some(away.clone()));
        assert_eq!(connection.rest(11 + IDLE_S), None, "that is no news");
        assert_eq!(connection.attention(), Some(away.clone()), "for the next owner");
        assert_eq!(connection.act(12 + IDLE_S), Some(Attention::default()));
        assert_eq!(connection.act(13 + IDLE_S), None);
        // What the client says of itself holds, whatever it asks for.
        assert_eq!(connection.declare(true), away);
        assert_eq!((connection.rest(14 + 2 * IDLE_S), connection.act(15 + 2 * IDLE_S)), (None, None));
        assert_eq!(connection.declare(false), Attention::default());
    }

    #[test]
    fn a_connection_is_small() {
        let size = std::mem::size_of::<Connection>();
        println!("a Connection takes {size} bytes");
        assert!(size <= 368, "{size} bytes");
    }
}
