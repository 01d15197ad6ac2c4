//! Commands of endpoints (New, Dial, Close, Ping, Credit, Token), and the life of virtual connections. Pure.

use super::connection::RoutedConnection;
use super::counters::{CloseReason, DialRefusal};
use super::endpoint::{Access, EndpointKey, EndpointRole, PauseReason};
use super::machine::{Router, Timer};
use super::wire::{Command, ConnId};
use crate::clock::Now;
use crate::limits::Limit;
use rand::Rng;
use std::time::Duration;

/// How many times as many half-open ids a server may have as a client.
const SERVER_HALF_OPEN_FACTOR: usize = 64;
/// The window in which violations are counted (S2-A10).
const VIOLATIONS_TIME: Duration = Duration::from_secs(60);

impl Router {
    /// Executes a command (S2-A7 lists those that endpoints send).
    pub(super) fn handle_command(&mut self, now: Now, from: EndpointKey, command: Command<'_>) {
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return };
        let awaits_token =
            matches!(endpoint.role, EndpointRole::Client { access: Access::TokenRequired, .. });
        match command {
            Command::Token(token) if !endpoint.is_server() => self.handle_token(now, from, token),
            _ if awaits_token => self.close_endpoint(now, from, CloseReason::Token),
            Command::New => self.handle_new(now, from),
            Command::Dial { conn, remote } => self.handle_dial(now, from, conn, remote),
            Command::Close(conn) => self.handle_close(now, from, conn),
            Command::Ping => endpoint.ping_sent = None,
            Command::Credit { conn, bytes } if endpoint.uses_credit() => {
                self.handle_credit(now, from, conn, bytes)
            }
            _ => self.close_endpoint(now, from, CloseReason::Malformed),
        }
    }

    /// Verifies a client's token. Where none is required, any is accepted.
    fn handle_token(&mut self, now: Now, from: EndpointKey, token: &[u8]) {
        let Some(issuer) = &self.config.tokens else { return };
        let admission = issuer.verify(token, now.unix);
        match (admission, self.endpoints.get_mut(from.0).map(|endpoint| &mut endpoint.role)) {
            (Some(admission), Some(EndpointRole::Client { access: access @ Access::TokenRequired, .. })) => {
                *access = Access::Token(admission);
                self.timers.set(Timer::Liveness(from), now.mono + self.config.times.ping);
            }
            _ => self.close_endpoint(now, from, CloseReason::Token),
        }
    }

    fn handle_new(&mut self, now: Now, from: EndpointKey) {
        let conn = loop {
            let conn = ConnId(self.rng.random());
            if conn.0 != 0 && !self.half_open.contains_key(&conn) && !self.connections.contains_key(&conn) {
                break conn;
            }
        };
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return };
        let factor = if endpoint.is_server() { SERVER_HALF_OPEN_FACTOR } else { 1 };
        endpoint.half_open.push_back(conn);
        let most = self.config.limits.half_open * factor;
        let oldest = if endpoint.half_open.len() > most {
            Limit::GatewayHalfOpen.reached(most);
            endpoint.half_open.pop_front()
        } else {
            None
        };
        self.half_open.insert(conn, from);
        if let Some(oldest) = oldest {
            self.half_open.remove(&oldest);
            self.send_command(now, from, Command::Close(oldest));
        }
        self.send_command(now, from, Command::Open(conn));
    }

    fn handle_dial(&mut self, now: Now, from: EndpointKey, conn: ConnId, remote: u32) {
        if self.half_open.get(&conn) != Some(&from) {
            let is_own =
                self.connections.get(&conn).is_some_and(|connection| connection.side(from).is_some());
            // S2-A9: a second Dial of a live id is ignored.
            if !is_own {
                self.refuse(now, from, conn, DialRefusal::NotOpened);
            }
            return;
        }
        self.half_open.remove(&conn);
        if let Some(endpoint) = self.endpoints.get_mut(from.0) {
            endpoint.half_open.retain(|opened| *opened != conn);
        }
        match self.find_callee(now, from, remote) {
            Ok(to) => self.connect(now, [from, to], conn),
            Err(why) => self.refuse(now, from, conn, why),
        }
    }

    /// Finds the callee of a Dial, if the caller may reach it (S2-A6).
    fn find_callee(&self, now: Now, from: EndpointKey, remote: u32) -> Result<EndpointKey, DialRefusal> {
        let caller = self.endpoints.get(from.0).ok_or(DialRefusal::Unknown)?;
        let is_client = !caller.is_server();
        let ids = if is_client { &self.servers } else { &self.clients };
        let to = *ids.get(&remote).ok_or(DialRefusal::Unknown)?;
        let callee = self.endpoints.get(to.0).ok_or(DialRefusal::Unknown)?;
        let limits = &self.config.limits;
        if is_client && caller.dialled >= limits.per_client {
            Limit::GatewayPerClient.reached(limits.per_client);
            return Err(DialRefusal::Full);
        }
        if self.connections.len() >= limits.virtual_connections {
            Limit::GatewayVirtualConnections.reached(limits.virtual_connections);
            return Err(DialRefusal::Full);
        }
        let (client, server) = if is_client { (caller, callee) } else { (callee, caller) };
        if let EndpointRole::Client { access, .. } = client.role {
            let is_admitted = match access {
                Access::Unrestricted => true,
                Access::TokenRequired => false,
                Access::Token(token) => {
                    token.expires > now.unix && token.server.is_none_or(|only| only == server.id())
                }
            };
            if !is_admitted {
                return Err(DialRefusal::Token);
            }
        }
        if callee.has_command_backlog() { Err(DialRefusal::Busy) } else { Ok(to) }
    }

    /// Creates a virtual connection and sends Accept to both endpoints (S2-10).
    fn connect(&mut self, now: Now, endpoints: [EndpointKey; 2], conn: ConnId) {
        let uses_credit = endpoints
            .map(|key| self.endpoints.get(key.0).is_some_and(super::endpoint::EndpointState::uses_credit));
        self.connections.insert(conn, RoutedConnection::new(endpoints, uses_credit));
        self.counters.accepted += 1;
        let pause = self.config.times.pause;
        for (side, key) in endpoints.into_iter().enumerate() {
            let other =
                self.endpoints.get(endpoints[1 - side].0).map_or(0, super::endpoint::EndpointState::id);
            if let Some(endpoint) = self.endpoints.get_mut(key.0) {
                endpoint.connections.insert(conn);
                if side == 0 {
                    endpoint.dialled += 1;
                }
                // Until now it was the sender's only connection, which may pause it without limit.
                if let Some(PauseReason::QueueFull(..)) = endpoint.paused {
                    self.timers.set(Timer::Pause(key), now.mono + pause);
                }
            }
            self.send_command(now, key, Command::Accept { conn, remote: other });
            if uses_credit[side] {
                let bytes = u32::try_from(self.config.limits.queue).unwrap_or(u32::MAX);
                self.send_command(now, key, Command::Credit { conn, bytes });
            }
        }
    }

    fn refuse(&mut self, now: Now, from: EndpointKey, conn: ConnId, why: DialRefusal) {
        self.counters.refused[why as usize] += 1;
        self.send_command(now, from, Command::Refuse(conn));
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return };
        let wait = self.refusals.count(now.mono, endpoint.network, &mut endpoint.refusals);
        if !wait.is_zero() {
            endpoint.paused = Some(PauseReason::DialRefusals);
            self.timers.set(Timer::Pause(from), now.mono + wait);
        }
    }

    /// Handles an endpoint's Close. It closes only the endpoint's own ids; an unknown id is ignored (S2-A10).
    fn handle_close(&mut self, now: Now, from: EndpointKey, conn: ConnId) {
        if self.half_open.get(&conn) == Some(&from) {
            self.half_open.remove(&conn);
            if let Some(endpoint) = self.endpoints.get_mut(from.0) {
                endpoint.half_open.retain(|opened| *opened != conn);
            }
            self.send_command(now, from, Command::Close(conn));
            return;
        }
        match self.connections.get(&conn).map(|connection| (connection.side(from), connection.is_closed)) {
            Some((Some(_), false)) => self.close(now, conn, Some(from)),
            Some((None, _)) => self.count_violation(now, from),
            _ => {}
        }
    }

    /// Handles a message for an id that is not the sender's: answers Close (S2-A10).
    pub(super) fn handle_stray_message(&mut self, now: Now, from: EndpointKey, conn: ConnId) {
        if self.half_open.get(&conn) == Some(&from) {
            self.handle_close(now, from, conn);
            return;
        }
        self.send_command(now, from, Command::Close(conn));
        if self.recently_closed.excuses(conn, from) {
            self.counters.late += 1;
        } else {
            self.count_violation(now, from);
        }
    }

    fn count_violation(&mut self, now: Now, from: EndpointKey) {
        self.counters.violations += 1;
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return };
        let (count, since) = &mut endpoint.violations;
        if now.mono.saturating_duration_since(*since) >= VIOLATIONS_TIME {
            (*count, *since) = (0, now.mono);
        }
        *count += 1;
        if *count >= self.config.limits.violations {
            Limit::GatewayViolations.reached(self.config.limits.violations);
            self.close_endpoint(now, from, CloseReason::Violations);
        }
    }

    /// Closes a virtual connection and sends Close to both endpoints. `by` is the endpoint that sent Close.
    pub(super) fn close(&mut self, now: Now, conn: ConnId, by: Option<EndpointKey>) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.is_closed = true;
        let endpoints = connection.endpoints;
        for (side, key) in endpoints.into_iter().enumerate() {
            let Some(key) = key else { continue };
            self.unpause_for(conn, 1 - side, key);
            self.send_command(now, key, Command::Close(conn));
            if by != Some(key) {
                self.recently_closed.note(now.mono, conn, key);
            }
        }
        self.remove_if_drained(conn);
    }

    /// Removes a closed virtual connection once nothing of it is queued; until then it counts against the dialler's limit.
    pub(super) fn remove_if_drained(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get(&conn) else { return };
        if !connection.is_closed || !connection.is_drained() {
            return;
        }
        let endpoints = connection.endpoints;
        self.connections.remove(&conn);
        for (side, key) in endpoints.into_iter().enumerate() {
            let Some(endpoint) = key.and_then(|key| self.endpoints.get_mut(key.0)) else { continue };
            endpoint.connections.remove(&conn);
            if side == 0 {
                endpoint.dialled = endpoint.dialled.saturating_sub(1);
            }
        }
    }

    /// Removes an endpoint and closes its virtual connections.
    pub(super) fn remove_endpoint(&mut self, now: Now, key: EndpointKey) {
        let Some(mut endpoint) = self.endpoints.try_remove(key.0) else { return };
        let ids = if endpoint.is_server() { &mut self.servers } else { &mut self.clients };
        // A newer server may have the id by now.
        if ids.get(&endpoint.id()) == Some(&key) {
            ids.remove(&endpoint.id());
        }
        for conn in endpoint.half_open.drain(..) {
            self.half_open.remove(&conn);
        }
        self.timers.clear(Timer::Liveness(key));
        self.timers.clear(Timer::Pause(key));
        self.budget.charge(endpoint.network, endpoint.input, 0);
        self.budget.remove_endpoint(endpoint.network, key);
        self.budget.release(endpoint.outbox.len());
        for conn in endpoint.connections {
            let Some(connection) = self.connections.get_mut(&conn) else { continue };
            let Some(side) = connection.side(key) else { continue };
            connection.endpoints[side] = None;
            connection.directions[side].waiting = 0;
            if connection.is_closed {
                self.remove_if_drained(conn);
            } else {
                self.close(now, conn, None);
            }
        }
        self.grant_memory();
    }
}
