//! Bytes between our processes, over QUIC, with a certificate at both ends. Nothing is known here of what the bytes mean.
//!
//! A process binds one [`Endpoint`]. Whoever has something to say to another opens a [`Way`], which is kept up: so two nodes
//! have up to two connections, one for each that dials, and a gateway dials its nodes, which answer on the same connection.
//! A [`Connection`] carries
//!
//! - *frames*, a kind and bytes, on [`LANES`] lanes each way: ordered within a lane, and a lane that stands still holds no other
//!   up. They arrive at most once, and [`Handler::lost`] says from when on nothing more comes.
//! - *questions*, a stream of its own for each, answered by [`Handler::ask`]
//! - *datagrams*, which may get lost
//!
//! In reading order: [`identity`] (who a process is, and whom it believes; [`authority`] makes certificates for development),
//! `hello` (the introduction, and what is refused), `endpoint` (dialling and accepting), `way`, `connection` (what is sent),
//! `session` (what is received), `frame`, `question`, [`settings`], `meter`.
//!
//! What was weighed:
//!
//! - *Streams one way*, not both: lanes of the two directions have nothing to do with each other.
//! - *No resumption, no early data*: each connection shows its certificates, and nothing can be played again.
//! - *Small frames are copied* into pieces of up to 64 KiB, one after the other. quinn keeps what is not acknowledged as a list of
//!   the pieces that it was given, and walks over it for each packet.
//! - *Cubic*: quinn calls its BBR experimental, and between machines of one data centre there is nothing for it to find out.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;

pub use self::{
    connection::{Connection, LANES},
    endpoint::Endpoint,
    hello::Hello,
    identity::Role,
    question::Unasked,
    settings::Settings,
    way::Way,
};

pub mod authority;
mod connection;
mod endpoint;
mod frame;
mod hello;
pub mod identity;
mod meter;
mod question;
mod session;
pub mod settings;
mod way;

#[cfg(test)]
mod tests;

/// An answer on its way. None: there is none, and whoever asked hears that it was lost.
pub type Answer = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// Whoever takes what others send. Of one connection `connected` comes first and `lost` last, exactly once each; frames of
/// one lane come in order, those of several at the same time. A panic ends the connection on which it happened.
///
/// None but the future of [`Handler::ask`] may block: the lane, or the connection, waits for it.
///
/// Bytes share the buffer in which they were received, up to 64 KiB of it: what is kept for long is better copied.
pub trait Handler: Send + Sync + 'static {
    /// A connection may be used. What is sent on it in here comes first on its lanes. If the peer had another one, dialled by
    /// the same end, that one was said to be `lost` before.
    fn connected(&self, connection: &Arc<Connection>);

    /// A frame.
    fn frame(&self, from: &Arc<Connection>, lane: u8, kind: u16, frame: Bytes);

    /// A question. The future runs as a task of its own, to its end, whether or not anybody still waits.
    fn ask(&self, from: &Arc<Connection>, kind: u16, question: Bytes) -> Answer;

    /// A datagram.
    fn datagram(&self, from: &Arc<Connection>, kind: u16, datagram: Bytes);

    /// The connection is over: no frame or datagram of it comes any more, and of what was sent nobody knows how much arrived.
    fn lost(&self, connection: &Arc<Connection>);
}
