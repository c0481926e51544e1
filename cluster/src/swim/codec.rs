//! The bytes of what members tell each other, inside of the seal.
//!
//! The datagram's version is the seal's first byte. Within a version a member's record may get longer: whoever does not know
//! what follows skips it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use super::peer::{ANYBODY, Peer, Role};

/// What a payload is.
#[derive(Debug)]
pub(super) enum Payload<'a> {
    /// For foca, to the last byte.
    Swim(Box<Packet>, &'a [u8]),
    /// The sender knows this member in this incarnation, which is above the one that the receiver spoke in, or of.
    Known(Peer),
}

/// What foca will find in it.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) header: Header<Peer>,
    pub(super) members: Vec<Member<Peer>>,
}

/// Bytes that are no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

const SHORT: Malformed = Malformed("it ends too early");
const FULL: Malformed = Malformed("there is no room left");

const SWIM: u8 = 0;
const KNOWN: u8 = 1;

/// Reads a payload, all of it, before any of it is acted upon.
pub(super) fn read(payload: &[u8], me: u64) -> Result<Payload<'_>, Malformed> {
    let Some((kind, mut rest)) = payload.split_first() else { return Err(SHORT) };
    match *kind {
        SWIM => {
            let (packet, whole) = (Packet::read(&mut rest, me)?, &payload[1..]);
            if rest.is_empty() {
                Ok(Payload::Swim(Box::new(packet), whole))
            } else {
                Err(Malformed("something follows its end"))
            }
        }
        KNOWN => read_peer(&mut rest).map(Payload::Known),
        _ => Err(Malformed("it is of no kind that is known here")),
    }
}

pub(super) fn write_swim(data: &[u8], into: &mut Vec<u8>) {
    into.put_u8(SWIM);
    into.put_slice(data);
}

/// A telling for foca, with one piece of news: the receiver is suspected. The sender's own standing is left open.
pub(super) fn write_suspected(me: &Peer, suspected: &Member<Peer>, into: &mut Vec<u8>) {
    into.put_u8(SWIM);
    write_header(&Header { src: *me, src_incarnation: 0, dst: *suspected.id(), message: Message::Gossip }, into);
    into.put_u16(1);
    write_member(suspected, into);
}

pub(super) fn write_known(known: &Peer, into: &mut Vec<u8>) {
    into.put_u8(KNOWN);
    write_peer(known, into);
}

impl Packet {
    fn read(buf: &mut &[u8], me: u64) -> Result<Self, Malformed> {
        let header = read_header(buf, me)?;
        let count = if buf.has_remaining() { take_u16(buf)? } else { 0 };
        let members = (0..count).map(|_| read_member(buf)).collect::<Result<_, _>>()?;
        Ok(Self { header, members })
    }
}

/// How foca writes and reads.
pub(super) struct Codec {
    /// Who reads: what is for anybody is for it.
    pub(super) me: u64,
}

impl foca::Codec<Peer> for Codec {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Peer>, mut buf: impl BufMut) -> Result<(), Malformed> {
        let mut bytes = Vec::with_capacity(128);
        write_header(header, &mut bytes);
        put(&bytes, &mut buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Peer>, Malformed> {
        read_header(&mut buf, self.me)
    }

    fn encode_member(&mut self, member: &Member<Peer>, mut buf: impl BufMut) -> Result<(), Malformed> {
        let mut bytes = Vec::with_capacity(64);
        write_member(member, &mut bytes);
        put(&bytes, &mut buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Peer>, Malformed> {
        read_member(&mut buf)
    }
}

fn put(bytes: &[u8], buf: &mut impl BufMut) -> Result<(), Malformed> {
    if buf.remaining_mut() < bytes.len() {
        return Err(FULL);
    }
    buf.put_slice(bytes);
    Ok(())
}

// === Header and message ===

fn write_header(header: &Header<Peer>, buf: &mut Vec<u8>) {
    write_peer(&header.src, buf);
    buf.put_u16(header.src_incarnation);
    buf.put_u64(header.dst.uid);
    buf.put_u64(header.dst.incarnation);
    let (kind, number, other) = match &header.message {
        Message::Ping(number) => (1, *number, None),
        Message::Ack(number) => (2, *number, None),
        Message::PingReq { target, probe_number } => (3, *probe_number, Some(target)),
        Message::IndirectPing { origin, probe_number } => (4, *probe_number, Some(origin)),
        Message::IndirectAck { target, probe_number } => (5, *probe_number, Some(target)),
        Message::ForwardedAck { origin, probe_number } => (6, *probe_number, Some(origin)),
        Message::Announce => (7, 0, None),
        Message::Feed => (8, 0, None),
        Message::Gossip => (9, 0, None),
        Message::Broadcast => (10, 0, None),
        Message::TurnUndead => (11, 0, None),
    };
    buf.put_u8(kind);
    buf.put_u8(number);
    if let Some(other) = other {
        write_peer(other, buf);
    }
}

fn read_header(buf: &mut impl Buf, me: u64) -> Result<Header<Peer>, Malformed> {
    let src = read_peer(buf)?;
    let src_incarnation = take_u16(buf)?;
    let (uid, incarnation) = (take_u64(buf)?, take_u64(buf)?);
    let (kind, probe_number) = (take_u8(buf)?, take_u8(buf)?);
    let message = match kind {
        1 => Message::Ping(probe_number),
        2 => Message::Ack(probe_number),
        3 => Message::PingReq { target: read_peer(buf)?, probe_number },
        4 => Message::IndirectPing { origin: read_peer(buf)?, probe_number },
        5 => Message::IndirectAck { target: read_peer(buf)?, probe_number },
        6 => Message::ForwardedAck { origin: read_peer(buf)?, probe_number },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        11 => Message::TurnUndead,
        _ => return Err(Malformed("no message that is known here")),
    };
    // Of a seed only its address is known.
    let for_anybody = uid == ANYBODY && message == Message::Announce;
    let uid = if for_anybody { me } else { uid };
    Ok(Header { src, src_incarnation, dst: Peer::named(uid, incarnation), message })
}

// === Member ===

fn write_member(member: &Member<Peer>, buf: &mut Vec<u8>) {
    write_peer(member.id(), buf);
    buf.put_u16(member.incarnation());
    buf.put_u8(match member.state() {
        State::Alive => 1,
        State::Suspect => 2,
        State::Down => 3,
    });
}

fn read_member(buf: &mut impl Buf) -> Result<Member<Peer>, Malformed> {
    let peer = read_peer(buf)?;
    let incarnation = take_u16(buf)?;
    let state = match take_u8(buf)? {
        1 => State::Alive,
        2 => State::Suspect,
        3 => State::Down,
        _ => return Err(Malformed("no state that is known here")),
    };
    Ok(Member::new(peer, incarnation, state))
}

// === Peer ===

/// Its length first.
fn write_peer(peer: &Peer, buf: &mut Vec<u8>) {
    let at = buf.len();
    buf.put_u8(0);
    buf.put_u64(peer.uid);
    buf.put_u64(peer.incarnation);
    buf.put_u8(match peer.role {
        Role::Node => 1,
        Role::Gateway => 2,
    });
    buf.put_u32(peer.ordinal);
    write_ip(Some(peer.addr.ip()), buf);
    buf.put_u16(peer.addr.port());
    write_ip(Some(peer.link.ip()).filter(|ip| *ip != peer.addr.ip()), buf);
    buf.put_u16(peer.link.port());
    buf[at] = (buf.len() - at - 1) as u8;
}

fn read_peer(buf: &mut impl Buf) -> Result<Peer, Malformed> {
    let length = usize::from(take_u8(buf)?);
    if buf.remaining() < length {
        return Err(SHORT);
    }
    let record = buf.copy_to_bytes(length);
    let mut record = &record[..];
    let (uid, incarnation) = (take_u64(&mut record)?, take_u64(&mut record)?);
    let role = match take_u8(&mut record)? {
        1 => Role::Node,
        2 => Role::Gateway,
        _ => return Err(Malformed("no role that is known here")),
    };
    let ordinal = take_u32(&mut record)?;
    let ip = read_ip(&mut record)?.ok_or(Malformed("a member without an address"))?;
    let addr = SocketAddr::new(ip, take_u16(&mut record)?);
    let link = SocketAddr::new(read_ip(&mut record)?.unwrap_or(ip), take_u16(&mut record)?);
    if uid == ANYBODY {
        return Err(Malformed("a member without a name"));
    }
    Ok(Peer { uid, incarnation, role, ordinal, addr, link })
}

/// None stands for the one before.
fn write_ip(ip: Option<IpAddr>, buf: &mut Vec<u8>) {
    match ip {
        None => buf.put_u8(0),
        Some(IpAddr::V4(ip)) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
}

fn read_ip(buf: &mut &[u8]) -> Result<Option<IpAddr>, Malformed> {
    match take_u8(buf)? {
        0 => Ok(None),
        4 => Ok(Some(Ipv4Addr::from(take_u32(buf)?).into())),
        6 => Ok(Some(Ipv6Addr::from(buf.try_get_u128().map_err(|_| SHORT)?).into())),
        _ => Err(Malformed("no family of addresses that is known here")),
    }
}

fn take_u8(buf: &mut impl Buf) -> Result<u8, Malformed> {
    buf.try_get_u8().map_err(|_| SHORT)
}

fn take_u16(buf: &mut impl Buf) -> Result<u16, Malformed> {
    buf.try_get_u16().map_err(|_| SHORT)
}

fn take_u32(buf: &mut impl Buf) -> Result<u32, Malformed> {
    buf.try_get_u32().map_err(|_| SHORT)
}

fn take_u64(buf: &mut impl Buf) -> Result<u64, Malformed> {
    buf.try_get_u64().map_err(|_| SHORT)
}
