//! Tests of the relay with a fake clock and fake sockets.

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

/// A relay, its clock, and the sockets that its driver would own.
struct TestRelay {
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

impl TestRelay {
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

    fn advance(&mut self, seconds: u64) {
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
                Output::LookUpUser { .. } => unreachable!("no look-ups are configured"),
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

    fn sign(&mut self, client: FiveTuple, user: &str, builder: Builder) -> Vec<u8> {
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
    fn request(
        &mut self,
        port: u16,
        user: &str,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> (u16, Vec<u8>) {
        self.request_from(tuple(port), user, method, fill)
    }

    fn request_from(
        &mut self,
        client: FiveTuple,
        user: &str,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> (u16, Vec<u8>) {
        let builder = fill(Builder::new(Class::Request, method, self.transaction()));
        let bytes = self.sign(client, user, builder);
        let answer = self.send(client, &bytes);
        let message = Message::parse(&answer).unwrap();
        (message.unverified().error_code().unwrap_or(0), answer)
    }

    fn allocate(&mut self, port: u16) -> SocketAddr {
        let (code, answer) = self.request(port, "alice", Method::ALLOCATE, udp);
        assert_eq!(code, 0);
        let key = Key::from_bytes(&long_term_digest("alice", "r", "pw"));
        let attributes = Message::parse(&answer).unwrap().verify(&key).expect("a success is signed");
        assert_eq!(attributes.xor_address(attr::XOR_MAPPED_ADDRESS), Ok(Some(tuple(port).client)));
        attributes.xor_address(attr::XOR_RELAYED_ADDRESS).unwrap().unwrap()
    }

    fn create_permission(&mut self, port: u16, peer: &str) -> u16 {
        self.request(port, "alice", Method::CREATE_PERMISSION, |b| {
            b.xor_address(attr::XOR_PEER_ADDRESS, addr(peer))
        })
        .0
    }

    fn bind_channel(&mut self, port: u16, channel: u16, peer: &str) -> u16 {
        self.request(port, "alice", Method::CHANNEL_BIND, |b| channel_bind(b, channel, addr(peer))).0
    }

    fn refresh(&mut self, port: u16, user: &str, lifetime: u32) -> u16 {
        self.request(port, user, Method::REFRESH, |b| b.attribute(attr::LIFETIME, &lifetime.to_be_bytes())).0
    }

    fn send_indication(&mut self, peer: &str, payload: &[u8]) -> Vec<u8> {
        Builder::new(Class::Indication, Method::SEND, self.transaction())
            .xor_address(attr::XOR_PEER_ADDRESS, addr(peer))
            .attribute(attr::DATA, payload)
            .finish()
    }

    /// Sends 3 bytes to `peer` in a Send indication; returns whether they are forwarded.
    fn send_from(&mut self, port: u16, peer: &str) -> bool {
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
    let mut server = TestRelay::new();
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        let request = Builder::new(Class::Request, method, TransactionId([3; 16]));
        let bytes = request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).finish();
        let before = server.relay.drops().unexpected_message;
        assert_eq!(server.handle(tuple(4000), &bytes), Forward::Drop(DropReason::UnexpectedMessage));
        assert_eq!(
            (server.drain(), server.relay.drops().unexpected_message),
            (vec![], before + 1),
            "{method:?}"
        );
    }
}

#[test]
fn a_request_without_credentials_is_challenged_and_nothing_is_stored() {
    let mut server = TestRelay::new();
    let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([9; 12]))).finish();
    let answer = server.send(tuple(1), &bytes);
    let message = Message::parse(&answer).unwrap();
    assert_eq!(message.unverified().error_code(), Some(401));
    assert_eq!((message.realm(), message.nonce().is_some()), (Some("r"), true));
    assert!(server.relay.is_empty() && server.sockets.is_empty());
}

#[test]
fn data_flows_both_ways_only_with_a_permission() {
    let mut server = TestRelay::new();
    server.allocate(1);
    let id = server.only_socket();
    assert!(!server.send_from(1, PEER));
    assert_eq!(server.receive_from_peer(id, PEER), None);
    assert_eq!(server.create_permission(1, "8.8.8.8:0"), 0);
    assert!(server.send_from(1, PEER));
    assert!(!server.send_from(1, "8.8.8.8:0"), "port 0 is no destination");
    assert!(!server.send_from(1, "8.8.4.4:5000"));
    let data = server.receive_from_peer(id, PEER).unwrap();
    let message = Message::parse(&data).unwrap();
    assert_eq!(message.unverified().get(attr::DATA), Some(&b"hello"[..]));
    assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(addr(PEER))));
}

#[test]
fn a_channel_carries_data_both_ways() {
    let mut server = TestRelay::new();
    server.allocate(1);
    let id = server.only_socket();
    assert_eq!(server.bind_channel(1, 0x4001, PEER), 0);
    let forward = server.forward_to_peer(tuple(1), b"\x40\x01\0\x02hi\0\0").unwrap();
    assert_eq!((forward.relay, forward.peer, forward.payload), (id, addr(PEER), 4..6));
    assert_eq!(server.receive_from_peer(id, PEER).unwrap(), b"\x40\x01\0\x05hello");
    assert_eq!(
        server.receive_from_peer(id, "8.8.8.8:1").unwrap()[..2],
        [0x00, 0x17],
        "another port has no channel"
    );
}

#[test]
fn channel_data_on_a_stream_is_padded() {
    let mut server = TestRelay::new();
    let client = FiveTuple { transport: Transport::Tcp, ..tuple(1) };
    let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, server.transaction()));
    let bytes = server.sign(client, "alice", bytes);
    server.send(client, &bytes);
    let bind = channel_bind(
        Builder::new(Class::Request, Method::CHANNEL_BIND, server.transaction()),
        0x4001,
        addr(PEER),
    );
    let bytes = server.sign(client, "alice", bind);
    server.send(client, &bytes);
    let id = server.only_socket();
    assert_eq!(server.receive_from_peer(id, PEER).unwrap(), b"\x40\x01\0\x05hello\0\0\0");
    server.relay.handle_client_gone(client);
    server.drain();
    assert!(server.relay.is_empty() && server.sockets.is_empty());
}

#[test]
fn a_channel_number_and_a_peer_are_bound_only_to_each_other() {
    let mut server = TestRelay::new();
    server.allocate(1);
    assert_eq!(server.bind_channel(1, 0x4001, PEER), 0);
    assert_eq!(server.bind_channel(1, 0x4001, PEER), 0, "the same again refreshes");
    assert_eq!(server.bind_channel(1, 0x4001, "8.8.4.4:1"), 400, "the number is bound to another peer");
    assert_eq!(server.bind_channel(1, 0x4002, PEER), 400, "the peer is bound to another number");
    assert_eq!(server.bind_channel(1, 0x3FFF, "8.8.4.4:1"), 400);
    assert_eq!(server.bind_channel(1, 0x8000, "8.8.4.4:1"), 400);
    server.refresh(1, "alice", 3600);
    server.advance(600);
    assert_eq!(server.bind_channel(1, 0x4002, PEER), 400, "the peer may still hear of the old channel");
    assert_eq!(server.bind_channel(1, 0x4001, "8.8.4.4:1"), 400, "and so may the number");
    assert_eq!(server.bind_channel(1, 0x4003, "8.8.4.4:1"), 0);
    server.advance(299);
    assert_eq!(server.bind_channel(1, 0x4002, PEER), 400);
    server.advance(1);
    assert_eq!(server.bind_channel(1, 0x4002, PEER), 0, "five minutes after its end a binding is forgotten");
    assert_eq!(server.bind_channel(1, 0x4001, "8.8.4.4:2"), 0);
}

#[test]
fn permissions_channels_and_allocations_expire() {
    let mut server = TestRelay::new();
    server.allocate(1);
    server.create_permission(1, PEER);
    server.bind_channel(1, 0x4001, "8.8.4.4:9");
    server.advance(299);
    assert!(server.send_from(1, PEER));
    server.advance(1);
    assert!(!server.send_from(1, PEER));
    assert_eq!(server.forward_to_peer(tuple(1), b"\x40\x01\0\0"), None, "its permission is over");
    assert_eq!(server.create_permission(1, "8.8.4.4:9"), 0);
    assert!(server.forward_to_peer(tuple(1), b"\x40\x01\0\0").is_some(), "its channel is not");
    server.advance(299);
    assert_eq!(server.relay.len(), 1);
    server.advance(1);
    assert!(server.relay.is_empty() && server.sockets.is_empty());
    assert_eq!(server.refresh(1, "alice", 600), 437);
}

#[test]
fn a_refresh_sets_the_lifetime_and_zero_deletes_the_allocation() {
    let mut server = TestRelay::new();
    server.allocate(1);
    server.create_permission(1, PEER);
    let id = server.only_socket();
    server.advance(500);
    assert_eq!(server.refresh(1, "alice", 1200), 0);
    server.advance(1100);
    assert_eq!(server.relay.len(), 1);
    assert_eq!(server.refresh(1, "alice", 0), 0);
    assert!(server.relay.is_empty() && server.sockets.is_empty());
    assert_eq!(server.receive_from_peer(id, PEER), None);
    server.allocate(1);
}

#[test]
fn a_lifetime_is_at_least_the_default_and_at_most_the_maximum() {
    let mut server = TestRelay::new();
    for (asked, granted) in [(1_u32, 600_u32), (700, 700), (u32::MAX, 3600)] {
        let port = asked as u16;
        let (_, answer) = server.request(port, "alice", Method::ALLOCATE, |b| {
            udp(b).attribute(attr::LIFETIME, &asked.to_be_bytes())
        });
        assert_eq!(Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME), Some(granted));
    }
}

#[test]
fn a_retransmitted_allocate_gets_the_same_response_and_a_second_allocate_437() {
    let mut server = TestRelay::new();
    let builder = udp(Builder::new(Class::Request, Method::ALLOCATE, server.transaction()));
    let bytes = server.sign(tuple(1), "alice", builder);
    let first = server.send(tuple(1), &bytes);
    assert_eq!(server.send(tuple(1), &bytes), first);
    assert_eq!(server.request(1, "alice", Method::ALLOCATE, udp).0, 437);
    assert_eq!(server.sockets.len(), 1);
}

#[test]
fn requests_of_another_user_for_an_allocation_are_refused() {
    let mut server = TestRelay::new();
    server.allocate(1);
    assert_eq!(server.refresh(1, "bob", 0), 441);
    assert_eq!(
        server
            .request(1, "bob", Method::CREATE_PERMISSION, |b| b
                .xor_address(attr::XOR_PEER_ADDRESS, addr(PEER)))
            .0,
        441
    );
    assert_eq!(server.relay.len(), 1);
}

#[test]
fn malformed_and_unsupported_allocates_get_their_error_codes() {
    let mut server = TestRelay::new();
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
        assert_eq!(server.request(1, "alice", Method::ALLOCATE, fill).0, code);
    }
    assert!(server.sockets.values().all(SocketAddr::is_ipv6));
    assert_eq!(server.create_permission(1, "[2606:4700::99]:0"), 0);
}

#[test]
fn requests_without_an_allocation_get_437() {
    let mut server = TestRelay::new();
    assert_eq!(server.refresh(1, "alice", 600), 437);
    assert_eq!(server.create_permission(1, "127.0.0.1:1"), 437);
    assert_eq!(server.bind_channel(1, 0x4001, PEER), 437);
    assert!(!server.send_from(1, PEER));
}

#[test]
fn a_denied_peer_is_403_in_create_permission_and_channel_bind_and_dropped_in_send() {
    let mut server = TestRelay::new();
    server.allocate(1);
    for peer in ["127.0.0.1:80", "10.1.2.3:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80", "0.0.0.0:1"] {
        assert_eq!(server.create_permission(1, peer), 403, "{peer}");
        assert_eq!(server.bind_channel(1, 0x4001, peer), 403, "{peer}");
        assert!(!server.send_from(1, peer), "{peer}");
    }
    let mixed = |b: Builder| {
        b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER))
            .xor_address(attr::XOR_PEER_ADDRESS, addr("10.0.0.1:0"))
    };
    assert_eq!(server.request(1, "alice", Method::CREATE_PERMISSION, mixed).0, 403);
    assert!(!server.send_from(1, PEER), "all peers of a request are permitted or none");
    assert_eq!(server.request(1, "alice", Method::CREATE_PERMISSION, |b| b).0, 400);
    assert_eq!(
        server.request(1, "alice", Method::CREATE_PERMISSION, |b| b.attribute(attr::XOR_PEER_ADDRESS, b"")).0,
        400
    );
}

#[test]
fn two_clients_reach_each_other_through_their_relayed_addresses_and_no_other_port() {
    let mut server = TestRelay::new();
    let (one, two) = (server.allocate(1), server.allocate(2));
    assert_eq!(server.create_permission(1, &two.to_string()), 0);
    assert_eq!(server.bind_channel(2, 0x4001, &one.to_string()), 0);
    assert!(server.send_from(1, &two.to_string()));
    let same_ip = |port: u16| SocketAddr::new(one.ip(), port).to_string();
    assert!(!server.send_from(1, &same_ip(3478)), "a permission for the address does not open the listener");
    assert!(!server.send_from(1, &same_ip(22)));
    let of_one = *server.sockets.iter().find(|(_, address)| **address == one).unwrap().0;
    assert!(server.receive_from_peer(of_one, &two.to_string()).is_some());
    assert!(server.receive_from_peer(of_one, &same_ip(3478)).is_none());
}

#[test]
fn a_full_quota_is_486_no_free_port_is_508_and_both_are_released() {
    let mut server = TestRelay::with(shared(2, 50_000..=50_002));
    server.allocate(1);
    server.allocate(2);
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, udp).0, 486);
    assert_eq!(server.request(3, "bob", Method::ALLOCATE, udp).0, 0);
    assert_eq!(server.request(4, "bob", Method::ALLOCATE, udp).0, 508);
    server.refresh(1, "alice", 0);
    server.allocate(5);
}

#[test]
fn a_port_that_cannot_be_opened_is_replaced_and_508_is_sent_if_none_is_left() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    server.refuse_ports = HashSet::from([50_000, 50_001, 50_002]);
    assert_eq!(server.allocate(1).port(), 50_003);
    assert_eq!(server.request(2, "alice", Method::ALLOCATE, udp).0, 508);
    assert_eq!((server.relay.len(), server.shared.quota.held()), (1, 1));
}

#[test]
fn even_port_reserves_the_next_port_for_one_allocation_of_its_user() {
    let mut server = TestRelay::with(shared(9, 50_000..=50_007));
    let token_of = |answer: &[u8]| {
        Message::parse(answer).unwrap().unverified().get(attr::RESERVATION_TOKEN).map(<[u8]>::to_vec)
    };
    let relayed = |answer: &[u8]| {
        let address = Message::parse(answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
        address.unwrap().unwrap().port()
    };
    let (code, plain) =
        server.request(1, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0]));
    assert_eq!((code, relayed(&plain) % 2, token_of(&plain)), (0, 0, None));
    let (code, pair) =
        server.request(2, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    assert_eq!((code, relayed(&pair) % 2), (0, 0));
    let token = token_of(&pair).unwrap();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(server.request(3, "bob", Method::ALLOCATE, claim).0, 508);
    let (code, next) = server.request(3, "alice", Method::ALLOCATE, claim);
    assert_eq!((code, relayed(&next)), (0, relayed(&pair) + 1));
    assert_eq!(server.request(4, "alice", Method::ALLOCATE, claim).0, 508, "a token serves once");
    assert_eq!(
        server.request(4, "alice", Method::ALLOCATE, |b| claim(b).attribute(attr::EVEN_PORT, &[0])).0,
        400
    );
    let (_, pair) =
        server.request(4, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let token = token_of(&pair).unwrap();
    server.advance(30);
    let late = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(server.request(5, "alice", Method::ALLOCATE, late).0, 508);
}

#[test]
fn a_reserved_port_is_released_if_its_allocation_fails_or_it_is_not_used() {
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let mut server = TestRelay::with(shared(9, 50_000..=50_001));
    server.refuse_ports = HashSet::from([50_000]);
    assert_eq!(server.request(1, "alice", Method::ALLOCATE, even).0, 508);
    assert_eq!(server.shared.ports.leased(), 0, "at once");
    server.refuse_ports.clear();
    let builder = even(Builder::new(Class::Request, Method::ALLOCATE, server.transaction()));
    let bytes = server.sign(tuple(2), "alice", builder);
    server.handle(tuple(2), &bytes);
    server.relay.handle_client_gone(tuple(2));
    server.drain();
    assert_eq!(server.shared.ports.leased(), 0, "as when the client is gone before the even one is open");
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, even).0, 0);
    server.advance(20);
    server.refresh(3, "alice", 0);
    assert_eq!(server.shared.ports.leased(), 1, "the next port waits without the even one");
    assert!(server.relay.poll_timeout().is_some());
    server.advance(10);
    assert_eq!((server.shared.ports.leased(), server.relay.poll_timeout()), (0, None));
    assert_eq!(server.shared.quota.held(), 0);
}

#[test]
fn a_reservation_counts_towards_its_users_quota_until_it_is_used() {
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let mut server = TestRelay::with(shared(3, 50_000..=50_099));
    let (code, pair) = server.request(1, "alice", Method::ALLOCATE, even);
    assert_eq!((code, server.shared.quota.held()), (0, 2));
    assert_eq!(server.request(2, "alice", Method::ALLOCATE, even).0, 486, "one is left, two are wanted");
    assert_eq!(server.shared.quota.held(), 2, "what was refused holds nothing");
    server.allocate(2);
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, udp).0, 486);
    let token = Message::parse(&pair).unwrap().unverified().get(attr::RESERVATION_TOKEN).unwrap().to_vec();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, claim).0, 0, "it is counted already");
    assert_eq!(server.shared.quota.held(), 3);
    server.refresh(2, "alice", 0);
    server.refresh(3, "alice", 0);
    assert_eq!(server.request(2, "alice", Method::ALLOCATE, even).0, 0);
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, udp).0, 486);
    server.advance(30);
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, udp).0, 0, "the reservation has expired");
}

#[test]
fn the_permissions_and_channels_of_an_allocation_are_limited() {
    let mut server = TestRelay::new();
    server.allocate(1);
    for i in 0..128 {
        assert_eq!(server.bind_channel(1, 0x4000 + i, &format!("8.8.{i}.1:9")), 0);
    }
    server.advance(10);
    assert_eq!(server.bind_channel(1, 0x4FFF, "9.9.9.9:9"), 508);
    assert_eq!(server.create_permission(1, "9.9.9.9:9"), 508);
    server.refresh(1, "alice", 3600);
    server.advance(900);
    assert_eq!(server.bind_channel(1, 0x4FFF, "9.9.9.9:9"), 0, "expired channels are not counted");
}
