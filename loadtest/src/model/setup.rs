//! What is checked: how big the world is, which rules hold in it, and which rule is broken on purpose.

use std::fmt;

use super::variant::Variant;

/// Bounds of a packed state; a check may be smaller.
pub const SLOTS: usize = 4;
/// See [`SLOTS`].
pub const EPOCHS: usize = 6;
/// See [`SLOTS`].
pub const SESSIONS: usize = 6;
/// See [`SLOTS`].
pub const COMMANDS: usize = 5;
/// See [`SLOTS`].
pub const MOVES: usize = 3;
/// See [`SLOTS`].
pub const SNAPSHOTS: usize = 2;
/// Where the store is spelt out, it has three replicas, and two make a quorum.
pub const REPLICAS: usize = 3;

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Sessions of nodes.
    pub sessions: u8,
    /// Epochs of the partition: the first, and one for each change of owner.
    pub epochs: u8,
    /// Slots of the entity's log.
    pub slots: u8,
    /// Different commands; each may be sent again and again, to any owner.
    pub commands: u8,
    /// Planned moves that are begun.
    pub moves: u8,
    /// Snapshots that are written.
    pub snapshots: u8,
    /// Whether an owner drops the entity and recovers it again.
    pub evictions: bool,
    /// How rows are sent.
    pub flights: Flights,
    /// Whether rows carry the committed watermark.
    pub cw: bool,
    /// Where the walk of a recovery ends.
    pub stop: Stop,
    /// Whether an event must stand on the very history on which it was decided.
    pub history: bool,
    /// How the store is modelled.
    pub store: Store,
    /// What is done wrong.
    pub variant: Variant,
}

impl Setup {
    /// The protocol as it is used, as far as it concerns forced successions.
    pub const fn of(sessions: u8, slots: u8, commands: u8) -> Self {
        Self {
            sessions,
            epochs: sessions,
            slots,
            commands,
            moves: 0,
            snapshots: 0,
            evictions: false,
            flights: Flights::Pipelined,
            cw: true,
            stop: Stop::Chain,
            history: true,
            store: Store::InTurn,
            variant: Variant::None,
        }
    }

    /// With planned moves, and as many epochs.
    #[must_use]
    pub const fn moves(self, moves: u8, epochs: u8) -> Self {
        Self { moves, epochs, ..self }
    }

    /// With snapshots.
    #[must_use]
    pub const fn snapshots(self, snapshots: u8) -> Self {
        Self { snapshots, ..self }
    }

    /// With evictions and panics.
    #[must_use]
    pub const fn evictions(self) -> Self {
        Self { evictions: true, ..self }
    }

    /// With one flight of the entity at a time.
    #[must_use]
    pub const fn single_flight(self) -> Self {
        Self { flights: Flights::Single, ..self }
    }

    /// Without the committed watermark in rows.
    #[must_use]
    pub const fn without_cw(self) -> Self {
        Self { cw: false, ..self }
    }

    /// With another end of the walk, which does not promise to keep histories.
    #[must_use]
    pub const fn stop(self, stop: Stop) -> Self {
        Self { stop, history: false, ..self }
    }

    /// With the promise that an event stands on the history on which it was decided.
    #[must_use]
    pub const fn history(self) -> Self {
        Self { history: true, ..self }
    }

    /// With another store.
    #[must_use]
    pub const fn store(self, store: Store) -> Self {
        Self { store, ..self }
    }

    /// With a rule broken.
    #[must_use]
    pub const fn broken(self, variant: Variant) -> Self {
        Self { variant, ..self }
    }

    /// Whether snapshots, or the same bytes on their way between nodes, are part of it.
    pub fn has_images(&self) -> bool {
        self.snapshots > 0 || self.moves > 0
    }

    /// Whether what a session remembers of each slot's writer matters.
    pub fn has_marks(&self) -> bool {
        self.stop == Stop::Chain || self.stop == Stop::Fresh && self.has_images()
    }

    /// The first bound that is too large.
    pub fn too_large(&self) -> Option<String> {
        let bounds = [
            ("sessions", self.sessions, SESSIONS),
            ("epochs", self.epochs, EPOCHS),
            ("slots", self.slots, SLOTS),
            ("commands", self.commands, COMMANDS),
            ("moves", self.moves, MOVES),
            ("snapshots", self.snapshots, SNAPSHOTS),
        ];
        let over = bounds.into_iter().find(|(_, value, max)| usize::from(*value) > *max);
        over.map(|(name, value, max)| format!("{name}: {value} are more than {max}"))
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} × {}", self.sessions, self.slots, self.commands)?;
        if self.epochs != self.sessions {
            write!(f, ", {} epochs", self.epochs)?;
        }
        for (count, what) in [(self.moves, "move"), (self.snapshots, "snapshot")].iter().filter(|(count, _)| *count > 0)
        {
            write!(f, ", {count} {what}{}", if *count == 1 { "" } else { "s" })?;
        }
        let rest = [
            (self.evictions, "evictions"),
            (self.flights == Flights::Single, "one flight at a time"),
            (!self.cw, "no cw"),
        ];
        for (_, what) in rest.iter().filter(|(there, _)| *there) {
            write!(f, ", {what}")?;
        }
        f.write_str(match self.stop {
            Stop::Repeated => ", ends at repeated ids",
            Stop::Fresh => ", ends at repeated ids and fresh epochs",
            Stop::Chain => "",
        })?;
        if self.history && self.stop != Stop::Chain {
            f.write_str(", history")?;
        }
        match self.store {
            Store::Replicas => f.write_str("; three replicas"),
            Store::Quorum => f.write_str("; any quorum"),
            Store::InTurn => f.write_str("; any quorum, in turn"),
        }
    }
}

/// Where the walk up of a recovery ends, besides at a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stop {
    /// At a command that stands lower already.
    Repeated,
    /// There, and at a slot whose winner is older than a fresh row further down.
    Fresh,
    /// At a row that was written above another event than the one that stands below it here, and only there: every row
    /// names the epochs under which its event and the one below it were written first. The rule in use.
    Chain,
}

/// How rows are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Flights {
    /// Each by itself, as soon as it has a slot, however many are on their way.
    Pipelined,
    /// Any number together, which arrive together or not at all; the next ones when those are committed.
    Single,
}

/// How the store is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// Three replicas, spelt out: every row and every fence arrives at each of them at any time or never, every read asks
    /// two of them, one after the other.
    Replicas,
    /// A quorum as its weakest promise: what was durable when a read began is seen; what was sent may be seen, or not,
    /// by each read anew. Stands for any number of replicas.
    Quorum,
    /// The same, and what a fenced session still does is put before its fence.
    InTurn,
}
