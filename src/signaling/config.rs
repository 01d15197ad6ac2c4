//! The configuration of signalling.

use super::access::{AccessKey, IceServers, Jwt, Origins, Realms};
use crate::limits::{KeyedRateLimiter, Limit, Rate};
use crate::turn_server::auth::RevocationList;
use rand::RngCore;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// The configuration of `super::start`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Lifetimes and intervals.
    pub times: Times,
    /// The limits.
    pub limits: Limits,
    /// The ports that send the server's own requests; default both (S0-A10).
    pub notify_from: NotifyFrom,
    /// Whether t=3 lists the tags that are online; default true.
    pub list: bool,
    /// Whether t=60 reports tags that come and go; default true.
    pub presence: bool,
    /// Whether t=1 is open to all; otherwise it takes a key with the scope `register`. Default true.
    pub open: bool,
    /// Access keys and their scopes; default none.
    pub access_keys: Vec<AccessKey>,
    /// The key for revocation; refused in URLs, in messages and from pages. Default none.
    pub admin_key: Option<AccessKey>,
    /// Which JWTs are accepted like keys; default none.
    pub jwt: Option<Jwt>,
    /// The realms of keys and JWTs.
    pub realms: Realms,
    /// The origins whose pages may open `/ws` and read `/ice`; default all.
    pub origins: Origins,
    /// Revoked tags, which cannot be registered.
    pub revoked: Arc<RevocationList>,
    /// The ICE servers in registrations and `/ice`; default none.
    pub ice_servers: IceServers,
    /// `host:port` of the second UDP port, sent as `stun2`; default none.
    pub stun2: Option<String>,
    /// Whether agents may predict and probe the ports of NATs that change ports; default true.
    pub spray: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            times: Times::default(),
            limits: Limits::default(),
            notify_from: NotifyFrom::default(),
            list: true,
            presence: true,
            open: true,
            access_keys: Vec::new(),
            admin_key: None,
            jwt: None,
            realms: Realms::default(),
            origins: Origins::default(),
            revoked: Arc::default(),
            ice_servers: IceServers::default(),
            stun2: None,
            spray: true,
        }
    }
}

/// The ports that send 51, 52, 53, 54 and 55 (S0-A10).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NotifyFrom {
    /// Only port 2, as in S0-27; most NATs drop it.
    Aux,
    /// Only port 1.
    Main,
    /// The first copy from both, the later ones from port 1.
    #[default]
    Both,
}

/// Lifetimes and intervals (S0-A17).
#[derive(Debug, Clone)]
pub struct Times {
    /// How long a tag lives without a heartbeat; default 60 s.
    pub tag: Duration,
    /// How long a tag that has not been used cannot be evicted; default 10 s.
    pub unconfirmed: Duration,
    /// The lifetime of a token; each -53 with `punching` restarts it; default 30 s.
    pub token: Duration,
    /// The interval of 53; default 5 s.
    pub question: Duration,
    /// How long a repeated request gets the same answer (S0-A14); default 30 s.
    pub answer: Duration,
    /// The waits after each copy of a request; the request fails after the last one. Default 0.5, 1, 2 and 4 s.
    pub retransmit: Vec<Duration>,
    /// How long a locator is valid; default 600 s.
    pub locator: Duration,
    /// How long a client may take to sign a nonce; default 30 s.
    pub challenge: Duration,
    /// The minimum interval of events about one tag; default 1 s.
    pub presence: Duration,
    /// The interval of pings on a WebSocket; default 15 s.
    pub ping: Duration,
    /// How long a silent WebSocket stays open; default 45 s.
    pub idle: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tag: seconds(60),
            unconfirmed: seconds(10),
            token: seconds(30),
            question: seconds(5),
            answer: seconds(30),
            retransmit: [500, 1000, 2000, 4000].map(Duration::from_millis).to_vec(),
            locator: seconds(600),
            challenge: seconds(30),
            presence: seconds(1),
            ping: seconds(15),
            idle: seconds(45),
        }
    }
}

/// The limits. A network is an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tags at one time; default 100 000.
    pub tags: usize,
    /// Tags of one network; default 256.
    pub tags_per_network: usize,
    /// Calls at one time; default 20 000.
    pub calls: usize,
    /// Calls of one tag; default 64.
    pub calls_per_tag: usize,
    /// Unacknowledged requests of one call; default 32.
    pub notices_per_call: usize,
    /// Bytes of unacknowledged requests; default 64 MiB, of which one network may use an eighth.
    pub call_bytes: usize,
    /// WebSocket connections at one time; default 20 000.
    pub connections: usize,
    /// WebSocket connections of one network; default 256.
    pub connections_per_network: usize,
    /// Tags that one WebSocket watches; default 256.
    pub watches_per_client: usize,
    /// WebSockets that watch one tag; default 1024.
    pub watchers_per_tag: usize,
    /// Watched tags, counted once per WebSocket; default 200 000.
    pub watches: usize,
    /// Cached responses for repeated requests, in bytes of text; default 8 MiB.
    pub answer_bytes: usize,
    /// Messages of one UDP network, or of one WebSocket; default 200 at once, 50/s.
    pub per_source: Rate,
    /// Calls from one tag to another; default 10 at once, 1/s.
    pub per_pair: Rate,
    /// Signature checks of one network; default 64 at once, 8/s.
    pub per_proof: Rate,
    /// Bytes of lists to one network; default 2 MiB at once, 256 KiB/s.
    pub per_list: Rate,
    /// Locators that one network resolves; default 20 at once, 0.2/s.
    pub per_locate: Rate,
    /// Calls to unproven addresses of one IPv4 /24 or IPv6 /48; default 20 at once, 2/s.
    pub per_unproven: Rate,
    /// Requests to `/ice` of one network, with any key; default 200 at once, 20/s.
    pub ice_per_network: Rate,
    /// Credentials from `/ice` for one access key, or one `sub` of a JWT; default 1000 at once, 100/s.
    pub ice_per_key: Rate,
    /// Keys of each rate limiter; default 65 536.
    pub rates: usize,
    /// Revoked tags at one time; default 10 000.
    pub revocations: usize,
    /// Events in the queue of the hub; default 4096. Further datagrams are lost.
    pub inbox: usize,
    /// Bytes of WebSocket texts in that queue; default 16 MiB. At the limit WebSockets are not read.
    pub inbox_bytes: usize,
    /// Texts in the queue of one WebSocket; default 256. A further one closes the connection.
    pub outbox: usize,
    /// Bytes in that queue; default 4 MiB, which is more than all calls to one tag at a time.
    pub outbox_bytes: usize,
    /// Bytes in the queues of all WebSockets; default 64 MiB. Above it, a WebSocket with more than 64 KiB in its queue is closed.
    pub outboxes_bytes: usize,
}

impl Limits {
    /// Maximum of `watches_per_client`: one event about that many tags fits into one text.
    pub const MOST_WATCHES_PER_CLIENT: usize = 2000;

    /// Creates the limiter of one rate for about `keys` keys.
    pub(super) fn limiter<K: Hash>(
        &self,
        rate: Rate,
        keys: usize,
        rng: &mut impl RngCore,
    ) -> KeyedRateLimiter<K> {
        KeyedRateLimiter::new(rate, keys, Limit::SignalingRates, rng)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tags: 100_000,
            tags_per_network: 256,
            calls: 20_000,
            calls_per_tag: 64,
            notices_per_call: 32,
            call_bytes: 64 << 20,
            connections: 20_000,
            connections_per_network: 256,
            watches_per_client: 256,
            watchers_per_tag: 1024,
            watches: 200_000,
            answer_bytes: 8 << 20,
            per_source: Rate::new(50.0, 200.0),
            per_pair: Rate::new(1.0, 10.0),
            per_proof: Rate::new(8.0, 64.0),
            per_list: Rate::new(262_144.0, 2_097_152.0),
            per_locate: Rate::new(0.2, 20.0),
            per_unproven: Rate::new(2.0, 20.0),
            ice_per_network: Rate::new(20.0, 200.0),
            ice_per_key: Rate::new(100.0, 1000.0),
            rates: 65_536,
            revocations: 10_000,
            inbox: 4096,
            inbox_bytes: 16 << 20,
            outbox: 256,
            outbox_bytes: 4 << 20,
            outboxes_bytes: 64 << 20,
        }
    }
}
