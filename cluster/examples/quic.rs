//! What a frame between two processes costs, beside a bare stream of quinn's that carries the same bytes.
//!
//! `cargo run --release -p chappe-cluster --example quic -- [frames] [batch] [lanes] [packet bytes]` (default: 2000000 64 16
//! 1452). Both ends are in this process, over loopback; CPU is that of both together. Frames have 200 bytes. At most 16,384 are
//! on their way, so that nothing is measured but what gets through.

#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chappe_cluster::{
    link::quic::{Answer, Connection, Endpoint, Handler, Hello, Role, Settings, authority::Authority},
    process::vitals::Vitals,
};
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt, rustls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::Notify;

const BODY: usize = 200;
const HEADER: usize = 10;
const ON_THE_WAY: u64 = 16_384;
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Counts what comes, and wakes whoever waits for it.
#[derive(Default)]
struct Counter {
    received: AtomicU64,
    more: Notify,
}

impl Counter {
    fn count(&self, frames: u64) {
        let before = self.received.fetch_add(frames, Ordering::Relaxed);
        // Now and then: the sender need not know at once.
        if before / 1024 != (before + frames) / 1024 {
            self.more.notify_one();
        }
    }

    async fn until(&self, received: u64) {
        while self.received.load(Ordering::Relaxed) < received {
            let _ = tokio::time::timeout(Duration::from_millis(1), self.more.notified()).await;
        }
    }
}

impl Handler for Counter {
    fn connected(&self, _: &Arc<Connection>) {}
    fn frame(&self, _: &Arc<Connection>, _: u8, _: u16, _: Bytes) {
        self.count(1);
    }
    fn ask(&self, _: &Arc<Connection>, _: u16, question: Bytes) -> Answer {
        Box::pin(async { Some(question) })
    }
    fn datagram(&self, _: &Arc<Connection>, _: u16, _: Bytes) {}
    fn lost(&self, _: &Arc<Connection>) {}
}

#[derive(Clone, Copy)]
struct Load {
    frames: u64,
    batch: u64,
    lanes: u8,
    packet: u16,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut given = std::env::args().skip(1).map(|arg| arg.parse::<u64>().unwrap());
    let mut next = |default| given.next().unwrap_or(default);
    let load = Load { frames: next(2_000_000), batch: next(64), lanes: next(16) as u8, packet: next(1_452) as u16 };
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(folder.path()).unwrap();
    println!("{} frames of {BODY} bytes in batches of {}, {} lanes", load.frames, load.batch, load.lanes);
    for _ in 0..3 {
        raw(&authority, load).await;
        ours(&authority, load).await;
    }
}

/// Runs a load and says what it cost.
async fn measured(what: &str, count: u64, unit: &str, run: impl Future<Output = ()>) {
    let cpu = || Vitals::read().unwrap().cpu_seconds;
    let (began, before) = (Instant::now(), cpu());
    run.await;
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu() - before);
    println!(
        "{what:<18} {:>10.0} {unit}/s   {:>6.3} µs of CPU per {unit}",
        count as f64 / took,
        cpu * 1e6 / count as f64
    );
}

async fn ours(authority: &Authority, load: Load) {
    let endpoint = |role, uid, handler| {
        let hello =
            Hello { role, uid, incarnation: 1, cluster: 0, protocol_min: 1, protocol_max: 1, name: String::new() };
        let settings = Settings { packet_bytes_max: load.packet, ..Settings::default() };
        Endpoint::bind(HERE, authority.issue(role, None).unwrap(), hello, settings, handler).unwrap()
    };
    let counter = Arc::new(Counter::default());
    let node = endpoint(Role::Node, 1, Arc::clone(&counter) as Arc<dyn Handler>);
    let gateway = endpoint(Role::Gateway, 2, Arc::new(Counter::default()) as Arc<dyn Handler>);
    let way = gateway.way(None, node.local_addr());
    let connection = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(connection) = way.connection() {
            break connection;
        }
    };
    let frame = Bytes::from(vec![7; BODY]);
    measured("lanes", load.frames, "frame", async {
        let mut sent = 0;
        while sent < load.frames {
            counter.until((sent + load.batch).saturating_sub(ON_THE_WAY)).await;
            let lane = (sent / load.batch) as u8 % load.lanes;
            for _ in 0..load.batch {
                assert!(connection.send(lane, 1, frame.clone()));
            }
            sent += load.batch;
            tokio::task::yield_now().await;
        }
        counter.until(sent).await;
    })
    .await;
    const QUESTIONS: u64 = 20_000;
    measured("one question", QUESTIONS, "question", async {
        for _ in 0..QUESTIONS {
            connection.ask(1, frame.clone(), Duration::from_secs(5)).await.unwrap();
        }
    })
    .await;
    gateway.close().await;
    node.close().await;
}

/// A bare stream, with the same settings, the same pieces and nothing to do but to count.
async fn raw(authority: &Authority, load: Load) {
    let (certificate, key) = authority.issue_pem(Role::Node, None).unwrap();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut transport = TransportConfig::default();
    let mut sizes = MtuDiscoveryConfig::default();
    sizes.upper_bound(load.packet);
    transport
        .stream_receive_window(VarInt::from_u32(2 << 20))
        .receive_window(VarInt::from_u32(32 << 20))
        .send_window(12 << 20)
        .mtu_discovery_config(Some(sizes));
    let transport = Arc::new(transport);
    let mut config =
        quinn::ServerConfig::with_crypto(Arc::new(quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap()));
    config.transport_config(Arc::clone(&transport));
    let endpoint = |server| {
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(load.packet.max(1_472)).unwrap();
        let socket = std::net::UdpSocket::bind(HERE).unwrap();
        quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)).unwrap()
    };
    let (there, here) = (endpoint(Some(config)), endpoint(None));
    let counter = Arc::new(Counter::default());
    let reading = tokio::spawn({
        let (there, counter) = (there.clone(), Arc::clone(&counter));
        async move {
            let connection = there.accept().await.unwrap().await.unwrap();
            let mut stream = connection.accept_uni().await.unwrap();
            let (mut pieces, mut bytes) = ([const { Bytes::new() }; 32], 0);
            while let Ok(Some(count)) = stream.read_chunks(&mut pieces).await {
                bytes += pieces[..count].iter().map(|piece| piece.len() as u64).sum::<u64>();
                let frames = bytes / (HEADER + BODY) as u64;
                bytes %= (HEADER + BODY) as u64;
                counter.count(frames);
            }
        }
    });
    let mut config =
        quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap()));
    config.transport_config(transport);
    let connection = here.connect_with(config, there.local_addr().unwrap(), "node.chappe").unwrap().await.unwrap();
    let mut stream = connection.open_uni().await.unwrap();
    let batch = Bytes::from(vec![7; load.batch as usize * (HEADER + BODY)]);
    measured("a bare stream", load.frames, "frame", async {
        let mut sent = 0;
        while sent < load.frames {
            counter.until((sent + load.batch).saturating_sub(ON_THE_WAY)).await;
            stream.write_chunk(batch.clone()).await.unwrap();
            sent += load.batch;
            tokio::task::yield_now().await;
        }
        counter.until(sent).await;
    })
    .await;
    stream.finish().unwrap();
    reading.await.unwrap();
    connection.close(VarInt::from_u32(0), b"");
    here.wait_idle().await;
}
