//! What the workers count: read through their inboxes, summed, and written in Prometheus' text format.

use super::inbox::{Inbox, WorkerMessage};
use crate::net::unauthenticated::UnauthenticatedCounters;
use crate::turn_server::Relay;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use tokio::sync::oneshot;

/// Why a worker dropped a packet, apart from the relay's own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerDropReason {
    /// The first byte belongs to no protocol of the port.
    UnknownProtocol,
    /// No valid DTLS record, or a handshake over the limit.
    Dtls,
    /// The queue of the client's hub is full.
    SignalingQueueFull,
    /// A response to an unverified source address exceeds its limits.
    ResponseWithheld,
    /// The system refused the datagram.
    SendError,
    /// The client does not read its stream fast enough.
    ClientNotReading,
    /// The client's connection has closed.
    ClientClosed,
    /// The queue of another worker is full.
    WorkerQueueFull,
}

impl WorkerDropReason {
    pub(crate) const ALL: [Self; 8] = [
        Self::UnknownProtocol,
        Self::Dtls,
        Self::SignalingQueueFull,
        Self::ResponseWithheld,
        Self::SendError,
        Self::ClientNotReading,
        Self::ClientClosed,
        Self::WorkerQueueFull,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::UnknownProtocol => "unknown_protocol",
            Self::Dtls => "dtls",
            Self::SignalingQueueFull => "signaling_queue_full",
            Self::ResponseWithheld => "response_withheld",
            Self::SendError => "send_error",
            Self::ClientNotReading => "client_not_reading",
            Self::ClientClosed => "client_closed",
            Self::WorkerQueueFull => "worker_queue_full",
        }
    }
}

/// The packets that one worker dropped, by reason.
#[derive(Debug, Default)]
pub(crate) struct WorkerDropCounters([Cell<u64>; WorkerDropReason::ALL.len()]);

impl WorkerDropCounters {
    pub(crate) fn add(&self, reason: WorkerDropReason, count: u64) {
        let counter = &self.0[reason as usize];
        counter.set(counter.get() + count);
    }

    pub(crate) fn get(&self) -> [u64; WorkerDropReason::ALL.len()] {
        self.0.each_ref().map(Cell::get)
    }
}

/// The counters of one worker, or the sum over several.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    /// Allocations that exist now.
    pub(crate) allocations: u64,
    /// The relay's counters by name.
    pub(crate) relay: BTreeMap<&'static str, u64>,
    /// Packets that the relay dropped, by reason.
    pub(crate) relay_drops: BTreeMap<&'static str, u64>,
    /// Denied peers by rule.
    pub(crate) denials: BTreeMap<&'static str, u64>,
    /// Responses and handshakes that the limits on unverified source addresses withheld.
    pub(crate) withheld: UnauthenticatedCounters,
    pub(crate) drops: [u64; WorkerDropReason::ALL.len()],
    /// Packets handed to other workers.
    pub(crate) between_workers: u64,
}

impl WorkerCounters {
    /// Asks every worker; `None` when one has stopped.
    pub(crate) async fn gather(workers: &[Inbox]) -> Option<Self> {
        let mut sum = Self::default();
        for worker in workers {
            let (sender, counters) = oneshot::channel();
            worker.send(WorkerMessage::ReadCounters(sender)).await;
            sum.add(*counters.await.ok()?);
        }
        Some(sum)
    }

    /// Adds the counters of a relay.
    pub(crate) fn with_relay(mut self, relay: &Relay) -> Self {
        self.allocations += relay.len() as u64;
        add_all(&mut self.relay, relay.counters().iter());
        add_all(&mut self.relay_drops, relay.drops().iter());
        add_all(&mut self.denials, relay.denials());
        self
    }

    fn add(&mut self, other: Self) {
        self.allocations += other.allocations;
        add_all(&mut self.relay, other.relay);
        add_all(&mut self.relay_drops, other.relay_drops);
        add_all(&mut self.denials, other.denials);
        self.withheld.over_rate += other.withheld.over_rate;
        self.withheld.over_size += other.withheld.over_size;
        self.withheld.handshakes += other.withheld.handshakes;
        for (sum, count) in self.drops.iter_mut().zip(other.drops) {
            *sum += count;
        }
        self.between_workers += other.between_workers;
    }

    /// Writes all counters in Prometheus' text format; `docs/metrics.md` lists them.
    pub(crate) fn to_prometheus(&self) -> String {
        let (mut text, withheld) = (String::new(), &self.withheld);
        let (allocations, handed_over) = (self.allocations, self.between_workers);
        // Writing to a String does not fail.
        let _ =
            writeln!(text, "# TYPE ginnel_relay_allocations gauge\nginnel_relay_allocations {allocations}");
        for (name, value) in &self.relay {
            let _ =
                writeln!(text, "# TYPE ginnel_relay_{name}_total counter\nginnel_relay_{name}_total {value}");
        }
        let name = "ginnel_worker_handed_over_packets_total";
        let _ = writeln!(text, "# TYPE {name} counter\n{name} {handed_over}");
        let withheld = [
            ("rate", withheld.over_rate),
            ("size", withheld.over_size),
            ("dtls_handshakes", withheld.handshakes),
        ];
        let drops = WorkerDropReason::ALL.map(WorkerDropReason::name).into_iter().zip(self.drops);
        let pairs = |counts: &BTreeMap<_, _>| counts.clone().into_iter();
        write_family(&mut text, ("relay_denied_peers_total", "rule"), pairs(&self.denials));
        write_family(&mut text, ("relay_dropped_packets_total", "reason"), pairs(&self.relay_drops));
        write_family(&mut text, ("unauthenticated_withheld_total", "limit"), withheld);
        write_family(&mut text, ("worker_dropped_packets_total", "reason"), drops);
        text
    }
}

fn add_all(sums: &mut BTreeMap<&'static str, u64>, counts: impl IntoIterator<Item = (&'static str, u64)>) {
    for (name, count) in counts {
        *sums.entry(name).or_default() += count;
    }
}

/// Writes the counters that differ in the value of one label.
fn write_family(
    text: &mut String,
    (name, label): (&str, &str),
    counts: impl IntoIterator<Item = (&'static str, u64)>,
) {
    let _ = writeln!(text, "# TYPE ginnel_{name} counter");
    for (value, count) in counts {
        let _ = writeln!(text, "ginnel_{name}{{{label}=\"{value}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_all_workers_are_summed() {
        let worker = |count: u64| {
            let drops = WorkerDropCounters::default();
            drops.add(WorkerDropReason::WorkerQueueFull, count);
            WorkerCounters {
                allocations: count,
                relay: BTreeMap::from([("bytes_to_peers", 10 * count), ("unauthorized", count)]),
                relay_drops: BTreeMap::from([("no_permission", count)]),
                denials: BTreeMap::from([("own address", count)]),
                withheld: UnauthenticatedCounters { over_size: count, ..UnauthenticatedCounters::default() },
                drops: drops.get(),
                between_workers: count,
            }
        };
        let mut sum = worker(1);
        sum.add(worker(2));
        let text = sum.to_prometheus();
        for line in [
            "ginnel_relay_allocations 3",
            "ginnel_relay_bytes_to_peers_total 30",
            "ginnel_relay_unauthorized_total 3",
            "ginnel_relay_dropped_packets_total{reason=\"no_permission\"} 3",
            "ginnel_relay_denied_peers_total{rule=\"own address\"} 3",
            "ginnel_unauthenticated_withheld_total{limit=\"size\"} 3",
            "ginnel_worker_dropped_packets_total{reason=\"worker_queue_full\"} 3",
            "ginnel_worker_dropped_packets_total{reason=\"unknown_protocol\"} 0",
            "ginnel_worker_handed_over_packets_total 3",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn each_drop_reason_has_its_own_counter() {
        for (index, reason) in WorkerDropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
