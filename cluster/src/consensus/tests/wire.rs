//! Messages come back from their bytes, and no bytes do harm.

use bytes::Bytes;
use chappe_schema::id::NodeUid;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use proptest::prelude::*;

use super::{
    super::{
        bootstrap::Group,
        transport::{Reply, Request},
        types::{SnapshotMeta, StoredMembership, Vote, log_id},
        wire::{Ask, Say, Status},
    },
    storage::entries,
};
use crate::{
    control::Answer,
    ownership::{Applied, ClusterId, Command, Founding, Map, Ownership, Refused, Update},
};

const GROUP: Group = Group { cluster: ClusterId(u128::MAX - 5), generation: 3 };

fn map() -> Map {
    let mut state = Ownership::default();
    let founding = Founding { cluster: GROUP.cluster, generation: 3, partitions: 8, version: 1 };
    state.apply(1, &Command::Found(founding)).unwrap();
    state.map().clone()
}

fn requests() -> Vec<Request> {
    let vote = Vote::new_committed(4, 9);
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(2, 3)),
        last_membership: StoredMembership::default(),
        snapshot_id: "2-3".to_owned(),
    };
    let asks = [
        Ask::Append(AppendEntriesRequest {
            vote,
            prev_log_id: None,
            entries: entries(0..7),
            leader_commit: Some(log_id(1, 2)),
        }),
        Ask::Vote(VoteRequest { vote: Vote::new(7, 1), last_log_id: Some(log_id(5, 6)) }),
        Ask::Snapshot(InstallSnapshotRequest { vote, meta, offset: 12, data: vec![1, 2, 3], done: true }),
        Ask::Propose(Command::MarkFenced { session: 5 }),
        Ask::Keepalive { session: u64::MAX, minute: 0 },
        Ask::MapSince(0),
        Ask::Status,
    ];
    asks.into_iter().enumerate().map(|(n, ask)| Request { group: (n % 2 == 0).then_some(GROUP), ask }).collect()
}

fn replies() -> Vec<Reply> {
    let vote = Vote::new(3, 8);
    let status =
        Status { group: Some(GROUP), term: 9, leader: Some(NodeUid(4)), voters: vec![NodeUid(1), NodeUid(u64::MAX)] };
    let answer = |result| Say::Answered(Answer { version: 77, result });
    let says = vec![
        Say::Append(AppendEntriesResponse::Success),
        Say::Append(AppendEntriesResponse::PartialSuccess(Some(log_id(1, 1)))),
        Say::Append(AppendEntriesResponse::PartialSuccess(None)),
        Say::Append(AppendEntriesResponse::Conflict),
        Say::Append(AppendEntriesResponse::HigherVote(vote)),
        Say::Vote(VoteResponse { vote, vote_granted: true, last_log_id: None }),
        Say::Snapshot(InstallSnapshotResponse { vote }),
        answer(Ok(Applied::Registered { session: 1 << 50, expired: None })),
        answer(Err(Refused::Zone)),
        Say::Unknown,
        Say::NotLeader(None),
        Say::NotLeader(Some(NodeUid(3))),
        Say::Heard,
        Say::Map { update: None, status: Status::default() },
        Say::Map { update: Some(Box::new(Update::Whole(map()))), status: status.clone() },
        Say::Map { update: Some(Box::new(Update::Changes(map().diff(&Map::default())))), status: status.clone() },
        Say::Status(status),
        Say::Elsewhere,
    ];
    says.into_iter().map(Reply).collect()
}

#[test]
fn messages_come_back() {
    for request in requests() {
        let again = Request::from_bytes(request.to_bytes()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }
    for reply in replies() {
        let again = Reply::from_bytes(reply.to_bytes()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{reply:?}"));
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        which in any::<usize>(),
        at in any::<usize>(),
        flip in 1u8..,
        cut in any::<usize>(),
    ) {
        let _ = Request::from_bytes(Bytes::from(noise.clone()));
        let _ = Reply::from_bytes(Bytes::from(noise));
        let (requests, replies) = (requests(), replies());
        for bytes in [requests[which % requests.len()].to_bytes(), replies[which % replies.len()].to_bytes()] {
            let mut wrong = bytes.to_vec();
            if !wrong.is_empty() {
                let at = at % wrong.len();
                wrong[at] ^= flip;
                wrong.truncate(wrong.len() - cut % 3);
            }
            let _ = Request::from_bytes(Bytes::from(wrong.clone()));
            let _ = Reply::from_bytes(Bytes::from(wrong));
        }
    }
}
