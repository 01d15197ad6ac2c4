//! The hands of the data plane: one thread per core that owns its sockets, its relay and its timers. Decides nothing.
//!
//! Run loop: wait for sockets or the relay's next deadline, read the clock once, take one batch from every socket that has
//! something, carry out what the relay says, begin again. A socket with more to give than one batch waits for its next turn, so
//! that no peer can starve the others.

use super::auth_hook::Lookups;
use super::inbox::{Inbox, ToWorker};
use super::legs::Legs;
use crate::clock::Now;
use crate::net::demux::{self, DatagramKind};
use crate::net::time;
use crate::net::udp::{Datagram, RecvBatch, Role, UdpPort};
use crate::signaling::{Door, Handle};
use crate::stun::Message;
use crate::stun_server;
use crate::turn_server::machine::{AllocationId, Output, Relay, ToClient, ToPeer};
use crate::turn_server::{FiveTuple, Transport};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::mpsc;

/// The inbox's token; doors and relay sockets count from zero.
const INBOX: Token = Token(usize::MAX);

/// Messages taken from the inbox before the sockets have their turn again.
const INBOX_TURN: usize = 128;

/// How one turn of a socket or the inbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
    /// The worker is to end.
    Stop,
}

/// One listening socket of a worker.
#[derive(Debug)]
pub(super) struct DoorSocket {
    pub(super) port: UdpPort,
    pub(super) door: Door,
}

/// What a worker begins with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) doors: Vec<DoorSocket>,
    pub(super) relay: Relay,
    pub(super) signaling: Handle,
    pub(super) lookups: Lookups,
    pub(super) dropped: Arc<AtomicU64>,
}

/// One worker thread's belongings.
#[derive(Debug)]
pub(super) struct Worker {
    poll: Poll,
    inbox: mpsc::Receiver<ToWorker>,
    legs: Legs,
    relay: Relay,
    relay_sockets: HashMap<AllocationId, UdpPort>,
    signaling: Handle,
    lookups: Lookups,
    ready: VecDeque<Token>,
    scratch: Vec<u8>,
}

impl Worker {
    /// Registers the doors; returns the worker and the way to reach it.
    pub(super) fn new(parts: Parts) -> io::Result<(Self, Inbox)> {
        let poll = Poll::new()?;
        for (index, door) in parts.doors.iter().enumerate() {
            watch(&poll, &door.port, Token(index))?;
        }
        let (inbox, receiver) = Inbox::new(mio::Waker::new(poll.registry(), INBOX)?);
        let worker = Self {
            poll,
            inbox: receiver,
            legs: Legs::new(parts.doors, parts.dropped),
            relay: parts.relay,
            relay_sockets: HashMap::new(),
            signaling: parts.signaling,
            lookups: parts.lookups,
            ready: VecDeque::new(),
            scratch: Vec::new(),
        };
        Ok((worker, inbox))
    }

    /// Runs until the inbox says stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut batch = RecvBatch::default();
        loop {
            let wait = match self.relay.poll_timeout() {
                _ if !self.ready.is_empty() => Some(std::time::Duration::ZERO),
                deadline => deadline.map(|at| at.saturating_duration_since(time::now().mono)),
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let now = time::now();
            for event in &events {
                if !self.ready.contains(&event.token()) {
                    self.ready.push_back(event.token());
                }
            }
            for _ in 0..self.ready.len() {
                let Some(token) = self.ready.pop_front() else { break };
                let turn = match token {
                    INBOX => self.take_inbox(now),
                    _ => self.take_batch(now, token, &mut batch),
                };
                match turn {
                    Turn::More => self.ready.push_back(token),
                    Turn::Empty => {}
                    Turn::Stop => return Ok(()),
                }
            }
            self.relay.handle_timeout(now);
            self.carry_out(now);
        }
    }

    /// Takes at most [`INBOX_TURN`] messages, so that streams that never pause do not keep datagrams waiting.
    fn take_inbox(&mut self, now: Now) -> Turn {
        for _ in 0..INBOX_TURN {
            let Ok(message) = self.inbox.try_recv() else { return Turn::Empty };
            match message {
                ToWorker::Opened { client, replies } => drop(self.legs.streams.insert(client, replies)),
                ToWorker::Frame { client, bytes } => self.hear_client(now, client, &bytes),
                ToWorker::Gone { client } => {
                    self.legs.streams.remove(&client);
                    self.relay.handle_client_gone(client);
                }
                ToWorker::LookedUp { question, answered } => {
                    self.relay.handle_lookup_done(now, &question, answered);
                }
                ToWorker::Stop => return Turn::Stop,
            }
            self.carry_out(now);
        }
        Turn::More
    }

    /// Takes one batch from a socket.
    fn take_batch(&mut self, now: Now, token: Token, batch: &mut RecvBatch) -> Turn {
        let door = token.0 < self.legs.doors.len();
        let received = if door {
            self.legs.doors[token.0].port.recv(batch)
        } else {
            match self.relay_sockets.get(&(token.0 - self.legs.doors.len())) {
                Some(socket) => socket.recv(batch),
                None => return Turn::Empty,
            }
        };
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Empty,
            Err(error) => {
                // A peer's ICMP error: the socket goes on for everybody else.
                tracing::debug!(%error, "receive");
                return Turn::More;
            }
        }
        for datagram in batch.datagrams() {
            if door {
                self.hear_door(now, token.0, datagram);
            } else {
                let id = token.0 - self.legs.doors.len();
                let forward = self.relay.handle_peer(now, id, datagram.from, datagram.payload);
                if let Some(forward) = forward {
                    self.pass_to_client(&forward);
                }
            }
            self.carry_out(now);
        }
        Turn::More
    }

    fn hear_door(&mut self, now: Now, index: usize, datagram: Datagram<'_>) {
        let DoorSocket { port, door } = &self.legs.doors[index];
        let local = port.local_addr();
        let server = SocketAddr::new(datagram.local_ip.unwrap_or(local.ip()), local.port());
        let tuple = FiveTuple { client: datagram.from, server, transport: Transport::Udp };
        match (demux::datagram(datagram.payload), *door) {
            (DatagramKind::Signaling, Door::Main)
                if self.relay.is_channel_data(now, tuple, datagram.payload) =>
            {
                self.hear_client(now, tuple, datagram.payload);
            }
            (DatagramKind::Signaling, door) => {
                if !self.signaling.datagram(door, datagram.from, datagram.local_ip, datagram.payload) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Stun, Door::Aux) => {
                let answer = Message::parse(datagram.payload)
                    .ok()
                    .and_then(|m| stun_server::answer(&m, datagram.from));
                if let Some(answer) = answer {
                    let source = datagram.local_ip.filter(|_| local.ip().is_unspecified());
                    self.legs.note_sent(port.send(datagram.from, source, &answer), datagram.from);
                }
            }
            (DatagramKind::Stun | DatagramKind::ChannelData, Door::Main) => {
                self.hear_client(now, tuple, datagram.payload);
            }
            _ => self.legs.note_dropped(),
        }
    }

    fn hear_client(&mut self, now: Now, client: FiveTuple, bytes: &[u8]) {
        let binding =
            Message::parse(bytes).ok().and_then(|message| stun_server::answer(&message, client.client));
        match binding {
            Some(answer) => self.legs.send(client, &answer),
            None => {
                if let Some(forward) = self.relay.handle_client(now, client, bytes) {
                    self.pass_to_peer(&forward);
                }
            }
        }
    }

    fn pass_to_peer(&self, forward: &ToPeer<'_>) {
        if let Some(socket) = self.relay_sockets.get(&forward.id) {
            self.legs.note_sent(socket.send(forward.peer, None, forward.payload), forward.peer);
        }
    }

    fn pass_to_client(&mut self, forward: &ToClient<'_>) {
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend_from_slice(forward.header.as_bytes());
        frame.extend_from_slice(forward.payload);
        frame.resize(frame.len() + forward.padding, 0);
        self.legs.send(forward.client, &frame);
        self.scratch = frame;
    }

    fn carry_out(&mut self, now: Now) {
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Reply { client, bytes, .. } => self.legs.send(client, &bytes),
                Output::OpenRelay { id, address } => {
                    let opened = self.open_relay(id, address);
                    if let Err(error) = &opened {
                        tracing::debug!(%error, "relay socket");
                    }
                    self.relay.handle_relay_opened(now, id, opened.is_ok());
                }
                Output::LookUp { question } => {
                    if !self.lookups.ask(Arc::clone(&question)) {
                        self.relay.handle_lookup_done(now, &question, false);
                    }
                }
                Output::CloseRelay { id } => drop(self.relay_sockets.remove(&id)),
            }
        }
    }

    fn open_relay(&mut self, id: AllocationId, address: SocketAddr) -> io::Result<()> {
        let socket = UdpPort::bind(address, Role::Single)?;
        watch(&self.poll, &socket, Token(self.legs.doors.len() + id))?;
        self.relay_sockets.insert(id, socket);
        Ok(())
    }
}

fn watch(poll: &Poll, port: &UdpPort, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&port.as_raw_fd()), token, Interest::READABLE)
}
