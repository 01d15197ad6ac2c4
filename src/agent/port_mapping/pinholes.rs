//! Pinholes in the router's IPv6 firewall by UPnP (WANIPv6FirewallControl:1): the search for its service, and its actions.
//!
//! The address of the host stays: a pinhole lets others send to it before it has sent to them. PCP opens the same by a mapping.

use super::Lease;
use super::upnp::{self, SEARCHES};
use super::upnp_message::{self, Action, ActionError, ConnectionService, FIREWALL_SERVICES, Location};
use crate::net::default_gateway::Gateway;
use crate::net::time;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::sleep_until;

/// The multicast address of discovery on the link.
const DISCOVERY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
/// Longest response to a search.
const MAX_DATAGRAM: usize = 1500;
/// The longest lifetime of a pinhole.
const MAX_LIFETIME: Duration = Duration::from_secs(86_400);

/// The firewall of the router.
#[derive(Debug, Clone)]
pub(super) struct FirewallRouter {
    pub(super) service: ConnectionService,
}

/// Searches for the firewall service of the router; `None` if it has none, or lets nobody open it.
pub(super) async fn search(gateway: Gateway, local: IpAddr) -> Option<FirewallRouter> {
    let (IpAddr::V6(router), IpAddr::V6(own)) = (gateway.address, local) else { return None };
    let socket = UdpSocket::bind((local, 0)).await.ok()?;
    for wait in SEARCHES {
        for search in upnp_message::searches(DISCOVERY.into()) {
            for address in [router, DISCOVERY] {
                let to = SocketAddrV6::new(address, upnp_message::DISCOVERY_PORT, 0, gateway.scope_id);
                let _ = socket.send_to(&search, SocketAddr::V6(to)).await;
            }
        }
        let end = time::now().mono + wait;
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let (len, from) = tokio::select! {
                received = socket.recv_from(&mut buffer) => received.ok()?,
                () = sleep_until(end.into()) => break,
            };
            // A router answers from any of its addresses on this link.
            let is_near = |ip: IpAddr| ip == gateway.address || is_on_link(own, ip);
            if !is_near(from.ip()) {
                continue;
            }
            let location = upnp_message::parse_search_response(&buffer[..len], is_near);
            if let Some(location) = location.map(|location| scoped(location, gateway.scope_id))
                && let Some(service) = upnp::describe(&location, local, &FIREWALL_SERVICES).await
            {
                let router = FirewallRouter { service };
                let is_open = router.act(local, &Action::FirewallStatus).await;
                return is_open.is_ok_and(|body| upnp_message::allows_pinholes(&body)).then_some(router);
            }
        }
    }
    None
}

/// Waits for the response to the request that opens the pinhole, if one is on its way.
async fn finish_opening(lease: &mut Lease) {
    let Some(opening) = &mut lease.opening else { return };
    let response = opening.await;
    lease.opening = None;
    match response {
        Ok(Ok(body)) => lease.pinhole = upnp_message::pinhole_id(&body),
        Ok(Err(error)) => tracing::debug!(?error, "the router opens no pinhole"),
        Err(_) => {}
    }
}

/// Returns whether an address is in the same network of 64 bits.
fn is_on_link(own: Ipv6Addr, ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[..4] == own.segments()[..4])
}

/// A link-local address is reached through the interface of the default route.
fn scoped(location: Location, scope_id: u32) -> Location {
    let address = match location.address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope_id).into()
        }
        other => other,
    };
    Location { address, ..location }
}

impl FirewallRouter {
    /// Opens or renews the pinhole of a lease. Returns the address, which is the host's own, and the lifetime.
    pub(super) async fn map(&self, lease: &mut Lease, lifetime: Duration) -> Option<(SocketAddr, Duration)> {
        let (protocol, internal) = (lease.wanted.protocol, lease.wanted.internal);
        let (local, lifetime) = (internal.ip(), lifetime.min(MAX_LIFETIME));
        finish_opening(lease).await;
        if let Some(id) = lease.pinhole {
            match self.act(local, &Action::UpdatePinhole { id, lifetime }).await {
                Ok(_) => return Some((internal, lifetime)),
                // The router has forgotten it.
                Err(ActionError::Refused(_)) => lease.pinhole = None,
                Err(ActionError::Malformed) => return None,
            }
        }
        // Only its response names the pinhole: who is interrupted here reads it later.
        let (service, action) = (self.service.clone(), Action::AddPinhole { protocol, internal, lifetime });
        lease.opening = Some(tokio::spawn(async move { upnp::act(&service, local, &action).await }));
        finish_opening(lease).await;
        lease.pinhole.map(|_| (internal, lifetime))
    }

    /// Closes the pinhole of a lease.
    pub(super) async fn unmap(&self, lease: &mut Lease) {
        finish_opening(lease).await;
        if let Some(id) = lease.pinhole {
            let _ = self.act(lease.wanted.internal.ip(), &Action::DeletePinhole { id }).await;
        }
    }

    /// A router lets a host open pinholes to itself only: the request comes from the address that it is about.
    async fn act(&self, local: IpAddr, action: &Action) -> Result<String, ActionError> {
        upnp::act(&self.service, local, action).await
    }
}
