//! The QUIC endpoint over a tunnel: transport parameters and the handshake with both keys pinned.

use super::call_auth::{InitialKey, SESSION_SECRET_LEN, SessionSecret};
use super::congestion::CongestionConfig;
use super::error::ConnectError;
use super::initial_keys::Keyed;
use super::keys::{AgentRole, Secret};
use super::pinned_tls::{ALPN, PING_ALPN, SERVER_NAME, TlsIdentity, TlsSetupError};
use super::stall_recovery::StallRecovery;
use super::tunnel::{PEER, Tunnel, TunnelSocket};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TransportConfig, VarInt,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time limit of the handshake, once a path carries data.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Application error code of a connection whose ticket is no longer valid.
const REVOKED: u32 = 4;
/// QUIC's idle timeout in milliseconds: an outage of the network may last a minute.
const IDLE_TIMEOUT: u32 = 75_000;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Fits every path: TURN adds up to 36 bytes, IPv6 and UDP 48.
const MTU: u16 = 1200;
/// The largest that fits Ethernet with IPv6, UDP and ChannelData.
const MAX_MTU: u16 = 1448;
const STREAM_WINDOW: u32 = 16 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 64 << 20;
pub(super) const SEND_WINDOW: u64 = 32 << 20;
const STREAMS: u32 = 64;
/// Bytes of datagrams that wait for their reader; the oldest are dropped.
const DATAGRAM_RECEIVE_BUFFER: usize = 1 << 20;
/// Bytes of datagrams that wait to be sent; the oldest are dropped, as more would only arrive later.
const DATAGRAM_SEND_BUFFER: usize = 256 << 10;
/// Packets that may overtake another before it counts as lost: packets over the relay arrive after later ones over the direct path.
const REORDERING_THRESHOLD: u32 = 64;
const INITIAL_RTT: Duration = Duration::from_millis(150);
/// The other side acknowledges one packet in this many at once, and any other one after this time; packets out of order at once, as without
/// the extension (draft-ietf-quic-ack-frequency).
const PACKETS_PER_ACK: u32 = 10;
const ACK_DELAY: Duration = Duration::from_millis(5);

/// An endpoint and its only connection.
pub(super) struct QuicConnection {
    pub(super) endpoint: Endpoint,
    pub(super) connection: quinn::Connection,
    pub(super) recovery: StallRecovery,
    /// Set when the ticket is no longer valid.
    pub(super) is_revoked: Arc<AtomicBool>,
}

/// An endpoint over a tunnel. It reads the sockets from its creation on.
#[derive(Clone)]
pub(super) struct QuicEndpoint {
    inner: Endpoint,
    tunnel: Arc<Tunnel>,
    session: SessionSecret,
    /// The ALPN protocol of a connector.
    alpn: &'static [u8],
    is_revoked: Arc<AtomicBool>,
}

impl QuicEndpoint {
    pub(super) fn new(tunnel: Arc<Tunnel>) -> Result<Self, ConnectError> {
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let socket = Arc::new(TunnelSocket(Arc::clone(&tunnel)));
        let inner = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(quinn::TokioRuntime));
        let inner = inner.map_err(|error| ConnectError::Setup(error.into()))?;
        Ok(Self { inner, tunnel, session: SessionSecret::default(), is_revoked: Arc::default(), alpn: ALPN })
    }

    /// Returns the endpoint of a connector that only pings.
    pub(super) fn for_ping(self, is_ping: bool) -> Self {
        Self { alpn: if is_ping { PING_ALPN } else { ALPN }, ..self }
    }

    /// Returns the secret of the connection, which is set by the handshake.
    pub(super) fn session(&self) -> SessionSecret {
        self.session.clone()
    }

    /// Closes the connection at once.
    pub(super) fn close(&self, code: u32, reason: &str) {
        self.inner.close(code.into(), reason.as_bytes());
    }

    /// Closes the connection at once because its ticket is no longer valid.
    pub(super) fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Relaxed);
        self.close(REVOKED, "the ticket is no longer valid");
    }

    /// Prepares the endpoint of a listener for the connector's first packet.
    pub(super) fn set_server(&self, secret: &Secret, initial: &InitialKey) -> Result<(), ConnectError> {
        let config = server_config(secret, initial, self.transport());
        self.inner.set_server_config(Some(config.map_err(|error| ConnectError::Setup(error.into()))?));
        Ok(())
    }

    fn transport(&self) -> TransportConfig {
        transport(Arc::new(CongestionConfig(self.tunnel.traffic().allowance())))
    }

    /// Completes the handshake in the given role; each side verifies the key of the other. The caller limits its time.
    pub(super) async fn handshake(
        self,
        secret: &Secret,
        initial: &InitialKey,
        role: AgentRole,
    ) -> Result<QuicConnection, ConnectError> {
        let connection = match role {
            AgentRole::Connector => {
                let config = client_config(secret, initial, (self.alpn, self.transport()))
                    .map_err(|error| ConnectError::Setup(error.into()))?;
                let connecting = self.inner.connect_with(config, PEER, SERVER_NAME);
                let connecting = connecting.map_err(|error| ConnectError::Setup(error.into()))?;
                connecting.await.map_err(handshake_error)?
            }
            AgentRole::Listener => {
                self.set_server(secret, initial)?;
                accept(&self.inner).await?
            }
        };
        let mut secret = [0; SESSION_SECRET_LEN];
        if connection.export_keying_material(&mut secret, SessionSecret::LABEL, &[]).is_ok() {
            self.session.set(secret);
        }
        let recovery = StallRecovery::start(connection.clone(), self.tunnel);
        Ok(QuicConnection { endpoint: self.inner, connection, recovery, is_revoked: self.is_revoked })
    }
}

async fn accept(endpoint: &Endpoint) -> Result<quinn::Connection, ConnectError> {
    loop {
        let incoming = endpoint.accept().await;
        let incoming = incoming.ok_or_else(|| ConnectError::Setup("the endpoint was closed".into()))?;
        // A packet that is not protected with the call's key does not come from the connector.
        match incoming.accept() {
            Ok(connecting) => return connecting.await.map_err(handshake_error),
            Err(error) => tracing::debug!(%error, "ignored an Initial packet that is not of this call"),
        }
    }
}

/// Returns whether the connector only pings.
pub(super) fn is_ping(connection: &quinn::Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(PING_ALPN))
}

fn handshake_error(error: quinn::ConnectionError) -> ConnectError {
    match error {
        quinn::ConnectionError::TimedOut => ConnectError::HandshakeTimedOut,
        other => ConnectError::Handshake(other.into()),
    }
}

/// Why the endpoint could not be created.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    #[error("no cipher suite for Initial packets")]
    CipherSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

fn server_config(
    secret: &Secret,
    initial: &InitialKey,
    transport: TransportConfig,
) -> Result<ServerConfig, SetupError> {
    let identity = TlsIdentity::new(secret, AgentRole::Listener)?;
    let crypto = QuicServerConfig::try_from(identity.server_config()?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(Keyed::new(crypto, initial.clone())));
    config.transport_config(Arc::new(transport)).migration(false).max_incoming(4);
    Ok(config)
}

fn client_config(
    secret: &Secret,
    initial: &InitialKey,
    (alpn, transport): (&[u8], TransportConfig),
) -> Result<ClientConfig, SetupError> {
    let identity = TlsIdentity::new(secret, AgentRole::Connector)?;
    let crypto = QuicClientConfig::try_from(identity.client_config(alpn)?)?;
    let mut config = ClientConfig::new(Arc::new(Keyed::new(crypto, initial.clone())));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport(congestion: Arc<CongestionConfig>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(MTU)
        .min_mtu(MTU)
        .mtu_discovery_config(Some(mtu_discovery()))
        .ack_frequency_config(Some(ack_frequency()))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(congestion)
        .packet_threshold(REORDERING_THRESHOLD)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER);
    transport
}

fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK - 1))
        .max_ack_delay(Some(ACK_DELAY))
        .reordering_threshold(VarInt::from_u32(1));
    config
}

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(MAX_MTU);
    config
}

#[cfg(test)]
#[path = "quic_tests.rs"]
pub(super) mod tests;
