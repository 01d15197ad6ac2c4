//! Flow control: which senders are paused because a receiver is slow, and which slow virtual connections are closed. Pure.
//!
//! Most endpoints do not use credit. The gateway can only stop reading a sender that sends too much on one virtual connection, which delays
//! the sender's other connections. So the pause is limited ([`Times::pause`](super::Times::pause)), and then that one virtual connection is
//! closed. A sender with a single virtual connection delays no other one: it is paused as long as necessary, as by TCP itself. Servers
//! that authenticate by HMAC use credit (command 7) and are not paused.

use super::budget::{MemoryGrant, READ};
use super::counters::CloseReason;
use super::endpoint::{EndpointKey, EndpointState, PauseReason};
use super::machine::{Output, Router, Timer};
use super::wire::{Command, ConnId};
use crate::clock::Now;
use crate::limits::Limit;
use std::time::{Duration, Instant};

/// How many times within [`Times::pause`](super::Times::pause) memory is reclaimed while it is short.
const RECLAIM_CHECKS: u32 = 8;
/// While memory is short, a frame must be complete after this many times [`Times::pause`](super::Times::pause).
const SLOW_FRAME_FACTOR: u32 = 2;

impl Router {
    /// Pauses `from`, whose next frame exceeds the queue of `conn` in direction `to`, and returns `true`. Closes the virtual connection
    /// instead where it has paused its sender for long enough or its receiver takes nothing.
    pub(super) fn pause_sender(
        &mut self,
        now: Now,
        from: EndpointKey,
        (conn, to): (ConnId, usize),
        receiver: EndpointKey,
    ) -> bool {
        let stalled = self.stalled(now.mono, receiver);
        let timeout = self.config.times.pause;
        let (Some(connection), Some(endpoint)) =
            (self.connections.get_mut(&conn), self.endpoints.get_mut(from.0))
        else {
            return false;
        };
        let direction = &mut connection.directions[to];
        if endpoint.connections.len() > 1 {
            let left = timeout.saturating_sub(direction.paused_for.max(stalled));
            if left.is_zero() {
                Limit::GatewayQueue.reached(self.config.limits.queue);
                self.close_slow_connection(now, conn);
                return false;
            }
            self.timers.set(Timer::Pause(from), now.mono + left);
        }
        direction.pauses_sender = true;
        endpoint.paused = Some(PauseReason::QueueFull(conn, now.mono));
        self.counters.pauses += 1;
        true
    }

    /// Returns for how long an endpoint has taken nothing of what is queued for it.
    fn stalled(&self, now: Instant, receiver: EndpointKey) -> Duration {
        let endpoint = self.endpoints.get(receiver.0).filter(|endpoint| !endpoint.outbox.is_empty());
        endpoint.map_or(Duration::ZERO, |endpoint| now.saturating_duration_since(endpoint.last_progress))
    }

    /// Handles that a sender's pause is over, or that its receiver has stalled meanwhile.
    pub(super) fn handle_pause_timeout(&mut self, now: Now, from: EndpointKey) {
        let (conn, since) = match self.endpoints.get(from.0).and_then(|endpoint| endpoint.paused) {
            Some(PauseReason::QueueFull(conn, since)) => (conn, since),
            Some(PauseReason::DialRefusals) => return self.resume(from),
            _ => return,
        };
        let Some(connection) = self.connections.get(&conn) else { return self.resume(from) };
        let is_only_one = self.endpoints.get(from.0).is_some_and(|endpoint| endpoint.connections.len() <= 1);
        let Some(side) = connection.side(from).filter(|_| !is_only_one) else { return };
        let paused = connection.directions[1 - side].paused_for + now.mono.saturating_duration_since(since);
        let stalled = connection.endpoints[1 - side]
            .map_or(Duration::ZERO, |receiver| self.stalled(now.mono, receiver));
        let left = self.config.times.pause.saturating_sub(paused.max(stalled));
        if left.is_zero() {
            self.close_slow_connection(now, conn);
        } else {
            self.timers.set(Timer::Pause(from), now.mono + left);
        }
    }

    /// Closes a slow virtual connection and drops what is queued on it.
    fn close_slow_connection(&mut self, now: Now, conn: ConnId) {
        self.counters.slow += 1;
        let Some(endpoints) = self.connections.get(&conn).map(|connection| connection.endpoints) else {
            return;
        };
        for (side, key) in endpoints.into_iter().enumerate() {
            let Some(endpoint) = key.and_then(|key| self.endpoints.get_mut(key.0)) else { continue };
            let dropped = endpoint.outbox.remove_connection(conn);
            endpoint.is_stalled |= dropped > 0;
            self.budget.release(dropped);
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.directions[side].waiting =
                    connection.directions[side].waiting.saturating_sub(dropped);
            }
        }
        self.close(now, conn, None);
        self.grant_memory();
    }

    /// Handles that `to` has taken frames of a virtual connection.
    pub(super) fn handle_delivered(&mut self, now: Now, to: EndpointKey, conn: ConnId, bytes: usize) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Some(side) = connection.side(to) else { return };
        let sender = connection.endpoints[1 - side];
        let direction = &mut connection.directions[side];
        direction.waiting = direction.waiting.saturating_sub(bytes);
        direction.uncredited += bytes;
        if direction.waiting == 0 {
            direction.paused_for = Duration::ZERO;
        }
        if connection.is_closed {
            return self.remove_if_drained(conn);
        }
        let queue = self.config.limits.queue;
        let has_space = direction.waiting <= queue / 2;
        let (is_pausing, uncredited) = (direction.pauses_sender, direction.uncredited);
        let Some(sender) = sender else { return };
        if is_pausing && has_space && direction.window > 0 {
            self.resume_sender(now, conn, side, sender);
        }
        if uncredited >= queue / 2
            && self.endpoints.get(sender.0).is_some_and(super::endpoint::EndpointState::uses_credit)
        {
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.directions[side].uncredited = 0;
            }
            let bytes = u32::try_from(uncredited).unwrap_or(u32::MAX);
            self.send_command(now, sender, Command::Credit { conn, bytes });
        }
    }

    /// Handles credit that `from` grants.
    pub(super) fn handle_credit(&mut self, now: Now, from: EndpointKey, conn: ConnId, bytes: u32) {
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| !connection.is_closed)
        else {
            return;
        };
        let Some(side) = connection.side(from) else { return };
        let sender = connection.endpoints[1 - side];
        let direction = &mut connection.directions[side];
        direction.window = direction.window.saturating_add(bytes.into());
        let is_free = direction.pauses_sender
            && direction.window > 0
            && direction.waiting <= self.config.limits.queue / 2;
        if let (true, Some(sender)) = (is_free, sender) {
            self.resume_sender(now, conn, side, sender);
        }
    }

    /// Resumes a sender that this direction has paused.
    fn resume_sender(&mut self, now: Now, conn: ConnId, side: usize, sender: EndpointKey) {
        if let Some(PauseReason::QueueFull(paused_by, since)) =
            self.endpoints.get(sender.0).and_then(|endpoint| endpoint.paused)
            && paused_by == conn
            && let Some(connection) = self.connections.get_mut(&conn)
        {
            let direction = &mut connection.directions[side];
            direction.pauses_sender = false;
            if direction.waiting > 0 {
                direction.paused_for += now.mono.saturating_duration_since(since);
            }
            self.resume(sender);
        }
    }

    /// Resumes the sender that direction `to` of a closed virtual connection has paused.
    pub(super) fn unpause_for(&mut self, conn: ConnId, to: usize, sender: EndpointKey) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.directions[to].pauses_sender = false;
        }
        let paused = self.endpoints.get(sender.0).and_then(|endpoint| endpoint.paused);
        if matches!(paused, Some(PauseReason::QueueFull(paused_by, _)) if paused_by == conn) {
            self.resume(sender);
        }
    }

    /// Resumes an endpoint.
    pub(super) fn resume(&mut self, key: EndpointKey) {
        if let Some(endpoint) = self.endpoints.get_mut(key.0) {
            endpoint.paused = None;
            self.timers.clear(Timer::Pause(key));
            self.outputs.push_back(Output::Resume(key));
        }
    }

    /// Starts to reclaim memory because an endpoint is going to wait for some.
    pub(super) fn wait_for_memory(&mut self, now: Now) {
        self.counters.pauses += 1;
        // Checking visits all endpoints, so it does not run too often.
        if !self.budget.is_waited_for() {
            let soonest = self.last_reclaim.map(|last| last + self.config.times.pause / RECLAIM_CHECKS);
            self.timers.set(Timer::Reclaim, soonest.map_or(now.mono, |soonest| soonest.max(now.mono)));
        }
    }

    /// Grants memory to endpoints that wait for it, as far as it suffices.
    pub(super) fn grant_memory(&mut self) {
        while let Some(granted) = self.budget.next() {
            let (MemoryGrant::Read(key) | MemoryGrant::Bytes(key, _)) = granted;
            if let Some(endpoint) = self.endpoints.get_mut(key.0) {
                match granted {
                    MemoryGrant::Read(_) => endpoint.may_read = true,
                    MemoryGrant::Bytes(_, amount) => {
                        endpoint.input += amount;
                        endpoint.granted = endpoint.input;
                    }
                }
            }
            self.resume(key);
        }
    }

    /// Reclaims memory: closes endpoints with overdue frames, and virtual connections of receivers without progress.
    pub(super) fn reclaim_memory(&mut self, now: Now) {
        if !self.budget.is_waited_for() {
            return;
        }
        let timeout = self.config.times.pause;
        self.last_reclaim = Some(now.mono);
        // Incomplete frames occupy memory that others need, so they have a deadline.
        let is_slow = |endpoint: &EndpointState| {
            let since = endpoint.frame_started.map(|at| now.mono.saturating_duration_since(at));
            since.is_some_and(|since| since >= SLOW_FRAME_FACTOR * timeout)
                && self.budget.is_short(endpoint.network)
        };
        let slow: Vec<EndpointKey> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| is_slow(endpoint))
            .map(|(key, _)| EndpointKey(key))
            .collect();
        for key in slow {
            self.close_endpoint(now, key, CloseReason::SlowFrame);
        }
        self.timers.set(Timer::Reclaim, now.mono + timeout / RECLAIM_CHECKS);
        let is_behind = |endpoint: &EndpointState| {
            let since = now.mono.saturating_duration_since(endpoint.pace.0);
            endpoint.outbox.len() > READ / 16 && since >= timeout
        };
        if !self.budget.is_tight() {
            return;
        }
        let stalled: Vec<EndpointKey> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| is_behind(endpoint))
            .map(|(key, _)| EndpointKey(key))
            .collect();
        for key in stalled {
            let Some(endpoint) = self.endpoints.get(key.0) else { continue };
            let waiting: Vec<ConnId> = endpoint
                .connections
                .iter()
                .copied()
                .filter(|conn| {
                    let connection = self.connections.get(conn);
                    connection.is_some_and(|connection| {
                        connection.side(key).is_some_and(|side| connection.directions[side].waiting > 0)
                    })
                })
                .collect();
            for conn in waiting {
                self.close_slow_connection(now, conn);
            }
        }
    }

    /// Returns the reason to close an endpoint that has taken nothing for too long.
    pub(super) fn stall_reason(&self, now: Now, key: EndpointKey) -> Option<CloseReason> {
        (self.stalled(now.mono, key) >= 2 * self.config.times.ping).then_some(CloseReason::Unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::{Duplicates, Limits, RouterConfig};
    use crate::gateway::machine::ReadAction;
    use crate::gateway::wire;
    use bytes::BytesMut;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    const QUEUE: usize = 1000;

    /// Passes an endpoint's bytes; returns the action.
    fn receive(router: &mut Router, now: Now, from: EndpointKey, bytes: &[u8]) -> ReadAction {
        router.handle_frames(now, from, &mut BytesMut::from(bytes))
    }

    /// Takes everything that is queued for an endpoint.
    fn take(router: &mut Router, now: Now, to: EndpointKey) -> Vec<u8> {
        let mut slices = [std::io::IoSlice::new(&[]); 16];
        let count = router.peek(to, &mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        router.handle_written(now, to, bytes.len());
        bytes
    }

    fn dial(router: &mut Router, now: Now, from: EndpointKey, remote: u32) -> ConnId {
        let mut bytes = BytesMut::new();
        Command::New.emit(&mut bytes);
        receive(router, now, from, &bytes);
        let opened = take(router, now, from);
        let conn = ConnId(u32::from_le_bytes(opened[9..].try_into().unwrap()));
        bytes.clear();
        Command::Dial { conn, remote }.emit(&mut bytes);
        receive(router, now, from, &bytes);
        take(router, now, from);
        conn
    }

    #[test]
    fn a_server_that_sends_while_its_credit_is_above_zero_is_never_paused() {
        let limits = Limits { queue: QUEUE, ..Limits::default() };
        let config = RouterConfig { limits, ..RouterConfig::default() };
        let mut router = Router::new(config, ChaCha20Rng::seed_from_u64(1));
        let now = crate::net::time::now();
        let server = router.add_server(now, 7, true, Duplicates::Newest).unwrap();
        let client = router.add_client(now, [192, 0, 2, 1].into());
        let conns = [dial(&mut router, now, client, 7), dial(&mut router, now, client, 7)];
        for len in [1, 300, 999, 5000] {
            for conn in conns {
                let mut frame = BytesMut::new();
                wire::emit_header(&mut frame, conn, len);
                frame.resize(wire::HEADER_LEN + len, 0);
                let mut credit = i64::try_from(QUEUE).unwrap();
                while credit > 0 {
                    assert!(
                        matches!(receive(&mut router, now, server, &frame), ReadAction::Read { .. }),
                        "{len} bytes"
                    );
                    credit -= i64::try_from(frame.len()).unwrap();
                }
                take(&mut router, now, client);
            }
        }
        assert_eq!(router.counters().pauses, 0);
    }
}
