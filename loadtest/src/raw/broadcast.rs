//! A loop that writes prepared frames to many sockets: the floor under every fan-out.
//!
//! One thread, blocking sockets. The first connection asks, every other one is written to; so the same fan-out client
//! drives this loop and the real server, with the same window.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
};

use super::{ack, delivery, hello};
use crate::websocket::{self, Decoder, Item, Role};

/// What the loop does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Sockets that listen.
    pub sockets: usize,
    /// Bytes of a frame's line.
    pub delivery_bytes: usize,
    /// Frames put into one write when that many are wanted at once; 1 writes each alone.
    pub frames_per_write: usize,
}

/// Serves one crowd and returns when its first connection ends.
pub fn serve(listener: &TcpListener, plan: Plan) -> io::Result<()> {
    let mut asker = greet(listener)?;
    let mut sockets = Vec::with_capacity(plan.sockets);
    for _ in 0..plan.sockets {
        sockets.push(greet(listener)?);
    }
    let (frame, ack) = (delivery(0, plan.delivery_bytes), ack(100));
    let mut decoder = Decoder::new(Role::Server);
    let mut bytes = [0; 64 << 10];
    let mut wanted = 0;
    loop {
        // However the asker goes, its going is the end.
        let Ok(read @ 1..) = asker.read(&mut bytes) else { return Ok(()) };
        let fed = decoder.feed(&mut bytes[..read], &mut |item| wanted += usize::from(matches!(item, Item::Data(_))));
        fed.map_err(io::Error::other)?;
        asker.write_all(&ack.repeat(wanted))?;
        while wanted > 0 {
            let now = wanted.min(plan.frames_per_write);
            let burst = frame.repeat(now);
            for socket in &mut sockets {
                if socket.write_all(&burst).is_err() {
                    return Ok(());
                }
            }
            wanted -= now;
        }
    }
}

/// Accepts one connection up to its first frame, which is its `connect`.
fn greet(listener: &TcpListener) -> io::Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut byte = [0; 1024];
    while websocket::head_end(&head).is_none() {
        let read = stream.read(&mut byte)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&byte[..read]);
    }
    let mut answer = websocket::handshake_answer(&head).map_err(io::Error::other)?.into_bytes();
    answer.extend_from_slice(&hello());
    stream.write_all(&answer)?;
    let mut decoder = Decoder::new(Role::Server);
    let mut introduced = false;
    while !introduced {
        let read = stream.read(&mut byte)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder
            .feed(&mut byte[..read], &mut |item| introduced |= matches!(item, Item::Data(_)))
            .map_err(io::Error::other)?;
    }
    stream.write_all(&ack(40))?;
    Ok(stream)
}
