//! What is drawn at random, from one seed: the same numbers everywhere, so that a simulation can be told again.

use std::convert::Infallible;

use rand_core::{Rng, TryRng};

/// A small generator (splitmix64). No secret hangs on it: keys and lives' names come from the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `below`; 0 if that is 0.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        let drawn = self.next_u64();
        if below == 0 { 0 } else { drawn % below }
    }

    /// Takes `wanted` of these, any, in any order.
    pub(super) fn some<T>(&mut self, mut of: Vec<T>, wanted: usize) -> Vec<T> {
        for at in 0..of.len().min(wanted) {
            let other = at + self.below((of.len() - at) as u64) as usize;
            of.swap(at, other);
        }
        of.truncate(wanted);
        of
    }
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|drawn| (drawn >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(z ^ (z >> 31))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
        Ok(())
    }
}
