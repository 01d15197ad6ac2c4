//! The results of a load as counts that can be added: a load may run in several processes.

use super::histogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The results of a traffic load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficOutcome {
    /// Duration of the measurement.
    pub elapsed: Duration,
    /// Packets sent during the measurement.
    pub sent: u64,
    /// How many of those arrived, at any time.
    pub received: u64,
    /// Packets that arrived anywhere during the measurement.
    pub delivered: u64,
    /// Packets that arrived at the wrong endpoint.
    pub misdelivered: u64,
    /// Error responses to Binding requests.
    pub refused: u64,
    /// Packets that the kernel's buffers had no space for.
    pub held_back: u64,
    /// Packets of a rate that were not sent in time.
    pub left_out: u64,
    /// Latencies of packets.
    pub latency: Histogram,
    /// CPU time of the watched process.
    pub server_cpu: Option<Duration>,
    /// CPU time of the generator without busy waiting.
    pub own_cpu: Duration,
    /// Whether consecutive packets to one destination were sent as one.
    pub segmentation: bool,
}

impl TrafficOutcome {
    /// Adds the results of another process.
    pub fn merge(&mut self, other: &Self) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.sent += other.sent;
        self.received += other.received;
        self.delivered += other.delivered;
        self.misdelivered += other.misdelivered;
        self.refused += other.refused;
        self.held_back += other.held_back;
        self.left_out += other.left_out;
        self.latency.merge(&other.latency);
        self.server_cpu = self.server_cpu.or(other.server_cpu);
        self.own_cpu += other.own_cpu;
        self.segmentation |= other.segmentation;
    }

    /// Returns the packets that did not arrive, in percent of those to be sent: a packet that was not sent counts as lost.
    #[must_use]
    pub fn shortfall(&self) -> f64 {
        let wanted = self.sent + self.held_back + self.left_out;
        let missing = wanted.saturating_sub(self.received);
        if wanted == 0 { 100.0 } else { missing as f64 * 100.0 / wanted as f64 }
    }
}

/// The results of an allocation load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AllocationResult {
    /// How many there are.
    pub count: usize,
    /// From the first request to the last success.
    pub elapsed: Duration,
    /// How long each took.
    pub latency: Histogram,
    /// CPU time of the generator.
    pub own_cpu: Duration,
    /// What the watched process has used: CPU time, and bytes by which its resident memory has grown.
    pub used: Option<(Duration, i64)>,
}

impl AllocationResult {
    /// Returns what [`AllocationResult::used`] is, by the CPU time in ns and the resident bytes before and after.
    #[must_use]
    pub fn used_between(before: (u64, u64), after: (u64, u64)) -> (Duration, i64) {
        let grown = i64::try_from(i128::from(after.1) - i128::from(before.1)).unwrap_or(0);
        (Duration::from_nanos(after.0.saturating_sub(before.0)), grown)
    }

    /// Adds what another process has made at the same time.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.merge(&other.latency);
        self.own_cpu += other.own_cpu;
        self.used = self.used.or(other.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(sent: u64, seconds: u64, latencies: impl Iterator<Item = u64>) -> TrafficOutcome {
        let mut outcome =
            TrafficOutcome { elapsed: Duration::from_secs(seconds), sent, ..TrafficOutcome::default() };
        for ns in latencies {
            outcome.latency.record(ns);
            outcome.received += 1;
        }
        outcome
    }

    #[test]
    fn parts_of_a_load_add_up_to_what_one_process_would_have_told() {
        let mut whole = outcome(10, 2, 1..=5);
        whole.server_cpu = Some(Duration::from_secs(1));
        let other = outcome(5, 3, 6..=10);
        whole.merge(&other);
        assert_eq!((whole.sent, whole.received, whole.elapsed), (15, 10, Duration::from_secs(3)));
        assert_eq!(whole.latency, outcome(15, 3, 1..=10).latency);
        assert_eq!(whole.server_cpu, Some(Duration::from_secs(1)));
        assert_eq!(whole.shortfall(), 100.0 / 3.0);
    }

    #[test]
    fn what_could_not_leave_is_missing_too() {
        let outcome = TrafficOutcome { held_back: 1, left_out: 1, ..outcome(8, 1, 0..8) };
        assert_eq!(outcome.shortfall(), 20.0);
        assert_eq!(TrafficOutcome::default().shortfall(), 100.0);
    }

    #[test]
    fn outcomes_cross_a_pipe_as_they_are() {
        let outcome = outcome(7, 1, [3, 300, 30_000, u64::MAX].into_iter());
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<TrafficOutcome>(&text).unwrap(), outcome);
        assert!(serde_json::from_str::<Histogram>("{\"counts\":[[99999999,1]],\"longest\":1}").is_err());
    }
}
