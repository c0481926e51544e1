//! What nodes ask and answer each other, and its bytes.

use bytes::Bytes;
use chappe_schema::{id::NodeUid, stored::Corrupt};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use prost::{Message, Oneof};

use super::{
    bootstrap::Group,
    stored::{EntryBytes, GroupBytes, LogIdBytes, SnapshotMetaBytes, VoteBytes},
    types::{Entry, LogId, Types, Vote},
};
use crate::{
    control::Answer,
    ownership::{Command, Update},
};

/// A question. Its content is this module's own.
#[derive(Clone, Debug)]
pub struct Request {
    /// The group that the sender takes part in; none while it looks for one.
    pub(super) group: Option<Group>,
    pub(super) ask: Ask,
}

/// An answer. Its content is this module's own.
#[derive(Debug)]
pub struct Reply(pub(super) Say);

#[derive(Clone, Debug)]
pub(super) enum Ask {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
    Propose(Command),
    Keepalive {
        session: u64,
        minute: u64,
    },
    /// A newer map, for which the one asked waits a little.
    MapSince(u64),
    Status,
}

#[derive(Debug)]
pub(super) enum Say {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(InstallSnapshotResponse<u64>),
    Answered(Answer),
    /// It was given to Raft, and nobody knows what became of it.
    Unknown,
    /// It was not given to Raft; the one named may lead.
    NotLeader(Option<NodeUid>),
    Heard,
    Map {
        update: Option<Box<Update>>,
        status: Status,
    },
    Status(Status),
    /// The sender is of another group, or the one asked of none yet, or on its way out.
    Elsewhere,
}

/// What a node says about itself to one that looks for its cluster, or follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) group: Option<Group>,
    pub(super) term: u64,
    pub(super) leader: Option<NodeUid>,
    pub(super) voters: Vec<NodeUid>,
}

/// Bytes that are no question or answer of a version that this program speaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no message of the control plane: {0}")]
pub struct Unreadable(String);

const WRONG: Corrupt = Corrupt::Content("a part is missing");

impl From<Corrupt> for Unreadable {
    fn from(corrupt: Corrupt) -> Self {
        Self(corrupt.to_string())
    }
}

// === Bytes ===

impl Request {
    /// Whether it only asks what is so: all that a process may that is no node.
    #[must_use]
    pub const fn only_reads(&self) -> bool {
        matches!(self.ask, Ask::MapSince(_) | Ask::Status)
    }

    /// The question's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let ask = match &self.ask {
            Ask::Append(append) => AskBytes::Append(AppendBytes {
                vote: Some((&append.vote).into()),
                previous: append.prev_log_id.map(LogIdBytes::from),
                entries: append.entries.iter().map(EntryBytes::from).collect(),
                commit: append.leader_commit.map(LogIdBytes::from),
            }),
            Ask::Vote(request) => AskBytes::Vote(BallotBytes {
                vote: Some((&request.vote).into()),
                last: request.last_log_id.map(LogIdBytes::from),
                granted: false,
            }),
            Ask::Snapshot(snapshot) => AskBytes::Snapshot(ChunkBytes {
                vote: Some((&snapshot.vote).into()),
                meta: Some((&snapshot.meta).into()),
                offset: snapshot.offset,
                data: Bytes::copy_from_slice(&snapshot.data),
                done: snapshot.done,
            }),
            Ask::Propose(command) => AskBytes::Propose(command.to_bytes()),
            Ask::Keepalive { session, minute } => {
                AskBytes::Keepalive(KeepaliveBytes { session: *session, minute: *minute })
            }
            Ask::MapSince(version) => AskBytes::MapSince(*version),
            Ask::Status => AskBytes::Status(true),
        };
        RequestBytes { group: self.group.map(GroupBytes::from), ask: Some(ask) }.encode_to_vec().into()
    }

    /// The question of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Unreadable> {
        let RequestBytes { group, ask } = decode(bytes)?;
        let ask = match ask.ok_or(WRONG)? {
            AskBytes::Append(append) => Ask::Append(AppendEntriesRequest {
                vote: vote(append.vote)?,
                prev_log_id: append.previous.map(LogId::from),
                entries: append.entries.into_iter().map(Entry::try_from).collect::<Result<_, _>>()?,
                leader_commit: append.commit.map(LogId::from),
            }),
            AskBytes::Vote(ballot) => {
                Ask::Vote(VoteRequest { vote: vote(ballot.vote)?, last_log_id: ballot.last.map(LogId::from) })
            }
            AskBytes::Snapshot(chunk) => Ask::Snapshot(InstallSnapshotRequest {
                vote: vote(chunk.vote)?,
                meta: chunk.meta.ok_or(WRONG)?.try_into()?,
                offset: chunk.offset,
                data: chunk.data.into(),
                done: chunk.done,
            }),
            AskBytes::Propose(command) => {
                Ask::Propose(Command::from_bytes(&command).map_err(|wrong| Unreadable(wrong.to_string()))?)
            }
            AskBytes::Keepalive(KeepaliveBytes { session, minute }) => Ask::Keepalive { session, minute },
            AskBytes::MapSince(version) => Ask::MapSince(version),
            AskBytes::Status(_) => Ask::Status,
        };
        Ok(Self { group: group.map(Group::try_from).transpose()?, ask })
    }
}

impl Reply {
    /// The answer's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let say = match &self.0 {
            Say::Append(AppendEntriesResponse::Success) => SayBytes::AppendDone(true),
            Say::Append(AppendEntriesResponse::PartialSuccess(matching)) => {
                SayBytes::AppendPart(PartBytes { matching: matching.map(LogIdBytes::from) })
            }
            Say::Append(AppendEntriesResponse::Conflict) => SayBytes::AppendConflict(true),
            Say::Append(AppendEntriesResponse::HigherVote(vote)) => SayBytes::AppendHigher(vote.into()),
            Say::Vote(response) => SayBytes::Vote(BallotBytes {
                vote: Some((&response.vote).into()),
                last: response.last_log_id.map(LogIdBytes::from),
                granted: response.vote_granted,
            }),
            Say::Snapshot(response) => SayBytes::Snapshot((&response.vote).into()),
            // Rare and short, and of many kinds, to which others will be added: a node that does not know one says that
            // the outcome is unknown.
            Say::Answered(answer) => SayBytes::Answered(serde_json::to_string(answer).unwrap_or_default()),
            Say::Unknown => SayBytes::Unknown(true),
            Say::NotLeader(leader) => SayBytes::NotLeader(LeaderBytes { node: leader.map(|node| node.0) }),
            Say::Heard => SayBytes::Heard(true),
            Say::Map { update, status } => SayBytes::Map(MapBytes {
                update: update.as_ref().map(|update| update.to_bytes()),
                status: Some(status.into()),
            }),
            Say::Status(status) => SayBytes::Status(status.into()),
            Say::Elsewhere => SayBytes::Elsewhere(true),
        };
        ReplyBytes { say: Some(say) }.encode_to_vec().into()
    }

    /// The answer of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Unreadable> {
        let wrong = |error: &dyn std::error::Error| Unreadable(error.to_string());
        Ok(Self(match decode::<ReplyBytes>(bytes)?.say.ok_or(WRONG)? {
            SayBytes::AppendDone(_) => Say::Append(AppendEntriesResponse::Success),
            SayBytes::AppendPart(PartBytes { matching }) => {
                Say::Append(AppendEntriesResponse::PartialSuccess(matching.map(LogId::from)))
            }
            SayBytes::AppendConflict(_) => Say::Append(AppendEntriesResponse::Conflict),
            SayBytes::AppendHigher(vote) => Say::Append(AppendEntriesResponse::HigherVote(vote.into())),
            SayBytes::Vote(ballot) => Say::Vote(VoteResponse {
                vote: vote(ballot.vote)?,
                vote_granted: ballot.granted,
                last_log_id: ballot.last.map(LogId::from),
            }),
            SayBytes::Snapshot(vote) => Say::Snapshot(InstallSnapshotResponse { vote: vote.into() }),
            SayBytes::Answered(answer) => Say::Answered(serde_json::from_str(&answer).map_err(|error| wrong(&error))?),
            SayBytes::Unknown(_) => Say::Unknown,
            SayBytes::NotLeader(LeaderBytes { node }) => Say::NotLeader(node.map(NodeUid)),
            SayBytes::Heard(_) => Say::Heard,
            SayBytes::Map(MapBytes { update, status }) => {
                let update = update.map(|update| Update::from_bytes(&update)).transpose();
                let status = status.unwrap_or_default().try_into()?;
                Say::Map { update: update.map_err(|error| wrong(&error))?.map(Box::new), status }
            }
            SayBytes::Status(status) => Say::Status(status.try_into()?),
            SayBytes::Elsewhere(_) => Say::Elsewhere,
        }))
    }
}

fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Unreadable> {
    M::decode(bytes).map_err(|error| Unreadable(error.to_string()))
}

impl From<&Status> for StatusBytes {
    fn from(status: &Status) -> Self {
        Self {
            group: status.group.map(GroupBytes::from),
            leader: status.leader.map(|node| node.0),
            voters: status.voters.iter().map(|node| node.0).collect(),
            term: status.term,
        }
    }
}

impl TryFrom<StatusBytes> for Status {
    type Error = Unreadable;
    fn try_from(bytes: StatusBytes) -> Result<Self, Unreadable> {
        Ok(Self {
            group: bytes.group.map(Group::try_from).transpose()?,
            term: bytes.term,
            leader: bytes.leader.map(NodeUid),
            voters: bytes.voters.into_iter().map(NodeUid).collect(),
        })
    }
}

fn vote(bytes: Option<VoteBytes>) -> Result<Vote, Unreadable> {
    Ok(bytes.map(Vote::from).ok_or(WRONG)?)
}

#[derive(Clone, PartialEq, Message)]
struct RequestBytes {
    #[prost(message, optional, tag = "1")]
    group: Option<GroupBytes>,
    #[prost(oneof = "AskBytes", tags = "2, 3, 4, 5, 6, 7, 8")]
    ask: Option<AskBytes>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AskBytes {
    #[prost(message, tag = "2")]
    Append(AppendBytes),
    #[prost(message, tag = "3")]
    Vote(BallotBytes),
    #[prost(message, tag = "4")]
    Snapshot(ChunkBytes),
    #[prost(bytes = "bytes", tag = "5")]
    Propose(Bytes),
    #[prost(message, tag = "6")]
    Keepalive(KeepaliveBytes),
    #[prost(fixed64, tag = "7")]
    MapSince(u64),
    #[prost(bool, tag = "8")]
    Status(bool),
}

#[derive(Clone, PartialEq, Message)]
struct AppendBytes {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteBytes>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdBytes>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<EntryBytes>,
    #[prost(message, optional, tag = "4")]
    commit: Option<LogIdBytes>,
}

#[derive(Clone, PartialEq, Message)]
struct BallotBytes {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteBytes>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdBytes>,
    #[prost(bool, tag = "3")]
    granted: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ChunkBytes {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteBytes>,
    #[prost(message, optional, tag = "2")]
    meta: Option<SnapshotMetaBytes>,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(bool, tag = "5")]
    done: bool,
}

#[derive(Clone, PartialEq, Message)]
struct KeepaliveBytes {
    #[prost(fixed64, tag = "1")]
    session: u64,
    #[prost(uint64, tag = "2")]
    minute: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ReplyBytes {
    #[prost(oneof = "SayBytes", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    say: Option<SayBytes>,
}

#[derive(Clone, PartialEq, Oneof)]
enum SayBytes {
    #[prost(bool, tag = "1")]
    AppendDone(bool),
    #[prost(message, tag = "2")]
    AppendPart(PartBytes),
    #[prost(bool, tag = "3")]
    AppendConflict(bool),
    #[prost(message, tag = "4")]
    AppendHigher(VoteBytes),
    #[prost(message, tag = "5")]
    Vote(BallotBytes),
    #[prost(message, tag = "6")]
    Snapshot(VoteBytes),
    #[prost(string, tag = "7")]
    Answered(String),
    #[prost(bool, tag = "8")]
    Unknown(bool),
    #[prost(message, tag = "9")]
    NotLeader(LeaderBytes),
    #[prost(bool, tag = "10")]
    Heard(bool),
    #[prost(message, tag = "11")]
    Map(MapBytes),
    #[prost(message, tag = "12")]
    Status(StatusBytes),
    #[prost(bool, tag = "13")]
    Elsewhere(bool),
}

#[derive(Clone, PartialEq, Message)]
struct PartBytes {
    #[prost(message, optional, tag = "1")]
    matching: Option<LogIdBytes>,
}

#[derive(Clone, PartialEq, Message)]
struct LeaderBytes {
    #[prost(fixed64, optional, tag = "1")]
    node: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct MapBytes {
    #[prost(bytes = "bytes", optional, tag = "1")]
    update: Option<Bytes>,
    #[prost(message, optional, tag = "2")]
    status: Option<StatusBytes>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusBytes {
    #[prost(message, optional, tag = "1")]
    group: Option<GroupBytes>,
    #[prost(fixed64, optional, tag = "2")]
    leader: Option<u64>,
    #[prost(fixed64, repeated, tag = "3")]
    voters: Vec<u64>,
    #[prost(uint64, tag = "4")]
    term: u64,
}
