//! Which relay port an allocation lives on, and which one each of its peers knows it by.
//!
//! Allocations spread over a few homes, the emptiest first. When two of a port's tenants want the same peer, the later one talks to
//! it from another port, which is a home from then on: the more such peers there are, the more ports. A peer that is a relayed
//! address of this server is nobody's alone, because who sends is known there: [`partners`](super::partners).

use super::allocation::{Allocation, Family, MAX_CLAIMS, PeerTransport};
use super::machine::{AllocationId, Output, Relay, by_port};
use super::moment::Moment;
use super::policy::PeerAddr;
use super::ports::PortLease;
use super::relay_port::{Instead, RelayId, RelayPort, Sharing};
use crate::clock::Now;
use rand::Rng;
use std::net::IpAddr;

/// Ports tried when the system has given one to somebody else.
const MAX_REFUSALS: u8 = 16;
/// Ports of one worker and family that peers are talked to from because the worker's other ports were taken for them.
const MAX_SPILL_PORTS: usize = 2048;

/// Why an allocation cannot talk to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoClaim {
    /// There is no relayed address of the peer's family.
    Family,
    /// Too many new peers in too short a time, or too many in all.
    TooMany,
    /// Every port is taken for this peer.
    NoPort,
}

impl Relay {
    /// Gives the allocation a relayed address on a shared port, or on one of its own where ports are not shared.
    /// Returns whether there was room.
    pub(super) fn move_in(&mut self, id: AllocationId, family: Family) -> bool {
        let Some(ip) = self.local_ip(family) else { return false };
        let Some(relay) = self.emptiest(family, ip) else { return false };
        self.settle(id, family, relay);
        true
    }

    /// Gives the allocation the relayed address that was leased for it alone.
    pub(super) fn move_in_alone(&mut self, id: AllocationId, lease: PortLease, instead: Instead) {
        let family = Family::of(lease.address().ip());
        let sharing = match self.allocations[id].cold.peer_transport {
            PeerTransport::Udp => Sharing::Single,
            PeerTransport::Tcp => Sharing::Connections,
        };
        let relay = self.open(lease, sharing, instead);
        self.settle(id, family, relay);
    }

    fn settle(&mut self, id: AllocationId, family: Family, relay: RelayId) {
        let port = &mut self.relays[relay];
        port.tenants += 1;
        port.tenant = Some(id);
        if !port.open {
            port.waiting.push(id);
        }
        let allocation = &mut self.allocations[id];
        allocation.set_home(family, Some(relay));
        for peer in allocation.cold.permissions.of_family(family) {
            self.enter_permit(id, relay, peer);
        }
    }

    /// Takes a tenant and its permissions off a port.
    pub(super) fn move_out(&mut self, id: AllocationId, relay: RelayId, permitted: Vec<PeerAddr>) {
        let Some(port) = self.relays.get_mut(relay) else { return };
        port.tenants -= 1;
        port.waiting.retain(|waiting| *waiting != id);
        for peer in permitted {
            self.strike_permit(id, relay, peer);
        }
        self.close_if_idle(relay);
    }

    pub(super) fn local_ip(&self, family: Family) -> Option<IpAddr> {
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        self.shared.addresses.iter().map(|address| address.local).find(of_family)
    }

    /// Opens one more of the ports that allocations share; from now on it is a home too.
    fn next_shared(&mut self, family: Family) -> Option<RelayId> {
        let ip = self.local_ip(family)?;
        if self.pool[family as usize].len() >= self.shared.limits.shared_ports {
            return None;
        }
        let lease = self.shared.ports.lease(ip, &mut self.rng)?;
        Some(self.open_for(family, lease))
    }

    /// Lets allocations that are yet to come spread over more ports.
    pub(super) fn spread(&mut self) {
        let reached = self.pool.iter().any(|pool| pool.len() >= self.spread);
        if reached && self.spread < self.shared.limits.shared_ports {
            self.spread *= 2;
        }
    }

    fn emptiest(&mut self, family: Family, ip: IpAddr) -> Option<RelayId> {
        let share = self.shared.limits.shared_ports.min(self.spread);
        let tenants = |relay: &RelayId| self.relays[*relay].tenants;
        let fewest = self.pool[family as usize].iter().map(tenants).min();
        if fewest != Some(0)
            && (share == 0 || self.pool[family as usize].len() < share)
            && let Some(lease) = self.shared.ports.lease(ip, &mut self.rng)
        {
            return Some(self.open_for(family, lease));
        }
        let least: Vec<_> = self.pool[family as usize]
            .iter()
            .copied()
            .filter(|relay| Some(tenants(relay)) == fewest)
            .collect();
        (share > 0 && !least.is_empty()).then(|| least[self.rng.random_range(0..least.len())])
    }

    /// Opens a port for the pool, or for one allocation where ports are not shared.
    fn open_for(&mut self, family: Family, lease: PortLease) -> RelayId {
        if self.shared.limits.shared_ports == 0 {
            return self.open(lease, Sharing::Single, Instead::Any);
        }
        let relay = self.open(lease, Sharing::Shared, Instead::Any);
        self.pool[family as usize].push(relay);
        relay
    }

    fn open(&mut self, lease: PortLease, sharing: Sharing, instead: Instead) -> RelayId {
        let address = lease.address();
        let relay = self.relays.insert(RelayPort::new(lease, sharing, instead));
        self.enter_relay(address, relay);
        let tcp = sharing == Sharing::Connections;
        self.outputs.push_back(Output::OpenRelay { relay, address, tcp });
        relay
    }

    /// Takes the system's answer to [`Output::OpenRelay`].
    pub fn handle_relay_opened(&mut self, now: Now, relay: RelayId, opened: bool) {
        let Some(port) = self.relays.get_mut(relay) else { return };
        if opened {
            port.open = true;
            if port.sharing != Sharing::Connections {
                port.lease.settle(self.shared.worker);
            }
            for id in std::mem::take(&mut port.waiting) {
                self.admit_if_ready(now, id);
            }
            return;
        }
        port.refused += 1;
        let address = port.address();
        let ports = &self.shared.ports;
        let replacement = match port.instead {
            _ if port.refused >= MAX_REFUSALS => None,
            Instead::Any => ports.lease(address.ip(), &mut self.rng),
            Instead::Even => ports.lease_even(address.ip(), &mut self.rng),
            Instead::Spill => ports.lease_spill(address.ip(), &mut self.rng),
            Instead::None => None,
        };
        match replacement {
            Some(lease) => {
                port.lease = lease;
                let (before, address) = (address, port.address());
                let tcp = port.sharing == Sharing::Connections;
                self.strike_relay(before, relay);
                self.enter_relay(address, relay);
                self.outputs.push_back(Output::OpenRelay { relay, address, tcp });
            }
            None => self.give_up(now, relay),
        }
    }

    /// Takes a port that cannot be opened away from everybody who counted on it.
    fn give_up(&mut self, now: Now, relay: RelayId) {
        let Some(port) = self.relays.get_mut(relay) else { return };
        let family = Family::of(port.address().ip());
        let from_here = |(id, allocation): (AllocationId, &Allocation)| {
            let here = allocation.peers().filter(|(_, from)| *from == relay);
            here.map(|(peer, _)| (id, peer)).collect::<Vec<_>>()
        };
        for (id, peer) in self.allocations.iter().flat_map(from_here).collect::<Vec<_>>() {
            self.strike_claim(id, relay, peer);
        }
        let lives_here = |(id, allocation): (AllocationId, &Allocation)| {
            (allocation.home(family) == Some(relay)).then_some(id)
        };
        let tenants: Vec<_> = self.allocations.iter().filter_map(lives_here).collect();
        for id in tenants {
            if self.allocations[id].homes().count() == 1 {
                self.refuse_for_want_of_ports(id);
            } else {
                self.drop_family(id, family);
                self.note_missing(id, family);
                self.admit_if_ready(now, id);
            }
        }
        self.close_if_idle(relay);
    }

    /// Closes a port nobody needs; its number returns with the lease.
    pub(super) fn close_if_idle(&mut self, relay: RelayId) {
        let Some(port) = self.relays.get(relay).filter(|port| port.is_idle()) else { return };
        self.strike_relay(port.address(), relay);
        for pool in self.pool.iter_mut().chain(&mut self.spill) {
            pool.retain(|shared| *shared != relay);
        }
        self.relays.remove(relay);
        self.outputs.push_back(Output::CloseRelay { relay });
    }

    /// Gives a claim back.
    pub(super) fn release(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        self.strike_claim(id, relay, peer);
        self.close_if_idle(relay);
    }

    /// Returns the port that `peer` knows the allocation by, claiming the peer if it is new.
    pub(super) fn claim(
        &mut self,
        now: Moment,
        id: AllocationId,
        peer: PeerAddr,
    ) -> Result<RelayId, NoClaim> {
        if let Some(relay) = self.allocations[id].relay_to(peer) {
            return Ok(relay);
        }
        let family = Family::of(peer.ip());
        // A family that was added and whose port could not be had then is tried again.
        if !self.reaches(id, family) {
            return Err(NoClaim::Family);
        }
        let home = self.allocations[id].home(family).ok_or(NoClaim::Family)?;
        if !self.allocations[id].cold.new_peers.take(self.shared.limits.new_peers, now, 1) {
            self.counters.over_new_peers += 1;
            return Err(NoClaim::TooMany);
        }
        if !self.has_room_for_a_peer(now, id) {
            return Err(NoClaim::TooMany);
        }
        if self.is_within(peer) {
            self.enter_claim(id, home, peer);
            self.introduce(id, home, peer);
            return Ok(home);
        }
        let relay = match self.is_free(now, home, peer) {
            true => home,
            false => self.away_from_home(now, family, peer).ok_or(NoClaim::NoPort)?,
        };
        self.counters.spilled += u64::from(relay != home);
        self.enter_claim(id, relay, peer);
        Ok(relay)
    }

    /// Returns another port where `peer` is nobody's.
    fn away_from_home(&mut self, now: Moment, family: Family, peer: PeerAddr) -> Option<RelayId> {
        let shared = self.pool[family as usize].iter().chain(&self.spill[family as usize]);
        let shared: Vec<_> = shared.copied().collect();
        let free = shared.into_iter().find(|relay| self.is_free(now, *relay, peer));
        free.or_else(|| self.next_shared(family)).or_else(|| self.spill_port(family))
    }

    /// Returns whether `peer` can be claimed on a port: nobody else talks to it from there, and it is not that port itself.
    fn is_free(&mut self, now: Moment, relay: RelayId, peer: PeerAddr) -> bool {
        let port = &self.relays[relay];
        if port.address() == peer.socket_addr() {
            return false;
        }
        let Some(other) = self.claimant(relay, peer) else { return true };
        let given_up = self.allocations.get(other).is_none_or(|holder| !holder.uses(now, peer));
        if given_up {
            self.strike_claim(other, relay, peer);
        }
        given_up
    }

    /// Opens one more port to talk to a peer from. Clients are not told of it, so that it may lie outside of the ports that a
    /// firewall lets in: it is always the client who speaks first.
    fn spill_port(&mut self, family: Family) -> Option<RelayId> {
        let ip = self.local_ip(family)?;
        if self.spill[family as usize].len() >= MAX_SPILL_PORTS {
            return None;
        }
        let lease = self.shared.ports.lease_spill(ip, &mut self.rng)?;
        let relay = self.open(lease, Sharing::Shared, Instead::Spill);
        self.spill[family as usize].push(relay);
        Some(relay)
    }

    /// Forgets peers that the allocation can no longer talk to, if it has too many.
    fn has_room_for_a_peer(&mut self, now: Moment, id: AllocationId) -> bool {
        let allocation = &self.allocations[id];
        if allocation.peer_count() < MAX_CLAIMS {
            return true;
        }
        let idle = by_port(allocation.peers().filter(|(peer, _)| !allocation.uses(now, *peer)));
        for (peer, relay) in idle {
            self.release(id, relay, peer);
        }
        self.allocations[id].peer_count() < MAX_CLAIMS
    }
}
