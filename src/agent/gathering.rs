//! Server-reflexive candidates: Binding requests from every socket ([RFC 8445 section 5.1.1.2](https://www.rfc-editor.org/rfc/rfc8445#section-5.1.1.2)).
//!
//! Requests are sent from the sockets of the host candidates, so that the mapping that is discovered is the one that checks use. They are
//! repeated until a response arrives, and every [`KEEPALIVE`] afterwards: the mapping stays, and a new one after a restart of the NAT is noticed.
//! One socket also asks the server's second port; two mappings tell the type of the NAT. Further servers are asked too: one may be reached where
//! the other is not, in another family or through another of a NAT's addresses.

use super::nat::{self, Mappings};
use crate::signaling::wire::NatType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Waits after the first requests; then the last one is repeated.
const WAITS: [Duration; 7] = [
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_secs(5),
];
/// Between requests of a socket whose mapping is known; the shortest usual lifetime of a UDP mapping is 30 s.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Without any response for this long, UDP counts as blocked.
const BLOCKED_TIME: Duration = Duration::from_secs(1);
/// Requests without a response that are remembered.
const MAX_OUTSTANDING: usize = 8;
/// Addresses of further servers that are asked.
const MAX_FURTHER_SERVERS: usize = 6;

/// An event for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatheringEvent {
    /// A socket has another server-reflexive address than before; see [`Gathering::mappings`].
    Mapped { base: SocketAddr },
    /// The type of the NAT.
    Nat(NatType),
    /// All requests have been answered, or had enough time.
    Done,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BindingRequest {
    pub(super) base: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// The requests of one socket to one server address.
#[derive(Debug)]
struct Probe {
    base: SocketAddr,
    server: SocketAddr,
    outstanding: VecDeque<[u8; 12]>,
    sent: usize,
    next: Instant,
    mapped: Option<SocketAddr>,
}

/// Discovers server-reflexive addresses. Pure.
#[derive(Debug)]
pub(super) struct Gathering {
    server: SocketAddr,
    second_server: Option<SocketAddr>,
    /// The server's IPv4 address as a NAT64 reaches it.
    translated_server: Option<SocketAddr>,
    further_servers: Vec<SocketAddr>,
    /// When the socket whose NAT is told was first used.
    started: Instant,
    /// When that socket's UDP counts as blocked.
    blocked_at: Option<Instant>,
    /// The socket whose NAT is told.
    main: Option<SocketAddr>,
    local_ips: Vec<IpAddr>,
    probes: Vec<Probe>,
    nat: Option<NatType>,
    is_done: bool,
    rng: ChaCha20Rng,
    requests: VecDeque<BindingRequest>,
    events: VecDeque<GatheringEvent>,
}

impl Gathering {
    /// Takes the server's address.
    pub(super) fn new(now: Instant, server: SocketAddr, seed: [u8; 32]) -> Self {
        Self {
            server,
            second_server: None,
            translated_server: None,
            further_servers: Vec::new(),
            started: now,
            blocked_at: Some(now + BLOCKED_TIME),
            main: None,
            local_ips: Vec::new(),
            probes: Vec::new(),
            nat: None,
            is_done: false,
            rng: ChaCha20Rng::from_seed(seed),
            requests: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes another address of the server; [`Gathering::set_ports`] begins with it.
    pub(super) fn set_server(&mut self, server: SocketAddr) {
        self.further_servers.retain(|further| *further != server);
        (self.server, self.second_server, self.translated_server) = (server, None, None);
        self.probes.clear();
    }

    /// Sets the sockets, the one of the default route first. Known ones keep their mappings.
    pub(super) fn set_ports(&mut self, now: Instant, bases: &[SocketAddr]) {
        self.local_ips = bases.iter().map(SocketAddr::ip).collect();
        let main = bases.iter().copied().find(|base| reaches(*base, self.server));
        if main != self.main {
            // A new address has not been without an answer for long.
            (self.main, self.started, self.nat) = (main, now, None);
            self.blocked_at = Some(now + BLOCKED_TIME);
        }
        let of_main = [self.second_server, self.translated_server];
        self.probes.retain(|probe| {
            bases.contains(&probe.base)
                && (!of_main.contains(&Some(probe.server)) || Some(probe.base) == main)
        });
        let server = self.server;
        for base in bases.iter().filter(|base| reaches(**base, server)) {
            self.probe(now, *base, server);
        }
        self.probe_second(now);
        if let Some(server) = self.translated_server {
            self.set_translated_server(now, server);
        }
        for server in self.further_servers.clone() {
            self.probe_further(now, server, bases);
        }
    }

    /// Adds the address of a further server.
    pub(super) fn add_further_server(&mut self, now: Instant, server: SocketAddr, bases: &[SocketAddr]) {
        let is_known = self.server == server || self.further_servers.contains(&server);
        if !is_known && self.further_servers.len() < MAX_FURTHER_SERVERS {
            self.further_servers.push(server);
            self.probe_further(now, server, bases);
        }
    }

    fn probe_further(&mut self, now: Instant, server: SocketAddr, bases: &[SocketAddr]) {
        for base in bases.iter().filter(|base| reaches(**base, server)) {
            self.probe(now, *base, server);
        }
    }

    /// Sets the server's IPv4 address as a NAT64 reaches it; the mapping to it is this host's IPv4 address.
    pub(super) fn set_translated_server(&mut self, now: Instant, server: SocketAddr) {
        self.translated_server = Some(server);
        if let Some(main) = self.main.filter(|main| reaches(*main, server)) {
            self.probe(now, main, server);
        }
    }

    /// Sets the server's second port.
    pub(super) fn set_second_server(&mut self, now: Instant, server: SocketAddr) {
        self.second_server = Some(server);
        self.probe_second(now);
    }

    fn probe_second(&mut self, now: Instant) {
        if let (Some(main), Some(second)) = (self.main, self.second_server)
            && reaches(main, second)
        {
            self.probe(now, main, second);
        }
    }

    fn probe(&mut self, now: Instant, base: SocketAddr, server: SocketAddr) {
        if !self.probes.iter().any(|probe| probe.base == base && probe.server == server) {
            let outstanding = VecDeque::new();
            self.probes.push(Probe { base, server, outstanding, sent: 0, next: now, mapped: None });
            self.handle_timeout(now);
        }
    }

    /// Asks for every mapping at once: the network has changed, or a path has died.
    pub(super) fn refresh(&mut self, now: Instant) {
        for probe in &mut self.probes {
            (probe.sent, probe.next) = (0, now);
        }
        self.handle_timeout(now);
    }

    /// Handles a message; `false` if it is no response to a request.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        base: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(probe) = self.probes.iter_mut().find(|probe| probe.base == base && probe.server == remote)
        else {
            return false;
        };
        let answered = probe.outstanding.iter().find_map(|id| nat::binding_response(bytes, *id));
        let Some(mapped) = answered else { return false };
        probe.outstanding.clear();
        (probe.sent, probe.next) = (0, now + KEEPALIVE);
        let is_new = probe.mapped != Some(mapped);
        probe.mapped = Some(mapped);
        if is_new {
            self.events.push_back(GatheringEvent::Mapped { base });
        }
        self.conclude(now);
        true
    }

    /// Sends the requests that are due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for probe in self.probes.iter_mut().filter(|probe| probe.next <= now) {
            let id: [u8; 12] = self.rng.random();
            if probe.outstanding.len() == MAX_OUTSTANDING {
                probe.outstanding.pop_front();
            }
            probe.outstanding.push_back(id);
            probe.next = now + WAITS[probe.sent.min(WAITS.len() - 1)];
            probe.sent += 1;
            let (base, server) = (probe.base, probe.server);
            self.requests.push_back(BindingRequest { base, server, bytes: nat::binding_request(id) });
        }
        self.conclude(now);
    }

    /// Returns when [`Gathering::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.probes.iter().map(|probe| probe.next).chain(self.blocked_at).min()
    }

    /// Returns the next datagram to send.
    pub(super) fn poll_transmit(&mut self) -> Option<BindingRequest> {
        self.requests.pop_front()
    }

    /// Returns the next event.
    pub(super) fn poll_event(&mut self) -> Option<GatheringEvent> {
        self.events.pop_front()
    }

    /// Returns the addresses of a socket, one for each address of the NAT: the mapping to the server in use comes first, the one to its second
    /// port last.
    pub(super) fn mappings(&self, base: SocketAddr) -> Vec<SocketAddr> {
        let mut probes: Vec<&Probe> = self.probes.iter().filter(|probe| probe.base == base).collect();
        probes.sort_by_key(|probe| {
            (Some(probe.server) == self.second_server, self.further_servers.contains(&probe.server))
        });
        let mut mappings: Vec<SocketAddr> = Vec::new();
        for mapped in probes.into_iter().filter_map(|probe| probe.mapped) {
            if !mappings.iter().any(|known| known.ip() == mapped.ip()) {
                mappings.push(mapped);
            }
        }
        mappings
    }

    /// Returns the type of the NAT, once it is known.
    pub(super) fn nat(&self) -> Option<NatType> {
        self.nat
    }

    /// Returns the socket from which the server is reached.
    pub(super) fn main(&self) -> Option<SocketAddr> {
        self.main
    }

    /// Returns its mapped IPv4 address.
    pub(super) fn ipv4_mapping(&self) -> Option<SocketAddr> {
        let of_main = self.probes.iter().filter(|probe| Some(probe.base) == self.main);
        let mut first: Vec<_> = of_main.filter(|probe| Some(probe.server) != self.second_server).collect();
        first.sort_by_key(|probe| self.further_servers.contains(&probe.server));
        first.into_iter().find_map(|probe| probe.mapped.filter(SocketAddr::is_ipv4))
    }

    /// Returns whether UDP fails to reach the server, once that is known.
    pub(super) fn is_udp_blocked(&self, now: Instant) -> Option<bool> {
        if self.probes.iter().any(|probe| probe.mapped.is_some()) {
            return Some(false);
        }
        (now >= self.started + BLOCKED_TIME).then_some(true)
    }

    fn conclude(&mut self, now: Instant) {
        let is_over = now >= self.started + BLOCKED_TIME;
        self.blocked_at = self.blocked_at.filter(|_| !is_over);
        let of_main = || self.probes.iter().filter(|probe| Some(probe.base) == self.main);
        let mapping = |server| of_main().find(|probe| Some(probe.server) == server)?.mapped;
        let of_further = || {
            let is_further = |probe: &&Probe| self.further_servers.contains(&probe.server);
            of_main().filter(is_further).find_map(|probe| probe.mapped)
        };
        let mappings = Mappings {
            first: mapping(Some(self.server)).or_else(of_further),
            second: mapping(self.second_server),
        };
        let nat = match (self.main, mappings) {
            (_, Mappings { first: None, second: None }) => is_over.then_some(NatType::Blocked),
            (Some(main), mappings) => nat::classify(main.port(), &self.local_ips, mappings),
            (None, _) => None,
        };
        if nat.is_some() && nat != self.nat {
            self.nat = nat;
            self.events.extend(nat.map(GatheringEvent::Nat));
        }
        // A further server that is dead delays nothing.
        let of_server = |probe: &&Probe| !self.further_servers.contains(&probe.server);
        let is_answered = self.probes.iter().filter(of_server).all(|probe| probe.mapped.is_some());
        if !self.is_done && (is_answered && !self.probes.is_empty() || is_over) {
            self.is_done = true;
            self.events.push_back(GatheringEvent::Done);
        }
    }
}

/// Returns whether a datagram of this socket can reach the server.
fn reaches(base: SocketAddr, server: SocketAddr) -> bool {
    base.is_ipv4() == server.is_ipv4() && base.ip().is_loopback() == server.ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;
    use crate::stun::{Builder, Class, Message, Method, attr};

    const BASE: &str = "10.0.0.5:4000";
    const MAPPED: &str = "203.0.113.9:4000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn gathering(now: Instant) -> Gathering {
        let mut gathering = Gathering::new(now, at("198.51.100.1:3478"), [1; 32]);
        gathering.set_ports(now, &[at(BASE), at("10.1.0.5:4001"), at("[2001:db8::1]:4002")]);
        gathering
    }

    fn answer(gathering: &mut Gathering, now: Instant, request: &BindingRequest, mapped: SocketAddr) -> bool {
        let id = Message::parse(&request.bytes).unwrap().transaction();
        let answer = Builder::new(Class::Success, Method::BINDING, id);
        let answer = answer.xor_address(attr::XOR_MAPPED_ADDRESS, mapped).finish();
        gathering.handle(now, request.base, request.server, &answer)
    }

    fn requests(gathering: &mut Gathering) -> Vec<BindingRequest> {
        std::iter::from_fn(|| gathering.poll_transmit()).collect()
    }

    fn events(gathering: &mut Gathering) -> Vec<GatheringEvent> {
        std::iter::from_fn(|| gathering.poll_event()).collect()
    }

    #[test]
    fn every_socket_of_the_servers_family_asks_until_it_is_answered() {
        let mut now = time::now().mono;
        let mut gathering = gathering(now);
        let first = requests(&mut gathering);
        assert_eq!(
            first.iter().map(|request| request.base).collect::<Vec<_>>(),
            [at(BASE), at("10.1.0.5:4001")]
        );
        assert!(answer(&mut gathering, now, &first[0], at(MAPPED)));
        assert_eq!(events(&mut gathering), [GatheringEvent::Mapped { base: at(BASE) }]);
        assert_eq!(gathering.mappings(at(BASE)), [at(MAPPED)]);
        let mut repeated = 0;
        while now < gathering.started + Duration::from_secs(3) {
            now = gathering.poll_timeout().unwrap();
            gathering.handle_timeout(now);
            repeated += requests(&mut gathering).iter().filter(|request| request.base != at(BASE)).count();
        }
        assert!((5..=8).contains(&repeated), "{repeated}");
        assert!(events(&mut gathering).contains(&GatheringEvent::Done));
    }

    #[test]
    fn a_host_with_only_ipv6_has_the_ipv4_address_that_a_nat64_gives_it() {
        let now = time::now().mono;
        let mut gathering = Gathering::new(now, at("[2001:db8::53]:3478"), [1; 32]);
        gathering.set_ports(now, &[at("[2001:db8::1]:4002")]);
        let translated = at("[64:ff9b::198.51.100.1]:3478");
        gathering.set_translated_server(now, translated);
        let sent = requests(&mut gathering);
        let request = sent.iter().find(|request| request.server == translated).unwrap();
        assert!(answer(&mut gathering, now, request, at(MAPPED)));
        let base = at("[2001:db8::1]:4002");
        assert!(events(&mut gathering).contains(&GatheringEvent::Mapped { base }));
        assert_eq!(gathering.mappings(base), [at(MAPPED)]);
        gathering.set_ports(now, &[at("[2001:db8::2]:4003")]);
        assert!(requests(&mut gathering).iter().any(|request| request.server == translated));
    }

    #[test]
    fn another_server_is_asked_and_the_first_one_no_longer_counts() {
        let now = time::now().mono;
        let mut gathering = gathering(now);
        gathering.set_second_server(now, at("198.51.100.1:3479"));
        let first = requests(&mut gathering).remove(0);
        gathering.set_server(at("198.51.100.2:3478"));
        gathering.set_ports(now, &[at(BASE)]);
        assert!(!answer(&mut gathering, now, &first, at(MAPPED)));
        let sent = requests(&mut gathering);
        assert_eq!(sent.iter().map(|request| request.server).collect::<Vec<_>>(), [at("198.51.100.2:3478")]);
        assert!(answer(&mut gathering, now, &sent[0], at(MAPPED)));
    }

    #[test]
    fn further_servers_give_the_addresses_that_the_first_does_not() {
        let now = time::now().mono;
        let bases = [at(BASE), at("[2001:db8::1]:4002")];
        let mut gathering = Gathering::new(now, at("198.51.100.1:3478"), [1; 32]);
        gathering.set_ports(now, &bases);
        let first = requests(&mut gathering);
        for server in ["198.51.100.2:3478", "198.51.100.3:3478", "[2001:db8::53]:3478", "198.51.100.1:3478"] {
            gathering.add_further_server(now, at(server), &bases);
            gathering.add_further_server(now, at(server), &bases);
        }
        let further = requests(&mut gathering);
        assert_eq!(further.len(), 3, "{further:?}");
        // The same NAT; another port of it, as a NAT that maps each destination anew has; another address of it.
        assert!(answer(&mut gathering, now, &further[0], at("203.0.113.9:5000")));
        assert_eq!(gathering.mappings(at(BASE)), [at("203.0.113.9:5000")]);
        assert_eq!(gathering.is_udp_blocked(now), Some(false));
        assert!(answer(&mut gathering, now, &first[0], at(MAPPED)));
        assert!(events(&mut gathering).contains(&GatheringEvent::Done), "dead further servers delay nothing");
        assert!(answer(&mut gathering, now, &further[1], at("203.0.113.10:6000")));
        assert_eq!(gathering.mappings(at(BASE)), [at(MAPPED), at("203.0.113.10:6000")]);
        assert_eq!(gathering.ipv4_mapping(), Some(at(MAPPED)));
        // The first server is used no longer; those that are left are asked again.
        gathering.set_server(at("198.51.100.2:3478"));
        gathering.set_ports(now, &bases);
        assert_eq!(requests(&mut gathering).len(), 3);
        let many: Vec<SocketAddr> =
            (0..100).map(|port| at(&format!("198.51.100.9:{}", 100 + port))).collect();
        many.iter().for_each(|server| gathering.add_further_server(now, *server, &bases));
        assert!(requests(&mut gathering).len() <= MAX_FURTHER_SERVERS);
    }

    #[test]
    fn a_late_response_counts_and_a_forged_one_does_not() {
        let mut now = time::now().mono;
        let mut gathering = gathering(now);
        let first = requests(&mut gathering);
        now += Duration::from_millis(300);
        gathering.handle_timeout(now);
        let forged = BindingRequest { bytes: nat::binding_request([9; 12]), ..first[0].clone() };
        assert!(!answer(&mut gathering, now, &forged, at(MAPPED)));
        assert!(answer(&mut gathering, now, &first[0], at(MAPPED)));
        assert!(!answer(&mut gathering, now, &first[0], at(MAPPED)), "a response counts once");
    }

    #[test]
    fn two_ports_of_the_server_tell_the_type_of_the_nat() {
        for (second, expected) in [(MAPPED, NatType::Easy), ("203.0.113.9:4444", NatType::Hard)] {
            let now = time::now().mono;
            let mut gathering = gathering(now);
            gathering.set_second_server(now, at("198.51.100.1:3479"));
            for request in requests(&mut gathering).into_iter().filter(|request| request.base == at(BASE)) {
                let mapped = if request.server.port() == 3478 { at(MAPPED) } else { at(second) };
                assert!(answer(&mut gathering, now, &request, mapped));
            }
            assert!(events(&mut gathering).contains(&GatheringEvent::Nat(expected)), "{second}");
        }
    }

    #[test]
    fn without_any_response_udp_is_blocked_until_one_arrives() {
        let mut now = time::now().mono;
        let mut gathering = gathering(now);
        assert_eq!(gathering.is_udp_blocked(now), None);
        let end = now + Duration::from_millis(1100);
        while now < end {
            now = gathering.poll_timeout().unwrap();
            gathering.handle_timeout(now);
        }
        assert_eq!(gathering.is_udp_blocked(now), Some(true));
        assert!(events(&mut gathering).contains(&GatheringEvent::Nat(NatType::Blocked)));
        let last = requests(&mut gathering).pop().unwrap();
        assert!(answer(&mut gathering, now, &last, at(MAPPED)));
        assert_eq!(gathering.is_udp_blocked(now), Some(false));
    }

    #[test]
    fn a_new_address_is_not_blocked_before_it_has_had_time() {
        let mut now = time::now().mono;
        let mut gathering = Gathering::new(now, at("198.51.100.1:3478"), [1; 32]);
        gathering.set_ports(now, &[at(BASE)]);
        let request = requests(&mut gathering).pop().unwrap();
        assert!(answer(&mut gathering, now, &request, at(MAPPED)));
        now += Duration::from_secs(60);
        gathering.set_ports(now, &[at("10.0.0.6:4000")]);
        assert_eq!(gathering.is_udp_blocked(now), None);
        let end = now + Duration::from_millis(990);
        while let Some(due) = gathering.poll_timeout().filter(|due| *due <= end) {
            gathering.handle_timeout(due);
        }
        assert!(!events(&mut gathering).contains(&GatheringEvent::Nat(NatType::Blocked)));
        gathering.handle_timeout(now + BLOCKED_TIME);
        assert!(events(&mut gathering).contains(&GatheringEvent::Nat(NatType::Blocked)));
    }

    #[test]
    fn a_mapping_is_kept_and_a_new_one_is_told() {
        let mut now = time::now().mono;
        let mut gathering = Gathering::new(now, at("198.51.100.1:3478"), [1; 32]);
        gathering.set_ports(now, &[at(BASE)]);
        for mapped in [MAPPED, MAPPED, "203.0.113.9:5555"] {
            let request = requests(&mut gathering).pop().unwrap();
            assert!(answer(&mut gathering, now, &request, at(mapped)));
            now += KEEPALIVE;
            gathering.handle_timeout(now);
        }
        let mapped = events(&mut gathering);
        let mapped = mapped.iter().filter(|event| matches!(event, GatheringEvent::Mapped { .. })).count();
        assert_eq!(mapped, 2);
    }
}
