//! What a load on a gateway has found out, in numbers.

use super::exchange::Disconnects;
use super::flows::{MessageCounts, SizeMeasurement};
use super::{GatewayLoad, MessageDirection, Middlebox};
use crate::load::Load;
use crate::load::histogram::Histogram;
use crate::load::report::{Cpu, Latency, per};
use serde::Serialize;
use std::time::Duration;

/// What bringing all virtual connections up has taken.
#[derive(Debug)]
pub(super) struct ConnectPhase {
    pub(super) elapsed: Duration,
    pub(super) cpu: Option<Duration>,
}

/// What came of the time after it.
#[derive(Debug)]
pub(super) struct ExchangePhase {
    pub(super) elapsed: Duration,
    pub(super) cpu: Option<Duration>,
    pub(super) own_cpu: Duration,
    pub(super) measured: Vec<SizeMeasurement>,
}

/// Resident memory of the watched process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// Before the first connection.
    pub before: Option<u64>,
    /// With all virtual connections up and nothing sent.
    pub connected: Option<u64>,
    /// The most that was seen while messages were under direction, looked at every quarter of a second.
    pub peak: Option<u64>,
    /// When all had arrived.
    pub end: Option<u64>,
}

/// What became of messages of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeReport {
    /// Bytes.
    pub size: u32,
    /// How many arrived while it was measured.
    pub messages: u64,
    /// From before they were put together to after they were received.
    pub latency_us: Latency,
}

/// What became of virtual connections and messages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatewayReport {
    /// `gateway`.
    pub mode: &'static str,
    /// Where clients came in.
    pub server: String,
    /// `md5`, `hmac`, or `proxy` where it was no gateway.
    pub handshake: &'static str,
    /// Clients.
    pub clients: usize,
    /// How many of them read nothing.
    pub non_reading_clients: usize,
    /// Servers.
    pub servers: usize,
    /// ConnectionEntry connections in all.
    pub virtual_connections: usize,
    /// Bytes of messages, in turn.
    pub sizes: Vec<u32>,
    /// `up`, `down` or `both`.
    pub direction: &'static str,
    /// Seconds until all virtual connections were up.
    pub connecting_seconds: f64,
    /// CPU time of the watched process for each of them.
    pub connecting_cpu: Option<Cpu>,
    /// Seconds measured after that.
    pub seconds: f64,
    /// Messages sent, from the first to the last.
    pub sent: u64,
    /// How many of them arrived.
    pub received: u64,
    /// How many of those at clients.
    pub received_down: u64,
    /// Messages of clients that read, to and from them, that did not arrive.
    pub lost: u64,
    /// Messages that arrived again.
    pub doubled: u64,
    /// Messages that arrived behind later ones.
    pub out_of_order: u64,
    /// Messages that arrived where they do not belong.
    pub misdelivered: u64,
    /// Messages that arrived with other bytes.
    pub damaged: u64,
    /// Dials that were refused.
    pub refused: u64,
    /// ConnectionEntry connections of clients that read which were closed.
    pub closed: u64,
    /// The same of clients that do not read.
    pub closed_non_reading: u64,
    /// Connections of servers and of clients that read which were closed.
    pub dropped: u64,
    /// The same of clients that do not read.
    pub dropped_non_reading: u64,
    /// Messages that were sent to or by clients that do not read.
    pub non_reading_sent: u64,
    /// Messages that arrived while it was measured, a second.
    pub messages_per_second: f64,
    /// Their bytes, heads of frames not counted.
    pub bytes_per_second: f64,
    /// Messages for each second of the watched process's CPU time.
    pub messages_per_cpu_second: Option<f64>,
    /// From before a message was put together to after it was received.
    pub latency_us: Latency,
    /// The same for each size.
    pub by_size: Vec<SizeReport>,
    /// CPU time of the watched process for each message that arrived while it was measured.
    pub server_cpu: Option<Cpu>,
    /// CPU time of this process, in which both virtual_connections of all virtual connections are.
    pub own_cpu: Cpu,
    /// MemoryUse of the watched process.
    pub memory: MemoryUse,
    /// By how much it had grown when all were up, in bytes for each virtual connection and its share of a client's connection.
    pub server_bytes_each: Option<f64>,
}

impl MemoryUse {
    pub(super) fn new(before: Option<u64>) -> Self {
        Self { before, ..Self::default() }
    }
}

impl GatewayReport {
    pub(super) fn new(
        load: &Load,
        what: &GatewayLoad,
        connected: &ConnectPhase,
        exchanged: &ExchangePhase,
        (counts, gone): (MessageCounts, Disconnects),
        memory: MemoryUse,
    ) -> Self {
        let all = what.clients * what.each;
        let mut latency = Histogram::default();
        exchanged.measured.iter().for_each(|of| latency.merge(&of.latency));
        let messages: u64 = exchanged.measured.iter().map(|of| of.messages).sum();
        let bytes: u64 = exchanged.measured.iter().map(|of| of.messages * u64::from(of.size)).sum();
        let seconds = exchanged.elapsed.as_secs_f64();
        let growth = memory.before.zip(memory.connected).map(|(before, now)| now as f64 - before as f64);
        let of_size = |of: &SizeMeasurement| SizeReport {
            size: of.size,
            messages: of.messages,
            latency_us: Latency::of(&of.latency),
        };
        Self {
            mode: "gateway",
            server: load.target.address().to_string(),
            handshake: match &what.middlebox {
                Middlebox::Gateway { handshake, .. } => handshake.name(),
                Middlebox::Proxy(_) => "proxy",
            },
            clients: what.clients,
            non_reading_clients: what.clients.checked_div(what.non_reading).unwrap_or(0),
            servers: what.servers,
            virtual_connections: all,
            sizes: what.sizes.clone(),
            direction: match what.direction {
                MessageDirection::Up => "up",
                MessageDirection::Down => "down",
                MessageDirection::Both => "both",
            },
            connecting_seconds: connected.elapsed.as_secs_f64(),
            connecting_cpu: connected.cpu.map(|used| Cpu::of(used, all as u64, connected.elapsed)),
            seconds,
            sent: counts.sent,
            received: counts.received,
            received_down: counts.received_down,
            lost: counts.lost,
            doubled: counts.doubled,
            out_of_order: counts.out_of_order,
            misdelivered: counts.misdelivered,
            damaged: counts.damaged,
            refused: gone.refused,
            closed: gone.closed,
            closed_non_reading: gone.closed_non_reading,
            dropped: gone.dropped,
            dropped_non_reading: gone.dropped_non_reading,
            non_reading_sent: counts.non_reading_sent,
            messages_per_second: per(messages as f64, seconds),
            bytes_per_second: per(bytes as f64, seconds),
            messages_per_cpu_second: exchanged.cpu.map(|used| per(messages as f64, used.as_secs_f64())),
            latency_us: Latency::of(&latency),
            by_size: exchanged.measured.iter().map(of_size).collect(),
            server_cpu: exchanged.cpu.map(|used| Cpu::of(used, messages, exchanged.elapsed)),
            own_cpu: Cpu::of(exchanged.own_cpu, messages, exchanged.elapsed),
            memory,
            server_bytes_each: growth.map(|growth| per(growth, all as f64)),
        }
    }

    /// Returns what went wrong with messages of those who read, in words; `None` where nothing did.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let wrongs = [
            (self.lost, "lost"),
            (self.doubled, "arrived twice"),
            (self.out_of_order, "out of order"),
            (self.misdelivered, "where they do not belong"),
            (self.damaged, "with other bytes"),
        ];
        let said: Vec<_> = wrongs.iter().filter(|(count, _)| *count > 0).collect();
        let said: Vec<_> = said.iter().map(|(count, what)| format!("{count} {what}")).collect();
        (!said.is_empty()).then(|| format!("of {} messages: {}", self.sent, said.join(", ")))
    }

    /// Returns whether the generator had no time to spare, so that the gateway might have taken more.
    #[must_use]
    pub fn was_generator_the_limit(&self) -> bool {
        self.own_cpu.share > 0.93
    }
}
