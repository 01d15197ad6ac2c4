//! Hubs of several servers with arbitrary clients, bus and clock steps, checked against a model of what was sent and received: a token reaches only its two
//! sides, a tag has one owner, a watcher gets the true state in the end, every request is answered, the tables keep their caps, and no
//! state remains.

#[path = "hub_machine/bus.rs"]
mod bus;
#[path = "hub_machine/clients.rs"]
mod clients;
#[path = "hub_machine/end_checks.rs"]
mod end_checks;
#[path = "input.rs"]
mod input;
#[path = "hub_machine/model.rs"]
mod model;

use bus::BusQueues;
use ginnel::Now;
use ginnel::internals::net::time;
use ginnel::internals::signaling::{Config, ConnId, Hub, NotifyFrom, Output, Rate};
use ginnel::internals::turn_server::auth::RevocationList;
use input::Input;
use model::Model;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MAX_EVENTS: usize = 200;
/// UDP clients, each with two sockets and two on a host; WebSocket clients.
const UDP: u8 = 6;
const WEB: u8 = 4;
const TAGS: usize = 6;
const CALLS: usize = 3;
const WATCHES: usize = 3;
const WAITS: [u64; 8] = [0, 400, 1100, 5000, 10_000, 29_000, 31_000, 61_000];
/// The longest delay of a bus message in milliseconds.
const DELAY: u64 = 1100;

/// The first byte chooses the setup of the hubs. Events follow, each of one byte and its operands.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(input.byte());
    for _ in 0..MAX_EVENTS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check();
    }
    world.end();
}

/// A UDP socket or the WebSocket of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    Udp(SocketAddr),
    Web(u64),
}

struct World {
    now: Now,
    hubs: Vec<Hub>,
    bus: BusQueues,
    revoked: Arc<RevocationList>,
    /// No rate limit is within reach.
    is_unlimited: bool,
    mid: i64,
    /// The number of the last output of a hub.
    output_number: u64,
    /// The open WebSockets by client.
    webs: BTreeMap<u8, u64>,
    next_conn: u64,
    /// The last request and its sender.
    last: Option<(Endpoint, Vec<u8>)>,
    model: Model,
}

impl World {
    fn new(setup: u8) -> Self {
        let mut config = Config::default();
        config.limits.tags = TAGS;
        config.limits.calls = CALLS;
        config.limits.calls_per_tag = 2;
        config.limits.connections = usize::from(WEB) - 1;
        config.limits.watches_per_client = WATCHES;
        // Large tables would take most of the time of an input.
        config.limits.rates = 256;
        config.list = setup & 1 == 0;
        config.notify_from =
            [NotifyFrom::Both, NotifyFrom::Main, NotifyFrom::Aux][usize::from(setup >> 1) % 3];
        let is_unlimited = setup & 0x80 == 0;
        if is_unlimited {
            let plenty = Rate::new(1e6, 1e6);
            let limits = &mut config.limits;
            (limits.per_source, limits.per_pair, limits.per_proof) = (plenty, plenty, plenty);
            (limits.per_list, limits.per_unproven) = (Rate::new(1e6, 1e9), plenty);
        }
        let count = 3 - usize::from(setup >> 3) % 3;
        Self {
            now: time::now(),
            revoked: Arc::clone(&config.revoked),
            hubs: Hub::cluster(&config, count, [7; 32]),
            bus: BusQueues::default(),
            is_unlimited,
            mid: 0,
            output_number: 0,
            webs: BTreeMap::new(),
            next_conn: 0,
            last: None,
            model: Model::default(),
        }
    }

    /// Handles one event, then delivers some bus messages: the first byte chooses the event and the delivery.
    fn step(&mut self, input: &mut Input<'_>) {
        let (what, client, operand) = (input.byte(), input.byte(), input.byte());
        match what % 32 {
            0 | 22 => self.open(client),
            1 => self.close(client),
            2 | 24 => self.wait(WAITS[usize::from(operand) % WAITS.len()]),
            3 => self.register(client),
            4 | 20 | 26 => self.own(client, operand),
            5 | 27 => self.heartbeat(client, operand),
            6 => self.list(client, operand),
            7 | 21 | 30 => self.call(client, operand, input.byte()),
            8 | 25 => self.answer(client, operand, false),
            9 => self.answer(client, operand, true),
            10 => self.send_in_call(client, operand, input.byte()),
            11 => self.send_garbage(client, operand, input),
            12 | 29 => self.challenge(client),
            13 | 28 => self.prove(client, operand),
            14 | 23 => self.watch(client, operand, true),
            15 => self.watch(client, operand, false),
            16 => self.revoke(operand),
            17 => self.bus.set_full(operand),
            18 => self.repeat(),
            _ => {}
        }
        self.deliver(what >> 5, operand.into());
    }

    fn wait(&mut self, milliseconds: u64) {
        let is_long = milliseconds > DELAY;
        if is_long {
            self.deliver_all(0);
        }
        let until = self.now.after(Duration::from_millis(milliseconds));
        // The hub handles each deadline, as in a run loop.
        while let Some(at) = self.hubs.iter().filter_map(Hub::poll_timeout).min() {
            if at > until.mono {
                break;
            }
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            for hub in 0..self.hubs.len() {
                if self.hubs[hub].poll_timeout().is_some_and(|due| due <= at) {
                    self.hubs[hub].handle_timeout(self.now);
                    self.drain(hub, None);
                    let next = self.hubs[hub].poll_timeout();
                    assert!(next.is_none_or(|next| next > at), "no deadline is overdue");
                }
            }
            if is_long {
                self.deliver_all(0);
            }
        }
        self.now = until;
    }

    /// Polls the outputs of a hub. `cause` is the number of the bus message that caused them.
    fn drain(&mut self, hub: usize, cause: Option<u64>) {
        while let Some(output) = self.hubs[hub].poll_output() {
            self.output_number += 1;
            // The hub of a tag decides; the hub of the client may send the answer later, when the tag is revoked or has another owner.
            let numbers = (cause.unwrap_or(self.output_number), self.output_number);
            match output {
                Output::Datagram { to, payload, .. } => {
                    assert!(payload.len() <= 1200, "too long for a datagram");
                    assert_eq!(self.hub_of(Endpoint::Udp(to)), hub, "only its own server sends to a client");
                    let message = serde_json::from_slice(&payload).expect("JSON");
                    self.model.handle_message(Endpoint::Udp(to), &message, numbers, self.now.unix);
                }
                Output::Text { conn, text } => {
                    assert!(self.webs.values().any(|open| *open == conn.0), "a text to a closed WebSocket");
                    assert_eq!(
                        self.hub_of(Endpoint::Web(conn.0)),
                        hub,
                        "only its own server sends to a client"
                    );
                    let message = serde_json::from_str(&text).expect("JSON");
                    self.model.handle_message(Endpoint::Web(conn.0), &message, numbers, self.now.unix);
                }
                Output::Publish { to, message } => self.publish(hub, &to, message),
                Output::Close { conn } | Output::Refuse { conn, .. } => {
                    self.webs.retain(|_, open| *open != conn.0);
                    self.model.forget(conn.0);
                    self.hubs[hub].handle_websocket_closed(self.now, ConnId(conn.0));
                }
            }
        }
    }

    fn sum(&self, of: impl Fn(&Hub) -> usize) -> usize {
        self.hubs.iter().map(of).sum()
    }

    fn check(&self) {
        let is_bounded = |hub: &Hub| hub.clients() <= TAGS && hub.calls() <= CALLS;
        assert!(self.hubs.iter().all(is_bounded), "a table keeps its limit");
        let is_ahead = |hub: &Hub| hub.poll_timeout().is_none_or(|at| at > self.now.mono);
        assert!(self.hubs.iter().all(is_ahead), "nothing is overdue");
        if self.is_unlimited && self.bus.is_empty() {
            self.model.check_answered();
        }
    }
}
