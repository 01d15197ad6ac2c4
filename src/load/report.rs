//! Reports of loads.

use super::histogram::Histogram;
use super::outcome::{AllocationResult, TrafficOutcome};
use super::{AllocateLoad, Load, LoadMode, Peers, RelayDirection, RelayLoad, SearchLoad, Traffic, Trial};
use serde::Serialize;
use std::time::Duration;

/// Latencies from before the send call to after the receive call, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The maximum.
    pub max: f64,
}

/// CPU time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cpu {
    /// µs per packet that arrived, or per allocation.
    pub us_each: f64,
    /// CPU time per elapsed time: 1 is one processor.
    pub share: f64,
}

/// The relay load of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Relayed {
    /// Allocations.
    pub allocations: usize,
    /// Bytes of each payload.
    pub size: u16,
    /// `up`, `down`, `both` or `echo`.
    pub direction: &'static str,
    /// `channels` or `indications`.
    pub by: &'static str,
    /// `sockets` or `clients`.
    pub peers: &'static str,
    /// Consecutive packets per sender.
    pub burst: u32,
}

/// The report of a traffic load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrafficReport {
    /// `binding` or `relay`.
    pub mode: &'static str,
    /// The server.
    pub server: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Of `relay`.
    #[serde(flatten)]
    pub relayed: Option<Relayed>,
    /// Processes that made the load.
    pub processes: usize,
    /// The rate of the load, in packets per second.
    pub rate: Option<u64>,
    /// The window of the load, in packets.
    pub window: Option<u32>,
    /// Seconds measured.
    pub seconds: f64,
    /// Packets sent in that time.
    pub sent: u64,
    /// How many of them arrived; with an echo: returned.
    pub received: u64,
    /// How many did not.
    pub lost: u64,
    /// Lost packets in percent of those sent.
    pub loss_percent: f64,
    /// Packets that arrived per second; with an echo both directions count.
    pub packets_per_second: f64,
    /// Payload bits per second.
    pub bits_per_second: f64,
    /// Latencies; with an echo: of the round trip.
    pub latency_us: Latency,
    /// Packets that arrived at the wrong endpoint or with other bytes.
    pub misdelivered: u64,
    /// Error responses to Binding requests.
    pub refused: u64,
    /// Packets that did not leave because the kernel's buffers were full.
    pub held_back: u64,
    /// Packets of the rate that this machine could not send in time.
    pub left_out: u64,
    /// Whether consecutive packets to one destination were sent as one (GSO).
    pub segmentation: bool,
    /// CPU time of the watched process.
    pub server_cpu: Option<Cpu>,
    /// CPU time of the generator without busy waiting. Close to one processor per process, the generator was the limit.
    pub own_cpu: Cpu,
}

/// The report of an allocation load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AllocateReport {
    /// `allocate`.
    pub mode: &'static str,
    /// The server.
    pub server: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Allocations made and released.
    pub allocations: usize,
    /// Requests in flight.
    pub concurrency: usize,
    /// Processes that made them.
    pub processes: usize,
    /// Seconds until the last success.
    pub seconds: f64,
    /// Allocations per second.
    pub allocations_per_second: f64,
    /// From the first request to the success; the challenge is included.
    pub latency_us: Latency,
    /// CPU time of the watched process.
    pub server_cpu: Option<Cpu>,
    /// Growth of its resident memory in bytes per allocation.
    pub server_bytes_each: Option<f64>,
    /// CPU time of the generator itself.
    pub own_cpu: Cpu,
}

fn micros(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 10.0).round() / 100.0
}

pub(super) fn per(total: f64, count: f64) -> f64 {
    if count > 0.0 { total / count } else { 0.0 }
}

impl Latency {
    pub(super) fn of(histogram: &Histogram) -> Self {
        let at = |per_mille| micros(histogram.quantile(per_mille));
        Self { p50: at(500), p99: at(990), p999: at(999), max: micros(histogram.longest()) }
    }
}

impl Cpu {
    pub(super) fn of(used: Duration, count: u64, elapsed: Duration) -> Self {
        Self {
            us_each: per(used.as_secs_f64() * 1e6, count as f64),
            share: per(used.as_secs_f64(), elapsed.as_secs_f64()),
        }
    }
}

impl TrafficReport {
    /// Creates the report of a load that ran in `processes`.
    #[must_use]
    pub fn new(
        load: &Load,
        traffic: &Traffic,
        mode: LoadMode,
        processes: usize,
        outcome: &TrafficOutcome,
    ) -> Self {
        let lost = outcome.sent.saturating_sub(outcome.received);
        let (rate, window) = mode.settings();
        let elapsed = outcome.elapsed;
        let packets_per_second = per(outcome.delivered as f64, elapsed.as_secs_f64());
        let relayed = Relayed::of(traffic);
        Self {
            mode: if relayed.is_some() { "relay" } else { "binding" },
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            relayed,
            processes,
            rate,
            window,
            seconds: elapsed.as_secs_f64(),
            sent: outcome.sent,
            received: outcome.received,
            lost,
            loss_percent: per(lost as f64 * 100.0, outcome.sent as f64),
            packets_per_second,
            bits_per_second: packets_per_second * 8.0 * relayed.map_or(0.0, |relayed| relayed.size.into()),
            latency_us: Latency::of(&outcome.latency),
            misdelivered: outcome.misdelivered,
            refused: outcome.refused,
            held_back: outcome.held_back,
            left_out: outcome.left_out,
            segmentation: outcome.segmentation && load.target.transport() == super::LoadTransport::Udp,
            server_cpu: outcome.server_cpu.map(|used| Cpu::of(used, outcome.delivered, elapsed)),
            own_cpu: Cpu::of(outcome.own_cpu, outcome.delivered, elapsed),
        }
    }

    /// Returns whether the generator was the limit.
    #[must_use]
    pub fn was_generator_the_limit(&self) -> bool {
        self.own_cpu.share > 0.93 * self.processes as f64
    }
}

impl Relayed {
    fn of(traffic: &Traffic) -> Option<Self> {
        let Traffic::Relay(_, load) = traffic else { return None };
        let RelayLoad { allocations, size, burst, .. } = *load;
        Some(Self {
            allocations: match load.peers {
                Peers::Sockets => allocations,
                Peers::Clients => allocations.next_multiple_of(2),
            },
            size,
            direction: match load.direction {
                RelayDirection::Up => "up",
                RelayDirection::Down => "down",
                RelayDirection::Both => "both",
                RelayDirection::Echo => "echo",
            },
            by: if load.indications { "indications" } else { "channels" },
            peers: if load.peers == Peers::Sockets { "sockets" } else { "clients" },
            burst,
        })
    }
}

/// The report of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchReport {
    /// `search`.
    pub mode: &'static str,
    /// The server.
    pub server: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Of `relay`.
    #[serde(flatten)]
    pub relayed: Option<Relayed>,
    /// The accepted loss.
    pub max_loss_percent: f64,
    /// The highest rate that passed, in packets per second.
    pub highest_rate: Option<u64>,
    /// Whether the generator could not send at a higher rate.
    pub generator_was_the_limit: bool,
    /// All trials in order.
    pub trials: Vec<Trial>,
    /// Traffic at half of the highest rate.
    pub at_half: Option<TrafficReport>,
}

impl SearchReport {
    pub(super) fn new(
        load: &Load,
        traffic: &Traffic,
        search: SearchLoad,
        trials: Vec<Trial>,
        at_half: Option<TrafficReport>,
    ) -> Self {
        let failed = trials.iter().filter(|trial| !trial.passed);
        let lowest = failed.min_by_key(|trial| trial.rate);
        Self {
            mode: "search",
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            relayed: Relayed::of(traffic),
            max_loss_percent: search.max_loss_percent,
            highest_rate: trials.iter().filter(|trial| trial.passed).map(|trial| trial.rate).max(),
            generator_was_the_limit: lowest.is_some_and(|trial| trial.left_out),
            trials,
            at_half,
        }
    }
}

impl AllocateReport {
    /// Creates the report of a load that ran in `processes`.
    #[must_use]
    pub(crate) fn new(load: &Load, what: AllocateLoad, processes: usize, made: &AllocationResult) -> Self {
        let (count, elapsed) = (made.count as f64, made.elapsed);
        Self {
            mode: "allocate",
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            allocations: made.count,
            concurrency: what.concurrency,
            processes,
            seconds: elapsed.as_secs_f64(),
            allocations_per_second: per(count, elapsed.as_secs_f64()),
            latency_us: Latency::of(&made.latency),
            server_cpu: made.used.map(|(used, _)| Cpu::of(used, made.count as u64, elapsed)),
            server_bytes_each: made.used.map(|(_, bytes)| per(bytes as f64, count)),
            own_cpu: Cpu::of(made.own_cpu, made.count as u64, elapsed),
        }
    }
}
