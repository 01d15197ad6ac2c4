//! QUIC's settings, and its handshake over a tunnel with both keys pinned.

use super::call_auth::InitialKey;
use super::error::{Error, Stage};
use super::initial_keys::Keyed;
use super::pinned_tls::{Identity, KeyError, Role, SERVER_NAME};
use super::ticket::Secret;
use super::tunnel::{PEER, Tunnel, TunnelSocket};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the handshake may take once a lane carries data.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Silence after which the other side counts as gone, in milliseconds.
const IDLE: u32 = 20_000;
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// Fits every path: a relay adds up to 36 bytes, IPv6 and UDP 48.
const MTU: u16 = 1200;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const SEND_WINDOW: u64 = 8 << 20;
const STREAMS: u32 = 64;
/// Datagrams that may overtake one before it counts as lost: those sent over the relay arrive after those of a direct lane.
const REORDERING: u32 = 64;
const FIRST_RTT: Duration = Duration::from_millis(150);

/// An endpoint and its only connection.
pub(super) struct Established {
    pub(super) endpoint: Endpoint,
    pub(super) connection: quinn::Connection,
}

/// Shakes hands in the given role; both sides show and check their keys.
pub(super) async fn establish(
    tunnel: Arc<Tunnel>,
    secret: &Secret,
    initial: InitialKey,
    role: Role,
) -> Result<Established, Error> {
    let local = |error: &dyn std::error::Error| Error::Local(format!("QUIC cannot be set up: {error}"));
    let endpoint = endpoint(tunnel, secret, &initial, role).map_err(|error| local(&error))?;
    let shake = async {
        match role {
            Role::Connector => {
                let connecting = endpoint.connect(PEER, SERVER_NAME).map_err(|error| local(&error))?;
                connecting.await.map_err(|error| explain(&error))
            }
            Role::Listener => {
                loop {
                    let incoming = endpoint.accept().await;
                    let incoming =
                        incoming.ok_or_else(|| Error::Local("the endpoint was closed".to_owned()))?;
                    // Only a packet under the call's key begins a handshake; any other was not the connector's.
                    match incoming.accept() {
                        Ok(connecting) => break connecting.await.map_err(|error| explain(&error)),
                        Err(error) => tracing::debug!(%error, "a first packet of somebody else"),
                    }
                }
            }
        }
    };
    let connection =
        timeout(HANDSHAKE_TIME, shake).await.map_err(|_| Error::TimedOut(Stage::Handshake))??;
    Ok(Established { endpoint, connection })
}

fn explain(error: &quinn::ConnectionError) -> Error {
    match error {
        quinn::ConnectionError::TimedOut => Error::TimedOut(Stage::Handshake),
        other => Error::Handshake(other.to_string()),
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Identity(#[from] KeyError),
    #[error("no cipher suite for the first packet")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error(transparent)]
    Socket(#[from] std::io::Error),
}

fn endpoint(
    tunnel: Arc<Tunnel>,
    secret: &Secret,
    initial: &InitialKey,
    role: Role,
) -> Result<Endpoint, SetupError> {
    let identity = Identity::new(secret, role)?;
    let transport = Arc::new(transport());
    let server = match role {
        Role::Listener => {
            let crypto = QuicServerConfig::try_from(identity.server_config()?)?;
            let mut config = ServerConfig::with_crypto(Arc::new(Keyed::new(crypto, initial.clone())));
            config.transport_config(Arc::clone(&transport)).migration(false).max_incoming(4);
            Some(config)
        }
        Role::Connector => None,
    };
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    let socket = Arc::new(TunnelSocket(tunnel));
    let mut endpoint =
        Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(quinn::TokioRuntime))?;
    if role == Role::Connector {
        let crypto = QuicClientConfig::try_from(identity.client_config()?)?;
        let mut config = ClientConfig::new(Arc::new(Keyed::new(crypto, initial.clone())));
        config.transport_config(transport);
        endpoint.set_default_client_config(config);
    }
    Ok(endpoint)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(MTU)
        .min_mtu(MTU)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(FIRST_RTT)
        .packet_threshold(REORDERING)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .datagram_receive_buffer_size(None);
    transport
}

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
