//! Opens the ports: TCP first, because a second server on the same port fails there, while UDP would silently share it.

use super::{Config, ServerError};
use crate::dataplane::worker::ListenSocket;
use crate::dataplane::worker_pool::WorkerSockets;
use crate::net::udp::{BatchUdpSocket, Role};
use crate::signaling::{ServerPort, Sockets};
use crate::stun_server::Discovery;
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpListener;

/// The default second UDP port.
const AUX_PORT: u16 = 3479;

/// The default TLS and DTLS port.
pub(super) const TLS_PORT: u16 = 5349;

/// Every open port.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) port: u16,
    pub(super) aux_port: Option<u16>,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) tcp: Vec<TcpListener>,
    /// The TLS port, and its listeners.
    pub(super) tls_port: Option<u16>,
    pub(super) tls: Vec<TcpListener>,
    pub(super) per_worker: Vec<Vec<ListenSocket>>,
}

impl Listeners {
    /// Opens TCP and UDP on every address, each UDP port once per worker, and the second UDP port for the first worker.
    pub(super) async fn open(config: &Config, workers: usize) -> Result<Self, ServerError> {
        let mut port = config.port;
        let (mut tcp, mut listen) = (Vec::new(), Vec::new());
        for ip in &config.listen {
            let address = SocketAddr::new(*ip, port);
            match open_tcp(address).await {
                Ok(listener) => {
                    port = listener.local_addr()?.port();
                    listen.push(SocketAddr::new(*ip, port));
                    tcp.push(listener);
                }
                Err(error) if is_optional(*ip, config, &error) => {
                    tracing::info!(%error, "no IPv6 on this host");
                }
                Err(source) => return Err(ServerError::Listen { address, transport: "tcp", source }),
            }
        }
        let mut per_worker: Vec<Vec<ListenSocket>> = (0..workers).map(|_| Vec::new()).collect();
        for address in &listen {
            for sockets in &mut per_worker {
                let opened = open_udp(*address, Role::Shared)?;
                sockets.push(ListenSocket { socket: opened, port: ServerPort::Main, is_tls_port: false });
            }
        }
        let aux_port = open_aux(config, &listen, &mut per_worker[0])?;
        for address in &config.nat_discovery {
            // Otherwise an address of another host would fail with every response.
            open_udp(SocketAddr::new(address.local, 0), Role::Single)?;
        }
        let tls = open_tls(config, &listen, &mut per_worker).await?;
        let tls_port = (!tls.is_empty()).then(|| tls_port(config));
        Ok(Self { port, aux_port, listen, tcp, tls_port, tls, per_worker })
    }

    /// Takes each worker's sockets, with clones of the second port's sockets for the other workers.
    pub(super) fn take_worker_sockets(&mut self) -> io::Result<Vec<WorkerSockets>> {
        let aux: Vec<_> =
            (1..self.per_worker.len()).map(|_| Ok(self.sockets()?.aux)).collect::<io::Result<_>>()?;
        let send_only = std::iter::once(Vec::new()).chain(aux);
        Ok(std::mem::take(&mut self.per_worker).into_iter().zip(send_only).collect())
    }

    /// Returns the rules by which NAT discovery chooses the socket of a response.
    pub(super) fn discovery(&self, config: &Config) -> Discovery {
        Discovery::new([self.port, self.aux_port.unwrap_or(0)], &config.nat_discovery, &config.public)
    }

    /// Clones the sockets for signalling.
    pub(super) fn sockets(&self) -> io::Result<Sockets> {
        let of = |port: ServerPort| {
            let sockets =
                self.per_worker[0].iter().filter(move |socket| socket.port == port && !socket.is_tls_port);
            sockets.map(|socket| socket.socket.try_clone()).collect::<io::Result<Vec<_>>>()
        };
        Ok(Sockets { main: of(ServerPort::Main)?, aux: of(ServerPort::Aux)? })
    }
}

fn open_udp(address: SocketAddr, role: Role) -> Result<BatchUdpSocket, ServerError> {
    BatchUdpSocket::bind(address, role).map_err(|source| ServerError::Listen {
        address,
        transport: "udp",
        source,
    })
}

/// Opens the second port on every address, the same number on all; none when it is 0.
fn open_aux(
    config: &Config,
    listen: &[SocketAddr],
    sockets: &mut Vec<ListenSocket>,
) -> Result<Option<u16>, ServerError> {
    let numbers = match config.aux_port {
        Some(0) => return Ok(None),
        Some(port) => vec![port],
        None => vec![AUX_PORT, 0],
    };
    let mut refused = None;
    for mut number in numbers {
        let opened: Result<Vec<_>, ServerError> = listen
            .iter()
            .map(|address| {
                let port = open_udp(SocketAddr::new(address.ip(), number), Role::Single)?;
                number = port.local_addr().port();
                Ok(ListenSocket { socket: port, port: ServerPort::Aux, is_tls_port: false })
            })
            .collect();
        match opened {
            Ok(opened) => {
                sockets.extend(opened);
                return Ok(Some(number));
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or(ServerError::NoRelayAddress))
}

fn tls_port(config: &Config) -> u16 {
    config.tls.port.unwrap_or(TLS_PORT)
}

/// Opens the TLS and DTLS port on every address; none when it is 0, or when the default port is in use.
async fn open_tls(
    config: &Config,
    listen: &[SocketAddr],
    per_worker: &mut [Vec<ListenSocket>],
) -> Result<Vec<TcpListener>, ServerError> {
    let (mut listeners, port) = (Vec::new(), tls_port(config));
    for address in listen.iter().filter(|address| port != 0 && address.port() != port) {
        let address = SocketAddr::new(address.ip(), port);
        match open_tcp(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if config.tls.port.is_none() => {
                tracing::info!(%error, port, "TLS port not available; TLS is served on the main port only");
                return Ok(Vec::new());
            }
            Err(source) => return Err(ServerError::Listen { address, transport: "tcp", source }),
        }
    }
    for listener in &listeners {
        let address = listener.local_addr()?;
        for sockets in per_worker.iter_mut() {
            let port = open_udp(address, Role::Shared)?;
            sockets.push(ListenSocket { socket: port, port: ServerPort::Main, is_tls_port: true });
        }
    }
    Ok(listeners)
}

pub(super) async fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Returns whether the default list works without this address: on a host without IPv6.
fn is_optional(ip: IpAddr, config: &Config, error: &io::Error) -> bool {
    ip.is_ipv6()
        && ip.is_unspecified()
        && config.listen.len() > 1
        && error.kind() != io::ErrorKind::AddrInUse
        && error.kind() != io::ErrorKind::PermissionDenied
}
