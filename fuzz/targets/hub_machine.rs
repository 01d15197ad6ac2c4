//! Hubs of several servers with arbitrary clients, bus and clock steps, checked against a model of what was sent and received: a token reaches only its two
//! sides, a tag has one owner, a watcher gets the true state in the end, every request is answered, the tables keep their caps, and no
//! state remains.

#[path = "hub_machine/bus.rs"]
mod bus;
#[path = "hub_machine/clients.rs"]
mod clients;
#[path = "hub_machine/model.rs"]
mod model;
#[path = "hub_machine/quiet.rs"]
mod quiet;

use bus::Lines;
use ginnel::Now;
use ginnel::internals::net::time;
use ginnel::internals::signaling::{Config, ConnId, Hub, NotifyFrom, Output, Rate};
use ginnel::internals::turn_server::auth::RevocationList;
use model::Model;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MAX_EVENTS: usize = 200;
/// Clients by UDP, each with two sockets and two on a host, and by WebSocket.
const UDP: u8 = 6;
const WEB: u8 = 4;
const TAGS: usize = 6;
const CALLS: usize = 3;
const WATCHES: usize = 3;
const WAITS: [u64; 8] = [0, 400, 1100, 5000, 10_000, 29_000, 31_000, 61_000];
/// Words wait no longer than this, in milliseconds: hubs are quick, if not at once.
const DELAY: u64 = 1100;

/// The first byte chooses how the hubs are set up; then events follow, each one byte and its operands.
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

/// Bytes that are used up; zeros when they are.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

/// A socket of a client's, or its WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leg {
    Udp(SocketAddr),
    Web(u64),
}

struct World {
    now: Now,
    hubs: Vec<Hub>,
    lines: Lines,
    revoked: Arc<RevocationList>,
    /// Nobody is refused because of how often it asks.
    is_patient: bool,
    mid: i64,
    /// Numbers what the hubs put out.
    at: u64,
    /// The WebSockets that are open, by client.
    webs: BTreeMap<u8, u64>,
    next_conn: u64,
    /// What was said last, by whom.
    last: Option<(Leg, Vec<u8>)>,
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
        config.list = setup & 1 == 0;
        config.notify_from =
            [NotifyFrom::Both, NotifyFrom::Main, NotifyFrom::Aux][usize::from(setup >> 1) % 3];
        let is_patient = setup & 0x80 == 0;
        if is_patient {
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
            lines: Lines::default(),
            is_patient,
            mid: 0,
            at: 0,
            webs: BTreeMap::new(),
            next_conn: 0,
            last: None,
            model: Model::default(),
        }
    }

    /// One event, and then some of the words that wait: what comes first says what, and how many.
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
            10 => self.about_an_act(client, operand, input.byte()),
            11 => self.babble(client, operand, input),
            12 | 29 => self.challenge(client),
            13 | 28 => self.prove(client, operand),
            14 | 23 => self.watch(client, operand, true),
            15 => self.watch(client, operand, false),
            16 => self.revoke(operand),
            17 => self.lines.jam(operand),
            18 => self.repeat(),
            _ => {}
        }
        self.carry(what >> 5, operand.into());
    }

    fn wait(&mut self, milliseconds: u64) {
        let is_long = milliseconds > DELAY;
        if is_long {
            self.carry_all(0);
        }
        let until = self.now.after(Duration::from_millis(milliseconds));
        // Each deadline has its turn, as a run loop gives it.
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
                    assert!(next.is_none_or(|next| next > at), "a deadline that is never met");
                }
            }
            if is_long {
                self.carry_all(0);
            }
        }
        self.now = until;
    }

    /// Takes what a hub puts out. What it says while it handles a word for a client is that word.
    fn drain(&mut self, hub: usize, said: Option<u64>) {
        while let Some(output) = self.hubs[hub].poll_output() {
            self.at += 1;
            match output {
                Output::Datagram { to, payload, .. } => {
                    assert!(payload.len() <= 1200, "too long for a datagram");
                    let message = serde_json::from_slice(&payload).expect("JSON");
                    self.model.hear(Leg::Udp(to), &message, (self.at, self.at), self.now.unix);
                }
                Output::Text { conn, text } => {
                    assert!(self.webs.values().any(|open| *open == conn.0), "a text to nobody");
                    assert_eq!(self.home_of(Leg::Web(conn.0)), hub, "from another server than its own");
                    let message = serde_json::from_str(&text).expect("JSON");
                    self.model.hear(
                        Leg::Web(conn.0),
                        &message,
                        (said.unwrap_or(self.at), self.at),
                        self.now.unix,
                    );
                }
                Output::Publish { to, message } => self.post(hub, &to, message),
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
        if self.is_patient && self.lines.is_empty() {
            self.model.check_answered();
        }
    }
}
