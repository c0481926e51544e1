//! The loop around the core: its socket, its clock, its keys, the look-up of its seeds.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use chappe_schema::id::Millis;
use tokio::{
    net::{UdpSocket, lookup_host},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    core::{Core, Output},
    meter::{self, Meter},
    roll::Roll,
    seal::{DATAGRAM_MAX, Keys, Opener, Sealer},
};

/// What others in this process want of the loop.
pub(super) enum Order {
    Keys(Keys),
    /// Answered when it has said goodbye.
    Leave(oneshot::Sender<()>),
}

pub(super) struct Driver {
    pub(super) socket: UdpSocket,
    pub(super) core: Core,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) roll: Arc<Roll>,
    pub(super) cluster: Arc<OnceLock<u128>>,
    pub(super) seeds: Vec<Seed>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    /// What the core counts from.
    pub(super) began: Instant,
}

/// A name that stands for members to begin with.
pub(super) struct Seed {
    name: Arc<str>,
    looking: Option<JoinHandle<()>>,
}

impl From<String> for Seed {
    fn from(name: String) -> Self {
        Self { name: name.into(), looking: None }
    }
}

/// Datagrams that are heard before timers are looked at again. What waits is heard first: it may be the answer that a timer would
/// say did not come.
const HEARD_AT_ONCE: usize = 256;

/// How often gauges are set.
const SHOWN: Duration = Duration::from_secs(1);

/// After an error of the socket, so that one that stays does not take the whole thread.
const BREATH: Duration = Duration::from_millis(20);

/// Until it has left, or nobody holds a handle any more.
pub(super) async fn drive(mut driver: Driver) {
    let mut meter = Meter::new();
    let (found, mut seeds) = mpsc::unbounded_channel();
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    let mut datagram = Vec::with_capacity(DATAGRAM_MAX);
    let mut left: Vec<oneshot::Sender<()>> = Vec::new();
    let mut shown = tokio::time::interval(SHOWN);
    shown.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        while let Some(output) = driver.core.output() {
            match output {
                Output::Send { to, payload } => driver.send(to, &payload, &mut datagram, &meter).await,
                Output::Resolve => driver.look_up(&found),
                Output::Change(change) => {
                    meter::changed(&change);
                    tracing::info!(event = "membership_changed", %change);
                    driver.roll.note(&change);
                }
                Output::Forgotten(uid) => driver.roll.forget(uid),
                Output::Gone => {
                    // Whoever asked may have gone.
                    for left in left {
                        let _ = left.send(());
                    }
                    return;
                }
            }
        }
        let due = driver.core.due().map(|due| driver.began + Duration::from_millis(due));
        tokio::select! {
            biased;
            order = driver.orders.recv() => match order {
                Some(Order::Keys(keys)) => driver.replace_keys(keys),
                Some(Order::Leave(done)) => {
                    left.push(done);
                    driver.core.leave(driver.now());
                }
                None => return,
            },
            received = driver.socket.recv_from(&mut buffer) => match received {
                Ok((size, _)) => {
                    driver.hear(&buffer[..size], &meter);
                    driver.hear_more(&mut buffer, &meter);
                }
                Err(error) => {
                    tracing::debug!(event = "swim_socket", %error);
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(found) = seeds.recv() => driver.core.announce(driver.now(), found),
            _ = shown.tick() => meter.show(&driver.core),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        driver.core.tick(driver.now());
        // A flood must not keep Raft from this thread.
        tokio::task::yield_now().await;
    }
}

impl Driver {
    fn now(&self) -> Millis {
        self.began.elapsed().as_millis() as Millis
    }

    fn known_cluster(&self) -> u128 {
        self.cluster.get().copied().unwrap_or(0)
    }

    fn hear_more(&mut self, buffer: &mut [u8], meter: &Meter) {
        for _ in 1..HEARD_AT_ONCE {
            match self.socket.try_recv_from(buffer) {
                Ok((size, _)) => self.hear(&buffer[..size], meter),
                Err(_) => return,
            }
        }
    }

    fn hear(&mut self, datagram: &[u8], meter: &Meter) {
        meter.received(datagram.len());
        let (now, cluster) = (self.now(), self.known_cluster());
        let opened = self.opener.open(datagram, cluster);
        if let Err(why) = opened.and_then(|payload| self.core.receive(now, payload)) {
            meter::dropped(why);
            tracing::trace!(event = "swim_dropped", reason = why.label());
        }
    }

    async fn send(&mut self, to: SocketAddr, payload: &[u8], datagram: &mut Vec<u8>, meter: &Meter) {
        self.sealer.seal(self.known_cluster(), payload, datagram);
        match self.socket.send_to(datagram, to).await {
            Ok(size) => meter.sent(size),
            // As if it had got lost.
            Err(error) => {
                meter::unsent();
                tracing::trace!(event = "swim_unsent", %to, %error);
            }
        }
    }

    /// Looks every name up, side by side, and says of each what it stands for. Names are looked up anew every time: in Kubernetes
    /// they stand for other addresses from one minute to the next.
    fn look_up(&mut self, found: &mpsc::UnboundedSender<Vec<SocketAddr>>) {
        for seed in &mut self.seeds {
            // A look-up holds a thread for as long as the system takes: a name that is not answered for gets no second one.
            if seed.looking.as_ref().is_some_and(|looking| !looking.is_finished()) {
                continue;
            }
            let (name, found) = (Arc::clone(&seed.name), found.clone());
            seed.looking = Some(tokio::spawn(async move {
                match lookup_host(&*name).await {
                    // Nobody waits when the loop has ended.
                    Ok(addresses) => drop(found.send(addresses.collect())),
                    // A pod that does not run has no name.
                    Err(error) => tracing::debug!(event = "seed_unknown", seed = &*name, %error),
                }
            }));
        }
    }

    fn replace_keys(&mut self, keys: Keys) {
        self.sealer = Sealer::new(&keys, rand::random());
        self.opener.replace(keys);
    }
}
