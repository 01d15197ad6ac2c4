//! Tests of the hub with a fake clock and a fake network.

mod abuse;
mod access;
mod addresses;
mod calls;
mod counters;
mod locating;
mod loss;
mod nodes;
mod presence;
mod resumption;
mod service;
mod tag_ownership;
mod watching;

use super::wire::Tag;
use super::{
    AccessKey, Bus, Config, ConnId, Destination, Hub, IceServers, NodeId, Output, ServerPort, SingleServer,
    Undelivered,
};
use crate::clock::Now;
use crate::net::time::now;
use crate::turn_server::auth::RestSecret;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// With this many servers, most calls between two clients involve two hubs.
const HUBS: usize = 3;

/// Returns the server that a UDP client reaches.
fn node_of(ip: IpAddr, count: usize) -> usize {
    match ip {
        IpAddr::V4(ip) => usize::from(ip.octets()[3]) % count,
        IpAddr::V6(ip) => usize::from(ip.segments()[7]) % count,
    }
}

/// Returns the server that a WebSocket reaches.
fn node_of_conn(conn: ConnId, count: usize) -> usize {
    conn.0 as usize % count
}

/// The hubs of several servers, with the interface of one.
struct Cluster(Vec<Hub>);

impl Cluster {
    fn of_conn(&mut self, conn: ConnId) -> &mut Hub {
        let node = node_of_conn(conn, self.0.len());
        &mut self.0[node]
    }

    fn handle_datagram(
        &mut self,
        now: Now,
        port: ServerPort,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) {
        let node = node_of(from.ip(), self.0.len());
        self.0[node].handle_datagram(now, port, from, local_ip, payload);
    }

    fn handle_websocket_opened(&mut self, now: Now, conn: ConnId, ip: IpAddr) {
        self.of_conn(conn).handle_websocket_opened(now, conn, ip);
    }

    fn handle_websocket_text(&mut self, now: Now, conn: ConnId, text: &str) {
        self.of_conn(conn).handle_websocket_text(now, conn, text);
    }

    fn handle_websocket_closed(&mut self, now: Now, conn: ConnId) {
        self.of_conn(conn).handle_websocket_closed(now, conn);
    }

    fn handle_revoked(&mut self, now: Now, tag: &Tag) {
        let node = NodeId::of_tag(tag, self.0.len());
        self.0[node.index()].handle_revoked(now, tag);
    }

    fn handle_timeout(&mut self, now: Now) {
        self.0.iter_mut().for_each(|hub| hub.handle_timeout(now));
    }

    fn sum(&self, of: impl Fn(&Hub) -> usize) -> usize {
        self.0.iter().map(of).sum()
    }

    fn registered(&self, tag: &Tag) -> bool {
        self.0.iter().any(|hub| hub.registry.by_tag(tag).is_some())
    }

    fn clients(&self) -> usize {
        self.sum(Hub::clients)
    }

    fn calls(&self) -> usize {
        self.sum(Hub::calls)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().filter_map(Hub::poll_timeout).min()
    }

    /// Delivers messages between hubs until there is an output for a client; returns it with the node that has it.
    fn poll_any(&mut self, now: Now) -> Option<(usize, Output)> {
        let count = self.0.len();
        loop {
            let poll = |(node, hub): (usize, &mut Hub)| hub.poll_output().map(|output| (node, output));
            let (node, output) = self.0.iter_mut().enumerate().find_map(poll)?;
            let Output::Publish { to, message } = output else { return Some((node, output)) };
            let to = match to {
                Destination::Tag(tag) => NodeId::of_tag(&tag, count),
                Destination::Node(node) => node,
            };
            self.0[to.index()].handle_hub_message(now, message);
        }
    }

    fn poll_output(&mut self, now: Now) -> Option<Output> {
        self.poll_any(now).map(|(_, output)| output)
    }
}

/// The hubs, their clock, and the outputs that no test has taken yet.
struct TestHubs {
    cluster: Cluster,
    now: Now,
    sent: Vec<Output>,
}

fn config() -> Config {
    Config {
        access_keys: vec![AccessKey::new("the key")],
        ice_servers: IceServers {
            stun_urls: vec!["stun:192.0.2.1:3478".into()],
            turn_urls: vec!["turn:192.0.2.1:3478".into()],
            secret: Some(RestSecret::new(b"secret")),
            ..IceServers::default()
        },
        stun2: Some("192.0.2.1:3479".into()),
        ..Config::default()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn parsed(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).unwrap()
}

impl TestHubs {
    /// Several servers.
    fn new(config: Config) -> Self {
        Self::with_hubs(&config, HUBS)
    }

    /// One server, whose limits hold for all clients.
    fn single(config: Config) -> Self {
        Self::with_hubs(&config, 1)
    }

    fn with_hubs(config: &Config, count: usize) -> Self {
        let cluster = Cluster(Hub::cluster(config, count, [7; 32]));
        Self { cluster, now: now(), sent: Vec::new() }
    }

    fn drain(&mut self) {
        while let Some(output) = self.cluster.poll_output(self.now) {
            self.sent.push(output);
        }
    }

    /// Sends a datagram to port 1.
    fn send_udp(&mut self, from: &str, message: &Value) {
        self.send_udp_to(ServerPort::Main, from, message);
    }

    fn send_udp_to(&mut self, port: ServerPort, from: &str, message: &Value) {
        self.cluster.handle_datagram(self.now, port, address(from), None, message.to_string().as_bytes());
        self.drain();
    }

    fn send_text(&mut self, conn: u64, message: &Value) {
        self.cluster.handle_websocket_text(self.now, ConnId(conn), &message.to_string());
        self.drain();
    }

    fn open(&mut self, conn: u64) {
        self.cluster.handle_websocket_opened(self.now, ConnId(conn), [198, 51, 100, 1].into());
        self.drain();
    }

    fn close(&mut self, conn: u64) {
        self.cluster.handle_websocket_closed(self.now, ConnId(conn));
        self.drain();
    }

    /// Advances the clock; every timer fires when it is due.
    fn advance(&mut self, by: Duration) {
        let end = self.now.after(by);
        while let Some(due) = self.cluster.poll_timeout().filter(|due| *due <= end.mono) {
            self.now = self.now.after(due.saturating_duration_since(self.now.mono));
            self.cluster.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn advance_ms(&mut self, ms: u64) {
        self.advance(Duration::from_millis(ms));
    }

    /// Removes and returns the messages sent to a UDP address, with their ports.
    fn take_datagrams(&mut self, to: &str) -> Vec<(ServerPort, Value)> {
        let to_find = address(to);
        let (found, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|output| matches!(output, Output::Datagram { to, .. } if *to == to_find));
        self.sent = rest;
        let message = |output| match output {
            Output::Datagram { port, payload, .. } => Some((port, parsed(&payload))),
            _ => None,
        };
        Vec::into_iter(found).filter_map(message).collect()
    }

    /// Removes and returns the messages sent to a WebSocket.
    fn take_texts(&mut self, conn: u64) -> Vec<Value> {
        let (found, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|output| matches!(output, Output::Text { conn: to, .. } if to.0 == conn));
        self.sent = rest;
        let message = |output| match output {
            Output::Text { text, .. } => Some(parsed(text.as_bytes())),
            _ => None,
        };
        Vec::into_iter(found).filter_map(message).collect()
    }

    /// Sends a request over UDP and returns the only answer.
    fn request_udp(&mut self, from: &str, message: &Value) -> Value {
        self.send_udp(from, message);
        one(self.take_datagrams(from).into_iter().map(|(_, value)| value).collect())
    }

    /// Sends a request over a WebSocket and returns the only answer.
    fn request_websocket(&mut self, conn: u64, message: &Value) -> Value {
        self.send_text(conn, message);
        one(self.take_texts(conn))
    }

    /// Registers over UDP and proves the address.
    fn register_udp(&mut self, from: &str) -> String {
        let answer = self.request_udp(from, &json!({"t": 1, "mid": 1}));
        let tag = answer["extra"]["tag"].as_str().unwrap().to_owned();
        assert_eq!(self.request_udp(from, &json!({"t": 2, "tag": tag}))["t"], -2);
        tag
    }

    /// Opens a WebSocket and registers on it.
    fn register_websocket(&mut self, conn: u64) -> String {
        self.open(conn);
        let answer = self.request_websocket(conn, &json!({"t": 1, "mid": 1}));
        answer["extra"]["tag"].as_str().unwrap().to_owned()
    }
}

fn one(mut values: Vec<Value>) -> Value {
    assert_eq!(values.len(), 1, "{values:?}");
    values.remove(0)
}

fn code(value: &Value) -> i64 {
    value["code"].as_i64().unwrap()
}
