//! Limits on stream connections: how many there are in all, of one address and of one network, and how much memory the connections hold
//! whose clients have not authenticated. When a limit is reached, the oldest unauthenticated connection is evicted. Pure.

use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Prefix lengths of the IPv6 networks whose connections are counted, and how many times `per_address` each may hold. An IPv4 address is
/// counted by the first.
const NETWORKS: [(u8, u32); 3] = [(64, 1), (56, 2), (48, 4)];

/// The part of the unauthenticated connections' memory that long messages may hold.
const LONG_PART: usize = 16;
/// The longest message that is not long.
const SHORT: usize = 12 * 1024;

/// Ends a connection.
type EvictionHook = Box<dyn FnOnce() + Send>;

/// The limits on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Connections in total.
    pub total: usize,
    /// Descriptors of all connections; the rest of the process's descriptors is for relay sockets.
    pub descriptors: usize,
    /// Connections of one IPv4 address or IPv6 /64; an IPv6 /56 may hold twice and a /48 four times as many.
    pub per_address: u32,
    /// Bytes that all unauthenticated connections hold.
    pub bytes: usize,
}

/// What [`ConnectionLimiter`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConnectionCounters {
    /// Connections that count towards the total.
    pub open: usize,
    /// Connections whose clients have not authenticated.
    pub unauthenticated: usize,
    /// Bytes that unauthenticated connections hold.
    pub unauthenticated_bytes: usize,
    /// Descriptors of all connections.
    pub descriptors: usize,
    /// Connections that were evicted and are not closed yet.
    pub evicted: usize,
    /// Connections that were closed since the start.
    pub closed: u64,
}

impl ConnectionCounters {
    /// Writes them in Prometheus' text format.
    #[must_use]
    pub(crate) fn to_prometheus(self) -> String {
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

/// Counts and limits the open connections.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    table: Mutex<ConnectionTable>,
    limits: ConnectionLimits,
    /// By the lengths of [`NETWORKS`].
    quotas: [Arc<Quota<NetworkPrefix>>; NETWORKS.len()],
    unlimited_from: Vec<NetworkPrefix>,
}

#[derive(Default)]
struct ConnectionTable {
    next: u64,
    /// Connections that count towards the total.
    open: usize,
    /// Descriptors of all connections that are open.
    descriptors: usize,
    /// Unauthenticated connections, and how to end them.
    unauthenticated: HashMap<u64, Option<EvictionHook>>,
    /// The unauthenticated connections that count towards the total.
    evictable: BTreeSet<u64>,
    /// The unauthenticated connections that hold memory.
    with_bytes: BTreeMap<u64, usize>,
    bytes: usize,
    /// The unauthenticated connections that hold a long message.
    with_long: BTreeSet<u64>,
    long_bytes: usize,
    /// Connections that were evicted and are not closed yet.
    evicted: HashSet<u64>,
    /// Connections that were closed since the start.
    closed: u64,
}

/// The right to one connection; given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPermit(Arc<PermitState>);

#[derive(Debug)]
struct PermitState {
    limiter: Arc<ConnectionLimiter>,
    id: u64,
    /// Of the networks it is counted for; none for an address without a limit.
    permits: Mutex<Vec<Permit<NetworkPrefix>>>,
    is_counted: AtomicBool,
    descriptors: AtomicUsize,
}

impl fmt::Debug for ConnectionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, unauthenticated, bytes) = (self.open, self.unauthenticated.len(), self.bytes);
        f.debug_struct("ConnectionTable")
            .field("open", &open)
            .field("unauthenticated", &unauthenticated)
            .field("bytes", &bytes)
            .finish()
    }
}

impl ConnectionTable {
    /// Evicts an unauthenticated connection; returns how to end it.
    fn evict(&mut self, id: u64) -> Option<EvictionHook> {
        let hook = self.unauthenticated.remove(&id)?;
        self.forget_bytes(id);
        self.open -= usize::from(self.evictable.remove(&id));
        self.evicted.insert(id);
        hook
    }

    fn forget_bytes(&mut self, id: u64) {
        let bytes = self.with_bytes.remove(&id).unwrap_or_default();
        self.bytes -= bytes;
        if self.with_long.remove(&id) {
            self.long_bytes -= bytes;
        }
    }
}

impl ConnectionLimiter {
    /// Creates a limiter. For addresses in `unlimited_from` only the limits of all connections hold.
    #[must_use]
    pub(crate) fn new(limits: ConnectionLimits, unlimited_from: &[NetworkPrefix]) -> Arc<Self> {
        let quota = |(_, times)| Quota::new(usize::MAX, limits.per_address.saturating_mul(times) as usize);
        let unlimited_from = unlimited_from.to_vec();
        Arc::new(Self { table: Mutex::default(), limits, quotas: NETWORKS.map(quota), unlimited_from })
    }

    /// Admits a new connection. At the limit it evicts the oldest unauthenticated connection; `None` where there is none.
    #[must_use]
    pub(crate) fn admit(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let mut hook = None;
        let mut table = self.table();
        let ConnectionLimits { total, descriptors, .. } = self.limits;
        let lacks_descriptors = table.descriptors >= descriptors;
        if lacks_descriptors || table.open >= total {
            match lacks_descriptors {
                true => Limit::Descriptors.reached(descriptors),
                false => Limit::TcpConnections.reached(total),
            }
            let oldest = *table.evictable.first()?;
            hook = table.evict(oldest);
        }
        let id = table.next;
        table.next += 1;
        table.open += 1;
        table.descriptors += 1;
        table.evictable.insert(id);
        table.unauthenticated.insert(id, None);
        drop(table);
        // It may drop another permit, or wake a thread.
        hook.into_iter().for_each(|hook| hook());
        let (permits, is_counted, descriptors) =
            (Mutex::default(), AtomicBool::new(true), AtomicUsize::new(1));
        let limiter = Arc::clone(self);
        Some(ConnectionPermit(Arc::new(PermitState { limiter, id, permits, is_counted, descriptors })))
    }

    /// Admits a new connection of `client`; `None`, and evicts nothing, where the client or its network is at its limit.
    #[must_use]
    pub(crate) fn admit_from(self: &Arc<Self>, client: IpAddr) -> Option<ConnectionPermit> {
        // Only a check: a PROXY header may name another client.
        let has_room =
            NetworkPrefix::any_contains(&self.unlimited_from, client) || self.permits(client).is_some();
        if has_room { self.admit() } else { None }
    }

    /// Returns the counters.
    #[must_use]
    pub(crate) fn counters(&self) -> ConnectionCounters {
        let table = self.table();
        ConnectionCounters {
            open: table.open,
            unauthenticated: table.unauthenticated.len(),
            unauthenticated_bytes: table.bytes,
            descriptors: table.descriptors,
            evicted: table.evicted.len(),
            closed: table.closed,
        }
    }

    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more connection for `client` and the networks around it; `None` where one of them is at its limit.
    fn permits(&self, client: IpAddr) -> Option<Vec<Permit<NetworkPrefix>>> {
        let lens = if client.to_canonical().is_ipv4() { &NETWORKS[..1] } else { &NETWORKS[..] };
        let acquire = |((len, _), quota): (&(u8, u32), &Arc<Quota<_>>)| {
            quota.acquire(NetworkPrefix::new(client, 32, *len), 1)
        };
        let permits: Result<_, Exceeded> = lens.iter().zip(&self.quotas).map(acquire).collect();
        permits.inspect_err(|_| Limit::ConnectionsPerAddress.reached(self.limits.per_address)).ok()
    }
}

impl ConnectionPermit {
    /// Counts the connection for `client`; `false` where the client or a network around it is at its limit.
    #[must_use]
    pub(crate) fn assign_to(&self, client: IpAddr) -> bool {
        NetworkPrefix::any_contains(&self.0.limiter.unlimited_from, client)
            || self.assign_to_forwarded(client)
    }

    /// As [`ConnectionPermit::assign_to`], for a client that a proxy names: `unlimited_from` does not apply.
    #[must_use]
    pub(crate) fn assign_to_forwarded(&self, client: IpAddr) -> bool {
        let permits = self.0.limiter.permits(client);
        permits.map(|permits| self.0.count(permits)).is_some()
    }

    /// Counts the connection for no client: the proxy's request is answered.
    pub(crate) fn unassign(&self) {
        self.0.count(Vec::new());
    }

    /// Returns whether the client has authenticated; also after the connection was evicted.
    pub(crate) fn is_authenticated(&self) -> bool {
        !self.0.limiter.table().unauthenticated.contains_key(&self.0.id)
    }

    /// Sets how the connection is ended when it is evicted; calls it at once where it is evicted already.
    pub(crate) fn on_evict(&self, hook: impl FnOnce() + Send + 'static) {
        let mut table = self.0.limiter.table();
        if let Some(kept) = table.unauthenticated.get_mut(&self.0.id) {
            *kept = Some(Box::new(hook));
        } else if table.evicted.contains(&self.0.id) {
            drop(table);
            hook();
        }
    }

    /// Excludes the connection from eviction: its client has authenticated, or another module limits it.
    pub(crate) fn mark_authenticated(&self) {
        let mut table = self.0.limiter.table();
        table.evictable.remove(&self.0.id);
        table.forget_bytes(self.0.id);
        let kept = table.unauthenticated.remove(&self.0.id);
        drop(table);
        drop(kept);
    }

    /// Stops counting the connection, but not its memory: another module counts it from now on.
    pub(crate) fn release(&self) {
        let mut table = self.0.limiter.table();
        self.0.stop_counting(&mut table);
    }

    /// Sets the memory that the connection holds to `bytes`; evicts the oldest unauthenticated connections that hold some until it fits.
    /// `false` where it does not fit.
    #[must_use]
    pub(crate) fn reserve_memory(&self, bytes: usize) -> bool {
        self.reserve(bytes, false)
    }

    /// As [`ConnectionPermit::reserve_memory`], for a message that has begun: all long messages together have a sixteenth of the memory.
    #[must_use]
    pub(crate) fn reserve_message(&self, bytes: usize) -> bool {
        self.reserve(bytes, bytes > SHORT)
    }

    fn reserve(&self, bytes: usize, is_long: bool) -> bool {
        let (limit, id) = (self.0.limiter.limits.bytes, self.0.id);
        let mut hooks = Vec::new();
        let mut table = self.0.limiter.table();
        if !table.unauthenticated.contains_key(&id) {
            // An authenticated connection has no limit here, an evicted one gets nothing more.
            return !table.evicted.contains(&id);
        }
        table.forget_bytes(id);
        let fits = loop {
            let lacks_long = is_long && table.long_bytes + bytes > limit / LONG_PART;
            if !lacks_long && table.bytes + bytes <= limit {
                break true;
            }
            Limit::UnauthenticatedMemory.reached(if lacks_long { limit / LONG_PART } else { limit });
            let oldest = match lacks_long {
                true => table.with_long.first().copied(),
                false => table.with_bytes.keys().next().copied(),
            };
            let Some(oldest) = oldest else { break false };
            hooks.extend(table.evict(oldest));
        };
        if fits && bytes > 0 {
            table.bytes += bytes;
            table.with_bytes.insert(id, bytes);
            if is_long {
                table.long_bytes += bytes;
                table.with_long.insert(id);
            }
        }
        drop(table);
        hooks.into_iter().for_each(|hook| hook());
        fits
    }

    /// Takes `count` descriptors more for the connection; `false` where there are none left.
    #[must_use]
    pub(crate) fn reserve_descriptors(&self, count: usize) -> bool {
        let limit = self.0.limiter.limits.descriptors;
        let mut table = self.0.limiter.table();
        let fits = table.descriptors + count <= limit;
        if fits {
            table.descriptors += count;
            self.0.descriptors.fetch_add(count, Ordering::Relaxed);
        } else {
            Limit::Descriptors.reached(limit);
        }
        fits
    }

    /// Returns the id of the connection, which is never used again.
    #[must_use]
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }
}

impl PermitState {
    fn stop_counting(&self, table: &mut ConnectionTable) {
        if !self.is_counted.swap(false, Ordering::Relaxed) {
            return;
        }
        table.evictable.remove(&self.id);
        table.open -= usize::from(!table.evicted.contains(&self.id));
        self.count(Vec::new());
    }

    fn count(&self, permits: Vec<Permit<NetworkPrefix>>) {
        *self.permits.lock().unwrap_or_else(PoisonError::into_inner) = permits;
    }
}

impl Drop for PermitState {
    fn drop(&mut self) {
        let mut table = self.limiter.table();
        self.stop_counting(&mut table);
        table.forget_bytes(self.id);
        table.evicted.remove(&self.id);
        table.closed += 1;
        table.descriptors -= self.descriptors.load(Ordering::Relaxed);
        let kept = table.unauthenticated.remove(&self.id);
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

    fn connections(total: usize, per_address: u32) -> Arc<ConnectionLimiter> {
        ConnectionLimiter::new(ConnectionLimits { total, per_address, ..LIMITS }, &[])
    }

    /// A connection from `client`, if it is let in.
    fn admit(connections: &Arc<ConnectionLimiter>, client: IpAddr) -> Option<ConnectionPermit> {
        connections.admit().filter(|connection| connection.assign_to(client))
    }

    /// Counts the connections that are ended.
    fn watch(connection: &ConnectionPermit, ended: &Arc<AtomicUsize>) {
        let ended = Arc::clone(ended);
        connection.on_evict(move || {
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn assert_empty(connections: &ConnectionLimiter) {
        let table = connections.table();
        assert!(connections.quotas.iter().all(|quota| quota.total() == 0));
        assert!(table.unauthenticated.is_empty() && table.evicted.is_empty());
        assert_eq!((table.open, table.bytes, table.descriptors), (0, 0, 0));
        assert!(table.evictable.is_empty() && table.with_bytes.is_empty() && table.with_long.is_empty());
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
            assert_eq!(connections.table().open, cap, "networks of {shift} bits");
            assert!(held.len() >= cap);
        }
    }

    #[test]
    fn listed_prefixes_have_no_limit() {
        let connections = ConnectionLimiter::new(
            ConnectionLimits { per_address: 1, ..LIMITS },
            &["127.0.0.0/8".parse().unwrap()],
        );
        let held: Vec<_> = (0..10).map(|_| admit(&connections, ip("127.0.0.1")).unwrap()).collect();
        drop(held);
        assert_empty(&connections);
    }

    #[test]
    fn closed_connections_leave_nothing() {
        let connections = connections(900, 3);
        let permits: Vec<_> =
            (0..900_u32).filter_map(|n| admit(&connections, IpAddr::from((n % 300).to_be_bytes()))).collect();
        assert_eq!((permits.len(), connections.quotas[0].total()), (900, 900));
        drop(permits);
        assert_empty(&connections);
    }

    #[test]
    fn at_the_limit_the_oldest_unauthenticated_connection_is_evicted() {
        let (connections, ended) = (connections(3, 9), Arc::default());
        let permits: Vec<_> = (0..3).map(|_| connections.admit().unwrap()).collect();
        permits.iter().for_each(|connection| watch(connection, &ended));
        permits[0].mark_authenticated();
        assert!(permits[1].reserve_memory(7));
        let counters = connections.counters();
        assert_eq!((counters.open, counters.unauthenticated, counters.unauthenticated_bytes), (3, 2, 7));
        let newest = connections.admit().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the second");
        let counters = connections.counters();
        assert_eq!((counters.open, counters.evicted, counters.descriptors), (3, 1, 4));
        newest.mark_authenticated();
        assert!(connections.admit().is_some_and(|connection| {
            connection.mark_authenticated();
            true
        }));
        assert_eq!(ended.load(Ordering::Relaxed), 2, "and the third");
        drop(permits);
        drop(newest);
        assert_empty(&connections);
        assert_eq!(connections.counters(), ConnectionCounters { closed: 5, ..ConnectionCounters::default() });
    }

    #[test]
    fn an_address_at_its_limit_evicts_nobody() {
        let unlimited = ["127.0.0.0/8".parse().unwrap()];
        let limits = ConnectionLimits { total: 2, per_address: 1, ..LIMITS };
        let (connections, ended) = (ConnectionLimiter::new(limits, &unlimited), Arc::default());
        let held = ["192.0.2.1", "192.0.2.2"].map(|from| {
            let connection =
                connections.admit_from(ip(from)).filter(|connection| connection.assign_to(ip(from))).unwrap();
            watch(&connection, &ended);
            connection
        });
        assert!(connections.admit_from(ip("192.0.2.1")).is_none());
        assert!(connections.admit_from(ip("::ffff:192.0.2.2")).is_none());
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        let others = ["192.0.2.3", "127.0.0.1"].map(|from| connections.admit_from(ip(from)).unwrap());
        assert_eq!(ended.load(Ordering::Relaxed), 2);
        drop((held, others));
        assert_empty(&connections);
    }

    #[test]
    fn an_authenticated_connection_is_never_evicted() {
        let connections = connections(2, 9);
        let permits: Vec<_> = (0..2).map(|_| connections.admit().unwrap()).collect();
        permits.iter().for_each(ConnectionPermit::mark_authenticated);
        assert!(connections.admit().is_none());
        drop(permits);
        assert!(connections.admit().is_some());
        assert_empty(&connections);
    }

    #[test]
    fn descriptors_are_left_for_others() {
        let limits = ConnectionLimits { descriptors: 3, ..LIMITS };
        let (connections, ended) = (ConnectionLimiter::new(limits, &[]), Arc::default());
        let first = connections.admit().unwrap();
        watch(&first, &ended);
        first.release();
        let second = connections.admit().unwrap();
        watch(&second, &ended);
        assert!(!second.reserve_descriptors(2) && second.reserve_descriptors(1));
        let _third = connections.admit().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the second: the first is looked after by others");
        drop(second);
        drop(first);
        assert!(connections.table().descriptors == 1);
    }

    #[test]
    fn an_eviction_before_the_hook_is_set_calls_it_at_once() {
        let (connections, ended) = (connections(1, 9), Arc::default());
        let first = connections.admit().unwrap();
        let _second = connections.admit().unwrap();
        watch(&first, &ended);
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        assert!(!first.reserve_memory(1), "it gets no more memory");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_connection_with_some_is_evicted() {
        let limits = ConnectionLimits { bytes: 100, ..LIMITS };
        let (connections, ended) = (ConnectionLimiter::new(limits, &[]), Arc::default());
        let permits: Vec<_> = (0..4).map(|_| connections.admit().unwrap()).collect();
        permits.iter().for_each(|connection| watch(connection, &ended));
        assert!(permits[1].reserve_memory(40) && permits[2].reserve_memory(40));
        assert!(permits[2].reserve_memory(60), "what it holds is not counted twice");
        assert!(permits[3].reserve_memory(10));
        assert_eq!((ended.load(Ordering::Relaxed), connections.table().bytes), (1, 70), "the idle one stays");
        assert!(!permits[3].reserve_memory(101) && connections.table().bytes <= 100);
        permits[3].mark_authenticated();
        assert!(permits[3].reserve_memory(1 << 30), "who is proven has limits of another kind");
        drop(permits);
        assert_empty(&connections);
    }

    #[test]
    fn long_messages_have_a_part_of_the_memory_for_themselves() {
        let limits = ConnectionLimits { bytes: LONG_PART * 40_000, ..LIMITS };
        let (connections, ended) = (ConnectionLimiter::new(limits, &[]), Arc::default());
        let permits: Vec<_> = (0..4).map(|_| connections.admit().unwrap()).collect();
        permits.iter().for_each(|connection| watch(connection, &ended));
        assert!(permits[0].reserve_message(SHORT) && permits[1].reserve_message(20_000));
        assert!(permits[2].reserve_message(20_000));
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        assert!(permits[3].reserve_message(20_000));
        assert_eq!(ended.load(Ordering::Relaxed), 1, "the oldest of the long ones");
        assert!(
            permits[2].reserve_message(0)
                && permits[3].reserve_message(40_000)
                && !permits[3].reserve_message(40_001)
        );
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        drop(permits);
        assert_empty(&connections);
    }

    #[test]
    fn an_uncounted_connection_still_holds_memory() {
        let (connections, ended) = (connections(1, 1), Arc::default());
        let connection = admit(&connections, ip("192.0.2.1")).unwrap();
        watch(&connection, &ended);
        connection.release();
        let _other = admit(&connections, ip("192.0.2.1")).unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        assert!(connection.reserve_memory(10) && !connection.reserve_memory(LIMITS.bytes + 1));
        drop(connection);
        assert_eq!(connections.table().bytes, 0);
    }

    #[test]
    fn the_exported_text_has_each_counter() {
        let connections = connections(2, 9);
        let [oldest, kept] = [(); 2].map(|()| connections.admit().unwrap());
        kept.mark_authenticated();
        assert!(kept.reserve_descriptors(2));
        let newest = connections.admit().unwrap();
        assert!(newest.reserve_memory(4096));
        drop(connections.admit().unwrap());
        let text = connections.counters().to_prometheus();
        drop((oldest, newest));
        let expected = [
            ("open", "gauge", 1),
            ("unauthenticated", "gauge", 0),
            ("unauthenticated_bytes", "gauge", 0),
            ("descriptors", "gauge", 5),
            ("evicted", "gauge", 2),
            ("closed_total", "counter", 1),
        ];
        let line = |(name, kind, value)| {
            format!("# TYPE ginnel_connections_{name} {kind}\nginnel_connections_{name} {value}\n")
        };
        assert_eq!(text, expected.map(line).concat());
        let newest = connections.admit().unwrap();
        assert!(newest.reserve_memory(4096));
        let text = connections.counters().to_prometheus();
        assert!(text.contains("ginnel_connections_unauthenticated 1\n"), "{text}");
        assert!(text.contains("ginnel_connections_unauthenticated_bytes 4096\n"), "{text}");
    }
}
