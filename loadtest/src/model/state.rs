//! Everything there is at one moment, and whether it may be.
//!
//! One entity of one partition. Slots, epochs, commands are numbers from 1, and 0 is none of them; sessions and replicas
//! count from 0, and sets of them are bits.

use super::{
    map::{Map, Status},
    session::{Phase, Session},
    setup::{REPLICAS, SESSIONS, SLOTS, SNAPSHOTS, Setup, Store},
    store::{EVERYWHERE, Image, Row, Rows, is_quorum},
    variant::Variant,
    violation::Violation,
};

/// See above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The rows that were sent.
    pub rows: Rows,
    /// The snapshots that were sent.
    pub snapshots: [Image; SNAPSHOTS],
    /// What Raft has decided.
    pub map: Map,
    /// The nodes' sessions.
    pub sessions: [Session; SESSIONS],
    /// What clients were told: the command acknowledged at each slot.
    pub acked: [u8; SLOTS],
}

impl State {
    /// The first session is about to open an empty log under the first epoch.
    pub fn initial() -> Self {
        let map = Map { epoch: 1, known: 1, ..Map::default() };
        Self { map, ..Self::default() }
    }

    /// A session.
    pub fn session(&self, session: u8) -> &Session {
        &self.sessions[usize::from(session)]
    }

    /// A session, to change it.
    pub fn session_mut(&mut self, session: u8) -> &mut Session {
        &mut self.sessions[usize::from(session)]
    }

    /// The rows of a session under its epoch: one or two contents for each slot.
    pub fn own_rows(&self, own: &Session) -> impl Iterator<Item = &[Row; 2]> {
        self.rows.iter().map(move |epochs| &epochs[usize::from(own.epoch) - 1])
    }

    /// The snapshot with this number.
    pub fn snapshot(&self, number: Option<u8>) -> Image {
        number.map_or_else(Image::default, |number| self.snapshots[usize::from(number)])
    }

    /// Whether the session's fence is at quorum.
    pub fn is_fenced(&self, session: u8) -> bool {
        is_quorum(self.session(session).fence)
    }

    /// Whether all of `sessions` are fenced.
    pub fn are_fenced(&self, sessions: u8) -> bool {
        (0..SESSIONS as u8).filter(|session| sessions >> session & 1 == 1).all(|session| self.is_fenced(session))
    }

    /// Whether a session that has read the log may use what it read.
    pub fn may_act(&self, setup: &Setup, session: u8) -> bool {
        setup.variant != Variant::LogReadEarly || self.are_fenced(self.map.to_fence(self.session(session).epoch))
    }

    /// The epoch that a session may take up next.
    pub fn next_epoch(&self, session: u8) -> Option<u8> {
        let own = self.session(session);
        let is_free = match own.phase {
            Phase::None => true,
            Phase::Sealed => self.map.moves[usize::from(own.sealed_for)].status == Status::Committed,
            Phase::Holds | Phase::Dead => false,
        };
        let mut given = own.epoch + 1..=self.map.epoch;
        given.find(|epoch| is_free && self.map.holders[usize::from(*epoch) - 1] == session)
    }

    /// A session takes up what it was given, if there is something.
    pub fn take_up(&mut self, session: u8) {
        if let Some(epoch) = self.next_epoch(session) {
            self.session_mut(session).take_up(epoch);
        }
    }

    /// Notes that `command` is acknowledged at `slot`.
    ///
    /// # Errors
    /// That contradicts what was acknowledged before.
    pub fn acknowledge(&mut self, slot: u8, command: u8) -> Result<(), Violation> {
        let was = self.acked[usize::from(slot) - 1];
        if was != 0 && was != command {
            return Err(Violation::AckChanged(slot, was, command));
        }
        let other = (1..).zip(self.acked).find(|(other, acked)| *other != slot && *acked == command);
        if let Some((other, _)) = other {
            return Err(Violation::AckTwice(command, other, slot));
        }
        self.acked[usize::from(slot) - 1] = command;
        Ok(())
    }

    /// What holds at any moment: all readers agree, and who may answer reads knows everything.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, setup: &Setup) -> Result<(), Violation> {
        for (slot, acked) in (1..).zip(self.acked).filter(|(_, acked)| *acked != 0) {
            match setup.store {
                Store::Replicas => self.check_replicas(slot, acked)?,
                Store::Quorum | Store::InTurn => self.check_readers(slot, acked)?,
            }
            let ignorant = |session: &u8| {
                let own = self.session(*session);
                own.len < slot || own.commands[usize::from(slot) - 1] != acked
            };
            let mut answering = (0..self.map.known).filter(|session| self.answers_reads(setup, *session));
            if let Some(session) = answering.find(ignorant) {
                return Err(Violation::Stale(session, slot));
            }
        }
        Ok(())
    }

    /// Whether a session would answer a read that arrived now, and decide on what it has in memory.
    fn answers_reads(&self, setup: &Setup, session: u8) -> bool {
        let own = self.session(session);
        let is_open = match own.phase {
            Phase::Holds => true,
            Phase::Sealed => setup.variant == Variant::SealedServesReads,
            Phase::None | Phase::Dead => false,
        };
        is_open && own.loaded && !self.is_fenced(session) && self.may_act(setup, session)
    }

    /// Whether every two replicas show `acked`: of all rows that they have, the one of the highest epoch.
    fn check_replicas(&self, slot: u8, acked: u8) -> Result<(), Violation> {
        for left_out in 0..REPLICAS {
            let asked = EVERYWHERE & !(1 << left_out);
            let mut rows = self.rows[usize::from(slot) - 1].iter().rev().flatten();
            let shown = rows.find(|row| row.is_there() && row.at & asked != 0).map_or(0, |row| row.command);
            if shown != acked {
                return Err(Violation::Reader(slot, acked, shown));
            }
        }
        Ok(())
    }

    /// Whether `acked` is all that a read may show: from the newest row down to the first that is seen for sure.
    fn check_readers(&self, slot: u8, acked: u8) -> Result<(), Violation> {
        for [row, _] in self.rows[usize::from(slot) - 1].iter().rev().filter(|[row, _]| row.is_there()) {
            if row.command != acked {
                return Err(Violation::Reader(slot, acked, row.command));
            }
            if row.at != 0 {
                return Ok(());
            }
        }
        Err(Violation::Reader(slot, acked, 0))
    }
}
