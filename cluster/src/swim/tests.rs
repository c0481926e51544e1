//! The bytes, and the loop with real sockets.

use std::sync::Mutex;
use std::time::Duration;

use foca::{Codec as _, Header, Member, Message, State};
use proptest::prelude::*;

use super::{
    codec::{self, Codec, Payload},
    *,
};

mod bytes {
    use super::*;

    fn peer(uid: u64, addr: &str, link: &str) -> Peer {
        let (addr, link) = (addr.parse().unwrap(), link.parse().unwrap());
        Peer { uid, incarnation: 1_700_000_000_000 + uid, role: Role::Gateway, ordinal: 3, addr, link }
    }

    fn payload(header: &Header<Peer>, members: &[Member<Peer>]) -> Vec<u8> {
        let (mut data, mut codec) = (Vec::new(), Codec { me: 1 });
        codec.encode_header(header, &mut data).unwrap();
        data.extend_from_slice(&(members.len() as u16).to_be_bytes());
        members.iter().for_each(|member| codec.encode_member(member, &mut data).unwrap());
        let mut payload = Vec::new();
        codec::write_swim(&data, &mut payload);
        payload
    }

    fn whole(peer: &Peer) -> String {
        format!("{peer:?}")
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let src = peer(5, "10.0.0.5:7946", "10.0.0.5:7947");
        let other = peer(6, "[2001:db8::6]:7946", "192.168.0.1:1");
        let number = 200;
        let messages = [
            Message::Ping(number),
            Message::Ack(number),
            Message::PingReq { target: other, probe_number: number },
            Message::IndirectPing { origin: other, probe_number: number },
            Message::IndirectAck { target: other, probe_number: number },
            Message::ForwardedAck { origin: other, probe_number: number },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header { src, src_incarnation: 9, dst: Peer::named(7, 8), message };
            let members = [State::Alive, State::Suspect, State::Down].map(|state| Member::new(other, 65_535, state));
            let bytes = payload(&header, &members);
            let Ok(Payload::Swim(packet, _)) = codec::read(&bytes, 1) else { panic!("{header:?} is not read") };
            assert_eq!((&packet.header, &packet.members[..]), (&header, &members[..]));
            assert_eq!(whole(&packet.header.src), whole(&src), "equality looks at the name only");
            assert_eq!(whole(packet.members[0].id()), whole(&other));
            for short in 1..bytes.len() {
                let read = codec::read(&bytes[..short], 1);
                let header_only = matches!(&read, Ok(Payload::Swim(packet, _)) if packet.members.is_empty());
                assert!(read.is_err() || header_only, "{short} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn what_is_for_anybody_is_for_whoever_reads_it() {
        let src = peer(5, "10.0.0.5:7946", "10.0.0.5:7947");
        let to = |message| Header { src, src_incarnation: 0, dst: Peer::named(ANYBODY, 0), message };
        let read = |header| match codec::read(&payload(&header, &[]), 77) {
            Ok(Payload::Swim(packet, _)) => packet.header.dst.uid,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(to(Message::Announce)), 77);
        assert_eq!(read(to(Message::Gossip)), ANYBODY, "an announcement only");
    }

    #[test]
    fn a_longer_record_of_a_later_program_is_read() {
        let src = peer(5, "10.0.0.5:7946", "10.0.0.5:7947");
        let mut bytes = Vec::new();
        codec::write_known(&src, &mut bytes);
        bytes[1] += 3;
        bytes.extend_from_slice(b"new");
        match codec::read(&bytes, 1) {
            Ok(Payload::Known(known)) => assert_eq!(whole(&known), whole(&src)),
            other => panic!("{other:?}"),
        }
        bytes.pop();
        assert!(codec::read(&bytes, 1).is_err(), "it says that it is longer than it is");
        assert!(codec::read(&[2, 0, 0], 1).is_err(), "a kind that nobody knows");
        assert!(codec::read(&[], 1).is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let member = Member::alive(peer(5, "10.0.0.5:7946", "10.0.0.5:7947"));
        let mut room = [0; 10];
        let mut left = &mut room[..];
        assert!(Codec { me: 1 }.encode_member(&member, &mut left).is_err());
        assert_eq!(left.len(), 10);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..3) {
            bytes.insert(0, kind);
            drop(codec::read(&bytes, 1));
            let mut core = Core::new(peer(1, "10.0.0.1:1", "10.0.0.1:2"), Rhythm::PROMPT, 1, 0);
            let _ = core.receive(0, &bytes);
        }

        #[test]
        fn no_change_to_a_true_payload_makes_it_panic(at in 0_usize..200, to in any::<u8>(), kind in 0_u8..2) {
            let src = peer(5, "10.0.0.5:7946", "10.0.0.5:7947");
            let me = peer(1, "10.0.0.1:1", "10.0.0.1:2");
            let message = if kind == 0 { Message::Feed } else { Message::Ping(4) };
            let header = Header { src, src_incarnation: 9, dst: me, message };
            let mut bytes = payload(&header, &[Member::alive(src), Member::down(peer(6, "[::1]:4", "[::1]:5"))]);
            let at = at % bytes.len();
            bytes[at] = to;
            let mut core = Core::new(me, Rhythm::PROMPT, 1, 0);
            let _ = core.receive(0, &bytes);
            core.tick(10_000);
            while core.output().is_some() {}
        }
    }
}

mod sockets {
    use super::*;
    use crate::process::metrics::{Component, Metrics};

    const LOCAL: &str = "127.0.0.1:0";

    fn config(uid: u64, seeds: &[SocketAddr], key: u8) -> Config {
        let role = if uid.is_multiple_of(4) { Role::Gateway } else { Role::Node };
        Config {
            listen: LOCAL.parse().unwrap(),
            advertise: None,
            seeds: seeds.iter().map(ToString::to_string).collect(),
            me: Me { uid, role, ordinal: uid as u32, link: ([127, 0, 0, 1], uid as u16).into() },
            keys: simulation::keys(key),
            rhythm: Rhythm::PROMPT,
        }
    }

    /// Waits for what must come, however slow the machine is.
    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let began = std::time::Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn uids(swim: &Swim) -> Vec<u64> {
        swim.members().iter().map(|peer| peer.uid).collect()
    }

    #[tokio::test]
    async fn five_processes_find_each_other_lose_one_and_say_goodbye() {
        let first = Swim::start(config(1, &[], 7)).await.unwrap();
        let seeds = [first.me().addr];
        let mut all = vec![first];
        for uid in 2..=5 {
            all.push(Swim::start(config(uid, &seeds, 7)).await.unwrap());
        }
        until("five of them", || all.iter().all(|swim| swim.members().len() == 4)).await;
        let fourth = all[0].find(4).unwrap();
        assert_eq!((fourth.role, fourth.ordinal, fourth.link.port()), (Role::Gateway, 4, 4));
        assert_eq!((fourth.addr, fourth.node()), (all[3].me().addr, None));

        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        all[0].watch(Box::new(move |change| hears.lock().unwrap().push(*change)));
        assert_eq!(heard.lock().unwrap().len(), 4, "it hears first of those who are here");

        // It ends without a goodbye.
        drop(all.pop());
        until("one is down", || all.iter().all(|swim| swim.find(5).is_none())).await;
        assert_eq!(all[0].down().iter().map(|peer| peer.uid).collect::<Vec<_>>(), [5]);

        let leaver = all.pop().unwrap();
        leaver.leave().await;
        until("one has left", || all.iter().all(|swim| swim.find(4).is_none())).await;
        leaver.leave().await;

        // The same name again, at another address.
        let again = Swim::start(config(5, &seeds, 7)).await.unwrap();
        until("it is back", || all.iter().all(|swim| swim.find(5).is_some_and(|peer| peer.addr == again.me().addr)))
            .await;
        let words = heard.lock().unwrap().clone();
        let about_five = words.iter().filter_map(|change| match change {
            Change::Up(peer) if peer.uid == 5 => Some('u'),
            Change::Down(peer) if peer.uid == 5 => Some('d'),
            _ => None,
        });
        let about_five: String = about_five.collect();
        assert!(about_five.starts_with("ud") && about_five.ends_with('u'), "{about_five}");
    }

    #[test]
    fn strangers_are_refused_and_counted() {
        let metrics = Metrics::detached(&[Component::Membership]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        metrics.within(|| runtime.block_on(strangers()));
        let text = metrics.render();
        let value = |series: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{series} is missing in {text}")).parse().unwrap()
        };
        for reason in ["seal", "size", "cluster"] {
            assert!(value(&format!("chappe_swim_dropped_total{{reason=\"{reason}\"}}")) > 0.0, "{reason}");
        }
        for counted in ["packets", "bytes"] {
            assert!(value(&format!("chappe_swim_{counted}_total{{direction=\"in\"}}")) > 20.0);
            assert!(value(&format!("chappe_swim_{counted}_total{{direction=\"out\"}}")) > 20.0);
        }
        assert!(value("chappe_swim_changes_total{change=\"up\"}") >= 2.0);
        assert!(value("chappe_swim_members{role=\"node\",state=\"up\"}") >= 0.0);
    }

    async fn strangers() {
        let first = Swim::start(config(1, &[], 7)).await.unwrap();
        let seeds = [first.me().addr];
        let friend = Swim::start(config(2, &seeds, 7)).await.unwrap();
        let stranger = Swim::start(config(3, &seeds, 8)).await.unwrap();
        until("a friend", || uids(&first) == [2] && uids(&friend) == [1]).await;
        // Of another cluster, with the same key.
        first.know_cluster(ClusterId(1));
        friend.know_cluster(ClusterId(1));
        let foreign = Swim::start(config(4, &seeds, 7)).await.unwrap();
        foreign.know_cluster(ClusterId(2));
        let noise = UdpSocket::bind(LOCAL).await.unwrap();
        for size in [0, 1, 40, 1_350, 9_000] {
            noise.send_to(&vec![1; size], seeds[0]).await.unwrap();
        }
        // Whoever does not know its cluster yet comes in.
        let young = Swim::start(config(5, &seeds, 7)).await.unwrap();
        until("a young one", || uids(&friend).contains(&5) && uids(&young).len() >= 2).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(uids(&stranger).is_empty() && !uids(&first).contains(&3));
        assert!(!uids(&first).contains(&4) && !uids(&friend).contains(&4), "{:?}", uids(&first));
        assert!(uids(&first).contains(&2) && uids(&friend).contains(&1));
    }

    #[tokio::test]
    async fn keys_are_replaced_while_they_run() {
        let first = Swim::start(config(1, &[], 7)).await.unwrap();
        let second = Swim::start(config(2, &[first.me().addr], 7)).await.unwrap();
        until("two of them", || uids(&first) == [2] && uids(&second) == [1]).await;
        let both = Keys::new(&[[8; 32], [7; 32]]).unwrap();
        first.replace_keys(Keys::new(&[[7; 32], [8; 32]]).unwrap());
        second.replace_keys(both.clone());
        first.replace_keys(both);
        let third = Swim::start(config(3, &[first.me().addr], 8)).await.unwrap();
        until("one with the new key only", || uids(&third).len() == 2 && uids(&second) == [1, 3]).await;
    }

    #[tokio::test]
    async fn a_start_that_makes_no_sense_is_refused_with_a_sentence() {
        let start = |config: Config| async { Swim::start(config).await.err().map(|error| error.to_string()) };
        let anywhere = Config { listen: "0.0.0.0:0".parse().unwrap(), ..config(1, &[], 7) };
        assert_eq!(
            start(anywhere.clone()).await.as_deref(),
            Some("it listens on 0.0.0.0:0, which says nothing of where others reach it: name an address to advertise")
        );
        let named = Config { advertise: Some(LOCAL.parse().unwrap()), ..anywhere };
        let swim = Swim::start(named).await.unwrap();
        let addr = swim.me().addr;
        assert!(addr.port() != 0 && addr.ip().is_loopback(), "{addr}");
        assert_eq!(start(config(0, &[], 7)).await.as_deref(), Some("the uid 0 stands for anybody"));
        let taken = Config { listen: ([0, 0, 0, 0], addr.port()).into(), ..config(2, &[], 7) };
        assert!(start(taken).await.is_some_and(|error| error.starts_with("cannot listen on 0.0.0.0:")));
    }

    /// The thread that Raft has.
    #[test]
    fn it_runs_on_the_thread_of_whoever_starts_it() {
        let thread = crate::consensus::thread::Thread::start("test").unwrap();
        let swim = thread.wait(Swim::start(config(1, &[], 7))).unwrap().unwrap();
        let other = thread.wait(Swim::start(config(2, &[swim.me().addr], 7))).unwrap().unwrap();
        let began = std::time::Instant::now();
        while swim.find(2).is_none() || other.find(1).is_none() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(thread);
        // Its loop is gone; what it last knew can still be read.
        assert!(swim.find(2).is_some());
    }
}
