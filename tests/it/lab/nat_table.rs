//! The logic of a NAT without I/O: packets and the time go in, translated packets come out. Terms as in RFC 4787.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::packet::{End, Header, Protocol, parse, parse_quoted, rewrite, rewrite_quoted};

/// How a NAT chooses the outer port of UDP. TCP is always mapped endpoint-independently, and keeps its port where that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Nothing is translated: a firewall.
    Untranslated,
    /// A random port for each inner endpoint.
    EndpointIndependent,
    /// A port for each destination, the one after the last.
    Sequential,
    /// A random port for each destination, in a block of so many ports.
    Block(u16),
    /// A random port for each destination.
    Random,
}

/// Which packets from outside pass to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Any,
    /// Those from addresses that the mapping was used for.
    Address,
    /// Those from addresses and ports that the mapping was used for.
    AddressAndPort,
}

/// What passes at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    UdpAndTcp,
    Tcp,
    /// Only TCP that goes to port 443.
    Port443,
}

/// What distinguishes one NAT from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NatBehavior {
    pub(crate) mapping: Mapping,
    pub(crate) filter: Filter,
    pub(crate) passing: Passing,
    /// Packets from inside to an outer address of the NAT itself come back inside.
    pub(crate) hairpin: bool,
    /// How long a mapping of UDP lives without packets.
    pub(crate) idle: Duration,
    /// How long a mapping of UDP lives with packets.
    pub(crate) lifetime: Option<Duration>,
}

impl NatBehavior {
    const fn new(mapping: Mapping, filter: Filter) -> Self {
        let idle = Duration::from_secs(120);
        Self { mapping, filter, passing: Passing::UdpAndTcp, hairpin: false, idle, lifetime: None }
    }

    /// No NAT, but only answers come in.
    pub(crate) const FIREWALL: Self = Self::new(Mapping::Untranslated, Filter::AddressAndPort);
    pub(crate) const FULL_CONE: Self = Self::new(Mapping::EndpointIndependent, Filter::Any);
    pub(crate) const ADDRESS_RESTRICTED: Self = Self::new(Mapping::EndpointIndependent, Filter::Address);
    pub(crate) const PORT_RESTRICTED: Self = Self::new(Mapping::EndpointIndependent, Filter::AddressAndPort);
    /// Symmetric with predictable ports.
    pub(crate) const SEQUENTIAL: Self = Self::new(Mapping::Sequential, Filter::AddressAndPort);
    /// Symmetric with random ports of a block of 512.
    pub(crate) const BLOCK: Self = Self::new(Mapping::Block(512), Filter::AddressAndPort);
    /// Symmetric with random ports.
    pub(crate) const RANDOM: Self = Self::new(Mapping::Random, Filter::AddressAndPort);
    pub(crate) const UDP_BLOCKED: Self = Self { passing: Passing::Tcp, ..Self::PORT_RESTRICTED };
    pub(crate) const PORT_443: Self = Self { passing: Passing::Port443, ..Self::PORT_RESTRICTED };
}

/// The first port of a mapping; lower ones are for services.
const FIRST_PORT: u16 = 1024;
/// How long a mapping of TCP lives without packets.
const TCP_IDLE: Duration = Duration::from_secs(3600);
/// With fewer mappings no expired one is looked for.
const FEW: usize = 256;
const TRIES: usize = 100_000;

/// A mapping's inner endpoint, and its destination where that is part of it.
type Inside = (Protocol, SocketAddr, Option<SocketAddr>);

#[derive(Debug)]
struct Entry {
    inside: Inside,
    outer_port: u16,
    created: Instant,
    used: Instant,
    /// The last packet to or from each destination.
    flows: HashMap<SocketAddr, Instant>,
}

/// Where a packet goes that the NAT lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// One NAT with its mappings.
#[derive(Debug)]
pub(crate) struct NatTable {
    behavior: NatBehavior,
    external: Ipv4Addr,
    rng: ChaCha8Rng,
    next_port: u16,
    block: u16,
    next_id: u64,
    entries: HashMap<u64, Entry>,
    by_inside: HashMap<Inside, u64>,
    by_outer_port: HashMap<(Protocol, SocketAddr), u64>,
}

impl NatTable {
    /// A NAT with this outer address and no mappings.
    pub(crate) fn new(behavior: NatBehavior, external: Ipv4Addr, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let next_port = rng.random_range(20_000..40_000);
        let block = match behavior.mapping {
            Mapping::Block(size) => FIRST_PORT + size * rng.random_range(0..(u16::MAX - FIRST_PORT) / size),
            _ => 0,
        };
        let (entries, by_inside, by_outer_port) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { behavior, external, rng, next_port, block, next_id: 0, entries, by_inside, by_outer_port }
    }

    /// Its outer address.
    pub(crate) fn external(&self) -> Ipv4Addr {
        self.external
    }

    /// Behaves otherwise from now on; mappings stay.
    pub(crate) fn set_behavior(&mut self, behavior: NatBehavior) {
        self.behavior = behavior;
    }

    /// How it behaves.
    pub(crate) fn behavior(&self) -> NatBehavior {
        self.behavior
    }

    /// Forgets all mappings, as a NAT that restarts.
    pub(crate) fn reboot(&mut self) {
        self.entries.clear();
        self.by_inside.clear();
        self.by_outer_port.clear();
        // What is mapped anew gets other ports.
        self.next_port = self.rng.random_range(20_000..40_000);
    }

    /// Takes a packet from inside; returns where it goes with its new addresses, or `None` if it is dropped.
    pub(crate) fn handle_outbound(&mut self, packet: &mut [u8], now: Instant) -> Option<Way> {
        let header = parse(packet)?;
        if header.protocol == Protocol::IcmpError {
            return self.handle_outbound_error(packet, &header);
        }
        if !self.passes(&header, Way::Out) {
            return None;
        }
        let mapped = self.map(&header, now)?;
        let to = header.destination.ip();
        let is_hairpin = to == IpAddr::V4(self.external) && self.translates(to);
        if !is_hairpin {
            self.translate(packet, &header, End::Source, mapped);
            return Some(Way::Out);
        }
        if !self.behavior.hairpin {
            return None;
        }
        let inner = self.accept(header.protocol, header.destination, mapped, now)?;
        self.translate(packet, &header, End::Source, mapped);
        self.translate(packet, &header, End::Destination, inner);
        Some(Way::In)
    }

    /// Takes a packet from outside; returns whether it passes, with its new addresses.
    pub(crate) fn handle_inbound(&mut self, packet: &mut [u8], now: Instant) -> Option<Way> {
        let header = parse(packet)?;
        if header.protocol == Protocol::IcmpError {
            return self.handle_inbound_error(packet, &header);
        }
        if !self.passes(&header, Way::In) {
            return None;
        }
        let inner = self.accept(header.protocol, header.destination, header.source, now)?;
        self.translate(packet, &header, End::Destination, inner);
        Some(Way::In)
    }

    fn passes(&self, header: &Header, way: Way) -> bool {
        match (self.behavior.passing, header.protocol) {
            (_, Protocol::IcmpError | Protocol::Other) => false,
            (Passing::UdpAndTcp, _) => true,
            (Passing::Tcp, protocol) => protocol == Protocol::Tcp,
            (Passing::Port443, protocol) => {
                let service = if way == Way::Out { header.destination } else { header.source };
                protocol == Protocol::Tcp && service.port() == 443
            }
        }
    }

    /// Whether it translates addresses of this family; IPv6 is only filtered.
    pub(crate) fn translates(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() && self.behavior.mapping != Mapping::Untranslated
    }

    fn translate(&self, packet: &mut [u8], header: &Header, end: End, address: SocketAddr) {
        if let (SocketAddr::V4(address), true) = (address, self.translates(header.source.ip())) {
            rewrite(packet, header, end, address);
        }
    }

    /// Finds or makes the mapping of a packet from inside; returns its outer address.
    fn map(&mut self, header: &Header, now: Instant) -> Option<SocketAddr> {
        let is_translated = self.translates(header.source.ip());
        let per_destination = is_translated
            && header.protocol == Protocol::Udp
            && matches!(self.behavior.mapping, Mapping::Sequential | Mapping::Block(_) | Mapping::Random);
        let inside: Inside = (header.protocol, header.source, per_destination.then_some(header.destination));
        let known = self.by_inside.get(&inside).copied().filter(|id| self.is_alive(*id, now));
        let id = match known {
            Some(id) => id,
            None => self.insert(inside, now)?,
        };
        let external = self.external;
        let entry = self.entries.get_mut(&id)?;
        entry.used = now;
        entry.flows.insert(header.destination, now);
        let outer = SocketAddr::new(external.into(), entry.outer_port);
        Some(if is_translated { outer } else { header.source })
    }

    /// Finds the mapping at `outer` that lets a packet from `remote` pass; returns its inner address.
    fn accept(
        &mut self,
        protocol: Protocol,
        outer: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        let id = *self.by_outer_port.get(&(protocol, outer))?;
        if !self.is_alive(id, now) {
            return None;
        }
        let idle = self.idle(protocol);
        let filter = self.behavior.filter;
        let entry = self.entries.get_mut(&id)?;
        let is_fresh = |used: &Instant| now.saturating_duration_since(*used) < idle;
        let passes = match filter {
            Filter::Any => true,
            Filter::Address => entry.flows.iter().any(|(to, used)| to.ip() == remote.ip() && is_fresh(used)),
            Filter::AddressAndPort => entry.flows.get(&remote).is_some_and(is_fresh),
        };
        if !passes {
            return None;
        }
        entry.used = now;
        if let Some(used) = entry.flows.get_mut(&remote) {
            *used = now;
        }
        Some(entry.inside.1)
    }

    /// An error of an inner host about a packet that came in.
    fn handle_outbound_error(&mut self, packet: &mut [u8], header: &Header) -> Option<Way> {
        let quoted = parse_quoted(packet, header)?;
        if !self.translates(quoted.source.ip()) {
            return Some(Way::Out);
        }
        let remote = quoted.source;
        let inside = [None, Some(remote)].map(|to| (quoted.protocol, quoted.destination, to));
        let id = inside.iter().find_map(|inside| self.by_inside.get(inside))?;
        let outer = SocketAddrV4::new(self.external, self.entries.get(id)?.outer_port);
        rewrite_quoted(packet, header, (End::Destination, outer), (End::Source, self.external));
        Some(Way::Out)
    }

    /// An error from outside about a packet that went out.
    fn handle_inbound_error(&mut self, packet: &mut [u8], header: &Header) -> Option<Way> {
        let quoted = parse_quoted(packet, header)?;
        let id = self.by_outer_port.get(&(quoted.protocol, quoted.source))?;
        let entry = self.entries.get(id)?;
        if !entry.flows.contains_key(&quoted.destination) {
            return None;
        }
        if let (SocketAddr::V4(inner), true) = (entry.inside.1, self.translates(quoted.source.ip())) {
            rewrite_quoted(packet, header, (End::Source, inner), (End::Destination, *inner.ip()));
        }
        Some(Way::In)
    }

    fn idle(&self, protocol: Protocol) -> Duration {
        if protocol == Protocol::Tcp { TCP_IDLE } else { self.behavior.idle }
    }

    fn is_alive(&self, id: u64, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let age = |since: Instant| now.saturating_duration_since(since);
        let is_udp = entry.inside.0 == Protocol::Udp;
        let is_too_old = is_udp && self.behavior.lifetime.is_some_and(|most| age(entry.created) >= most);
        !is_too_old && age(entry.used) < self.idle(entry.inside.0)
    }

    fn insert(&mut self, inside: Inside, now: Instant) -> Option<u64> {
        if self.entries.len() > FEW {
            let dead: Vec<u64> = self.entries.keys().copied().filter(|id| !self.is_alive(*id, now)).collect();
            dead.into_iter().for_each(|id| self.remove(id));
        }
        if let Some(expired) = self.by_inside.get(&inside).copied() {
            self.remove(expired);
        }
        let outer_port = self.choose_port(inside, now)?;
        let outer_ip = if self.translates(inside.1.ip()) { self.external.into() } else { inside.1.ip() };
        let id = self.next_id;
        self.next_id += 1;
        self.by_inside.insert(inside, id);
        self.by_outer_port.insert((inside.0, SocketAddr::new(outer_ip, outer_port)), id);
        self.entries.insert(id, Entry { inside, outer_port, created: now, used: now, flows: HashMap::new() });
        Some(id)
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.by_inside.remove(&entry.inside);
        self.by_outer_port.retain(|_, held| *held != id);
    }

    fn choose_port(&mut self, (protocol, source, _): Inside, now: Instant) -> Option<u16> {
        if !self.translates(source.ip()) {
            return Some(source.port());
        }
        let mut first = (protocol == Protocol::Tcp).then_some(source.port());
        for _ in 0..TRIES {
            let port = first.take().unwrap_or_else(|| match self.behavior.mapping {
                Mapping::Sequential if protocol == Protocol::Udp => {
                    self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
                    self.next_port
                }
                Mapping::Block(size) if protocol == Protocol::Udp => {
                    self.block + self.rng.random_range(0..size)
                }
                _ => self.rng.random_range(FIRST_PORT..=u16::MAX),
            });
            let outer = (protocol, SocketAddr::new(self.external.into(), port));
            let holder = self.by_outer_port.get(&outer).copied();
            match holder.filter(|id| self.is_alive(*id, now)) {
                Some(_) => continue,
                None => holder.into_iter().for_each(|id| self.remove(id)),
            }
            return Some(port);
        }
        None
    }
}

#[cfg(test)]
#[path = "nat_table_tests.rs"]
mod tests;
