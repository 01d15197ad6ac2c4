//! Ports that the router of the default route maps for this host, by PCP, NAT-PMP or UPnP; for IPv6, pinholes in its firewall, by PCP or UPnP.
//!
//! A mapped port is a server-reflexive candidate to which anybody may send: a NAT that gives each peer another port no longer matters. A search
//! runs beside everything else and nothing waits for it. The first protocol that maps is used. A mapping is renewed while it is needed, and
//! deleted at the end. A router that does not answer is asked again when the network changes.

mod pcp;
mod pinholes;
#[cfg(feature = "cli")]
mod probe;
mod upnp;
mod upnp_message;
mod wire;

use super::candidate;
use super::host_addresses::source_address;
use crate::net::default_gateway::{Gateway, default_gateways};
use crate::net::interfaces::{AddressScope, scope};
use crate::net::time;
use pcp::PcpRouter;
use pinholes::FirewallRouter;
use rand::Rng;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep_until, timeout};
use upnp::UpnpRouter;
use upnp_message::ActionError;

#[cfg(feature = "cli")]
pub(super) use probe::probe;
pub(super) use wire::MappedProtocol;

/// Lifetime that is requested. A mapping outlives a crash of this process by at most this time.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The shortest and the longest wait before a renewal, whatever lifetime the router grants.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(1800));
/// Mappings of this process at a time: the tables of home routers are small.
const MAX_MAPPINGS: usize = 32;
/// Ports that one engine asks for, of each family.
const MAX_WANTED: usize = 4;
/// Time limit of the deletion.
const DELETE_TIMEOUT: Duration = Duration::from_millis(500);
/// Deadline of a timer that is not needed.
const FAR: Duration = Duration::from_secs(24 * 3600);
const QUEUE: usize = 16;

static MAPPINGS: Semaphore = Semaphore::const_new(MAX_MAPPINGS);

/// A port of this host that others should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WantedMapping {
    pub(super) protocol: MappedProtocol,
    pub(super) internal: SocketAddr,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MappingEvent {
    /// The port is reached at this address.
    Mapped(WantedMapping, SocketAddr),
    /// It is no longer.
    Lost(WantedMapping),
}

/// What the task works for: the ports, and a number that grows when mappings may have been lost.
#[derive(Debug, Clone, Default)]
struct Goal {
    wanted: Vec<WantedMapping>,
    renewals: u64,
    /// Grows when the router may be another one.
    searches: u64,
}

/// The mappings of one engine. They are deleted when it is dropped; [`PortMapper::close`] waits for that.
#[derive(Debug)]
pub(super) struct PortMapper {
    goal: watch::Sender<Goal>,
    events: mpsc::Receiver<MappingEvent>,
    tasks: Vec<JoinHandle<()>>,
}

impl PortMapper {
    /// Returns a mapper; without `is_enabled` it does nothing.
    pub(super) fn start(is_enabled: bool) -> Self {
        let (goal, goal_rx) = watch::channel(Goal::default());
        let (events, events_rx) = mpsc::channel(QUEUE);
        let families = [true, false].into_iter().filter(|_| is_enabled);
        let tasks = families.map(|is_v4| {
            let task = MapperTask {
                is_v4,
                goal: goal_rx.clone(),
                events: events.clone(),
                gateway: None,
                router: None,
                searches: 0,
                renewals: 0,
                leases: Vec::new(),
            };
            tokio::spawn(task.run())
        });
        let tasks = tasks.collect();
        Self { goal, events: events_rx, tasks }
    }

    /// Sets the ports that others should reach, and searches for the router.
    pub(super) fn set(&self, wanted: Vec<WantedMapping>) {
        self.goal.send_modify(|goal| {
            goal.wanted = wanted;
            goal.searches += 1;
        });
    }

    /// The router may have forgotten its mappings.
    pub(super) fn renew(&self) {
        self.goal.send_modify(|goal| goal.renewals += 1);
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> MappingEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Deletes the mappings.
    pub(super) async fn close(self) {
        drop((self.goal, self.events));
        for mut task in self.tasks {
            if timeout(DELETE_TIMEOUT, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// One mapping, or the attempt to have it.
#[derive(Debug)]
struct Lease {
    wanted: WantedMapping,
    /// The router's port, or the one that is wished for.
    external_port: u16,
    nonce: [u8; 12],
    /// The number of the pinhole by UPnP.
    pinhole: Option<u16>,
    /// The request that opens the pinhole, until its response was read.
    opening: Option<JoinHandle<Result<String, ActionError>>>,
    /// What is offered to the other side; a pinhole of a firewall has no address of its own.
    external: Option<SocketAddr>,
    /// The router has granted it, and it is of use.
    is_useful: bool,
    renew_at: Instant,
    ends_at: Option<Instant>,
    _permit: SemaphorePermit<'static>,
}

/// How the router is asked.
#[derive(Debug)]
enum Router {
    Pcp(PcpRouter),
    Upnp(UpnpRouter),
    Firewall(FirewallRouter),
}

impl Router {
    async fn map(&self, lease: &mut Lease) -> Option<(SocketAddr, Duration)> {
        match self {
            Self::Pcp(router) => router.map(lease, LIFETIME).await,
            Self::Upnp(router) => router.map(lease, LIFETIME).await,
            Self::Firewall(router) => router.map(lease, LIFETIME).await,
        }
    }

    async fn unmap(&self, lease: &mut Lease) {
        match self {
            Self::Pcp(router) => router.unmap(lease).await,
            Self::Upnp(router) => router.unmap(lease).await,
            Self::Firewall(router) => router.unmap(lease).await,
        }
    }
}

/// Keeps the mappings of one family of addresses.
struct MapperTask {
    is_v4: bool,
    goal: watch::Receiver<Goal>,
    events: mpsc::Sender<MappingEvent>,
    gateway: Option<Gateway>,
    router: Option<Router>,
    searches: u64,
    renewals: u64,
    leases: Vec<Lease>,
}

impl MapperTask {
    async fn run(mut self) {
        let mut changes = self.goal.clone();
        loop {
            let goal = changes.borrow_and_update().clone();
            // A change interrupts a search; a request that was sent is known by its lease.
            let is_open = tokio::select! {
                () = self.work(&goal) => {
                    let due = self.leases.iter().map(|lease| lease.renew_at).min();
                    let due = due.unwrap_or_else(|| time::now().mono + FAR);
                    tokio::select! {
                        changed = changes.changed() => changed.is_ok(),
                        () = sleep_until(due.into()) => true,
                    }
                }
                changed = changes.changed() => changed.is_ok(),
            };
            if !is_open {
                break;
            }
        }
        self.delete(|_| true).await;
    }

    async fn work(&mut self, goal: &Goal) {
        self.delete(|lease| !goal.wanted.contains(&lease.wanted)).await;
        if self.renewals != goal.renewals {
            self.renewals = goal.renewals;
            self.leases.iter_mut().for_each(|lease| lease.renew_at = time::now().mono);
        }
        if self.searches != goal.searches {
            self.search(goal).await;
            self.searches = goal.searches;
        }
        for index in 0..self.leases.len() {
            if self.leases[index].renew_at <= time::now().mono {
                self.renew(index).await;
            }
        }
    }

    /// Searches for a protocol that maps, by all at a time. The router that is known stays if it still maps.
    async fn search(&mut self, goal: &Goal) {
        let gateway = default_gateways().into_iter().find(|found| found.address.is_ipv4() == self.is_v4);
        if self.gateway != gateway {
            // The old router is out of reach.
            (self.gateway, self.router) = (gateway, None);
            self.delete(|_| true).await;
        }
        let Some(gateway) = gateway else { return };
        let wanted: Vec<WantedMapping> = goal
            .wanted
            .iter()
            .copied()
            .filter(|wanted| is_mappable(wanted, gateway))
            .take(MAX_WANTED)
            .collect();
        let Some(local) = wanted.first().map(|wanted| wanted.internal.ip()) else { return };
        if self.router.is_some() {
            self.map_all(&wanted).await;
            if !self.leases.is_empty() {
                return;
            }
        }
        let mut searches = JoinSet::new();
        searches.spawn(async move { pcp::search(gateway, local).await.map(Router::Pcp) });
        searches.spawn(async move {
            match local.is_ipv4() {
                true => upnp::search(gateway.address, local).await.map(Router::Upnp),
                false => pinholes::search(gateway, local).await.map(Router::Firewall),
            }
        });
        while let Some(found) = searches.join_next().await {
            let Ok(Some(router)) = found else { continue };
            tracing::debug!(?router, "the router maps ports");
            self.router = Some(router);
            self.map_all(&wanted).await;
            if !self.leases.is_empty() {
                return;
            }
        }
        self.router = None;
    }

    /// Maps every port, and forgets those that the router refuses.
    async fn map_all(&mut self, wanted: &[WantedMapping]) {
        for wanted in wanted {
            let index = match self.leases.iter().position(|lease| lease.wanted == *wanted) {
                Some(index) => index,
                None => {
                    let Ok(permit) = MAPPINGS.try_acquire() else { continue };
                    self.leases.push(Lease::new(*wanted, permit));
                    self.leases.len() - 1
                }
            };
            self.renew(index).await;
        }
        self.delete(|lease| !lease.is_useful).await;
    }

    async fn renew(&mut self, index: usize) {
        let (Some(router), Some(lease)) = (&self.router, self.leases.get_mut(index)) else { return };
        let now = time::now().mono;
        match router.map(lease).await {
            Some((external, lifetime)) => {
                let wait = lifetime.mul_f64(rand::rng().random_range(0.5..0.625)).clamp(RENEWAL.0, RENEWAL.1);
                lease.renew_at = now + wait;
                lease.ends_at = Some(now + lifetime);
                let is_public = is_public(external);
                lease.is_useful = is_public || external == lease.wanted.internal;
                let is_offered = is_public && external != lease.wanted.internal;
                if is_offered && lease.external != Some(external) {
                    lease.external = Some(external);
                    let _ = self.events.send(MappingEvent::Mapped(lease.wanted, external)).await;
                }
            }
            None => {
                lease.renew_at = now + RENEWAL.0;
                if lease.ends_at.is_some_and(|end| end <= now + RENEWAL.0) && lease.external.take().is_some()
                {
                    let _ = self.events.send(MappingEvent::Lost(lease.wanted)).await;
                }
            }
        }
    }

    /// Deletes the mappings that `is_needless` names.
    async fn delete(&mut self, is_needless: impl Fn(&Lease) -> bool) {
        while let Some(index) = self.leases.iter().position(&is_needless) {
            // It is removed only then: whoever is interrupted deletes it again.
            if let Some(router) = &self.router {
                router.unmap(&mut self.leases[index]).await;
            }
            let lease = self.leases.remove(index);
            if lease.external.is_some() {
                let _ = self.events.send(MappingEvent::Lost(lease.wanted)).await;
            }
        }
    }
}

impl Lease {
    fn new(wanted: WantedMapping, permit: SemaphorePermit<'static>) -> Self {
        Self {
            wanted,
            external_port: wanted.internal.port(),
            nonce: rand::random(),
            pinhole: None,
            opening: None,
            external: None,
            is_useful: false,
            renew_at: time::now().mono,
            ends_at: None,
            _permit: permit,
        }
    }
}

/// Returns whether the router of the default route can map this port: an IPv4 address behind a NAT, or an IPv6 address behind a firewall.
fn is_mappable(wanted: &WantedMapping, gateway: Gateway) -> bool {
    let ip = wanted.internal.ip();
    match ip.is_ipv4() {
        true => {
            gateway.address.is_ipv4()
                && scope(ip) == AddressScope::Private
                && source_address(gateway.address) == Some(ip)
        }
        false => gateway.address.is_ipv6() && candidate::is_global(ip),
    }
}

/// Returns whether the internet reaches a mapped address: that of a router behind another NAT is private.
fn is_public(external: SocketAddr) -> bool {
    candidate::is_global(external.ip()) && external.port() != 0 && !external.ip().is_multicast()
}

#[cfg(test)]
mod tests;
