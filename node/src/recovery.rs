//! What of an entity's log counts after its owner has died: pure, from the rows that a quorum shows.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    event::Event,
    id::{CommandId, Epoch, Seq, UserId},
    stored::{Corrupt, LogRow},
};
use hashbrown::HashSet;

/// Where the recovery begins.
#[derive(Clone, Copy, Debug)]
pub struct Basis {
    /// The epoch of the session that recovers.
    pub own_epoch: Epoch,
    /// The committed seq that the snapshot reflects, 0 without one.
    pub snapshot_seq: Seq,
    /// The highest epoch of a fresh row at or below it.
    pub snapshot_fresh_epoch: Epoch,
    /// Whether every row that is there counts as committed: a store with a single writer that synced at its opening.
    pub trusting: bool,
}

/// What counts.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Committed events above the snapshot, in order.
    pub committed: Vec<Arc<Event>>,
    /// Events that may have been acknowledged: to be written again under the own epoch before anything of them is shown.
    pub adopted: Vec<Arc<Event>>,
    /// The highest epoch of a fresh row in what counts.
    pub fresh_epoch: Epoch,
}

/// Why an entity cannot be recovered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// A newer owner has written.
    #[error("a row of epoch {epoch} is newer than this session's {own}")]
    Superseded {
        /// The row's.
        epoch: Epoch,
        /// The session's.
        own: Epoch,
    },
    /// A committed event is missing.
    #[error("event {0} is committed, but not there")]
    Missing(Seq),
    /// The snapshot is damaged.
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] Corrupt),
}

/// Decides what of `rows` counts. `known` tells whether a command made an event at or below the snapshot.
///
/// # Errors
/// See [`Trouble`].
pub fn resolve(basis: Basis, known: impl Fn(&UserId, CommandId) -> bool, rows: Vec<LogRow>) -> Result<Resolved, Trouble> {
    if let Some(row) = rows.iter().find(|row| row.epoch > basis.own_epoch) {
        return Err(Trouble::Superseded { epoch: row.epoch, own: basis.own_epoch });
    }
    let mut base = basis.snapshot_seq;
    // By slot: the winner and its epoch, and the highest epoch of a fresh row.
    let mut slots: BTreeMap<Seq, (Epoch, Arc<Event>, Epoch)> = BTreeMap::new();
    for row in rows {
        base = base.max(row.cw);
        for event in row.events {
            if event.seq <= basis.snapshot_seq {
                continue;
            }
            if basis.trusting {
                base = base.max(event.seq);
            }
            let fresh = if row.adopted { 0 } else { row.epoch };
            let slot = slots.entry(event.seq).or_insert_with(|| (row.epoch, Arc::clone(&event), fresh));
            slot.2 = slot.2.max(fresh);
            if row.epoch > slot.0 {
                (slot.0, slot.1) = (row.epoch, event);
            }
        }
    }
    let mut resolved = Resolved { fresh_epoch: basis.snapshot_fresh_epoch, ..Resolved::default() };
    let mut ids = HashSet::new();
    for seq in basis.snapshot_seq + 1.. {
        let Some((epoch, event, fresh)) = slots.remove(&seq) else {
            if seq <= base {
                return Err(Trouble::Missing(seq));
            }
            break;
        };
        let repeated = !ids.insert((event.sender.clone(), event.id)) || known(&event.sender, event.id);
        if seq <= base {
            resolved.committed.push(event);
        } else if repeated || epoch < resolved.fresh_epoch {
            break;
        } else {
            resolved.adopted.push(event);
        }
        resolved.fresh_epoch = resolved.fresh_epoch.max(fresh);
    }
    Ok(resolved)
}
