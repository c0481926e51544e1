//! The bytes of commands, maps and updates: in Raft's log and snapshots, and between our processes. Protobuf; fields are only ever
//! added, and one that is absent means what was so before there was such a field.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use chappe_schema::{
    id::{NodeUid, Partition, SessionId},
    limit::PARTITIONS_MAX,
};
use prost::{Message, Oneof};

use super::{
    Assignment, ClusterId, Command, Delta, Ended, Founding, Map, Move, NewSession, Ownership, Plan, PlanId, Row,
    Session, Update, Versions,
};

/// Bytes that are no command, map or update, or of a kind that this program does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not of the map of owners, or of a newer one than this program knows: {0}")]
pub struct Unreadable(pub &'static str);

type Result<T> = std::result::Result<T, Unreadable>;

impl Command {
    /// The command's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        CommandBytes::from(self).encode_to_vec().into()
    }

    /// The command of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        decode::<CommandBytes>(bytes)?.try_into()
    }
}

impl Ownership {
    /// The state's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.map().to_bytes()
    }

    /// The state of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Map::from_bytes(bytes).map(Self::from)
    }
}

impl Map {
    /// The map's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        // A whole map is what differs from an empty one.
        DeltaBytes::from(&self.diff(&Self::default())).encode_to_vec().into()
    }

    /// The map of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut map = Self::default();
        map.apply_delta(&decode::<DeltaBytes>(bytes)?.try_into()?)
            .map_err(|_| Unreadable("a whole map begins at nothing"))?;
        Ok(map)
    }
}

impl Update {
    /// The update's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let delta = match self {
            Self::Whole(map) => DeltaBytes { whole: true, ..DeltaBytes::from(&map.diff(&Map::default())) },
            Self::Changes(delta) => DeltaBytes::from(delta),
        };
        delta.encode_to_vec().into()
    }

    /// The update of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let update = decode::<DeltaBytes>(bytes)?;
        if update.whole { Map::from_bytes(bytes).map(Self::Whole) } else { update.try_into().map(Self::Changes) }
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|_| Unreadable("they do not decode"))
}

// === Commands ===

#[derive(Clone, PartialEq, Message)]
struct CommandBytes {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Found(FoundBytes),
    #[prost(message, tag = "2")]
    Register(SessionBytes),
    #[prost(message, tag = "3")]
    Expire(ExpireBytes),
    #[prost(message, tag = "4")]
    Plan(PlanBytes),
    #[prost(message, tag = "5")]
    Commit(PartsBytes),
    #[prost(message, tag = "6")]
    Abort(PartsBytes),
    #[prost(message, tag = "7")]
    Drain(DrainBytes),
    #[prost(uint32, tag = "8")]
    Split(u32),
    #[prost(fixed64, tag = "9")]
    Fenced(u64),
    #[prost(uint32, tag = "10")]
    Version(u32),
    #[prost(message, tag = "11")]
    Retire(RetireBytes),
}

#[derive(Clone, PartialEq, Message)]
struct FoundBytes {
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(uint32, tag = "3")]
    partitions: u32,
    #[prost(uint32, tag = "4")]
    version: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionBytes {
    #[prost(fixed64, tag = "1")]
    node: u64,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(string, tag = "3")]
    zone: String,
    #[prost(uint32, tag = "4")]
    ordinal: u32,
    #[prost(uint32, tag = "5")]
    weight: u32,
    #[prost(uint32, tag = "6")]
    version_min: u32,
    #[prost(uint32, tag = "7")]
    version_max: u32,
    #[prost(bool, tag = "8")]
    drain: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ExpireBytes {
    #[prost(fixed64, optional, tag = "1")]
    session: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    minute: Option<u64>,
    #[prost(message, repeated, tag = "3")]
    assignments: Vec<MoveBytes>,
}

/// A move, or an assignment: then nobody gives.
#[derive(Clone, PartialEq, Message)]
struct MoveBytes {
    #[prost(uint32, tag = "1")]
    partition: u32,
    #[prost(uint64, tag = "2")]
    expect: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    to: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PlanBytes {
    #[prost(uint64, tag = "1")]
    plan: u64,
    #[prost(message, repeated, tag = "2")]
    moves: Vec<MoveBytes>,
}

#[derive(Clone, PartialEq, Message)]
struct PartsBytes {
    #[prost(uint64, tag = "1")]
    plan: u64,
    #[prost(uint64, tag = "2")]
    from: u64,
    #[prost(uint32, repeated, tag = "3")]
    partitions: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct RetireBytes {
    #[prost(fixed64, tag = "1")]
    node: u64,
    #[prost(bool, tag = "2")]
    released: bool,
}

#[derive(Clone, PartialEq, Message)]
struct DrainBytes {
    #[prost(fixed64, tag = "1")]
    session: u64,
    #[prost(bool, tag = "2")]
    slot: bool,
}

impl From<&Command> for CommandBytes {
    fn from(command: &Command) -> Self {
        let parts = |plan: PlanId, from: SessionId, partitions: &[Partition]| PartsBytes {
            plan: plan.0,
            from,
            partitions: partitions.iter().map(|partition| u32::from(partition.0)).collect(),
        };
        let kind = match command {
            Command::Found(Founding { cluster, generation, partitions, version }) => Kind::Found(FoundBytes {
                cluster: cluster_bytes(*cluster),
                generation: (*generation).into(),
                partitions: *partitions,
                version: (*version).into(),
            }),
            Command::RegisterSession(new) => Kind::Register(SessionBytes {
                node: new.node.0,
                addr: new.addr.to_string(),
                zone: new.zone.clone(),
                ordinal: new.ordinal,
                weight: new.weight.into(),
                version_min: new.versions.min.into(),
                version_max: new.versions.max.into(),
                drain: false,
            }),
            Command::ExpireAndAssign { session, minute, assignments } => Kind::Expire(ExpireBytes {
                session: *session,
                minute: *minute,
                assignments: assignments.iter().map(MoveBytes::from).collect(),
            }),
            Command::PlanMoves { plan, moves } => {
                Kind::Plan(PlanBytes { plan: plan.0, moves: moves.iter().map(MoveBytes::from).collect() })
            }
            Command::CommitMoves { plan, from, partitions } => Kind::Commit(parts(*plan, *from, partitions)),
            Command::AbortMoves { plan, partitions } => Kind::Abort(parts(*plan, 0, partitions)),
            Command::SetDrain { session, slot } => Kind::Drain(DrainBytes { session: *session, slot: *slot }),
            Command::SplitPartitions { count } => Kind::Split(*count),
            Command::MarkFenced { session } => Kind::Fenced(*session),
            Command::SetClusterVersion { version } => Kind::Version((*version).into()),
            Command::RetireNode { node, released } => Kind::Retire(RetireBytes { node: node.0, released: *released }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<CommandBytes> for Command {
    type Error = Unreadable;
    fn try_from(bytes: CommandBytes) -> Result<Self> {
        Ok(match bytes.kind.ok_or(Unreadable("a command of no known kind"))? {
            Kind::Found(found) => Self::Found(Founding {
                cluster: cluster(&found.cluster)?,
                generation: small(found.generation)?,
                partitions: found.partitions,
                version: small(found.version)?,
            }),
            Kind::Register(new) => Self::RegisterSession(NewSession {
                node: NodeUid(new.node),
                addr: addr(&new.addr)?,
                versions: Versions { min: small(new.version_min)?, max: small(new.version_max)? },
                zone: new.zone,
                ordinal: new.ordinal,
                weight: small(new.weight)?,
            }),
            Kind::Expire(ExpireBytes { session, minute, assignments }) => Self::ExpireAndAssign {
                session,
                minute,
                assignments: assignments.iter().map(Assignment::try_from).collect::<Result<_>>()?,
            },
            Kind::Plan(PlanBytes { plan, moves }) => {
                Self::PlanMoves { plan: PlanId(plan), moves: moves.iter().map(Move::try_from).collect::<Result<_>>()? }
            }
            Kind::Commit(parts) => Self::CommitMoves {
                plan: PlanId(parts.plan),
                from: parts.from,
                partitions: partitions(&parts.partitions)?,
            },
            Kind::Abort(parts) => {
                Self::AbortMoves { plan: PlanId(parts.plan), partitions: partitions(&parts.partitions)? }
            }
            Kind::Drain(DrainBytes { session, slot }) => Self::SetDrain { session, slot },
            Kind::Split(count) => Self::SplitPartitions { count },
            Kind::Fenced(session) => Self::MarkFenced { session },
            Kind::Version(version) => Self::SetClusterVersion { version: small(version)? },
            Kind::Retire(RetireBytes { node, released }) => Self::RetireNode { node: NodeUid(node), released },
        })
    }
}

impl From<&Move> for MoveBytes {
    fn from(planned: &Move) -> Self {
        let Move { partition, expect, from, to } = *planned;
        Self { partition: partition.0.into(), expect, from, to }
    }
}

impl From<&Assignment> for MoveBytes {
    fn from(assignment: &Assignment) -> Self {
        let Assignment { partition, expect, to } = *assignment;
        Self { partition: partition.0.into(), expect, from: 0, to }
    }
}

impl TryFrom<&MoveBytes> for Move {
    type Error = Unreadable;
    fn try_from(bytes: &MoveBytes) -> Result<Self> {
        let MoveBytes { expect, from, to, .. } = *bytes;
        Ok(Self { partition: partition(bytes.partition)?, expect, from, to })
    }
}

impl TryFrom<&MoveBytes> for Assignment {
    type Error = Unreadable;
    fn try_from(bytes: &MoveBytes) -> Result<Self> {
        Ok(Self { partition: partition(bytes.partition)?, expect: bytes.expect, to: bytes.to })
    }
}

// === Maps ===

#[derive(Clone, PartialEq, Message)]
struct DeltaBytes {
    #[prost(fixed64, tag = "1")]
    from: u64,
    #[prost(fixed64, tag = "2")]
    to: u64,
    #[prost(bool, tag = "3")]
    whole: bool,
    /// Empty before the founding.
    #[prost(bytes = "bytes", tag = "4")]
    cluster: Bytes,
    #[prost(uint32, tag = "5")]
    generation: u32,
    #[prost(uint32, tag = "6")]
    cluster_version: u32,
    #[prost(uint32, tag = "7")]
    partitions: u32,
    #[prost(uint64, tag = "8")]
    last_plan: u64,
    #[prost(btree_map = "fixed64, message", tag = "9")]
    sessions: BTreeMap<u64, SessionBytes>,
    #[prost(fixed64, repeated, tag = "10")]
    sessions_gone: Vec<u64>,
    #[prost(btree_map = "fixed64, message", tag = "11")]
    ended: BTreeMap<u64, EndedBytes>,
    #[prost(fixed64, repeated, tag = "12")]
    ended_gone: Vec<u64>,
    #[prost(message, repeated, tag = "13")]
    rows: Vec<RowBytes>,
    #[prost(message, repeated, tag = "14")]
    plans: Vec<PlanBytes>,
    #[prost(uint64, repeated, tag = "15")]
    plans_gone: Vec<u64>,
    #[prost(btree_map = "fixed64, bool", tag = "16")]
    retired: BTreeMap<u64, bool>,
}

#[derive(Clone, PartialEq, Message)]
struct EndedBytes {
    #[prost(fixed64, tag = "1")]
    node: u64,
    #[prost(uint64, optional, tag = "2")]
    minute: Option<u64>,
    #[prost(bool, tag = "3")]
    fenced: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RowBytes {
    #[prost(uint32, tag = "1")]
    partition: u32,
    #[prost(uint64, optional, tag = "2")]
    owner: Option<u64>,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(uint64, repeated, tag = "4")]
    former: Vec<u64>,
    #[prost(uint64, optional, tag = "5")]
    by: Option<u64>,
}

impl From<&Delta> for DeltaBytes {
    fn from(delta: &Delta) -> Self {
        let (sessions, sessions_gone) = split(&delta.sessions, |session| SessionBytes::from(session));
        let (ended, ended_gone) = split(&delta.ended, |ended| EndedBytes::from(ended));
        let (plans, plans_gone) = split(&delta.plans, Clone::clone);
        // Nobody comes back.
        let (retired, _) = split(&delta.retired, |released| *released);
        let plans = plans.into_iter().map(|(plan, Plan { moves })| PlanBytes {
            plan: plan.0,
            moves: moves.values().map(MoveBytes::from).collect(),
        });
        let rows = delta.rows.iter().map(|(partition, row)| RowBytes {
            partition: partition.0.into(),
            owner: row.owner,
            epoch: row.epoch,
            former: row.former.clone(),
            by: row.by.map(|plan| plan.0),
        });
        Self {
            from: delta.from,
            to: delta.to,
            whole: false,
            cluster: delta.identity.map(|(cluster, _)| cluster_bytes(cluster)).unwrap_or_default(),
            generation: delta.identity.map_or(0, |(_, generation)| generation.into()),
            cluster_version: delta.cluster_version.into(),
            partitions: delta.partitions,
            last_plan: delta.last_plan.0,
            sessions,
            sessions_gone,
            ended,
            ended_gone,
            rows: rows.collect(),
            plans: plans.collect(),
            plans_gone: plans_gone.into_iter().map(|plan| plan.0).collect(),
            retired: retired.into_iter().map(|(node, released)| (node.0, released)).collect(),
        }
    }
}

impl TryFrom<DeltaBytes> for Delta {
    type Error = Unreadable;
    fn try_from(bytes: DeltaBytes) -> Result<Self> {
        if bytes.partitions > PARTITIONS_MAX {
            return Err(Unreadable("more partitions than can be"));
        }
        let sessions = bytes.sessions.into_iter().map(|(id, session)| Ok((id, Some(session.try_into()?))));
        let ended = bytes.ended.into_iter().map(|(id, ended)| (id, Some(ended.into())));
        let rows = bytes.rows.into_iter().map(|row| {
            let RowBytes { partition: number, owner, epoch, former, by } = row;
            Ok((partition(number)?, Row { owner, epoch, by: by.map(PlanId), former }))
        });
        let plans = bytes.plans.iter().map(|plan| {
            let moves = plan.moves.iter().map(|planned| Move::try_from(planned).map(|moved| (moved.partition, moved)));
            Ok((PlanId(plan.plan), Some(Plan { moves: moves.collect::<Result<_>>()? })))
        });
        let identity = match &bytes.cluster[..] {
            [] => None,
            name => Some((cluster(name)?, small(bytes.generation)?)),
        };
        Ok(Self {
            from: bytes.from,
            to: bytes.to,
            identity,
            cluster_version: small(bytes.cluster_version)?,
            partitions: bytes.partitions,
            last_plan: PlanId(bytes.last_plan),
            sessions: sessions.chain(bytes.sessions_gone.iter().map(|id| Ok((*id, None)))).collect::<Result<_>>()?,
            ended: ended.chain(bytes.ended_gone.iter().map(|id| (*id, None))).collect(),
            rows: rows.collect::<Result<_>>()?,
            plans: plans.chain(bytes.plans_gone.iter().map(|id| Ok((PlanId(*id), None)))).collect::<Result<_>>()?,
            retired: bytes.retired.into_iter().map(|(node, released)| (NodeUid(node), Some(released))).collect(),
        })
    }
}

impl From<&Session> for SessionBytes {
    fn from(session: &Session) -> Self {
        Self {
            node: session.node.0,
            addr: session.addr.to_string(),
            zone: session.zone.clone(),
            ordinal: session.ordinal,
            weight: session.weight.into(),
            version_min: session.versions.min.into(),
            version_max: session.versions.max.into(),
            drain: session.drain,
        }
    }
}

impl TryFrom<SessionBytes> for Session {
    type Error = Unreadable;
    fn try_from(bytes: SessionBytes) -> Result<Self> {
        Ok(Self {
            node: NodeUid(bytes.node),
            addr: addr(&bytes.addr)?,
            zone: bytes.zone,
            ordinal: bytes.ordinal,
            weight: small(bytes.weight)?,
            versions: Versions { min: small(bytes.version_min)?, max: small(bytes.version_max)? },
            drain: bytes.drain,
        })
    }
}

impl From<&Ended> for EndedBytes {
    fn from(ended: &Ended) -> Self {
        Self { node: ended.node.0, minute: ended.minute, fenced: ended.fenced }
    }
}

impl From<EndedBytes> for Ended {
    fn from(bytes: EndedBytes) -> Self {
        Self { node: NodeUid(bytes.node), minute: bytes.minute, fenced: bytes.fenced }
    }
}

impl From<Map> for Ownership {
    fn from(map: Map) -> Self {
        Self { map }
    }
}

/// What is there, and the keys of what is gone.
fn split<K: Ord + Copy, V, B>(changes: &BTreeMap<K, Option<V>>, bytes: impl Fn(&V) -> B) -> (BTreeMap<K, B>, Vec<K>) {
    let there = changes.iter().filter_map(|(key, value)| value.as_ref().map(|value| (*key, bytes(value))));
    let gone = changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key);
    (there.collect(), gone.collect())
}

fn cluster_bytes(cluster: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&cluster.0.to_be_bytes())
}

fn cluster(bytes: &[u8]) -> Result<ClusterId> {
    bytes.try_into().map(|bytes| ClusterId(u128::from_be_bytes(bytes))).map_err(|_| Unreadable("a cluster's name"))
}

fn small(number: u32) -> Result<u16> {
    number.try_into().map_err(|_| Unreadable("a number that is too large"))
}

fn addr(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| Unreadable("an address"))
}

fn partition(number: u32) -> Result<Partition> {
    small(number).map(Partition)
}

fn partitions(numbers: &[u32]) -> Result<Vec<Partition>> {
    numbers.iter().map(|number| partition(*number)).collect()
}
