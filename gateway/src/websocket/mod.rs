//! WebSockets: `GET /v1/ws`, JSON frames of `chappe_schema::frame`, or what says the same in protobuf.
//!
//! - [`upgrade`]: from HTTP to WebSocket
//! - [`socket`]: one connection's task, and where it is in its life
//! - [`client`]: what a client says, and what becomes of it
//! - [`reader`]: frames out of bytes
//! - [`outbox`]: what waits to be written, and what happens at the brim
//! - [`writer`]: bytes into the socket, many frames to a call
//! - [`encode`]: frames as they stand on the wire

use std::sync::Arc;

use chappe_schema::error::Code;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    connection::Connection,
    gateway::{Gateway, wake},
    meters::Reason,
};

pub(crate) mod client;
pub(crate) mod encode;
pub(crate) mod ephemeral;
pub(crate) mod outbox;
pub(crate) mod reader;
pub(crate) mod socket;
pub(crate) mod upgrade;
pub(crate) mod writer;

/// Begins a connection on a stream whose handshake is done; `rest` came behind it. From here on nothing of HTTP is
/// left: the task is a new one, as small as a connection is. `None` where the table is full.
pub(crate) fn begin<IO>(io: IO, rest: &[u8], gateway: &Arc<Gateway>, format: encode::Format) -> Option<Arc<Connection>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(connection) = gateway.connections.insert(gateway.clock.seconds()) else {
        tracing::warn!(event = "connection_table_full", "a connection was dropped");
        return None;
    };
    let socket = socket::Socket::new(io, rest, Arc::clone(gateway), Arc::clone(&connection), format);
    if *gateway.leaving.borrow() {
        let mut wakers = outbox::Wakers::new();
        connection.close(Code::GoingAway, Reason::Drain, &mut wakers);
        wake(wakers);
    }
    tokio::spawn(socket);
    Some(connection)
}
