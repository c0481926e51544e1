//! What must never be.

use std::fmt;

use super::story::{command, name};

/// See above. Slots, commands, sessions and epochs by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// At this slot this command was acknowledged, and now that one is.
    AckChanged(u8, u8, u8),
    /// This command was acknowledged at this slot and at that one.
    AckTwice(u8, u8, u8),
    /// At this slot, where this command was acknowledged, a quorum read shows that one, or 0.
    Reader(u8, u8, u8),
    /// This session may answer reads, and does not know what was acknowledged at this slot.
    Stale(u8, u8),
    /// A recovery takes this slot for committed, which it is not.
    Claim(u8),
    /// A recovery finds this slot empty, which is committed.
    Lost(u8),
    /// The row of this slot under this epoch was given another content.
    Rewritten(u8, u8),
    /// The event adopted at this slot was decided on another history.
    Misplaced(u8),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AckChanged(slot, was, is) => {
                write!(f, "seq {slot} was acknowledged as {}, and now as {}", command(was), command(is))
            }
            Self::AckTwice(which, first, second) => {
                write!(f, "{} is acknowledged at seq {first} and at seq {second}", command(which))
            }
            Self::Reader(slot, acked, 0) => {
                write!(f, "{} was acknowledged at seq {slot}, and a quorum read shows nothing there", command(acked))
            }
            Self::Reader(slot, acked, shown) => {
                let (acked, shown) = (command(acked), command(shown));
                write!(f, "{acked} was acknowledged at seq {slot}, and a quorum read may show {shown} there")
            }
            Self::Stale(session, slot) => {
                write!(f, "{} answers reads and does not know the acknowledged seq {slot}", name(session))
            }
            Self::Claim(slot) => write!(f, "seq {slot} is taken for committed, and was never acknowledged so"),
            Self::Lost(slot) => write!(f, "seq {slot} is committed, and is not there"),
            Self::Rewritten(slot, epoch) => write!(f, "the row of seq {slot} under epoch {epoch} gets another content"),
            Self::Misplaced(slot) => {
                write!(f, "the event adopted at seq {slot} was decided on another history than the one below it")
            }
        }
    }
}
