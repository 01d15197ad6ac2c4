//! Asks the server's two UDP ports, from one socket, what address they see.

use super::nat::{self, Mappings};
use crate::net::interfaces;
use crate::signaling::wire::NatType;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long each copy of a request is waited for; together about a second.
const WAITS: [Duration; 4] = [
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(300),
    Duration::from_millis(300),
];

/// One socket that learns how the server sees it.
#[derive(Debug)]
pub(super) struct NatProbe {
    socket: UdpSocket,
    seen: Mappings,
}

impl NatProbe {
    /// Opens the socket and asks `server`; returns after the answer, or after about a second without one.
    pub(super) async fn start(server: SocketAddr) -> io::Result<Self> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        let first = ask(&socket, server).await;
        Ok(Self { socket, seen: Mappings { first, second: None } })
    }

    /// Says whether UDP came back at all.
    pub(super) fn blocked(&self) -> bool {
        self.seen == Mappings::default()
    }

    /// Asks the server's second port too and names the NAT, if the answers tell.
    pub(super) async fn finish(mut self, second: Option<SocketAddr>) -> Option<NatType> {
        if let Some(second) = second.filter(|_| !self.blocked()) {
            self.seen.second = ask(&self.socket, second).await;
        }
        let port = self.socket.local_addr().ok()?.port();
        nat::classify(port, &interfaces::addresses().unwrap_or_default(), self.seen)
    }
}

async fn ask(socket: &UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    let random: [u8; 12] = rand::random();
    let request = nat::binding_request(random);
    for wait in WAITS {
        // A refused send (a local firewall, no route) is one more way to get no answer.
        let _ = socket.send_to(&request, server).await;
        if let Ok(mapped) = timeout(wait, answer(socket, random)).await {
            return Some(mapped);
        }
    }
    None
}

async fn answer(socket: &UdpSocket, random: [u8; 12]) -> SocketAddr {
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
