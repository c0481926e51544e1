//! What waits for one connection's writer, and what is known about the connection under the same lock.
//!
//! Whoever has something for a connection pushes it here and wakes the writer once; the writer takes everything that
//! waits. Bounds are kept on the way in: events are dropped at the brim (dense seqs make that safe) and become one
//! `resync` per conversation; replies never are, since reading stops long before they could pile up.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::Waker,
};

use chappe_schema::{
    error::{Code, Error},
    event::Event,
    frame::{self, RequestId},
    id::{Change, ConversationId, Generation, Seq},
    inbox::Cursor,
    limit::{CONNECTION_IN_FLIGHT_MAX, OPEN_CONVERSATIONS_MAX, OUTBOX_BYTES_MAX, OUTBOX_OWN_BYTES_MAX},
    proto::frame::Answer,
    receipt::Receipts,
};

use super::{
    encode::{self, Encoded, Format, Shared},
    ephemeral::{Ephemerals, Key},
};
use crate::{
    meters::{Cause, Reason},
    pace,
    resume::CatchUp,
};

/// Wakers to be called once everything of a batch has been pushed: one wake per connection and batch, since pushing
/// takes the waker out.
pub(crate) type Wakers = smallvec::SmallVec<[Waker; 16]>;

/// One connection's outbox.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Entry>,
    /// How frames are encoded.
    pub(crate) format: Format,
    /// Set while the writer sleeps.
    waker: Option<Waker>,
    /// What waits here.
    queued: Load,
    /// What the writer has taken and not yet written.
    taken: Load,
    /// The sum of the weights of commands that nodes have not answered.
    in_flight: u32,
    /// Conversations whose events were dropped, with the newest head. Their events are folded in here until the
    /// client has been told.
    dropped: Option<Box<Dropped>>,
    /// What may get lost; written behind everything else.
    ephemerals: Option<Box<Ephemerals>>,
    /// The last change of its user's inbox that is known, for its next heartbeat; none so far.
    change: Change,
    /// Only while a resume is being filled.
    pub(crate) catch_up: Option<Box<CatchUp>>,
    /// What the client has on screen.
    opened: Vec<ConversationId>,
    /// How it will end once everything in flight is answered; nothing new is read meanwhile.
    leaving: Option<Closing>,
    closing: Option<Closing>,
}

/// By conversation: in the order in which the client is told.
#[derive(Default)]
struct Dropped(BTreeMap<ConversationId, Seq>);

/// Something to be written as it stands: one or more whole frames.
pub(crate) enum Entry {
    /// Shared with other connections.
    Event(Arc<Encoded>, Format),
    /// This connection's own.
    Own(Vec<u8>),
    /// Shared, but nothing is lost with it.
    Shared(Arc<Shared>, Format),
    /// Said by every connection.
    Fixed(&'static [u8]),
}

/// How much of something there is.
#[derive(Clone, Copy, Default)]
struct Load {
    frames: u32,
    bytes: u32,
    own_bytes: u32,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closing {
    /// The close frame's code.
    pub(crate) code: u16,
    /// Its reason.
    pub(crate) reason: &'static str,
    /// For the metric.
    pub(crate) why: Reason,
}

/// What the writer found.
pub(crate) enum Taken {
    /// Entries to write.
    Some,
    /// Nothing; the waker is set.
    Nothing,
    /// Nothing, and nothing more will come: say goodbye.
    Close(Closing),
}

/// An own buffer above this is closed, and the next frame begins another one: growing means copying.
const OWN_BUFFER_BYTES: usize = 16 * 1024;
/// A queue above this is given back when it is empty.
const KEPT_ENTRIES: usize = 16;

// === pushing ===

impl Outbox {
    /// An event, live. Events of a conversation that is still being caught up are not queued: its pages will hold them.
    pub(crate) fn event(&mut self, event: &Arc<Encoded>, wakers: &mut Wakers) {
        if self.closing.is_some() {
            return;
        }
        if event.parts {
            self.tell_receipts(event.conversation);
        }
        if let Some(catch_up) = &mut self.catch_up
            && catch_up.raise(event.conversation, event.seq)
        {
            return;
        }
        if let Some(dropped) = &mut self.dropped
            && let Some(head) = dropped.0.get_mut(&event.conversation)
        {
            *head = event.seq.max(*head);
            return;
        }
        let bytes = event.frame(self.format).len();
        if !self.has_room(bytes) {
            self.drop_events();
            if !self.has_room(bytes) {
                self.note_dropped(event.conversation, event.seq, Cause::Overflow);
                return;
            }
            if self.dropped.as_ref().is_some_and(|dropped| dropped.0.contains_key(&event.conversation)) {
                self.note_dropped(event.conversation, event.seq, Cause::Overflow);
                return;
            }
        }
        self.queued.frames += 1;
        self.queued.bytes += bytes as u32;
        self.waiting.push_back(Entry::Event(Arc::clone(event), self.format));
        self.wake(wakers);
    }

    /// Events that will not come this way: the client is told to fetch.
    pub(crate) fn resync(&mut self, conversation: ConversationId, head: Seq, cause: Cause, wakers: &mut Wakers) {
        if self.closing.is_none() {
            self.note_dropped(conversation, head, cause);
            self.wake(wakers);
        }
    }

    /// A conversation has moved on without this connection: it is told so, unless pages are on their way that will hold it.
    pub(crate) fn behind(&mut self, conversation: ConversationId, head: Seq, wakers: &mut Wakers) {
        if self.catch_up.as_mut().is_none_or(|catch_up| !catch_up.raise(conversation, head)) {
            self.resync(conversation, head, Cause::Moved, wakers);
        }
    }

    /// A value that may get lost: a newer one of the same thing takes its place.
    pub(crate) fn ephemeral(&mut self, key: &Key, frame: &Arc<Shared>, wakers: &mut Wakers) {
        if self.closing.is_none() {
            self.ephemerals.get_or_insert_default().put(key, frame);
            self.wake(wakers);
        }
    }

    /// Members of a conversation have got further. It may get lost; what waits already and this become one.
    pub(crate) fn receipts(&mut self, receipts: &Arc<Receipts>, frame: &Arc<Shared>, wakers: &mut Wakers) {
        if self.closing.is_none() {
            self.ephemerals.get_or_insert_default().put_receipts(receipts, frame);
            self.wake(wakers);
        }
    }

    /// The inbox of the connection's user is known up to here.
    pub(crate) const fn know_cursor(&mut self, cursor: Cursor) {
        self.change = cursor.change;
    }

    /// A frame of this connection's own; `write` appends its payload as JSON.
    pub(crate) fn own(&mut self, write: impl FnOnce(&mut Vec<u8>), wakers: &mut Wakers) {
        self.answer(Answer::Done, write, wakers);
    }

    /// [`own`](Self::own), where an `ok` in it is the answer to `answer`.
    pub(crate) fn answer(&mut self, answer: Answer, write: impl FnOnce(&mut Vec<u8>), wakers: &mut Wakers) {
        if self.closing.is_none() {
            self.append(answer, write);
            self.wake(wakers);
        }
    }

    /// An event for this connection alone.
    pub(crate) fn own_event(&mut self, conversation: ConversationId, event: &Event, wakers: &mut Wakers) {
        if self.closing.is_none() {
            let format = self.format;
            self.append_frame(|own| encode::event(own, format, conversation, event));
            self.wake(wakers);
        }
    }

    /// An error frame.
    pub(crate) fn error(&mut self, id: Option<&RequestId>, error: &Error, request_id: &str, wakers: &mut Wakers) {
        self.own(|out| frame::write_error(out, id, error.problem(request_id)), wakers);
    }

    /// The heartbeat, unless something else is on its way anyway.
    pub(crate) fn heartbeat(&mut self, generation: Generation, wakers: &mut Wakers) {
        const FRAME_BYTES: usize = frame::HEARTBEAT.len() + 2;
        static FRAME: [u8; FRAME_BYTES] = {
            let mut bytes = [0; FRAME_BYTES];
            bytes[0] = 0x81;
            bytes[1] = frame::HEARTBEAT.len() as u8;
            let mut index = 0;
            while index < frame::HEARTBEAT.len() {
                bytes[index + 2] = frame::HEARTBEAT[index];
                index += 1;
            }
            bytes
        };
        if self.closing.is_some() || self.queued.frames > 0 || self.taken.frames > 0 {
            return;
        }
        if self.change != Change::default() {
            let cursor = Cursor { generation, change: self.change };
            self.own(|out| frame::write_heartbeat(out, cursor), wakers);
        } else if self.format != Format::Json {
            self.own(|out| out.extend_from_slice(frame::HEARTBEAT), wakers);
        } else {
            self.queued.frames += 1;
            self.queued.bytes += FRAME_BYTES as u32;
            self.waiting.push_back(Entry::Fixed(&FRAME));
            self.wake(wakers);
        }
    }

    /// Ends the connection once everything that waits has been written, the error last. Only the first end counts.
    pub(crate) fn close(&mut self, error: &Error, request_id: &str, why: Reason, wakers: &mut Wakers) {
        self.close_with(close_code(error.code), error.code.row().code, why, Some((error, request_id)), wakers);
    }

    /// [`close`](Self::close) with another code than the table's, or without an error.
    pub(crate) fn close_with(
        &mut self,
        code: u16,
        reason: &'static str,
        why: Reason,
        error: Option<(&Error, &str)>,
        wakers: &mut Wakers,
    ) {
        if self.closing.is_some() {
            return;
        }
        if let Some((error, request_id)) = error {
            self.append(Answer::Done, |out| frame::write_error(out, None, error.problem(request_id)));
        }
        self.closing = Some(Closing { code, reason, why });
        self.catch_up = None;
        self.dropped = None;
        self.wake(wakers);
    }

    /// Ends the connection once every command in flight is answered.
    pub(crate) fn leave(&mut self, code: Code, why: Reason, wakers: &mut Wakers) {
        if self.closing.is_none() && self.leaving.is_none() {
            let row = code.row();
            self.leaving = Some(Closing { code: row.close.unwrap_or(1001), reason: row.code, why });
            self.wake(wakers);
        }
    }

    /// Drops everything that waits and then closes: for a client that does not read.
    pub(crate) fn abandon(&mut self, code: Code, request_id: &str, why: Reason, wakers: &mut Wakers) {
        self.waiting = VecDeque::new();
        self.queued = Load::default();
        self.close(&Error::new(code), request_id, why, wakers);
    }

    fn append(&mut self, answer: Answer, write: impl FnOnce(&mut Vec<u8>)) {
        let format = self.format;
        self.append_frame(|own| encode::own(own, format, answer, write));
    }

    fn append_frame(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let reuse = matches!(self.waiting.back(), Some(Entry::Own(own)) if own.len() < OWN_BUFFER_BYTES);
        if !reuse {
            self.waiting.push_back(Entry::Own(Vec::with_capacity(192)));
        }
        let Some(Entry::Own(own)) = self.waiting.back_mut() else { return };
        let before = own.len();
        write(own);
        let bytes = (own.len() - before) as u32;
        self.queued.frames += 1;
        self.queued.bytes += bytes;
        self.queued.own_bytes += bytes;
    }

    /// Takes the writer's waker, if the writer sleeps.
    pub(crate) fn wake(&mut self, wakers: &mut Wakers) {
        if let Some(waker) = self.waker.take() {
            wakers.push(waker);
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let frames = self.queued.frames + self.taken.frames;
        let total = self.queued.bytes as usize + self.taken.bytes as usize + bytes;
        (frames as usize) < pace::outbox_frames() && total <= OUTBOX_BYTES_MAX
    }

    fn note_dropped(&mut self, conversation: ConversationId, seq: Seq, cause: Cause) {
        let head = self.dropped.get_or_insert_default().0.entry(conversation).or_insert_with(|| {
            // Once for what the client will be told in one frame.
            cause.count();
            0
        });
        *head = seq.max(*head);
    }

    fn drop_events(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for entry in waiting {
            let Entry::Event(event, format) = entry else {
                self.waiting.push_back(entry);
                continue;
            };
            self.queued.frames -= 1;
            self.queued.bytes -= event.frame(format).len() as u32;
            self.note_dropped(event.conversation, event.seq, Cause::Overflow);
        }
    }
}

// === writing ===

impl Outbox {
    /// Hands everything that waits to the writer, whose former batch is written. When there is nothing, the writer's
    /// waker is left here.
    pub(crate) fn take(&mut self, writing: &mut VecDeque<Entry>, waker: &Waker) -> Taken {
        debug_assert!(writing.is_empty(), "the former batch is written first");
        self.taken = Load::default();
        if self.waiting.is_empty() {
            self.tell_dropped();
        }
        self.tell_ephemerals();
        if self.waiting.is_empty() {
            if self.leaving.is_some() && self.closing.is_none() && self.in_flight == 0 {
                self.closing = self.leaving;
            }
            if self.waiting.capacity() > KEPT_ENTRIES {
                self.waiting = VecDeque::new();
            }
            self.sleep(waker);
            return match self.closing {
                Some(closing) => Taken::Close(closing),
                None => Taken::Nothing,
            };
        }
        std::mem::swap(&mut self.waiting, writing);
        self.taken = std::mem::take(&mut self.queued);
        Taken::Some
    }

    /// Leaves the waker of a writer that waits for its socket, so that what else the task does can be woken too.
    pub(crate) fn sleep(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Frames and bytes of the batch that was taken.
    pub(crate) fn batch(&self) -> (usize, usize) {
        (self.taken.frames as usize, self.taken.bytes as usize)
    }

    /// The last values of what may get lost go out behind what waits.
    fn tell_ephemerals(&mut self) {
        let Some(mut ephemerals) = self.ephemerals.take() else { return };
        if self.closing.is_none() && !ephemerals.is_empty() {
            for entry in ephemerals.drain(self.format) {
                self.queued.frames += 1;
                self.queued.bytes += entry.bytes().len() as u32;
                self.waiting.push_back(entry);
            }
        }
    }

    /// What waits of a conversation's members goes out now: whoever is about to be told that they have left must not hear of
    /// it afterwards.
    fn tell_receipts(&mut self, conversation: ConversationId) {
        let format = self.format;
        let waiting = self.ephemerals.as_mut().and_then(|ephemerals| ephemerals.take_receipts(conversation, format));
        if let Some(entry) = waiting {
            self.queued.frames += 1;
            self.queued.bytes += entry.bytes().len() as u32;
            self.waiting.push_back(entry);
        }
    }

    /// Once everything else has been written there is room to say what was dropped.
    fn tell_dropped(&mut self) {
        let Some(dropped) = self.dropped.take() else { return };
        for (conversation, head) in dropped.0 {
            self.append(Answer::Done, |out| frame::write_resync(out, conversation, head));
        }
    }
}

// === reading ===

impl Outbox {
    /// Whether the reader may go on: neither too many commands in flight nor too much of the connection's own waiting.
    pub(crate) fn may_read(&self) -> bool {
        let has_room = self.in_flight < CONNECTION_IN_FLIGHT_MAX as u32 && self.own_bytes() < OUTBOX_OWN_BYTES_MAX;
        has_room && self.leaving.is_none()
    }

    /// Whether a page may be fetched: less than half full.
    pub(crate) fn has_room_for_a_page(&self) -> bool {
        let frames = (self.queued.frames + self.taken.frames) as usize;
        self.own_bytes() < OUTBOX_OWN_BYTES_MAX / 2 && frames < pace::outbox_frames() / 2
    }

    fn own_bytes(&self) -> usize {
        self.queued.own_bytes as usize + self.taken.own_bytes as usize
    }

    /// A command has been sent to a node.
    pub(crate) const fn asked(&mut self, weight: u32) {
        self.in_flight += weight;
    }

    /// It has been answered.
    pub(crate) const fn answered(&mut self, weight: u32) {
        self.in_flight = self.in_flight.saturating_sub(weight);
    }

    /// Whether the connection is on its way out.
    pub(crate) const fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// How it ends, once that is decided.
    pub(crate) const fn closing(&self) -> Option<Closing> {
        self.closing
    }
}

// === what is on screen ===

impl Outbox {
    /// Notes that a conversation is on screen.
    ///
    /// # Errors
    /// When there are too many.
    pub(crate) fn open(&mut self, conversation: ConversationId) -> Result<(), Error> {
        if self.opened.contains(&conversation) {
            return Ok(());
        }
        if self.opened.len() >= OPEN_CONVERSATIONS_MAX {
            let detail = format!("{OPEN_CONVERSATIONS_MAX} conversations are open on this connection; close one first");
            return Err(Error::invalid("conversation", detail));
        }
        self.opened.push(conversation);
        Ok(())
    }

    /// Notes that it no longer is.
    pub(crate) fn shut(&mut self, conversation: ConversationId) {
        self.opened.retain(|open| *open != conversation);
    }

    /// Everything that is on screen; nothing is from now on.
    pub(crate) fn shut_all(&mut self) -> Vec<ConversationId> {
        std::mem::take(&mut self.opened)
    }
}

/// The code with which an error closes a connection: its own, or one that says whether it is of use to come back.
pub(crate) fn close_code(code: Code) -> u16 {
    /// The protocol was violated.
    const VIOLATION: u16 = 1002;
    let row = code.row();
    let other = if row.retryable { Code::Overloaded.row().close } else { Some(VIOLATION) };
    row.close.or(other).unwrap_or(VIOLATION)
}

impl Entry {
    /// The bytes to write.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Event(event, format) => event.frame(*format),
            Self::Own(bytes) => bytes,
            Self::Shared(shared, format) => shared.frame(*format),
            Self::Fixed(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::{
        body::Body,
        event::{Event, Fact},
        id::{CommandId, UserId},
        limit::OUTBOX_FRAMES_MAX,
    };
    use std::task::Wake;
    use uuid::Uuid;

    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn waker() -> Waker {
        Waker::from(Arc::new(Nobody))
    }

    fn event(conversation: u128, seq: Seq, text: usize) -> Arc<Encoded> {
        let conversation = ConversationId(Uuid::from_u128(conversation));
        let event = Event {
            seq,
            n: seq,
            sender: UserId::new("ada").unwrap(),
            device: None,
            id: CommandId::fresh(),
            target: 0,
            created_at: 0,
            hash: 0,
            fact: Fact::MessageNew {
                body: Body::parse(&format!(r#"{{"text":"{}"}}"#, "x".repeat(text))).unwrap(),
                mentions: None,
            },
        };
        Encoded::event(conversation, &Arc::new(event))
    }

    /// What a client would read: the payloads of everything taken.
    fn read(outbox: &mut Outbox) -> Vec<serde_json::Value> {
        let mut writing = VecDeque::new();
        let mut seen = Vec::new();
        while let Taken::Some = outbox.take(&mut writing, &waker()) {
            for entry in writing.drain(..) {
                let mut bytes = entry.bytes();
                while !bytes.is_empty() {
                    let mut cursor = std::io::Cursor::new(bytes);
                    let (_, length) = tungstenite::protocol::frame::FrameHeader::parse(&mut cursor).unwrap().unwrap();
                    let start = cursor.position() as usize;
                    seen.push(serde_json::from_slice(&bytes[start..start + length as usize]).unwrap());
                    bytes = &bytes[start + length as usize..];
                }
            }
        }
        seen
    }

    #[test]
    fn one_wake_per_batch() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        assert!(matches!(outbox.take(&mut VecDeque::new(), &waker()), Taken::Nothing));
        for seq in 1..5 {
            outbox.event(&event(1, seq, 1), &mut wakers);
        }
        assert_eq!(wakers.len(), 1);
        assert_eq!(read(&mut outbox).len(), 4);
    }

    #[test]
    fn own_frames_share_a_buffer_and_keep_their_place() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        for id in 1..4 {
            outbox.own(|out| frame::write_done(out, &RequestId::Number(id), &[]), &mut wakers);
        }
        assert_eq!(outbox.waiting.len(), 1, "one allocation for all replies of a batch");
        outbox.event(&event(1, 1, 1), &mut wakers);
        outbox.own(|out| frame::write_done(out, &RequestId::Number(4), &[]), &mut wakers);
        let seen = read(&mut outbox);
        let ids: Vec<_> = seen.iter().map(|frame| frame["id"].as_u64().or(frame["seq"].as_u64()).unwrap()).collect();
        assert_eq!(seen[3]["event"], "message.new");
        assert_eq!(ids.len(), 5);
        assert_eq!(seen[4]["id"], 4);
    }

    #[test]
    fn at_the_brim_events_become_one_resync_per_conversation() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        outbox.own(|out| frame::write_done(out, &RequestId::Number(1), &[]), &mut wakers);
        for seq in 1..=OUTBOX_FRAMES_MAX as u64 {
            outbox.event(&event(u128::from(seq % 2), seq, 1), &mut wakers);
        }
        // Those of a dropped conversation fold into its resync; another one's still come.
        outbox.event(&event(1, 1001, 1), &mut wakers);
        outbox.event(&event(7, 5, 1), &mut wakers);
        let seen = read(&mut outbox);
        assert_eq!(seen[0]["id"], 1, "replies are never dropped");
        assert_eq!(seen[1]["seq"], 5);
        let mut heads: Vec<_> = seen[2..].iter().map(|frame| frame["resync"]["head"].as_u64().unwrap()).collect();
        heads.sort_unstable();
        assert_eq!(heads, [256, 1001]);
        // Told once; then events flow again.
        outbox.event(&event(1, 1002, 1), &mut wakers);
        assert_eq!(read(&mut outbox)[0]["seq"], 1002);
        assert!(read(&mut outbox).is_empty());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        for seq in 1..200 {
            outbox.event(&event(1, seq, 60_000), &mut wakers);
            assert!(outbox.queued.bytes as usize <= OUTBOX_BYTES_MAX);
        }
        let seen = read(&mut outbox);
        assert_eq!(seen.last().unwrap()["resync"]["head"], 199);
    }

    #[test]
    fn what_the_writer_holds_counts() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        let mut writing = VecDeque::new();
        for seq in 1..=200 {
            outbox.event(&event(1, seq, 1), &mut wakers);
        }
        assert!(matches!(outbox.take(&mut writing, &waker()), Taken::Some));
        for seq in 201..=300 {
            outbox.event(&event(1, seq, 1), &mut wakers);
        }
        assert_eq!(writing.len(), 200, "what is being written is not taken back");
        writing.clear();
        let seen = read(&mut outbox);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0]["resync"]["head"], 300);
    }

    #[test]
    fn reading_stops_for_commands_in_flight_and_own_bytes() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        for _ in 0..CONNECTION_IN_FLIGHT_MAX {
            assert!(outbox.may_read());
            outbox.asked(1);
        }
        assert!(!outbox.may_read());
        outbox.answered(1);
        assert!(outbox.may_read());
        outbox.own(|out| out.resize(out.len() + OUTBOX_OWN_BYTES_MAX, b' '), &mut wakers);
        assert!(!outbox.may_read());
        let mut writing = VecDeque::new();
        assert!(matches!(outbox.take(&mut writing, &waker()), Taken::Some));
        assert!(!outbox.may_read(), "until it is written, it waits");
        writing.clear();
        assert!(matches!(outbox.take(&mut writing, &waker()), Taken::Nothing));
        assert!(outbox.may_read());
    }

    #[test]
    fn after_the_end_nothing_is_pushed() {
        let mut outbox = Outbox::default();
        let mut wakers = Wakers::new();
        outbox.close(&Error::new(Code::AuthRequired), "r", Reason::Auth, &mut wakers);
        outbox.close(&Error::new(Code::Internal), "r", Reason::Error, &mut wakers);
        outbox.event(&event(1, 1, 1), &mut wakers);
        outbox.own(|out| out.extend_from_slice(b"{}"), &mut wakers);
        let seen = read(&mut outbox);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0]["error"]["code"], "auth.required");
        let Taken::Close(closing) = outbox.take(&mut VecDeque::new(), &waker()) else { panic!() };
        assert_eq!(closing.code, 4501);
    }

    #[test]
    fn open_conversations_are_bounded() {
        let mut outbox = Outbox::default();
        let id = |n: usize| ConversationId(Uuid::from_u128(n as u128));
        for n in 0..OPEN_CONVERSATIONS_MAX {
            outbox.open(id(n)).unwrap();
        }
        outbox.open(id(0)).unwrap();
        assert_eq!(outbox.open(id(9999)).unwrap_err().field.as_deref(), Some("conversation"));
        outbox.shut(id(0));
        outbox.open(id(9999)).unwrap();
        assert_eq!(outbox.shut_all().len(), OPEN_CONVERSATIONS_MAX);
    }

    #[test]
    fn what_is_left_out_is_counted_once_per_conversation_and_by_cause() {
        use chappe_cluster::process::metrics::{Component, Metrics};
        let metrics = Metrics::detached(&[Component::Gateway]).unwrap();
        metrics.within(|| {
            let (mut outbox, mut wakers) = (Outbox::default(), Wakers::new());
            for seq in 1..=(OUTBOX_FRAMES_MAX as Seq + 50) {
                outbox.event(&event(1, seq, 10), &mut wakers);
            }
            outbox.resync(ConversationId(Uuid::from_u128(2)), 9, Cause::Gap, &mut wakers);
            outbox.resync(ConversationId(Uuid::from_u128(2)), 10, Cause::Gap, &mut wakers);
        });
        let text = metrics.render();
        for (cause, count) in [("overflow", 1), ("gap", 1), ("queue", 0)] {
            let line = format!("chappe_gateway_resyncs_total{{cause=\"{cause}\"}} {count}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
