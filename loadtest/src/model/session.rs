//! One life of a node process, and what it has in memory.

use super::{
    setup::{SLOTS, Setup},
    store::Image,
};

/// See above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The last epoch that it took up.
    pub epoch: u8,
    /// What it is to the partition.
    pub phase: Phase,
    /// The number of the move for which it is sealed.
    pub sealed_for: u8,
    /// Whether the entity is in its memory.
    pub loaded: bool,
    /// The speculative log.
    pub commands: [u8; SLOTS],
    /// Of each of its slots: the highest epoch of a fresh row up to there ([`super::setup::Stop::Fresh`]), or the epoch
    /// under which its event was written first ([`super::setup::Stop::Chain`]).
    pub marks: [u8; SLOTS],
    /// Its length.
    pub len: u8,
    /// Up to where it was found by a recovery, as long as that is not committed.
    pub found: u8,
    /// Up to where it needs not be sent any more.
    pub sent: u8,
    /// Up to where it is committed.
    pub committed: u8,
    /// The watermark of the last row that was sent, or what was committed at the recovery.
    pub cw: u8,
    /// The replicas that have the session's fence.
    pub fence: u8,
    /// A fence read on its way: up to which slot it covers, and who has answered.
    pub fence_read: (u8, u8),
    /// Up to where a fence read that came too early is taken for good.
    pub cleared: u8,
    /// A read of the log on its way: who has answered, and with which rows.
    pub log_read: (u8, u64),
}

/// What a session is to the partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    #[default]
    None,
    /// Its owner, as far as it knows.
    Holds,
    /// Its owner, giving it away.
    Sealed,
    /// It knows that it is superseded.
    Dead,
}

impl Session {
    /// It learns that it was given `epoch`.
    pub fn take_up(&mut self, epoch: u8) {
        *self = Self { epoch, phase: Phase::Holds, fence: self.fence, ..Self::default() };
    }

    /// The entity leaves its memory.
    pub fn forget(&mut self) {
        *self = Self { epoch: self.epoch, phase: self.phase, fence: self.fence, ..Self::default() };
    }

    /// It has nothing to do with the partition any more.
    pub fn let_go(&mut self) {
        self.forget();
        self.phase = Phase::None;
    }

    /// It will do nothing any more.
    pub fn die(&mut self) {
        *self = Self { phase: Phase::Dead, fence: self.fence, ..Self::default() };
    }

    /// The bytes of what is committed.
    pub fn committed_image(&self, setup: &Setup) -> Image {
        self.image(setup, self.committed, self.committed)
    }

    /// The bytes of the slots up to `seq`, with the mark of `marked`.
    pub fn image(&self, setup: &Setup, seq: u8, marked: u8) -> Image {
        let mut image = Image { seq, ..Image::default() };
        image.commands[..usize::from(seq)].copy_from_slice(&self.commands[..usize::from(seq)]);
        if let Some(last) = marked.checked_sub(1).filter(|_| setup.has_marks() && seq > 0) {
            image.mark = self.marks[usize::from(last)];
        }
        image
    }
}
