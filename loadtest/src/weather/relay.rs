//! A port of this process behind which a CQL server is, for hosts of a [`network`](super::network) that cannot see the server itself.
//!
//! The way can be troubled: nothing passes, or every connection breaks and none is accepted.
//!
//! It is not quite a wire: a server tells its clients at which address it is to be asked, and here they are told the relay's.
//! It stands for one server, whose protocol is read as far as it must be: version 4, not compressed, without TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Bytes of a frame's head; the last four of them are the body's length.
const HEAD: usize = 9;

/// The largest body of a frame.
const BODY_MAX: usize = 256 << 20;

/// The column in which a server tells where it is.
const COLUMN: &[u8] = b"rpc_address";

/// A value of four bytes, in front of them.
const FOUR: [u8; 4] = 4_u32.to_be_bytes();

/// See the module's documentation. It ends with the value.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    way: watch::Sender<Way>,
    _lines: JoinSet<()>,
}

/// How the way to the server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Everything passes.
    #[default]
    Open,
    /// Nothing passes, and nobody is told; it arrives later.
    Hangs,
    /// Connections break, and no other is to be had.
    Gone,
}

impl Relay {
    /// Begins, on the present runtime, at any port of an address.
    ///
    /// # Errors
    /// When the address cannot be used, or the server's is none.
    pub async fn open(at: Ipv4Addr, server: &str) -> io::Result<Self> {
        let Some(server) = tokio::net::lookup_host(server).await?.next() else {
            return Err(io::Error::other(format!("{server} has no address")));
        };
        let listener = TcpListener::bind((at, 0)).await?;
        let (address, mut lines) = (listener.local_addr()?, JoinSet::new());
        let (way, seen) = watch::channel(Way::Open);
        lines.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let Ok((near, _)) = listener.accept().await else { continue };
                let way = seen.clone();
                open.spawn(async move { drop(carry(near, server, at, way).await) });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, way, _lines: lines })
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the way is like this.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// One connection. It ends when either side does, or the way.
async fn carry(near: TcpStream, server: SocketAddr, at: Ipv4Addr, way: watch::Receiver<Way>) -> io::Result<()> {
    if *way.borrow() == Way::Gone {
        return Ok(());
    }
    let far = TcpStream::connect(server).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((asks, answers), (answered, asked)) = (near.into_split(), far.into_split());
    let mut gone = way.clone();
    tokio::select! {
        copied = ask(asks, asked, way.clone()) => copied,
        answered = answer(answered, answers, server.ip(), at, way) => answered,
        _ = gone.wait_for(|way| *way == Way::Gone) => Ok(()),
    }
}

/// Waits while nothing passes.
async fn passes(way: &mut watch::Receiver<Way>) -> io::Result<()> {
    way.wait_for(|way| *way != Way::Hangs).await.map(drop).map_err(io::Error::other)
}

/// Hands on what is asked.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        passes(&mut way).await?;
        to.write_all(&bytes[..count]).await?;
    }
}

/// Hands on what a server says, frame by frame.
async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    server: IpAddr,
    at: Ipv4Addr,
    mut way: watch::Receiver<Way>,
) -> io::Result<()> {
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame).await?;
        let length = frame[HEAD - 4..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > BODY_MAX {
            return Err(io::Error::other("what the server says is not CQL"));
        }
        frame.resize(HEAD + length, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        if let IpAddr::V4(server) = server {
            rename(&mut frame[HEAD..], server, at);
        }
        passes(&mut way).await?;
        to.write_all(&frame).await?;
    }
}

/// Puts the relay's address in place of the server's.
fn rename(body: &mut [u8], server: Ipv4Addr, at: Ipv4Addr) {
    if !body.windows(COLUMN.len()).any(|some| some == COLUMN) {
        return;
    }
    let value = [FOUR, server.octets()].concat();
    let found: Vec<usize> = (0..body.len()).filter(|place| body[*place..].starts_with(&value)).collect();
    for place in found {
        body[place + FOUR.len()..][..4].copy_from_slice(&at.octets());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&[0x84, 0, 0, 0, 8][..], &(body.len() as u32).to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn what_is_said_passes_but_where_the_server_is() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = Ipv4Addr::new(127, 0, 0, 9);
        let relay = Relay::open(at, &server.local_addr().unwrap().to_string()).await.unwrap();
        assert_eq!(relay.address().ip(), at);
        let mut near = TcpStream::connect(relay.address()).await.unwrap();
        let (mut far, _) = server.accept().await.unwrap();
        let mut bytes = [0; 4];
        near.write_all(b"asks").await.unwrap();
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"asks");

        let place = |ip: [u8; 4]| [COLUMN, &[0, 0, 0, 4], &ip, b"rest"].concat();
        let message = [&[0, 0, 0, 4][..], &[127, 0, 0, 1]].concat();
        let said = [frame(&place([127, 0, 0, 1])), frame(&message), frame(b"")];
        let heard = [frame(&place([127, 0, 0, 9])), frame(&message), frame(b"")].concat();
        for byte in said.concat() {
            // However it is cut.
            far.write_all(&[byte]).await.unwrap();
        }
        let mut found = vec![0; heard.len()];
        near.read_exact(&mut found).await.unwrap();
        assert_eq!(found, heard);
        drop(far);
        assert_eq!(near.read(&mut bytes).await.unwrap(), 0, "its end is passed on");
    }

    #[tokio::test]
    async fn a_way_hangs_and_breaks() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::open(Ipv4Addr::LOCALHOST, &server.local_addr().unwrap().to_string()).await.unwrap();
        let mut near = TcpStream::connect(relay.address()).await.unwrap();
        let (mut far, _) = server.accept().await.unwrap();
        relay.set(Way::Hangs);
        far.write_all(&frame(b"late")).await.unwrap();
        let mut late = vec![0; HEAD + 4];
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), near.peek(&mut late)).await;
        assert!(early.is_err(), "nothing passes");
        relay.set(Way::Open);
        near.read_exact(&mut late).await.unwrap();
        assert_eq!(late, frame(b"late"));

        relay.set(Way::Gone);
        assert_eq!(near.read(&mut late).await.unwrap(), 0, "it breaks");
        let mut again = TcpStream::connect(relay.address()).await.unwrap();
        assert_eq!(again.read(&mut late).await.unwrap_or(0), 0, "no other is to be had");
    }
}
