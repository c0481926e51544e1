//! The last message, kept at hand so that a list of conversations shows its beginning without a read.

use std::sync::Arc;

use chappe_schema::{
    event::{Event, Fact},
    id::{Seq, UserId},
    inbox::Last,
    limit::PREVIEW_BYTES_MAX,
    stored::{Corrupt, StoredLast},
};

/// The last message of a conversation.
#[derive(Clone, Debug, Default)]
pub enum Latest {
    /// There is none.
    #[default]
    None,
    /// The message and its last edit. A busy conversation has them at hand anyway, so nothing is copied for a send.
    Whole(Arc<Event>, Option<Arc<Event>>),
    /// What a list shows of it.
    Cut(Box<Last>),
}

impl Latest {
    /// Takes the next event of the log.
    pub fn apply(&mut self, event: &Arc<Event>) {
        match &event.fact {
            Fact::MessageNew { .. } => *self = Self::Whole(Arc::clone(event), None),
            Fact::MessageUpdated { .. } if self.seq() == Some(event.target) => match self {
                Self::Whole(_, edit) => *edit = Some(Arc::clone(event)),
                Self::Cut(last) => last.text = text(event),
                Self::None => {}
            },
            Fact::MessageDeleted { .. } if self.seq() == Some(event.target) => {
                self.cut();
                if let Self::Cut(last) = self {
                    (last.text, last.deleted) = (None, true);
                }
            }
            _ => {}
        }
    }

    /// The message's position.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        match self {
            Self::None => None,
            Self::Whole(message, _) => Some(message.seq),
            Self::Cut(last) => Some(last.seq),
        }
    }

    /// What a list shows of it.
    #[must_use]
    pub fn last(&self) -> Option<Last> {
        match self {
            Self::None => None,
            Self::Whole(message, edit) => Some(Last {
                seq: message.seq,
                n: message.n,
                sender: message.sender.clone(),
                at: message.created_at,
                text: text(edit.as_ref().unwrap_or(message)),
                deleted: false,
            }),
            Self::Cut(last) => Some((**last).clone()),
        }
    }

    /// Lets everything go that a list does not show.
    pub fn cut(&mut self) {
        if let Self::Whole(..) = self
            && let Some(last) = self.last()
        {
            *self = Self::Cut(Box::new(last));
        }
    }

    /// Heap bytes of its own, roughly.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Cut(last) => size_of::<Last>() + last.text.as_ref().map_or(0, |text| text.len()),
            Self::None | Self::Whole(..) => 0,
        }
    }

    pub(super) fn to_stored(&self) -> Option<StoredLast> {
        let last = self.last()?;
        Some(StoredLast {
            seq: last.seq,
            n: last.n,
            sender: last.sender.as_str().to_owned(),
            at: last.at,
            text: last.text.map(String::from),
            deleted: last.deleted,
        })
    }

    pub(super) fn from_stored(stored: Option<StoredLast>) -> Result<Self, Corrupt> {
        let Some(StoredLast { seq, n, sender, at, text, deleted }) = stored else { return Ok(Self::None) };
        let sender = UserId::new(&sender).map_err(|_| Corrupt::Content("a stored text is no user id"))?;
        let text = text.map(String::into_boxed_str);
        Ok(Self::Cut(Box::new(Last { seq, n, sender, at, text, deleted })))
    }
}

/// The beginning of the body's `text`.
fn text(event: &Event) -> Option<Box<str>> {
    const ELLIPSIS: &str = "…";
    let (Fact::MessageNew { body, .. } | Fact::MessageUpdated { body, .. }) = &event.fact else { return None };
    let mut text = body.text()?;
    if text.len() > PREVIEW_BYTES_MAX {
        text.truncate(text.floor_char_boundary(PREVIEW_BYTES_MAX - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
    Some(text.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::{body::Body, id::CommandId};

    fn event(seq: Seq, target: Seq, fact: Fact) -> Arc<Event> {
        let (sender, id) = (UserId::new("ada").unwrap(), CommandId::fresh());
        Arc::new(Event { seq, n: seq, sender, device: None, id, target, created_at: seq * 10, hash: 0, fact })
    }

    fn body(json: &str) -> Body {
        Body::parse(json).unwrap()
    }

    fn message(seq: Seq, json: &str) -> Arc<Event> {
        event(seq, 0, Fact::MessageNew { body: body(json), mentions: None })
    }

    fn edit(seq: Seq, target: Seq, json: &str) -> Arc<Event> {
        event(seq, target, Fact::MessageUpdated { body: body(json), previous: 0, mentions: None, target_n: target })
    }

    fn shown(latest: &Latest) -> (Seq, Option<String>, bool) {
        let last = latest.last().unwrap();
        // What is cut and what is stored shows the same.
        let mut cut = latest.clone();
        cut.cut();
        assert_eq!(cut.last(), Some(last.clone()));
        assert_eq!(Latest::from_stored(latest.to_stored()).unwrap().last(), Some(last.clone()));
        (last.seq, last.text.map(String::from), last.deleted)
    }

    #[test]
    fn the_last_message_is_shown_as_its_last_edit_left_it() {
        for cut_first in [false, true] {
            let mut latest = Latest::default();
            assert_eq!(latest.last(), None);
            latest.apply(&message(1, r#"{"text":"one"}"#));
            latest.apply(&message(2, r#"{"text":"two"}"#));
            if cut_first {
                latest.cut();
            }
            latest.apply(&edit(3, 1, r#"{"text":"another's"}"#));
            assert_eq!(shown(&latest), (2, Some("two".to_owned()), false));
            latest.apply(&edit(4, 2, r#"{"text":"better"}"#));
            assert_eq!(shown(&latest), (2, Some("better".to_owned()), false));
            latest.apply(&event(5, 1, Fact::MessageDeleted { previous: 0, target_n: 1 }));
            assert_eq!(shown(&latest).1, Some("better".to_owned()));
            // A tombstone stays until the next message: the one before it would have to be read.
            latest.apply(&event(6, 2, Fact::MessageDeleted { previous: 4, target_n: 2 }));
            assert_eq!(shown(&latest), (2, None, true));
            latest.apply(&message(7, r#"{"image":"x"}"#));
            assert_eq!(shown(&latest), (7, None, false));
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut latest = Latest::default();
        latest.apply(&message(1, &format!(r#"{{"text":"{}"}}"#, "é".repeat(500))));
        let text = shown(&latest).1.unwrap();
        assert!(text.len() <= PREVIEW_BYTES_MAX && text.ends_with("é…"), "{text}");
        latest.apply(&message(2, &format!(r#"{{"text":"{}"}}"#, "x".repeat(PREVIEW_BYTES_MAX))));
        assert_eq!(shown(&latest).1.unwrap().len(), PREVIEW_BYTES_MAX);
        latest.cut();
        assert!(latest.heap_bytes() <= 200, "{}", latest.heap_bytes());
    }
}
