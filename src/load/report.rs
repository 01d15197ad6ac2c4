//! What a load has found out, in numbers.

use super::generator::Outcome;
use super::histogram::Histogram;
use super::{AllocateLoad, Direction, Drive, Load, Peers, RelayLoad};
use serde::Serialize;
use std::time::Duration;

/// Times from before a packet's sending call to after the receiving one, in µs.
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
    /// CPU time of this process; at a steady rate it waits awake.
    pub own_cpu: Cpu,
}

/// What became of allocations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AllocateReport {
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
}

fn micros(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 10.0).round() / 100.0
}

fn per(total: f64, count: f64) -> f64 {
    if count > 0.0 { total / count } else { 0.0 }
}

impl Latency {
    fn of(histogram: &Histogram) -> Self {
        let at = |per_mille| micros(histogram.quantile(per_mille));
        Self { p50: at(500), p99: at(990), p999: at(999), max: micros(histogram.longest()) }
    }
}

impl Cpu {
    fn of(used: Duration, count: u64, elapsed: Duration) -> Self {
        Self {
            us_each: per(used.as_secs_f64() * 1e6, count as f64),
            share: per(used.as_secs_f64(), elapsed.as_secs_f64()),
        }
    }
}

impl TrafficReport {
    pub(super) fn new(
        mode: &'static str,
        load: &Load,
        drive: Drive,
        segmentation: bool,
        outcome: &Outcome,
    ) -> Self {
        let lost = outcome.sent.saturating_sub(outcome.received);
        let (rate, window) = match drive {
            Drive::Rate(rate) => (Some(rate), None),
            Drive::Window(window) => (None, Some(window)),
        };
        let elapsed = outcome.elapsed;
        Self {
            mode,
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            relayed: None,
            rate,
            window,
            seconds: elapsed.as_secs_f64(),
            sent: outcome.sent,
            received: outcome.received,
            lost,
            loss_percent: per(lost as f64 * 100.0, outcome.sent as f64),
            packets_per_second: per(outcome.delivered as f64, elapsed.as_secs_f64()),
            bits_per_second: 0.0,
            latency_us: Latency::of(&outcome.latency),
            misdelivered: outcome.misdelivered,
            refused: outcome.refused,
            held_back: outcome.held_back,
            left_out: outcome.left_out,
            segmentation: segmentation && load.target.transport() == super::Transport::Udp,
            server_cpu: outcome.server_cpu.map(|used| Cpu::of(used, outcome.delivered, elapsed)),
            own_cpu: Cpu::of(outcome.own_cpu, outcome.delivered, elapsed),
        }
    }

    pub(super) fn of_relay(self, load: &RelayLoad) -> Self {
        let direction = match load.direction {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Both => "both",
            Direction::Echo => "echo",
        };
        let relayed = Relayed {
            allocations: match load.peers {
                Peers::Sockets => load.allocations,
                Peers::Clients => load.allocations.next_multiple_of(2),
            },
            size: load.size,
            direction,
            by: if load.indications { "indications" } else { "channels" },
            peers: if load.peers == Peers::Sockets { "sockets" } else { "clients" },
            burst: load.burst,
        };
        let bits_per_second = self.packets_per_second * 8.0 * f64::from(load.size);
        Self { relayed: Some(relayed), bits_per_second, ..self }
    }
}

impl AllocateReport {
    /// `used` is CPU time in ns and resident bytes, before and after.
    pub(super) fn new(
        load: &Load,
        what: AllocateLoad,
        elapsed: Duration,
        latency: &Histogram,
        used: Option<((u64, u64), (u64, u64))>,
    ) -> Self {
        let count = what.count as f64;
        Self {
            mode: "allocate",
            server: load.target.address().to_string(),
            transport: load.target.transport().name(),
            allocations: what.count,
            concurrency: what.concurrency,
            seconds: elapsed.as_secs_f64(),
            allocations_per_second: per(count, elapsed.as_secs_f64()),
            latency_us: Latency::of(latency),
            server_cpu: used.map(|((before, _), (after, _))| {
                let used = Duration::from_nanos(after.saturating_sub(before));
                Cpu::of(used, what.count as u64, elapsed)
            }),
            server_bytes_each: used.map(|((_, before), (_, after))| per(after as f64 - before as f64, count)),
        }
    }
}
