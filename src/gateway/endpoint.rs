//! One endpoint's connection to the gateway: who it is, what waits for it, why it is not read. Pure.

use super::budget::Network;
use super::outbox::Outbox;
use super::token::TokenClaims;
use super::wire::ConnId;
use crate::limits::RateLimiter;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Commands that wait for a client in bytes, above which it is not read, and nobody may dial it.
const CLIENT_BACKLOG: usize = 16 * 1024;
/// The same of a server, who speaks with many.
const SERVER_BACKLOG: usize = 64 * 1024;
/// One part in so many of what waits is what an endpoint has to take in time while memory is short.
const PACE: usize = 8;

/// Stands for one endpoint's connection until it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey(pub usize);

/// Who an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client { id: u32, access: Access },
    Server { id: u32, credit: bool },
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing before its token has come.
    TokenRequired,
    /// Everything.
    Unrestricted,
    /// What its token says.
    Token(TokenClaims),
}

/// CloseReason an endpoint is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseReason {
    /// Its next frame finds too much waiting on this virtual connection.
    QueueFull(ConnId, Instant),
    /// All memory is taken, or its address's share.
    Memory,
    /// It does not read the answers to its own commands.
    CommandBacklog,
    /// Too many of its Dials were refused, or of its address's.
    DialRefusals,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) role: Role,
    /// Whose share of the memory its frames take.
    pub(super) network: Network,
    pub(super) outbox: Outbox,
    /// When it last took bytes, or when the first of those that wait came.
    pub(super) last_progress: Instant,
    /// What waited for it was dropped, and it has taken nothing since.
    pub(super) is_stalled: bool,
    /// When it had last taken its part of what waited, and what is left of the next part.
    pub(super) pace: (Instant, usize),
    /// Its virtual connections, also those that endpoint.
    pub(super) connections: HashSet<ConnId, foldhash::fast::FixedState>,
    /// How many of them it has dialled.
    pub(super) dialled: usize,
    /// Ids that it has opened and not dialled, the oldest first.
    pub(super) half_open: VecDeque<ConnId>,
    pub(super) paused: Option<PauseReason>,
    /// What its unread input takes of the shared memory.
    pub(super) input: usize,
    /// How much of the frame that has begun there is memory for.
    pub(super) granted: usize,
    /// It has waited for memory: it may read a short frame.
    pub(super) may_read: bool,
    /// Since when a frame has been coming.
    pub(super) frame_started: Option<Instant>,
    /// When bytes last came.
    pub(super) last_received: Instant,
    /// When it was asked for a Ping that has not come.
    pub(super) ping_sent: Option<Instant>,
    /// When another server wanted its id, and it was asked whether it is still there.
    pub(super) id_contested: Option<Instant>,
    /// Violations since the time.
    pub(super) violations: (u32, Instant),
    /// Of Dials that were refused.
    pub(super) refusals: RateLimiter,
}

impl EndpointState {
    pub(super) fn new(role: Role, network: Network, now: Instant) -> Self {
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

    /// What the other endpoint of a virtual connection is told of this one (S2-14).
    pub(super) fn id(&self) -> u32 {
        match self.role {
            Role::Client { id, .. } | Role::Server { id, .. } => id,
        }
    }

    /// Something begins to wait for it. One that is stuck is given no new time for it.
    pub(super) fn on_first_queued(&mut self, now: Instant) {
        if !self.is_stalled {
            (self.last_progress, self.pace) = (now, (now, 0));
        }
    }

    /// It has taken `count` bytes: a little at a time is as bad as nothing while memory is short.
    pub(super) fn update_pace(&mut self, now: Instant, count: usize) {
        let (since, left) = &mut self.pace;
        *left = left.saturating_sub(count);
        if *left == 0 || self.outbox.is_empty() {
            (*since, *left) = (now, self.outbox.len() / PACE);
        }
    }

    /// Returns how many bytes of commands may wait for it.
    pub(super) fn max_queued_commands(&self) -> usize {
        if self.is_server() { SERVER_BACKLOG } else { CLIENT_BACKLOG }
    }

    /// Says whether it does not read the answers to its own commands.
    pub(super) fn has_command_backlog(&self) -> bool {
        self.outbox.control() > self.max_queued_commands()
    }

    pub(super) fn uses_credit(&self) -> bool {
        matches!(self.role, Role::Server { credit: true, .. })
    }

    pub(super) fn is_server(&self) -> bool {
        matches!(self.role, Role::Server { .. })
    }
}
