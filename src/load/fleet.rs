//! All sockets of a load on one thread: clients with their machines, peers, and bare sockets.

use super::client::{CHANNEL, Client, Event, Login};
use super::error::LoadError;
use super::socket::{Batch, Door, Run, Segmentation};
use super::target::{Target, Transport};
use crate::clock::Deadlines;
use crate::net::time;
use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
use crate::turn_server::wire::{self, Header};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Readiness events taken at a time.
const EVENTS: usize = 1024;
/// The longest wait for answers between looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long giving allocations back may take in the end.
const GOODBYE: Duration = Duration::from_secs(3);

/// What becomes of a payload: it is taken or, with `true`, sent back.
pub(super) type Sink<'a> = &'a mut dyn FnMut(usize, Instant, &[u8]) -> bool;

#[derive(Debug)]
struct Leg {
    door: Door,
    client: Option<Client>,
    /// Where it sends to, unless it is connected.
    to: Option<SocketAddr>,
    /// What stands in front of each payload, and zero bytes behind it.
    head: Vec<u8>,
    padding: usize,
    /// Whether more may be waiting than its last call has taken.
    is_ready: bool,
}

/// When to stop waiting for answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until<'a> {
    /// The user's wish.
    pub(super) stop: &'a AtomicBool,
    /// The end of patience.
    pub(super) deadline: Option<Instant>,
}

impl Until<'_> {
    fn is_over(self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|at| time::now().mono >= at)
    }
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Fleet {
    target: Target,
    poll: Poll,
    events: Events,
    batch: Batch,
    echo: Run,
    legs: Vec<Leg>,
    ready: VecDeque<usize>,
    deadlines: Deadlines<usize>,
    news: VecDeque<(usize, Event)>,
    pub(super) segmentation: Segmentation,
}

impl Fleet {
    pub(super) fn new(target: Target, segmentation: bool) -> io::Result<Self> {
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            batch: Batch::default(),
            echo: Run::default(),
            legs: Vec::new(),
            ready: VecDeque::new(),
            deadlines: Deadlines::default(),
            news: VecDeque::new(),
            segmentation: Segmentation(segmentation),
        })
    }

    /// Opens a socket to the server, with a client behind it or none.
    pub(super) fn open(&mut self, client: Option<(Login, u64)>) -> Result<usize, LoadError> {
        let failed = |error| LoadError::connecting(self.target, self.legs.len(), error);
        let door = Door::to(self.target).map_err(failed)?;
        let client = client.map(|(login, salt)| Client::new(login, salt));
        self.add(Leg { door, client, to: None, head: Vec::new(), padding: 0, is_ready: false })
    }

    /// Opens the socket of a peer.
    pub(super) fn open_peer(&mut self, ip: IpAddr) -> Result<(usize, SocketAddr), LoadError> {
        let failed = |error| LoadError::connecting(self.target, self.legs.len(), error);
        let (door, address) = Door::peer(ip).map_err(failed)?;
        let leg = Leg { door, client: None, to: None, head: Vec::new(), padding: 0, is_ready: false };
        Ok((self.add(leg)?, address))
    }

    fn add(&mut self, leg: Leg) -> Result<usize, LoadError> {
        let number = self.legs.len();
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        self.poll.registry().register(&mut SourceFd(&leg.door.descriptor()), Token(number), interest)?;
        self.legs.push(leg);
        Ok(number)
    }

    /// Returns the local address that clients reach the server from.
    pub(super) fn local_ip(&self) -> io::Result<IpAddr> {
        let leg = self.legs.first().ok_or(io::ErrorKind::NotConnected)?;
        Ok(leg.door.local_addr()?.ip())
    }

    pub(super) fn relayed(&self, leg: usize) -> Option<SocketAddr> {
        self.legs[leg].client.as_ref()?.relayed()
    }

    pub(super) fn head(&self, leg: usize) -> (&[u8], usize) {
        let leg = &self.legs[leg];
        (&leg.head, leg.padding)
    }

    /// Sends bare payloads to `to` from now on.
    pub(super) fn aim(&mut self, leg: usize, to: SocketAddr) {
        self.legs[leg].to = Some(to);
    }

    /// Puts `head` in front of everything.
    pub(super) fn put_in_front(&mut self, leg: usize, head: Vec<u8>) {
        self.legs[leg].head = head;
    }

    /// Sends payloads of `size` bytes by the client's channel from now on, or by Send indications to `peer`.
    pub(super) fn wrap(&mut self, leg: usize, peer: SocketAddr, size: u16, indications: bool) {
        let is_stream = self.target.transport() == Transport::Tcp;
        let padded = usize::from(size).next_multiple_of(4) - usize::from(size);
        let leg = &mut self.legs[leg];
        if indications {
            let id = TransactionId::new([0x47; 12]);
            let head = Builder::new(Class::Indication, Method::SEND, id)
                .xor_address(attr::XOR_PEER_ADDRESS, peer)
                .attribute(attr::DATA, &vec![0; size.into()])
                .finish();
            leg.head = head[..head.len() - usize::from(size) - padded].to_vec();
        } else {
            leg.head = Header::channel_data(CHANNEL, size).as_bytes().to_vec();
        }
        leg.padding = if indications || is_stream { padded } else { 0 };
    }

    pub(super) fn send_run(&mut self, leg: usize, run: &Run) -> Result<usize, LoadError> {
        let Leg { door, to, .. } = &mut self.legs[leg];
        door.send_run(*to, run, &mut self.segmentation).map_err(|error| self.broken(leg, error))
    }

    /// Lets each of `legs` do one thing, at most `concurrency` at a time, until all have; tells `done` how long each took.
    pub(super) fn settle(
        &mut self,
        legs: &[usize],
        concurrency: usize,
        until: Until<'_>,
        mut begin: impl FnMut(usize, &mut Client, Instant),
        mut done: impl FnMut(Duration),
    ) -> Result<(), LoadError> {
        let mut waiting = legs.iter().copied();
        let mut busy: HashMap<usize, Instant> = HashMap::new();
        loop {
            while busy.len() < concurrency.max(1)
                && let Some(leg) = waiting.next()
            {
                let now = time::now().mono;
                if let Some(client) = &mut self.legs[leg].client {
                    begin(leg, client, now);
                    busy.insert(leg, now);
                    self.attend(leg)?;
                }
            }
            while let Some((leg, event)) = self.news.pop_front() {
                let began = busy.remove(&leg);
                if let Event::Failed(refusal) = event {
                    let number = legs.iter().position(|l| *l == leg).map_or(0, |at| at + 1);
                    return Err(LoadError::Refused { number, of: legs.len(), refusal });
                }
                if let Some(began) = began {
                    done(time::now().mono - began);
                }
            }
            if busy.is_empty() && waiting.len() == 0 {
                return Ok(());
            }
            if until.is_over() {
                return Err(LoadError::Interrupted);
            }
            if busy.len() >= concurrency.max(1) || waiting.len() == 0 {
                self.turn(LOOK, &mut |_, _, _| false)?;
            }
        }
    }

    /// Waits until `until`, and keeps what there is alive.
    pub(super) fn hold(&mut self, until: Until<'_>) -> Result<(), LoadError> {
        while !until.is_over() {
            self.turn(LOOK, &mut |_, _, _| false)?;
            self.check_news()?;
        }
        Ok(())
    }

    /// Gives all allocations back, as far as the server plays along.
    pub(super) fn release(&mut self) {
        let legs: Vec<usize> = (0..self.legs.len()).filter(|leg| self.relayed(*leg).is_some()).collect();
        self.news.clear();
        let stop = AtomicBool::new(false);
        let until = Until { stop: &stop, deadline: Some(time::now().mono + GOODBYE) };
        let _ = self.settle(&legs, 64, until, |_, client, now| client.release(now), |_| {});
    }

    /// Fails if a client has lost what it had.
    pub(super) fn check_news(&mut self) -> Result<(), LoadError> {
        while let Some((leg, event)) = self.news.pop_front() {
            if let Event::Failed(refusal) = event {
                return Err(LoadError::Refused { number: leg + 1, of: self.legs.len(), refusal });
            }
        }
        Ok(())
    }

    /// Waits at most `wait` for something to arrive, takes all that did, and lets clients do what is due.
    pub(super) fn turn(&mut self, wait: Duration, sink: Sink<'_>) -> Result<(), LoadError> {
        let wait = if self.ready.is_empty() { wait } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let mut writable = Vec::new();
        let is_stream = self.target.transport() == Transport::Tcp;
        for event in &self.events {
            let Token(leg) = event.token();
            if (event.is_readable() || event.is_error()) && !self.legs[leg].is_ready {
                self.legs[leg].is_ready = true;
                self.ready.push_back(leg);
            }
            if is_stream && event.is_writable() {
                writable.push(leg);
            }
        }
        for leg in writable {
            self.legs[leg].door.flush().map_err(|error| self.broken(leg, error))?;
        }
        for _ in 0..self.ready.len() {
            let Some(leg) = self.ready.pop_front() else { break };
            self.read(leg, &mut *sink)?;
        }
        if self.deadlines.next().is_some() {
            let now = time::now().mono;
            while let Some(leg) = self.deadlines.pop_due(now) {
                if let Some(client) = &mut self.legs[leg].client {
                    client.handle_timeout(now);
                }
                self.attend(leg)?;
            }
        }
        Ok(())
    }

    /// Receives once from a leg, and again in the next turn if there may be more.
    fn read(&mut self, number: usize, sink: Sink<'_>) -> Result<(), LoadError> {
        let Leg { door, client, head, padding, .. } = &mut self.legs[number];
        let echo = &mut self.echo;
        echo.clear();
        let mut was_told = false;
        let mut take = |now, payload: &[u8]| {
            if sink(number, now, payload) {
                echo.bytes.extend_from_slice(head);
                echo.bytes.extend_from_slice(payload);
                echo.bytes.resize(echo.bytes.len() + *padding, 0);
                echo.count += 1;
            }
        };
        let received = door.receive(&mut self.batch, |now, frame| match client {
            None => take(now, frame),
            Some(_) if frame.first().is_some_and(|first| first & 0xC0 == 0x40) => {
                if let Some((_, payload)) = wire::parse_channel_data(frame) {
                    take(now, payload);
                }
            }
            Some(client) => {
                let Ok(message) = Message::parse(frame) else { return };
                if (message.class(), message.method()) == (Class::Indication, Method::DATA) {
                    if let Some(payload) = message.unverified().get(attr::DATA) {
                        take(now, payload);
                    }
                } else {
                    client.handle(now, &message);
                    was_told = true;
                }
            }
        });
        let drained = received.map_err(|error| self.broken(number, error))?;
        self.legs[number].is_ready = !drained;
        if !drained {
            self.ready.push_back(number);
        }
        if self.echo.count > 0 {
            let Leg { door, to, .. } = &mut self.legs[number];
            let sent = door.send_run(*to, &self.echo, &mut self.segmentation);
            sent.map_err(|error| self.broken(number, error))?;
        }
        if was_told { self.attend(number) } else { Ok(()) }
    }

    /// Does what a client wants done.
    fn attend(&mut self, number: usize) -> Result<(), LoadError> {
        let Leg { door, client: Some(client), .. } = &mut self.legs[number] else { return Ok(()) };
        while let Some(event) = client.poll_event() {
            self.news.push_back((number, event));
        }
        let mut outcome = Ok(());
        while let Some(bytes) = client.poll_transmit() {
            outcome = door.send(&bytes);
        }
        match client.poll_timeout() {
            Some(at) => self.deadlines.set(number, at),
            None => self.deadlines.clear(number),
        }
        match outcome {
            // The client will ask again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map_err(|error| self.broken(number, error)),
        }
    }

    fn broken(&self, leg: usize, error: io::Error) -> LoadError {
        let (address, transport) = (self.target.address(), self.target.transport().name());
        let closed =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => LoadError::NobodyThere { address, transport },
            _ if closed.contains(&error.kind()) => {
                LoadError::Closed { address, number: leg + 1, of: self.legs.len() }
            }
            _ => error.into(),
        }
    }
}
