//! The hub under clients and a clock that do as they please: a token reaches only the two that it is for, a tag has one owner, and the
//! tables keep their caps.

use ginnel::clock::Now;
use ginnel::net::time;
use ginnel::signaling::wire::Tag;
use ginnel::signaling::{Config, Conn, Door, Hub, NotifyFrom, Output, Rate};
use ginnel::turn_server::auth::Revoked;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MAX_EVENTS: usize = 200;
/// Clients by UDP, each with two sockets, and by WebSocket.
const UDP: u8 = 4;
const WEB: u8 = 3;
const TAGS: usize = 5;
const CALLS: usize = 3;
const WAITS: [u64; 8] = [0, 400, 1100, 5000, 10_000, 29_000, 31_000, 61_000];
const SECRETS: [&str; 2] = ["the first owner's secret", "the second owner's secret"];

/// The first byte chooses how the hub is set up; then events follow, each one byte and its operands.
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
    world.wait(3_600_000);
    world.check();
    assert_eq!(world.hub.acts(), 0, "every act ends");
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

/// Who may hear of a token.
#[derive(Debug, Default)]
struct Act {
    callee: String,
    legs: BTreeSet<Leg>,
}

struct World {
    now: Now,
    hub: Hub,
    revoked: Arc<Revoked>,
    mid: i64,
    /// The WebSockets that are open, by client.
    webs: BTreeMap<u8, u64>,
    next_conn: u64,
    /// Whom each tag was given to last.
    owners: BTreeMap<String, Leg>,
    /// Calls that were asked for and not answered: by asker and `mid`, the callee's tag.
    asked: BTreeMap<(Leg, i64), String>,
    acts: BTreeMap<String, Act>,
    /// Notifications that were heard: where, their `mid` and their token.
    notices: Vec<(Leg, i64, String)>,
    tags: Vec<String>,
}

impl World {
    fn new(setup: u8) -> Self {
        let mut config = Config::default();
        config.limits.tags = TAGS;
        config.limits.calls = CALLS;
        config.limits.calls_per_tag = 2;
        config.limits.connections = usize::from(WEB) - 1;
        config.list = setup & 1 == 0;
        config.notify_from =
            [NotifyFrom::Both, NotifyFrom::Main, NotifyFrom::Aux][usize::from(setup >> 1) % 3];
        if setup & 0x80 == 0 {
            let plenty = Rate { burst: 1e6, per_second: 1e6 };
            (config.limits.per_source, config.limits.per_pair) = (plenty, plenty);
        }
        Self {
            now: time::now(),
            revoked: Arc::clone(&config.revoked),
            hub: Hub::new(config, ChaCha20Rng::from_seed([7; 32])),
            mid: 0,
            webs: BTreeMap::new(),
            next_conn: 0,
            owners: BTreeMap::new(),
            asked: BTreeMap::new(),
            acts: BTreeMap::new(),
            notices: Vec::new(),
            tags: Vec::new(),
        }
    }

    /// The leg of a client: its main socket, its hole socket, or its WebSocket if it has one.
    fn leg(&self, client: u8, hole: bool) -> Option<Leg> {
        match client % (UDP + WEB) {
            client if client < UDP => {
                let port = 1000 + u16::from(client) * 2 + u16::from(hole);
                Some(Leg::Udp(SocketAddr::from(([192, 0, 2, 1 + client / 2], port))))
            }
            client => self.webs.get(&client).map(|conn| Leg::Web(*conn)),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (what, client, operand) = (input.byte(), input.byte(), input.byte());
        if what == u8::MAX {
            return self.revoke(operand);
        }
        match what % 12 {
            0 => self.open(client),
            1 => self.close(client),
            2 => self.wait(WAITS[usize::from(operand) % WAITS.len()]),
            3 => self.ask(client, false, 1, json!({})),
            4 => self.ask(client, false, 1, json!({ "secret": SECRETS[usize::from(operand) % 2] })),
            5 => self.ask(client, false, 2, json!({ "tag": self.tag(operand) })),
            6 => self.ask(client, false, 3, json!({ "tag": self.tag(operand) })),
            7 => self.call(client, operand, input.byte()),
            8 | 9 => self.answer(client, operand, what % 12 == 9),
            10 => self.about_an_act(client, operand, input.byte()),
            _ => self.babble(client, operand, input),
        }
    }

    fn tag(&self, which: u8) -> String {
        let known = self.tags.get(usize::from(which) % self.tags.len().max(1));
        known.cloned().unwrap_or_else(|| "nobody".to_owned())
    }

    fn open(&mut self, client: u8) {
        let client = UDP + client % WEB;
        if self.webs.contains_key(&client) {
            return;
        }
        self.next_conn += 1;
        self.webs.insert(client, self.next_conn);
        self.hub.handle_web_opened(self.now, Conn(self.next_conn), [198, 51, 100, client].into());
        self.drain();
    }

    fn close(&mut self, client: u8) {
        if let Some(conn) = self.webs.remove(&(UDP + client % WEB)) {
            self.hub.handle_web_closed(self.now, Conn(conn));
            self.drain();
        }
    }

    /// Revokes a tag for a minute; nobody hears of its calls from then on but that they are over.
    fn revoke(&mut self, which: u8) {
        let tag = self.tag(which);
        self.revoked.revoke(self.now.unix, &tag, self.now.unix + 60).expect("room");
        self.hub.handle_revoked(self.now, &Tag::new(tag.as_str()).expect("a tag"));
        self.drain();
    }

    fn wait(&mut self, milliseconds: u64) {
        let until = self.now.after(Duration::from_millis(milliseconds));
        // Each deadline has its turn, as a run loop gives it.
        while let Some(at) = self.hub.poll_timeout().filter(|at| *at <= until.mono) {
            let ahead = at.saturating_duration_since(self.now.mono);
            self.now = self.now.after(ahead);
            self.hub.handle_timeout(self.now);
            self.drain();
            assert!(self.hub.poll_timeout().is_none_or(|next| next > at), "a deadline that is never met");
        }
        self.now = until;
        self.hub.handle_timeout(self.now);
        self.drain();
    }

    fn say(&mut self, leg: Leg, door: Door, bytes: &[u8]) {
        match leg {
            Leg::Udp(from) => self.hub.handle_datagram(self.now, door, from, None, bytes),
            Leg::Web(conn) => match std::str::from_utf8(bytes) {
                Ok(text) => self.hub.handle_web_text(self.now, Conn(conn), text),
                Err(_) => return,
            },
        }
        self.drain();
    }

    fn ask(&mut self, client: u8, hole: bool, t: i64, params: Value) {
        let Some(leg) = self.leg(client, hole) else { return };
        self.mid += 1;
        let padding = "x".repeat(500);
        let message = json!({ "t": t, "mid": self.mid, "params": params, "pad": padding });
        self.say(leg, Door::Main, message.to_string().as_bytes());
    }

    fn call(&mut self, client: u8, own: u8, other: u8) {
        let (own, other) = (self.tag(own), self.tag(other));
        if let Some(leg) = self.leg(client, true) {
            self.asked.insert((leg, self.mid + 1), other.clone());
        }
        self.ask(client, true, 4, json!({ "tag": own, "rtag": other }));
    }

    /// Answers a notification, or refuses it: from a leg of whoever heard it, or of somebody else.
    fn answer(&mut self, client: u8, which: u8, refuse: bool) {
        let Some((heard, mid, token)) =
            self.notices.get(usize::from(which) % self.notices.len().max(1)).cloned()
        else {
            return;
        };
        let Some(leg) = self.leg(client, which & 0x80 != 0) else { return };
        let same_host = match (leg, heard) {
            (Leg::Udp(one), Leg::Udp(other)) => one.ip() == other.ip(),
            (one, other) => one == other,
        };
        if same_host && let Some(act) = self.acts.get_mut(&token) {
            // The callee may answer from another socket than the one that it was notified on.
            act.legs.insert(leg);
        } else if self.acts.contains_key(&token) {
            // A stranger cannot know the `mid`.
            return;
        }
        let code = if refuse { 204 } else { 200 };
        let t = if refuse { 51 } else { -51 };
        let message = json!({ "t": t, "mid": mid, "token": token, "code": code });
        self.say(leg, Door::Aux, message.to_string().as_bytes());
    }

    /// Trickles, ends, or answers step 10, with a token that is its business or not.
    fn about_an_act(&mut self, client: u8, which: u8, what: u8) {
        let tokens: Vec<_> = self.acts.keys().cloned().collect();
        let Some(token) = tokens.get(usize::from(which) % tokens.len().max(1)).cloned() else { return };
        let Some(leg) = self.leg(client, what & 0x80 != 0) else { return };
        self.mid += 1;
        let message = match what % 3 {
            0 => json!({ "t": 54, "mid": self.mid, "token": token, "params": { "cands": ["candidate:1"] } }),
            1 => json!({ "t": 55, "mid": self.mid, "token": token, "params": { "reason": "x" } }),
            _ => {
                json!({ "t": -53, "mid": self.mid, "token": token, "extra": { "punching": what & 64 == 0 } })
            }
        };
        self.say(leg, Door::Main, message.to_string().as_bytes());
    }

    fn babble(&mut self, client: u8, len: u8, input: &mut Input<'_>) {
        let bytes: Vec<u8> = (0..len % 64).map(|_| input.byte()).collect();
        if let Some(leg) = self.leg(client, false) {
            self.say(leg, Door::Main, &bytes);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Datagram { to, payload, .. } => {
                    assert!(payload.len() <= 1200, "too long for a datagram");
                    self.hear(Leg::Udp(to), &serde_json::from_slice(&payload).expect("JSON"));
                }
                Output::Text { conn, text } => {
                    assert!(self.webs.values().any(|open| *open == conn.0), "a text to nobody");
                    self.hear(Leg::Web(conn.0), &serde_json::from_str(&text).expect("JSON"));
                }
                Output::Word { .. } => unreachable!("a hub that is alone"),
                Output::Close { conn } => {
                    self.webs.retain(|_, open| *open != conn.0);
                    self.hub.handle_web_closed(self.now, conn);
                }
            }
        }
    }

    fn hear(&mut self, leg: Leg, message: &Value) {
        let (t, mid) = (message["t"].as_i64().expect("a type"), message["mid"].as_i64());
        let extra = &message["extra"];
        if let Some(tag) = extra["tag"].as_str().filter(|_| t == -1) {
            self.owners.insert(tag.to_owned(), leg);
            if !self.tags.iter().any(|known| known == tag) {
                self.tags.push(tag.to_owned());
            }
        }
        if let Some(token) = extra["token"].as_str().filter(|_| t == -4) {
            let callee = self.asked.get(&(leg, mid.unwrap())).expect("only who asks gets a token").clone();
            let act = self.acts.entry(token.to_owned()).or_default();
            act.callee = callee;
            act.legs.insert(leg);
        }
        let Some(token) = message["token"].as_str() else { return };
        let Some(act) = self.acts.get_mut(token) else { panic!("a token that nobody was given: {message}") };
        if t == 51 && message["code"].is_null() {
            // Copies still go to where the tag was when it was called.
            if act.legs.insert(leg) {
                assert_eq!(self.owners.get(&act.callee), Some(&leg), "notified is who owns the tag");
            }
            self.notices.push((leg, mid.unwrap(), token.to_owned()));
        }
        assert!(act.legs.contains(&leg), "a token reaches somebody else: {message}");
    }

    fn check(&self) {
        assert!(self.hub.clients() <= TAGS && self.hub.acts() <= CALLS, "a table keeps its cap");
        assert!(self.hub.poll_timeout().is_none_or(|at| at > self.now.mono), "nothing is overdue");
    }
}
