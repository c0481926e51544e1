//! Raft's bytes at rest, and their parts that travel: protobuf, checked by a checksum where they lie on a disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chappe_schema::stored::{Corrupt, Kind, seal, unseal};
use openraft::EntryPayload;
use prost::{Message, Oneof};

use super::{
    bootstrap::Group,
    types::{Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote, log_id},
    voters::Seat,
};
use crate::ownership::{ClusterId, Command};

/// What makes no sense, although it decodes.
const WRONG: Corrupt = Corrupt::Content("these bytes make no sense as a part of Raft");

#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryBytes {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(oneof = "PayloadBytes", tags = "3, 4, 5")]
    payload: Option<PayloadBytes>,
}

#[derive(Clone, PartialEq, Oneof)]
enum PayloadBytes {
    #[prost(bool, tag = "3")]
    Blank(bool),
    #[prost(bytes = "bytes", tag = "4")]
    Command(Bytes),
    #[prost(message, tag = "5")]
    Membership(MembershipBytes),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LogIdBytes {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VoteBytes {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(fixed64, optional, tag = "2")]
    voted_for: Option<u64>,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MembershipBytes {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<ConfigBytes>,
    #[prost(btree_map = "fixed64, message", tag = "2")]
    nodes: BTreeMap<u64, SeatBytes>,
    /// Where it stands in the log; none in an entry, which stands there itself.
    #[prost(message, optional, tag = "3")]
    at: Option<LogIdBytes>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigBytes {
    #[prost(fixed64, repeated, tag = "1")]
    voters: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct SeatBytes {
    #[prost(uint32, tag = "1")]
    ordinal: u32,
    #[prost(string, tag = "2")]
    zone: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SnapshotMetaBytes {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdBytes>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipBytes>,
    #[prost(string, tag = "3")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotBytes {
    #[prost(message, optional, tag = "1")]
    meta: Option<SnapshotMetaBytes>,
    #[prost(bytes = "bytes", tag = "2")]
    state: Bytes,
}

/// A small fact about this node's part.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NoteBytes {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteBytes>,
    #[prost(message, optional, tag = "2")]
    log_id: Option<LogIdBytes>,
    #[prost(message, optional, tag = "3")]
    group: Option<GroupBytes>,
    #[prost(fixed64, tag = "4")]
    node: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupBytes {
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    #[prost(uint32, tag = "2")]
    generation: u32,
}

// === Whole values ===

pub(super) fn seal_entry(entry: &Entry) -> Bytes {
    seal(Kind::RaftEntry, &EntryBytes::from(entry))
}

pub(super) fn unseal_entry(bytes: Bytes) -> Result<Entry, Corrupt> {
    unseal::<EntryBytes>(Kind::RaftEntry, bytes)?.try_into()
}

pub(super) fn seal_note(note: &NoteBytes) -> Bytes {
    seal(Kind::RaftNote, note)
}

pub(super) fn unseal_note(bytes: Bytes) -> Result<NoteBytes, Corrupt> {
    unseal(Kind::RaftNote, bytes)
}

pub(super) fn seal_snapshot(meta: &SnapshotMeta, state: Bytes) -> Bytes {
    seal(Kind::RaftSnapshot, &SnapshotBytes { meta: Some(meta.into()), state })
}

pub(super) fn unseal_snapshot(bytes: Bytes) -> Result<(SnapshotMeta, Bytes), Corrupt> {
    let SnapshotBytes { meta, state } = unseal(Kind::RaftSnapshot, bytes)?;
    Ok((meta.ok_or(WRONG)?.try_into()?, state))
}

// === Parts ===

impl From<&Entry> for EntryBytes {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadBytes::Blank(true),
            EntryPayload::Normal(command) => PayloadBytes::Command(command.to_bytes()),
            EntryPayload::Membership(membership) => PayloadBytes::Membership(membership.into()),
        };
        Self { term: entry.log_id.leader_id.term, index: entry.log_id.index, payload: Some(payload) }
    }
}

impl TryFrom<EntryBytes> for Entry {
    type Error = Corrupt;
    fn try_from(bytes: EntryBytes) -> Result<Self, Corrupt> {
        let payload = match bytes.payload.ok_or(WRONG)? {
            PayloadBytes::Blank(_) => EntryPayload::Blank,
            PayloadBytes::Command(command) => EntryPayload::Normal(
                Command::from_bytes(&command).map_err(|unreadable| Corrupt::Content(unreadable.0))?,
            ),
            PayloadBytes::Membership(membership) => EntryPayload::Membership(membership.into()),
        };
        Ok(Self { log_id: log_id(bytes.term, bytes.index), payload })
    }
}

impl From<LogId> for LogIdBytes {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<LogIdBytes> for LogId {
    fn from(bytes: LogIdBytes) -> Self {
        log_id(bytes.term, bytes.index)
    }
}

impl From<&Vote> for VoteBytes {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteBytes> for Vote {
    fn from(bytes: VoteBytes) -> Self {
        let leader_id = openraft::LeaderId { term: bytes.term, voted_for: bytes.voted_for };
        Self { leader_id, committed: bytes.committed }
    }
}

impl From<&Membership> for MembershipBytes {
    fn from(membership: &Membership) -> Self {
        let config = |config: &BTreeSet<u64>| ConfigBytes { voters: config.iter().copied().collect() };
        let seat = |(node, seat): (&u64, &Seat)| (*node, SeatBytes { ordinal: seat.ordinal, zone: seat.zone.clone() });
        Self {
            configs: membership.get_joint_config().iter().map(config).collect(),
            nodes: membership.nodes().map(seat).collect(),
            at: None,
        }
    }
}

impl From<MembershipBytes> for Membership {
    fn from(bytes: MembershipBytes) -> Self {
        let configs = bytes.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
        let seat = |(node, seat): (u64, SeatBytes)| (node, Seat { ordinal: seat.ordinal, zone: seat.zone });
        Self::new(configs, bytes.nodes.into_iter().map(seat).collect::<BTreeMap<_, _>>())
    }
}

impl From<&StoredMembership> for MembershipBytes {
    fn from(stored: &StoredMembership) -> Self {
        Self { at: stored.log_id().map(LogIdBytes::from), ..stored.membership().into() }
    }
}

impl From<MembershipBytes> for StoredMembership {
    fn from(bytes: MembershipBytes) -> Self {
        Self::new(bytes.at.clone().map(LogId::from), bytes.into())
    }
}

impl From<&SnapshotMeta> for SnapshotMetaBytes {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(LogIdBytes::from),
            membership: Some((&meta.last_membership).into()),
            id: meta.snapshot_id.clone(),
        }
    }
}

impl TryFrom<SnapshotMetaBytes> for SnapshotMeta {
    type Error = Corrupt;
    fn try_from(bytes: SnapshotMetaBytes) -> Result<Self, Corrupt> {
        Ok(Self {
            last_log_id: bytes.last.map(LogId::from),
            last_membership: bytes.membership.ok_or(WRONG)?.into(),
            snapshot_id: bytes.id,
        })
    }
}

impl From<Group> for GroupBytes {
    fn from(group: Group) -> Self {
        Self { cluster: Bytes::copy_from_slice(&group.cluster.0.to_be_bytes()), generation: group.generation.into() }
    }
}

impl TryFrom<GroupBytes> for Group {
    type Error = Corrupt;
    fn try_from(bytes: GroupBytes) -> Result<Self, Corrupt> {
        let cluster = bytes.cluster[..].try_into().map_err(|_| WRONG)?;
        let generation = bytes.generation.try_into().map_err(|_| WRONG)?;
        Ok(Self { cluster: ClusterId(u128::from_be_bytes(cluster)), generation })
    }
}

impl NoteBytes {
    pub(super) fn vote(vote: &Vote) -> Self {
        Self { vote: Some(vote.into()), ..Self::default() }
    }

    pub(super) fn log_id(id: LogId) -> Self {
        Self { log_id: Some(id.into()), ..Self::default() }
    }

    pub(super) fn group(group: Group) -> Self {
        Self { group: Some(group.into()), ..Self::default() }
    }

    pub(super) fn node(node: u64) -> Self {
        Self { node, ..Self::default() }
    }

    pub(super) fn into_vote(self) -> Result<Vote, Corrupt> {
        self.vote.map(Vote::from).ok_or(WRONG)
    }

    pub(super) fn into_log_id(self) -> Result<LogId, Corrupt> {
        self.log_id.map(LogId::from).ok_or(WRONG)
    }

    pub(super) fn into_group(self) -> Result<Group, Corrupt> {
        self.group.ok_or(WRONG)?.try_into()
    }

    pub(super) fn into_node(self) -> u64 {
        self.node
    }
}
