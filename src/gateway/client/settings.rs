//! What an endpoint may be told beyond where the gateway is (S2-21, S2-22, S2-26).

use super::machine::Limits;
use crate::gateway::wire::MAX_PACKET;
use std::time::Duration;

/// An endpoint's settings. The reference's memory pool has no meaning here: a read buffer is used again by itself, and a message lives as long as
/// somebody has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a packet, the connection's four counted; as many as the gateway allows. Default 512 KiB.
    pub max_packet: usize,
    /// Bytes read at a time. Default 64 KiB.
    pub read_buffer: usize,
    /// Messages of all virtual connections that wait to leave; `send` waits where there are more. Default 1024.
    pub send_queue: usize,
    /// Their bytes. Default 1 MiB.
    pub send_bytes: usize,
    /// Messages of one virtual connection that have come and were not taken. Without meaning on a server's HMAC door, where the gateway
    /// sends as much as is granted to it. Default 1024.
    pub receive_queue: usize,
    /// Their bytes, eight counted for each message's head; on the HMAC door, what is granted. Default 256 KiB, and one message more.
    pub receive_bytes: usize,
    /// How long nothing is read from the gateway because one virtual connection has as much as it may, before that one is closed.
    /// Default 1 s.
    pub receive_patience: Duration,
    /// Virtual connections from outside that wait to be accepted; one more is closed. Default 1024.
    pub backlog: usize,
    /// Virtual connections from outside at a time, accepted or not; one more is closed. Each may hold `receive_bytes` and a message more, so
    /// that the two settings together bound the memory. Default 65 536.
    pub incoming: usize,
    /// How long TCP, TLS and WebSocket may take together. Default 10 s.
    pub connect_timeout: Duration,
    /// How long the handshake and the gateway's first answer may take. Default 5 s.
    pub auth_timeout: Duration,
    /// How long a dial may take, the wait for a lost gateway counted. Default 10 s.
    pub dial_timeout: Duration,
    /// The longest silence of the gateway; it is asked for a sign of life after half of that. Default 90 s.
    pub silence: Duration,
    /// The first and the longest wait before another attempt when the gateway is lost; each is shortened by chance to a half at the
    /// most. `None`: there is no other attempt. Default 0.7 s and 8 s.
    pub reconnect: Option<(Duration, Duration)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_packet: MAX_PACKET,
            read_buffer: 64 * 1024,
            send_queue: 1024,
            send_bytes: 1024 * 1024,
            receive_queue: 1024,
            receive_bytes: 256 * 1024,
            receive_patience: Duration::from_secs(1),
            backlog: 1024,
            incoming: 65_536,
            connect_timeout: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(90),
            reconnect: Some((Duration::from_millis(700), Duration::from_secs(8))),
        }
    }
}

impl Settings {
    /// What the machine is held to; nothing of it is zero, for with that nothing would ever move.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_packet: self.max_packet.clamp(64, 1 << 30),
            receive_messages: self.receive_queue.max(1),
            receive_bytes: self.receive_bytes.clamp(1, 1 << 30),
            send_messages: self.send_queue.max(1),
            send_bytes: self.send_bytes.max(1),
            backlog: self.backlog.max(1),
            incoming: self.incoming.max(1),
        }
    }
}
