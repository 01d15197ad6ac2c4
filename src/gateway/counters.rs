//! What the gateway counts, and how it says so.

use std::fmt::Write as _;

/// What is there now, and what has happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Clients connected now.
    pub clients: u64,
    /// Servers connected now.
    pub servers: u64,
    /// Virtual connections now, those counted that are closed while bytes wait.
    pub virtual_connections: u64,
    /// Ids opened and not dialled now.
    pub half_open: u64,
    /// Bytes that wait now, and what is set aside for frames that are coming.
    pub waiting: u64,
    /// Virtual connections that were accepted.
    pub accepted: u64,
    /// Messages forwarded.
    pub messages: u64,
    /// Their bytes, heads counted.
    pub bytes: u64,
    /// Messages that came for an id that was closed a moment ago.
    pub late: u64,
    /// Messages and Closes for ids that are not the sender's.
    pub violations: u64,
    /// Virtual connections that were closed because their receiver was too slow.
    pub slow: u64,
    /// Times that a sender was not read for a while.
    pub pauses: u64,
    /// Times that a sender was not read for a while because its address had its share of the memory.
    pub share_waits: u64,
    /// Dials refused, by [`DialRefusal`].
    pub refused: [u64; DialRefusal::ALL.len()],
    /// Connections dropped, by [`CloseReason`].
    pub dropped: [u64; CloseReason::ALL.len()],
}

/// CloseReason a Dial was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialRefusal {
    /// The id was not opened by the dialler.
    NotOpened,
    /// Nobody has the remote id.
    Unknown,
    /// The dialler has as many virtual connections as it may, or all together have.
    Full,
    /// The dialler's token, or the dialled client's, does not admit to it.
    Token,
    /// The other endpoint does not take what waits for it.
    Busy,
}

impl DialRefusal {
    /// All of them, in the order of the counters.
    pub const ALL: [Self; 5] = [Self::NotOpened, Self::Unknown, Self::Full, Self::Token, Self::Busy];

    /// The label in the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotOpened => "not_opened",
            Self::Unknown => "unknown",
            Self::Full => "full",
            Self::Token => "token",
            Self::Busy => "busy",
        }
    }
}

/// CloseReason a connection was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// What came is no frame, or a command that endpoints do not send.
    Malformed,
    /// Too many violations.
    Violations,
    /// No Ping came when one was asked for.
    Silent,
    /// It takes nothing of what waits for it.
    Unread,
    /// A frame took too long to come.
    SlowFrame,
    /// A token is asked for, and none came that is good.
    Token,
    /// A server with the same id has come.
    Replaced,
}

impl CloseReason {
    /// All of them, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Violations,
        Self::Silent,
        Self::Unread,
        Self::SlowFrame,
        Self::Token,
        Self::Replaced,
    ];

    /// The label in the metrics.
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
    /// Writes them in Prometheus' text format.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
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
            ("holds_total", "counter", self.pauses),
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
