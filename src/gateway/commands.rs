//! What endpoints command: New, Dial, Close, Ping, Credit, Ticket; and how virtual connections come and go. Pure.

use super::connection::Connection;
use super::counters::{Refusal, Why};
use super::end::{EndKey, Held, Pass, Role};
use super::machine::{Switchboard, Timer};
use super::wire::{Command, ConnId};
use crate::clock::Now;
use crate::limits::Limit;
use rand::Rng;
use std::time::Duration;

/// How many more ids than a client a server may have opened without dialling.
const SERVER_UNDIALLED: usize = 64;
/// In which violations are counted (S2-A10).
const VIOLATIONS_TIME: Duration = Duration::from_secs(60);

impl Switchboard {
    /// Carries out a command (S2-A7 says which ones endpoints send).
    pub(super) fn command(&mut self, now: Now, from: EndKey, command: Command<'_>) {
        let Some(end) = self.ends.get_mut(from.0) else { return };
        let awaits_ticket = matches!(end.role, Role::Client { pass: Pass::Awaited, .. });
        match command {
            Command::Ticket(ticket) if !end.is_server() => self.ticket(now, from, ticket),
            _ if awaits_ticket => self.drop_end(now, from, Why::Ticket),
            Command::New => self.open(now, from),
            Command::Dial { conn, remote } => self.dial(now, from, conn, remote),
            Command::Close(conn) => self.close_asked(now, from, conn),
            Command::Ping => end.pinged = None,
            Command::Credit { conn, bytes } if end.has_credit() => self.credit(now, from, conn, bytes),
            _ => self.drop_end(now, from, Why::Malformed),
        }
    }

    /// Admits a client for what its ticket says; where none is asked for, any will do.
    fn ticket(&mut self, now: Now, from: EndKey, ticket: &[u8]) {
        let Some(issuer) = &self.rules.tickets else { return };
        let admission = issuer.check(ticket, now.unix);
        match (admission, self.ends.get_mut(from.0).map(|end| &mut end.role)) {
            (Some(admission), Some(Role::Client { pass: pass @ Pass::Awaited, .. })) => {
                *pass = Pass::Ticket(admission);
                self.timers.set(Timer::Alive(from), now.mono + self.rules.times.ping);
            }
            _ => self.drop_end(now, from, Why::Ticket),
        }
    }

    fn open(&mut self, now: Now, from: EndKey) {
        let conn = loop {
            let conn = ConnId(self.rng.random());
            if conn.0 != 0 && !self.opened.contains_key(&conn) && !self.connections.contains_key(&conn) {
                break conn;
            }
        };
        let Some(end) = self.ends.get_mut(from.0) else { return };
        let factor = if end.is_server() { SERVER_UNDIALLED } else { 1 };
        end.opened.push_back(conn);
        let most = self.rules.limits.undialled * factor;
        let oldest = if end.opened.len() > most {
            Limit::GatewayUndialled.reached(most);
            end.opened.pop_front()
        } else {
            None
        };
        self.opened.insert(conn, from);
        if let Some(oldest) = oldest {
            self.opened.remove(&oldest);
            self.tell(now, from, Command::Close(oldest));
        }
        self.tell(now, from, Command::Open(conn));
    }

    fn dial(&mut self, now: Now, from: EndKey, conn: ConnId, remote: u32) {
        if self.opened.get(&conn) != Some(&from) {
            let is_own = self.connections.get(&conn).is_some_and(|link| link.side(from).is_some());
            // S2-A9: a second Dial of a live id is ignored.
            if !is_own {
                self.refuse(now, from, conn, Refusal::NotOpened);
            }
            return;
        }
        self.opened.remove(&conn);
        if let Some(end) = self.ends.get_mut(from.0) {
            end.opened.retain(|opened| *opened != conn);
        }
        match self.called(now, from, remote) {
            Ok(to) => self.connect(now, [from, to], conn),
            Err(why) => self.refuse(now, from, conn, why),
        }
    }

    /// Finds whom a Dial is for, if there may be a connection (S2-A6).
    fn called(&self, now: Now, from: EndKey, remote: u32) -> Result<EndKey, Refusal> {
        let caller = self.ends.get(from.0).ok_or(Refusal::Unknown)?;
        let is_client = !caller.is_server();
        let ids = if is_client { &self.servers } else { &self.clients };
        let to = *ids.get(&remote).ok_or(Refusal::Unknown)?;
        let callee = self.ends.get(to.0).ok_or(Refusal::Unknown)?;
        let limits = &self.rules.limits;
        if is_client && caller.dialled >= limits.per_client {
            Limit::GatewayPerClient.reached(limits.per_client);
            return Err(Refusal::Full);
        }
        if self.connections.len() >= limits.virtual_connections {
            Limit::GatewayVirtualConnections.reached(limits.virtual_connections);
            return Err(Refusal::Full);
        }
        let (client, server) = if is_client { (caller, callee) } else { (callee, caller) };
        if let Role::Client { pass, .. } = client.role {
            let is_admitted = match pass {
                Pass::Free => true,
                Pass::Awaited => false,
                Pass::Ticket(ticket) => {
                    ticket.expires > now.unix && ticket.server.is_none_or(|only| only == server.id())
                }
            };
            if !is_admitted {
                return Err(Refusal::Ticket);
            }
        }
        if callee.has_backlog() { Err(Refusal::Busy) } else { Ok(to) }
    }

    /// Makes a virtual connection and tells both ends (S2-10).
    fn connect(&mut self, now: Now, ends: [EndKey; 2], conn: ConnId) {
        let limited = ends.map(|key| self.ends.get(key.0).is_some_and(super::end::End::has_credit));
        self.connections.insert(conn, Connection::new(ends, limited));
        self.counters.accepted += 1;
        let hold = self.rules.times.hold;
        for (side, key) in ends.into_iter().enumerate() {
            let other = self.ends.get(ends[1 - side].0).map_or(0, super::end::End::id);
            if let Some(end) = self.ends.get_mut(key.0) {
                end.connections.insert(conn);
                if side == 0 {
                    end.dialled += 1;
                }
                // It was the only one that could suffer until now.
                if let Some(Held::Room(..)) = end.held {
                    self.timers.set(Timer::Hold(key), now.mono + hold);
                }
            }
            self.tell(now, key, Command::Accept { conn, remote: other });
            if limited[side] {
                let bytes = u32::try_from(self.rules.limits.queue).unwrap_or(u32::MAX);
                self.tell(now, key, Command::Credit { conn, bytes });
            }
        }
    }

    fn refuse(&mut self, now: Now, from: EndKey, conn: ConnId, why: Refusal) {
        self.counters.refused[why as usize] += 1;
        self.tell(now, from, Command::Refuse(conn));
        let Some(end) = self.ends.get_mut(from.0) else { return };
        let wait = self.refusals.count(now.mono, end.network, &mut end.refusals);
        if !wait.is_zero() {
            end.held = Some(Held::Refused);
            self.timers.set(Timer::Hold(from), now.mono + wait);
        }
    }

    /// An endpoint asks for the end of an id; only its own ends anything, an unknown one is ignored (S2-A10).
    fn close_asked(&mut self, now: Now, from: EndKey, conn: ConnId) {
        if self.opened.get(&conn) == Some(&from) {
            self.opened.remove(&conn);
            if let Some(end) = self.ends.get_mut(from.0) {
                end.opened.retain(|opened| *opened != conn);
            }
            self.tell(now, from, Command::Close(conn));
            return;
        }
        match self.connections.get(&conn).map(|link| (link.side(from), link.is_closed)) {
            Some((Some(_), false)) => self.close(now, conn, Some(from)),
            Some((None, _)) => self.violation(now, from),
            _ => {}
        }
    }

    /// A message has come for an id that is not its sender's: it is told so (S2-A10).
    pub(super) fn stray(&mut self, now: Now, from: EndKey, conn: ConnId) {
        if self.opened.get(&conn) == Some(&from) {
            self.close_asked(now, from, conn);
            return;
        }
        self.tell(now, from, Command::Close(conn));
        if self.lately.excuses(conn, from) {
            self.counters.late += 1;
        } else {
            self.violation(now, from);
        }
    }

    fn violation(&mut self, now: Now, from: EndKey) {
        self.counters.violations += 1;
        let Some(end) = self.ends.get_mut(from.0) else { return };
        let (count, since) = &mut end.violations;
        if now.mono.saturating_duration_since(*since) >= VIOLATIONS_TIME {
            (*count, *since) = (0, now.mono);
        }
        *count += 1;
        if *count >= self.rules.limits.violations {
            Limit::GatewayViolations.reached(self.rules.limits.violations);
            self.drop_end(now, from, Why::Violations);
        }
    }

    /// Ends a virtual connection and tells both ends (section 3.1). `by` is the end that asked for it.
    pub(super) fn close(&mut self, now: Now, conn: ConnId, by: Option<EndKey>) {
        let Some(link) = self.connections.get_mut(&conn) else { return };
        link.is_closed = true;
        let ends = link.ends;
        for (side, key) in ends.into_iter().enumerate() {
            let Some(key) = key else { continue };
            self.release(conn, 1 - side, key);
            self.tell(now, key, Command::Close(conn));
            if by != Some(key) {
                self.lately.note(now.mono, conn, key);
            }
        }
        self.forget_drained(conn);
    }

    /// Lets go of a closed virtual connection as soon as nothing of it waits: until then it counts for whoever dialled it.
    pub(super) fn forget_drained(&mut self, conn: ConnId) {
        let Some(link) = self.connections.get(&conn) else { return };
        if !link.is_closed || !link.is_drained() {
            return;
        }
        let ends = link.ends;
        self.connections.remove(&conn);
        for (side, key) in ends.into_iter().enumerate() {
            let Some(end) = key.and_then(|key| self.ends.get_mut(key.0)) else { continue };
            end.connections.remove(&conn);
            if side == 0 {
                end.dialled = end.dialled.saturating_sub(1);
            }
        }
    }

    /// Forgets an endpoint; the other ends of its virtual connections are told.
    pub(super) fn detach(&mut self, now: Now, key: EndKey) {
        let Some(mut end) = self.ends.try_remove(key.0) else { return };
        let ids = if end.is_server() { &mut self.servers } else { &mut self.clients };
        // A newer server may have the id by now.
        if ids.get(&end.id()) == Some(&key) {
            ids.remove(&end.id());
        }
        for conn in end.opened.drain(..) {
            self.opened.remove(&conn);
        }
        self.timers.clear(Timer::Alive(key));
        self.timers.clear(Timer::Hold(key));
        self.budget.charge(end.network, end.input, 0);
        self.budget.leave(end.network, key);
        self.budget.give_back(end.outbox.len());
        for conn in end.connections {
            let Some(link) = self.connections.get_mut(&conn) else { continue };
            let Some(side) = link.side(key) else { continue };
            link.ends[side] = None;
            link.lanes[side].waiting = 0;
            if link.is_closed {
                self.forget_drained(conn);
            } else {
                self.close(now, conn, None);
            }
        }
        self.give_memory();
    }
}
