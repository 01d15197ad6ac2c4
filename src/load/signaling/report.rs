//! The report of a load on the signalling.

use super::clients::CallCounts;
use super::{SignalingLoad, SignalingTransport};
use crate::load::report::{Cpu, Latency, per};
use crate::load::{Load, LoadMode};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The results of the registrations.
#[derive(Debug)]
pub(super) struct RegisterPhase {
    pub(super) elapsed: Duration,
    pub(super) own_cpu: Duration,
    pub(super) cpu: Option<Duration>,
    pub(super) bytes: Option<i64>,
}

/// CPU time, and the elapsed time.
#[derive(Debug)]
pub(super) struct CpuUse {
    pub(super) cpu: Option<Duration>,
    pub(super) own_cpu: Duration,
    pub(super) elapsed: Duration,
}

/// The results of the calls.
#[derive(Debug)]
pub(super) struct CallPhase {
    pub(super) elapsed: Duration,
    pub(super) used: CpuUse,
    pub(super) calls: CallCounts,
    pub(super) refused: BTreeMap<i64, u64>,
    pub(super) held_back: u64,
    pub(super) left_out: u64,
    pub(super) closed: usize,
    pub(super) lost_tags: u64,
}

/// The report of a load on the signalling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SignalingReport {
    /// `signaling`.
    pub mode: &'static str,
    /// The server.
    pub server: String,
    /// `udp` or `ws`.
    pub via: &'static str,
    /// Registered clients.
    pub clients: usize,
    /// Seconds until the last one was registered.
    pub registering_seconds: f64,
    /// Registrations per second.
    pub registrations_per_second: f64,
    /// CPU time of the watched process per client, with its first heartbeat.
    pub registering_cpu: Option<Cpu>,
    /// CPU time of this process.
    pub registering_own_cpu: Cpu,
    /// Growth of the resident memory of the watched process, in bytes per client.
    pub server_bytes_each: Option<f64>,
    /// Seconds of the measurement.
    pub seconds: f64,
    /// CPU time of the watched process per elapsed time: 1 is one processor.
    pub server_share: Option<f64>,
    /// WebSockets that the server closed.
    pub closed: usize,
    /// Tags that the server no longer had.
    pub lost_tags: u64,
    /// Refusals, by code.
    pub refused: BTreeMap<i64, u64>,
    /// Messages that did not leave because the kernel's buffers were full.
    pub held_back: u64,
    /// The calls, if there were any.
    pub calls: Option<CallsReport>,
}

/// The results of calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallsReport {
    /// The rate of the load, in calls per second.
    pub rate: Option<u64>,
    /// The window of the load, in calls.
    pub window: Option<u32>,
    /// Calls started.
    pub begun: u64,
    /// Calls whose t=52 arrived.
    pub answered: u64,
    /// The other calls.
    pub lost: u64,
    /// Lost calls in percent of those started.
    pub loss_percent: f64,
    /// Answered calls per second.
    pub calls_per_second: f64,
    /// From t=4 to t=52.
    pub latency_us: Latency,
    /// Messages that arrived at the wrong client.
    pub misdelivered: u64,
    /// Calls of the rate that this machine could not start in time.
    pub left_out: u64,
    /// CPU time of the watched process per answered call; heartbeats are included.
    pub server_cpu: Option<Cpu>,
    /// CPU time of this process.
    pub own_cpu: Cpu,
}

impl SignalingReport {
    pub(super) fn new(
        load: &Load,
        what: &SignalingLoad,
        registered: &RegisterPhase,
        calls_phase: &CallPhase,
    ) -> Self {
        let clients = what.clients as u64;
        let CpuUse { cpu, elapsed, .. } = calls_phase.used;
        Self {
            mode: "signaling",
            server: load.target.address().to_string(),
            via: match what.via {
                SignalingTransport::Udp => "udp",
                SignalingTransport::Ws => "ws",
            },
            clients: what.clients,
            registering_seconds: registered.elapsed.as_secs_f64(),
            registrations_per_second: per(clients as f64, registered.elapsed.as_secs_f64()),
            registering_cpu: registered.cpu.map(|used| Cpu::of(used, clients, registered.elapsed)),
            registering_own_cpu: Cpu::of(registered.own_cpu, clients, registered.elapsed),
            server_bytes_each: registered.bytes.map(|bytes| per(bytes as f64, clients as f64)),
            seconds: calls_phase.elapsed.as_secs_f64(),
            server_share: cpu.map(|used| per(used.as_secs_f64(), elapsed.as_secs_f64())),
            closed: calls_phase.closed,
            lost_tags: calls_phase.lost_tags,
            refused: calls_phase.refused.clone(),
            held_back: calls_phase.held_back,
            calls: what.mode.map(|mode| CallsReport::new(mode, calls_phase)),
        }
    }
}

impl CallsReport {
    fn new(mode: LoadMode, calls_phase: &CallPhase) -> Self {
        let CallPhase { calls, used, left_out, .. } = calls_phase;
        let (rate, window) = mode.settings();
        let lost = calls.begun.saturating_sub(calls.answered);
        Self {
            rate,
            window,
            begun: calls.begun,
            answered: calls.answered,
            lost,
            loss_percent: per(lost as f64 * 100.0, calls.begun as f64),
            calls_per_second: per(calls.answered as f64, calls_phase.elapsed.as_secs_f64()),
            latency_us: Latency::of(&calls.latency),
            misdelivered: calls.misdelivered,
            left_out: *left_out,
            server_cpu: used.cpu.map(|cpu| Cpu::of(cpu, calls.answered, used.elapsed)),
            own_cpu: Cpu::of(used.own_cpu, calls.answered, used.elapsed),
        }
    }

    /// Returns whether the generator was the limit.
    #[must_use]
    pub fn was_generator_the_limit(&self) -> bool {
        self.own_cpu.share > 0.93
    }
}
