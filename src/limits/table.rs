//! The table of limits and how often each was reached. Pure.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares [`Limit`]: first the limits that have a configuration key, then the fixed ones.
macro_rules! limits {
    (
        keys { $($(#[$key_doc:meta])+ $key:ident = $key_name:literal,)+ }
        fixed { $($(#[$fixed_doc:meta])+ $fixed:ident = $fixed_name:literal,)+ }
    ) => {
        /// A limit that something from outside can reach.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Limit {
            $($(#[$key_doc])+ $key,)+
            $($(#[$fixed_doc])+ $fixed,)+
        }

        impl Limit {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$key,)+ $(Self::$fixed,)+];

            /// Returns the full name of its configuration key; of a fixed limit the name that the documentation uses.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$key => $key_name,)+
                    $(Self::$fixed => $fixed_name,)+
                }
            }

            /// Returns whether its name is a configuration key.
            #[must_use]
            pub const fn is_configurable(self) -> bool {
                matches!(self, $(Self::$key)|+)
            }
        }
    };
}

limits! {
    keys {
        /// Responses a second to unauthenticated clients of one network over UDP.
        UnauthenticatedRate = "limits.unauthenticated_rate",
        /// DTLS handshakes a second of one network, or in total.
        DtlsHandshakes = "limits.dtls_handshakes",
        /// Bytes that unauthenticated TCP connections hold; the oldest that holds some is closed.
        UnauthenticatedMemory = "limits.unauthenticated_memory",
        /// TCP connections of one address.
        ConnectionsPerAddress = "limits.connections_per_address",

        /// Allocations of one user (486).
        AllocationsPerUser = "turn.allocations_per_user",
        /// Allocations in total (508).
        MaxAllocations = "turn.max_allocations",
        /// Permissions, and channels, of one allocation (508).
        PermissionsPerAllocation = "turn.permissions_per_allocation",
        /// New peers a second of one allocation.
        NewPeersPerSecond = "turn.new_peers_per_second",
        /// New peers a second of all allocations of one user.
        NewPeersPerUser = "turn.new_peers_per_user",
        /// Bytes a second of one allocation.
        BandwidthPerAllocation = "turn.bandwidth_per_allocation",
        /// Bytes a second of one user.
        BandwidthPerUser = "turn.bandwidth_per_user",
        /// Relay ports (508).
        RelayPorts = "turn.relay_ports",

        /// User look-ups a second for one network.
        HookPerNetwork = "auth.hook.per_network",
        /// Results of user look-ups in the cache; the oldest is dropped.
        HookMaxCached = "auth.hook.max_cached",
        /// User look-ups at the same time.
        HookMaxInFlight = "auth.hook.max_in_flight",

        /// Bytes that wait in the gateway.
        GatewayMemory = "gateway.limits.memory",
        /// Bytes that wait for the receiver of one virtual connection.
        GatewayQueue = "gateway.limits.queue",
        /// Virtual connections that one client has dialled.
        GatewayPerClient = "gateway.limits.per_client",
        /// Ids that one endpoint has opened and not dialled; the oldest is closed.
        GatewayHalfOpen = "gateway.limits.half_open",
        /// Messages for ids of other endpoints within a minute; the connection is dropped.
        GatewayViolations = "gateway.limits.violations",
        /// Virtual connections in total.
        GatewayVirtualConnections = "gateway.limits.virtual_connections",

        /// Tags in total.
        SignalingTags = "signaling.limits.tags",
        /// Tags of one network.
        SignalingTagsPerNetwork = "signaling.limits.tags_per_network",
        /// Calls in total.
        SignalingCalls = "signaling.limits.calls",
        /// Calls of one tag.
        SignalingCallsPerTag = "signaling.limits.calls_per_tag",
        /// Bytes of requests to the sides of calls that wait for a response, in total or of one network.
        SignalingCallBytes = "signaling.limits.call_bytes",
        /// Requests of one call that wait for a response.
        SignalingNoticesPerCall = "signaling.limits.notices_per_call",
        /// WebSockets in total.
        SignalingConnections = "signaling.limits.connections",
        /// WebSockets of one network.
        SignalingConnectionsPerNetwork = "signaling.limits.connections_per_network",
        /// Tags that one WebSocket watches.
        SignalingWatchesPerClient = "signaling.limits.watches_per_client",
        /// WebSockets at one hub that watch one tag.
        SignalingWatchersPerTag = "signaling.limits.watchers_per_tag",
        /// Watches in total.
        SignalingWatches = "signaling.limits.watches",
        /// Bytes of responses kept for repeated requests; the oldest is dropped.
        SignalingAnswerBytes = "signaling.limits.answer_bytes",
        /// Messages a second of one UDP network, or of one WebSocket.
        SignalingPerSource = "signaling.limits.per_source",
        /// Calls a second from one tag to one other.
        SignalingPerPair = "signaling.limits.per_pair",
        /// Signatures a second of one network.
        SignalingPerProof = "signaling.limits.per_proof",
        /// Bytes of lists a second to one network.
        SignalingPerList = "signaling.limits.per_list",
        /// Locators that one network resolves.
        SignalingPerLocate = "signaling.limits.per_locate",
        /// Calls a second to addresses of one network that have not responded.
        SignalingPerUnproven = "signaling.limits.per_unproven",
        /// Requests a second to `/ice` of one network.
        SignalingIcePerNetwork = "signaling.limits.ice_per_network",
        /// Credentials a second that `/ice` hands out for one key.
        SignalingIcePerKey = "signaling.limits.ice_per_key",
        /// Keys that each rate limiter of the hub keeps; the least active is dropped.
        SignalingRates = "signaling.limits.rates",
        /// Revoked tags.
        SignalingRevocations = "signaling.limits.revocations",
        /// Events that wait for a hub; a datagram is lost.
        SignalingInbox = "signaling.limits.inbox",
        /// Bytes of WebSocket texts that wait for a hub.
        SignalingInboxBytes = "signaling.limits.inbox_bytes",
        /// Texts that wait for one WebSocket, which is closed.
        SignalingOutbox = "signaling.limits.outbox",
        /// Bytes that wait for one WebSocket, which is closed.
        SignalingOutboxBytes = "signaling.limits.outbox_bytes",
        /// Bytes that wait for all WebSockets.
        SignalingOutboxesBytes = "signaling.limits.outboxes_bytes",

        /// Attempts a second to log in to one account from one network.
        MessagingLoginsPerAccount = "messaging.limits.logins_per_account",
        /// Attempts a second to log in from one network.
        MessagingLoginsPerNetwork = "messaging.limits.logins_per_network",
        /// New users and devices a second of one network.
        MessagingRegistrationsPerNetwork = "messaging.limits.registrations_per_network",
        /// Key exchanges a second of one network; the connection is closed.
        MessagingKeyExchangesPerNetwork = "messaging.limits.key_exchanges_per_network",
        /// Frames a second of one connection, which is read more slowly.
        MessagingRequestsPerConnection = "messaging.limits.requests_per_connection",
        /// Passwords, or session keys, that wait for a thread.
        MessagingJobQueue = "messaging.limits.job_queue",
        /// Those of one network.
        MessagingJobsPerNetwork = "messaging.limits.jobs_per_network",
        /// Bytes of requests that are not answered yet.
        MessagingRequestBytes = "messaging.limits.request_bytes",
        /// Bytes of everything that messaging stores; messages are refused.
        StoreBytes = "messaging.limits.stored_bytes",
        /// Bytes of frames that are being received; the connection is closed.
        MessagingFrameBytes = "messaging.limits.frame_bytes",
        /// Bytes that wait for one connection, which is closed.
        MessagingOutboxBytes = "messaging.limits.outbox_bytes",
        /// Bytes that wait for all connections; the one that needs more is closed.
        MessagingOutboxesBytes = "messaging.limits.outboxes_bytes",
    }
    fixed {
        /// A response to an unauthenticated request may be three times as large as the request.
        AnswerSize = "answer_size",
        /// TCP connections in total; the oldest unauthenticated one is closed.
        TcpConnections = "tcp_connections",
        /// Descriptors of connections; the rest is for relay sockets. Raise the process's limit.
        Descriptors = "descriptors",
        /// DTLS sessions in total.
        DtlsSessions = "dtls_sessions",
        /// DTLS sessions of one network.
        DtlsSessionsPerNetwork = "dtls_sessions_per_network",
        /// Bytes that one TCP client has not read; packets for it are dropped.
        UnreadBytesPerClient = "unread_bytes_per_client",
        /// Frames that wait for one client over TLS or WebSocket.
        QueuedFramesPerClient = "queued_frames_per_client",
        /// Networks that another rate limiter keeps; the least active is dropped.
        RateLimiterKeys = "rate_limiter_keys",
        /// Clients whose allocation belongs to another worker.
        ForwardedClients = "forwarded_clients",
        /// Packets and bytes that wait for another worker.
        PacketsBetweenWorkers = "packets_between_workers",
        /// Connections to TCP peers of one allocation.
        TcpPeersPerAllocation = "tcp_peers_per_allocation",
        /// Ports reserved by EVEN-PORT.
        Reservations = "reservations",
        /// Requests that wait for a user look-up.
        ParkedRequests = "parked_requests",
        /// Requests of one network that wait for a user look-up.
        ParkedRequestsPerNetwork = "parked_requests_per_network",
        /// User look-ups that wait to be sent.
        HookQueue = "hook_queue",
        /// Clients of the gateway.
        GatewayClients = "gateway_clients",
        /// Bytes of incomplete long frames from one network.
        GatewayMemoryPerAddress = "gateway_memory_per_address",
        /// Refused Dials a second of one client; it is read more slowly.
        GatewayRefusals = "gateway_refusals",
        /// Listings and look-ups between hubs that wait for an answer.
        HubQueries = "hub_queries",
        /// Look-ups of devices a second of one network.
        MessagingLookups = "messaging_lookups",
        /// Signatures a second that are verified for all clients of messaging.
        MessagingSignatures = "messaging_signatures",
        /// Contacts whose presence is watched, of all WebSockets.
        MessagingWatches = "messaging_watches",
        /// Bytes of calls that wait for the database.
        StoreQueue = "store_queue",
        /// Accounts and legacy devices.
        StoreParties = "store_parties",
        /// Messages in one mailbox, which refuses more.
        StoreMessagesPerMailbox = "store_messages_per_mailbox",
        /// Bytes in one mailbox, which refuses more.
        StoreBytesPerMailbox = "store_bytes_per_mailbox",
        /// Messages of one sender in one mailbox whose owner does not have it among its contacts.
        StoreSenderShare = "store_sender_share",
        /// Messages and receipts in one mailbox; receipts are dropped.
        StoreReceiptsPerMailbox = "store_receipts_per_mailbox",
        /// Contacts of one user or device.
        StoreContactsPerParty = "store_contacts_per_party",
        /// Devices of one account.
        StoreDevicesPerAccount = "store_devices_per_account",
    }
}

impl Limit {
    /// Counts that it was reached, and notes its value (of a rate: what is allowed a second).
    pub fn reached(self, value: impl TryInto<u64>) {
        TABLE.reached(self, value.try_into().unwrap_or(u64::MAX));
    }
}

/// The counts of this process.
static TABLE: Table = Table::new();

/// How often each limit was reached.
#[derive(Debug)]
pub(crate) struct Table([Count; Limit::ALL.len()]);

#[derive(Debug)]
struct Count {
    times: AtomicU64,
    value: AtomicU64,
}

impl Table {
    /// Makes a table in which nothing was reached.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self([const { Count { times: AtomicU64::new(0), value: AtomicU64::new(0) } }; Limit::ALL.len()])
    }

    /// Returns the table of this process.
    #[must_use]
    pub(crate) fn of_process() -> &'static Self {
        &TABLE
    }

    /// Counts that `limit` was reached, whose value is `value`.
    pub(crate) fn reached(&self, limit: Limit, value: u64) {
        let count = &self.0[limit as usize];
        count.value.store(value, Ordering::Relaxed);
        count.times.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often `limit` was reached, and its value when it was reached last.
    #[must_use]
    pub(crate) fn get(&self, limit: Limit) -> (u64, u64) {
        let count = &self.0[limit as usize];
        (count.times.load(Ordering::Relaxed), count.value.load(Ordering::Relaxed))
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes the counts in Prometheus' text format; those of limits that were not reached too, so that a rate can be computed.
#[must_use]
pub(crate) fn to_prometheus(table: &Table) -> String {
    let mut text = "# TYPE ginnel_limit_reached_total counter\n".to_owned();
    for limit in Limit::ALL {
        let (times, _) = table.get(*limit);
        // Writing to a String does not fail.
        let _ = writeln!(text, "ginnel_limit_reached_total{{limit=\"{}\"}} {times}", limit.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_limit_has_a_count_and_a_name_of_its_own() {
        let names: HashSet<_> = Limit::ALL.iter().map(|limit| limit.name()).collect();
        assert_eq!(names.len(), Limit::ALL.len());
        for (place, limit) in Limit::ALL.iter().enumerate() {
            assert_eq!(*limit as usize, place);
        }
    }

    #[test]
    fn every_key_of_the_table_is_in_the_reference() {
        let reference = concat!(
            include_str!("../../docs/ginnel.example.toml"),
            include_str!("../../docs/ginnel.advanced.toml")
        );
        let (mut section, mut keys) = (String::new(), HashSet::new());
        for line in reference.lines().map(|line| line.trim_start_matches("# ")) {
            if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                section = name.trim_start_matches('[').to_owned();
            } else if let Some((key, _)) = line.split_once(" = ") {
                keys.insert(format!("{section}.{key}"));
            }
        }
        for limit in Limit::ALL {
            assert_eq!(keys.contains(limit.name()), limit.is_configurable(), "{}", limit.name());
        }
    }

    #[test]
    fn what_was_reached_is_counted_and_written() {
        let table = Table::new();
        table.reached(Limit::AllocationsPerUser, 128);
        table.reached(Limit::AllocationsPerUser, 129);
        assert_eq!(table.get(Limit::AllocationsPerUser), (2, 129));
        let text = to_prometheus(&table);
        assert!(
            text.contains("\nginnel_limit_reached_total{limit=\"turn.allocations_per_user\"} 2\n"),
            "{text}"
        );
        assert!(text.contains("\nginnel_limit_reached_total{limit=\"turn.max_allocations\"} 0\n"), "{text}");
    }
}
