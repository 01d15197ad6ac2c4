//! What a relay has counted since it began.

/// Defines [`Counters`] and its iterator.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a relay has counted since it began. Dropped packets are counted apart, by reason
        /// ([`Relay::drops`](super::Relay::drops)), and denied peers by rule ([`Relay::denials`](super::Relay::denials)).
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Iterates over the counters' names and values.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Allocations created.
    allocations,
    /// Payload bytes relayed from clients to peers, those to clients of this server included.
    bytes_to_peers,
    /// Payload bytes relayed from peers to clients.
    bytes_to_clients,
    /// Requests and packets refused because the allocation or its user has too many new peers a second.
    new_peers_refused,
    /// Times that no relay port was free.
    ports_exhausted,
    /// Relay sockets that the system could not open, whatever the port.
    sockets_refused,
    /// ICMP errors sent to clients.
    icmp_errors,
    /// Requests refused for their credentials (401, 438).
    unauthorized,
}
