//! A page in the making: what every store does alike with the events that it reads.

use std::sync::Arc;

use bytes::Bytes;
use chappe_schema::{
    event::{Event, Fact},
    id::{Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredOverlay, StoredReaction},
};

use super::{Page, PageRequest, Show};

/// Events that one page looks at. A log that is mostly edits is read in more than one call, each of which is short.
pub const PAGE_SCAN_MAX: usize = 2048;

/// Takes events in the direction of reading, until the page is full.
pub(super) struct Slice<'a> {
    request: &'a PageRequest,
    from: Seq,
    page: Page,
    scanned: usize,
    bytes: usize,
    /// Ended before everything wanted was looked at.
    full: bool,
}

impl<'a> Slice<'a> {
    pub(super) fn new(request: &'a PageRequest) -> Self {
        let from = request.from.max(1);
        let reached = if request.newest_first { request.upto.saturating_add(1) } else { from - 1 };
        Self { request, from, page: Page { reached, ..Page::default() }, scanned: 0, bytes: 0, full: false }
    }

    /// The lowest seq wanted; there is no event 0.
    pub(super) fn from(&self) -> Seq {
        self.from
    }

    /// Looks at one event; `overlay` is asked for the message that it is, or edits, if it may become part of the page, and
    /// `own` for a reader's reaction to it with one key.
    ///
    /// # Errors
    /// Those of `overlay` and `own`.
    pub(super) fn take<E>(
        &mut self,
        event: Arc<Event>,
        overlay: impl FnOnce(Seq) -> Result<Option<StoredOverlay>, E>,
        own: impl Fn(&UserId, &ReactionKey) -> Result<Option<StoredReaction>, E>,
    ) -> Result<(), E> {
        if event.seq < self.from || event.seq > self.request.upto || self.full {
            return Ok(());
        }
        if self.page.events.len() >= self.request.limit || self.scanned >= PAGE_SCAN_MAX {
            self.full = true;
            return Ok(());
        }
        self.scanned += 1;
        let target = match event.fact {
            Fact::MessageNew { .. } => event.seq,
            Fact::MessageUpdated { .. } => event.target,
            _ => 0,
        };
        match self.request.show {
            Show::Events if target != 0 => {
                let overlay = overlay(target)?.filter(|overlay| overlay.deleted != 0);
                self.add(event, overlay.map(|overlay| (target, overlay)));
            }
            Show::Log | Show::Events => self.add(event, None),
            Show::Messages if event.fact.is_message() => {
                let overlay = overlay(target)?;
                self.add(event, overlay.map(|overlay| (target, overlay)));
                if let Some(reader) = &self.request.reader
                    && let Some((of, overlay)) = self.page.overlays.last()
                    && *of == target
                {
                    for key in overlay.reactions.iter().filter_map(|one| ReactionKey::new(&one.key).ok()) {
                        if let Some(row) = own(reader, &key)? {
                            self.page.own.push((target, key, row));
                        }
                    }
                }
            }
            Show::Messages => self.page.reached = event.seq,
        }
        Ok(())
    }

    fn add(&mut self, event: Arc<Event>, overlay: Option<(Seq, StoredOverlay)>) {
        let beside = overlay.as_ref().map_or(0, |(_, overlay)| {
            let reactions: usize = overlay.reactions.iter().map(|one| one.key.len() + 32).sum();
            overlay.body.as_ref().map_or(0, Bytes::len) + reactions
        });
        let bytes = event.body_len() + beside;
        if !self.page.events.is_empty() && self.bytes + bytes > self.request.bytes_max {
            self.full = true;
            return;
        }
        self.bytes += bytes;
        self.page.reached = event.seq;
        self.page.overlays.extend(overlay);
        self.page.events.push(event);
    }

    /// Nothing stands up to this seq, in the direction of reading, and nobody looks further.
    pub(super) fn stop_at(&mut self, seq: Seq) {
        self.page.reached = seq;
        self.full = true;
    }

    /// Whether nothing further needs to be read: the page is full, or everything wanted was looked at.
    pub(super) fn done(&self) -> bool {
        let end = if self.request.newest_first { self.from } else { self.request.upto };
        self.full || self.page.reached == end || self.from > self.request.upto
    }

    /// The page. Where the log ended, everything wanted was looked at.
    pub(super) fn finish(mut self) -> Page {
        if self.request.newest_first {
            self.page.events.reverse();
            self.page.overlays.reverse();
        }
        if !self.full {
            self.page.complete = true;
            self.page.reached = if self.request.newest_first { self.from } else { self.request.upto };
        }
        self.page
    }
}
