//! The gateway's doors: clients by the main port's streams and WebSocket, servers by ports of their own and WebSocket.

use super::ServerError;
use super::config::GatewayConfig;
use super::gateway_websocket;
use super::listeners::open_tcp;
use super::tcp_accept::{Ends, StreamDoor, TLS_TIME};
use super::turn_websocket::Origin;
use super::write_timeout::Patient;
use crate::dataplane::stream_limits::{WRITE_TIME, shut_down};
use crate::gateway::Handle;
use crate::gateway::service::Peer;
use crate::gateway::websocket::{Inflow, Whole};
use crate::limits::{Limit, sampled};
use crate::net::certificate::{Certificate, CertificateError};
use crate::net::connections::Place;
use crate::net::time;
use crate::net::tls::Tls;
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

/// Where servers that shake hands by MD5 connect when nothing else is set.
const MD5_PORT: u16 = 3480;
/// The same by HMAC-SHA256.
const HMAC_PORT: u16 = 3481;
/// What a certificate's DNS name begins with that is for one server id alone.
const SERVER_NAME: &str = "server-";

/// Most clients of the gateway at a time: they may stay for good, and must leave room for everybody else's connections.
const MAX_CLIENTS: usize = super::MAX_STREAMS * 3 / 4;

/// Where the gateway's servers connect.
#[derive(Debug, Clone, Default)]
pub struct GatewayFacts {
    /// By MD5, plain.
    pub md5: Vec<SocketAddr>,
    /// By HMAC-SHA256, plain.
    pub hmac: Vec<SocketAddr>,
    /// By MD5, inside TLS with certificates on both sides.
    pub tls: Vec<SocketAddr>,
}

/// How a server shows who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerDoor {
    Md5,
    Hmac,
    /// MD5 inside mutual TLS.
    Tls,
}

/// What serves the gateway's clients and servers.
#[derive(Debug, Clone)]
pub(super) struct GatewayDoor {
    handle: Handle,
    /// Of the port with certificates on both sides.
    mutual: Option<Tls>,
    /// Permits for clients.
    room: Arc<Semaphore>,
}

impl GatewayDoor {
    pub(super) fn new(handle: Handle, mutual: Option<Tls>) -> Self {
        Self { handle, mutual, room: Arc::new(Semaphore::new(MAX_CLIENTS)) }
    }

    /// Lets a client in, if there is room; returns what it occupies.
    fn admit(&self, place: Place) -> Option<(Place, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.room).try_acquire_owned();
        let permit = permit.inspect_err(|_| Limit::GatewayClients.reached(MAX_CLIENTS)).ok()?;
        // Who is a client of the gateway is the gateway's to end.
        place.prove();
        Some((place, permit))
    }

    /// The same for one who is reached by a pair of sockets.
    fn admit_pair(&self, place: Place) -> Option<(Place, OwnedSemaphorePermit)> {
        if place.take_descriptors(2) { self.admit(place) } else { None }
    }

    /// Serves a client by TCP, of whom something was read already.
    pub(super) fn client(
        &self,
        stream: TcpStream,
        early: BytesMut,
        ip: IpAddr,
        place: Place,
    ) -> io::Result<()> {
        match self.admit(place) {
            Some(permit) => self.handle.client(stream, early, ip, permit),
            None => Ok(()),
        }
    }

    /// Serves a client by a stream that is no plain socket.
    pub(super) async fn carry(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        ip: IpAddr,
        place: Place,
    ) -> io::Result<()> {
        match self.admit_pair(place.clone()) {
            Some(permit) => self.carry_until_gone(stream, Peer::Client(ip), (permit, place)).await,
            None => Ok(()),
        }
    }

    /// Carries a stream for as long as its other end takes what it is sent. `_place` stays taken until the stream is gone too, `permit` while
    /// the gateway knows of it.
    async fn carry_until_gone(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Peer,
        (permit, _place): (impl Any + Send, Place),
    ) -> io::Result<()> {
        let mut stream = Patient::new(stream, WRITE_TIME);
        self.handle.carry(&mut stream, peer, permit).await?;
        shut_down(&mut stream).await
    }
}

/// Opens the servers' ports.
///
/// # Errors
/// [`ServerError::Listen`] for a port that was asked for and cannot be had; one that nobody asked for is left out.
pub(super) async fn open(config: &GatewayConfig) -> Result<Vec<(ServerDoor, TcpListener)>, ServerError> {
    let mut opened = Vec::new();
    for (door, asked, default) in [
        (ServerDoor::Md5, config.server_port, MD5_PORT),
        (ServerDoor::Hmac, config.hmac_port, HMAC_PORT),
        (ServerDoor::Tls, config.tls_port, 0),
    ] {
        let port = asked.unwrap_or(default);
        for ip in config.server_listen.iter().filter(|_| port != 0) {
            let address = SocketAddr::new(*ip, port);
            match open_tcp(address).await {
                Ok(listener) => opened.push((door, listener)),
                Err(error) if asked.is_none() => {
                    tracing::info!(%error, port, "no port for the gateway's servers");
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

impl GatewayFacts {
    pub(super) fn gather(doors: &[(ServerDoor, TcpListener)]) -> io::Result<Self> {
        let mut facts = Self::default();
        for (door, listener) in doors {
            let list = match door {
                ServerDoor::Md5 => &mut facts.md5,
                ServerDoor::Hmac => &mut facts.hmac,
                ServerDoor::Tls => &mut facts.tls,
            };
            list.push(listener.local_addr()?);
        }
        Ok(facts)
    }
}

/// Sets up the port with certificates on both sides, where there is one.
///
/// # Errors
/// [`CertificateError`] names the file.
pub(super) fn mutual(
    config: &GatewayConfig,
    certificate: &Certificate,
) -> Result<Option<Tls>, CertificateError> {
    config.client_ca.as_ref().map(|authorities| Tls::mutual(certificate, authorities)).transpose()
}

impl StreamDoor {
    /// Serves one of the gateway's servers.
    pub(super) async fn gateway_server(
        self,
        stream: TcpStream,
        ends: Ends,
        door: ServerDoor,
    ) -> io::Result<()> {
        let Some(gateway) = self.gateway else { return Ok(()) };
        let mut stream = stream;
        match (door, &gateway.mutual) {
            (ServerDoor::Tls, Some(mutual)) => {
                let (mut stream, _) = timeout(TLS_TIME, mutual.accept(stream)).await??;
                let proven = gateway.handle.md5_handshake(&mut stream).await?;
                ends.place.prove();
                let certificates = stream.get_ref().1.peer_certificates();
                let bound = certificates.and_then(|chain| chain.first()).map(bound_ids).unwrap_or_default();
                if !bound.is_empty() && !bound.contains(&proven.id()) {
                    let now = time::mono();
                    sampled!(info, now, id = proven.id(), "a gateway server's certificate is for another id");
                    return Ok(());
                }
                gateway.carry_until_gone(stream, Peer::Server(proven), ((), ends.place)).await
            }
            (ServerDoor::Tls, None) => Ok(()),
            (ServerDoor::Hmac, _) => {
                let proven = gateway.handle.hmac_handshake(&mut stream).await?;
                ends.place.prove();
                gateway.handle.server(stream, proven, ends.place)
            }
            (ServerDoor::Md5, _) => {
                let proven = gateway.handle.md5_handshake(&mut stream).await?;
                ends.place.prove();
                gateway.handle.server(stream, proven, ends.place)
            }
        }
    }
}

/// Returns the server ids that a certificate is for; none where it may be used for any.
fn bound_ids(certificate: &rustls::pki_types::CertificateDer<'_>) -> Vec<u32> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return vec![] };
    let names = certificate.valid_dns_names();
    names.filter_map(|name| name.strip_prefix(SERVER_NAME)?.parse().ok()).collect()
}

/// Routes `/gateway` and `/gateway/servers`.
pub(super) fn router(door: &GatewayDoor) -> Router {
    Router::new()
        .route("/gateway", get(client))
        .with_state(door.clone())
        .route("/gateway/servers", get(server).with_state(door.handle.clone()))
}

async fn client(
    State(door): State<GatewayDoor>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Response {
    let Some(permit) = door.admit_pair(origin.place.clone()) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let ip = origin.client.client.ip();
    gateway_websocket::accept(request, async move |stream| {
        let inflow = Inflow::new(Whole::Frame, gateway_websocket::longest(&door.handle));
        if let Ok(pair) = door.handle.pair(Peer::Client(ip), permit) {
            gateway_websocket::carry(stream, (inflow, Vec::new()), pair).await;
        }
        // The gateway may have let go of it before.
        drop(origin.place);
    })
}

async fn server(
    State(handle): State<Handle>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Response {
    gateway_websocket::accept(request, async move |mut stream| {
        let shaken = gateway_websocket::handshake(&mut stream, &handle);
        if let Ok(Ok((proven, inflow, early))) = timeout(handle.handshake_time(), shaken).await
            && origin.place.take_descriptors(2)
            && let Ok(pair) = handle.pair(Peer::Server(proven), ())
        {
            origin.place.prove();
            gateway_websocket::carry(stream, (inflow, early), pair).await;
        }
        // The gateway may have let go of it before.
        drop(origin.place);
    })
}
