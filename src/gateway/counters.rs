//! Counters of the gateway, and their Prometheus text.

use std::fmt::Write as _;

/// Current values, and totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Clients connected.
    pub clients: u64,
    /// Servers connected.
    pub servers: u64,
    /// Virtual connections, including closed ones that still have bytes queued.
    pub virtual_connections: u64,
    /// Ids opened and not dialled.
    pub half_open: u64,
    /// Bytes queued, and bytes reserved for incomplete frames.
    pub waiting: u64,
    /// Virtual connections accepted.
    pub accepted: u64,
    /// Messages forwarded.
    pub messages: u64,
    /// Bytes of those messages with their headers.
    pub bytes: u64,
    /// Messages for an id that was closed recently.
    pub late: u64,
    /// Messages and Closes for ids that are not the sender's.
    pub violations: u64,
    /// Virtual connections closed because their receiver was too slow.
    pub slow: u64,
    /// Times that a sender was paused.
    pub pauses: u64,
    /// Times that a sender was paused because its network had used its share of the memory.
    pub share_waits: u64,
    /// Dials refused, by [`DialRefusal`].
    pub refused: [u64; DialRefusal::ALL.len()],
    /// Connections closed, by [`CloseReason`].
    pub dropped: [u64; CloseReason::ALL.len()],
}

/// Why a Dial was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DialRefusal {
    /// The dialler had not opened the id.
    NotOpened,
    /// Nobody has the remote id.
    Unknown,
    /// The limit of the dialler, or of the gateway, is reached.
    Full,
    /// The token of the dialler, or of the dialled client, does not allow it.
    Token,
    /// The callee does not read what is queued for it.
    Busy,
}

impl DialRefusal {
    /// All variants, in the order of the counters.
    pub(super) const ALL: [Self; 5] = [Self::NotOpened, Self::Unknown, Self::Full, Self::Token, Self::Busy];

    /// Returns the label in the metrics.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NotOpened => "not_opened",
            Self::Unknown => "unknown",
            Self::Full => "full",
            Self::Token => "token",
            Self::Busy => "busy",
        }
    }
}

/// Why the gateway closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// A malformed frame, or a command that endpoints do not send.
    Malformed,
    /// Too many violations.
    Violations,
    /// No answer to Ping.
    Silent,
    /// It reads nothing of what is queued for it.
    Unread,
    /// A frame took too long to arrive.
    SlowFrame,
    /// A token is required, and no valid one came.
    Token,
    /// Another server took its id.
    Replaced,
}

impl CloseReason {
    /// All variants, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Violations,
        Self::Silent,
        Self::Unread,
        Self::SlowFrame,
        Self::Token,
        Self::Replaced,
    ];

    /// Returns the label in the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Violations => "violations",
            Self::Silent => "silent",
            Self::Unread => "unread",
            Self::SlowFrame => "slow_frame",
            Self::Token => "token",
            Self::Replaced => "replaced",
        }
    }
}

impl Counters {
    /// Formats the counters as Prometheus text.
    #[must_use]
    pub fn to_prometheus(self) -> String {
        let mut text = String::new();
        for (name, kind, value) in [
            ("clients", "gauge", self.clients),
            ("servers", "gauge", self.servers),
            ("virtual_connections", "gauge", self.virtual_connections),
            ("opened_ids", "gauge", self.half_open),
            ("waiting_bytes", "gauge", self.waiting),
            ("accepted_total", "counter", self.accepted),
            ("messages_total", "counter", self.messages),
            ("bytes_total", "counter", self.bytes),
            ("late_messages_total", "counter", self.late),
            ("violations_total", "counter", self.violations),
            ("slow_connections_total", "counter", self.slow),
            ("pauses_total", "counter", self.pauses),
            ("share_waits_total", "counter", self.share_waits),
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# TYPE ginnel_gateway_{name} {kind}\nginnel_gateway_{name} {value}");
        }
        let refused = DialRefusal::ALL.map(DialRefusal::name).into_iter().zip(self.refused);
        let dropped = CloseReason::ALL.map(CloseReason::name).into_iter().zip(self.dropped);
        let mut labelled = |name: &str, counts: &mut dyn Iterator<Item = (&str, u64)>| {
            let _ = writeln!(text, "# TYPE ginnel_gateway_{name} counter");
            for (why, count) in counts {
                let _ = writeln!(text, "ginnel_gateway_{name}{{why=\"{why}\"}} {count}");
            }
        };
        labelled("refused_total", &mut refused.into_iter());
        labelled("dropped_total", &mut dropped.into_iter());
        text
    }
}
