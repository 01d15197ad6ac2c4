//! The hub: takes what clients say on any leg, and says what to send to whom. Pure.
//!
//! Here stand who is heard and what every reply is held to. The rules of t=1, 2, 3 and 60 stand in `presence.rs`, those of t=4
//! and all that follows in `acts.rs`, on the same [`Hub`].

use super::answers::Answers;
use super::calls::Calls;
use super::config::Config;
use super::identity::Challenges;
use super::leg::{Conn, Door, Leg, Network, Peer};
use super::presence::Claim;
use super::rate::{Rates, Verdict};
use super::registry::Registry;
use super::watches::Watches;
use super::wire::{self, Answer, Ask, Code, DecodeError, MAX_DATAGRAM, Message, Request, Response, Tag};
use crate::clock::Now;
use crate::ids::Pii;
use data_encoding::BASE32_NOPAD;
use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// What the hands must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Datagram {
        /// From which port.
        door: Door,
        /// To whom.
        to: SocketAddr,
        /// From which local address, where it is known.
        from_ip: Option<IpAddr>,
        /// What.
        payload: Vec<u8>,
    },
    /// Send a WebSocket text.
    Text {
        /// To whom.
        conn: Conn,
        /// What.
        text: String,
    },
    /// Close a WebSocket.
    Close {
        /// Whose.
        conn: Conn,
    },
}

/// The IP and UDP headers, which count when a reply is held against its request.
const HEADERS: usize = 28;
/// How much longer than its request a reply may be before the client's address is proven.
const AMPLIFICATION: usize = 3;
/// Request types whose repetition must not act twice (S0-A14). A heartbeat may act twice, to the same effect.
const ACTS_ONCE: [i64; 5] = [1, 3, 4, 54, 55];

/// Where a message came from, and how long it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) now: Now,
    pub(super) leg: Leg,
    pub(super) door: Door,
    pub(super) size: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Network(Network),
    Web(Conn),
}

/// The server side of signalling.
#[derive(Debug)]
pub struct Hub {
    pub(super) config: Config,
    pub(super) rng: ChaCha20Rng,
    pub(super) token_key: hmac::Key,
    pub(super) registry: Registry,
    pub(super) calls: Calls,
    pub(super) watches: Watches,
    pub(super) answers: Answers,
    pub(super) challenges: Challenges,
    pub(super) proofs: Rates<Network>,
    pub(super) sources: Rates<Origin>,
    pub(super) pairs: Rates<(Tag, Tag)>,
    pub(super) webs: HashMap<Conn, Network>,
    pub(super) webs_by_network: HashMap<Network, usize>,
    pub(super) outputs: VecDeque<Output>,
}

impl Hub {
    /// Makes a hub; tags, tokens and mids are drawn from `rng`.
    #[must_use]
    pub fn new(config: Config, mut rng: ChaCha20Rng) -> Self {
        let (mut key, mut challenge_key) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut key);
        rng.fill_bytes(&mut challenge_key);
        let limits = &config.limits;
        Self {
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            registry: Registry::new(&config.times, limits),
            calls: Calls::new(limits),
            watches: Watches::new(&config.times, limits),
            answers: Answers::new(config.times.answer, limits.answer_bytes),
            challenges: Challenges::new(challenge_key, config.times.challenge),
            proofs: Rates::new(limits.per_proof, limits.rates),
            sources: Rates::new(limits.per_source, limits.rates),
            pairs: Rates::new(limits.per_pair, limits.rates),
            webs: HashMap::new(),
            webs_by_network: HashMap::new(),
            outputs: VecDeque::new(),
            config,
            rng,
        }
    }

    /// Returns how many clients are online.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.registry.len()
    }

    /// Returns how many punching acts are under way.
    #[must_use]
    pub fn acts(&self) -> usize {
        self.calls.len()
    }

    /// Takes a datagram.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        door: Door,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) {
        if payload.len() <= MAX_DATAGRAM {
            let leg = Leg::udp(from, local_ip);
            self.take(Asker { now, leg, door, size: payload.len() }, payload);
            self.tell_changes(now.mono);
        }
    }

    /// Takes note of a new WebSocket; one over the caps is closed at once.
    pub fn handle_web_opened(&mut self, _now: Now, conn: Conn, peer_ip: IpAddr) {
        let network = Network::of(peer_ip);
        let of_network = self.webs_by_network.entry(network).or_default();
        let limits = &self.config.limits;
        if self.webs.len() >= limits.connections || *of_network >= limits.connections_per_network {
            tracing::debug!(ip = %Pii(peer_ip), "too many connections");
            self.outputs.push_back(Output::Close { conn });
        } else {
            *of_network += 1;
            self.webs.insert(conn, network);
        }
        self.forget_network(network);
    }

    /// Takes a WebSocket text.
    pub fn handle_web_text(&mut self, now: Now, conn: Conn, text: &str) {
        if self.webs.contains_key(&conn) {
            let asker = Asker { now, leg: Leg::web(conn), door: Door::Main, size: text.len() };
            self.take(asker, text.as_bytes());
            self.tell_changes(now.mono);
        }
    }

    /// Takes note of a WebSocket's end: its tag is offline at once (S0-A23).
    pub fn handle_web_closed(&mut self, now: Now, conn: Conn) {
        self.close_web(now, conn);
        self.tell_changes(now.mono);
    }

    pub(super) fn close_web(&mut self, now: Now, conn: Conn) {
        let Some(network) = self.webs.remove(&conn) else { return };
        if let Some(count) = self.webs_by_network.get_mut(&network) {
            *count -= 1;
        }
        self.forget_network(network);
        self.watches.forget(conn);
        let Some(client) = self.registry.remove_peer(Peer::Web(conn)) else { return };
        for id in self.calls.by_tag(&client.tag) {
            self.with_call(now.mono, id, |call, _| {
                if call.role_of(Peer::Web(conn)).is_some() {
                    call.fail(Code::NotOnline);
                }
            });
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(client) = self.registry.expire(now.mono) {
            tracing::debug!(tag = %Pii(&client.tag), "expired");
        }
        while let Some(id) = self.calls.pop_due(now.mono) {
            self.with_call(now.mono, id, |call, at| call.tick(at));
        }
        self.tell_changes(now.mono);
    }

    /// Returns the next thing to do, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Hub::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.registry.next_expiry(), self.calls.next_due(), self.watches.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    fn forget_network(&mut self, network: Network) {
        if self.webs_by_network.get(&network) == Some(&0) {
            self.webs_by_network.remove(&network);
        }
    }

    fn take(&mut self, asker: Asker, bytes: &[u8]) {
        let decoded = wire::decode(bytes);
        if decoded == Err(DecodeError::Undecodable) && matches!(asker.leg.peer, Peer::Udp(_)) {
            return;
        }
        let verdict = self.sources.take(self.origin(asker.leg.peer), asker.now.mono);
        let (t, mid) = match &decoded {
            Ok(Message::Request(request)) => (request.body.t(), request.mid),
            Err(DecodeError::Malformed { t, mid }) => (t.unwrap_or(0), *mid),
            Err(DecodeError::Unsupported { t, mid }) => (*t, *mid),
            Err(DecodeError::Undecodable) => (0, None),
            Ok(Message::Response(_)) if verdict != Verdict::Pass => return,
            Ok(Message::Response(response)) => return self.handle_response(asker, response),
        };
        match (verdict, decoded) {
            (Verdict::Drop, _) => {}
            (Verdict::Refuse, _) => self.fail(asker, t, mid, Code::TooMany),
            (Verdict::Pass, Ok(Message::Request(request))) => self.handle_request(asker, request),
            (Verdict::Pass, Err(DecodeError::Unsupported { .. })) => {
                self.fail(asker, t, mid, Code::Unsupported)
            }
            (Verdict::Pass, _) => self.fail(asker, t, mid, Code::Malformed),
        }
    }

    fn origin(&self, peer: Peer) -> Origin {
        match peer {
            Peer::Udp(address) => Origin::Network(Network::of(address.ip())),
            Peer::Web(conn) => Origin::Web(conn),
        }
    }

    fn handle_request(&mut self, asker: Asker, request: Request) {
        let (t, mid) = (request.body.t(), request.mid);
        let asked = mid.filter(|_| ACTS_ONCE.contains(&t)).map(|mid| (asker.leg.peer, t, mid));
        if let Some(text) = asked.and_then(|asked| self.answers.get(asked, asker.now.mono)) {
            return self.reply(asker, &text);
        }
        let answered = match request.body {
            Ask::Register { key, secret, epoch, proof, laddrs } => {
                let claim = Claim { secret: secret.as_deref(), epoch, proof: proof.as_ref(), laddrs };
                self.register(asker, mid, key.as_deref(), claim)
            }
            Ask::Heartbeat { tag } => self.heartbeat(asker, &tag),
            Ask::List { tag, after } => self.list(asker, mid, &tag, after.as_ref()),
            Ask::Challenge => {
                Ok(Answer::Challenged { nonce: self.challenges.issue(asker.leg.peer, asker.now.unix) })
            }
            Ask::Call { tag, rtag, ice } => self.call(asker, mid, (tag, rtag), ice),
            Ask::Trickle { token, cands, done, nat } => self.trickle(asker, token, cands, (done, nat)),
            Ask::End { token, reason } => self.end(asker, token, reason),
            Ask::Watch { tags, watch } => self.watch(asker, tags, watch),
            Ask::Notify { .. }
            | Ask::Answered { .. }
            | Ask::Question { .. }
            | Ask::Presence { .. }
            | Ask::Open
            | Ask::Punch { .. } => Err(Code::Unsupported),
        };
        let response = match answered {
            Ok(body) => Response { mid, body },
            Err(code) => Response::failure(t, mid, code),
        };
        tracing::debug!(t, ok = answered_well(&response), "request");
        let text = response.encode();
        if let Some(asked) = asked.filter(|_| !is_refusal(&response, Code::TooMany)) {
            self.answers.keep(asked, &text, asker.now.mono);
        }
        self.reply(asker, &text);
        // The callee hears of a call after the caller has its token.
        if let Answer::Calling { token } = &response.body
            && let Some(id) = self.calls.by_token(token)
        {
            self.apply(id);
        }
        if let Answer::Registered { tag, .. } = &response.body {
            for id in self.calls.by_tag(tag) {
                self.with_call(asker.now.mono, id, |call, _| call.follow(tag, asker.leg));
            }
        }
    }

    pub(super) fn send(&mut self, leg: Leg, door: Door, text: &str) {
        match leg.peer {
            Peer::Udp(to) => {
                let payload = text.as_bytes().to_vec();
                self.outputs.push_back(Output::Datagram { door, to, from_ip: leg.local_ip, payload });
            }
            Peer::Web(conn) if self.webs.contains_key(&conn) => {
                self.outputs.push_back(Output::Text { conn, text: text.to_owned() });
            }
            Peer::Web(_) => {}
        }
    }

    fn fail(&mut self, asker: Asker, t: i64, mid: Option<i64>, code: Code) {
        self.reply(asker, &Response::failure(t, mid, code).encode());
    }

    /// Answers through the door at which the request came, and never with more than the asker has room for.
    fn reply(&mut self, asker: Asker, text: &str) {
        if text.len() <= self.room(asker) {
            self.send(asker.leg, asker.door, text);
        }
    }

    /// How long a reply may be: three times the request until the address is proven, so that nobody is flooded in
    /// another's name.
    pub(super) fn room(&self, asker: Asker) -> usize {
        let room = asker.leg.room();
        let is_web = matches!(asker.leg.peer, Peer::Web(_));
        if is_web || self.registry.peer(asker.leg.peer).is_some_and(|client| client.proven) {
            return room;
        }
        room.min(AMPLIFICATION * (asker.size + HEADERS) - HEADERS)
    }
}

fn answered_well(response: &Response) -> bool {
    !matches!(response.body, Answer::Failed { .. })
}

fn is_refusal(response: &Response, with: Code) -> bool {
    matches!(response.body, Answer::Failed { code, .. } if code == with)
}

pub(super) fn base32(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}
