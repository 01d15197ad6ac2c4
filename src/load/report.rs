//! What a load has found out, in numbers.

use super::histogram::Histogram;
use super::outcome::{AllocationResult, TrafficOutcome};
use super::{AllocateLoad, Load, LoadMode, Peers, RelayDirection, RelayLoad, SearchLoad, Traffic, Trial};
use serde::Serialize;
use std::time::Duration;

/// LoadTimes from before a packet's sending call to after the receiving one, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// What half of the packets did not exceed.
    pub p50: f64,
    /// What 99 % did not exceed.
    pub p99: f64,
    /// What 99.9 % did not exceed.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// CPU time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cpu {
    /// µs for each packet that arrived, or for each allocation.
    pub us_each: f64,
    /// Processors kept busy, 1 for one whole.
    pub share: f64,
}

/// What was relayed, and how.
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
    /// Packets in a row.
    pub burst: u32,
}

/// What became of packets.
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
    /// Packets a second that were asked for.
    pub rate: Option<u64>,
    /// Packets kept under way.
    pub window: Option<u32>,
    /// Seconds measured.
    pub seconds: f64,
    /// Packets sent in that time.
    pub sent: u64,
    /// How many of them arrived, with an echo: came back.
    pub received: u64,
    /// How many did not.
    pub lost: u64,
    /// The same in percent of those sent.
    pub loss_percent: f64,
    /// Packets that arrived, a second; with an echo both ways count.
    pub packets_per_second: f64,
    /// Payload bits a second.
    pub bits_per_second: f64,
    /// How long they took, with an echo: there and back.
    pub latency_us: Latency,
    /// Packets that arrived where they do not belong, or with other bytes.
    pub misdelivered: u64,
    /// Error responses to Binding requests.
    pub refused: u64,
    /// Packets that did not leave because the kernel's buffers were full.
    pub held_back: u64,
    /// Packets that a rate asked for and this machine could not send in time.
    pub left_out: u64,
    /// Whether packets for one destination left as one (GSO).
    pub segmentation: bool,
    /// CPU time of the watched process.
    pub server_cpu: Option<Cpu>,
    /// CPU time of the generator itself, without what it has waited awake: near one processor for each process, it was the limit.
    pub own_cpu: Cpu,
}

/// What became of allocations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AllocateReport {
    /// `allocate`.
    pub mode: &'static str,
    /// The server.
    pub server: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Allocations made, and given back.
    pub allocations: usize,
    /// How many were asked for at a time.
    pub concurrency: usize,
    /// Processes that made them.
    pub processes: usize,
    /// Seconds until the last one was there.
    pub seconds: f64,
    /// Allocations a second.
    pub allocations_per_second: f64,
    /// From the first request, over the challenge, to the success.
    pub latency_us: Latency,
    /// CPU time of the watched process.
    pub server_cpu: Option<Cpu>,
    /// By how much its resident memory has grown, in bytes for each allocation.
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
    /// Makes the report of a load that ran in `processes`.
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

    /// Returns whether the generator had no time to spare, so that the server might have taken more.
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

/// The highest rate that a server bears.
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
    /// What might be lost.
    pub max_loss_percent: f64,
    /// The highest rate that was borne, in packets a second; none if none was.
    pub highest_rate: Option<u64>,
    /// Whether what failed above it was the generator, which could not send so much.
    pub generator_was_the_limit: bool,
    /// What was tried, in turn.
    pub trials: Vec<Trial>,
    /// The server at half of the highest rate.
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
        let failed = trials.iter().filter(|trial| !trial.borne);
        let lowest = failed.min_by_key(|trial| trial.rate);
        Self {
            mode: "search",
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            relayed: Relayed::of(traffic),
            max_loss_percent: search.max_loss_percent,
            highest_rate: trials.iter().filter(|trial| trial.borne).map(|trial| trial.rate).max(),
            generator_was_the_limit: lowest.is_some_and(|trial| trial.left_out),
            trials,
            at_half,
        }
    }
}

impl AllocateReport {
    /// Makes the report of what `processes` have made.
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
