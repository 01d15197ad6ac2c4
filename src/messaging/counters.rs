//! What messaging counts, for `/metrics`.

use std::fmt::Write;

/// The counters of messaging.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessagingCounters {
    /// Open connections.
    pub connections: u64,
    /// Of them WebSockets.
    pub websockets: u64,
    /// Users and devices that are online.
    pub online: u64,
    /// Accounts that were registered.
    pub registrations: u64,
    /// Successful logins and device authentications.
    pub logins: u64,
    /// Logins with a wrong name or password, and devices with a wrong key or network.
    pub refused_logins: u64,
    /// Attempts to log in or register over a rate.
    pub throttled: u64,
    /// Connections whose id another connection has taken over (cmd 103, `closing`).
    pub conflicts: u64,
    /// Messages that were stored.
    pub stored: u64,
    /// Messages that were stored before under the same sender and id.
    pub duplicates: u64,
    /// Messages that were refused.
    pub refused: u64,
    /// Messages that were pushed, each time.
    pub pushed: u64,
    /// Messages that were removed after an acknowledgement.
    pub acknowledged: u64,
    /// Messages that have expired.
    pub expired: u64,
    /// Receipts that were dropped because the sending device has as many as it may.
    pub dropped_receipts: u64,
    /// Requests of WebSockets that were refused.
    pub refused_requests: u64,
    /// Frames that could not be read (cmd 3), and texts that are no requests.
    pub malformed: u64,
}

impl MessagingCounters {
    /// Writes the counters as Prometheus text.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        for (name, kind, value) in [
            ("connections", "gauge", self.connections),
            ("websockets", "gauge", self.websockets),
            ("online", "gauge", self.online),
            ("registrations_total", "counter", self.registrations),
            ("logins_total", "counter", self.logins),
            ("refused_logins_total", "counter", self.refused_logins),
            ("throttled_total", "counter", self.throttled),
            ("conflicts_total", "counter", self.conflicts),
            ("stored_messages_total", "counter", self.stored),
            ("duplicate_messages_total", "counter", self.duplicates),
            ("refused_messages_total", "counter", self.refused),
            ("pushed_messages_total", "counter", self.pushed),
            ("acknowledged_messages_total", "counter", self.acknowledged),
            ("expired_messages_total", "counter", self.expired),
            ("dropped_receipts_total", "counter", self.dropped_receipts),
            ("refused_requests_total", "counter", self.refused_requests),
            ("malformed_frames_total", "counter", self.malformed),
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# TYPE ginnel_messaging_{name} {kind}\nginnel_messaging_{name} {value}");
        }
        text
    }
}
