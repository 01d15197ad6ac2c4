//! The hub: the state machine of signalling. Pure.
//!
//! This file receives messages, limits their rates, dispatches them and limits replies. On the same [`Hub`], `presence.rs` handles
//! t=1, 2, 3 and 60, `call_requests.rs` handles t=4 and all that follows, `locate_requests.rs` handles t=61 and 62, and `hub_messages.rs` handles other hubs.

use super::bus::{Destination, HubMessage, HubPayload};
use super::call_table::CallTable;
use super::client_addr::{ClientAddr, ClientRoute, ConnId, ServerPort};
use super::config::Config;
use super::connections::WebSocketClient;
use super::counters::HubCounters;
use super::locators::Locators;
use super::nodes::{NodeId, Nodes};
use super::pending_queries::PendingQueries;
use super::presence::TagClaim;
use super::registry::Registry;
use super::response_cache::ResponseCache;
use super::subscriptions::Subscriptions;
use super::tag_ownership;
use super::tag_ownership::Challenges;
use super::watches::Watches;
use super::wire::{
    self, DecodeError, ErrorCode, MAX_DATAGRAM, Message, MessageType, Request, RequestBody, ResponseBody, Tag,
};
use crate::clock::Now;
use crate::ids::Pii;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, Quota, Rate};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// An action for the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Datagram {
        /// The server's port to send from.
        port: ServerPort,
        /// The destination.
        to: SocketAddr,
        /// The local address to send from, if it is known.
        from_ip: Option<IpAddr>,
        /// The JSON message.
        payload: Vec<u8>,
    },
    /// Send a WebSocket text.
    Text {
        /// The receiver.
        conn: ConnId,
        /// The JSON message.
        text: String,
    },
    /// Close a WebSocket.
    Close {
        /// The WebSocket.
        conn: ConnId,
    },
    /// Close a WebSocket because a limit is reached; the close frame names the limit.
    Refuse {
        /// The WebSocket.
        conn: ConnId,
        /// The limit.
        limit: Limit,
    },
    /// Send a message to another hub. A single server has none.
    Publish {
        /// The receiver.
        to: Destination,
        /// The message.
        message: HubMessage,
    },
}

/// The sender of a message, and the limits of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestOrigin {
    pub(super) now: Now,
    pub(super) route: ClientRoute,
    pub(super) port: ServerPort,
    pub(super) network: NetworkPrefix,
    pub(super) size: usize,
    /// A hash of the callee, since one `mid` may be used for calls to several; otherwise 0.
    pub(super) about: u64,
    /// The maximum length of a reply that the client's own hub has computed; 0 if this hub is the first.
    pub(super) max_len: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum RateKey {
    Network(NetworkPrefix),
    WebSocket(ConnId),
}

/// The state machine of signalling: tags, calls and watches of one server.
///
/// Inputs, each with the current time:
///
/// - [`handle_datagram`](Self::handle_datagram): a UDP datagram at port 1 or 2.
/// - [`handle_websocket_opened`](Self::handle_websocket_opened), [`handle_websocket_text`](Self::handle_websocket_text),
///   [`handle_websocket_closed`](Self::handle_websocket_closed): the events of a WebSocket.
/// - [`handle_hub_message`](Self::handle_hub_message), [`handle_undelivered`](Self::handle_undelivered): a message from another hub,
///   and one that the bus did not accept. A single server never calls them.
/// - [`handle_revoked`](Self::handle_revoked): a tag was added to [`Config::revoked`].
/// - [`handle_timeout`](Self::handle_timeout): the time that [`poll_timeout`](Self::poll_timeout) returned has come.
///
/// After each input, drain [`poll_output`](Self::poll_output), which returns what to send and close ([`Output`]), and set the timer
/// for [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Hub {
    pub(super) config: Config,
    pub(super) nodes: Nodes,
    pub(super) rng: ChaCha20Rng,
    pub(super) token_key: hmac::Key,
    pub(super) registry: Registry,
    pub(super) calls: CallTable,
    pub(super) watches: Watches,
    pub(super) subscriptions: Subscriptions,
    pub(super) queries: PendingQueries,
    pub(super) responses: ResponseCache,
    pub(super) challenges: Challenges,
    pub(super) proofs: KeyedRateLimiter<NetworkPrefix>,
    pub(super) sources: KeyedRateLimiter<RateKey>,
    /// Errors to clients that exceed their rate: one per second.
    pub(super) refusals: KeyedRateLimiter<RateKey>,
    pub(super) pairs: KeyedRateLimiter<(Tag, Tag)>,
    pub(super) lists: KeyedRateLimiter<NetworkPrefix>,
    pub(super) unproven: KeyedRateLimiter<NetworkPrefix>,
    pub(super) locators: Locators,
    pub(super) locates: KeyedRateLimiter<NetworkPrefix>,
    pub(super) connections: Arc<Quota<NetworkPrefix>>,
    pub(super) websockets: HashMap<ConnId, WebSocketClient>,
    /// UDP clients of this node whose tag belongs to another one.
    pub(super) away: HashMap<ClientAddr, NodeId>,
    pub(super) counters: HubCounters,
    pub(super) outputs: VecDeque<Output>,
}

impl Hub {
    /// Creates the hub of a single server. Tags, tokens and `mid`s are derived from `seed`, which must be secret.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let keys = draw_keys(&mut rng);
        Self::of_node(config, Nodes::SINGLE, keys, rng)
    }

    /// Creates the hubs of `count` servers, at least one and at most sixteen. A message between them leaves one as
    /// [`Output::Publish`] and enters the other by [`Hub::handle_hub_message`]. The limits of `config` apply to each hub.
    #[must_use]
    pub fn cluster(config: &Config, count: usize, seed: [u8; 32]) -> Vec<Self> {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let keys = draw_keys(&mut rng);
        let one = |nodes| {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            Self::of_node(config.clone(), nodes, keys, ChaCha20Rng::from_seed(seed))
        };
        Nodes::all(count).map(one).collect()
    }

    /// Creates the hub of one node. All nodes must have the same keys.
    fn of_node(
        config: Config,
        nodes: Nodes,
        [token_key, challenge_key]: [[u8; 32]; 2],
        mut rng: ChaCha20Rng,
    ) -> Self {
        let limits = &config.limits;
        let keys = limits.rates;
        let tags = Quota::new(limits.tags, limits.tags_per_network);
        Self {
            nodes,
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &token_key),
            registry: Registry::new(&config.times, tags),
            calls: CallTable::new(limits),
            watches: Watches::new(&config.times, limits),
            subscriptions: Subscriptions::default(),
            queries: PendingQueries::default(),
            responses: ResponseCache::new(config.times.answer, limits.answer_bytes),
            challenges: Challenges::new(challenge_key, config.times.challenge),
            proofs: limits.limiter(limits.per_proof, keys, &mut rng),
            sources: limits.limiter(limits.per_source, keys, &mut rng),
            refusals: limits.limiter(Rate::new(1.0, 1.0), keys, &mut rng),
            pairs: limits.limiter(limits.per_pair, keys, &mut rng),
            lists: limits.limiter(limits.per_list, keys, &mut rng),
            unproven: limits.limiter(limits.per_unproven, keys, &mut rng),
            locators: Locators::default(),
            locates: limits.limiter(limits.per_locate, keys, &mut rng),
            connections: Quota::new(limits.connections, limits.connections_per_network),
            websockets: HashMap::new(),
            away: HashMap::new(),
            counters: HubCounters::default(),
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

    /// Returns how many calls are in progress.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Returns whether no state of a client is left except rates and cached responses, which expire.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let has_no_clients = self.registry.len() == 0 && self.websockets.is_empty() && self.away.is_empty();
        let has_no_watches =
            self.watches.is_empty() && self.subscriptions.is_empty() && self.queries.is_empty();
        has_no_clients && has_no_watches && self.calls.len() == 0 && self.outputs.is_empty()
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> HubCounters {
        HubCounters {
            clients: self.registry.len() as u64,
            websockets: self.websockets.len() as u64,
            calls: self.calls.len() as u64,
            locators: self.locators.len() as u64,
            calls_ended: self.calls.outcomes,
            ..self.counters
        }
    }

    /// Handles a datagram.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        port: ServerPort,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) {
        if payload.len() <= MAX_DATAGRAM {
            let network = NetworkPrefix::subscriber(from.ip());
            let route = ClientRoute::udp(self.nodes.own(), from, local_ip);
            self.handle_bytes(
                RequestOrigin { now, route, port, network, size: payload.len(), about: 0, max_len: 0 },
                payload,
            );
            self.send_presence_changes(now.mono);
        }
    }

    pub(super) fn publish(&mut self, to: Destination, payload: HubPayload) {
        self.counters.hub_messages_sent += 1;
        self.outputs.push_back(Output::Publish { to, message: HubMessage(payload) });
    }

    /// Handles all timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(client) = self.registry.expire(now.mono) {
            tracing::debug!(tag = ?client.tag().as_ref().map(Pii), "expired");
        }
        while let Some(id) = self.calls.pop_due(now.mono) {
            self.with_call(now.mono, id, |call, at| call.handle_timeout(at));
        }
        self.locators.expire(now.mono);
        self.send_presence_changes(now.mono);
    }

    /// Returns the next action, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Hub::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.registry.next_expiry(),
            self.calls.next_due(),
            self.watches.next_due(),
            self.locators.next_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn handle_bytes(&mut self, origin: RequestOrigin, bytes: &[u8]) {
        let decoded = wire::decode(bytes);
        if decoded == Err(DecodeError::Undecodable) && matches!(origin.route.addr, ClientAddr::Udp(_)) {
            return;
        }
        let (key, now) = (origin.rate_key(), origin.now.mono);
        let passes = self.sources.try_take(&key, now, 1);
        if !passes {
            Limit::SignalingPerSource.reached(self.config.limits.per_source.per_second());
        }
        let (t, mid) = match &decoded {
            Ok(Message::Request(request)) => (request.body.message_type(), request.mid),
            Err(DecodeError::Malformed { t, mid }) => (t.unwrap_or(MessageType::Other(0)), *mid),
            Err(DecodeError::Unsupported { t, mid }) => (*t, *mid),
            Err(DecodeError::Undecodable) => (MessageType::Other(0), None),
            Ok(Message::Response(_)) if !passes => return,
            Ok(message @ Message::Response(_)) => return self.dispatch(origin, message.clone()),
        };
        match decoded {
            _ if !passes => {
                if self.refusals.try_take(&key, now, 1) {
                    self.fail(origin, t, mid, ErrorCode::TooMany);
                }
            }
            Ok(message) => self.dispatch(origin, message),
            Err(DecodeError::Unsupported { .. }) => self.fail(origin, t, mid, ErrorCode::Unsupported),
            Err(_) => self.fail(origin, t, mid, ErrorCode::Malformed),
        }
    }

    /// Handles a message, or forwards it to the node that it belongs to.
    fn dispatch(&mut self, origin: RequestOrigin, message: Message) {
        let to = self.belongs_to(origin, &message);
        if to == self.nodes.own() {
            return self.handle_message(origin, message);
        }
        let origin = RequestOrigin { max_len: self.max_len(origin), ..origin };
        self.publish(Destination::Node(to), HubPayload::Forwarded(Box::new((origin, message))));
    }

    /// Returns the node of a message's tag or token, or this node.
    fn belongs_to(&self, origin: RequestOrigin, message: &Message) -> NodeId {
        let nodes = &self.nodes;
        let named = match message {
            Message::Request(request) => match &request.body {
                RequestBody::Register { secret: None, proof: None, .. } => self.tag_at(origin.route.addr),
                RequestBody::Register { secret, proof, .. } => {
                    tag_ownership::owned_tag_id(secret.as_deref(), proof.as_ref())
                        .map(|name| nodes.of_tag_id(name))
                }
                RequestBody::Heartbeat { tag }
                | RequestBody::List { tag, .. }
                | RequestBody::Call { tag, .. }
                | RequestBody::Locator { tag, .. }
                | RequestBody::Locate { tag, .. } => Some(nodes.of_tag(tag)),
                RequestBody::Trickle { token, .. } | RequestBody::End { token, .. } => {
                    Some(nodes.of_token(token))
                }
                _ => None,
            },
            Message::Response(response) => {
                match (response.body.token(), response.mid.and_then(CallTable::of_mid)) {
                    (Some(token), _) => Some(nodes.of_token(token)),
                    (None, Some(call)) => Some(nodes.of_call(call)),
                    (None, None) => None,
                }
            }
        };
        named.unwrap_or(nodes.own())
    }

    fn tag_at(&self, addr: ClientAddr) -> Option<NodeId> {
        match addr {
            ClientAddr::WebSocket(conn) => self.websockets.get(&conn)?.tag_at,
            ClientAddr::Udp(_) => self.away.get(&addr).copied(),
        }
    }

    pub(super) fn handle_message(&mut self, origin: RequestOrigin, message: Message) {
        match message {
            Message::Request(request) => self.handle_request(origin, request),
            Message::Response(response) => self.handle_response(origin, &response),
        }
    }

    fn handle_request(&mut self, origin: RequestOrigin, request: Request) {
        let (t, mid) = (request.body.message_type(), request.mid);
        let origin = RequestOrigin { about: about(&request.body), ..origin };
        if self.answer_again(origin, t, mid) {
            return;
        }
        let answered = match request.body {
            RequestBody::Register { key, secret, epoch, proof, laddrs } => {
                let claim = TagClaim { secret: secret.as_deref(), epoch, proof: proof.as_ref(), laddrs };
                self.handle_register(origin, mid, key.as_deref(), claim).map(Some)
            }
            RequestBody::Heartbeat { tag } => self.handle_heartbeat(origin, &tag).map(Some),
            RequestBody::List { tag, after } => self.handle_list(origin, mid, tag, after),
            RequestBody::Challenge => {
                let nonce = self.challenges.issue(origin.route.addr, origin.now.unix);
                Ok(Some(ResponseBody::Challenged { nonce }))
            }
            RequestBody::Call { tag, rtag, ice } => {
                self.handle_call(origin, mid, (tag, rtag), ice).map(|()| None)
            }
            RequestBody::Trickle { token, cands, done, nat } => {
                let trickled = self.handle_trickle(origin, token, cands, (done, nat));
                // A WebSocket loses nothing: without a `mid` only failures are answered.
                let is_quiet = mid.is_none() && origin.route.udp_addr().is_none();
                trickled.map(|answer| Some(answer).filter(|_| !is_quiet))
            }
            RequestBody::End { token, reason } => self.handle_end(origin, token, reason).map(Some),
            RequestBody::Watch { tags, watch } => self.handle_watch(origin, mid, tags, watch),
            RequestBody::Locator { tag, release } => self.handle_locator(origin, &tag, release).map(Some),
            RequestBody::Locate { tag, locator } => {
                self.handle_locate(origin, mid, &tag, locator).map(|()| None)
            }
            RequestBody::Notify { .. }
            | RequestBody::Answered { .. }
            | RequestBody::Status { .. }
            | RequestBody::Presence { .. }
            | RequestBody::Open
            | RequestBody::Punch { .. } => Err(ErrorCode::Unsupported),
        };
        // Otherwise another hub answers, or this one after the answers of others.
        if let Some(answered) = answered.transpose() {
            self.answer(origin, t, mid, answered);
        }
    }
}

impl RequestOrigin {
    fn rate_key(&self) -> RateKey {
        match self.route.addr {
            ClientAddr::Udp(_) => RateKey::Network(self.network),
            ClientAddr::WebSocket(conn) => RateKey::WebSocket(conn),
        }
    }
}

/// Plain clients may use one `mid` for calls to several callees.
fn about(body: &RequestBody) -> u64 {
    let RequestBody::Call { rtag, .. } = body else { return 0 };
    let mut hasher = DefaultHasher::new();
    rtag.hash(&mut hasher);
    hasher.finish()
}

fn draw_keys(rng: &mut ChaCha20Rng) -> [[u8; 32]; 2] {
    let mut keys = [[0; 32]; 2];
    keys.iter_mut().for_each(|key| rng.fill_bytes(key));
    keys
}
