//! The hub: takes what clients say on any leg, and says what to send to whom. Pure.
//!
//! Here stand who is heard and what every reply is held to. The rules of t=1, 2, 3 and 60 stand in `presence.rs`, those of t=4
//! and all that follows in `acts.rs`, what several hubs have to say to each other in `talk.rs`, on the same [`Hub`].

use super::admission::Realm;
use super::answers::{Answers, Asked};
use super::bus::{Address, Said, Word};
use super::calls::{Calls, Outcomes};
use super::config::{Config, Limits};
use super::gathers::Gathers;
use super::identity;
use super::identity::Challenges;
use super::leg::{Conn, Door, Leg, Network, Peer};
use super::presence::Claim;
use super::quota::{Full, Quota};
use super::rate::{Rates, Verdict};
use super::registry::Registry;
use super::shards::{Shard, Shards};
use super::subscriptions::Subscriptions;
use super::texts::Texts;
use super::watches::Watches;
use super::wire::{self, Answer, Ask, Code, DecodeError, MAX_DATAGRAM, Message, Request, Response, Tag};
use crate::clock::Now;
use crate::ids::Pii;
use crate::limits::Limit;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Close a WebSocket that finds no room, and say why.
    Refuse {
        /// Whose.
        conn: Conn,
        /// Which limit is reached.
        limit: Limit,
    },
    /// Say something to another hub. Never with one hub alone.
    Word {
        /// To which.
        to: Address,
        /// What.
        word: Word,
    },
}

/// The IP and UDP headers, which count when a reply is held against its request.
const HEADERS: usize = 28;
/// How much longer than its request a reply may be before the client's address is proven.
const AMPLIFICATION: usize = 3;
/// Request types whose repetition must not act twice (S0-A14). A heartbeat may act twice, to the same effect.
const ACTS_ONCE: [i64; 5] = [1, 3, 4, 54, 55];
/// And on a WebSocket, where nothing is lost and so nothing repeated, but a second call would ring twice.
const ACTS_ONCE_ON_WEB: [i64; 1] = [4];

/// Where a message came from, and how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) now: Now,
    pub(super) leg: Leg,
    pub(super) door: Door,
    pub(super) network: Network,
    pub(super) size: usize,
    /// Whom the request is about, where the same `mid` for somebody else is another request; 0 for nobody.
    pub(super) about: u64,
    /// How long a reply may be by what another hub knows of the client.
    pub(super) room: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Network(Network),
    Web(Conn),
}

/// A WebSocket, as its home knows it.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) network: Network,
    /// The hub that its tag belongs to, once it has one.
    pub(super) tag_at: Option<Shard>,
    pub(super) admin: bool,
    pub(super) realm: Realm,
}

/// The server side of signalling, or one of several hubs that share it.
#[derive(Debug)]
pub struct Hub {
    pub(super) config: Config,
    pub(super) shards: Shards,
    pub(super) rng: ChaCha20Rng,
    pub(super) token_key: hmac::Key,
    pub(super) registry: Registry,
    pub(super) calls: Calls,
    pub(super) watches: Watches,
    pub(super) subscriptions: Subscriptions,
    pub(super) gathers: Gathers,
    pub(super) answers: Answers,
    pub(super) challenges: Challenges,
    pub(super) proofs: Rates<Network>,
    pub(super) sources: Rates<Origin>,
    pub(super) pairs: Rates<(Tag, Tag)>,
    pub(super) shared: SharedRates,
    pub(super) connections: Arc<Quota>,
    pub(super) webs: HashMap<Conn, Web>,
    /// UDP clients of this home whose tag belongs to another hub.
    pub(super) away: HashMap<Peer, Shard>,
    pub(super) outputs: VecDeque<Output>,
}

/// Rates that hold over all hubs, since a client has a say in which of them it asks.
#[derive(Debug, Clone)]
pub(super) struct SharedRates {
    lists: Arc<Mutex<Rates<Network>>>,
    unproven: Arc<Mutex<Rates<Network>>>,
}

impl SharedRates {
    fn new(limits: &Limits) -> Self {
        let rates = |rate| Arc::new(Mutex::new(Rates::new(rate, limits.rates)));
        Self { lists: rates(limits.per_list), unproven: rates(limits.per_unproven) }
    }

    /// Charges `network` for a list of about so many bytes.
    pub(super) fn take_list(&self, network: Network, bytes: usize, now: Instant) -> Verdict {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = lists.take(network, now);
        if verdict == Verdict::Pass {
            lists.charge(&network, bytes as f64);
        }
        verdict
    }

    /// Charges the network of an address that is to be sent something, and may know nothing of it.
    pub(super) fn take_unproven(&self, to: IpAddr, now: Instant) -> Verdict {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner).take(Network::site(to), now)
    }
}

/// What all hubs count together, and the keys that all must know.
struct Common {
    tags: Arc<Quota>,
    connections: Arc<Quota>,
    calls: Arc<AtomicUsize>,
    texts: Arc<Texts>,
    rates: SharedRates,
    keys: [[u8; 32]; 2],
}

impl Common {
    fn new(limits: &Limits, rng: &mut ChaCha20Rng) -> Self {
        let mut keys = [[0; 32]; 2];
        keys.iter_mut().for_each(|key| rng.fill_bytes(key));
        Self {
            tags: Arc::new(Quota::new(limits.tags, limits.tags_per_network)),
            connections: Arc::new(Quota::new(limits.connections, limits.connections_per_network)),
            calls: Arc::default(),
            texts: Texts::new(limits.call_bytes),
            rates: SharedRates::new(limits),
            keys,
        }
    }
}

impl Hub {
    /// Makes a hub that is alone; tags, tokens and mids are drawn from `rng`.
    #[must_use]
    pub fn new(config: Config, mut rng: ChaCha20Rng) -> Self {
        let common = Common::new(&config.limits, &mut rng);
        Self::one_of(config, Shards::ALONE, &common, rng)
    }

    /// Makes `count` hubs, at least one and at most sixteen, that share the clients; what one says to another comes as
    /// [`Output::Word`] and goes to [`Hub::handle_word`].
    #[must_use]
    pub fn several(config: &Config, count: usize, mut rng: ChaCha20Rng) -> Vec<Self> {
        let common = Common::new(&config.limits, &mut rng);
        let one = |shards| {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            Self::one_of(config.clone(), shards, &common, ChaCha20Rng::from_seed(seed))
        };
        Shards::all(count).map(one).collect()
    }

    fn one_of(config: Config, shards: Shards, common: &Common, rng: ChaCha20Rng) -> Self {
        let (limits, hubs) = (&config.limits, shards.count());
        let rates = limits.rates.div_ceil(hubs);
        let [token_key, challenge_key] = common.keys;
        Self {
            shards,
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &token_key),
            registry: Registry::new(&config.times, Arc::clone(&common.tags)),
            calls: Calls::new(limits, Arc::clone(&common.calls), Arc::clone(&common.texts)),
            watches: Watches::new(&config.times, limits, hubs),
            subscriptions: Subscriptions::default(),
            gathers: Gathers::default(),
            answers: Answers::new(config.times.answer, limits.answer_bytes.div_ceil(hubs)),
            challenges: Challenges::new(challenge_key, config.times.challenge),
            proofs: Rates::new(limits.per_proof, rates),
            sources: Rates::new(limits.per_source, rates),
            pairs: Rates::new(limits.per_pair, rates),
            shared: common.rates.clone(),
            connections: Arc::clone(&common.connections),
            webs: HashMap::new(),
            away: HashMap::new(),
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

    /// Says whether nothing is kept of any client, but how often it asked and what it was answered, which go by themselves.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_alone = self.registry.len() == 0 && self.webs.is_empty() && self.away.is_empty();
        let is_unwatched =
            self.watches.is_empty() && self.subscriptions.is_empty() && self.gathers.is_empty();
        is_alone && is_unwatched && self.calls.len() == 0 && self.outputs.is_empty()
    }

    /// Returns what has come of the calls that have ended.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        self.calls.outcomes
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
            let (leg, network) = (Leg::udp(from, local_ip), Network::of(from.ip()));
            self.take(Asker { now, leg, door, network, size: payload.len(), about: 0, room: 0 }, payload);
            self.tell_changes(now.mono);
        }
    }

    /// Takes note of a new WebSocket; one over the caps is closed at once.
    pub fn handle_web_opened(&mut self, _now: Now, conn: Conn, peer_ip: IpAddr) {
        let network = Network::of(peer_ip);
        if self.webs.contains_key(&conn) {
            return;
        }
        if let Err(full) = self.connections.take(network) {
            let limits = &self.config.limits;
            let (limit, value) = match full {
                Full::Network => (Limit::SignalingConnectionsPerNetwork, limits.connections_per_network),
                Full::Total => (Limit::SignalingConnections, limits.connections),
            };
            limit.reached(value);
            tracing::debug!(ip = %Pii(peer_ip), limit = limit.name(), "too many connections");
            self.outputs.push_back(Output::Refuse { conn, limit });
            return;
        }
        let web = Web { network, tag_at: None, admin: false, realm: Realm::default() };
        self.webs.insert(conn, web);
    }

    /// Takes a WebSocket text.
    pub fn handle_web_text(&mut self, now: Now, conn: Conn, text: &str) {
        if let Some(network) = self.webs.get(&conn).map(|web| web.network) {
            let leg = Leg::web(conn);
            let (door, size) = (Door::Main, text.len());
            let asker = Asker { now, leg, door, network, size, about: 0, room: 0 };
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
        let Some(web) = self.webs.remove(&conn) else { return };
        self.connections.leave(web.network);
        self.watches.forget(conn);
        let peer = Peer::Web(conn);
        match web.tag_at.filter(|at| *at != self.shards.own()) {
            Some(at) => self.say(Address::Hub(at), Said::Left { peer }),
            None => self.leave(now, peer),
        }
    }

    /// Closes a WebSocket, which may have its home at another hub.
    pub(super) fn hang_up(&mut self, now: Now, conn: Conn) {
        let home = self.shards.of_conn(conn);
        if home == self.shards.own() {
            self.close_web(now, conn);
            self.outputs.push_back(Output::Close { conn });
        } else {
            self.say(Address::Hub(home), Said::Close { conn });
        }
    }

    /// Takes a client out whose connection has ended, with the calls that cannot go on.
    pub(super) fn leave(&mut self, now: Now, peer: Peer) {
        let Some(client) = self.registry.remove_peer(peer) else { return };
        let Some(tag) = client.tag() else { return };
        for at in client.called.iter() {
            self.say(Address::Hub(at), Said::Offline { tag: tag.clone(), peer });
        }
        self.fail_calls(now, &tag, peer);
    }

    pub(super) fn fail_calls(&mut self, now: Now, tag: &Tag, peer: Peer) {
        for id in self.calls.by_tag(tag) {
            self.with_call(now.mono, id, |call, _| {
                if call.role_of(peer).is_some() {
                    call.fail(Code::NotOnline);
                }
            });
        }
    }

    pub(super) fn say(&mut self, to: Address, said: Said) {
        self.outputs.push_back(Output::Word { to, word: Word(said) });
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(client) = self.registry.expire(now.mono) {
            tracing::debug!(tag = ?client.tag().as_ref().map(Pii), "expired");
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

    fn take(&mut self, asker: Asker, bytes: &[u8]) {
        let decoded = wire::decode(bytes);
        if decoded == Err(DecodeError::Undecodable) && matches!(asker.leg.peer, Peer::Udp(_)) {
            return;
        }
        let verdict = self.sources.take(asker.origin(), asker.now.mono);
        if verdict != Verdict::Pass {
            Limit::SignalingPerSource.reached(self.config.limits.per_source.per_second as u64);
        }
        let (t, mid) = match &decoded {
            Ok(Message::Request(request)) => (request.body.t(), request.mid),
            Err(DecodeError::Malformed { t, mid }) => (t.unwrap_or(0), *mid),
            Err(DecodeError::Unsupported { t, mid }) => (*t, *mid),
            Err(DecodeError::Undecodable) => (0, None),
            Ok(Message::Response(_)) if verdict != Verdict::Pass => return,
            Ok(message @ Message::Response(_)) => return self.dispatch(asker, message.clone()),
        };
        match (verdict, decoded) {
            (Verdict::Drop, _) => {}
            (Verdict::Refuse, _) => self.fail(asker, t, mid, Code::TooMany),
            (Verdict::Pass, Ok(message)) => self.dispatch(asker, message),
            (Verdict::Pass, Err(DecodeError::Unsupported { .. })) => {
                self.fail(asker, t, mid, Code::Unsupported)
            }
            (Verdict::Pass, _) => self.fail(asker, t, mid, Code::Malformed),
        }
    }

    /// Handles a message where it belongs.
    fn dispatch(&mut self, asker: Asker, message: Message) {
        let to = self.belongs_to(asker, &message);
        if to == self.shards.own() {
            return self.handle_message(asker, message);
        }
        let asker = Asker { room: self.room(asker), ..asker };
        self.say(Address::Hub(to), Said::Heard(Box::new((asker, message))));
    }

    /// Says whose business a message is: the hub's of the tag or token in it, else the home's.
    fn belongs_to(&self, asker: Asker, message: &Message) -> Shard {
        let shards = &self.shards;
        let named = match message {
            Message::Request(request) => match &request.body {
                Ask::Register { secret: None, proof: None, .. } => self.tag_at(asker.leg.peer),
                Ask::Register { secret, proof, .. } => {
                    identity::owned_name(secret.as_deref(), proof.as_ref()).map(|name| shards.of_owned(name))
                }
                Ask::Heartbeat { tag } | Ask::List { tag, .. } | Ask::Call { tag, .. } => {
                    Some(shards.of_tag(tag))
                }
                Ask::Trickle { token, .. } | Ask::End { token, .. } => Some(shards.of_token(token)),
                _ => None,
            },
            Message::Response(response) => {
                match (response.body.token(), response.mid.and_then(Calls::of_mid)) {
                    (Some(token), _) => Some(shards.of_token(token)),
                    (None, Some(call)) => Some(shards.of_call(call)),
                    (None, None) => None,
                }
            }
        };
        named.unwrap_or(shards.own())
    }

    fn tag_at(&self, peer: Peer) -> Option<Shard> {
        match peer {
            Peer::Web(conn) => self.webs.get(&conn)?.tag_at,
            Peer::Udp(_) => self.away.get(&peer).copied(),
        }
    }

    pub(super) fn handle_message(&mut self, asker: Asker, message: Message) {
        match message {
            Message::Request(request) => self.handle_request(asker, request),
            Message::Response(response) => self.handle_response(asker, &response),
        }
    }

    fn handle_request(&mut self, asker: Asker, request: Request) {
        let (t, mid) = (request.body.t(), request.mid);
        let asker = Asker { about: about(&request.body), ..asker };
        if self.answer_again(asker, t, mid) {
            return;
        }
        let answered = match request.body {
            Ask::Register { key, secret, epoch, proof, laddrs } => {
                let claim = Claim { secret: secret.as_deref(), epoch, proof: proof.as_ref(), laddrs };
                self.register(asker, mid, key.as_deref(), claim).map(Some)
            }
            Ask::Heartbeat { tag } => self.heartbeat(asker, &tag).map(Some),
            Ask::List { tag, after } => self.list(asker, mid, tag, after),
            Ask::Challenge => {
                let nonce = self.challenges.issue(asker.leg.peer, asker.now.unix);
                Ok(Some(Answer::Challenged { nonce }))
            }
            Ask::Call { tag, rtag, ice } => self.call(asker, mid, (tag, rtag), ice).map(|()| None),
            Ask::Trickle { token, cands, done, nat } => {
                let trickled = self.trickle(asker, token, cands, (done, nat));
                // A WebSocket loses nothing: who shows no mid wants to hear of failures alone.
                let is_quiet = mid.is_none() && asker.leg.address().is_none();
                trickled.map(|answer| Some(answer).filter(|_| !is_quiet))
            }
            Ask::End { token, reason } => self.end(asker, token, reason).map(Some),
            Ask::Watch { tags, watch } => self.watch(asker, mid, tags, watch),
            Ask::Notify { .. }
            | Ask::Answered { .. }
            | Ask::Question { .. }
            | Ask::Presence { .. }
            | Ask::Open
            | Ask::Punch { .. } => Err(Code::Unsupported),
        };
        // What is not answered here will be, by another hub or when others have answered.
        if let Some(answered) = answered.transpose() {
            self.answer(asker, t, mid, answered);
        }
    }

    /// Answers a request, and any repetition of it in the same way.
    pub(super) fn answer(&mut self, asker: Asker, t: i64, mid: Option<i64>, answered: Result<Answer, Code>) {
        let response = match answered {
            Ok(body) => Response { mid, body },
            Err(code) => Response::failure(t, mid, code),
        };
        tracing::debug!(t, ok = answered_well(&response), "request");
        let text = response.encode();
        if let Some(asked) = asker.asked(t, mid).filter(|_| !is_refusal(&response, Code::TooMany)) {
            self.answers.keep(asked, &text, asker.now.mono);
        }
        self.reply(asker, &text);
        if let Answer::Registered { tag, .. } = &response.body {
            for id in self.calls.by_tag(tag) {
                self.with_call(asker.now.mono, id, |call, _| call.follow(tag, asker.leg));
            }
        }
    }

    /// Answers a repeated request as the first one was; says whether it was one.
    pub(super) fn answer_again(&mut self, asker: Asker, t: i64, mid: Option<i64>) -> bool {
        let text = asker.asked(t, mid).and_then(|asked| self.answers.get(asked, asker.now.mono));
        if let Some(text) = &text {
            self.reply(asker, text);
        }
        text.is_some()
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
            Peer::Web(conn) => {
                let home = self.shards.of_conn(conn);
                if home != self.shards.own() {
                    self.say(Address::Hub(home), Said::Text { conn, text: text.to_owned() });
                }
            }
        }
    }

    pub(super) fn fail(&mut self, asker: Asker, t: i64, mid: Option<i64>, code: Code) {
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
        room.min(AMPLIFICATION * (asker.size + HEADERS) - HEADERS).max(asker.room)
    }
}

impl Asker {
    /// Names a request whose repetition must not act twice.
    fn asked(&self, t: i64, mid: Option<i64>) -> Option<Asked> {
        let once = match self.leg.peer {
            Peer::Udp(_) => &ACTS_ONCE[..],
            Peer::Web(_) => &ACTS_ONCE_ON_WEB,
        };
        mid.filter(|_| once.contains(&t)).map(|mid| (self.leg.peer, t, mid, self.about))
    }

    fn origin(&self) -> Origin {
        match self.leg.peer {
            Peer::Udp(_) => Origin::Network(self.network),
            Peer::Web(conn) => Origin::Web(conn),
        }
    }
}

/// Clients of document 000 may call one after another under the same `mid`, as its figures do.
fn about(body: &Ask) -> u64 {
    let Ask::Call { rtag, .. } = body else { return 0 };
    let mut hasher = DefaultHasher::new();
    rtag.hash(&mut hasher);
    hasher.finish()
}

fn answered_well(response: &Response) -> bool {
    !matches!(response.body, Answer::Failed { .. })
}

fn is_refusal(response: &Response, with: Code) -> bool {
    matches!(response.body, Answer::Failed { code, .. } if code == with)
}
