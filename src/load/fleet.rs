//! All sockets of a load on one thread: clients with their machines, peers, and bare sockets.

use super::client::{CHANNEL, Client, Event, Login};
use super::error::LoadError;
use super::packets::Packets;
use super::socket::{Batch, Door, ENDS, Route, Run, Segmentation};
use super::target::{Target, Transport};
use crate::clock::Deadlines;
use crate::net::time;
use crate::stun::{Builder, Class, Message, Method, TransactionId, attr};
use crate::turn_server::wire::{self, FrameHeader};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Readiness events taken at a time.
const EVENTS: usize = 1024;
/// The longest wait for answers between looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long giving so many allocations back may take in the end.
const GOODBYE: Duration = Duration::from_secs(3);
const RELEASED_TOGETHER: usize = 2048;

/// What becomes of a payload: it is taken or, with `true`, sent back.
pub(super) type Sink<'a> = &'a mut dyn FnMut(usize, Instant, &[u8]) -> bool;

/// One end of a flow.
#[derive(Debug)]
struct Leg {
    door: usize,
    route: Route,
    client: Option<Box<Client>>,
    /// What stands in front of each payload, and zero bytes behind it.
    head: Vec<u8>,
    padding: usize,
}

#[derive(Debug)]
struct Berth {
    door: Door,
    /// The legs behind it, by the numbers of their ends.
    legs: Vec<usize>,
    /// Whether more may be waiting than its last call has taken.
    is_ready: bool,
}

/// Which legs have sockets of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// All.
    Never,
    /// None, where the server is reached by IPv4 loopback.
    OnLoopback,
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
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|at| time::mono() >= at)
    }
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Fleet {
    target: Target,
    poll: Poll,
    events: Events,
    batch: Batch,
    echo: Packets,
    told: Vec<usize>,
    berths: Vec<Berth>,
    legs: Vec<Leg>,
    /// The shared sockets that still have room, for clients and for peers.
    open: [Option<usize>; 2],
    shares: bool,
    ready: VecDeque<usize>,
    deadlines: Deadlines<usize>,
    news: VecDeque<(usize, Event)>,
    pub(super) segmentation: Segmentation,
}

impl Fleet {
    pub(super) fn new(target: Target, sharing: Sharing, segmentation: bool) -> io::Result<Self> {
        let is_near = target.address().is_ipv4() && target.address().ip().is_loopback();
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            batch: Batch::default(),
            echo: Packets::default(),
            told: Vec::new(),
            berths: Vec::new(),
            legs: Vec::new(),
            open: [None; 2],
            shares: sharing == Sharing::OnLoopback && is_near && target.transport() == Transport::Udp,
            ready: VecDeque::new(),
            deadlines: Deadlines::default(),
            news: VecDeque::new(),
            segmentation: Segmentation(segmentation),
        })
    }

    /// Opens a way to the server, with a client behind it or none.
    pub(super) fn open(&mut self, client: Option<(Login, u64)>) -> Result<usize, LoadError> {
        let shared = self.open[0].filter(|_| self.shares);
        let door = match shared {
            Some(door) => door,
            None => {
                let opened = if self.shares { Door::shared(true) } else { Door::to(self.target) };
                self.dock(opened)?
            }
        };
        let to = self.shares.then(|| self.target.address());
        let leg = self.board(door, to);
        self.open[0] = Some(door).filter(|door| self.berths[*door].legs.len() < ENDS);
        self.legs[leg].client = client.map(|(login, salt)| Box::new(Client::new(login, salt)));
        Ok(leg)
    }

    /// Opens the way of a peer, on the address that clients have.
    pub(super) fn open_peer(&mut self) -> Result<(usize, SocketAddr), LoadError> {
        let shared = self.open[1].filter(|_| self.shares);
        let door = match shared {
            Some(door) => door,
            None => {
                let ip = match self.berths.first() {
                    Some(first) => first.door.local_addr(0)?.ip(),
                    None => return Err(io::Error::from(io::ErrorKind::NotConnected).into()),
                };
                let opened = if self.shares { Door::shared(false) } else { Door::peer(ip) };
                self.dock(opened)?
            }
        };
        let leg = self.board(door, None);
        self.open[1] = Some(door).filter(|door| self.berths[*door].legs.len() < ENDS);
        Ok((leg, self.berths[door].door.local_addr(self.legs[leg].route.end)?))
    }

    /// Takes a new socket in.
    fn dock(&mut self, door: io::Result<Door>) -> Result<usize, LoadError> {
        let failed = |error| LoadError::connecting(self.target, self.berths.len(), error);
        let door = door.map_err(failed)?;
        let number = self.berths.len();
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        let interest = if matches!(door, Door::Stream(_)) { interest } else { Interest::READABLE };
        self.poll.registry().register(&mut SourceFd(&door.descriptor()), Token(number), interest)?;
        self.berths.push(Berth { door, legs: Vec::new(), is_ready: false });
        Ok(number)
    }

    /// Takes a new leg in, behind a socket.
    fn board(&mut self, door: usize, to: Option<SocketAddr>) -> usize {
        let number = self.legs.len();
        let route = Route { end: self.berths[door].legs.len(), to };
        self.berths[door].legs.push(number);
        self.legs.push(Leg { door, route, client: None, head: Vec::new(), padding: 0 });
        number
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
        self.legs[leg].route.to = Some(to);
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
            leg.head = FrameHeader::channel_data(CHANNEL, size).as_bytes().to_vec();
        }
        leg.padding = if indications || is_stream { padded } else { 0 };
    }

    /// Sends packets; returns how many the kernel took.
    pub(super) fn send(&mut self, packets: &Packets) -> Result<u64, LoadError> {
        let mut taken = 0;
        for (leg, run) in packets.runs() {
            let Leg { door, route, .. } = &self.legs[leg];
            let sent = self.berths[*door].door.send(*route, run, &mut self.segmentation);
            taken += sent.map_err(|error| self.broken(leg, error))? as u64;
        }
        Ok(taken)
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
                let now = time::mono();
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
                    done(time::mono() - began);
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

    /// Waits until `until` or another wish, and keeps what there is alive.
    pub(super) fn hold(&mut self, until: Until<'_>, or: Option<&AtomicBool>) -> Result<(), LoadError> {
        while !until.is_over() && !or.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
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
        for some in legs.chunks(RELEASED_TOGETHER) {
            let until = Until { stop: &stop, deadline: Some(time::mono() + GOODBYE) };
            if self.settle(some, 64, until, |_, client, now| client.release(now), |_| {}).is_err() {
                return;
            }
        }
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
        let mut failed = None;
        for event in &self.events {
            let Token(number) = event.token();
            let Berth { door, is_ready, legs } = &mut self.berths[number];
            if (event.is_readable() || event.is_error()) && !*is_ready {
                *is_ready = true;
                self.ready.push_back(number);
            }
            if event.is_writable()
                && let Err(error) = door.flush()
            {
                failed = Some((legs[0], error));
            }
        }
        if let Some((leg, error)) = failed {
            return Err(self.broken(leg, error));
        }
        for _ in 0..self.ready.len() {
            let Some(door) = self.ready.pop_front() else { break };
            self.read(door, &mut *sink)?;
        }
        if self.deadlines.next().is_some() {
            let now = time::mono();
            while let Some(leg) = self.deadlines.pop_due(now) {
                if let Some(client) = &mut self.legs[leg].client {
                    client.handle_timeout(now);
                }
                self.attend(leg)?;
            }
        }
        Ok(())
    }

    /// Receives once from a socket, and again in the next turn if there may be more.
    fn read(&mut self, number: usize, sink: Sink<'_>) -> Result<(), LoadError> {
        let Berth { door, legs: behind, is_ready } = &mut self.berths[number];
        let (echo, told, legs) = (&mut self.echo, &mut self.told, &mut self.legs);
        echo.clear();
        told.clear();
        let received = door.receive(&mut self.batch, |now, end, frame| {
            let Some(&leg) = behind.get(end) else { return };
            let Leg { client, head, padding, .. } = &mut legs[leg];
            let payload = match client {
                None => Some(frame),
                Some(client) => unwrap(client, now, frame, || told.push(leg)),
            };
            if let Some(payload) = payload
                && sink(leg, now, payload)
            {
                echo.push(leg, [head, payload], *padding);
            }
        });
        let first = behind[0];
        match received {
            Ok(drained) => *is_ready = !drained,
            Err(error) => return Err(self.broken(first, error)),
        }
        if *is_ready {
            self.ready.push_back(number);
        }
        let echo = std::mem::take(&mut self.echo);
        self.send(&echo)?;
        self.echo = echo;
        for at in 0..self.told.len() {
            self.attend(self.told[at])?;
        }
        Ok(())
    }

    /// Does what a client wants done.
    fn attend(&mut self, number: usize) -> Result<(), LoadError> {
        let Leg { door, route, client: Some(client), .. } = &mut self.legs[number] else { return Ok(()) };
        while let Some(event) = client.poll_event() {
            self.news.push_back((number, event));
        }
        let mut outcome = Ok(0);
        while let Some(bytes) = client.poll_transmit() {
            let run = Run { bytes: &bytes, stride: bytes.len() };
            // What does not leave now the client will ask again.
            outcome = self.berths[*door].door.send(*route, run, &mut self.segmentation);
        }
        match client.poll_timeout() {
            Some(at) => self.deadlines.set(number, at),
            None => self.deadlines.clear(number),
        }
        outcome.map(drop).map_err(|error| self.broken(number, error))
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

/// Returns the payload that a client was sent; what is not one is the client's, and `was_told` then.
fn unwrap<'a>(
    client: &mut Client,
    now: Instant,
    frame: &'a [u8],
    was_told: impl FnOnce(),
) -> Option<&'a [u8]> {
    if frame.first().is_some_and(|first| first & 0xC0 == 0x40) {
        return wire::parse_channel_data(frame).map(|(_, payload)| payload);
    }
    let message = Message::parse(frame).ok()?;
    if (message.class(), message.method()) == (Class::Indication, Method::DATA) {
        return message.unverified().get(attr::DATA);
    }
    client.handle(now, &message);
    was_told();
    None
}
