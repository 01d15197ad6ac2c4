//! Relay ports: each is one allocation's, from its lease until its socket is closed
//! ([RFC 8656 section 7.2](https://www.rfc-editor.org/rfc/rfc8656#section-7.2)).

use super::allocation::{Family, PeerTransport};
use super::machine::{AllocationId, Output, Relay};
use super::port_owners::PortOwner;
use super::ports::PortLease;
use crate::clock::Now;
use crate::limits::Limit;
use rand::seq::SliceRandom;
use std::net::{IpAddr, SocketAddr};

/// Names one relay socket of a worker for as long as it is open.
pub type RelayId = usize;

/// Ports tried when the system has given one to somebody else.
const MAX_REFUSALS: u8 = 16;

/// Why the system has not opened a relay socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelaySocketError {
    /// Another program has the port: another port may do.
    #[error("the port is in use")]
    PortInUse,
    /// The system has no socket to give, whatever the port: no descriptor, no memory.
    #[error("the system has no socket to give")]
    NoSocket,
}

/// Which number serves as well when the system has given this one to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortRequest {
    Any,
    Even,
    /// An even one and the next, which waits for its own Allocate.
    Pair,
    Exact,
}

/// A relay socket, open or about to be.
#[derive(Debug)]
pub(super) struct RelayPort {
    lease: PortLease,
    pub(super) owner: AllocationId,
    transport: PeerTransport,
    replacement: PortRequest,
    pub(super) open: bool,
    /// Ports that the system refused for this relay so far.
    refused: u8,
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
    /// Lists the addresses of `family` that relay sockets may be bound to.
    pub(super) fn local_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let of_family = move |ip: &IpAddr| Family::of(*ip) == family;
        self.shared.addresses.iter().map(|address| address.local).filter(of_family)
    }

    /// Leases a port of `family`, with the next one where a pair is wanted; counts when there is none.
    pub(super) fn lease(
        &mut self,
        family: Family,
        wanted: PortRequest,
    ) -> Option<(PortLease, Option<PortLease>)> {
        let mut ips: Vec<_> = self.local_ips(family).collect();
        ips.shuffle(&mut self.rng);
        let ports = &self.shared.ports;
        let rng = &mut self.rng;
        let lease = ips.into_iter().find_map(|ip| match wanted {
            PortRequest::Any => ports.lease(ip, rng).map(|lease| (lease, None)),
            PortRequest::Even => ports.lease_even(ip, rng).map(|lease| (lease, None)),
            PortRequest::Pair => ports.lease_pair(ip, rng).map(|(even, odd)| (even, Some(odd))),
            PortRequest::Exact => None,
        });
        if lease.is_none() && wanted != PortRequest::Exact {
            self.counters.ports_exhausted += 1;
            Limit::RelayPorts.reached(self.shared.ports.count());
        }
        lease
    }

    /// Gives the allocation a relayed address of `family`; returns whether a port was free.
    pub(super) fn add_relayed_address(&mut self, id: AllocationId, family: Family) -> bool {
        let lease = self.lease(family, PortRequest::Any);
        lease.map(|(lease, _)| self.open_relay_port(id, lease, PortRequest::Any)).is_some()
    }

    /// Gives the allocation the relayed address that was leased for it.
    pub(super) fn open_relay_port(&mut self, id: AllocationId, lease: PortLease, replacement: PortRequest) {
        let address = lease.address();
        let transport = self.allocations[id].control.peer_transport;
        let port = RelayPort { lease, owner: id, transport, replacement, open: false, refused: 0 };
        let relay = self.relays.insert(port);
        self.allocations[id].set_relay_port(Family::of(address.ip()), Some(relay));
        self.ask_for_socket(relay, address, transport);
    }

    fn ask_for_socket(&mut self, relay: RelayId, address: SocketAddr, transport: PeerTransport) {
        let tcp = transport == PeerTransport::Tcp;
        self.outputs.push_back(Output::OpenRelaySocket { relay, address, tcp });
    }

    /// Takes the system's answer to [`Output::OpenRelaySocket`].
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
                self.answer_if_ready(now, owner);
            }
            Err(RelaySocketError::PortInUse) => self.replace_port(now, relay),
            Err(RelaySocketError::NoSocket) => {
                self.counters.sockets_refused += 1;
                self.give_up(now, relay);
            }
        }
    }

    /// Tries another port where the system has given one to somebody else.
    fn replace_port(&mut self, now: Now, relay: RelayId) {
        let port = &mut self.relays[relay];
        port.refused += 1;
        let (family, replacement) = (Family::of(port.address().ip()), port.replacement);
        let transport = port.transport;
        let lease = (port.refused < MAX_REFUSALS).then(|| self.lease(family, replacement)).flatten();
        let Some((lease, next)) = lease else { return self.give_up(now, relay) };
        let address = lease.address();
        let port = &mut self.relays[relay];
        port.lease = lease;
        if let Some(pending) = &mut self.allocations[port.owner].control.pending
            && let (Some((_, reserved)), Some(next)) = (&mut pending.reserved, next)
        {
            reserved.lease = next;
        }
        self.ask_for_socket(relay, address, transport);
    }

    /// Takes a port that cannot be opened away from its allocation.
    fn give_up(&mut self, now: Now, relay: RelayId) {
        let Some(port) = self.relays.get(relay) else { return };
        let (id, family) = (port.owner, Family::of(port.address().ip()));
        if self.allocations[id].relay_ports().count() == 1 {
            return self.fail_without_ports(id);
        }
        self.drop_family(id, family);
        self.set_family_error(id, family);
        self.answer_if_ready(now, id);
    }

    /// Closes a port; its number returns with the lease.
    pub(super) fn close_relay_port(&mut self, relay: RelayId) {
        if self.relays.try_remove(relay).is_some() {
            self.outputs.push_back(Output::CloseRelaySocket { relay });
        }
    }
}
