//! Port mappings by UPnP: the search for the router's connection service, and its actions.

use super::Lease;
use super::upnp_message::{self, Action, ActionError, ConnectionService, Location, MAX_RESPONSE, SERVICES};
use crate::agent::candidate;
use crate::net::time;
use rand::Rng;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{sleep_until, timeout};

/// The multicast address of discovery.
const DISCOVERY: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// Waits after each search.
pub(super) const SEARCHES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_secs(2)];
/// Time limit of one request by HTTP.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest response to a search.
const MAX_DATAGRAM: usize = 1500;
/// External ports that are tried.
const PORT_TRIALS: usize = 3;
/// The ports that routers map for everybody.
const PORTS: std::ops::Range<u16> = 1024..65_535;
/// The external port is in use.
const CONFLICT: u16 = 718;
/// The router keeps a mapping until it is deleted.
const ONLY_PERMANENT: u16 = 725;

/// The connection service of the router, and the local address from which it is reached.
#[derive(Debug, Clone)]
pub(super) struct UpnpRouter {
    local: IpAddr,
    service: ConnectionService,
}

/// Searches for the connection service of `router`; `None` if it does not answer.
pub(super) async fn search(router: IpAddr, local: IpAddr) -> Option<UpnpRouter> {
    let socket = UdpSocket::bind((local, 0)).await.ok()?;
    for wait in SEARCHES {
        for search in upnp_message::searches(DISCOVERY.into()) {
            // Some routers answer only one of the two.
            for address in [router, DISCOVERY.into()] {
                let _ = socket.send_to(&search, (address, upnp_message::DISCOVERY_PORT)).await;
            }
        }
        let end = time::now().mono + wait;
        while let Some(location) = next_location(&socket, router, end.into()).await {
            if let Some(service) = describe(&location, local, &SERVICES).await {
                return Some(UpnpRouter { local, service });
            }
        }
    }
    None
}

/// Waits for a response of the router itself.
async fn next_location(socket: &UdpSocket, router: IpAddr, end: tokio::time::Instant) -> Option<Location> {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let (len, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received.ok()?,
            () = sleep_until(end) => return None,
        };
        if from.ip() == router
            && let Some(location) = upnp_message::parse_search_response(&buffer[..len], |ip| ip == router)
        {
            return Some(location);
        }
    }
}

/// Reads the description of a router: the first of these services.
pub(super) async fn describe(
    location: &Location,
    local: IpAddr,
    kinds: &[&'static str],
) -> Option<ConnectionService> {
    let request = upnp_message::description_request(location);
    let response = exchange(location.address, local, &request).await.ok()?;
    let (is_success, body) = upnp_message::parse_response(&response)?;
    upnp_message::parse_description(body, location, kinds).filter(|_| is_success)
}

/// Sends one request by HTTP and reads its response, which is bounded in length and time.
pub(super) async fn exchange(address: SocketAddr, local: IpAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let exchanged = async {
        let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind((local, 0).into())?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(request).await?;
        let mut response = Vec::new();
        while response.len() < MAX_RESPONSE && !upnp_message::is_complete(&response) {
            if stream.read_buf(&mut response).await? == 0 {
                break;
            }
        }
        Ok(response)
    };
    timeout(REQUEST_TIMEOUT, exchanged).await?
}

impl UpnpRouter {
    /// Adds or renews the mapping of a lease. Returns the external address and the lifetime.
    pub(super) async fn map(&self, lease: &mut Lease, lifetime: Duration) -> Option<(SocketAddr, Duration)> {
        let address = self.external_address().await?;
        let mut requested = lifetime;
        for _ in 0..PORT_TRIALS {
            let (protocol, internal) = (lease.wanted.protocol, lease.wanted.internal);
            let add =
                Action::Add { protocol, internal, external_port: lease.external_port, lifetime: requested };
            match self.act(&add).await {
                Ok(_) => return Some((SocketAddr::new(address, lease.external_port), lifetime)),
                Err(ActionError::Refused(CONFLICT)) => lease.external_port = rand::rng().random_range(PORTS),
                Err(ActionError::Refused(ONLY_PERMANENT)) => requested = Duration::ZERO,
                Err(error) => {
                    tracing::debug!(?error, "the router does not map the port");
                    return None;
                }
            }
        }
        None
    }

    /// A router behind another NAT has an address that the internet does not reach: nothing is mapped then.
    async fn external_address(&self) -> Option<IpAddr> {
        self.reported_address().await.filter(|address| candidate::is_global(*address))
    }

    /// Returns the external address that the router reports, whatever its scope.
    pub(super) async fn reported_address(&self) -> Option<IpAddr> {
        let body = self.act(&Action::ExternalAddress).await.ok()?;
        upnp_message::external_address(&body)
    }

    /// Deletes the mapping of a lease.
    pub(super) async fn unmap(&self, lease: &Lease) {
        let (protocol, external_port) = (lease.wanted.protocol, lease.external_port);
        let _ = self.act(&Action::Delete { protocol, external_port }).await;
    }

    async fn act(&self, action: &Action) -> Result<String, ActionError> {
        act(&self.service, self.local, action).await
    }
}

/// Has a service do something; returns the body of its response.
pub(super) async fn act(
    service: &ConnectionService,
    local: IpAddr,
    action: &Action,
) -> Result<String, ActionError> {
    let request = upnp_message::action_request(service, action);
    let response = exchange(service.control.address, local, &request).await;
    let response = response.map_err(|_| ActionError::Malformed)?;
    upnp_message::parse_action_response(&response).map(str::to_owned)
}
