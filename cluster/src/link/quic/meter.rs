//! What an endpoint counts. Handles are looked up once, when it is bound; frames are counted by the batch.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{connection::Cause, hello::Reason, identity::Role};
use crate::process::metrics::{
    QUIC_CONNECTIONS, QUIC_DATAGRAMS_TOTAL, QUIC_DIALS_TOTAL, QUIC_DISCONNECTS_TOTAL, QUIC_FRAME_BYTES_TOTAL,
    QUIC_FRAMES_TOTAL, QUIC_LOST_PACKETS_TOTAL, QUIC_QUESTION_DURATION_SECONDS, QUIC_QUESTIONS_TOTAL,
    QUIC_REFUSALS_TOTAL, QUIC_RTT_SECONDS,
};

pub(super) struct Meter {
    /// By role, then by who dialled.
    connections: [[Gauge; 2]; 2],
    pub(super) connected: Counter,
    pub(super) refused: Counter,
    pub(super) failed: Counter,
    /// By who dialled, then by reason.
    refusals: [Vec<Counter>; 2],
    disconnects: Vec<Counter>,
    pub(super) frames_sent: Counter,
    pub(super) frames_received: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) bytes_received: Counter,
    pub(super) datagrams_sent: Counter,
    pub(super) datagrams_received: Counter,
    pub(super) datagrams_dropped: Counter,
    pub(super) datagrams_malformed: Counter,
    pub(super) answered: Counter,
    pub(super) unreachable: Counter,
    pub(super) lost: Counter,
    pub(super) served: Counter,
    pub(super) declined: Counter,
    pub(super) question: Histogram,
    pub(super) rtt: Histogram,
    pub(super) lost_packets: Counter,
}

const SIDES: [&str; 2] = ["accepted", "dialled"];

impl Meter {
    pub(super) fn new() -> Self {
        let connections =
            |role: Role| SIDES.map(|side| gauge!(QUIC_CONNECTIONS, "role" => role.name(), "side" => side));
        let refusals = |side: &'static str| {
            let counter = |reason: Reason| counter!(QUIC_REFUSALS_TOTAL, "side" => side, "reason" => reason.name());
            Reason::ALL.into_iter().map(counter).collect()
        };
        let dials = |result: &'static str| counter!(QUIC_DIALS_TOTAL, "result" => result);
        let frames = |direction: &'static str| counter!(QUIC_FRAMES_TOTAL, "direction" => direction);
        let bytes = |direction: &'static str| counter!(QUIC_FRAME_BYTES_TOTAL, "direction" => direction);
        let datagrams = |result: &'static str| counter!(QUIC_DATAGRAMS_TOTAL, "result" => result);
        let questions = |result: &'static str| counter!(QUIC_QUESTIONS_TOTAL, "result" => result);
        Self {
            connections: [connections(Role::Node), connections(Role::Gateway)],
            connected: dials("connected"),
            refused: dials("refused"),
            failed: dials("failed"),
            refusals: SIDES.map(refusals),
            disconnects: Cause::ALL
                .into_iter()
                .map(|cause| counter!(QUIC_DISCONNECTS_TOTAL, "reason" => cause.name()))
                .collect(),
            frames_sent: frames("sent"),
            frames_received: frames("received"),
            bytes_sent: bytes("sent"),
            bytes_received: bytes("received"),
            datagrams_sent: datagrams("sent"),
            datagrams_received: datagrams("received"),
            datagrams_dropped: datagrams("dropped"),
            datagrams_malformed: datagrams("malformed"),
            answered: questions("answered"),
            unreachable: questions("unreachable"),
            lost: questions("lost"),
            served: questions("served"),
            declined: questions("declined"),
            question: histogram!(QUIC_QUESTION_DURATION_SECONDS),
            rtt: histogram!(QUIC_RTT_SECONDS),
            lost_packets: counter!(QUIC_LOST_PACKETS_TOTAL),
        }
    }

    pub(super) fn connections(&self, role: Role, dialled: bool) -> &Gauge {
        &self.connections[usize::from(role == Role::Gateway)][usize::from(dialled)]
    }

    pub(super) fn refusal(&self, dialled: bool, reason: Reason) {
        self.refusals[usize::from(dialled)][reason as usize].increment(1);
    }

    pub(super) fn disconnect(&self, cause: Cause) {
        self.disconnects[cause as usize].increment(1);
    }
}
