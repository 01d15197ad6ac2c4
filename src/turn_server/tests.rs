//! The relay under a fake clock, with sockets that are only counted.

mod families;
mod handlers;
mod limits;
mod mobility;
mod own_addresses;
mod prefetch;
mod properties;
mod rates;
mod relay_ports;
mod tcp;

use super::allocation_quota::AllocationQuota;
use super::auth::{Authenticator, Credentials};
use super::config::{RelayConfig, SharedState};
use super::forward::{ClientFrame, DropReason, Forward, InternalPacket, InternalRoute, IpHeader, ToPeer};
use super::machine::Relay;
use super::output::Output;
use super::policy::{PeerPolicy, PolicyConfig};
use super::ports::{RelayAddress, RelayPorts};
use super::{FiveTuple, RelayId, RelaySocketError, Transport};
use crate::clock::Now;
use crate::net::time::now;
use crate::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const RELAY_IP: &str = "198.41.0.4";
const PEER: &str = "8.8.8.8:5000";
const IP_HEADER: IpHeader = IpHeader { ttl: 0, tos: 0 };

/// A relay and the sockets that its driver would own.
struct World {
    relay: Relay,
    shared: SharedState,
    now: Now,
    sockets: HashMap<RelayId, SocketAddr>,
    refuse_ports: HashSet<u16>,
    refusal: RelaySocketError,
    /// All other outputs.
    others: Vec<Output>,
    next_id: u8,
}

fn shared(per_user: u32, ports: std::ops::RangeInclusive<u16>) -> SharedState {
    let digest = |user| (String::from(user), long_term_digest(user, "r", "pw"));
    let users = HashMap::from([digest("alice"), digest("bob")]);
    let own: Vec<IpAddr> = vec![RELAY_IP.parse().unwrap(), "2606:4700::4".parse().unwrap()];
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress { local: *ip, advertised: *ip }).collect();
    let policy = PolicyConfig { own_addresses: own, own_ports: vec![3478], ..Default::default() };
    let authenticator = Authenticator::new("r", Credentials { users, rest: None }, &[5; 32]);
    let config = RelayConfig {
        ports,
        policy,
        allocations_per_user: per_user,
        max_allocations: 1000,
        ..RelayConfig::new(authenticator, &addresses)
    };
    SharedState::new(config, [6; 32])
}

/// Handles a frame from a client, as a worker does.
pub(in crate::turn_server) fn handle(
    relay: &mut Relay,
    now: Now,
    client: FiveTuple,
    bytes: &[u8],
) -> Forward {
    match ClientFrame::parse(bytes) {
        Some(frame) => relay.handle_client(now, client, IP_HEADER, frame),
        None => Forward::Drop(DropReason::Malformed),
    }
}

fn tuple(port: u16) -> FiveTuple {
    let server = SocketAddr::new(RELAY_IP.parse().unwrap(), 3478);
    FiveTuple { client: SocketAddr::from(([192, 0, 2, 7], port)), server, transport: Transport::Udp }
}

impl World {
    fn new() -> Self {
        Self::with(shared(10, 50_000..=50_099))
    }

    fn with(shared: SharedState) -> Self {
        let now = now();
        let relay = Relay::with_shared(now, shared.clone(), [7; 32]);
        Self {
            relay,
            shared,
            now,
            sockets: HashMap::new(),
            refuse_ports: HashSet::new(),
            refusal: RelaySocketError::PortInUse,
            others: Vec::new(),
            next_id: 0,
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.relay.handle_timeout(self.now);
        self.drain();
    }

    fn drain(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut replies = Vec::new();
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Response { client, bytes, .. } => replies.push((client, bytes)),
                Output::OpenRelaySocket { relay, address, .. } => {
                    let refused = self.refuse_ports.contains(&address.port());
                    if !refused {
                        self.sockets.insert(relay, address);
                    }
                    let opened = if refused { Err(self.refusal) } else { Ok(()) };
                    self.relay.handle_relay_opened(self.now, relay, opened);
                }
                Output::CloseRelaySocket { relay } => drop(self.sockets.remove(&relay)),
                Output::LookUpUser { .. } => unreachable!("nobody else is asked here"),
                other => self.others.push(other),
            }
        }
        replies
    }

    /// Handles a frame from a client.
    fn handle(&mut self, client: FiveTuple, bytes: &[u8]) -> Forward {
        handle(&mut self.relay, self.now, client, bytes)
    }

    /// Handles a frame from a client; returns what it sends to a peer.
    fn forward_to_peer(&mut self, client: FiveTuple, bytes: &[u8]) -> Option<ToPeer> {
        match self.handle(client, bytes) {
            Forward::Peer(to) => Some(to),
            _ => None,
        }
    }

    fn transaction(&mut self) -> TransactionId {
        self.next_id = self.next_id.wrapping_add(1);
        TransactionId::new([self.next_id; 12])
    }

    fn send(&mut self, client: FiveTuple, bytes: &[u8]) -> Vec<u8> {
        assert_eq!(self.handle(client, bytes), Forward::Control);
        let mut replies = self.drain();
        assert_eq!(replies.len(), 1, "one request, one answer");
        let (to, bytes) = replies.remove(0);
        assert_eq!(to, client);
        bytes
    }

    fn signed(&mut self, client: FiveTuple, user: &str, builder: Builder) -> Vec<u8> {
        let nonce = self.shared.authenticator.challenge(self.now, &client).nonce;
        let key = Key::from_bytes(&long_term_digest(user, "r", "pw"));
        builder
            .attribute(attr::USERNAME, user.as_bytes())
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(&key)
            .finish()
    }

    /// Sends a request as `user`; returns the error code (0 on success) and the bytes.
    fn ask(
        &mut self,
        port: u16,
        user: &str,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> (u16, Vec<u8>) {
        self.ask_from(tuple(port), user, method, fill)
    }

    fn ask_from(
        &mut self,
        client: FiveTuple,
        user: &str,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> (u16, Vec<u8>) {
        let builder = fill(Builder::new(Class::Request, method, self.transaction()));
        let bytes = self.signed(client, user, builder);
        let answer = self.send(client, &bytes);
        let message = Message::parse(&answer).unwrap();
        (message.unverified().error_code().unwrap_or(0), answer)
    }

    fn allocate(&mut self, port: u16) -> SocketAddr {
        let (code, answer) = self.ask(port, "alice", Method::ALLOCATE, udp);
        assert_eq!(code, 0);
        let key = Key::from_bytes(&long_term_digest("alice", "r", "pw"));
        let attributes = Message::parse(&answer).unwrap().verify(&key).expect("a success is signed");
        assert_eq!(attributes.xor_address(attr::XOR_MAPPED_ADDRESS), Ok(Some(tuple(port).client)));
        attributes.xor_address(attr::XOR_RELAYED_ADDRESS).unwrap().unwrap()
    }

    fn permit(&mut self, port: u16, peer: &str) -> u16 {
        self.ask(port, "alice", Method::CREATE_PERMISSION, |b| {
            b.xor_address(attr::XOR_PEER_ADDRESS, addr(peer))
        })
        .0
    }

    fn bind(&mut self, port: u16, channel: u16, peer: &str) -> u16 {
        self.ask(port, "alice", Method::CHANNEL_BIND, |b| channel_bind(b, channel, addr(peer))).0
    }

    fn refresh(&mut self, port: u16, user: &str, lifetime: u32) -> u16 {
        self.ask(port, user, Method::REFRESH, |b| b.attribute(attr::LIFETIME, &lifetime.to_be_bytes())).0
    }

    fn send_indication(&mut self, peer: &str, payload: &[u8]) -> Vec<u8> {
        Builder::new(Class::Indication, Method::SEND, self.transaction())
            .xor_address(attr::XOR_PEER_ADDRESS, addr(peer))
            .attribute(attr::DATA, payload)
            .finish()
    }

    /// Sends 3 bytes to `peer` in a Send indication; returns whether they are forwarded.
    fn indicate(&mut self, port: u16, peer: &str) -> bool {
        let bytes = self.send_indication(peer, b"abc");
        let forward = self.handle(tuple(port), &bytes);
        self.drain();
        !matches!(forward, Forward::Drop(_))
    }

    /// Sends `payload` to `peer` in a Send indication; returns the address it leaves from.
    fn send_data(&mut self, port: u16, peer: &str, payload: &[u8]) -> Option<SocketAddr> {
        let bytes = self.send_indication(peer, payload);
        let forward = self.forward_to_peer(tuple(port), &bytes)?;
        assert_eq!((&bytes[forward.payload], forward.peer), (payload, addr(peer)));
        let relay = forward.relay;
        self.drain();
        Some(self.sockets[&relay])
    }

    fn receive_from_peer(&mut self, relay: RelayId, peer: &str) -> Option<Vec<u8>> {
        let payload = b"hello";
        let forward = self.relay.handle_peer(self.now, relay, addr(peer), IP_HEADER, payload).ok()?;
        Some([forward.header.as_bytes(), &payload[forward.payload], &vec![0; forward.padding]].concat())
    }

    /// Lets `payload` come from `peer` to the relayed address `to`; returns the client's port that it is passed on to.
    fn receive_at(&mut self, to: SocketAddr, peer: &str, payload: &[u8]) -> Option<u16> {
        let relay = *self.sockets.iter().find(|(_, address)| **address == to)?.0;
        let forward = self.relay.handle_peer(self.now, relay, addr(peer), IP_HEADER, payload).ok();
        forward.map(|forward| forward.client.client.port())
    }

    fn only_socket(&self) -> usize {
        assert_eq!(self.sockets.len(), 1);
        *self.sockets.keys().next().unwrap()
    }
}

fn udp(builder: Builder) -> Builder {
    builder.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
}

fn channel_bind(builder: Builder, channel: u16, peer: SocketAddr) -> Builder {
    let [high, low] = channel.to_be_bytes();
    builder.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]).xor_address(attr::XOR_PEER_ADDRESS, peer)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn requests_without_the_magic_cookie_are_dropped() {
    let mut world = World::new();
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        let request = Builder::new(Class::Request, method, TransactionId([3; 16]));
        let bytes = request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).finish();
        let before = world.relay.drops().unexpected_message;
        assert_eq!(world.handle(tuple(4000), &bytes), Forward::Drop(DropReason::UnexpectedMessage));
        assert_eq!(
            (world.drain(), world.relay.drops().unexpected_message),
            (vec![], before + 1),
            "{method:?}"
        );
    }
}

#[test]
fn a_request_without_credentials_is_challenged_and_nothing_is_stored() {
    let mut world = World::new();
    let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([9; 12]))).finish();
    let answer = world.send(tuple(1), &bytes);
    let message = Message::parse(&answer).unwrap();
    assert_eq!(message.unverified().error_code(), Some(401));
    assert_eq!((message.realm(), message.nonce().is_some()), (Some("r"), true));
    assert!(world.relay.is_empty() && world.sockets.is_empty());
}

#[test]
fn data_flows_both_ways_only_with_a_permission() {
    let mut world = World::new();
    world.allocate(1);
    let id = world.only_socket();
    assert!(!world.indicate(1, PEER));
    assert_eq!(world.receive_from_peer(id, PEER), None);
    assert_eq!(world.permit(1, "8.8.8.8:0"), 0);
    assert!(world.indicate(1, PEER));
    assert!(!world.indicate(1, "8.8.8.8:0"), "port 0 is no destination");
    assert!(!world.indicate(1, "8.8.4.4:5000"));
    let data = world.receive_from_peer(id, PEER).unwrap();
    let message = Message::parse(&data).unwrap();
    assert_eq!(message.unverified().get(attr::DATA), Some(&b"hello"[..]));
    assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(addr(PEER))));
}

#[test]
fn a_channel_carries_data_both_ways() {
    let mut world = World::new();
    world.allocate(1);
    let id = world.only_socket();
    assert_eq!(world.bind(1, 0x4001, PEER), 0);
    let forward = world.forward_to_peer(tuple(1), b"\x40\x01\0\x02hi\0\0").unwrap();
    assert_eq!((forward.relay, forward.peer, forward.payload), (id, addr(PEER), 4..6));
    assert_eq!(world.receive_from_peer(id, PEER).unwrap(), b"\x40\x01\0\x05hello");
    assert_eq!(
        world.receive_from_peer(id, "8.8.8.8:1").unwrap()[..2],
        [0x00, 0x17],
        "another port has no channel"
    );
}

#[test]
fn channel_data_on_a_stream_is_padded() {
    let mut world = World::new();
    let client = FiveTuple { transport: Transport::Tcp, ..tuple(1) };
    let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, world.transaction()));
    let bytes = world.signed(client, "alice", bytes);
    world.send(client, &bytes);
    let bind = channel_bind(
        Builder::new(Class::Request, Method::CHANNEL_BIND, world.transaction()),
        0x4001,
        addr(PEER),
    );
    let bytes = world.signed(client, "alice", bind);
    world.send(client, &bytes);
    let id = world.only_socket();
    assert_eq!(world.receive_from_peer(id, PEER).unwrap(), b"\x40\x01\0\x05hello\0\0\0");
    world.relay.handle_client_gone(client);
    world.drain();
    assert!(world.relay.is_empty() && world.sockets.is_empty());
}

#[test]
fn channels_keep_the_rules_of_binding() {
    let mut world = World::new();
    world.allocate(1);
    assert_eq!(world.bind(1, 0x4001, PEER), 0);
    assert_eq!(world.bind(1, 0x4001, PEER), 0, "the same again refreshes");
    assert_eq!(world.bind(1, 0x4001, "8.8.4.4:1"), 400, "the number is bound to another peer");
    assert_eq!(world.bind(1, 0x4002, PEER), 400, "the peer is bound to another number");
    assert_eq!(world.bind(1, 0x3FFF, "8.8.4.4:1"), 400);
    assert_eq!(world.bind(1, 0x8000, "8.8.4.4:1"), 400);
    world.refresh(1, "alice", 3600);
    world.wait(600);
    assert_eq!(world.bind(1, 0x4002, PEER), 400, "the peer may still hear of the old channel");
    assert_eq!(world.bind(1, 0x4001, "8.8.4.4:1"), 400, "and so may the number");
    assert_eq!(world.bind(1, 0x4003, "8.8.4.4:1"), 0);
    world.wait(299);
    assert_eq!(world.bind(1, 0x4002, PEER), 400);
    world.wait(1);
    assert_eq!(world.bind(1, 0x4002, PEER), 0, "five minutes after its end a binding is forgotten");
    assert_eq!(world.bind(1, 0x4001, "8.8.4.4:2"), 0);
}

#[test]
fn permissions_channels_and_allocations_expire() {
    let mut world = World::new();
    world.allocate(1);
    world.permit(1, PEER);
    world.bind(1, 0x4001, "8.8.4.4:9");
    world.wait(299);
    assert!(world.indicate(1, PEER));
    world.wait(1);
    assert!(!world.indicate(1, PEER));
    assert_eq!(world.forward_to_peer(tuple(1), b"\x40\x01\0\0"), None, "its permission is over");
    assert_eq!(world.permit(1, "8.8.4.4:9"), 0);
    assert!(world.forward_to_peer(tuple(1), b"\x40\x01\0\0").is_some(), "its channel is not");
    world.wait(299);
    assert_eq!(world.relay.len(), 1);
    world.wait(1);
    assert!(world.relay.is_empty() && world.sockets.is_empty());
    assert_eq!(world.refresh(1, "alice", 600), 437);
}

#[test]
fn refresh_prolongs_and_zero_ends_at_once() {
    let mut world = World::new();
    world.allocate(1);
    world.permit(1, PEER);
    let id = world.only_socket();
    world.wait(500);
    assert_eq!(world.refresh(1, "alice", 1200), 0);
    world.wait(1100);
    assert_eq!(world.relay.len(), 1);
    assert_eq!(world.refresh(1, "alice", 0), 0);
    assert!(world.relay.is_empty() && world.sockets.is_empty());
    assert_eq!(world.receive_from_peer(id, PEER), None);
    world.allocate(1);
}

#[test]
fn lifetimes_are_kept_between_default_and_maximum() {
    let mut world = World::new();
    for (asked, granted) in [(1_u32, 600_u32), (700, 700), (u32::MAX, 3600)] {
        let port = asked as u16;
        let (_, answer) = world
            .ask(port, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::LIFETIME, &asked.to_be_bytes()));
        assert_eq!(Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME), Some(granted));
    }
}

#[test]
fn a_retransmitted_allocate_gets_the_same_answer_and_another_one_437() {
    let mut world = World::new();
    let builder = udp(Builder::new(Class::Request, Method::ALLOCATE, world.transaction()));
    let bytes = world.signed(tuple(1), "alice", builder);
    let first = world.send(tuple(1), &bytes);
    assert_eq!(world.send(tuple(1), &bytes), first);
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, udp).0, 437);
    assert_eq!(world.sockets.len(), 1);
}

#[test]
fn another_user_cannot_touch_an_allocation() {
    let mut world = World::new();
    world.allocate(1);
    assert_eq!(world.refresh(1, "bob", 0), 441);
    assert_eq!(
        world
            .ask(1, "bob", Method::CREATE_PERMISSION, |b| b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER)))
            .0,
        441
    );
    assert_eq!(world.relay.len(), 1);
}

#[test]
fn malformed_and_unsupported_allocates_have_their_codes() {
    let mut world = World::new();
    type Fill = fn(Builder) -> Builder;
    let cases: [(u16, Fill); 6] = [
        (400, |b| b),
        (400, |b| b.attribute(attr::REQUESTED_TRANSPORT, &[17])),
        (442, |b| b.attribute(attr::REQUESTED_TRANSPORT, &[99, 0, 0, 0])),
        (440, |b| udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0])),
        (420, |b| udp(b).attribute(0x7777, b"")),
        (0, |b| udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])),
    ];
    for (code, fill) in cases {
        assert_eq!(world.ask(1, "alice", Method::ALLOCATE, fill).0, code);
    }
    assert!(world.sockets.values().all(SocketAddr::is_ipv6));
    assert_eq!(world.permit(1, "[2606:4700::99]:0"), 0);
}

#[test]
fn without_an_allocation_everything_is_a_mismatch() {
    let mut world = World::new();
    assert_eq!(world.refresh(1, "alice", 600), 437);
    assert_eq!(world.permit(1, "127.0.0.1:1"), 437);
    assert_eq!(world.bind(1, 0x4001, PEER), 437);
    assert!(!world.indicate(1, PEER));
}

#[test]
fn denied_peers_get_403_in_permission_and_channel_and_are_dropped_in_send() {
    let mut world = World::new();
    world.allocate(1);
    for peer in ["127.0.0.1:80", "10.1.2.3:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80", "0.0.0.0:1"] {
        assert_eq!(world.permit(1, peer), 403, "{peer}");
        assert_eq!(world.bind(1, 0x4001, peer), 403, "{peer}");
        assert!(!world.indicate(1, peer), "{peer}");
    }
    let mixed = |b: Builder| {
        b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER))
            .xor_address(attr::XOR_PEER_ADDRESS, addr("10.0.0.1:0"))
    };
    assert_eq!(world.ask(1, "alice", Method::CREATE_PERMISSION, mixed).0, 403);
    assert!(!world.indicate(1, PEER), "all peers of a request are permitted or none");
    assert_eq!(world.ask(1, "alice", Method::CREATE_PERMISSION, |b| b).0, 400);
    assert_eq!(
        world.ask(1, "alice", Method::CREATE_PERMISSION, |b| b.attribute(attr::XOR_PEER_ADDRESS, b"")).0,
        400
    );
}

#[test]
fn two_clients_reach_each_other_through_their_relayed_addresses_and_nothing_else_there() {
    let mut world = World::new();
    let (one, two) = (world.allocate(1), world.allocate(2));
    assert_eq!(world.permit(1, &two.to_string()), 0);
    assert_eq!(world.bind(2, 0x4001, &one.to_string()), 0);
    assert!(world.indicate(1, &two.to_string()));
    let same_ip = |port: u16| SocketAddr::new(one.ip(), port).to_string();
    assert!(!world.indicate(1, &same_ip(3478)), "a permission for the address does not open the listener");
    assert!(!world.indicate(1, &same_ip(22)));
    let of_one = *world.sockets.iter().find(|(_, address)| **address == one).unwrap().0;
    assert!(world.receive_from_peer(of_one, &two.to_string()).is_some());
    assert!(world.receive_from_peer(of_one, &same_ip(3478)).is_none());
}

#[test]
fn quotas_and_ports_run_out_with_their_codes_and_come_back() {
    let mut world = World::with(shared(2, 50_000..=50_002));
    world.allocate(1);
    world.allocate(2);
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, udp).0, 486);
    assert_eq!(world.ask(3, "bob", Method::ALLOCATE, udp).0, 0);
    assert_eq!(world.ask(4, "bob", Method::ALLOCATE, udp).0, 508);
    world.refresh(1, "alice", 0);
    world.allocate(5);
}

#[test]
fn a_port_the_system_refuses_is_replaced_and_none_left_is_508() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    world.refuse_ports = HashSet::from([50_000, 50_001, 50_002]);
    assert_eq!(world.allocate(1).port(), 50_003);
    assert_eq!(world.ask(2, "alice", Method::ALLOCATE, udp).0, 508);
    assert_eq!((world.relay.len(), world.shared.quota.held()), (1, 1));
}

#[test]
fn even_port_sets_the_next_port_aside_for_its_user_once() {
    let mut world = World::with(shared(9, 50_000..=50_007));
    let token_of = |answer: &[u8]| {
        Message::parse(answer).unwrap().unverified().get(attr::RESERVATION_TOKEN).map(<[u8]>::to_vec)
    };
    let relayed = |answer: &[u8]| {
        let address = Message::parse(answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
        address.unwrap().unwrap().port()
    };
    let (code, plain) = world.ask(1, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0]));
    assert_eq!((code, relayed(&plain) % 2, token_of(&plain)), (0, 0, None));
    let (code, pair) =
        world.ask(2, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    assert_eq!((code, relayed(&pair) % 2), (0, 0));
    let token = token_of(&pair).unwrap();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(world.ask(3, "bob", Method::ALLOCATE, claim).0, 508);
    let (code, next) = world.ask(3, "alice", Method::ALLOCATE, claim);
    assert_eq!((code, relayed(&next)), (0, relayed(&pair) + 1));
    assert_eq!(world.ask(4, "alice", Method::ALLOCATE, claim).0, 508, "a token serves once");
    assert_eq!(world.ask(4, "alice", Method::ALLOCATE, |b| claim(b).attribute(attr::EVEN_PORT, &[0])).0, 400);
    let (_, pair) = world.ask(4, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let token = token_of(&pair).unwrap();
    world.wait(30);
    let late = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(world.ask(5, "alice", Method::ALLOCATE, late).0, 508);
}

#[test]
fn a_port_set_aside_comes_back_when_its_even_one_is_refused_or_nobody_claims_it() {
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let mut world = World::with(shared(9, 50_000..=50_001));
    world.refuse_ports = HashSet::from([50_000]);
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, even).0, 508);
    assert_eq!(world.shared.ports.leased(), 0, "at once");
    world.refuse_ports.clear();
    let builder = even(Builder::new(Class::Request, Method::ALLOCATE, world.transaction()));
    let bytes = world.signed(tuple(2), "alice", builder);
    world.handle(tuple(2), &bytes);
    world.relay.handle_client_gone(tuple(2));
    world.drain();
    assert_eq!(world.shared.ports.leased(), 0, "as when the client is gone before the even one is open");
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, even).0, 0);
    world.wait(20);
    world.refresh(3, "alice", 0);
    assert_eq!(world.shared.ports.leased(), 1, "the next port waits without the even one");
    assert!(world.relay.poll_timeout().is_some());
    world.wait(10);
    assert_eq!((world.shared.ports.leased(), world.relay.poll_timeout()), (0, None));
    assert_eq!(world.shared.quota.held(), 0);
}

#[test]
fn a_reservation_is_in_its_users_quota_until_its_allocation_takes_its_place() {
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let mut world = World::with(shared(3, 50_000..=50_099));
    let (code, pair) = world.ask(1, "alice", Method::ALLOCATE, even);
    assert_eq!((code, world.shared.quota.held()), (0, 2));
    assert_eq!(world.ask(2, "alice", Method::ALLOCATE, even).0, 486, "one is left, two are wanted");
    assert_eq!(world.shared.quota.held(), 2, "what was refused holds nothing");
    world.allocate(2);
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, udp).0, 486);
    let token = Message::parse(&pair).unwrap().unverified().get(attr::RESERVATION_TOKEN).unwrap().to_vec();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, claim).0, 0, "it is counted already");
    assert_eq!(world.shared.quota.held(), 3);
    world.refresh(2, "alice", 0);
    world.refresh(3, "alice", 0);
    assert_eq!(world.ask(2, "alice", Method::ALLOCATE, even).0, 0);
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, udp).0, 486);
    world.wait(30);
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, udp).0, 0, "nobody has claimed it in time");
}

#[test]
fn permissions_and_channels_of_one_allocation_are_capped() {
    let mut world = World::new();
    world.allocate(1);
    for i in 0..128 {
        assert_eq!(world.bind(1, 0x4000 + i, &format!("8.8.{i}.1:9")), 0);
    }
    world.wait(10);
    assert_eq!(world.bind(1, 0x4FFF, "9.9.9.9:9"), 508);
    assert_eq!(world.permit(1, "9.9.9.9:9"), 508);
    world.refresh(1, "alice", 3600);
    world.wait(900);
    assert_eq!(world.bind(1, 0x4FFF, "9.9.9.9:9"), 0, "expired ones make room");
}
