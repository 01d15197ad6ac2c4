//! The state of one endpoint's connection to the gateway. Pure.

use super::budget::Network;
use super::outbox::Outbox;
use super::token::TokenClaims;
use super::wire::ConnId;
use crate::limits::RateLimiter;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Bytes of commands queued for a client above which it is not read, and above which dials to it are refused.
const CLIENT_BACKLOG: usize = 16 * 1024;
/// The same limit for a server, which has many virtual connections.
const SERVER_BACKLOG: usize = 64 * 1024;
/// While memory is short, an endpoint must take this fraction of what is queued for it in time.
const PACE: usize = 8;

/// Identifies an endpoint's connection while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey(pub usize);

/// The endpoint's kind and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointRole {
    Client { id: u32, access: Access },
    Server { id: u32, credit: bool },
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing until it has sent a valid token.
    TokenRequired,
    /// Everything.
    Unrestricted,
    /// What its token allows.
    Token(TokenClaims),
}

/// Why an endpoint is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseReason {
    /// The next frame exceeds what may be queued on this virtual connection. Since when.
    QueueFull(ConnId, Instant),
    /// The shared memory is used up, or the share of its network is.
    Memory,
    /// It does not read the answers to its own commands.
    CommandBacklog,
    /// Too many Dials of it, or of its network, were refused.
    DialRefusals,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) role: EndpointRole,
    /// Whose share of the memory its frames use.
    pub(super) network: Network,
    pub(super) outbox: Outbox,
    /// When it last took bytes, or when the first queued bytes were queued.
    pub(super) last_progress: Instant,
    /// What was queued for it was dropped, and it has taken nothing since.
    pub(super) is_stalled: bool,
    /// When it last took a fraction of what was queued, and the bytes left of the next fraction.
    pub(super) pace: (Instant, usize),
    /// Its virtual connections, closed ones that are not drained included.
    pub(super) connections: HashSet<ConnId, foldhash::fast::FixedState>,
    /// How many of them it has dialled.
    pub(super) dialled: usize,
    /// Ids that it has opened and not dialled, the oldest first.
    pub(super) half_open: VecDeque<ConnId>,
    pub(super) paused: Option<PauseReason>,
    /// What its unprocessed input uses of the shared memory.
    pub(super) input: usize,
    /// Bytes of the begun frame that memory is reserved for.
    pub(super) granted: usize,
    /// It has waited for memory and may read a short frame.
    pub(super) may_read: bool,
    /// When the incomplete frame began.
    pub(super) frame_started: Option<Instant>,
    /// When it last sent anything.
    pub(super) last_received: Instant,
    /// When it was sent a Ping that it has not answered.
    pub(super) ping_sent: Option<Instant>,
    /// When another server claimed its id, and it was sent a Ping.
    pub(super) id_contested: Option<Instant>,
    /// Violations, and when their window began.
    pub(super) violations: (u32, Instant),
    /// Limits its refused Dials.
    pub(super) refusals: RateLimiter,
}

impl EndpointState {
    pub(super) fn new(role: EndpointRole, network: Network, now: Instant) -> Self {
        Self {
            role,
            network,
            outbox: Outbox::default(),
            last_progress: now,
            is_stalled: false,
            pace: (now, 0),
            connections: HashSet::default(),
            dialled: 0,
            half_open: VecDeque::new(),
            paused: None,
            input: 0,
            granted: 0,
            may_read: false,
            frame_started: None,
            last_received: now,
            ping_sent: None,
            id_contested: None,
            violations: (0, now),
            refusals: RateLimiter::default(),
        }
    }

    /// The id that the other end of a virtual connection sees (S2-14).
    pub(super) fn id(&self) -> u32 {
        match self.role {
            EndpointRole::Client { id, .. } | EndpointRole::Server { id, .. } => id,
        }
    }

    /// Notes that something is queued where nothing was. A stalled endpoint gets no new deadline.
    pub(super) fn on_first_queued(&mut self, now: Instant) {
        if !self.is_stalled {
            (self.last_progress, self.pace) = (now, (now, 0));
        }
    }

    /// Notes that it has taken `count` bytes. While memory is short, a few bytes at a time are no progress.
    pub(super) fn update_pace(&mut self, now: Instant, count: usize) {
        let (since, left) = &mut self.pace;
        *left = left.saturating_sub(count);
        if *left == 0 || self.outbox.is_empty() {
            (*since, *left) = (now, self.outbox.len() / PACE);
        }
    }

    /// Returns how many bytes of commands may be queued for it.
    pub(super) fn max_queued_commands(&self) -> usize {
        if self.is_server() { SERVER_BACKLOG } else { CLIENT_BACKLOG }
    }

    /// Returns whether it does not read the answers to its own commands.
    pub(super) fn has_command_backlog(&self) -> bool {
        self.outbox.control() > self.max_queued_commands()
    }

    pub(super) fn uses_credit(&self) -> bool {
        matches!(self.role, EndpointRole::Server { credit: true, .. })
    }

    pub(super) fn is_server(&self) -> bool {
        matches!(self.role, EndpointRole::Server { .. })
    }
}
