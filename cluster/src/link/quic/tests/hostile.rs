//! What comes to the port uninvited, and what somebody between two processes can do: see, keep, repeat, change and hold back.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{net::UdpSocket, task::JoinSet};

use super::*;

/// Somebody between a dialler and a process.
pub(super) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    is_cut: AtomicBool,
    is_malicious: AtomicBool,
    /// Datagrams to the process, as they passed.
    kept: Mutex<Vec<Vec<u8>>>,
}

impl Relay {
    pub(super) async fn to(process: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind(HERE).await.unwrap());
        let back = Arc::new(UdpSocket::bind(HERE).await.unwrap());
        back.connect(process).await.unwrap();
        let (address, state) = (front.local_addr().unwrap(), Arc::new(State::default()));
        let dialler = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (front, back, state, dialler) =
                (Arc::clone(&front), Arc::clone(&back), Arc::clone(&state), Arc::clone(&dialler));
            async move {
                let (mut buffer, mut random) = ([0; 65_536], StdRng::seed_from_u64(7));
                loop {
                    let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
                    *dialler.lock() = Some(from);
                    if state.is_cut.load(Ordering::Relaxed) {
                        continue;
                    }
                    let datagram = &mut buffer[..length];
                    let _ = back.send(datagram).await;
                    state.kept.lock().push(datagram.to_vec());
                    if state.is_malicious.load(Ordering::Relaxed) {
                        // Again, an old one, and a changed one.
                        let _ = back.send(datagram).await;
                        let old = {
                            let kept = state.kept.lock();
                            kept[random.random_range(0..kept.len())].clone()
                        };
                        let _ = back.send(&old).await;
                        let bit = random.random_range(0..length * 8);
                        datagram[bit / 8] ^= 1 << (bit % 8);
                        let _ = back.send(datagram).await;
                    }
                }
            }
        });
        tasks.spawn({
            let state = Arc::clone(&state);
            async move {
                let mut buffer = [0; 65_536];
                loop {
                    let Ok(length) = back.recv(&mut buffer).await else { continue };
                    let to = *dialler.lock();
                    if let (Some(to), false) = (to, state.is_cut.load(Ordering::Relaxed)) {
                        let _ = front.send_to(&buffer[..length], to).await;
                    }
                }
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on nothing passes.
    pub(super) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn mend(&self) {
        self.state.is_cut.store(false, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_that_are_repeated_and_changed_disturb_nothing() {
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let relay = Relay::to(node.address()).await;
    let way = gateway.endpoint.way(Some(2), relay.address());
    node.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    eventually("the way knows", || way.connection().is_some()).await;
    relay.state.is_malicious.store(true, Ordering::Relaxed);
    for number in 0..20_000 {
        assert!(way.send((number % 16) as u8, 1, numbered(number, 100)));
        if number % 500 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    node.probe.until("all frames", |seen| seen.frames.len() == 20_000).await;
    assert_eq!(way.ask(1, "still well".into(), LONG).await, Ok("still well".into()));
    let mut next = [0_u64; 16];
    for (_, lane, _, frame) in &node.probe.seen().frames {
        let expected = next[usize::from(*lane)] * 16 + u64::from(*lane);
        assert_eq!(number_of(frame), expected, "each once, in order");
        next[usize::from(*lane)] += 1;
    }
    node.probe.is_undisturbed();

    // The whole conversation once more, from somebody else: there is nothing in it that can be said again.
    let socket = UdpSocket::bind(HERE).await.unwrap();
    let kept = relay.state.kept.lock().clone();
    for datagram in kept.iter().take(2_000) {
        let _ = socket.send_to(datagram, node.address()).await;
    }
    assert_eq!(way.ask(1, "as before".into(), LONG).await, Ok("as before".into()));
    assert_eq!(node.probe.seen().connected.len(), 1);
    assert_eq!(node.probe.seen().frames.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_at_the_port_disturbs_nobody() {
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let way = gateway.reach(&node).await;
    let socket = UdpSocket::bind(HERE).await.unwrap();
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..5_000 {
        let mut noise = vec![0; random.random_range(1..1_400)];
        random.fill(&mut noise[..]);
        // A third of it looks like QUIC's first packet, a third like one of a connection.
        match round % 3 {
            0 => {
                noise[0] = 0xC0 | (noise[0] & 0x0F);
                noise.resize(1_200, 0);
                noise[1..5].copy_from_slice(&1_u32.to_be_bytes());
                noise[5] = 8;
                noise[14] = 8;
            }
            1 => noise[0] = 0x40 | (noise[0] & 0x3F),
            _ => {}
        }
        let _ = socket.send_to(&noise, node.address()).await;
        if round % 50 == 0 {
            assert_eq!(way.ask(1, "well?".into(), LONG).await, Ok("well?".into()));
        }
    }
    node.probe.is_undisturbed();
    world.gateway(3).reach(&node).await;
}
