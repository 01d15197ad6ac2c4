//! Accepts the gateway's connections: clients on the main port and by WebSocket, servers on ports of their own and by WebSocket.

use super::ServerError;
use super::config::GatewayConfig;
use super::gateway_websocket;
use super::listeners::open_tcp;
use super::tcp_accept::{ConnectionInfo, TLS_TIME, TcpAcceptor};
use super::turn_websocket::Origin;
use super::write_timeout::WriteTimeout;
use crate::dataplane::stream_limits::{WRITE_TIME, shut_down};
use crate::gateway::Handle;
use crate::gateway::service::Peer;
use crate::gateway::websocket::FrameDecoder;
use crate::limits::{Limit, sampled};
use crate::net::certificate::{Certificate, CertificateError};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time;
use crate::net::tls::Tls;
use crate::net::websocket::upgrade;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::BytesMut;
use std::any::Any;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::rustls;

/// The default port for servers that authenticate by MD5.
const MD5_PORT: u16 = 3480;
/// The default port for servers that authenticate by HMAC-SHA256.
const HMAC_PORT: u16 = 3481;
/// The prefix of a DNS name that binds a certificate to one server id.
const BOUND_NAME_PREFIX: &str = "server-";

/// The most clients at a time. Their connections may last for ever, so they must leave some to others.
const MAX_CLIENTS: usize = super::MAX_STREAMS * 3 / 4;

/// The addresses that the gateway's servers connect to.
#[derive(Debug, Clone, Default)]
pub struct GatewayAddrs {
    /// MD5 without TLS.
    pub md5: Vec<SocketAddr>,
    /// HMAC-SHA256 without TLS.
    pub hmac: Vec<SocketAddr>,
    /// MD5 inside mutual TLS.
    pub tls: Vec<SocketAddr>,
}

/// How a server authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerAuth {
    Md5,
    Hmac,
    /// MD5 inside mutual TLS.
    Tls,
}

/// Accepts clients and servers for a running gateway.
#[derive(Debug, Clone)]
pub(super) struct GatewayAcceptor {
    handle: Handle,
    /// For the port with mutual TLS.
    mutual: Option<Tls>,
    client_permits: Arc<Semaphore>,
}

impl GatewayAcceptor {
    pub(super) fn new(handle: Handle, mutual: Option<Tls>) -> Self {
        Self { handle, mutual, client_permits: Arc::new(Semaphore::new(MAX_CLIENTS)) }
    }

    /// Takes a client's permits; `None` where there are none left.
    fn admit(&self, connection: ConnectionPermit) -> Option<(ConnectionPermit, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.client_permits).try_acquire_owned();
        let permit = permit.inspect_err(|_| Limit::GatewayClients.reached(MAX_CLIENTS)).ok()?;
        // From here on only the gateway decides when the client is closed.
        connection.mark_authenticated();
        Some((connection, permit))
    }

    /// Does the same for a client that also needs a socket pair.
    fn admit_with_pair(
        &self,
        connection: ConnectionPermit,
    ) -> Option<(ConnectionPermit, OwnedSemaphorePermit)> {
        if connection.reserve_descriptors(2) { self.admit(connection) } else { None }
    }

    /// Passes a client's TCP connection, and the bytes that were already read from it, to the gateway.
    pub(super) fn client(
        &self,
        stream: TcpStream,
        initial: BytesMut,
        ip: IpAddr,
        connection: ConnectionPermit,
    ) -> io::Result<()> {
        match self.admit(connection) {
            Some(permit) => self.handle.add_client(stream, initial, ip, permit),
            None => Ok(()),
        }
    }

    /// Serves a client on a stream that is not a plain socket, until it ends.
    pub(super) async fn bridge(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        ip: IpAddr,
        connection: ConnectionPermit,
    ) -> io::Result<()> {
        match self.admit_with_pair(connection.clone()) {
            Some(permit) => self.bridge_until_closed(stream, Peer::Client(ip), (permit, connection)).await,
            None => Ok(()),
        }
    }

    /// Bridges a stream until either side ends or a write stalls. `permit` is held while the gateway has the connection, `_connection` until the stream
    /// is closed too.
    async fn bridge_until_closed(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Peer,
        (permit, _connection): (impl Any + Send, ConnectionPermit),
    ) -> io::Result<()> {
        let mut stream = WriteTimeout::new(stream, WRITE_TIME);
        self.handle.bridge(&mut stream, peer, permit).await?;
        shut_down(&mut stream).await
    }
}

/// Opens the ports for servers.
///
/// # Errors
/// [`ServerError::Listen`] for a configured port that cannot be opened; a default port that cannot is left out.
pub(super) async fn open(config: &GatewayConfig) -> Result<Vec<(ServerAuth, TcpListener)>, ServerError> {
    let mut opened = Vec::new();
    for (auth, configured, default) in [
        (ServerAuth::Md5, config.server_port, MD5_PORT),
        (ServerAuth::Hmac, config.hmac_port, HMAC_PORT),
        (ServerAuth::Tls, config.tls_port, 0),
    ] {
        let port = configured.unwrap_or(default);
        for ip in config.server_listen.iter().filter(|_| port != 0) {
            let address = SocketAddr::new(*ip, port);
            match open_tcp(address).await {
                Ok(listener) => opened.push((auth, listener)),
                Err(error) if configured.is_none() => {
                    tracing::info!(%error, port, "default port for gateway servers left out");
                }
                Err(error) if ip.is_ipv6() && ip.is_loopback() && config.is_default_listen => {
                    tracing::info!(%error, "no IPv6 on this host");
                }
                Err(source) => return Err(ServerError::Listen { address, transport: "tcp", source }),
            }
        }
    }
    Ok(opened)
}

impl GatewayAddrs {
    pub(super) fn collect(listeners: &[(ServerAuth, TcpListener)]) -> io::Result<Self> {
        let mut addrs = Self::default();
        for (auth, listener) in listeners {
            let list = match auth {
                ServerAuth::Md5 => &mut addrs.md5,
                ServerAuth::Hmac => &mut addrs.hmac,
                ServerAuth::Tls => &mut addrs.tls,
            };
            list.push(listener.local_addr()?);
        }
        Ok(addrs)
    }
}

/// Returns the TLS settings of the port with mutual TLS, where it is configured.
///
/// # Errors
/// [`CertificateError`], which names the file.
pub(super) fn mutual(
    config: &GatewayConfig,
    certificate: &Certificate,
) -> Result<Option<Tls>, CertificateError> {
    config.client_ca.as_ref().map(|authorities| Tls::mutual(certificate, authorities)).transpose()
}

impl TcpAcceptor {
    /// Authenticates a server and hands it to the gateway.
    pub(super) async fn gateway_server(
        self,
        stream: TcpStream,
        info: ConnectionInfo,
        auth: ServerAuth,
    ) -> io::Result<()> {
        let Some(gateway) = self.gateway else { return Ok(()) };
        let mut stream = stream;
        match (auth, &gateway.mutual) {
            (ServerAuth::Tls, Some(mutual)) => {
                let (mut stream, _) = timeout(TLS_TIME, mutual.accept(stream)).await??;
                let server = gateway.handle.md5_handshake(&mut stream).await?;
                info.connection.mark_authenticated();
                let certificates = stream.get_ref().1.peer_certificates();
                let bound = certificates.and_then(|chain| chain.first()).map(bound_ids).unwrap_or_default();
                if !bound.is_empty() && !bound.contains(&server.id()) {
                    let now = time::mono();
                    sampled!(
                        info,
                        now,
                        id = server.id(),
                        "gateway server refused: its certificate is bound to another id"
                    );
                    return Ok(());
                }
                gateway.bridge_until_closed(stream, Peer::Server(server), ((), info.connection)).await
            }
            (ServerAuth::Tls, None) => Ok(()),
            (ServerAuth::Hmac, _) => {
                let server = gateway.handle.hmac_handshake(&mut stream).await?;
                info.connection.mark_authenticated();
                gateway.handle.add_server(stream, server, info.connection)
            }
            (ServerAuth::Md5, _) => {
                let server = gateway.handle.md5_handshake(&mut stream).await?;
                info.connection.mark_authenticated();
                gateway.handle.add_server(stream, server, info.connection)
            }
        }
    }
}

/// Returns the server ids that a certificate is bound to; empty where it is good for all.
fn bound_ids(certificate: &rustls::pki_types::CertificateDer<'_>) -> Vec<u32> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return vec![] };
    let names = certificate.valid_dns_names();
    names.filter_map(|name| name.strip_prefix(BOUND_NAME_PREFIX)?.parse().ok()).collect()
}

/// Routes `/gateway` and `/gateway/servers`.
pub(super) fn router(acceptor: &GatewayAcceptor) -> Router {
    Router::new()
        .route("/gateway", get(client))
        .with_state(acceptor.clone())
        .route("/gateway/servers", get(server).with_state(acceptor.handle.clone()))
}

async fn client(
    State(acceptor): State<GatewayAcceptor>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Response {
    let Some(permit) = acceptor.admit_with_pair(origin.connection.clone()) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let ip = origin.client.client.ip();
    upgrade::accept(request, None, async move |stream| {
        let decoder = FrameDecoder::new(gateway_websocket::max_message(&acceptor.handle));
        if let Ok(pair) = acceptor.handle.add_pair(Peer::Client(ip), permit) {
            gateway_websocket::bridge(stream, decoder, pair).await;
        }
        // Kept until the stream is closed, which may be after the gateway has dropped its end.
        drop(origin.connection);
    })
}

async fn server(
    State(handle): State<Handle>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Response {
    upgrade::accept(request, None, async move |mut stream| {
        let handshake = gateway_websocket::handshake(&mut stream, &handle);
        if let Ok(Ok((server, decoder))) = timeout(handle.handshake_timeout(), handshake).await
            && origin.connection.reserve_descriptors(2)
            && let Ok(pair) = handle.add_pair(Peer::Server(server), ())
        {
            origin.connection.mark_authenticated();
            gateway_websocket::bridge(stream, decoder, pair).await;
        }
        // Kept until the stream is closed, which may be after the gateway has dropped its end.
        drop(origin.connection);
    })
}
