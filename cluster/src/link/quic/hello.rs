//! The introduction: what both ends of a new connection say of themselves, what comes of it, and the sentences with which
//! one end refuses the other.
//!
//! Its layout outlives all versions of what is spoken afterwards: little-endian numbers at fixed places, and whatever
//! follows them is for those who know of it.

use std::fmt;

use bytes::{Buf, BufMut};

use super::identity::Role;

/// What a process says of itself when it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What it is.
    pub role: Role,
    /// Its number, which no other process of its role has.
    pub uid: u64,
    /// Which of its lives this is: the higher is the later.
    pub incarnation: u64,
    /// Which cluster it belongs to; 0 while it does not know.
    pub cluster: u128,
    /// The oldest protocol that it speaks.
    pub protocol_min: u16,
    /// The newest protocol that it speaks.
    pub protocol_max: u16,
    /// What people call it, in logs; what is beyond 255 bytes is cut off.
    pub name: String,
}

/// Longest introduction that is read: room for what later versions say beyond this one.
pub(super) const BYTES_MAX: usize = 1024;

/// Why one end does not want the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// For the logs of both.
    pub(super) sentence: String,
}

/// The kinds of refusals; the number goes over the wire, the name is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Certificate,
    Expired,
    UnknownAuthority,
    Alpn,
    Name,
    SomebodyElse,
    Itself,
    Cluster,
    Version,
    Stale,
    Malformed,
    Late,
    Busy,
}

impl Reason {
    pub(super) const ALL: [Self; 13] = [
        Self::Certificate,
        Self::Expired,
        Self::UnknownAuthority,
        Self::Alpn,
        Self::Name,
        Self::SomebodyElse,
        Self::Itself,
        Self::Cluster,
        Self::Version,
        Self::Stale,
        Self::Malformed,
        Self::Late,
        Self::Busy,
    ];

    /// The label.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Expired => "expired",
            Self::UnknownAuthority => "unknown_authority",
            Self::Alpn => "alpn",
            Self::Name => "name",
            Self::SomebodyElse => "somebody_else",
            Self::Itself => "itself",
            Self::Cluster => "cluster",
            Self::Version => "version",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
            Self::Late => "late",
            Self::Busy => "busy",
        }
    }

    /// The code with which the connection is closed.
    pub(super) const fn code(self) -> u32 {
        0x100 + self as u32
    }

    pub(super) fn of_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| u64::from(reason.code()) == code)
    }

    pub(super) fn because(self, sentence: impl Into<String>) -> Refusal {
        Refusal { reason: self, sentence: sentence.into() }
    }
}

impl Hello {
    /// Writes it, with the protocol that was agreed on; 0 when nothing was yet.
    pub(super) fn encode(&self, agreed: u16) -> Vec<u8> {
        let mut end = self.name.len().min(255);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        let name = &self.name.as_bytes()[..end];
        let mut bytes = Vec::with_capacity(64 + name.len());
        bytes.put_u8(match self.role {
            Role::Node => 1,
            Role::Gateway => 2,
        });
        bytes.put_u64_le(self.uid);
        bytes.put_u64_le(self.incarnation);
        bytes.put_u128_le(self.cluster);
        bytes.put_u16_le(self.protocol_min);
        bytes.put_u16_le(self.protocol_max);
        bytes.put_u16_le(agreed);
        bytes.put_u8(name.len() as u8);
        bytes.put_slice(name);
        bytes
    }

    /// Reads it, with the protocol that the other end agreed on.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<(Self, u16), Refusal> {
        let malformed = || Reason::Malformed.because("the introduction cannot be read");
        if bytes.len() < 1 + 8 + 8 + 16 + 2 + 2 + 2 + 1 {
            return Err(malformed());
        }
        let role = match bytes.get_u8() {
            1 => Role::Node,
            2 => Role::Gateway,
            other => return Err(Reason::Malformed.because(format!("a role with the number {other} is not known here"))),
        };
        let (uid, incarnation, cluster) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u128_le());
        let (protocol_min, protocol_max, agreed) = (bytes.get_u16_le(), bytes.get_u16_le(), bytes.get_u16_le());
        let length = usize::from(bytes.get_u8());
        let name = bytes.get(..length).ok_or_else(malformed)?;
        // It goes into logs: as text, on one line.
        let name = String::from_utf8_lossy(name).chars().filter(|letter| !letter.is_control()).collect();
        Ok((Self { role, uid, incarnation, cluster, protocol_min, protocol_max, name }, agreed))
    }

    /// Which protocol two processes speak, or why they cannot.
    pub(super) fn agree(&self, peer: &Self) -> Result<u16, Refusal> {
        if (self.role, self.uid) == (peer.role, peer.uid) {
            return Err(Reason::Itself.because(format!("{self} was called by its own name")));
        }
        if self.cluster != 0 && peer.cluster != 0 && self.cluster != peer.cluster {
            let sentence = format!("{self} belongs to cluster {:032x}, {peer} to {:032x}", self.cluster, peer.cluster);
            return Err(Reason::Cluster.because(sentence));
        }
        let agreed = self.protocol_max.min(peer.protocol_max);
        if agreed < self.protocol_min.max(peer.protocol_min) {
            let sentence = format!(
                "{self} speaks the protocols {} to {}, {peer} {} to {}: their releases are too far apart",
                self.protocol_min, self.protocol_max, peer.protocol_min, peer.protocol_max
            );
            return Err(Reason::Version.because(sentence));
        }
        Ok(agreed)
    }
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x}", self.role, self.uid)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({})", self.name) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}
