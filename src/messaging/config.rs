//! The configuration of messaging. Pure.

use super::password::PasswordCost;
pub use crate::limits::Rate;
use std::time::Duration;

/// The configuration of messaging.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who may write to whom; default anyone.
    pub policy: Policy,
    /// Whether users may register; default yes.
    pub registration: bool,
    /// How long a message is stored without an acknowledgement; default 30 days.
    pub retention: Duration,
    /// Longest silence of a client; default 150 s: four heartbeats of 30 s, and slack.
    pub idle: Duration,
    /// Limits.
    pub limits: Limits,
    /// What a password hash costs.
    pub password_cost: PasswordCost,
    /// Threads that hash passwords; default 1.
    pub password_threads: usize,
}

/// Who may write to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Anyone to anyone.
    Anyone,
    /// A party to devices that it has added, and to parties that have added it.
    Contacts,
}

/// Limits of messaging. A network is an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Users and legacy devices together; default 1 000 000.
    pub parties: u64,
    /// Messages in one mailbox; default 10 000.
    pub messages_per_mailbox: u64,
    /// Bytes of messages in one mailbox; default 64 MiB.
    pub bytes_per_mailbox: u64,
    /// Bytes of everything that is stored; default 8 GiB.
    pub stored_bytes: u64,
    /// Contacts of one party; default 1000.
    pub contacts: u64,
    /// Attempts to log in to one account from one network.
    pub logins_per_account: Rate,
    /// Attempts to log in from one network.
    pub logins_per_network: Rate,
    /// New users and devices of one network.
    pub registrations_per_network: Rate,
    /// RSA operations for one network; a client that needs more is closed.
    pub key_exchanges_per_network: Rate,
    /// Keys that each of these rates keeps; the least active is dropped.
    pub rate_keys: usize,
    /// Frames of one connection; it is read more slowly beyond.
    pub requests_per_connection: Rate,
    /// Passwords, and likewise session keys, that wait for a thread; default 256.
    pub job_queue: usize,
    /// Of them those of one network; default 16.
    pub jobs_per_network: usize,
    /// Bytes of requests that are not answered yet; default 64 MiB.
    pub request_bytes: usize,
    /// Bytes of frames that are being received, above 4 KiB each; default 64 MiB, of which one network may use an eighth.
    pub frame_bytes: usize,
    /// Bytes queued for one connection, which is closed beyond; default 2 MiB.
    pub outbox_bytes: usize,
    /// Bytes queued for all connections; default 128 MiB.
    pub outboxes_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Anyone,
            registration: true,
            retention: Duration::from_secs(30 * 24 * 3600),
            idle: Duration::from_secs(150),
            limits: Limits::default(),
            password_cost: PasswordCost::default(),
            password_threads: 1,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parties: 1_000_000,
            messages_per_mailbox: 10_000,
            bytes_per_mailbox: 64 << 20,
            stored_bytes: 8 << 30,
            contacts: 1000,
            logins_per_account: Rate::new(0.1, 10.0),
            logins_per_network: Rate::new(2.0, 60.0),
            registrations_per_network: Rate::new(0.1, 20.0),
            key_exchanges_per_network: Rate::new(10.0, 100.0),
            rate_keys: 65_536,
            requests_per_connection: Rate::new(1000.0, 2000.0),
            job_queue: 256,
            jobs_per_network: 16,
            request_bytes: 64 << 20,
            frame_bytes: 64 << 20,
            outbox_bytes: 2 << 20,
            outboxes_bytes: 128 << 20,
        }
    }
}
