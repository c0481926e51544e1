//! `model`: the protocol of ownership, small enough to look at every state of it.
//!
//! Who may acknowledge a write is decided by epochs, fences and recoveries; `docs/model.md` says in words what this
//! model knows, and what it found. Read in this order:
//!
//! - [`setup`] — how big a world is checked, and by which rules; [`variant`] — which rule is broken on purpose.
//! - [`state`] — everything there is at one moment: the [`store`], the [`map`], the sessions ([`session`]); and
//!   [`violation`] — what must never be.
//! - [`step`] — everything that may happen; [`protocol`] — when, and what comes of it: for an [`owner`], for a successor
//!   that is [`reading`], in a [`handover`], on the [`network`].
//! - [`recovery`] — what of a log counts after its owner has died.
//! - [`checker`] — looks at every state, or walks at random; [`story`] — tells how a violation came about.
//! - [`pack`], [`bits`] — states as few bytes, alike where they differ in names only.
//! - [`checks`] — the table of checks and verdicts; [`command`] — runs it.

pub mod bits;
pub mod checker;
pub mod checks;
pub mod command;
pub mod handover;
pub mod map;
pub mod network;
pub mod owner;
pub mod pack;
pub mod protocol;
pub mod reading;
pub mod recovery;
pub mod session;
pub mod setup;
pub mod state;
pub mod step;
pub mod store;
pub mod story;
pub mod variant;
pub mod violation;
