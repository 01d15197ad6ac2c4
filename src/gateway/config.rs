//! Configuration of the gateway. `crate::config` fills it in from a file.

use super::handshake::Key;
use super::token::TokenIssuer;
use super::wire::MAX_PACKET;
use std::time::Duration;

/// Limits for one connection, and for all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a packet: connection id and message. Default 512 KiB.
    pub max_packet: usize,
    /// Bytes queued for the receiver of one virtual connection. A frame that finds the queue empty may be longer. Default 1 MiB.
    pub queue: usize,
    /// Bytes queued in total, incomplete frames included. Default 256 MiB.
    pub memory: usize,
    /// Virtual connections that one client has dialled at a time. Default 8.
    pub per_client: usize,
    /// Ids that one client has opened and not dialled; a server may have 64 times as many. One more closes the oldest. Default 64.
    pub half_open: usize,
    /// Violations within a minute that close a connection (S2-A10). Default 100.
    pub violations: u32,
    /// Virtual connections in total. Default 1 000 000.
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

/// Timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Silence after which an endpoint is sent Ping, and how long it may take to answer. An endpoint that reads nothing for twice as long
    /// is closed. Default 30 s.
    pub ping: Duration,
    /// For a server's handshake, or a client's token. Default 3 s.
    pub handshake: Duration,
    /// How long one virtual connection may pause a sender that has others, before that connection is closed. Default 5 s.
    pub pause: Duration,
    /// From the first byte of a frame to its last. Default 60 s.
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

/// What happens to a server whose id is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duplicates {
    /// It takes the id, and the earlier server is closed.
    #[default]
    Newest,
    /// It is closed, unless the earlier server no longer answers.
    Refuse,
}

/// Configuration of the router.
#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    /// Limits.
    pub limits: Limits,
    /// Timeouts.
    pub times: Times,
    /// Verifies clients' tokens. `None`, the default: no token is required.
    pub tokens: Option<TokenIssuer>,
}

/// Configuration of the gateway.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Config {
    /// Limits.
    pub limits: Limits,
    /// Timeouts.
    pub times: Times,
    /// What happens to a server whose id is taken.
    pub duplicates: Duplicates,
    /// The key that servers prove to hold.
    pub key: Option<Key>,
    /// Verifies clients' tokens. `None`, the default: no token is required.
    pub(crate) tokens: Option<TokenIssuer>,
    /// Access keys of agents. They admit servers by HMAC, with free ids from 0x80000000.
    pub(crate) access_keys: Vec<Key>,
    /// Whether each frame is written by a call of its own; for measurements. Default false.
    pub(crate) one_write_per_frame: bool,
}

impl Config {
    /// Returns the configuration of the router.
    pub(super) fn router(&self) -> RouterConfig {
        RouterConfig { limits: self.limits, times: self.times, tokens: self.tokens.clone() }
    }
}
