//! What the router of the default route offers by each protocol: a mapping that is deleted as soon as it is granted.

use super::pcp;
use super::wire::{MappedProtocol, Version};
use super::{Lease, MAPPINGS, Router, WantedMapping, upnp};
use crate::agent::candidate;
use crate::agent::diagnosis::{PortMappingObservations, PortMappingSupport};
use crate::agent::host_addresses::source_address;
use crate::net::default_gateway::{Gateway, default_gateways};
use crate::net::time;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::time::timeout_at;

/// Lifetime of the mapping, which outlives a crash by at most this time.
const LIFETIME: Duration = Duration::from_secs(120);
/// Time that is left for the deletion.
const DELETE_TIME: Duration = Duration::from_millis(300);

/// Asks the router by all protocols at the same time.
pub(in crate::agent) async fn probe(deadline: Instant) -> PortMappingObservations {
    let gateway = default_gateways().into_iter().find(|gateway| gateway.address.is_ipv4());
    let local = gateway.and_then(|gateway| source_address(gateway.address));
    let (Some(gateway), Some(local)) = (gateway, local) else { return PortMappingObservations::NOT_TESTED };
    if candidate::is_global(local) {
        return PortMappingObservations::NOT_TESTED;
    }
    let deadline = deadline.checked_sub(DELETE_TIME).unwrap_or(deadline);
    let (upnp, pcp, nat_pmp) = tokio::join!(
        support(local, deadline, async { upnp::search(gateway.address, local).await.map(Router::Upnp) }),
        support(local, deadline, by_pcp(gateway, local, Version::Pcp)),
        support(local, deadline, by_pcp(gateway, local, Version::NatPmp)),
    );
    PortMappingObservations { upnp, pcp, nat_pmp }
}

async fn by_pcp(gateway: Gateway, local: IpAddr, version: Version) -> Option<Router> {
    pcp::search_versions(gateway, local, &[version])
        .await
        .filter(|router| router.version() == version)
        .map(Router::Pcp)
}

async fn support(
    local: IpAddr,
    deadline: Instant,
    search: impl Future<Output = Option<Router>>,
) -> PortMappingSupport {
    let Ok(Some(router)) = timeout_at(deadline.into(), search).await else {
        return PortMappingSupport::NoAnswer;
    };
    let Ok(socket) = UdpSocket::bind((local, 0)).await else { return PortMappingSupport::NoAnswer };
    let (Ok(internal), Ok(permit)) = (socket.local_addr(), MAPPINGS.try_acquire()) else {
        return PortMappingSupport::NoAnswer;
    };
    let mut lease = Lease::new(WantedMapping { protocol: MappedProtocol::Udp, internal }, permit);
    let mapped = timeout_at(deadline.into(), map(&router, &mut lease)).await.ok();
    if !matches!(mapped, Some(PortMappingSupport::Refuses)) {
        let _ = timeout_at((time::runtime() + DELETE_TIME).into(), router.unmap(&mut lease)).await;
    }
    mapped.unwrap_or(PortMappingSupport::Refuses)
}

async fn map(router: &Router, lease: &mut Lease) -> PortMappingSupport {
    let mapped = match router {
        Router::Pcp(router) => router.map(lease, LIFETIME).await,
        Router::Upnp(router) => router.map(lease, LIFETIME).await,
        Router::Firewall(router) => router.map(lease, LIFETIME).await,
    };
    match (mapped, router) {
        (Some((external, lifetime)), _) if candidate::is_global(external.ip()) => {
            PortMappingSupport::Maps { external, lifetime }
        }
        (Some((external, _)), _) => PortMappingSupport::BehindNat(external.ip()),
        (None, Router::Upnp(router)) => match router.reported_address().await {
            Some(address) if !candidate::is_global(address) => PortMappingSupport::BehindNat(address),
            _ => PortMappingSupport::Refuses,
        },
        (None, Router::Pcp(_) | Router::Firewall(_)) => PortMappingSupport::Refuses,
    }
}
