//! The thread that has all sockets of the gateway: reads, hands what came to the machine, writes what it says. Decides nothing.
//!
//! One turn reads every socket that is ready once (servers, who speak for many, several times), then writes to each endpoint all that
//! waits for it in one call.

use super::budget::SHORT;
use super::config::{Config, Duplicates};
use super::counters::Counters;
use super::endpoint::EndpointKey;
use super::machine::{Output, ReadAction, Router};
use super::outbox::SHARED;
use super::socket::Socket;
use crate::clock::Now;
use crate::limits::sampled;
use crate::net::time;
use bytes::BytesMut;
use mio::{Events, Poll, Token, Waker};
use rand_chacha::ChaCha20Rng;
use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, TryRecvError};
use tokio::sync::oneshot;

/// Receive buffers are cut from chunks of this size.
const CHUNK: usize = 64 * 1024;
/// How many earlier chunks are looked after.
const SPENT: usize = 16;
/// The least room that is read into.
const LEAST_ROOM: usize = 16 * 1024;
/// Reads of one server in one turn.
const SERVER_READS: usize = 16;
/// Pieces written with one call.
const SLICES: usize = 64;
/// Bytes written to one endpoint in one turn.
const WRITES: usize = 1 << 20;
/// Bytes read of clients in one turn: what was read leaves while it is at hand, and ten thousand clients do not keep four servers waiting.
const CLIENT_BYTES: usize = 2 << 20;
/// Sockets that one turn hears of.
const EVENTS: usize = 256;
/// The bell's place among the sockets.
const BELL: Token = Token(usize::MAX);

/// Who has arrived, as far as the doors could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Client { ip: IpAddr },
    Server { id: u32, credit: bool, duplicates: Duplicates },
}

/// A connection for the worker to serve.
pub(super) struct Arrival {
    pub(super) who: Who,
    pub(super) socket: Socket,
    /// What was read of it already.
    pub(super) early: BytesMut,
    /// What it occupies elsewhere for as long as it lasts.
    pub(super) permit: Box<dyn Any + Send>,
}

/// What the worker is told.
pub(super) enum ToWorker {
    Arrived(Arrival),
    Count(oneshot::Sender<Counters>),
    Stop,
}

/// One endpoint's socket and what is known of it.
struct Place {
    socket: Socket,
    /// What has come and is not taken yet.
    input: BytesMut,
    /// What the machine said of it.
    next: ReadAction,
    is_server: bool,
    /// The machine is to look at the input again.
    is_offered: bool,
    is_readable: bool,
    /// The other side will send nothing more: it is read to the endpoint.
    is_ending: bool,
    is_writable: bool,
    /// It is in the list of those to be read, or to be written.
    is_listed: [bool; 3],
    _permit: Box<dyn Any + Send>,
}

const CLIENTS: usize = 0;
const SERVERS: usize = 1;
const TO_WRITE: usize = 2;

/// Returns a chunk to read into: the oldest of those before it if its frames have all left, since its memory is at hand.
fn chunk(spent: &mut VecDeque<BytesMut>, newest: BytesMut) -> BytesMut {
    spent.push_back(newest);
    if let Some(mut oldest) = spent.pop_front() {
        oldest.clear();
        if oldest.try_reclaim(CHUNK) {
            oldest.resize(CHUNK, 0);
            return oldest;
        }
        if spent.len() < SPENT {
            spent.push_back(oldest);
        }
    }
    BytesMut::zeroed(CHUNK)
}

pub(super) struct Worker {
    router: Router,
    poll: Poll,
    queue: Receiver<ToWorker>,
    /// By key.
    places: Vec<Option<Place>>,
    /// Clients and servers to be read, and those to be written.
    lists: [VecDeque<EndpointKey>; 3],
    /// Bytes read in this turn.
    read: usize,
    /// What is read into, initialised, and what is left of chunks before it.
    scratch: BytesMut,
    spent: VecDeque<BytesMut>,
    one_write_per_frame: bool,
}

impl Worker {
    /// Makes a worker and the bell that wakes it.
    pub(super) fn new(
        config: &Config,
        rng: ChaCha20Rng,
        queue: Receiver<ToWorker>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let bell = Waker::new(poll.registry(), BELL)?;
        let worker = Self {
            router: Router::new(config.rules.clone(), rng),
            poll,
            queue,
            places: Vec::new(),
            lists: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            read: 0,
            scratch: BytesMut::new(),
            spent: VecDeque::new(),
            one_write_per_frame: config.one_write_per_frame,
        };
        Ok((worker, bell))
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let idle = self.lists.iter().all(VecDeque::is_empty);
            let wait = if idle {
                self.router.poll_timeout().map(|at| at.saturating_duration_since(time::now().mono))
            } else {
                Some(std::time::Duration::ZERO)
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = time::now();
            for event in &events {
                if event.token() == BELL {
                    if !self.hear(now) {
                        return Ok(());
                    }
                } else {
                    self.note(now, event);
                }
            }
            for (list, most) in [(SERVERS, usize::MAX), (CLIENTS, CLIENT_BYTES)] {
                self.read = 0;
                for _ in 0..self.lists[list].len() {
                    if self.read >= most {
                        break;
                    }
                    if let Some(key) = self.next_listed(list) {
                        self.read(now, key);
                    }
                }
            }
            if self.router.poll_timeout().is_some_and(|at| at <= now.mono) {
                self.router.handle_timeout(now);
                self.carry_out();
            }
            for _ in 0..self.lists[TO_WRITE].len() {
                if let Some(key) = self.next_listed(TO_WRITE) {
                    self.write(now, key);
                }
            }
        }
    }

    /// Takes what was told; `false` when it is over.
    fn hear(&mut self, now: Now) -> bool {
        loop {
            match self.queue.try_recv() {
                Ok(ToWorker::Arrived(arrival)) => self.arrive(now, arrival),
                // Whoever asked may have gone.
                Ok(ToWorker::Count(reply)) => drop(reply.send(self.router.counters())),
                Err(TryRecvError::Empty) => return true,
                Ok(ToWorker::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn arrive(&mut self, now: Now, arrival: Arrival) {
        let Arrival { who, mut socket, early, permit } = arrival;
        let key = match who {
            Who::Client { ip } => self.router.add_client(now, ip),
            Who::Server { id, credit, duplicates } => {
                match self.router.add_server(now, id, credit, duplicates) {
                    Ok(key) => key,
                    Err(_) => {
                        sampled!(info, now.mono, id, "a gateway server was refused: its id is taken");
                        return;
                    }
                }
            }
        };
        // A server that this one replaces goes first: its key may be this one's by now.
        self.carry_out();
        if let Err(error) = socket.register(self.poll.registry(), Token(key.0)) {
            sampled!(warn, now.mono, %error, "a gateway connection cannot be watched");
            self.router.handle_disconnected(now, key);
            return self.carry_out();
        }
        if self.places.len() <= key.0 {
            self.places.resize_with(key.0 + 1, || None);
        }
        self.places[key.0] = Some(Place {
            socket,
            input: early,
            next: ReadAction::Read { missing: 0, only: false },
            is_server: !matches!(who, Who::Client { .. }),
            is_offered: true,
            is_readable: true,
            is_ending: false,
            is_writable: true,
            is_listed: [false; 3],
            _permit: permit,
        });
        self.list_to_read(key);
    }

    fn note(&mut self, now: Now, event: &mio::event::Event) {
        let key = EndpointKey(event.token().0);
        let Some(Some(place)) = self.places.get_mut(key.0) else { return };
        if event.is_error() {
            return self.gone(now, key);
        }
        if event.is_readable() || event.is_read_closed() || event.is_write_closed() {
            place.is_readable = true;
            // What was sent before the endpoint is still to be read.
            place.is_ending |= event.is_read_closed() || event.is_write_closed();
            self.list_to_read(key);
        }
        if event.is_writable() {
            if let Some(Some(place)) = self.places.get_mut(key.0) {
                place.is_writable = true;
            }
            self.list(TO_WRITE, key);
        }
    }

    /// Puts an endpoint on a list, once.
    fn list(&mut self, list: usize, key: EndpointKey) {
        if let Some(Some(place)) = self.places.get_mut(key.0)
            && !std::mem::replace(&mut place.is_listed[list], true)
        {
            self.lists[list].push_back(key);
        }
    }

    fn list_to_read(&mut self, key: EndpointKey) {
        if let Some(Some(place)) = self.places.get(key.0) {
            self.list(if place.is_server { SERVERS } else { CLIENTS }, key);
        }
    }

    fn next_listed(&mut self, list: usize) -> Option<EndpointKey> {
        let key = self.lists[list].pop_front()?;
        // It may be another one's key by now, who is then looked at for nothing.
        self.places.get_mut(key.0)?.as_mut()?.is_listed[list] = false;
        Some(key)
    }

    /// Does what the machine says.
    fn carry_out(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Transmit(key) => self.list(TO_WRITE, key),
                Output::Resume(key) => {
                    if let Some(Some(place)) = self.places.get_mut(key.0) {
                        place.is_offered = true;
                    }
                    self.list_to_read(key);
                }
                Output::Close(key, why) => {
                    tracing::debug!(why = why.name(), "a gateway connection is dropped");
                    if let Some(place) = self.places.get_mut(key.0) {
                        *place = None;
                    }
                }
            }
        }
    }

    fn gone(&mut self, now: Now, key: EndpointKey) {
        if let Some(place) = self.places.get_mut(key.0) {
            *place = None;
        }
        self.router.handle_disconnected(now, key);
        self.carry_out();
    }

    /// Reads an endpoint until nothing is there, or it is another one's turn.
    fn read(&mut self, now: Now, key: EndpointKey) {
        for _ in 0..SERVER_READS {
            let Some(Some(place)) = self.places.get_mut(key.0) else { return };
            if std::mem::take(&mut place.is_offered) {
                place.next = self.router.handle_frames(now, key, &mut place.input);
                self.carry_out();
                continue;
            }
            let ReadAction::Read { missing, only } = place.next else { return };
            if !place.is_readable {
                return;
            }
            let is_server = place.is_server;
            match self.read_once(now, key, missing, only) {
                Ok(()) if is_server => {}
                Ok(()) => break,
                Err(_) => return self.gone(now, key),
            }
        }
        let Some(Some(place)) = self.places.get(key.0) else { return };
        if place.is_offered || (place.is_readable && matches!(place.next, ReadAction::Read { .. })) {
            self.list_to_read(key);
        }
    }

    /// Reads once: first what is missing of a frame, behind its beginning, then into common room.
    fn read_once(&mut self, now: Now, key: EndpointKey, missing: usize, only: bool) -> io::Result<()> {
        let Some(Some(place)) = self.places.get_mut(key.0) else { return Ok(()) };
        if self.scratch.len() < LEAST_ROOM {
            let spent = std::mem::take(&mut self.scratch);
            self.scratch = chunk(&mut self.spent, spent);
        }
        // A length is only a claim: room grows with what has really come.
        let begun = place.input.len();
        let room = missing.min(begun.max(SHORT));
        if begun > 0 {
            place.input.resize(begun + room, 0);
        }
        let own = &mut place.input[begun..];
        let common = match only {
            true if begun == 0 => missing.clamp(1, self.scratch.len()),
            true => 0,
            false if room < missing => 0,
            false => self.scratch.len(),
        };
        let offered = own.len() + common;
        let read =
            place.socket.read(&mut [IoSliceMut::new(own), IoSliceMut::new(&mut self.scratch[..common])]);
        let own = own.len();
        let count = match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) => {
                place.input.truncate(begun);
                let again = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                place.is_readable &= error.kind() == io::ErrorKind::Interrupted;
                return if again { Ok(()) } else { Err(error) };
            }
        };
        self.read += count;
        // A short read has emptied the socket; what comes next, the endpoint excepted, is announced.
        place.is_readable = count == offered || place.is_ending;
        place.input.truncate(begun + count.min(own));
        let mut piece = self.scratch.split_to(count.saturating_sub(own));
        if !place.input.is_empty() {
            place.next = self.router.handle_frames(now, key, &mut place.input);
        }
        if !piece.is_empty() {
            if place.input.is_empty() && matches!(place.next, ReadAction::Read { .. }) {
                place.next = self.router.handle_frames(now, key, &mut piece);
                // A short rest would hold on to a whole chunk.
                place.input = if piece.len() < SHARED { BytesMut::from(&piece[..]) } else { piece };
            } else {
                place.input.extend_from_slice(&piece);
                place.is_offered |= matches!(place.next, ReadAction::Read { .. });
            }
        }
        if place.input.is_empty() {
            place.input = BytesMut::new();
        }
        self.carry_out();
        Ok(())
    }

    /// Writes what waits for an endpoint, until its system takes no more or it is another one's turn.
    fn write(&mut self, now: Now, key: EndpointKey) {
        let mut written = 0;
        loop {
            let Some(Some(place)) = self.places.get_mut(key.0) else { return };
            if !place.is_writable {
                return;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
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
            match place.socket.write(&slices[..count]) {
                Ok(count) => {
                    place.is_writable = count == offered;
                    written += count;
                    self.router.handle_written(now, key, count);
                    self.carry_out();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => place.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.gone(now, key),
            }
            if written >= WRITES {
                return self.list(TO_WRITE, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_used_again_when_its_frames_have_left_and_never_before() {
        let mut spent = VecDeque::new();
        let mut scratch = chunk(&mut spent, BytesMut::new());
        let mut waiting = VecDeque::new();
        let mut places = std::collections::HashSet::new();
        for turn in 0..200_u8 {
            let mut frame = scratch.split_to(60_000);
            places.insert(frame.as_ptr());
            frame.fill(turn);
            waiting.push_back((turn, frame));
            if waiting.len() > 3 {
                let (turn, frame) = waiting.pop_front().unwrap();
                assert!(frame.iter().all(|byte| *byte == turn), "nobody has written over it");
            }
            scratch = chunk(&mut spent, scratch);
            assert_eq!(scratch.len(), CHUNK);
        }
        assert!(places.len() < 40 && spent.len() <= SPENT, "{} chunks for 200 reads", places.len());
    }
}
