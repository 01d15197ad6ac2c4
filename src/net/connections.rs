//! Which stream connections there are: how many all clients, one client and one network hold, how much memory those hold that have
//! shown no credentials, and which of them goes when there is no more room. Pure.

use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Prefix lengths of the IPv6 networks whose connections are counted, and how many times `per_address` each may hold. An IPv4 address is
/// counted by the first.
const NETWORKS: [(u8, u32); 3] = [(64, 1), (56, 2), (48, 4)];

/// The part of the memory of all unproven ones that long messages may hold, and from when a message is long.
const LONG_PART: usize = 16;
const SHORT: usize = 12 * 1024;

/// What is to be done to end a connection.
type Hook = Box<dyn FnOnce() + Send>;

/// The limits on connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub total: usize,
    /// Descriptors of connections in all; the rest of the process's is for relay sockets and itself.
    pub descriptors: usize,
    /// Connections of one address, of IPv6 of one /64; a /56 may hold twice, a /48 four times as many.
    pub per_address: u32,
    /// Bytes that all unproven ones hold.
    pub bytes: usize,
}

/// What [`Connections`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// Connections that hold a place.
    pub open: usize,
    /// Connections whose clients have shown no credentials.
    pub unauthenticated: usize,
    /// Bytes that those hold.
    pub unauthenticated_bytes: usize,
    /// Descriptors of all connections.
    pub descriptors: usize,
    /// Connections that were ended to make room and are not closed yet.
    pub evicted: usize,
    /// Connections that were closed since the start.
    pub closed: u64,
}

impl ConnectionCounters {
    /// Writes them in Prometheus' text format.
    #[must_use]
    pub fn to_prometheus(self) -> String {
        let mut text = String::new();
        for (name, kind, value) in [
            ("open", "gauge", self.open as u64),
            ("unauthenticated", "gauge", self.unauthenticated as u64),
            ("unauthenticated_bytes", "gauge", self.unauthenticated_bytes as u64),
            ("descriptors", "gauge", self.descriptors as u64),
            ("evicted", "gauge", self.evicted as u64),
            ("closed_total", "counter", self.closed),
        ] {
            // Writing to a String does not fail.
            let _ =
                writeln!(text, "# TYPE ginnel_connections_{name} {kind}\nginnel_connections_{name} {value}");
        }
        text
    }
}

/// Counts the open connections. An address without any is not kept.
#[derive(Debug)]
pub struct Connections {
    table: Mutex<Table>,
    limits: ConnectionLimits,
    /// By the lengths of [`NETWORKS`].
    quotas: [Arc<Quota<NetworkPrefix>>; NETWORKS.len()],
    unlimited_from: Vec<NetworkPrefix>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// Connections that hold a place.
    places: usize,
    /// Descriptors of all connections that are open.
    descriptors: usize,
    /// The connections that have shown no credentials.
    unproven: HashMap<u64, Option<Hook>>,
    /// Those among them that hold a place, and those that hold memory.
    with_place: BTreeSet<u64>,
    with_bytes: BTreeMap<u64, usize>,
    bytes: usize,
    /// Those among them that hold more than [`SHORT`] each, and what they hold.
    with_long: BTreeSet<u64>,
    long_bytes: usize,
    /// Connections that were ended and are not gone yet.
    leaving: HashSet<u64>,
    /// Connections that are gone.
    gone: u64,
}

/// One connection's place among all; clones share it, and it is given back with the last of them.
#[derive(Debug, Clone)]
pub struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    connections: Arc<Connections>,
    number: u64,
    /// What it is counted for; none for an address without a limit.
    permits: Mutex<Vec<Permit<NetworkPrefix>>>,
    has_place: AtomicBool,
    descriptors: AtomicUsize,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (places, unproven, bytes) = (self.places, self.unproven.len(), self.bytes);
        f.debug_struct("Table")
            .field("places", &places)
            .field("unproven", &unproven)
            .field("bytes", &bytes)
            .finish()
    }
}

impl Table {
    /// Ends a connection that has shown no credentials; returns what is to be done for it.
    fn evict(&mut self, number: u64) -> Option<Hook> {
        let hook = self.unproven.remove(&number)?;
        self.forget_bytes(number);
        self.places -= usize::from(self.with_place.remove(&number));
        self.leaving.insert(number);
        hook
    }

    fn forget_bytes(&mut self, number: u64) {
        let bytes = self.with_bytes.remove(&number).unwrap_or_default();
        self.bytes -= bytes;
        if self.with_long.remove(&number) {
            self.long_bytes -= bytes;
        }
    }
}

impl Connections {
    /// Has no limits for the addresses in `unlimited_from` but those of all together.
    #[must_use]
    pub fn new(limits: ConnectionLimits, unlimited_from: &[NetworkPrefix]) -> Arc<Self> {
        let quota = |(_, times)| Quota::new(usize::MAX, limits.per_address.saturating_mul(times) as usize);
        let unlimited_from = unlimited_from.to_vec();
        Arc::new(Self { table: Mutex::default(), limits, quotas: NETWORKS.map(quota), unlimited_from })
    }

    /// Takes a place for a new connection; where all are taken, the oldest connection that has shown no credentials is ended for it.
    /// `None` where all have shown some.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> Option<Place> {
        let mut hook = None;
        let mut table = self.table();
        let ConnectionLimits { total, descriptors, .. } = self.limits;
        let lacks_descriptors = table.descriptors >= descriptors;
        if lacks_descriptors || table.places >= total {
            match lacks_descriptors {
                true => Limit::Descriptors.reached(descriptors),
                false => Limit::TcpConnections.reached(total),
            }
            let oldest = *table.with_place.first()?;
            hook = table.evict(oldest);
        }
        let number = table.next;
        table.next += 1;
        table.places += 1;
        table.descriptors += 1;
        table.with_place.insert(number);
        table.unproven.insert(number, None);
        drop(table);
        // It may give back another place, or wake a thread.
        hook.into_iter().for_each(|hook| hook());
        let (permits, has_place, descriptors) =
            (Mutex::default(), AtomicBool::new(true), AtomicUsize::new(1));
        let connections = Arc::clone(self);
        Some(Place(Arc::new(Held { connections, number, permits, has_place, descriptors })))
    }

    /// Does the same for a client whose address is known: nobody is ended for one that holds as many as it may.
    #[must_use]
    pub fn open_from(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        // Dropped at once: the connection is counted when its client is known for certain.
        let has_room =
            NetworkPrefix::any_contains(&self.unlimited_from, client) || self.permits(client).is_some();
        if has_room { self.open() } else { None }
    }

    /// Returns what is counted.
    #[must_use]
    pub fn counters(&self) -> ConnectionCounters {
        let table = self.table();
        ConnectionCounters {
            open: table.places,
            unauthenticated: table.unproven.len(),
            unauthenticated_bytes: table.bytes,
            descriptors: table.descriptors,
            evicted: table.leaving.len(),
            closed: table.gone,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more connection for a client and the networks around it; `None` where one of them holds as many as it may.
    fn permits(&self, client: IpAddr) -> Option<Vec<Permit<NetworkPrefix>>> {
        let lens = if client.to_canonical().is_ipv4() { &NETWORKS[..1] } else { &NETWORKS[..] };
        let acquire = |((len, _), quota): (&(u8, u32), &Arc<Quota<_>>)| {
            quota.acquire(NetworkPrefix::new(client, 32, *len), 1)
        };
        let permits: Result<_, Exceeded> = lens.iter().zip(&self.quotas).map(acquire).collect();
        permits.inspect_err(|_| Limit::ConnectionsPerAddress.reached(self.limits.per_address)).ok()
    }
}

impl Place {
    /// Counts the connection for `client`; `false` when that, or a network around it, holds as many as it may.
    #[must_use]
    pub fn count_for(&self, client: IpAddr) -> bool {
        NetworkPrefix::any_contains(&self.0.connections.unlimited_from, client)
            || self.count_forwarded(client)
    }

    /// Does the same for a client that a proxy names: who has no limits has none only on a connection of his own.
    #[must_use]
    pub fn count_forwarded(&self, client: IpAddr) -> bool {
        let permits = self.0.connections.permits(client);
        permits.map(|permits| self.0.count(permits)).is_some()
    }

    /// Counts the connection for nobody any more: what its client has asked for by way of a proxy is answered.
    pub fn uncount(&self) {
        self.0.count(Vec::new());
    }

    /// Says what ends the connection; at once where it has to go already.
    pub fn on_evict(&self, hook: impl FnOnce() + Send + 'static) {
        let mut table = self.0.connections.table();
        if let Some(kept) = table.unproven.get_mut(&self.0.number) {
            *kept = Some(Box::new(hook));
        } else if table.leaving.contains(&self.0.number) {
            drop(table);
            hook();
        }
    }

    /// Notes that the client has shown credentials, or is looked after by others: it is not ended for want of places or memory.
    pub fn prove(&self) {
        let mut table = self.0.connections.table();
        table.with_place.remove(&self.0.number);
        table.forget_bytes(self.0.number);
        let kept = table.unproven.remove(&self.0.number);
        drop(table);
        drop(kept);
    }

    /// Gives the place back, but not the memory: the connection is counted elsewhere from now on.
    pub fn leave(&self) {
        let mut table = self.0.connections.table();
        self.0.give_back(&mut table);
    }

    /// Has the connection hold `bytes` of memory; `false` when all unproven ones together hold as much as they may. The oldest that hold
    /// some are ended first.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> bool {
        self.hold_as(bytes, false)
    }

    /// The same for a message that has begun: long ones have a sixteenth of the memory for themselves.
    #[must_use]
    pub fn hold_message(&self, bytes: usize) -> bool {
        self.hold_as(bytes, bytes > SHORT)
    }

    fn hold_as(&self, bytes: usize, is_long: bool) -> bool {
        let (limit, number) = (self.0.connections.limits.bytes, self.0.number);
        let mut hooks = Vec::new();
        let mut table = self.0.connections.table();
        if !table.unproven.contains_key(&number) {
            // It is proven; or it has to go, and its memory with it.
            return !table.leaving.contains(&number);
        }
        table.forget_bytes(number);
        let fits = loop {
            let lacks_long = is_long && table.long_bytes + bytes > limit / LONG_PART;
            if !lacks_long && table.bytes + bytes <= limit {
                break true;
            }
            Limit::StrangersMemory.reached(if lacks_long { limit / LONG_PART } else { limit });
            let oldest = match lacks_long {
                true => table.with_long.first().copied(),
                false => table.with_bytes.keys().next().copied(),
            };
            let Some(oldest) = oldest else { break false };
            hooks.extend(table.evict(oldest));
        };
        if fits && bytes > 0 {
            table.bytes += bytes;
            table.with_bytes.insert(number, bytes);
            if is_long {
                table.long_bytes += bytes;
                table.with_long.insert(number);
            }
        }
        drop(table);
        hooks.into_iter().for_each(|hook| hook());
        fits
    }

    /// Has the connection take `count` descriptors more; `false` when there are none.
    #[must_use]
    pub fn take_descriptors(&self, count: usize) -> bool {
        let limit = self.0.connections.limits.descriptors;
        let mut table = self.0.connections.table();
        let fits = table.descriptors + count <= limit;
        if fits {
            table.descriptors += count;
            self.0.descriptors.fetch_add(count, Ordering::Relaxed);
        } else {
            Limit::Descriptors.reached(limit);
        }
        fits
    }

    /// Returns its number, which no other connection has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }
}

impl Held {
    fn give_back(&self, table: &mut Table) {
        if !self.has_place.swap(false, Ordering::Relaxed) {
            return;
        }
        table.with_place.remove(&self.number);
        table.places -= usize::from(!table.leaving.contains(&self.number));
        self.count(Vec::new());
    }

    fn count(&self, permits: Vec<Permit<NetworkPrefix>>) {
        *self.permits.lock().unwrap_or_else(PoisonError::into_inner) = permits;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        self.give_back(&mut table);
        table.forget_bytes(self.number);
        table.leaving.remove(&self.number);
        table.gone += 1;
        table.descriptors -= self.descriptors.load(Ordering::Relaxed);
        let kept = table.unproven.remove(&self.number);
        drop(table);
        drop(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    const LIMITS: ConnectionLimits =
        ConnectionLimits { total: 16_000, descriptors: 40_000, per_address: 256, bytes: 1 << 20 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn connections(total: usize, per_address: u32) -> Arc<Connections> {
        Connections::new(ConnectionLimits { total, per_address, ..LIMITS }, &[])
    }

    /// A connection from `client`, if it is let in.
    fn admit(connections: &Arc<Connections>, client: IpAddr) -> Option<Place> {
        connections.open().filter(|place| place.count_for(client))
    }

    /// Counts the connections that are ended.
    fn watch(place: &Place, ended: &Arc<AtomicUsize>) {
        let ended = Arc::clone(ended);
        place.on_evict(move || {
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn assert_empty(connections: &Connections) {
        let table = connections.table();
        assert!(connections.quotas.iter().all(|quota| quota.total() == 0));
        assert!(table.unproven.is_empty() && table.leaving.is_empty());
        assert_eq!((table.places, table.bytes, table.descriptors), (0, 0, 0));
        assert!(table.with_place.is_empty() && table.with_bytes.is_empty() && table.with_long.is_empty());
        assert_eq!(table.long_bytes, 0);
    }

    #[test]
    fn each_address_has_its_own_count_and_gets_it_back() {
        let connections = connections(10, 2);
        let first = admit(&connections, ip("192.0.2.1")).unwrap();
        let _second = admit(&connections, ip("::ffff:192.0.2.1")).unwrap();
        assert!(admit(&connections, ip("192.0.2.1")).is_none());
        assert!(admit(&connections, ip("192.0.2.2")).is_some());
        drop(first);
        assert!(admit(&connections, ip("192.0.2.1")).is_some());
    }

    #[test]
    fn an_ipv6_address_is_its_64() {
        let connections = connections(10, 1);
        let _held = admit(&connections, ip("2001:db8::1")).unwrap();
        assert!(admit(&connections, ip("2001:db8::ffff:1")).is_none());
        assert!(admit(&connections, ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn a_56_holds_twice_and_a_48_four_times_as_many_as_a_64() {
        for (shift, cap) in [(64, 512), (72, 1024), (80, 16_000)] {
            let connections = connections(16_000, 256);
            // 66 networks of that size and 256 connections from each, and from the last ones again.
            let from = |n: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | ((n % 66) << shift)));
            let held: Vec<_> = (0..66 * 256).filter_map(|n| admit(&connections, from(n))).collect();
            assert_eq!(connections.table().places, cap, "networks of {shift} bits");
            assert!(held.len() >= cap);
        }
    }

    #[test]
    fn listed_prefixes_have_no_limit() {
        let connections = Connections::new(
            ConnectionLimits { per_address: 1, ..LIMITS },
            &["127.0.0.0/8".parse().unwrap()],
        );
        let held: Vec<_> = (0..10).map(|_| admit(&connections, ip("127.0.0.1")).unwrap()).collect();
        drop(held);
        assert_empty(&connections);
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_left() {
        let connections = connections(900, 3);
        let places: Vec<_> =
            (0..900_u32).filter_map(|n| admit(&connections, IpAddr::from((n % 300).to_be_bytes()))).collect();
        assert_eq!((places.len(), connections.quotas[0].total()), (900, 900));
        drop(places);
        assert_empty(&connections);
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_unproven_goes() {
        let (connections, ended) = (connections(3, 9), Arc::default());
        let places: Vec<_> = (0..3).map(|_| connections.open().unwrap()).collect();
        places.iter().for_each(|place| watch(place, &ended));
        places[0].prove();
        assert!(places[1].hold(7));
        let counters = connections.counters();
        assert_eq!((counters.open, counters.unauthenticated, counters.unauthenticated_bytes), (3, 2, 7));
        let newest = connections.open().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the second");
        let counters = connections.counters();
        assert_eq!((counters.open, counters.evicted, counters.descriptors), (3, 1, 4));
        newest.prove();
        assert!(connections.open().is_some_and(|place| {
            place.prove();
            true
        }));
        assert_eq!(ended.load(Ordering::Relaxed), 2, "and the third");
        drop(places);
        drop(newest);
        assert_empty(&connections);
        assert_eq!(connections.counters(), ConnectionCounters { closed: 5, ..ConnectionCounters::default() });
    }

    #[test]
    fn for_an_address_that_holds_all_it_may_nobody_goes() {
        let unlimited = ["127.0.0.0/8".parse().unwrap()];
        let limits = ConnectionLimits { total: 2, per_address: 1, ..LIMITS };
        let (connections, ended) = (Connections::new(limits, &unlimited), Arc::default());
        let held = ["192.0.2.1", "192.0.2.2"].map(|from| {
            let place = connections.open_from(ip(from)).filter(|place| place.count_for(ip(from))).unwrap();
            watch(&place, &ended);
            place
        });
        assert!(connections.open_from(ip("192.0.2.1")).is_none());
        assert!(connections.open_from(ip("::ffff:192.0.2.2")).is_none());
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        let others = ["192.0.2.3", "127.0.0.1"].map(|from| connections.open_from(ip(from)).unwrap());
        assert_eq!(ended.load(Ordering::Relaxed), 2);
        drop((held, others));
        assert_empty(&connections);
    }

    #[test]
    fn who_is_proven_is_never_ended() {
        let connections = connections(2, 9);
        let places: Vec<_> = (0..2).map(|_| connections.open().unwrap()).collect();
        places.iter().for_each(Place::prove);
        assert!(connections.open().is_none());
        drop(places);
        assert!(connections.open().is_some());
        assert_empty(&connections);
    }

    #[test]
    fn descriptors_are_left_for_others() {
        let limits = ConnectionLimits { descriptors: 3, ..LIMITS };
        let (connections, ended) = (Connections::new(limits, &[]), Arc::default());
        let first = connections.open().unwrap();
        watch(&first, &ended);
        first.leave();
        let second = connections.open().unwrap();
        watch(&second, &ended);
        assert!(!second.take_descriptors(2) && second.take_descriptors(1));
        let _third = connections.open().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the second: the first is looked after by others");
        drop(second);
        drop(first);
        assert!(connections.table().descriptors == 1);
    }

    #[test]
    fn a_connection_that_has_to_go_is_ended_as_soon_as_it_can_be() {
        let (connections, ended) = (connections(1, 9), Arc::default());
        let first = connections.open().unwrap();
        let _second = connections.open().unwrap();
        watch(&first, &ended);
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        assert!(!first.hold(1), "it gets no more memory");
    }

    #[test]
    fn memory_of_all_is_bounded_and_the_oldest_that_holds_some_goes() {
        let limits = ConnectionLimits { bytes: 100, ..LIMITS };
        let (connections, ended) = (Connections::new(limits, &[]), Arc::default());
        let places: Vec<_> = (0..4).map(|_| connections.open().unwrap()).collect();
        places.iter().for_each(|place| watch(place, &ended));
        assert!(places[1].hold(40) && places[2].hold(40));
        assert!(places[2].hold(60), "what it holds is not counted twice");
        assert!(places[3].hold(10));
        assert_eq!((ended.load(Ordering::Relaxed), connections.table().bytes), (1, 70), "the idle one stays");
        assert!(!places[3].hold(101) && connections.table().bytes <= 100);
        places[3].prove();
        assert!(places[3].hold(1 << 30), "who is proven has limits of another kind");
        drop(places);
        assert_empty(&connections);
    }

    #[test]
    fn long_messages_have_a_part_of_the_memory_for_themselves() {
        let limits = ConnectionLimits { bytes: LONG_PART * 40_000, ..LIMITS };
        let (connections, ended) = (Connections::new(limits, &[]), Arc::default());
        let places: Vec<_> = (0..4).map(|_| connections.open().unwrap()).collect();
        places.iter().for_each(|place| watch(place, &ended));
        assert!(places[0].hold_message(SHORT) && places[1].hold_message(20_000));
        assert!(places[2].hold_message(20_000));
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        assert!(places[3].hold_message(20_000));
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the oldest of the long ones");
        assert!(
            places[2].hold_message(0) && places[3].hold_message(40_000) && !places[3].hold_message(40_001)
        );
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        drop(places);
        assert_empty(&connections);
    }

    #[test]
    fn who_has_left_the_places_still_holds_memory() {
        let (connections, ended) = (connections(1, 1), Arc::default());
        let place = admit(&connections, ip("192.0.2.1")).unwrap();
        watch(&place, &ended);
        place.leave();
        let _other = admit(&connections, ip("192.0.2.1")).unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        assert!(place.hold(10) && !place.hold(LIMITS.bytes + 1));
        drop(place);
        assert_eq!(connections.table().bytes, 0);
    }
}
