//! How QUIC is to behave between our processes.

use std::{io, net::SocketAddr, net::UdpSocket, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use chappe_schema::limit::{
    LINK_HANDSHAKES_MAX, LINK_LANE_UNREAD_BYTES_MAX, LINK_LANES, LINK_QUESTIONS_MAX, LINK_UNREAD_BYTES_MAX,
};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt, crypto::rustls,
};

use super::identity::Identity;

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A connection of which nothing is heard for so long is over.
    pub idle_timeout: Duration,
    /// Whoever has nothing to say says so after so long.
    pub keep_alive: Duration,
    /// Whether the kernel cuts large writes into packets: cheaper, but some drivers of virtual networks do it wrongly.
    pub segmentation_offload: bool,
    /// Largest UDP payload that is tried: 1,452 for Ethernet, 8,952 where all links have jumbo frames, up to 65,000 within one
    /// machine. What a path cannot carry is found out and not used.
    pub packet_bytes_max: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            segmentation_offload: true,
            packet_bytes_max: 1_452,
        }
    }
}

/// Before a round trip was measured: in one data centre it is far less, and what is lost of a handshake is sent again after
/// three of these.
const RTT_AT_FIRST: Duration = Duration::from_millis(50);

/// What has been handed to QUIC and is not acknowledged: a second of ten gigabits at a round trip of ten milliseconds.
const SEND_WINDOW: u64 = 12 * 1024 * 1024;

/// Datagrams that wait, each way. They are of the moment: more of them would be late.
const DATAGRAMS_BYTES_MAX: usize = 256 * 1024;

impl Settings {
    pub(super) fn transport(&self) -> io::Result<Arc<TransportConfig>> {
        let mut transport = TransportConfig::default();
        let mut sizes = MtuDiscoveryConfig::default();
        sizes.upper_bound(self.packet_bytes_max);
        transport
            .max_idle_timeout(Some(self.idle_timeout.try_into().map_err(io::Error::other)?))
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(RTT_AT_FIRST)
            // One more, for the introduction.
            .max_concurrent_bidi_streams(VarInt::from_u32(LINK_QUESTIONS_MAX as u32 + 1))
            .max_concurrent_uni_streams(VarInt::from_u32(u32::from(LINK_LANES)))
            .stream_receive_window(VarInt::from_u32(LINK_LANE_UNREAD_BYTES_MAX))
            .receive_window(VarInt::from_u32(LINK_UNREAD_BYTES_MAX))
            .send_window(SEND_WINDOW)
            .datagram_receive_buffer_size(Some(DATAGRAMS_BYTES_MAX))
            .datagram_send_buffer_size(DATAGRAMS_BYTES_MAX)
            .mtu_discovery_config(Some(sizes))
            // Nobody on the way needs to know how long round trips take.
            .allow_spin(false)
            .enable_segmentation_offload(self.segmentation_offload);
        Ok(Arc::new(transport))
    }

    /// A process that was killed and starts again at its address answers what is meant for its former life with a token that
    /// only it can make: so peers miss that life at the first packet instead of after `idle_timeout`.
    pub(super) fn bind(
        &self,
        address: SocketAddr,
        server: ServerConfig,
        reset_key: hmac::Key,
    ) -> io::Result<quinn::Endpoint> {
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        // quinn's own would not know a number of the former life for one of ours.
        config.cid_generator(|| Box::new(Numbers));
        config.max_udp_payload_size(self.packet_bytes_max.max(1_472)).map_err(io::Error::other)?;
        let socket = UdpSocket::bind(address)?;
        quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
    }
}

/// Numbers of connections: nothing but random.
struct Numbers;

impl ConnectionIdGenerator for Numbers {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

pub(super) fn server(identity: &Identity, transport: &Arc<TransportConfig>) -> io::Result<ServerConfig> {
    let tls = rustls::QuicServerConfig::try_from(identity.server()).map_err(io::Error::other)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::clone(transport));
    // A process that moves starts anew.
    config.migration(false);
    config.max_incoming(LINK_HANDSHAKES_MAX);
    Ok(config)
}

pub(super) fn client(identity: &Identity, transport: &Arc<TransportConfig>) -> io::Result<ClientConfig> {
    let tls = rustls::QuicClientConfig::try_from(identity.client()).map_err(io::Error::other)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::clone(transport));
    Ok(config)
}
