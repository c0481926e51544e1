//! A client comes back: what is it told, and how is it filled up?
//!
//! No server remembers a client. It says which history it holds and up to where; [`verdicts`] compares that with the
//! heads that the user's entity knows, and [`CatchUp`] fetches what lies between, page by page, the next one when the
//! outbox is half empty. Live events of a conversation that is still being filled are not queued: they raise the
//! target, and since seqs are dense, the pages cover them. So a connection sees every conversation in order.

use std::collections::VecDeque;

use chappe_schema::{
    command::Command,
    error::Error,
    frame::{self, RequestId, Verdict},
    id::{ConversationId, Generation, Seq},
    inbox::Cursor,
    limit::{CATCH_UP_EVENTS_MAX, PAGE_MAX},
    reply::Reply,
    wire::{Head, Heads},
};
use metrics::Counter;

use crate::{
    meters::{Cause, Resumes},
    websocket::outbox::{Outbox, Wakers},
};

/// What a `connect` brought, until it is answered.
#[derive(Debug)]
pub(crate) struct Resuming {
    /// To be echoed.
    pub(crate) id: Option<RequestId>,
    /// Fields that nobody reads.
    pub(crate) ignored: Vec<String>,
    /// By conversation, sorted. The generation is `None` where the client's text is none.
    pub(crate) positions: Vec<(ConversationId, Option<Generation>, Seq)>,
    /// Up to where the client knows its inbox.
    pub(crate) cursor: Option<Cursor>,
}

/// What the client is told, what is to be filled, and how much of a comeback it was.
pub(crate) fn verdicts(resuming: &Resuming, heads: &Heads, generation: Generation) -> Outcome {
    let mut outcome = Outcome { verdicts: Vec::new(), catch_up: CatchUp::default(), came_back: None };
    for (conversation, theirs, seq) in &resuming.positions {
        let found = heads.positions.iter().find(|(asked, _)| asked == conversation).and_then(|(_, head)| *head);
        let verdict = if heads.unknown.contains(conversation) {
            // Nobody can tell what is missing: the client asks again later. Never a false alarm, never a false promise.
            Verdict { reason: Some("unavailable"), ..Verdict::default() }
        } else {
            judge(*theirs, *seq, found, generation)
        };
        let came_back = match (verdict.reason, found) {
            (Some(_), _) => CameBack::Rejected,
            _ if verdict.limited => CameBack::Resync,
            (None, Some(head)) if head.seq > *seq => {
                outcome.catch_up.gaps.push_back(Gap { conversation: *conversation, after: *seq, target: head.seq });
                CameBack::GapFilled
            }
            _ => CameBack::Resumed,
        };
        outcome.came_back = outcome.came_back.max(Some(came_back));
        outcome.verdicts.push((*conversation, verdict));
    }
    for (conversation, head) in &heads.others {
        outcome.verdicts.push((*conversation, Verdict { head: Some(*head), ..Verdict::default() }));
    }
    outcome
}

fn judge(theirs: Option<Generation>, seq: Seq, found: Option<Head>, ours: Generation) -> Verdict {
    let verdict = Verdict { head: found, ..Verdict::default() };
    let Some(head) = found else { return Verdict { reason: Some("not_found"), ..verdict } };
    if theirs != Some(ours) {
        return Verdict { reason: Some("generation"), ..verdict };
    }
    if seq > head.seq {
        return Verdict { reason: Some("ahead"), ..verdict };
    }
    let limited = head.seq - seq > CATCH_UP_EVENTS_MAX;
    Verdict { recovered: !limited, limited, ..verdict }
}

/// The result of [`verdicts`].
pub(crate) struct Outcome {
    /// In the order of the client's positions, then the inbox's.
    pub(crate) verdicts: Vec<(ConversationId, Verdict)>,
    /// What is to be filled.
    pub(crate) catch_up: CatchUp,
    /// `None` for a client without positions: it is new.
    pub(crate) came_back: Option<CameBack>,
}

/// What a client that came back was given; of several conversations the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CameBack {
    /// Nothing was missing.
    Resumed,
    /// What was missing follows.
    GapFilled,
    /// Too much was missing.
    Resync,
    /// A position counted for nothing.
    Rejected,
}

impl CameBack {
    /// Where it is counted.
    pub(crate) const fn counter(self, resumes: &Resumes) -> &Counter {
        match self {
            Self::Resumed => &resumes.resumed,
            Self::GapFilled => &resumes.gap_filled,
            Self::Resync => &resumes.resync,
            Self::Rejected => &resumes.rejected,
        }
    }
}

/// What one connection still has to be filled with. Exists only while it does.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    gaps: VecDeque<Gap>,
    /// One page at a time.
    fetching: bool,
}

/// Events `after + 1 ..= target` of a conversation.
#[derive(Debug)]
struct Gap {
    conversation: ConversationId,
    after: Seq,
    target: Seq,
}

impl CatchUp {
    /// Whether nothing is missing.
    pub(crate) fn is_done(&self) -> bool {
        self.gaps.is_empty()
    }

    /// A live event arrived. Where its conversation is still being filled, the pages will hold it.
    pub(crate) fn raise(&mut self, conversation: ConversationId, seq: Seq) -> bool {
        match self.gaps.iter_mut().find(|gap| gap.conversation == conversation) {
            Some(gap) => {
                gap.target = gap.target.max(seq);
                true
            }
            None => false,
        }
    }

    /// The command that fetches the next page, unless one is on its way.
    pub(crate) fn next_page(&mut self) -> Option<Command> {
        let gap = self.gaps.front().filter(|_| !self.fetching)?;
        let limit = usize::try_from(gap.target - gap.after).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        self.fetching = true;
        Some(Command::EventList { conversation: gap.conversation, after: gap.after, limit })
    }
}

/// A page arrived, or an error in its place. An error ends the filling of that conversation with `resync`: the client
/// then asks for itself and is told what is wrong.
pub(crate) fn filled(outbox: &mut Outbox, result: Result<Reply, Error>, wakers: &mut Wakers) {
    let Some(mut catch_up) = outbox.catch_up.take() else { return };
    catch_up.fetching = false;
    if let Some(gap) = catch_up.gaps.front_mut() {
        match result {
            Ok(Reply::Events { conversation, items, .. }) if conversation == gap.conversation => {
                let mut end = gap.target;
                for event in &items {
                    end = event.seq;
                    // What lies above the target has not been announced yet: it will come live, or raise the target.
                    if event.seq > gap.after && event.seq <= gap.target {
                        outbox.own_event(conversation, event, wakers);
                    }
                }
                gap.after = end.clamp(gap.after, gap.target);
                let (after, target) = (gap.after, gap.target);
                if after >= target {
                    outbox.own(|out| frame::write_caught_up(out, conversation, target), wakers);
                    catch_up.gaps.pop_front();
                } else if target - after > 2 * CATCH_UP_EVENTS_MAX {
                    // It is filled more slowly than it grows.
                    catch_up.gaps.pop_front();
                    outbox.resync(conversation, target, Cause::CatchUp, wakers);
                }
            }
            _ => {
                let (conversation, target) = (gap.conversation, gap.target);
                catch_up.gaps.pop_front();
                outbox.resync(conversation, target, Cause::CatchUp, wakers);
            }
        }
    }
    if !catch_up.is_done() && !outbox.is_closing() {
        outbox.catch_up = Some(catch_up);
    }
    // The next page is fetched by the connection's own task, which knows how much has been written.
    outbox.wake(wakers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::error::Code;
    use uuid::Uuid;

    const OURS: Generation = Generation(7);

    fn conversation(n: u128) -> ConversationId {
        ConversationId(Uuid::from_u128(n))
    }

    fn told(generation: Option<Generation>, seq: Seq, head: Option<Seq>) -> (Verdict, CatchUp, Option<CameBack>) {
        let resuming = Resuming {
            id: None,
            ignored: Vec::new(),
            positions: vec![(conversation(1), generation, seq)],
            cursor: None,
        };
        let head = head.map(|seq| Head { seq, n: seq });
        let heads = Heads { positions: vec![(conversation(1), head)], ..Heads::default() };
        let outcome = verdicts(&resuming, &heads, OURS);
        (outcome.verdicts[0].1, outcome.catch_up, outcome.came_back)
    }

    #[test]
    fn verdicts_say_what_became_of_a_position() {
        let (verdict, catch_up, came_back) = told(Some(OURS), 5, Some(5));
        assert!(verdict.recovered && !verdict.limited && catch_up.is_done());
        assert_eq!(came_back, Some(CameBack::Resumed));

        let (verdict, catch_up, came_back) = told(Some(OURS), 5, Some(5 + CATCH_UP_EVENTS_MAX));
        assert!(verdict.recovered && !catch_up.is_done());
        assert_eq!(came_back, Some(CameBack::GapFilled));

        let (verdict, catch_up, came_back) = told(Some(OURS), 5, Some(6 + CATCH_UP_EVENTS_MAX));
        assert!(!verdict.recovered && verdict.limited && catch_up.is_done());
        assert_eq!(came_back, Some(CameBack::Resync));

        for (generation, seq, head, reason) in [
            (Some(OURS), 6, Some(5), "ahead"),
            (Some(Generation(8)), 5, Some(5), "generation"),
            (None, 5, Some(5), "generation"),
            (Some(OURS), 5, None, "not_found"),
        ] {
            let (verdict, catch_up, came_back) = told(generation, seq, head);
            assert_eq!(verdict.reason, Some(reason));
            assert!(!verdict.recovered && catch_up.is_done());
            assert_eq!(came_back, Some(CameBack::Rejected));
            assert_eq!(verdict.head.is_some(), head.is_some());
        }
    }

    #[test]
    fn a_new_client_is_shown_its_inbox() {
        let resuming = Resuming { id: None, ignored: Vec::new(), positions: Vec::new(), cursor: None };
        let heads =
            Heads { positions: Vec::new(), others: vec![(conversation(2), Head { seq: 9, n: 8 })], ..Heads::default() };
        let outcome = verdicts(&resuming, &heads, OURS);
        assert_eq!(outcome.came_back, None);
        assert_eq!(
            outcome.verdicts,
            [(conversation(2), Verdict { head: Some(Head { seq: 9, n: 8 }), ..Verdict::default() })]
        );
    }

    #[test]
    fn live_events_raise_the_target_only_where_something_is_missing() {
        let (_, mut catch_up, _) = told(Some(OURS), 5, Some(8));
        assert!(catch_up.raise(conversation(1), 9));
        assert!(!catch_up.raise(conversation(2), 9));
        assert_eq!(
            catch_up.next_page(),
            Some(Command::EventList { conversation: conversation(1), after: 5, limit: 4 })
        );
        assert_eq!(catch_up.next_page(), None, "one page at a time");
    }

    #[test]
    fn an_error_ends_in_a_resync() {
        let (_, mut catch_up, _) = told(Some(OURS), 5, Some(8));
        catch_up.next_page();
        let mut outbox = Outbox::default();
        outbox.catch_up = Some(Box::new(catch_up));
        filled(&mut outbox, Err(Error::new(Code::Unavailable)), &mut Wakers::new());
        assert!(outbox.catch_up.is_none());
    }
}
