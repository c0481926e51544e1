//! How far a client has come in each conversation it hears of.

use std::sync::Arc;

use hashbrown::HashMap;
use uuid::Uuid;

use crate::history;

/// Up to so many conversations are searched one after the other.
const SEARCHED_MAX: usize = 12;
/// Live events held back while a gap is being filled; more are dropped, and the filling goes on until they are read.
const HELD_MAX: usize = 4096;

/// One conversation as its client knows it.
#[derive(Debug)]
pub(super) struct Track {
    text: [u8; 36],
    pub(super) id: Uuid,
    /// The last seq handed to the application; meaningless until `known`.
    pub(super) cursor: u64,
    pub(super) known: bool,
    pub(super) generation: Arc<str>,
    /// A read is filling a gap; live events wait in `held`.
    pub(super) filling: bool,
    pub(super) held: Vec<Box<[u8]>>,
    /// Up to where the server said that there is more to fetch.
    pub(super) told: u64,
    /// The application wants it open, also after a reconnect.
    pub(super) open: bool,
    /// Its number in the history, if there is one.
    pub(super) recorded: history::Conversation,
}

/// All conversations of a client.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    tracks: Vec<Track>,
    index: HashMap<[u8; 36], usize>,
    latest: usize,
}

/// What to do with an event, judged by its seq.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Hand it to the application.
    Next,
    /// Forget it: the application has it, or a read will bring it.
    Skip,
    /// It is kept; a read must fill what lies before it.
    Fill,
    /// It is kept until the read is over.
    Held,
}

impl Track {
    /// Decides about an event, and moves the cursor if it is the next one.
    pub(super) fn step(&mut self, seq: u64, raw: &[u8]) -> Step {
        if seq == 0 {
            return Step::Next;
        }
        if !self.known {
            self.known = true;
            self.cursor = seq;
            return Step::Next;
        }
        if seq <= self.cursor {
            return Step::Skip;
        }
        if self.filling {
            self.hold(raw);
            return Step::Held;
        }
        if seq == self.cursor + 1 {
            self.cursor = seq;
            return Step::Next;
        }
        self.hold(raw);
        Step::Fill
    }

    fn hold(&mut self, raw: &[u8]) {
        if self.held.len() < HELD_MAX {
            self.held.push(raw.into());
        }
    }
}

impl Tracks {
    /// Where a conversation is tracked, by its id as text.
    pub(super) fn find(&mut self, text: &str) -> Option<usize> {
        let text = text.as_bytes();
        if let Some(track) = self.tracks.get(self.latest)
            && track.text == text
        {
            return Some(self.latest);
        }
        let found = if self.tracks.len() <= SEARCHED_MAX {
            self.tracks.iter().position(|track| track.text == text)
        } else {
            self.index.get(<&[u8; 36]>::try_from(text).ok()?).copied()
        };
        self.latest = found.unwrap_or(self.latest);
        found
    }

    pub(super) fn add(&mut self, id: Uuid, generation: Arc<str>, recorded: history::Conversation) -> usize {
        let mut text = [0; 36];
        id.hyphenated().encode_lower(&mut text);
        let track = Track {
            text,
            id,
            cursor: 0,
            known: false,
            generation,
            filling: false,
            held: Vec::new(),
            told: 0,
            open: false,
            recorded,
        };
        self.tracks.push(track);
        if self.tracks.len() > SEARCHED_MAX {
            let mut all = self.tracks.iter().enumerate().map(|(at, track)| (track.text, at));
            if self.index.is_empty() { self.index.extend(all) } else { self.index.extend(all.next_back()) }
        }
        self.tracks.len() - 1
    }

    pub(super) fn get(&mut self, index: usize) -> &mut Track {
        &mut self.tracks[index]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.tracks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_track_goes_step_by_step() {
        let mut tracks = Tracks::default();
        let at = tracks.add(Uuid::from_u128(1), "g".into(), history::Conversation(0));
        let track = tracks.get(at);
        assert_eq!(track.step(7, b""), Step::Next);
        assert_eq!(track.step(8, b""), Step::Next);
        assert_eq!(track.step(8, b""), Step::Skip);
        assert_eq!(track.step(11, b"11"), Step::Fill);
        track.filling = true;
        assert_eq!(track.step(12, b"12"), Step::Held);
        assert_eq!(track.cursor, 8);
        assert_eq!(track.held.len(), 2);
        assert_eq!(track.step(0, b"typing"), Step::Next);
    }

    #[test]
    fn many_conversations_are_found() {
        let mut tracks = Tracks::default();
        for number in 0..100u128 {
            tracks.add(Uuid::from_u128(number), "g".into(), history::Conversation(0));
            for wanted in [0, number / 2, number] {
                assert_eq!(tracks.find(&Uuid::from_u128(wanted).to_string()), Some(wanted as usize));
            }
        }
        assert_eq!(tracks.find("no id"), None);
        assert_eq!(tracks.find(&Uuid::from_u128(1000).to_string()), None);
    }
}
