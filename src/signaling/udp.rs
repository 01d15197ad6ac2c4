//! UDP output. The workers of the data plane receive.

use super::client_addr::ServerPort;
use crate::net::udp::{BatchUdpSocket, Route};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// The server's UDP sockets, one for each local address; used only to send.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// The sockets of port 1.
    pub main: Vec<BatchUdpSocket>,
    /// The sockets of port 2.
    pub aux: Vec<BatchUdpSocket>,
}

impl Sockets {
    /// Sends one datagram. If the system refuses it, it is lost; the hub retransmits.
    pub(super) fn send(&self, port: ServerPort, to: SocketAddr, from_ip: Option<IpAddr>, payload: &[u8]) {
        let sockets = match port {
            ServerPort::Main => &self.main,
            ServerPort::Aux => &self.aux,
        };
        let sent = match choose(sockets, to, from_ip) {
            Some((socket, source)) => socket.send(&Route { source, ..Route::to(to) }, payload),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        if let Err(error) = sent {
            tracing::debug!(?port, %error, "datagram not sent");
        }
    }
}

/// Picks the socket that is bound to the local address that the client uses; else one bound to all addresses; else any of the client's
/// address family.
fn choose(
    sockets: &[BatchUdpSocket],
    to: SocketAddr,
    from_ip: Option<IpAddr>,
) -> Option<(&BatchUdpSocket, Option<IpAddr>)> {
    let family = || sockets.iter().filter(|socket| socket.local_addr().is_ipv4() == to.is_ipv4());
    let exact = family().find(|socket| Some(socket.local_addr().ip()) == from_ip);
    let wild = family().find(|socket| socket.local_addr().ip().is_unspecified());
    match (exact, wild) {
        (Some(socket), _) => Some((socket, None)),
        (None, Some(socket)) => Some((socket, from_ip)),
        (None, None) => family().next().map(|socket| (socket, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::udp::Role;

    #[test]
    fn the_socket_is_chosen_by_family_and_local_address() {
        let bind = |text: &str| BatchUdpSocket::bind(text.parse().unwrap(), Role::Single).unwrap();
        let ports = [bind("127.0.0.2:0"), bind("0.0.0.0:0"), bind("127.0.0.1:0")];
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let chosen = |to: &str, from: Option<IpAddr>| {
            choose(&ports, to.parse().unwrap(), from).map(|(port, source)| (port.local_addr().ip(), source))
        };
        let to = "127.0.0.1:9";
        assert_eq!(chosen(to, ip("127.0.0.2")), Some((ip("127.0.0.2").unwrap(), None)));
        assert_eq!(chosen(to, ip("127.0.0.9")), Some((ip("0.0.0.0").unwrap(), ip("127.0.0.9"))));
        assert_eq!(chosen(to, None), Some((ip("0.0.0.0").unwrap(), None)));
        assert_eq!(chosen("[::1]:9", None), None);
        let bound = choose(&ports[..1], to.parse().unwrap(), ip("127.0.0.9"));
        assert_eq!(
            bound.map(|(port, source)| (port.local_addr().ip(), source)),
            Some((ip("127.0.0.2").unwrap(), None))
        );
    }
}
