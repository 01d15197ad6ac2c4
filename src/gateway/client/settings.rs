//! Settings of an endpoint (S2-21, S2-22, S2-26).

use super::machine::MuxLimits;
use crate::gateway::wire::MAX_PACKET;
use std::time::Duration;

/// Limits and timeouts of an endpoint. There is no memory pool as in fastway: the read buffer is reused, and a message lives as long as its
/// owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a packet, connection id included; the gateway's limit should be the same. Default 512 KiB.
    pub max_packet: usize,
    /// Bytes read at a time. Default 64 KiB.
    pub read_buffer: usize,
    /// Messages queued to be sent on all virtual connections; `send` waits while there are more. Default 1024.
    pub send_queue: usize,
    /// Bytes of those messages. Default 1 MiB.
    pub send_bytes: usize,
    /// Messages of one virtual connection that were not received. Unused by servers with HMAC, where the gateway sends as much as is
    /// granted. Default 1024.
    pub receive_queue: usize,
    /// Bytes of those messages with headers of 8 bytes; with HMAC, the bytes granted. Default 256 KiB, and one message more.
    pub receive_bytes: usize,
    /// How long a full virtual connection stops all reading before it is closed. Default 1 s.
    pub receive_timeout: Duration,
    /// Incoming virtual connections that wait to be accepted; one more is closed. Default 1024.
    pub backlog: usize,
    /// Incoming virtual connections at a time, accepted or not; one more is closed. With `receive_bytes` it bounds the memory. Default 65
    /// 536.
    pub incoming: usize,
    /// For TCP, TLS and WebSocket together. Default 10 s.
    pub connect_timeout: Duration,
    /// For the handshake and the gateway's first answer. Default 5 s.
    pub auth_timeout: Duration,
    /// For a dial, including the wait for a reconnection. Default 10 s.
    pub dial_timeout: Duration,
    /// The longest silence of the gateway; a probe is sent after half of it. Default 90 s.
    pub idle_timeout: Duration,
    /// The first and the longest wait before a reconnection, each randomised between half and all of it. `None`: the endpoint does not
    /// reconnect. Default 0.7 s and 8 s.
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
            receive_timeout: Duration::from_secs(1),
            backlog: 1024,
            incoming: 65_536,
            connect_timeout: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            reconnect: Some((Duration::from_millis(700), Duration::from_secs(8))),
        }
    }
}

impl Settings {
    /// Returns the limits of the machine. None is zero: with that nothing would ever be sent.
    pub(super) fn limits(&self) -> MuxLimits {
        MuxLimits {
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
