//! What a gateway is to be. `crate::config` fills this in from a file.

use super::handshake::Key;
use super::token::TokenIssuer;
use super::wire::MAX_PACKET;
use std::time::Duration;

/// What one connection, and all together, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a packet: connection id and message; default 512 KiB.
    pub max_packet: usize,
    /// Bytes that wait for the receiver of one virtual connection; default 1 MiB. A frame that finds none waiting may be longer.
    pub queue: usize,
    /// Bytes that wait in all, also of frames that have not come whole; default 256 MiB.
    pub memory: usize,
    /// Virtual connections that one client has dialled, at a time; default 8 (REQUIREMENTS section 3.1).
    pub per_client: usize,
    /// Ids that one client has opened and not dialled; default 64. A server may have 64 times as many. One more closes the oldest.
    pub half_open: usize,
    /// Violations within a minute with which a connection is dropped (S2-A10); default 100.
    pub violations: u32,
    /// Virtual connections in all; default 1 000 000.
    pub virtual_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_packet: MAX_PACKET,
            queue: 1 << 20,
            memory: 256 << 20,
            per_client: 8,
            half_open: 64,
            violations: 100,
            virtual_connections: 1_000_000,
        }
    }
}

/// How long what may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Silence after which an endpoint is asked for a Ping, and how long it may take to answer; default 30 s. One that takes
    /// nothing of what waits for it for twice that long is dropped.
    pub ping: Duration,
    /// A server's handshake, or a client's token; default 3 s.
    pub handshake: Duration,
    /// How long a sender with several virtual connections may be held up by one of them before that one is closed; default 5 s.
    pub pause: Duration,
    /// From the first byte of a frame to its last; default 60 s.
    pub frame: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(30),
            handshake: Duration::from_secs(3),
            pause: Duration::from_secs(5),
            frame: Duration::from_secs(60),
        }
    }
}

/// What becomes of a server that comes with the id of one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duplicates {
    /// It takes the place of the one before, which is closed.
    #[default]
    Newest,
    /// It is closed.
    Refuse,
}

/// What the machine has to know.
#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    /// Caps.
    pub limits: Limits,
    /// Timers.
    pub times: Times,
    /// Who has signed the tokens that clients must show; default none, and none are asked for.
    pub tokens: Option<TokenIssuer>,
}

/// What a gateway is to be; the keys are filled in by the server.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// What the machine has to know.
    pub router: RouterConfig,
    /// Servers with an id that is taken.
    pub duplicates: Duplicates,
    /// What servers prove to hold.
    pub key: Option<Key>,
    /// What agents hold: admits servers through the HMAC doors, with ids from 0x80000000 up that nobody has.
    pub access_keys: Vec<Key>,
    /// Whether each frame leaves by a write of its own; default no. For measuring what writing them together is worth.
    pub one_write_per_frame: bool,
}
