//! Clients by plain TCP: their sockets belong to the worker, which reads and writes them in its own loop. No task, no queue and no
//! allocation stand between a frame and the relay.

use super::peer_connections::Joint;
use super::stream_limits::{
    IDLE_TIME, MESSAGE_TIME, STRANGER_MESSAGE, STRANGER_ROOM, STRANGER_TIME, STRANGER_WAITING, WRITE_TIME,
};
use crate::clock::Deadlines;
use crate::limits::Limit;
use crate::net::connections::Place;
use crate::net::udp::Intake;
use crate::turn_server::FiveTuple;
use bytes::BytesMut;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use slab::Slab;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Most bytes read from one client at a time. A frame, and so what is kept of one that is not whole, has at most 64 KiB.
pub(crate) const READ_ROOM: usize = 64 * 1024;
/// Bytes that wait for one client to read them; beyond it frames are dropped, as a network would.
pub(crate) const MAX_WAITING: usize = 256 * 1024;
/// Room that an idle client may keep once it has shown credentials.
const KEPT_ROOM: usize = 8 * 1024;
/// Bytes of a stranger's that are not counted.
const UNCOUNTED: usize = 1024;
/// The bit that tells these tokens from those of doors and relay sockets.
const TOKENS: usize = 1 << (usize::BITS - 2);

/// A socket on its way to its worker.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) client: FiveTuple,
    pub(crate) socket: std::net::TcpStream,
    /// What was read from it already.
    pub(crate) early: BytesMut,
    pub(crate) place: Place,
}

/// One client's socket.
#[derive(Debug)]
struct TcpLeg {
    client: FiveTuple,
    socket: TcpStream,
    place: Place,
    /// The beginning of a frame that is not whole.
    begun: Vec<u8>,
    /// Frames that are to be written from `written` on.
    out: Vec<u8>,
    written: usize,
    proven: bool,
    /// Bytes that a stranger was counted for.
    counted: usize,
    heard: Instant,
    /// Since when a frame has begun that is not whole.
    begun_at: Option<Instant>,
    /// Since when the client has taken nothing of `out`.
    stuck: Option<Instant>,
    /// Whether it is in the list of those that are to be read, and to be written.
    to_read: bool,
    to_write: bool,
    /// Whether the system has reported the end of what the client sends.
    ends: bool,
    /// What it is to be joined with.
    joint: Option<Box<Joint>>,
}

/// What a read has brought.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) client: FiveTuple,
    /// Where the bytes lie in the intake, those of a begun frame first.
    pub(crate) bytes: Range<usize>,
    /// Whether nothing more is to be expected.
    pub(crate) ended: bool,
}

/// The clients by plain TCP of one worker.
#[derive(Debug)]
pub(crate) struct TcpLegs {
    registry: Registry,
    runtime: Handle,
    legs: Slab<TcpLeg>,
    to_read: VecDeque<usize>,
    to_write: Vec<usize>,
    deadlines: Deadlines<usize>,
    /// Clients whose stream has ended by itself.
    ended: Vec<usize>,
    /// Streams that carry a peer's bytes now.
    joined: JoinSet<()>,
}

/// Returns which client's socket a token is of.
pub(crate) fn slot(token: Token) -> Option<usize> {
    (TOKENS..2 * TOKENS).contains(&token.0).then(|| token.0 - TOKENS)
}

impl TcpLegs {
    pub(crate) fn new(registry: Registry, runtime: Handle) -> Self {
        Self {
            registry,
            runtime,
            legs: Slab::new(),
            to_read: VecDeque::new(),
            to_write: Vec::new(),
            deadlines: Deadlines::default(),
            ended: Vec::new(),
            joined: JoinSet::new(),
        }
    }

    /// Takes over a socket; returns its slot.
    pub(crate) fn adopt(&mut self, now: Instant, arrival: Arrival) -> io::Result<usize> {
        let Arrival { client, socket, early, place } = arrival;
        let entry = self.legs.vacant_entry();
        let slot = entry.key();
        let mut socket = TcpStream::from_std(socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut socket, Token(TOKENS + slot), interest)?;
        entry.insert(TcpLeg {
            client,
            socket,
            place,
            begun: early[..].into(),
            out: Vec::new(),
            written: 0,
            proven: false,
            counted: 0,
            heard: now,
            begun_at: None,
            stuck: None,
            to_read: true,
            to_write: false,
            ends: false,
            joint: None,
        });
        self.to_read.push_back(slot);
        self.deadlines.set(slot, now + STRANGER_TIME);
        Ok(slot)
    }

    /// Notes what the system reports of a socket.
    pub(crate) fn note(&mut self, slot: usize, event: &Event) {
        let Some(leg) = self.legs.get_mut(slot) else { return };
        leg.ends |= event.is_read_closed() || event.is_error();
        if (event.is_readable() || leg.ends) && !leg.to_read {
            leg.to_read = true;
            self.to_read.push_back(slot);
        }
        if event.is_writable() && leg.stuck.is_some() && !leg.to_write {
            leg.to_write = true;
            self.to_write.push(slot);
        }
    }

    /// Says whether a socket waits to be read.
    pub(crate) fn has_news(&self) -> bool {
        !self.to_read.is_empty()
    }

    /// Reads from the next socket that has something, into the intake from `start` on, where [`READ_ROOM`] bytes and as many of a
    /// begun frame must fit.
    pub(crate) fn read(
        &mut self,
        now: Instant,
        intake: &mut Intake,
        start: usize,
    ) -> Option<(usize, Reading)> {
        let (slot, leg) = loop {
            let slot = self.to_read.pop_front()?;
            let Some(leg) = self.legs.get_mut(slot).filter(|leg| leg.to_read && leg.joint.is_none()) else {
                continue;
            };
            if leg.proven || leg.stuck.is_none() {
                break (slot, leg);
            }
            // A stranger that takes no answers is asked no more; it stays marked, and is read when it has taken them.
        };
        leg.to_read = false;
        let begun = leg.begun.len();
        let room = intake.stage(start);
        room[..begun].copy_from_slice(&leg.begun);
        leg.begun.clear();
        let most = room.len().min(begun + if leg.proven { READ_ROOM } else { STRANGER_ROOM });
        let read = loop {
            match leg.socket.read(&mut room[begun..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let (count, ended) = match read {
            Ok(count) => (count, count == 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, false),
            Err(_) => (0, true),
        };
        if count > 0 {
            leg.heard = now;
            // What was short of the room was all there is, but for an end that the system has reported already.
            if begun + count == most || leg.ends {
                leg.to_read = true;
                self.to_read.push_back(slot);
            }
        }
        let bytes = start..start + begun + count;
        Some((slot, Reading { client: leg.client, bytes, ended }))
    }

    /// Keeps the beginning of a frame, or what is meant for a peer; `is_new` says that whole frames came before it. `false` when a
    /// stranger would have to be kept more of than is kept of strangers.
    pub(crate) fn keep(&mut self, now: Instant, slot: usize, rest: &[u8], is_new: bool) -> bool {
        let Some(leg) = self.legs.get_mut(slot) else { return true };
        leg.begun.reserve_exact(rest.len());
        leg.begun.extend_from_slice(rest);
        if rest.is_empty() && leg.begun.capacity() > leg.kept_room() {
            leg.begun = Vec::new();
        }
        if rest.is_empty() || is_new {
            leg.begun_at = None;
        }
        if !rest.is_empty() && leg.begun_at.is_none() && leg.joint.is_none() {
            leg.begun_at = Some(now);
            self.deadlines.set(slot, leg.given_up());
        }
        leg.proven || (rest.len() <= STRANGER_MESSAGE && leg.count())
    }

    /// Ends a client that has shown no credentials.
    pub(crate) fn evict(&mut self, slot: usize, number: u64) {
        if self.legs.get(slot).is_some_and(|leg| !leg.proven && leg.place.number() == number) {
            self.ended.push(slot);
        }
    }

    /// Says whether frames from a socket are to be heard still.
    pub(crate) fn listens(&self, slot: usize, client: FiveTuple) -> bool {
        self.legs.get(slot).is_some_and(|leg| leg.client == client && leg.joint.is_none())
    }

    /// Queues a frame for a client; `false` when it reads too slowly and the frame is lost.
    pub(crate) fn send(&mut self, slot: usize, parts: [&[u8]; 3]) -> bool {
        let Some(leg) = self.legs.get_mut(slot) else { return false };
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if leg.joint.is_some() {
            return false;
        }
        let most = if leg.proven { MAX_WAITING } else { STRANGER_WAITING };
        if leg.out.len() - leg.written + length > most {
            Limit::UnreadBytesPerClient.reached(most);
            return false;
        }
        if leg.written > MAX_WAITING {
            leg.out.drain(..leg.written);
            leg.written = 0;
        }
        for part in parts {
            leg.out.extend_from_slice(part);
        }
        // What is stuck is written when the system says so.
        if !leg.to_write && leg.stuck.is_none() {
            leg.to_write = true;
            self.to_write.push(slot);
        }
        true
    }

    /// Notes that a client has shown good credentials.
    pub(crate) fn prove(&mut self, slot: usize) {
        let Some(leg) = self.legs.get_mut(slot) else { return };
        if !leg.proven && leg.to_read {
            // It may have been passed over while it took nothing.
            self.to_read.push_back(slot);
        }
        leg.prove();
    }

    /// Hands a client's socket to a peer's connection at the end of the pass.
    pub(crate) fn join(&mut self, slot: usize, joint: Box<Joint>) -> bool {
        let Some(leg) = self.legs.get_mut(slot) else { return false };
        leg.joint = Some(joint);
        leg.prove();
        if !leg.to_write {
            leg.to_write = true;
            self.to_write.push(slot);
        }
        true
    }

    /// Writes what waits for clients that can take it. Due at the end of every pass.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(slot) = self.to_write.pop() {
            let Some(leg) = self.legs.get_mut(slot) else { continue };
            leg.to_write = false;
            if leg.joint.is_some() || leg.write(now).is_err() || !(leg.proven || leg.count()) {
                self.ended.push(slot);
            } else if leg.stuck.is_some() {
                self.deadlines.set(slot, leg.given_up());
            } else if leg.to_read && !leg.proven {
                // It may have been passed over while it took nothing.
                self.to_read.push_back(slot);
            }
        }
    }

    /// Returns when [`TcpLegs::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Gives up clients that were silent, or took nothing, for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.deadlines.pop_due(now) {
            let Some(leg) = self.legs.get(slot) else { continue };
            let given_up = leg.given_up();
            if given_up > now {
                self.deadlines.set(slot, given_up);
            } else {
                tracing::debug!("stream given up");
                self.ended.push(slot);
            }
        }
    }

    /// Takes the next client whose stream has ended by itself, or goes on without the worker.
    pub(crate) fn take_ended(&mut self) -> Option<(usize, FiveTuple)> {
        loop {
            let slot = self.ended.pop()?;
            if let Some(leg) = self.legs.get(slot) {
                return Some((slot, leg.client));
            }
        }
    }

    /// Lets go of a socket: it is closed behind what can be written at once, or joined.
    pub(crate) fn close(&mut self, now: Instant, slot: usize) {
        let Some(mut leg) = self.legs.try_remove(slot) else { return };
        self.deadlines.clear(slot);
        // Without it the system would go on reporting a socket that lives on.
        let _ = self.registry.deregister(&mut leg.socket);
        if let Some(joint) = leg.joint.take() {
            return self.run(leg, *joint);
        }
        let _ = leg.write(now).and_then(|()| leg.socket.shutdown(Shutdown::Write));
    }

    fn run(&mut self, leg: TcpLeg, joint: Joint) {
        let TcpLeg { socket, place, begun, mut out, written, .. } = leg;
        out.drain(..written);
        let joint = joint.behind(out);
        while self.joined.try_join_next().is_some() {}
        let carry = async move {
            let socket = tokio::net::TcpStream::from_std(socket.into());
            let carried = async { joint.run(socket?, BytesMut::from(&begun[..])).await };
            if let Err(error) = carried.await {
                tracing::debug!(%error, "stream ended");
            }
            drop(place);
        };
        self.joined.spawn_on(carry, &self.runtime);
    }
}

impl TcpLeg {
    /// Returns when the client is given up if it says and takes nothing more.
    fn given_up(&self) -> Instant {
        let silent = self.heard + if self.proven { IDLE_TIME } else { STRANGER_TIME };
        let begun = self.begun_at.map_or(silent, |begun| silent.min(begun + MESSAGE_TIME));
        self.stuck.map_or(begun, |stuck| begun.min(stuck + WRITE_TIME))
    }

    fn prove(&mut self) {
        if !std::mem::replace(&mut self.proven, true) {
            self.place.prove();
        }
    }

    /// Returns how much room an idle client may keep.
    fn kept_room(&self) -> usize {
        if self.proven { KEPT_ROOM } else { 0 }
    }

    /// Counts what a stranger holds; `false` when there is no memory for it.
    fn count(&mut self) -> bool {
        let held = self.begun.capacity() + self.out.capacity();
        let held = if held > UNCOUNTED { held } else { 0 };
        held == self.counted || {
            self.counted = held;
            self.place.hold(held)
        }
    }

    /// Writes as much as the system takes; an edge in readiness follows when that was not all.
    fn write(&mut self, now: Instant) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.stuck = self.stuck.map(|_| now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck.get_or_insert(now);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        if self.out.capacity() > self.kept_room() {
            self.out = Vec::new();
        }
        (self.written, self.stuck) = (0, None);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tcp_client_tests.rs"]
mod tests;
