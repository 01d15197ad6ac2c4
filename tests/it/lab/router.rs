//! An internet in this process: each host has a TUN device, and one thread carries the packets between them with delay and loss, through NATs of any
//! kind. The kernel's NATs of [`super::nat`] have neither delay nor predictable ports.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::nat_table::{NatBehavior, NatTable};
use super::topology::{Link, NodeId, Packets, Rule, Topology};
use super::{Host, Nat, NatKind, Net, ip, nat, tun};

/// The largest packet of a device.
const MTU: usize = 1500;
/// Packets under way; more are dropped.
const IN_FLIGHT: usize = 32_768;
/// Packets of one host that are carried before the others have their turn.
const BURST: usize = 64;
/// What is due within this time is due: the poll's timeout has whole milliseconds.
const EARLY: Duration = Duration::from_micros(500);
const WAKER: Token = Token(usize::MAX);

/// A packet under way: when it is due, a number that keeps the order of equal ones, and its host.
type InFlight = Reverse<(Instant, u64, NodeId, Vec<u8>)>;

#[derive(Default)]
struct Devices {
    /// The device of a host; a NAT has none.
    files: Vec<Option<File>>,
    in_flight: BinaryHeap<InFlight>,
    sequence: u64,
}

struct Shared {
    topology: Mutex<Topology>,
    devices: Mutex<Devices>,
    stopped: AtomicBool,
}

/// A NAT of a [`RoutedNet`].
#[derive(Debug)]
pub(crate) struct RoutedNat {
    node: NodeId,
    octet: u8,
    hosts: std::cell::Cell<u8>,
}

/// A host of a [`RoutedNet`]: where its processes run, and where its packets are counted.
pub(crate) struct RoutedHost {
    pub(crate) host: Host,
    node: NodeId,
}

impl std::ops::Deref for RoutedHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// An internet of TUN devices. Dropped, it takes its namespaces along; drop the processes in it first.
pub(crate) struct RoutedNet {
    shared: Arc<Shared>,
    registry: Registry,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    seed: u64,
    hosts: RefCell<u8>,
    net: Net,
}

impl RoutedNet {
    /// Makes an internet without hosts. What it does at random follows from the seed.
    pub(crate) fn new(seed: u64) -> Self {
        let poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let waker = Waker::new(&registry, WAKER).unwrap();
        let shared = Arc::new(Shared {
            topology: Mutex::new(Topology::new(seed)),
            devices: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let carried = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("router".to_owned()).spawn(move || carry(poll, &carried));
        let (net, hosts) = (Net::without_bridge(), RefCell::default());
        Self { shared, registry, waker, thread: Some(thread.unwrap()), seed, hosts, net }
    }

    /// Adds a host with the public address 203.0.113.`octet`.
    pub(crate) fn public(&self, octet: u8, link: Link) -> RoutedHost {
        let address = Ipv4Addr::new(203, 0, 113, octet);
        let namespace = self.net.namespace(&format!("h{octet}"));
        self.plug((&namespace, "eth0"), (address, Ipv4Addr::new(203, 0, 113, 1)), None, link)
    }

    /// Adds a NAT with the outer address 203.0.113.`octet` and the inner network 10.`octet`.0.0/24.
    pub(crate) fn nat(&self, behavior: NatBehavior, octet: u8, link: Link) -> RoutedNat {
        self.add_nat(behavior, (octet, Ipv4Addr::new(203, 0, 113, octet)), None, link)
    }

    /// Adds a NAT behind another one, on its inner network: for its hosts, the second of two layers.
    pub(crate) fn nat_behind(&self, outer: &RoutedNat, behavior: NatBehavior, octet: u8) -> RoutedNat {
        let external = outer.next_address();
        self.add_nat(behavior, (octet, external), Some(outer.node), Link::default())
    }

    fn add_nat(
        &self,
        behavior: NatBehavior,
        (octet, external): (u8, Ipv4Addr),
        parent: Option<NodeId>,
        link: Link,
    ) -> RoutedNat {
        let table = NatTable::new(behavior, external, self.seed ^ u64::from(octet));
        let node = self.topology().add_nat(table, Ipv4Addr::new(10, octet, 0, 1), parent, link);
        self.shared.devices.lock().unwrap().files.push(None);
        RoutedNat { node, octet, hosts: std::cell::Cell::new(0) }
    }

    /// Adds a host behind a NAT, on its inner network.
    pub(crate) fn behind(&self, nat: &RoutedNat) -> RoutedHost {
        let address = nat.next_address();
        let namespace = self.net.namespace(&format!("n{}h{}", nat.octet, nat.hosts.get()));
        let gateway = Ipv4Addr::new(10, nat.octet, 0, 1);
        self.plug((&namespace, "eth0"), (address, gateway), Some(nat.node), Link::default())
    }

    /// Adds a host with the public address 203.0.113.`octet` behind a firewall that translates nothing.
    pub(crate) fn behind_firewall(
        &self,
        behavior: NatBehavior,
        octet: u8,
        link: Link,
    ) -> (RoutedHost, RoutedNat) {
        let firewall = self.nat(behavior, octet, link);
        let address = Ipv4Addr::new(203, 0, 113, octet);
        let namespace = self.net.namespace(&format!("h{octet}"));
        let gateway = Ipv4Addr::new(203, 0, 113, 1);
        let host = self.plug((&namespace, "eth0"), (address, gateway), Some(firewall.node), Link::default());
        (host, firewall)
    }

    /// Adds a host that has only an IPv6 address, behind a firewall.
    pub(crate) fn ipv6_only(
        &self,
        behavior: NatBehavior,
        address: &str,
        link: Link,
    ) -> (RoutedHost, RoutedNat) {
        let number = *self.hosts.borrow();
        let table = NatTable::new(behavior, Ipv4Addr::UNSPECIFIED, self.seed);
        let node = self.topology().add_nat(table, Ipv4Addr::UNSPECIFIED, None, link);
        self.shared.devices.lock().unwrap().files.push(None);
        let firewall = RoutedNat { node, octet: 0, hosts: std::cell::Cell::new(0) };
        let namespace = self.net.namespace(&format!("v6h{number}"));
        let prefixes = vec![(address.parse().unwrap(), 128)];
        let node = self.attach((&namespace, "eth0"), prefixes, Some(node), Link::default());
        let host = Host { namespace, address: Ipv4Addr::UNSPECIFIED };
        host.enable_ipv6();
        ip(
            &host.namespace,
            &format!(
                "link set eth0 mtu {MTU} txqueuelen 4000 up\n\
                 addr add {address}/128 dev eth0 nodad\n\
                 route add ::/0 dev eth0\n"
            ),
        );
        (RoutedHost { host, node }, firewall)
    }

    /// Adds a NAT of the kernel with the outer address 203.0.113.`octet`; its hosts are those of [`net`](Self::net). 198.41.0.`octet` leads to it too.
    pub(crate) fn kernel_nat(&self, kind: NatKind, octet: u8, link: Link) -> Nat {
        let namespace = self.net.namespace(&format!("n{octet}"));
        let address = Ipv4Addr::new(203, 0, 113, octet);
        let router = self.plug((&namespace, "out"), (address, Ipv4Addr::new(203, 0, 113, 1)), None, link);
        let second = Ipv4Addr::new(198, 41, 0, octet);
        self.set_prefixes(&router, [address, second].map(|ip| (ip.into(), 32)).to_vec());
        nat::translate(namespace, kind, octet)
    }

    /// Gives a host a second device with its own address and way to the internet, as a VPN does. Routes are up to the caller.
    pub(crate) fn second_uplink(&self, host: &Host, device: &str, nat: &RoutedNat) -> RoutedHost {
        let address = nat.next_address();
        let node = self.attach(
            (&host.namespace, device),
            vec![(address.into(), 32)],
            Some(nat.node),
            Link::default(),
        );
        ip(
            &host.namespace,
            &format!("addr add {address}/24 dev {device}\nlink set {device} up txqueuelen 4000\n"),
        );
        RoutedHost { host: Host { namespace: host.namespace.clone(), address }, node }
    }

    /// Where kernel NATs have their hosts.
    pub(crate) fn net(&self) -> &Net {
        &self.net
    }

    /// Gives a host of this internet an IPv6 address, and the way to the IPv6 internet.
    pub(crate) fn add_ipv6(&self, host: &RoutedHost, address: &str) {
        host.enable_ipv6();
        ip(&host.namespace, &format!("addr add {address}/128 dev eth0 nodad\nroute add ::/0 dev eth0\n"));
        let prefixes = vec![(host.address.into(), 32), (address.parse().unwrap(), 128)];
        self.topology().set_prefixes(host.node, prefixes);
    }

    /// Makes a host answer for these prefixes and no others.
    pub(crate) fn set_prefixes(&self, host: &RoutedHost, prefixes: Vec<(IpAddr, u8)>) {
        self.topology().set_prefixes(host.node, prefixes);
    }

    /// Changes the link of a NAT.
    pub(crate) fn set_link(&self, nat: &RoutedNat, link: Link) {
        self.topology().set_link(nat.node, link);
    }

    /// Makes a NAT forget all mappings.
    pub(crate) fn reboot(&self, nat: &RoutedNat) {
        self.topology().table_mut(nat.node).unwrap().reboot();
    }

    /// Lets a NAT behave otherwise from now on; mappings stay.
    pub(crate) fn change(&self, nat: &RoutedNat, change: impl FnOnce(NatBehavior) -> NatBehavior) {
        let mut topology = self.topology();
        let table = topology.table_mut(nat.node).unwrap();
        table.set_behavior(change(table.behavior()));
    }

    /// Adds a rule for what crosses the internet.
    pub(crate) fn add_rule(&self, rule: Rule) {
        self.topology().add_rule(rule);
    }

    /// The packets of a host so far.
    pub(crate) fn packets(&self, host: &RoutedHost) -> Packets {
        self.topology().packets(host.node)
    }

    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.shared.topology.lock().unwrap()
    }

    fn plug(
        &self,
        (namespace, device): (&str, &str),
        (address, gateway): (Ipv4Addr, Ipv4Addr),
        parent: Option<NodeId>,
        link: Link,
    ) -> RoutedHost {
        let node = self.attach((namespace, device), vec![(address.into(), 32)], parent, link);
        ip(
            namespace,
            &format!(
                "addr add {address}/24 dev {device}\n\
                 link set {device} mtu {MTU} txqueuelen 4000 up\n\
                 route add default via {gateway} dev {device}\n"
            ),
        );
        RoutedHost { host: Host { namespace: namespace.to_owned(), address }, node }
    }

    /// Makes a device in a namespace and carries its packets from now on.
    fn attach(
        &self,
        (namespace, device): (&str, &str),
        prefixes: Vec<(IpAddr, u8)>,
        parent: Option<NodeId>,
        link: Link,
    ) -> NodeId {
        *self.hosts.borrow_mut() += 1;
        let host = Host { namespace: namespace.to_owned(), address: Ipv4Addr::UNSPECIFIED };
        let file = host.inside(|| tun::open(device)).unwrap();
        let node = self.topology().add_host(prefixes, parent, link);
        let mut devices = self.shared.devices.lock().unwrap();
        let descriptor = file.as_raw_fd();
        devices.files.push(Some(file));
        assert_eq!(devices.files.len(), node + 1);
        self.registry.register(&mut SourceFd(&descriptor), Token(node), Interest::READABLE).unwrap();
        node
    }
}

impl Drop for RoutedNet {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.waker.wake().ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl RoutedNat {
    fn next_address(&self) -> Ipv4Addr {
        self.hosts.set(self.hosts.get() + 1);
        Ipv4Addr::new(10, self.octet, 0, self.hosts.get() + 1)
    }
}

/// Carries packets until the internet is dropped.
fn carry(mut poll: Poll, shared: &Shared) {
    let mut events = Events::with_capacity(64);
    let mut readable: Vec<NodeId> = Vec::new();
    let mut buffer = vec![0; MTU];
    while !shared.stopped.load(Ordering::Acquire) {
        let next = shared.devices.lock().unwrap().deliver(Instant::now());
        let timeout = if readable.is_empty() { next } else { Some(Duration::ZERO) };
        if poll.poll(&mut events, timeout).is_err_and(|error| error.kind() != ErrorKind::Interrupted) {
            return;
        }
        readable.extend(events.iter().filter(|event| event.token() != WAKER).map(|event| event.token().0));
        readable.sort_unstable();
        readable.dedup();
        // An edge is reported once: a device stays in the list until it is empty.
        readable.retain(|host| shared.take(*host, &mut buffer));
    }
}

impl Shared {
    /// Takes packets that a host has sent; returns whether there may be more.
    fn take(&self, host: NodeId, buffer: &mut [u8]) -> bool {
        for _ in 0..BURST {
            let mut devices = self.devices.lock().unwrap();
            let Some(Some(file)) = devices.files.get_mut(host) else { return false };
            let length = match file.read(buffer) {
                Ok(length) => length,
                Err(error) => return error.kind() == ErrorKind::Interrupted,
            };
            let now = Instant::now();
            let packet = &mut buffer[..length];
            let delivery = self.topology.lock().unwrap().route(host, packet, now);
            let Some(delivery) = delivery else { continue };
            if delivery.delay.is_zero() {
                devices.write(delivery.host, packet);
            } else if devices.in_flight.len() < IN_FLIGHT {
                devices.sequence += 1;
                let entry = (now + delivery.delay, devices.sequence, delivery.host, packet.to_vec());
                devices.in_flight.push(Reverse(entry));
            }
        }
        true
    }
}

impl Devices {
    /// Delivers what is due; returns the time until the next packet is.
    fn deliver(&mut self, now: Instant) -> Option<Duration> {
        while let Some(Reverse((due, _, _, _))) = self.in_flight.peek() {
            let left = due.saturating_duration_since(now);
            if left > EARLY {
                return Some(left - EARLY);
            }
            if let Some(Reverse((_, _, host, packet))) = self.in_flight.pop() {
                self.write(host, &packet);
            }
        }
        None
    }

    /// Hands a packet to a host. A device that is down or full loses it, as an interface does.
    fn write(&mut self, host: NodeId, packet: &[u8]) {
        if let Some(Some(file)) = self.files.get_mut(host) {
            file.write_all(packet).ok();
        }
    }
}
