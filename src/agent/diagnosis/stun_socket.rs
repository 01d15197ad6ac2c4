//! A UDP socket that asks STUN servers, one request at a time.

use crate::agent::host_addresses::source_address;
use crate::net::time;
use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
use socket2::SockRef;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::time::timeout_at;

/// Waits after each transmission but the last.
const WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];
/// Flags of CHANGE-REQUEST (RFC 5780 section 7.2).
pub(super) const CHANGE_PORT: u32 = 0x2;
pub(super) const CHANGE_IP: u32 = 0x4;
const MAX_DATAGRAM: usize = 1500;

/// What a request asks for beside the mapped address.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StunOptions {
    /// Flags of CHANGE-REQUEST.
    pub(super) change: u32,
    /// RESPONSE-PORT.
    pub(super) response_port: Option<u16>,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StunAnswer {
    /// `None` if the server refuses the request.
    pub(super) mapped: Option<SocketAddr>,
    /// The server's other address and port.
    pub(super) other: Option<SocketAddr>,
    pub(super) round_trip: Duration,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct StunSocket {
    socket: UdpSocket,
    local: SocketAddr,
}

impl StunSocket {
    /// Binds a socket to the address from which the system would send to `server`; `None` if there is no way to it.
    pub(super) fn bind(server: SocketAddr) -> Option<Self> {
        let socket = std::net::UdpSocket::bind((source_address(server.ip())?, 0)).ok()?;
        socket.set_nonblocking(true).ok()?;
        let local = socket.local_addr().ok()?;
        Some(Self { socket: UdpSocket::from_std(socket).ok()?, local })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends at once. A datagram that the system does not take is lost.
    pub(super) fn send(&self, server: SocketAddr, bytes: &[u8]) {
        let _ = SockRef::from(&self.socket).send_to(bytes, &server.into());
    }

    /// Receives until the deadline whatever arrives.
    pub(super) async fn receive(&self, deadline: Instant) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            // An error is one of ICMP.
            if let Ok((len, from)) =
                timeout_at(deadline.into(), self.socket.recv_from(&mut buffer)).await.ok()?
            {
                return Some((buffer[..len].to_vec(), from));
            }
        }
    }

    /// Asks a server; repeats the request until it answers, or until the deadline.
    pub(super) async fn ask(
        &self,
        server: SocketAddr,
        options: StunOptions,
        deadline: Instant,
    ) -> Option<StunAnswer> {
        let id: [u8; 12] = rand::random();
        let request = request(id, options);
        let started = time::mono();
        for wait in WAITS.into_iter().map(Some).chain([None]) {
            self.send(server, &request);
            let until = wait.map_or(deadline, |wait| deadline.min(time::runtime() + wait));
            while let Some((bytes, _)) = self.receive(until).await {
                if let Some((mapped, other)) = answer(&bytes, id) {
                    return Some(StunAnswer { mapped, other, round_trip: started.elapsed() });
                }
            }
            if until == deadline {
                break;
            }
        }
        None
    }
}

/// Encodes a Binding request.
pub(super) fn request(id: [u8; 12], options: StunOptions) -> Vec<u8> {
    let mut message = Builder::new(Class::Request, Method::BINDING, TransactionId::new(id));
    if options.change != 0 {
        message = message.attribute(attr::CHANGE_REQUEST, &options.change.to_be_bytes());
    }
    if let Some(port) = options.response_port {
        message = message.attribute(attr::RESPONSE_PORT, &port.to_be_bytes());
    }
    message.finish()
}

/// Reads the mapped address and OTHER-ADDRESS of an answer to the request with this id; both are missing in a refusal.
pub(super) fn answer(bytes: &[u8], id: [u8; 12]) -> Option<(Option<SocketAddr>, Option<SocketAddr>)> {
    let message = Message::parse(bytes).ok()?;
    if message.transaction() != TransactionId::new(id) || message.method() != Method::BINDING {
        return None;
    }
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let attributes = message.unverified();
    match message.class() {
        Class::Error => Some((None, None)),
        Class::Success => {
            let mapped = attributes.xor_address(attr::XOR_MAPPED_ADDRESS).ok()??;
            let other = attributes.plain_address(attr::OTHER_ADDRESS).ok().flatten();
            Some((Some(canonical(mapped)), other.map(canonical)))
        }
        Class::Request | Class::Indication => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 12] = [3; 12];

    #[test]
    fn an_answer_is_one_to_the_request() {
        let mapped: SocketAddr = "203.0.113.9:5000".parse().unwrap();
        let other: SocketAddr = "203.0.113.12:3479".parse().unwrap();
        let success = Builder::new(Class::Success, Method::BINDING, TransactionId::new(ID))
            .xor_address(attr::XOR_MAPPED_ADDRESS, mapped)
            .plain_address(attr::OTHER_ADDRESS, other)
            .finish();
        assert_eq!(answer(&success, ID), Some((Some(mapped), Some(other))));
        assert_eq!(answer(&success, [4; 12]), None);
        let refusal = Builder::new(Class::Error, Method::BINDING, TransactionId::new(ID))
            .error(420, "Unknown")
            .finish();
        assert_eq!(answer(&refusal, ID), Some((None, None)));
        assert_eq!(answer(&request(ID, StunOptions::default()), ID), None);
        assert_eq!(answer(b"", ID), None);
    }
}
