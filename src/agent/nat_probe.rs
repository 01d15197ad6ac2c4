//! STUN Binding requests from one socket to both UDP ports of the server, to determine the NAT.

use super::nat::{self, Mappings};
use crate::net::interfaces;
use crate::signaling::wire::NatType;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Retransmission intervals of a request; about a second in total.
const RETRANSMISSIONS: [Duration; 4] = [
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(300),
    Duration::from_millis(300),
];

/// A socket and its mapped addresses.
#[derive(Debug)]
pub(super) struct NatProbe {
    socket: UdpSocket,
    mappings: Mappings,
}

impl NatProbe {
    /// Opens the socket and sends a request to `server`; returns after the response, or after about a second without one.
    pub(super) async fn start(server: SocketAddr) -> io::Result<Self> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        let first = request(&socket, server).await;
        Ok(Self { socket, mappings: Mappings { first, second: None } })
    }

    /// Returns whether no response arrived.
    pub(super) fn is_udp_blocked(&self) -> bool {
        self.mappings == Mappings::default()
    }

    /// Sends a request to the server's second port and returns the type of the NAT, if the responses determine it.
    pub(super) async fn finish(mut self, second: Option<SocketAddr>) -> Option<NatType> {
        if let Some(second) = second.filter(|_| !self.is_udp_blocked()) {
            self.mappings.second = request(&self.socket, second).await;
        }
        let port = self.socket.local_addr().ok()?.port();
        nat::classify(port, &interfaces::addresses().unwrap_or_default(), self.mappings)
    }
}

async fn request(socket: &UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    let random: [u8; 12] = rand::random();
    let request = nat::binding_request(random);
    for wait in RETRANSMISSIONS {
        // A send error (a local firewall, no route) counts as a lost request.
        let _ = socket.send_to(&request, server).await;
        if let Ok(mapped) = timeout(wait, response(socket, random)).await {
            return Some(mapped);
        }
    }
    None
}

async fn response(socket: &UdpSocket, random: [u8; 12]) -> SocketAddr {
    let mut buffer = [0; 1500];
    loop {
        let received = socket.recv_from(&mut buffer).await;
        let payload = received.ok().and_then(|(len, _)| buffer.get(..len));
        match payload.and_then(|payload| nat::binding_response(payload, random)) {
            Some(mapped) => return mapped,
            None => tokio::task::yield_now().await,
        }
    }
}
