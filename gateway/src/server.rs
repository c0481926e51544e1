//! How a gateway starts, runs and leaves.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use chappe_cluster::link::{GatewayPort, Links, NodePort, memory::MemoryLink};
use chappe_schema::{
    error::Code,
    frame,
    id::GatewayId,
    limit::{CLOSING_MS_MAX, COMMAND_DEADLINE_MS},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::Signal,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    accept,
    auth::{Auth, Reloaded},
    config::Config,
    connection::Connection,
    gateway::{Gateway, wake},
    http::routes,
    limiter::Limiter,
    meters::{Reason, Task},
    supervise::supervised,
    sweep,
    tls::{self, Tls},
    websocket::outbox::Wakers,
};

/// Clients that may wait to be accepted: after an outage all come back at once.
const BACKLOG: u32 = 4096;

/// How often connections are closed while the gateway leaves.
const SLICE: Duration = Duration::from_millis(100);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or not this machine's.
    #[error("gateway.listen: cannot listen on {address}")]
    Listen {
        /// Where clients were to connect.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("gateway.tls")]
    Tls(#[from] tls::Error),
}

impl Gateway {
    /// Joins `node`, listens, and serves clients in tasks of this runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(
        config: Config,
        auth: Auth,
        limiter: Arc<dyn Limiter>,
        node: Arc<dyn NodePort>,
    ) -> Result<Running, StartError> {
        let door = Door::take(config.listen)?;
        Self::start_behind(door, config, auth, limiter, node).await
    }

    /// [`Gateway::start`] behind a door that was taken before.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start_behind(
        door: Door,
        config: Config,
        auth: Auth,
        limiter: Arc<dyn Limiter>,
        node: Arc<dyn NodePort>,
    ) -> Result<Running, StartError> {
        // Several gateways of one process (in tests) are several to their node.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = GatewayId(NEXT.fetch_add(1, Ordering::Relaxed));
        let join = |port| Arc::new(MemoryLink::join(id, node, port)) as Arc<dyn Links>;
        Self::start_among(door, config, auth, limiter, (id, join)).await
    }

    /// [`Gateway::start_behind`], among the nodes of a cluster: with a number that no other gateway there has, and what makes
    /// its links of its end of them.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start_among(
        door: Door,
        config: Config,
        auth: Auth,
        limiter: Arc<dyn Limiter>,
        (id, connect): (GatewayId, impl FnOnce(Arc<dyn GatewayPort>) -> Arc<dyn Links>),
    ) -> Result<Running, StartError> {
        let tls = Tls::read(&config.tls)?;
        let (listener, address) = door.open()?;
        let gateway = Self::join(config, auth, tls, limiter, id, |_, port| connect(port));
        gateway.meters.connections_limit.set(gateway.seats.max as f64);
        let mut tasks = JoinSet::new();
        gateway.start_delivery(&mut tasks);
        let swept = Arc::clone(&gateway);
        tasks.spawn(supervised(Arc::clone(&gateway), Task::Sweep, move || sweep::run(Arc::clone(&swept))));
        let asking = Arc::clone(&gateway);
        let resume = move || Arc::clone(&asking).resume_lanes();
        tasks.spawn(supervised(Arc::clone(&gateway), Task::Lanes, resume));
        if gateway.auth.has_source() {
            let kept = Arc::clone(&gateway);
            let keep = move || {
                let gateway = Arc::clone(&kept);
                async move { gateway.auth.keep_fresh().await }
            };
            tasks.spawn(supervised(Arc::clone(&gateway), Task::Keys, keep));
        }
        if let Some(tls) = &gateway.tls {
            let kept = Arc::clone(tls);
            let keep = move || Arc::clone(&kept).keep_fresh();
            tasks.spawn(supervised(Arc::clone(&gateway), Task::Keys, keep));
        }
        let (routes, listener, entered) = (routes::of(&gateway), Arc::new(listener), Arc::clone(&gateway));
        let accept = move || accept::run(Arc::clone(&entered), Arc::clone(&listener), routes.clone());
        tasks.spawn(supervised(Arc::clone(&gateway), Task::Accept, accept));
        tracing::info!(event = "gateway_started", %address, connections_max = gateway.seats.max);
        Ok(Running { gateway, address, _tasks: tasks })
    }
}

/// The address for clients, taken but still shut: a taken port is found out before anything else is begun, and nobody
/// waits at it until there is somebody to answer.
#[derive(Debug)]
pub struct Door {
    socket: TcpSocket,
    address: SocketAddr,
}

impl Door {
    /// Takes an address.
    ///
    /// # Errors
    /// When it is taken, or not this machine's.
    pub fn take(address: SocketAddr) -> Result<Self, StartError> {
        let take = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // A restart must not wait for the connections of the last run.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(Self { socket, address })
        };
        take().map_err(|source| StartError::Listen { address, source })
    }

    fn open(self) -> Result<(TcpListener, SocketAddr), StartError> {
        let Self { socket, address } = self;
        let open = || {
            let listener = socket.listen(BACKLOG)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        open().map_err(|source| StartError::Listen { address, source })
    }
}

/// Every SIGHUP: what can be read anew is, the rest of the configuration waits for a restart.
pub async fn reload(mut hangups: Signal, gateway: Weak<Running>) {
    while hangups.recv().await.is_some() {
        let Some(gateway) = gateway.upgrade() else { return };
        let Reloaded { read, refused, fetching } = gateway.reload_keys();
        for error in refused {
            let setting = format!("gateway.auth.{}", error.setting());
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(
                event = "configuration_reload_failed",
                setting,
                error,
                "what it held before stays in force"
            );
        }
        if fetching {
            tracing::info!(event = "configuration_reload_begun", settings = "gateway.auth.jwks_url", "being fetched");
        }
        match gateway.reload_certificate() {
            Some(Ok(())) => tracing::info!(event = "configuration_reloaded", settings = "gateway.tls", "read again"),
            Some(Err(error)) => {
                let error = error.to_string();
                let setting = "gateway.tls";
                tracing::error!(
                    event = "configuration_reload_failed",
                    setting,
                    error,
                    "what it held before stays in force"
                );
            }
            None => {}
        }
        if !read.is_empty() {
            let settings = format!("gateway.auth.{}", read.join(", gateway.auth."));
            tracing::info!(event = "configuration_reloaded", settings, "read again; nothing else is reloaded");
        }
    }
}

/// A gateway that serves clients. Dropping it closes every connection at once; [`drain`](Self::drain) is the polite way.
pub struct Running {
    gateway: Arc<Gateway>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// What a gateway dealt with on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// WebSockets that were told to go elsewhere.
    pub told: usize,
    /// Connections of either kind that had not gone by the end.
    pub left: usize,
}

impl Running {
    /// Where clients connect; the port is the one that was found where none was configured.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// WebSocket connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.gateway.connections.len()
    }

    /// Waits until a task that everybody depends on was given up, because it panicked over and over: the process has
    /// nothing better to do than to end.
    pub async fn failed(&self) {
        let mut broken = self.gateway.broken.subscribe();
        // The sender lives in `self`, so this cannot end by itself.
        let _ = broken.wait_for(|broken| *broken).await;
    }

    /// Reads anew what checks tokens and API keys, for keys that were rotated. Connections that are open stay; whatever is
    /// asked from now on is checked with the new keys.
    #[must_use]
    pub fn reload_keys(&self) -> Reloaded {
        self.gateway.auth.reload()
    }

    /// Whether clients connect over TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.gateway.tls.is_some()
    }

    /// Reads the certificate anew, for one that was renewed; it is also read by itself when its files change. Connections
    /// that are open stay. `None` where there is no TLS.
    ///
    /// # Errors
    /// When it cannot be used: the one of before stays in force.
    pub fn reload_certificate(&self) -> Option<Result<(), tls::Error>> {
        self.gateway.tls.as_ref().map(|tls| tls.reload())
    }

    /// Resolves to `true` when there are keys to check tokens with: until then everybody is told to come back later. Only
    /// keys that are fetched from a URL are not there from the start. `false`: the gateway is gone.
    pub fn has_keys(&self) -> impl Future<Output = bool> + Send + use<> {
        self.gateway.auth.has_keys()
    }

    /// Whether `POST /v1/dev/tokens` issues tokens.
    #[must_use]
    pub fn issues_dev_tokens(&self) -> bool {
        self.gateway.auth.dev_tokens().is_some()
    }

    /// Says to whoever asks for its health that it is about to leave; it goes on as before until [`drain`](Self::drain).
    pub fn retire(&self) {
        self.gateway.retiring.send_replace(true);
    }

    /// Leaves: accepts nobody any longer, tells every client when to come back (not all at once), closes connections
    /// in slices over the drain window, and lets HTTP requests finish. Commands are served to the end of it.
    pub async fn drain(&self) -> Drained {
        let gateway = &self.gateway;
        let window = gateway.config.drain_window.get();
        self.retire();
        gateway.leaving.send_replace(true);
        let mut wakers = Wakers::new();
        let mut remaining = Vec::new();
        gateway.connections.each(|connection| {
            let after_ms = rand::random_range(0..=window.as_millis().max(1) as u64);
            connection.outbox.lock().own(|out| frame::write_going_away(out, after_ms), &mut wakers);
            remaining.push(Arc::clone(connection));
        });
        wake(wakers);
        let told = remaining.len();
        close_in_slices(&mut remaining, window).await;
        // Connections that were being made meanwhile.
        self.each_until_gone().await;
        let left = gateway.connections.len() + gateway.seats.http.load(Ordering::Relaxed);
        tracing::info!(event = "gateway_drained", told, left);
        Drained { told, left }
    }

    /// Waits for the last words, and closes whoever came late.
    async fn each_until_gone(&self) {
        let gateway = &self.gateway;
        // By then whatever is in flight has been answered, by the sweep if by nobody else, and goodbyes are over.
        let deadline = Instant::now() + Duration::from_millis(COMMAND_DEADLINE_MS + 2 * CLOSING_MS_MAX);
        while Instant::now() < deadline {
            let mut wakers = Wakers::new();
            gateway.connections.each(|connection| leave(connection, &mut wakers));
            wake(wakers);
            if gateway.connections.len() == 0 && gateway.seats.http.load(Ordering::Relaxed) == 0 {
                return;
            }
            sleep(SLICE / 5).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gateway.leaving.send_replace(true);
        let mut wakers = Wakers::new();
        self.gateway.connections.each(|connection| {
            connection.outbox.lock().abandon(Code::GoingAway, &connection.request_id(), Reason::Drain, &mut wakers);
        });
        wake(wakers);
    }
}

async fn close_in_slices(remaining: &mut Vec<Arc<Connection>>, window: Duration) {
    let slices = (window.as_millis() / SLICE.as_millis()).max(1) as usize;
    let per_slice = remaining.len().div_ceil(slices).max(1);
    while !remaining.is_empty() {
        let mut wakers = Wakers::new();
        for connection in remaining.drain(remaining.len().saturating_sub(per_slice)..) {
            leave(&connection, &mut wakers);
        }
        wake(wakers);
        if !remaining.is_empty() {
            sleep(SLICE).await;
        }
    }
}

fn leave(connection: &Connection, wakers: &mut Wakers) {
    connection.outbox.lock().leave(Code::GoingAway, Reason::Drain, wakers);
}
