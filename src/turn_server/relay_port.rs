//! Relay ports: each belongs to one allocation, from its lease until its socket is closed
//! ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2)).

use super::allocation::{Family, PeerTransport};
use super::machine::{AllocationId, Relay};
use super::output::Output;
use super::port_owners::PortOwner;
use super::ports::PortLease;
use crate::clock::Now;
use crate::limits::Limit;
use rand::seq::SliceRandom;
use std::net::{IpAddr, SocketAddr};

/// Identifies one relay socket of a worker for as long as it is open.
pub type RelayId = usize;

/// How many ports are tried when other programs have them.
const MAX_IN_USE: u8 = 16;

/// Why a relay socket could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelaySocketError {
    /// Another program has the port; another one is tried.
    #[error("the port is in use")]
    PortInUse,
    /// The system has no descriptor or no memory for a socket, whatever the port.
    #[error("the system cannot open a socket")]
    NoSocket,
}

/// Which port number an allocation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortRequest {
    Any,
    Even,
    /// An even one, and the next one reserved.
    Pair,
    /// Only the one that was reserved.
    Exact,
}

/// A relay socket, open or about to be.
#[derive(Debug)]
pub(super) struct RelayPort {
    lease: PortLease,
    pub(super) owner: AllocationId,
    transport: PeerTransport,
    request: PortRequest,
    pub(super) open: bool,
    /// How many ports other programs had.
    in_use: u8,
}

impl RelayPort {
    pub(super) fn address(&self) -> SocketAddr {
        self.lease.address()
    }

    /// Returns whether the port is open for `transport`.
    pub(super) fn serves(&self, transport: PeerTransport) -> bool {
        self.open && self.transport == transport
    }
}

impl Relay {
    /// Iterates over the relay addresses of `family`.
    pub(super) fn local_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let of_family = move |ip: &IpAddr| Family::of(*ip) == family;
        self.shared.addresses.iter().map(|address| address.local).filter(of_family)
    }

    /// Leases a port of `family`, and the next one for a pair; counts when there is none.
    pub(super) fn lease(
        &mut self,
        family: Family,
        request: PortRequest,
    ) -> Option<(PortLease, Option<PortLease>)> {
        let mut ips: Vec<_> = self.local_ips(family).collect();
        ips.shuffle(&mut self.rng);
        let ports = &self.shared.ports;
        let rng = &mut self.rng;
        let lease = ips.into_iter().find_map(|ip| match request {
            PortRequest::Any => ports.lease(ip, rng).map(|lease| (lease, None)),
            PortRequest::Even => ports.lease_even(ip, rng).map(|lease| (lease, None)),
            PortRequest::Pair => ports.lease_pair(ip, rng).map(|(even, odd)| (even, Some(odd))),
            PortRequest::Exact => None,
        });
        if lease.is_none() && request != PortRequest::Exact {
            self.counters.ports_exhausted += 1;
            Limit::RelayPorts.reached(self.shared.ports.count());
        }
        lease
    }

    /// Opens a relay port of `family`; returns whether one was free.
    pub(super) fn add_relayed_address(&mut self, id: AllocationId, family: Family) -> bool {
        let lease = self.lease(family, PortRequest::Any);
        lease.map(|(lease, _)| self.open_relay_port(id, lease, PortRequest::Any)).is_some()
    }

    /// Opens the relay port that was leased for the allocation.
    pub(super) fn open_relay_port(&mut self, id: AllocationId, lease: PortLease, request: PortRequest) {
        let address = lease.address();
        let transport = self.allocations[id].control.peer_transport;
        let port = RelayPort { lease, owner: id, transport, request, open: false, in_use: 0 };
        let relay = self.relays.insert(port);
        self.allocations[id].set_relay_port(Family::of(address.ip()), Some(relay));
        self.request_socket(relay, address, transport);
    }

    fn request_socket(&mut self, relay: RelayId, address: SocketAddr, transport: PeerTransport) {
        let tcp = transport == PeerTransport::Tcp;
        self.outputs.push_back(Output::OpenRelaySocket { relay, address, tcp });
    }

    /// Handles the result of [`Output::OpenRelaySocket`].
    pub fn handle_relay_opened(&mut self, now: Now, relay: RelayId, opened: Result<(), RelaySocketError>) {
        let Some(port) = self.relays.get_mut(relay) else { return };
        match opened {
            Ok(()) => {
                port.open = true;
                match port.transport {
                    PeerTransport::Udp => {
                        port.lease.set_owner(PortOwner { worker: self.shared.worker, relay });
                    }
                    PeerTransport::Tcp => port.lease.set_for_connections(),
                }
                let owner = port.owner;
                self.respond_if_open(now, owner);
            }
            Err(RelaySocketError::PortInUse) => self.replace_port(now, relay),
            Err(RelaySocketError::NoSocket) => {
                self.counters.sockets_refused += 1;
                self.remove_port(now, relay);
            }
        }
    }

    /// Tries another port in place of one that is in use.
    fn replace_port(&mut self, now: Now, relay: RelayId) {
        let port = &mut self.relays[relay];
        port.in_use += 1;
        let (family, request) = (Family::of(port.address().ip()), port.request);
        let transport = port.transport;
        let lease = (port.in_use < MAX_IN_USE).then(|| self.lease(family, request)).flatten();
        let Some((lease, next)) = lease else { return self.remove_port(now, relay) };
        let address = lease.address();
        let port = &mut self.relays[relay];
        port.lease = lease;
        if let Some(pending) = &mut self.allocations[port.owner].control.pending
            && let (Some((_, reserved)), Some(next)) = (&mut pending.reserved, next)
        {
            reserved.lease = next;
        }
        self.request_socket(relay, address, transport);
    }

    /// Removes a relay port that cannot be opened from its allocation.
    fn remove_port(&mut self, now: Now, relay: RelayId) {
        let Some(port) = self.relays.get(relay) else { return };
        let (id, family) = (port.owner, Family::of(port.address().ip()));
        if self.allocations[id].relay_ports().count() == 1 {
            return self.fail_without_ports(id);
        }
        self.remove_family(id, family);
        self.set_family_error(id, family);
        self.respond_if_open(now, id);
    }

    /// Closes a relay port and releases its lease.
    pub(super) fn close_relay_port(&mut self, relay: RelayId) {
        if self.relays.try_remove(relay).is_some() {
            self.outputs.push_back(Output::CloseRelaySocket { relay });
        }
    }
}
