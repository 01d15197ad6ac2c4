//! Clients by plain TCP: their sockets belong to the worker, which reads and writes them in its own loop. No task, no queue and no
//! allocation stand between a frame and the relay.

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

/// Most bytes read from one client at a time. A frame, and so what is kept of one that is not whole, has at most 64 KiB.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// Bytes that wait for one client to read them; beyond it frames are dropped, as a network would.
pub(crate) const MAX_UNREAD: usize = 256 * 1024;
/// Room that an idle client may keep once it has shown credentials.
const KEPT_ROOM: usize = 8 * 1024;
/// Bytes of a stranger's that are not counted.
const UNCOUNTED: usize = 1024;
/// The bit that tells these tokens from those of doors and relay sockets.
const TOKENS: usize = 1 << (usize::BITS - 2);

/// A socket on its way to its worker.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) client: FiveTuple,
    pub(crate) socket: std::net::TcpStream,
    /// What was read from it already.
    pub(crate) early: BytesMut,
    pub(crate) connection: ConnectionPermit,
}

/// One client's socket.
#[derive(Debug)]
struct TcpConnection {
    client: FiveTuple,
    socket: TcpStream,
    connection: ConnectionPermit,
    /// The beginning of a frame that is not whole.
    partial: Vec<u8>,
    /// Frames that are to be written from `written` on.
    out: Vec<u8>,
    written: usize,
    authenticated: bool,
    /// Bytes that a stranger was counted for.
    counted: usize,
    last_read: Instant,
    /// Since when a frame has partial that is not whole.
    partial_since: Option<Instant>,
    /// Since when the client has taken nothing of `out`.
    blocked_since: Option<Instant>,
    /// Whether it is in the list of those that are to be read, and to be written.
    read_queued: bool,
    write_queued: bool,
    /// Whether the system has reported the end of what the client sends.
    read_closed: bool,
    /// What it is to be joined with.
    peer_stream: Option<Box<PeerStream>>,
}

/// What a read has brought.
#[derive(Debug)]
pub(crate) struct TcpRead {
    pub(crate) client: FiveTuple,
    /// Where the bytes lie in the intake, those of a partial frame first.
    pub(crate) bytes: Range<usize>,
    /// Whether nothing more is to be expected.
    pub(crate) ended: bool,
}

/// The clients by plain TCP of one worker.
#[derive(Debug)]
pub(crate) struct TcpConnections {
    registry: Registry,
    runtime: Handle,
    connections: Slab<TcpConnection>,
    read_queue: VecDeque<usize>,
    write_queue: Vec<usize>,
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

    /// Takes over a socket; returns its slot.
    pub(crate) fn insert(&mut self, now: Instant, arrival: AcceptedSocket) -> io::Result<usize> {
        let AcceptedSocket { client, socket, early, connection } = arrival;
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

    /// Notes what the system reports of a socket.
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

    /// Says whether a socket waits to be read.
    pub(crate) fn has_readable(&self) -> bool {
        !self.read_queue.is_empty()
    }

    /// Reads from the next socket that has something, into the intake from `start` on, where [`READ_SIZE`] bytes and as many of a
    /// partial frame must fit.
    pub(crate) fn read(
        &mut self,
        now: Instant,
        intake: &mut RxBuffers,
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
            // A stranger that takes no answers is asked no more; it stays marked, and is read when it has taken them.
        };
        connection.read_queued = false;
        let partial = connection.partial.len();
        let room = intake.stage(start);
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
            // What was short of the room was all there is, but for an end that the system has reported already.
            if partial + count == most || connection.read_closed {
                connection.read_queued = true;
                self.read_queue.push_back(slot);
            }
        }
        let bytes = start..start + partial + count;
        Some((slot, TcpRead { client: connection.client, bytes, ended }))
    }

    /// Keeps the beginning of a frame, or what is meant for a peer; `is_new` says that whole frames came before it. `false` when a
    /// stranger would have to be kept more of than is kept of strangers.
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

    /// Ends a client that has shown no credentials.
    pub(crate) fn evict(&mut self, slot: usize, number: u64) {
        if self
            .connections
            .get(slot)
            .is_some_and(|connection| !connection.authenticated && connection.connection.id() == number)
        {
            self.ended.push(slot);
        }
    }

    /// Says whether frames from a socket are to be read last still.
    pub(crate) fn reads_frames(&self, slot: usize, client: FiveTuple) -> bool {
        self.connections
            .get(slot)
            .is_some_and(|connection| connection.client == client && connection.peer_stream.is_none())
    }

    /// Queues a frame for a client; `false` when it reads too slowly and the frame is lost.
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
        // What is blocked is written when the system says so.
        if !connection.write_queued && connection.blocked_since.is_none() {
            connection.write_queued = true;
            self.write_queue.push(slot);
        }
        true
    }

    /// Notes that a client has shown good credentials.
    pub(crate) fn mark_authenticated(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.authenticated && connection.read_queued {
            // It may have been passed over while it took nothing.
            self.read_queue.push_back(slot);
        }
        connection.mark_authenticated();
    }

    /// Hands a client's socket to a peer's connection at the end of the pass.
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

    /// Writes what waits for clients that can take it. Due at the end of every pass.
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
                // It may have been passed over while it took nothing.
                self.read_queue.push_back(slot);
            }
        }
    }

    /// Returns when [`TcpConnections::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Gives up clients that were silent, or took nothing, for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.deadlines.pop_due(now) {
            let Some(connection) = self.connections.get(slot) else { continue };
            let deadline = connection.deadline();
            if deadline > now {
                self.deadlines.set(slot, deadline);
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
            if let Some(connection) = self.connections.get(slot) {
                return Some((slot, connection.client));
            }
        }
    }

    /// Lets go of a socket: it is closed behind what can be written at once, or joined.
    pub(crate) fn close(&mut self, now: Instant, slot: usize) {
        let Some(mut connection) = self.connections.try_remove(slot) else { return };
        self.deadlines.clear(slot);
        // Without it the system would go on reporting a socket that lives on.
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
    /// Returns when the client is given up if it says and takes nothing more.
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

    /// Returns how much room an idle client may keep.
    fn kept_room(&self) -> usize {
        if self.authenticated { KEPT_ROOM } else { 0 }
    }

    /// Counts what a stranger holds; `false` when there is no memory for it.
    fn count(&mut self) -> bool {
        let held = self.partial.capacity() + self.out.capacity();
        let held = if held > UNCOUNTED { held } else { 0 };
        held == self.counted || {
            self.counted = held;
            self.connection.reserve_memory(held)
        }
    }

    /// Writes as much as the system takes; an edge in readiness follows when that was not all.
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
