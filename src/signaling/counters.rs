//! The counters of a hub, for `/metrics`.

use super::call_table::CallOutcomes;
use super::message::ErrorCode;
use std::fmt::Write;

/// The counters of a hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HubCounters {
    /// Clients that are online.
    pub clients: u64,
    /// Open WebSockets.
    pub websockets: u64,
    /// Calls in progress.
    pub calls: u64,
    /// Locators that are valid.
    pub locators: u64,
    /// Successful registrations, retransmissions excluded.
    pub registrations: u64,
    /// Calls that have ended, by outcome.
    pub calls_ended: CallOutcomes,
    /// Errors sent to clients, in the order of [`ErrorCode::KNOWN`].
    pub(super) errors: [u64; ErrorCode::KNOWN.len()],
    /// Requests of the server (t=51, 52, 54, 55), delivered and undelivered.
    pub requests: RequestCounts,
    /// Messages to other hubs.
    pub hub_messages_sent: u64,
    /// Messages from other hubs.
    pub hub_messages_received: u64,
    /// Messages to other hubs that the bus did not accept.
    pub hub_messages_undelivered: u64,
}

/// Requests of the server that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Requests that the client has answered.
    pub acknowledged: u64,
    /// Requests that have timed out.
    pub unanswered: u64,
}

impl RequestCounts {
    pub(super) fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
    }
}

impl HubCounters {
    /// Counts an error that is sent to a client.
    pub(super) fn count_error(&mut self, code: ErrorCode) {
        let index = ErrorCode::KNOWN.iter().position(|known| *known == code);
        if let Some(count) = index.and_then(|index| self.errors.get_mut(index)) {
            *count += 1;
        }
    }

    /// Returns how often an error was sent.
    #[must_use]
    pub fn errors(&self, code: ErrorCode) -> u64 {
        let index = ErrorCode::KNOWN.iter().position(|known| *known == code);
        index.and_then(|index| self.errors.get(index).copied()).unwrap_or_default()
    }

    /// Writes the counters as Prometheus text.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        for (name, kind, value) in [
            ("clients", "gauge", self.clients),
            ("websockets", "gauge", self.websockets),
            ("calls", "gauge", self.calls),
            ("locators", "gauge", self.locators),
            ("registrations_total", "counter", self.registrations),
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# TYPE ginnel_signaling_{name} {kind}\nginnel_signaling_{name} {value}");
        }
        let CallOutcomes { unanswered, refused, answered, direct, relayed, failed } = self.calls_ended;
        let mut labelled = |name: &str, label: &str, counts: &[(&str, u64)]| {
            let _ = writeln!(text, "# TYPE ginnel_signaling_{name} counter");
            for (value, count) in counts {
                let _ = writeln!(text, "ginnel_signaling_{name}{{{label}=\"{value}\"}} {count}");
            }
        };
        let outcomes = [
            ("unanswered", unanswered),
            ("refused", refused),
            ("answered", answered),
            ("direct", direct),
            ("relayed", relayed),
            ("failed", failed),
        ];
        labelled("calls_ended_total", "outcome", &outcomes);
        let numbers = ErrorCode::KNOWN.map(|code| code.number().to_string());
        let errors: Vec<(&str, u64)> = numbers.iter().map(String::as_str).zip(self.errors).collect();
        labelled("errors_total", "code", &errors);
        let RequestCounts { acknowledged, unanswered } = self.requests;
        labelled("requests_total", "result", &[("acknowledged", acknowledged), ("unanswered", unanswered)]);
        let messages = [
            ("sent", self.hub_messages_sent),
            ("received", self.hub_messages_received),
            ("undelivered", self.hub_messages_undelivered),
        ];
        labelled("hub_messages_total", "direction", &messages);
        text
    }
}
