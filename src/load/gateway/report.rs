//! The report of a load on a gateway.

use super::exchange::Disconnects;
use super::flows::{MessageCounts, SizeMeasurement};
use super::{GatewayLoad, MessageDirection, Middlebox};
use crate::load::Load;
use crate::load::histogram::Histogram;
use crate::load::report::{Cpu, Latency, per};
use serde::Serialize;
use std::time::Duration;

/// The results of the setup.
#[derive(Debug)]
pub(super) struct ConnectPhase {
    pub(super) elapsed: Duration,
    pub(super) cpu: Option<Duration>,
}

/// The results of the exchange of messages.
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
    /// With all virtual connections open and nothing sent.
    pub connected: Option<u64>,
    /// The maximum while messages were in flight, sampled every 250 ms.
    pub peak: Option<u64>,
    /// After all had arrived.
    pub end: Option<u64>,
}

/// The results for messages of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeReport {
    /// Bytes.
    pub size: u32,
    /// Arrivals during the measurement.
    pub messages: u64,
    /// From before a message was created to after it was received.
    pub latency_us: Latency,
}

/// The report of a load on a gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatewayReport {
    /// `gateway`.
    pub mode: &'static str,
    /// The address for clients.
    pub server: String,
    /// `md5`, `hmac`, or `proxy`.
    pub handshake: &'static str,
    /// Clients.
    pub clients: usize,
    /// Clients that do not read.
    pub non_reading_clients: usize,
    /// Servers.
    pub servers: usize,
    /// All virtual connections.
    pub virtual_connections: usize,
    /// Lengths of messages, in turn.
    pub sizes: Vec<u32>,
    /// `up`, `down` or `both`.
    pub direction: &'static str,
    /// Seconds until all virtual connections were open.
    pub connecting_seconds: f64,
    /// CPU time of the watched process per virtual connection.
    pub connecting_cpu: Option<Cpu>,
    /// Seconds of the measurement.
    pub seconds: f64,
    /// All messages sent.
    pub sent: u64,
    /// Messages that arrived.
    pub received: u64,
    /// Messages that arrived at clients.
    pub received_down: u64,
    /// Messages to and from reading clients that did not arrive.
    pub lost: u64,
    /// Messages that arrived twice.
    pub doubled: u64,
    /// Messages that arrived after later ones.
    pub out_of_order: u64,
    /// Messages that arrived at the wrong endpoint.
    pub misdelivered: u64,
    /// Messages that arrived with other bytes.
    pub damaged: u64,
    /// Dials that were refused.
    pub refused: u64,
    /// Virtual connections of reading clients that were closed.
    pub closed: u64,
    /// The same for clients that do not read.
    pub closed_non_reading: u64,
    /// Connections of servers and of reading clients that were closed.
    pub dropped: u64,
    /// The same for clients that do not read.
    pub dropped_non_reading: u64,
    /// Messages sent to or by clients that do not read.
    pub non_reading_sent: u64,
    /// Messages that arrived per second of the measurement.
    pub messages_per_second: f64,
    /// Their bytes without frame headers.
    pub bytes_per_second: f64,
    /// Messages per second of the watched process's CPU time.
    pub messages_per_cpu_second: Option<f64>,
    /// From before a message was created to after it was received.
    pub latency_us: Latency,
    /// The same per size.
    pub by_size: Vec<SizeReport>,
    /// CPU time of the watched process per message of the measurement.
    pub server_cpu: Option<Cpu>,
    /// CPU time of this process, which has both ends of all virtual connections.
    pub own_cpu: Cpu,
    /// Memory of the watched process.
    pub memory: MemoryUse,
    /// Its growth when all were open, in bytes per virtual connection; the clients' connections are included.
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

    /// Describes what went wrong with messages of reading clients; `None` if nothing did.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let counts = [
            (self.lost, "lost"),
            (self.doubled, "arrived twice"),
            (self.out_of_order, "out of order"),
            (self.misdelivered, "at the wrong endpoint"),
            (self.damaged, "with other bytes"),
        ];
        let wrong = counts.iter().filter(|(count, _)| *count > 0);
        let wrong: Vec<_> = wrong.map(|(count, what)| format!("{count} {what}")).collect();
        (!wrong.is_empty()).then(|| format!("of {} messages: {}", self.sent, wrong.join(", ")))
    }

    /// Returns whether the generator was the limit.
    #[must_use]
    pub fn was_generator_the_limit(&self) -> bool {
        self.own_cpu.share > 0.93
    }
}
