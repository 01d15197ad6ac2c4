//! Port mappings by PCP, or by NAT-PMP where the router speaks nothing newer.

use super::Lease;
use super::wire::{self, MapRequest, MapResponse, Version};
use crate::net::default_gateway::Gateway;
use crate::net::time;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::sleep_until;

/// Waits after each transmission; RFC 6886 section 3.1 begins with 250 ms and doubles.
const WAITS: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// RFC 6887 section 7: no message is longer.
const MAX_DATAGRAM: usize = 1100;

/// A router that has answered.
#[derive(Debug)]
pub(super) struct PcpRouter {
    gateway: Gateway,
    version: Version,
}

/// Asks the router which protocol it speaks; `None` if it does not answer.
pub(super) async fn search(gateway: Gateway, local: IpAddr) -> Option<PcpRouter> {
    let versions: &[Version] =
        if local.is_ipv4() { &[Version::Pcp, Version::NatPmp] } else { &[Version::Pcp] };
    search_versions(gateway, local, versions).await
}

/// Asks the router whether it speaks one of these protocols.
pub(super) async fn search_versions(
    gateway: Gateway,
    local: IpAddr,
    versions: &[Version],
) -> Option<PcpRouter> {
    let socket = connect(gateway, local).await?;
    let requests: Vec<Vec<u8>> = versions.iter().map(|version| wire::hello(*version, local)).collect();
    let (version, _) = exchange(&socket, &requests, wire::parse_hello).await?;
    Some(PcpRouter { gateway, version })
}

async fn connect(gateway: Gateway, local: IpAddr) -> Option<UdpSocket> {
    let remote = match gateway.address {
        IpAddr::V4(v4) => SocketAddr::from((v4, wire::PORT)),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, wire::PORT, 0, gateway.scope_id).into(),
    };
    let socket = UdpSocket::bind((local, 0)).await.ok()?;
    socket.connect(remote).await.ok()?;
    Some(socket)
}

/// Sends the requests until a response is understood. Only the router's datagrams reach the socket.
async fn exchange<T>(
    socket: &UdpSocket,
    requests: &[Vec<u8>],
    mut parse: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut buffer = [0; MAX_DATAGRAM];
    for wait in WAITS {
        for request in requests {
            socket.send(request).await.ok()?;
        }
        let end = time::now().mono + wait;
        loop {
            let received = tokio::select! {
                // An error is one of ICMP: nobody listens at the port.
                received = socket.recv(&mut buffer) => received.ok()?,
                () = sleep_until(end.into()) => break,
            };
            if let Some(parsed) = parse(&buffer[..received]) {
                return Some(parsed);
            }
        }
    }
    None
}

impl PcpRouter {
    /// Returns the protocol that it speaks.
    #[cfg(feature = "cli")]
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Adds or renews the mapping of a lease. Returns the external address and the lifetime.
    pub(super) async fn map(&self, lease: &mut Lease, lifetime: Duration) -> Option<(SocketAddr, Duration)> {
        let local = lease.wanted.internal.ip();
        let socket = connect(self.gateway, local).await?;
        let request = request(lease, lifetime);
        let message = wire::map(self.version, &request);
        let response =
            exchange(&socket, &[message], |bytes| wire::parse_map(self.version, &request, bytes)).await?;
        let granted = match response {
            MapResponse::Granted(granted) => granted,
            MapResponse::Refused(code) => {
                tracing::debug!(code, "the router does not map the port");
                return None;
            }
        };
        let address = match granted.address {
            Some(address) => address,
            None => self.external_address(&socket, local).await?,
        };
        lease.external_port = granted.port;
        Some((SocketAddr::new(address, granted.port), granted.lifetime))
    }

    async fn external_address(&self, socket: &UdpSocket, local: IpAddr) -> Option<IpAddr> {
        let hello = wire::hello(self.version, local);
        let (_, address) = exchange(socket, &[hello], wire::parse_hello).await?;
        address.map(IpAddr::V4)
    }

    /// Deletes the mapping of a lease.
    pub(super) async fn unmap(&self, lease: &Lease) {
        let request = MapRequest { external_port: 0, ..request(lease, Duration::ZERO) };
        if let Some(socket) = connect(self.gateway, lease.wanted.internal.ip()).await {
            let message = wire::map(self.version, &request);
            let _ =
                exchange(&socket, &[message], |bytes| wire::parse_map(self.version, &request, bytes)).await;
        }
    }
}

fn request(lease: &Lease, lifetime: Duration) -> MapRequest {
    MapRequest {
        protocol: lease.wanted.protocol,
        internal: lease.wanted.internal,
        external_port: lease.external_port,
        lifetime,
        nonce: lease.nonce,
    }
}
