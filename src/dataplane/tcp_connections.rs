//! Clients on plain TCP: the worker reads and writes their sockets in its own loop. No task, queue or allocation is between a frame and the
//! relay.

use super::peer_streams::PeerStream;
use super::stream_limits::{
    IDLE_TIME, MESSAGE_TIME, UNAUTHENTICATED_IDLE_TIME, UNAUTHENTICATED_MESSAGE, UNAUTHENTICATED_READ,
    UNAUTHENTICATED_UNREAD, WRITE_TIME,
};
use crate::clock::Deadlines;
use crate::limits::Limit;
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::udp::RxBuffers;
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

/// Most bytes read from one client at a time; a partial frame has at most 64 KiB.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// Bytes queued for one client; further frames are dropped, as in a network.
pub(crate) const MAX_UNREAD: usize = 256 * 1024;
/// Buffer capacity that an idle client keeps once it has authenticated.
const KEPT_ROOM: usize = 8 * 1024;
/// Bytes of an unauthenticated client that are not counted.
const UNCOUNTED: usize = 1024;
/// The bit that distinguishes these tokens from those of listeners and relay sockets.
const TOKENS: usize = 1 << (usize::BITS - 2);

/// An accepted socket on its way to its worker.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) client: FiveTuple,
    pub(crate) socket: std::net::TcpStream,
    /// Bytes that were already read from it.
    pub(crate) early: BytesMut,
    pub(crate) connection: ConnectionPermit,
}

/// One client's connection.
#[derive(Debug)]
struct TcpConnection {
    client: FiveTuple,
    socket: TcpStream,
    connection: ConnectionPermit,
    /// The start of a partial frame.
    partial: Vec<u8>,
    /// Frames to write, from `written` on.
    out: Vec<u8>,
    written: usize,
    authenticated: bool,
    /// Bytes that were counted for an unauthenticated client.
    counted: usize,
    last_read: Instant,
    /// When the partial frame began.
    partial_since: Option<Instant>,
    /// Since when the client has read nothing of `out`.
    blocked_since: Option<Instant>,
    /// Whether it is in the read queue, and in the write queue.
    read_queued: bool,
    write_queued: bool,
    /// Whether the system has reported the end of the client's data.
    read_closed: bool,
    /// The peer connection that it will carry.
    peer_stream: Option<Box<PeerStream>>,
}

/// The result of a read.
#[derive(Debug)]
pub(crate) struct TcpRead {
    pub(crate) client: FiveTuple,
    /// Where the bytes lie in the receive buffers; the partial frame comes first.
    pub(crate) bytes: Range<usize>,
    /// Whether the stream has ended.
    pub(crate) ended: bool,
}

/// The plain TCP connections of one worker.
#[derive(Debug)]
pub(crate) struct TcpConnections {
    registry: Registry,
    runtime: Handle,
    connections: Slab<TcpConnection>,
    read_queue: VecDeque<usize>,
    write_queue: Vec<usize>,
    deadlines: Deadlines<usize>,
    /// Connections that have ended or must close.
    ended: Vec<usize>,
    /// Connections that carry data of a peer (RFC 6062).
    joined: JoinSet<()>,
}

/// Returns the slot of a token.
pub(crate) fn slot(token: Token) -> Option<usize> {
    (TOKENS..2 * TOKENS).contains(&token.0).then(|| token.0 - TOKENS)
}

impl TcpConnections {
    pub(crate) fn new(registry: Registry, runtime: Handle) -> Self {
        Self {
            registry,
            runtime,
            connections: Slab::new(),
            read_queue: VecDeque::new(),
            write_queue: Vec::new(),
            deadlines: Deadlines::default(),
            ended: Vec::new(),
            joined: JoinSet::new(),
        }
    }

    /// Inserts a socket; returns its slot.
    pub(crate) fn insert(&mut self, now: Instant, accepted: AcceptedSocket) -> io::Result<usize> {
        let AcceptedSocket { client, socket, early, connection } = accepted;
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        let mut socket = TcpStream::from_std(socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut socket, Token(TOKENS + slot), interest)?;
        entry.insert(TcpConnection {
            client,
            socket,
            connection,
            partial: early[..].into(),
            out: Vec::new(),
            written: 0,
            authenticated: false,
            counted: 0,
            last_read: now,
            partial_since: None,
            blocked_since: None,
            read_queued: true,
            write_queued: false,
            read_closed: false,
            peer_stream: None,
        });
        self.read_queue.push_back(slot);
        self.deadlines.set(slot, now + UNAUTHENTICATED_IDLE_TIME);
        Ok(slot)
    }

    /// Handles a readiness event.
    pub(crate) fn on_event(&mut self, slot: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.read_closed |= event.is_read_closed() || event.is_error();
        if (event.is_readable() || connection.read_closed) && !connection.read_queued {
            connection.read_queued = true;
            self.read_queue.push_back(slot);
        }
        if event.is_writable() && connection.blocked_since.is_some() && !connection.write_queued {
            connection.write_queued = true;
            self.write_queue.push(slot);
        }
    }

    /// Returns whether a socket is queued for reading.
    pub(crate) fn has_readable(&self) -> bool {
        !self.read_queue.is_empty()
    }

    /// Reads from the next readable socket into the receive buffers at `start`, where [`READ_SIZE`] bytes and a partial frame of the same size must
    /// fit.
    pub(crate) fn read(
        &mut self,
        now: Instant,
        rx: &mut RxBuffers,
        start: usize,
    ) -> Option<(usize, TcpRead)> {
        let (slot, connection) = loop {
            let slot = self.read_queue.pop_front()?;
            let Some(connection) = self
                .connections
                .get_mut(slot)
                .filter(|connection| connection.read_queued && connection.peer_stream.is_none())
            else {
                continue;
            };
            if connection.authenticated || connection.blocked_since.is_none() {
                break (slot, connection);
            }
            // An unauthenticated client that does not read its responses is not read; it stays marked until it has read them.
        };
        connection.read_queued = false;
        let partial = connection.partial.len();
        let room = rx.stage(start);
        room[..partial].copy_from_slice(&connection.partial);
        connection.partial.clear();
        let most =
            room.len().min(partial + if connection.authenticated { READ_SIZE } else { UNAUTHENTICATED_READ });
        let read = loop {
            match connection.socket.read(&mut room[partial..most]) {
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
            connection.last_read = now;
            // A short read has emptied the socket, unless the system has already reported its end.
            if partial + count == most || connection.read_closed {
                connection.read_queued = true;
                self.read_queue.push_back(slot);
            }
        }
        let bytes = start..start + partial + count;
        Some((slot, TcpRead { client: connection.client, bytes, ended }))
    }

    /// Keeps a partial frame, or data for a peer; `is_new` states that whole frames came before it. Returns `false` when an unauthenticated client
    /// exceeds its limit.
    pub(crate) fn keep_partial(&mut self, now: Instant, slot: usize, rest: &[u8], is_new: bool) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return true };
        connection.partial.reserve_exact(rest.len());
        connection.partial.extend_from_slice(rest);
        if rest.is_empty() && connection.partial.capacity() > connection.kept_room() {
            connection.partial = Vec::new();
        }
        if rest.is_empty() || is_new {
            connection.partial_since = None;
        }
        if !rest.is_empty() && connection.partial_since.is_none() && connection.peer_stream.is_none() {
            connection.partial_since = Some(now);
            self.deadlines.set(slot, connection.deadline());
        }
        connection.authenticated || (rest.len() <= UNAUTHENTICATED_MESSAGE && connection.count())
    }

    /// Closes a client that has not authenticated.
    pub(crate) fn evict(&mut self, slot: usize, number: u64) {
        if self
            .connections
            .get(slot)
            .is_some_and(|connection| !connection.authenticated && connection.connection.id() == number)
        {
            self.ended.push(slot);
        }
    }

    /// Returns whether frames of this socket are still read.
    pub(crate) fn reads_frames(&self, slot: usize, client: FiveTuple) -> bool {
        self.connections
            .get(slot)
            .is_some_and(|connection| connection.client == client && connection.peer_stream.is_none())
    }

    /// Queues a frame; returns `false` when the client reads too slowly and the frame is dropped.
    pub(crate) fn send(&mut self, slot: usize, parts: [&[u8]; 3]) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if connection.peer_stream.is_some() {
            return false;
        }
        let most = if connection.authenticated { MAX_UNREAD } else { UNAUTHENTICATED_UNREAD };
        if connection.out.len() - connection.written + length > most {
            Limit::UnreadBytesPerClient.reached(most);
            return false;
        }
        if connection.written > MAX_UNREAD {
            connection.out.drain(..connection.written);
            connection.written = 0;
        }
        for part in parts {
            connection.out.extend_from_slice(part);
        }
        // A blocked socket is written when the system reports it writable.
        if !connection.write_queued && connection.blocked_since.is_none() {
            connection.write_queued = true;
            self.write_queue.push(slot);
        }
        true
    }

    /// Marks a client as authenticated.
    pub(crate) fn mark_authenticated(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.authenticated && connection.read_queued {
            // It may have been skipped while it did not read.
            self.read_queue.push_back(slot);
        }
        connection.mark_authenticated();
    }

    /// Hands a client's socket to a peer connection at the end of the iteration.
    pub(crate) fn join(&mut self, slot: usize, peer_stream: Box<PeerStream>) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        connection.peer_stream = Some(peer_stream);
        connection.mark_authenticated();
        if !connection.write_queued {
            connection.write_queued = true;
            self.write_queue.push(slot);
        }
        true
    }

    /// Writes what is queued. Due at the end of every iteration.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(slot) = self.write_queue.pop() {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.write_queued = false;
            if connection.peer_stream.is_some()
                || connection.write(now).is_err()
                || !(connection.authenticated || connection.count())
            {
                self.ended.push(slot);
            } else if connection.blocked_since.is_some() {
                self.deadlines.set(slot, connection.deadline());
            } else if connection.read_queued && !connection.authenticated {
                // It may have been skipped while it did not read.
                self.read_queue.push_back(slot);
            }
        }
    }

    /// Returns when [`TcpConnections::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Closes clients that were silent, or did not read, for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.deadlines.pop_due(now) {
            let Some(connection) = self.connections.get(slot) else { continue };
            let deadline = connection.deadline();
            if deadline > now {
                self.deadlines.set(slot, deadline);
            } else {
                tracing::debug!("idle stream closed");
                self.ended.push(slot);
            }
        }
    }

    /// Takes the next client whose connection has ended or leaves the worker.
    pub(crate) fn take_ended(&mut self) -> Option<(usize, FiveTuple)> {
        loop {
            let slot = self.ended.pop()?;
            if let Some(connection) = self.connections.get(slot) {
                return Some((slot, connection.client));
            }
        }
    }

    /// Removes a socket: it closes after a last write, or carries a peer connection.
    pub(crate) fn close(&mut self, now: Instant, slot: usize) {
        let Some(mut connection) = self.connections.try_remove(slot) else { return };
        self.deadlines.clear(slot);
        // Otherwise the system would go on reporting a socket that stays open.
        let _ = self.registry.deregister(&mut connection.socket);
        if let Some(peer_stream) = connection.peer_stream.take() {
            return self.run(connection, *peer_stream);
        }
        let _ = connection.write(now).and_then(|()| connection.socket.shutdown(Shutdown::Write));
    }

    fn run(&mut self, connection: TcpConnection, peer_stream: PeerStream) {
        let TcpConnection { socket, connection, partial, mut out, written, .. } = connection;
        out.drain(..written);
        let peer_stream = peer_stream.behind(out);
        while self.joined.try_join_next().is_some() {}
        let carry = async move {
            let socket = tokio::net::TcpStream::from_std(socket.into());
            let carried = async { peer_stream.run(socket?, BytesMut::from(&partial[..])).await };
            if let Err(error) = carried.await {
                tracing::debug!(%error, "stream ended");
            }
            drop(connection);
        };
        self.joined.spawn_on(carry, &self.runtime);
    }
}

impl TcpConnection {
    /// Returns when the client is closed unless it sends or reads.
    fn deadline(&self) -> Instant {
        let silent = self.last_read + if self.authenticated { IDLE_TIME } else { UNAUTHENTICATED_IDLE_TIME };
        let partial = self.partial_since.map_or(silent, |partial| silent.min(partial + MESSAGE_TIME));
        self.blocked_since.map_or(partial, |blocked_since| partial.min(blocked_since + WRITE_TIME))
    }

    fn mark_authenticated(&mut self) {
        if !std::mem::replace(&mut self.authenticated, true) {
            self.connection.mark_authenticated();
        }
    }

    /// Returns the buffer capacity that an idle client keeps.
    fn kept_room(&self) -> usize {
        if self.authenticated { KEPT_ROOM } else { 0 }
    }

    /// Counts the memory of an unauthenticated client; returns `false` when none is left.
    fn count(&mut self) -> bool {
        let held = self.partial.capacity() + self.out.capacity();
        let held = if held > UNCOUNTED { held } else { 0 };
        held == self.counted || {
            self.counted = held;
            self.connection.reserve_memory(held)
        }
    }

    /// Writes as much as the system takes; a readiness event follows if that was not all.
    fn write(&mut self, now: Instant) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.blocked_since = self.blocked_since.map(|_| now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_since.get_or_insert(now);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        if self.out.capacity() > self.kept_room() {
            self.out = Vec::new();
        }
        (self.written, self.blocked_since) = (0, None);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tcp_connections_tests.rs"]
mod tests;
