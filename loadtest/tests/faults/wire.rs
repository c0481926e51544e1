//! A wire between a client and the server, on which replies can be lost.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// Forwards connections to a server. Ends with the value.
pub(crate) struct Wire {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    deaf: AtomicBool,
    swallowed: AtomicU64,
    hang_up: Notify,
}

impl Wire {
    /// Leads to `url`, `http://host:port`.
    pub(crate) async fn to(url: &str) -> Self {
        let server: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<State>::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(server).await {
                    tokio::spawn(carry(client, server, Arc::clone(&shared)));
                }
            }
        });
        Self { address, state, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on what the server says is lost; what the client says arrives.
    pub(crate) fn lose_replies(&self) {
        self.state.swallowed.store(0, Relaxed);
        self.state.deaf.store(true, Relaxed);
    }

    /// Bytes lost since.
    pub(crate) fn lost(&self) -> u64 {
        self.state.swallowed.load(Relaxed)
    }

    /// Breaks every connection; new ones work.
    pub(crate) fn hang_up(&self) {
        self.state.deaf.store(false, Relaxed);
        self.state.hang_up.notify_waiters();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let hang_up = state.hang_up.notified();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            match from_server.read(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(count) if state.deaf.load(Relaxed) => _ = state.swallowed.fetch_add(count as u64, Relaxed),
                Ok(count) => {
                    if to_client.write_all(&bytes[..count]).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = hang_up => {}
        _ = up => {}
        () = down => {}
    }
}
