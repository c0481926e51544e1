//! A WebSocket server that acknowledges and delivers whatever comes, and knows nothing: no names, no store, no JSON.
//!
//! Every text frame after the first is answered with one prepared frame, and one prepared frame goes to each member of
//! the sender's group. What is pending for a socket goes out in one write, as the real server does it. Frames that all
//! look alike need no queue: a counter per socket is enough, and nothing could be cheaper.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{ack, delivery, group, hello};
use crate::websocket::{self, Decoder, Item, Role};

/// What the raw server carries.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Groups that will be named.
    pub groups: usize,
    /// Bytes of an acknowledgement's line.
    pub ack_bytes: usize,
    /// Bytes of a delivery's line.
    pub delivery_bytes: usize,
    /// Whether the sender gets a delivery too, as from the real server.
    pub echo: bool,
}

struct Group {
    members: RwLock<Vec<Arc<Mailbox>>>,
    delivery: Vec<u8>,
}

#[derive(Default)]
struct Mailbox {
    deliveries: AtomicU32,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    fn put(&self) {
        // Who finds it empty wakes; the others ride along.
        if self.deliveries.fetch_add(1, Relaxed) == 0
            && let Some(waker) = self.waker.lock().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, plan: Plan) -> io::Result<()> {
    let groups = (0..plan.groups)
        .map(|number| Group { members: RwLock::default(), delivery: delivery(number, plan.delivery_bytes) });
    let groups: Arc<Vec<Group>> = Arc::new(groups.collect());
    let ack: Arc<[u8]> = ack(plan.ack_bytes).into();
    loop {
        let (stream, _) = listener.accept().await?;
        let (groups, ack) = (Arc::clone(&groups), Arc::clone(&ack));
        tokio::spawn(async move {
            // A client that goes away is no news.
            let _ = converse(stream, &groups, &ack, plan.echo).await;
        });
    }
}

async fn converse(mut stream: TcpStream, groups: &[Group], ack: &[u8], echo: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(512);
    while websocket::head_end(&head).is_none() {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let mut answer = websocket::handshake_answer(&head).map_err(io::Error::other)?.into_bytes();
    answer.extend_from_slice(&hello());
    stream.write_all(&answer).await?;
    let group = group(&head).and_then(|number| groups.get(number)).ok_or_else(|| io::Error::other("no such group"))?;
    let mailbox = Arc::new(Mailbox::default());
    group.members.write().push(Arc::clone(&mailbox));
    let mut peer = Peer { stream, decoder: Decoder::new(Role::Server), out: Vec::new(), acks: 0, introduced: false };
    let ended = poll_fn(|cx| peer.poll(group, &mailbox, ack, echo, cx)).await;
    group.members.write().retain(|other| !Arc::ptr_eq(other, &mailbox));
    ended
}

struct Peer {
    stream: TcpStream,
    decoder: Decoder,
    out: Vec<u8>,
    acks: usize,
    introduced: bool,
}

impl Peer {
    fn poll(
        &mut self,
        group: &Group,
        mailbox: &Arc<Mailbox>,
        ack: &[u8],
        echo: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut waker = mailbox.waker.lock();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        let mut bytes = [0; 8192];
        loop {
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read)? {
                Poll::Ready(()) if read.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(()) => self.take(read.filled_mut(), group, mailbox, echo)?,
                Poll::Pending => break,
            }
        }
        loop {
            if self.out.is_empty() {
                for _ in 0..std::mem::take(&mut self.acks) {
                    self.out.extend_from_slice(ack);
                }
                for _ in 0..mailbox.deliveries.swap(0, Relaxed) {
                    self.out.extend_from_slice(&group.delivery);
                }
            }
            if self.out.is_empty() {
                return Poll::Pending;
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.out)? {
                Poll::Ready(written) => _ = self.out.drain(..written),
                Poll::Pending => return Poll::Pending,
            }
            if self.out.capacity() > 64 << 10 && self.out.is_empty() {
                self.out = Vec::new();
            }
        }
    }

    fn take(&mut self, bytes: &mut [u8], group: &Group, mailbox: &Arc<Mailbox>, echo: bool) -> io::Result<()> {
        let (introduced, acks) = (&mut self.introduced, &mut self.acks);
        let fed = self.decoder.feed(bytes, &mut |item| {
            if !matches!(item, Item::Data(_)) {
                return;
            }
            *acks += 1;
            if !std::mem::replace(introduced, true) {
                return;
            }
            for member in group.members.read().iter() {
                if !Arc::ptr_eq(member, mailbox) {
                    member.put();
                } else if echo {
                    // We are awake and write when everything is read.
                    mailbox.deliveries.fetch_add(1, Relaxed);
                }
            }
        });
        fed.map_err(io::Error::other)
    }
}
