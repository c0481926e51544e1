//! The seal around every datagram: AES-256-GCM under the cluster key. Whoever does not have the key is not heard, and hears nothing.
//!
//! ```text
//! version 1 | life 16 | count 8 | encrypted: cluster 16, payload | tag 16
//! ```
//!
//! **Nonces.** Each life (one start of a process, one set of its keys) draws 128 random bits and derives a key of its own from
//! them (HKDF-SHA-256); its datagrams are counted, and the count is the nonce. So no nonce is used twice under one key: within a life because the
//! count grows, and between lives unless two of them draw the same 128 bits. Random nonces under the cluster key itself would be
//! good for 2³² datagrams in all, which a hundred members send in weeks.
//!
//! **Replays.** The receiver keeps, for each life that it has heard, the last [`WINDOW`] counts: what it has seen, or what is older,
//! is dropped. It forgets the least recently heard of more than [`LIVES_MAX`] lives, and its own restart forgets all. What is replayed to it then
//! was sent by a life that is over, or that it has not heard yet, and can say only: *this incarnation was alive, suspected, or down*. What the members know is
//! ordered by incarnation, and whoever lives answers with a higher one; and a message for an earlier incarnation of the receiver is not
//! heeded at all. So the worst is that somebody who died and was forgotten is up for the time that a probe takes to fail.
//! No clock stands in it: a node whose clock jumps by years stays a member.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};

use crate::process::config::{SecretError, SecretFile};

/// The largest datagram: it passes every network undivided.
pub(super) const DATAGRAM_MAX: usize = 1_350;

/// What is left of it.
pub(super) const PAYLOAD_MAX: usize = DATAGRAM_MAX - HEAD - CLUSTER - TAG;

/// The version that is written. A program reads it and the one before, so whoever brings the next one goes on writing this
/// one until all members read both. (There is none before the first.)
const VERSION: u8 = 1;
const OLDEST: u8 = 1;

const LIFE: usize = 16;
const HEAD: usize = 1 + LIFE + 8;
const CLUSTER: usize = 16;
const TAG: usize = 16;

/// Counts of a life that are told apart. A member counts what it sends to anybody, a hundred a second in bad times; a datagram may be overtaken
/// by ten seconds of those.
const WINDOW: u64 = 1_024;
const WORDS: usize = (WINDOW / 64) as usize;

/// Lives that are remembered: about 400 bytes each.
const LIVES_MAX: usize = 1_024;

/// Keys in force at once: the one that seals, and those that others still seal with.
const KEYS_MAX: usize = 4;

/// The cluster's keys. All of them open, the first one seals; so a key is replaced in three steps, each at all members before the
/// next: it is added as the last, made the first, and the old one taken away.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<[u8; 32]>);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A line that is no key.
    #[error("line {0} of the cluster's keys is not 64 hexadecimal digits (openssl rand -hex 32)")]
    Line(usize),
    /// None, or too many.
    #[error("there are {0} cluster keys; one to {KEYS_MAX} can be in force")]
    Count(usize),
}

/// Why a datagram is not heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dropped {
    /// Too short or too long for any.
    Size,
    /// Of a version that this program does not read.
    Version,
    /// Sealed with another key, or not as it was sent.
    Seal,
    /// Seen before, or too old to know.
    Replayed,
    /// Another cluster's.
    Cluster,
    /// Opened, and makes no sense.
    Malformed,
}

/// Seals what one life sends.
pub(super) struct Sealer {
    life: [u8; LIFE],
    key: LessSafeKey,
    count: u64,
}

/// Opens what all others send.
pub(super) struct Opener {
    keys: Keys,
    lives: BTreeMap<[u8; LIFE], Life>,
    opened: u64,
    buffer: Vec<u8>,
}

struct Life {
    /// The cluster key that it is derived from.
    secret: [u8; 32],
    key: LessSafeKey,
    seen: Seen,
    /// When it was last heard, in datagrams.
    used: u64,
}

/// The last [`WINDOW`] counts.
#[derive(Default)]
struct Seen {
    /// One above the highest.
    next: u64,
    /// A bit for each, in a ring.
    bits: [u64; WORDS],
}

// === impl Keys ===

impl Keys {
    /// Reads a file with a key on each line, in hexadecimal. Empty lines, and those that begin with `#`, are left out.
    ///
    /// # Errors
    /// When there is no such file, or no key in it.
    pub fn read(file: &SecretFile) -> Result<Self, KeyError> {
        Self::parse(file.read()?.expose())
    }

    /// [`Keys::read`] of a text.
    ///
    /// # Errors
    /// When there is no key in it, or something else.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let key = |(number, line)| key_of(line).ok_or(KeyError::Line(number + 1));
        let keys: Vec<_> = lines.map(key).collect::<Result<_, _>>()?;
        Self::new(&keys).ok_or(KeyError::Count(keys.len()))
    }

    /// These keys, if they are one to four.
    #[must_use]
    pub fn new(keys: &[[u8; 32]]) -> Option<Self> {
        (1..=KEYS_MAX).contains(&keys.len()).then(|| Self(keys.to_vec()))
    }
}

fn key_of(line: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = line.chars().map(|digit| digit.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    <[u8; 32]>::try_from(bytes).ok().filter(|_| digits.len() == 64)
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} of ***)", self.0.len())
    }
}

// === impl Sealer ===

impl Sealer {
    /// Begins a life, whose name nobody ever had.
    pub(super) fn new(keys: &Keys, life: [u8; LIFE]) -> Self {
        Self { life, key: derive(&keys.0[0], &life), count: 0 }
    }

    /// Seals a payload. The datagram replaces what `into` held.
    pub(super) fn seal(&mut self, cluster: u128, payload: &[u8], into: &mut Vec<u8>) {
        let count = self.count.to_be_bytes();
        self.count += 1;
        into.clear();
        into.push(VERSION);
        into.extend_from_slice(&self.life);
        into.extend_from_slice(&count);
        into.extend_from_slice(&cluster.to_be_bytes());
        into.extend_from_slice(payload);
        let (head, content) = into.split_at_mut(HEAD);
        let tag = self.key.seal_in_place_separate_tag(nonce(count), Aad::from(&*head), content);
        match tag {
            Ok(tag) => into.extend_from_slice(tag.as_ref()),
            // It fails on lengths beyond any datagram. What is sent is refused as too short.
            Err(_) => into.clear(),
        }
    }
}

// === impl Opener ===

impl Opener {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, lives: BTreeMap::new(), opened: 0, buffer: Vec::with_capacity(DATAGRAM_MAX) }
    }

    /// Takes other keys. What a key that stays was used for is still known.
    pub(super) fn replace(&mut self, keys: Keys) {
        self.keys = keys;
        let Self { keys, lives, .. } = self;
        lives.retain(|_, life| keys.0.contains(&life.secret));
    }

    /// The payload of a datagram; `cluster` is the receiver's own, 0 while it does not know it.
    pub(super) fn open(&mut self, datagram: &[u8], cluster: u128) -> Result<&[u8], Dropped> {
        if datagram.len() > DATAGRAM_MAX {
            return Err(Dropped::Size);
        }
        match datagram.first() {
            None => return Err(Dropped::Size),
            Some(version) if !(OLDEST..=VERSION).contains(version) => return Err(Dropped::Version),
            Some(_) => {}
        }
        let Some((head, sealed)) = datagram.split_at_checked(HEAD) else { return Err(Dropped::Size) };
        let Some(content) = sealed.len().checked_sub(TAG).filter(|content| *content >= CLUSTER) else {
            return Err(Dropped::Size);
        };
        let (sealed, tag) = sealed.split_at(content);
        let life: [u8; LIFE] = head[1..=LIFE].try_into().map_err(|_| Dropped::Size)?;
        let count: [u8; 8] = head[1 + LIFE..].try_into().map_err(|_| Dropped::Size)?;
        self.buffer.resize(content, 0);
        let Self { keys, lives, opened, buffer } = self;
        let mut opens =
            |key: &LessSafeKey| key.open_separate_gather(nonce(count), Aad::from(head), sealed, tag, buffer).is_ok();
        match lives.get(&life) {
            Some(known) if opens(&known.key) => {}
            Some(_) => return Err(Dropped::Seal),
            None => {
                // Only what is authentic is remembered: whoever makes lives up costs a try each, and nothing more.
                let tried = keys.0.iter().map(|secret| (secret, derive(secret, &life)));
                let Some((secret, key)) = tried.into_iter().find(|(_, key)| opens(key)) else {
                    return Err(Dropped::Seal);
                };
                if lives.len() >= LIVES_MAX {
                    let oldest = lives.iter().min_by_key(|(_, life)| life.used).map(|(name, _)| *name);
                    oldest.and_then(|oldest| lives.remove(&oldest));
                }
                lives.insert(life, Life { secret: *secret, key, seen: Seen::default(), used: 0 });
            }
        }
        *opened += 1;
        let used = *opened;
        let fresh = lives.get_mut(&life).is_some_and(|life| {
            life.used = used;
            life.seen.note(u64::from_be_bytes(count))
        });
        if !fresh {
            return Err(Dropped::Replayed);
        }
        let (theirs, payload) = buffer.split_at(CLUSTER);
        let theirs = u128::from_be_bytes(theirs.try_into().map_err(|_| Dropped::Size)?);
        if theirs != cluster && theirs != 0 && cluster != 0 {
            return Err(Dropped::Cluster);
        }
        Ok(payload)
    }
}

// === impl Seen ===

impl Seen {
    /// Notes a count. False if it was noted before, or may have been.
    fn note(&mut self, count: u64) -> bool {
        if count == u64::MAX {
            // Nobody comes so far.
            return false;
        }
        if count >= self.next {
            let skipped = (self.next..=count).rev().take(WINDOW as usize);
            skipped.for_each(|skipped| self.bits[word(skipped)] &= !bit(skipped));
            self.next = count + 1;
        } else if self.next - count > WINDOW || self.bits[word(count)] & bit(count) != 0 {
            return false;
        }
        self.bits[word(count)] |= bit(count);
        true
    }
}

const fn word(count: u64) -> usize {
    (count % WINDOW / 64) as usize
}

const fn bit(count: u64) -> u64 {
    1 << (count % 64)
}

// === Keys of lives ===

fn derive(secret: &[u8; 32], life: &[u8; LIFE]) -> LessSafeKey {
    let derived = Salt::new(HKDF_SHA256, life).extract(secret);
    let derived = derived.expand(&[b"chappe swim 1"], &AES_256_GCM).expect("a key is shorter than what HKDF may yield");
    LessSafeKey::new(UnboundKey::from(derived))
}

fn nonce(count: [u8; 8]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&count);
    Nonce::assume_unique_for_key(nonce)
}

impl Dropped {
    /// Its label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Version => "version",
            Self::Seal => "seal",
            Self::Replayed => "replayed",
            Self::Cluster => "cluster",
            Self::Malformed => "malformed",
        }
    }
}

#[cfg(test)]
mod tests;
