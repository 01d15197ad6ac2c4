//! The thread that owns all sockets of the gateway: passes received bytes to the router and writes what it queues.
//!
//! One iteration reads every readable client once and every readable server, which serves many clients, several times. Then it writes to each
//! endpoint everything that is queued for it with one call.

use super::budget::SHORT;
use super::config::Config;
use super::counters::Counters;
use super::endpoint::EndpointKey;
use super::machine::{Output, ReadAction, Router};
use super::outbox::SHARED;
use super::service::Peer;
use crate::clock::Now;
use crate::limits::sampled;
use crate::net::time;
use bytes::BytesMut;
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rand_chacha::ChaCha20Rng;
use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Receive buffers are cut from chunks of this size.
const CHUNK: usize = 64 * 1024;
/// Earlier chunks that are kept for reuse.
const MAX_USED_CHUNKS: usize = 16;
/// The smallest buffer for a read.
const MIN_READ_SIZE: usize = 16 * 1024;
/// Reads of one server in one iteration.
const MAX_SERVER_READS: usize = 16;
/// Slices written with one call.
const MAX_SLICES: usize = 64;
/// Bytes written to one endpoint in one iteration.
const MAX_WRITE: usize = 1 << 20;
/// Bytes read from clients in one iteration: they are written while they are in the processor's cache, and many clients do not delay the servers.
const MAX_CLIENT_READ: usize = 2 << 20;
/// Events taken from the system in one iteration.
const MAX_EVENTS: usize = 256;
const WAKER: Token = Token(usize::MAX);

/// The socket of an endpoint: its own, or one of a pair whose other end a task serves.
#[derive(Debug)]
pub(super) enum EndpointSocket {
    Tcp(TcpStream),
    Pair(UnixStream),
}

impl EndpointSocket {
    fn read(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(slices),
            Self::Pair(stream) => stream.read_vectored(slices),
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Pair(stream) => stream.write_vectored(slices),
        }
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interests),
            Self::Pair(stream) => stream.register(registry, token, interests),
        }
    }
}

/// A connection for the worker to serve.
pub(super) struct NewConnection {
    pub(super) peer: Peer,
    pub(super) socket: EndpointSocket,
    /// Bytes that were read from it before.
    pub(super) initial: BytesMut,
    /// Dropped with the connection.
    pub(super) permit: Box<dyn Any + Send>,
}

pub(super) enum GatewayMessage {
    Connected(NewConnection),
    Count(oneshot::Sender<Counters>),
    Stop,
}

/// One endpoint's socket and its state.
struct EndpointSlot {
    socket: EndpointSocket,
    /// Received bytes that the router has not taken.
    input: BytesMut,
    read_action: ReadAction,
    is_server: bool,
    /// The router is to look at `input` again.
    has_unprocessed_input: bool,
    is_readable: bool,
    /// The peer sends nothing more: the socket is read to its end.
    is_closing: bool,
    is_writable: bool,
    /// By [`Queue`].
    is_queued: [bool; 3],
    _permit: Box<dyn Any + Send>,
}

/// What endpoints wait for.
#[derive(Clone, Copy)]
enum Queue {
    ClientReads,
    ServerReads,
    Writes,
}

/// Returns a chunk to read into: the oldest used one if all its frames were written, since its memory is likely in the cache.
fn next_chunk(used_chunks: &mut VecDeque<BytesMut>, newest: BytesMut) -> BytesMut {
    used_chunks.push_back(newest);
    if let Some(mut oldest) = used_chunks.pop_front() {
        oldest.clear();
        if oldest.try_reclaim(CHUNK) {
            oldest.resize(CHUNK, 0);
            return oldest;
        }
        if used_chunks.len() < MAX_USED_CHUNKS {
            used_chunks.push_back(oldest);
        }
    }
    BytesMut::zeroed(CHUNK)
}

pub(super) struct GatewayWorker {
    router: Router,
    poll: Poll,
    messages: Receiver<GatewayMessage>,
    /// By endpoint key.
    slots: Vec<Option<EndpointSlot>>,
    /// By [`Queue`].
    queues: [VecDeque<EndpointKey>; 3],
    /// Bytes read in this iteration.
    read: usize,
    /// The unused rest of the chunk that is read into.
    chunk_rest: BytesMut,
    used_chunks: VecDeque<BytesMut>,
    one_write_per_frame: bool,
}

impl GatewayWorker {
    /// Creates a worker and what wakes it.
    pub(super) fn new(
        config: &Config,
        rng: ChaCha20Rng,
        messages: Receiver<GatewayMessage>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let worker = Self {
            router: Router::new(config.router(), rng),
            poll,
            messages,
            slots: Vec::new(),
            queues: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            read: 0,
            chunk_rest: BytesMut::new(),
            used_chunks: VecDeque::new(),
            one_write_per_frame: config.one_write_per_frame,
        };
        Ok((worker, waker))
    }

    /// Serves until [`GatewayMessage::Stop`].
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        loop {
            let is_idle = self.queues.iter().all(VecDeque::is_empty);
            let timeout = if is_idle {
                self.router.poll_timeout().map(|at| at.saturating_duration_since(time::now().mono))
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = time::now();
            for event in &events {
                if event.token() == WAKER {
                    if !self.handle_messages(now) {
                        return Ok(());
                    }
                } else {
                    self.handle_event(now, event);
                }
            }
            for (queue, max_read) in [(Queue::ServerReads, usize::MAX), (Queue::ClientReads, MAX_CLIENT_READ)]
            {
                self.read = 0;
                for _ in 0..self.queues[queue as usize].len() {
                    if self.read >= max_read {
                        break;
                    }
                    if let Some(key) = self.dequeue(queue) {
                        self.read(now, key);
                    }
                }
            }
            if self.router.poll_timeout().is_some_and(|at| at <= now.mono) {
                self.router.handle_timeout(now);
                self.process_outputs();
            }
            for _ in 0..self.queues[Queue::Writes as usize].len() {
                if let Some(key) = self.dequeue(Queue::Writes) {
                    self.write(now, key);
                }
            }
        }
    }

    /// Handles all waiting messages; returns whether the worker goes on.
    fn handle_messages(&mut self, now: Now) -> bool {
        loop {
            match self.messages.try_recv() {
                Ok(GatewayMessage::Connected(connection)) => self.add_connection(now, connection),
                Ok(GatewayMessage::Count(reply)) => drop(reply.send(self.router.counters())),
                Err(TryRecvError::Empty) => return true,
                Ok(GatewayMessage::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add_connection(&mut self, now: Now, connection: NewConnection) {
        let NewConnection { peer, mut socket, initial, permit } = connection;
        let key = match peer {
            Peer::Client(ip) => self.router.add_client(now, ip),
            Peer::Server(server) => {
                let Ok(key) = self.router.add_server(now, server.id, server.credit, server.duplicates) else {
                    sampled!(info, now.mono, id = server.id, "gateway server refused: its id is taken");
                    return;
                };
                key
            }
        };
        // A server that this one replaces is removed first: its key may be this one's by now.
        self.process_outputs();
        if let Err(error) = socket.register(self.poll.registry(), Token(key.0)) {
            sampled!(warn, now.mono, %error, "gateway connection dropped: its socket cannot be polled");
            self.router.handle_disconnected(now, key);
            return self.process_outputs();
        }
        if self.slots.len() <= key.0 {
            self.slots.resize_with(key.0 + 1, || None);
        }
        self.slots[key.0] = Some(EndpointSlot {
            socket,
            input: initial,
            read_action: ReadAction::Read { missing: 0, exact: false },
            is_server: matches!(peer, Peer::Server(_)),
            has_unprocessed_input: true,
            is_readable: true,
            is_closing: false,
            is_writable: true,
            is_queued: [false; 3],
            _permit: permit,
        });
        self.enqueue_read(key);
    }

    fn handle_event(&mut self, now: Now, event: &mio::event::Event) {
        let key = EndpointKey(event.token().0);
        let Some(Some(slot)) = self.slots.get_mut(key.0) else { return };
        if event.is_error() {
            return self.handle_closed(now, key);
        }
        slot.is_writable |= event.is_writable();
        if event.is_readable() || event.is_read_closed() || event.is_write_closed() {
            slot.is_readable = true;
            // What the peer sent before it closed is still to be read.
            slot.is_closing |= event.is_read_closed() || event.is_write_closed();
            self.enqueue_read(key);
        }
        if event.is_writable() {
            self.enqueue(Queue::Writes, key);
        }
    }

    /// Puts an endpoint into a queue, once.
    fn enqueue(&mut self, queue: Queue, key: EndpointKey) {
        if let Some(Some(slot)) = self.slots.get_mut(key.0)
            && !std::mem::replace(&mut slot.is_queued[queue as usize], true)
        {
            self.queues[queue as usize].push_back(key);
        }
    }

    fn enqueue_read(&mut self, key: EndpointKey) {
        if let Some(Some(slot)) = self.slots.get(key.0) {
            self.enqueue(if slot.is_server { Queue::ServerReads } else { Queue::ClientReads }, key);
        }
    }

    fn dequeue(&mut self, queue: Queue) -> Option<EndpointKey> {
        let key = self.queues[queue as usize].pop_front()?;
        // The key may belong to a newer endpoint by now: looking at it once too often does no harm.
        self.slots.get_mut(key.0)?.as_mut()?.is_queued[queue as usize] = false;
        Some(key)
    }

    fn process_outputs(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Transmit(key) => self.enqueue(Queue::Writes, key),
                Output::Resume(key) => {
                    if let Some(Some(slot)) = self.slots.get_mut(key.0) {
                        slot.has_unprocessed_input = true;
                    }
                    self.enqueue_read(key);
                }
                Output::Close(key, reason) => {
                    tracing::debug!(reason = reason.name(), "gateway connection closed");
                    if let Some(slot) = self.slots.get_mut(key.0) {
                        *slot = None;
                    }
                }
            }
        }
    }

    fn handle_closed(&mut self, now: Now, key: EndpointKey) {
        if let Some(slot) = self.slots.get_mut(key.0) {
            *slot = None;
        }
        self.router.handle_disconnected(now, key);
        self.process_outputs();
    }

    /// Reads an endpoint until its socket is empty or its share of the iteration is used up.
    fn read(&mut self, now: Now, key: EndpointKey) {
        for _ in 0..MAX_SERVER_READS {
            let Some(Some(slot)) = self.slots.get_mut(key.0) else { return };
            if std::mem::take(&mut slot.has_unprocessed_input) {
                slot.read_action = self.router.handle_frames(now, key, &mut slot.input);
                self.process_outputs();
                continue;
            }
            let ReadAction::Read { missing, exact } = slot.read_action else { return };
            if !slot.is_readable {
                return;
            }
            let is_server = slot.is_server;
            match self.read_once(now, key, missing, exact) {
                Ok(()) if is_server => {}
                Ok(()) => break,
                Err(_) => return self.handle_closed(now, key),
            }
        }
        let Some(Some(slot)) = self.slots.get(key.0) else { return };
        if slot.has_unprocessed_input
            || (slot.is_readable && matches!(slot.read_action, ReadAction::Read { .. }))
        {
            self.enqueue_read(key);
        }
    }

    /// Reads once: first the missing part of a frame, behind the part that has arrived, then into the shared chunk.
    fn read_once(&mut self, now: Now, key: EndpointKey, missing: usize, exact: bool) -> io::Result<()> {
        let Some(Some(slot)) = self.slots.get_mut(key.0) else { return Ok(()) };
        if self.chunk_rest.len() < MIN_READ_SIZE {
            let used_chunks = std::mem::take(&mut self.chunk_rest);
            self.chunk_rest = next_chunk(&mut self.used_chunks, used_chunks);
        }
        // A frame's length is only a claim: the buffer grows with what has arrived.
        let begun = slot.input.len();
        let extra = missing.min(begun.max(SHORT));
        if begun > 0 {
            slot.input.resize(begun + extra, 0);
        }
        let own = &mut slot.input[begun..];
        let shared = match exact {
            true if begun == 0 => missing.clamp(1, self.chunk_rest.len()),
            true => 0,
            false if extra < missing => 0,
            false => self.chunk_rest.len(),
        };
        let offered = own.len() + shared;
        let read =
            slot.socket.read(&mut [IoSliceMut::new(own), IoSliceMut::new(&mut self.chunk_rest[..shared])]);
        let own = own.len();
        let count = match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) => {
                slot.input.truncate(begun);
                let again = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                slot.is_readable &= error.kind() == io::ErrorKind::Interrupted;
                return if again { Ok(()) } else { Err(error) };
            }
        };
        self.read += count;
        // A short read has emptied the socket; the system announces what comes next, except the end.
        slot.is_readable = count == offered || slot.is_closing;
        slot.input.truncate(begun + count.min(own));
        let mut piece = self.chunk_rest.split_to(count.saturating_sub(own));
        if !slot.input.is_empty() {
            slot.read_action = self.router.handle_frames(now, key, &mut slot.input);
        }
        if !piece.is_empty() {
            if slot.input.is_empty() && matches!(slot.read_action, ReadAction::Read { .. }) {
                slot.read_action = self.router.handle_frames(now, key, &mut piece);
                // A short rest would keep a whole chunk alive.
                slot.input = if piece.len() < SHARED { BytesMut::from(&piece[..]) } else { piece };
            } else {
                slot.input.extend_from_slice(&piece);
                slot.has_unprocessed_input |= matches!(slot.read_action, ReadAction::Read { .. });
            }
        }
        if slot.input.is_empty() {
            slot.input = BytesMut::new();
        }
        self.process_outputs();
        Ok(())
    }

    /// Writes what is queued for an endpoint until its socket is full or its share of the iteration is used up.
    fn write(&mut self, now: Now, key: EndpointKey) {
        let mut written = 0;
        loop {
            let Some(Some(slot)) = self.slots.get_mut(key.0) else { return };
            if !slot.is_writable {
                return;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = if self.one_write_per_frame {
                slices[0] = IoSlice::new(self.router.peek_frame(key));
                usize::from(!slices[0].is_empty())
            } else {
                self.router.peek(key, &mut slices)
            };
            if count == 0 {
                return;
            }
            let offered: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            match slot.socket.write(&slices[..count]) {
                Ok(count) => {
                    slot.is_writable = count == offered;
                    written += count;
                    self.router.handle_written(now, key, count);
                    self.process_outputs();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => slot.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.handle_closed(now, key),
            }
            if written >= MAX_WRITE {
                return self.enqueue(Queue::Writes, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_reused_only_after_its_frames_were_written() {
        let mut used_chunks = VecDeque::new();
        let mut chunk_rest = next_chunk(&mut used_chunks, BytesMut::new());
        let mut waiting = VecDeque::new();
        let mut slots = std::collections::HashSet::new();
        for turn in 0..200_u8 {
            let mut frame = chunk_rest.split_to(60_000);
            slots.insert(frame.as_ptr());
            frame.fill(turn);
            waiting.push_back((turn, frame));
            if waiting.len() > 3 {
                let (turn, frame) = waiting.pop_front().unwrap();
                assert!(frame.iter().all(|byte| *byte == turn), "it was not overwritten");
            }
            chunk_rest = next_chunk(&mut used_chunks, chunk_rest);
            assert_eq!(chunk_rest.len(), CHUNK);
        }
        assert!(
            slots.len() < 40 && used_chunks.len() <= MAX_USED_CHUNKS,
            "{} chunks for 200 reads",
            slots.len()
        );
    }
}
