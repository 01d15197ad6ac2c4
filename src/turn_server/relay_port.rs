//! One relay port: what it is for and who lives on it.
//!
//! A shared port serves many allocations. What a peer sends is handed to the allocation that talks with that very transport address
//! (its *claim*); a peer nobody has claimed yet belongs to the only allocation with a permission for its IP address. No two
//! allocations ever claim the same peer on the same port: the second one *spills over* to another port.

use super::machine::AllocationId;
use super::ports::PortLease;
use std::net::SocketAddr;

/// Names one relay socket of a worker for as long as it is open.
pub type RelayId = usize;

/// Who may be put on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Anybody.
    Shared,
    /// The one allocation it was leased for: EVEN-PORT, RESERVATION-TOKEN, or no sharing at all.
    Single,
    /// The one allocation it was leased for, which relays TCP.
    Connections,
}

/// Which number serves as well when the system has given this one to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instead {
    Any,
    Even,
    /// Another one that no client is told of.
    Spill,
    None,
}

/// A relay socket, open or about to be.
#[derive(Debug)]
pub(super) struct RelayPort {
    pub(super) lease: PortLease,
    pub(super) sharing: Sharing,
    pub(super) instead: Instead,
    pub(super) open: bool,
    /// Ports that the system refused for this relay so far.
    pub(super) refused: u8,
    /// Allocations that wait for the socket.
    pub(super) waiting: Vec<AllocationId>,
    /// How many allocations were told that this is their relayed address.
    pub(super) tenants: usize,
    /// The last one that was: the only one of a port that is not shared.
    pub(super) tenant: Option<AllocationId>,
    /// How many peers are talked to from here, all allocations together.
    pub(super) claims: usize,
}

impl RelayPort {
    pub(super) fn new(lease: PortLease, sharing: Sharing, instead: Instead) -> Self {
        Self {
            lease,
            sharing,
            instead,
            open: false,
            refused: 0,
            waiting: Vec::new(),
            tenants: 0,
            tenant: None,
            claims: 0,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.lease.address()
    }

    /// Returns whether neither a tenant nor a claim needs the socket.
    pub(super) fn is_idle(&self) -> bool {
        self.tenants == 0 && self.claims == 0
    }
}
