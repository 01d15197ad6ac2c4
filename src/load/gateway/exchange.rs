//! All connections of a load and what goes through them.

use super::ends::{Change, End, Ends, Size};
use super::ledger::{Counts, Ledger, Room, Wait};
use super::link::Link;
use super::message::{Heard, Mold, Stamp};
use super::{Between, Door, GatewayLoad, Way};
use crate::gateway::token::GatewayToken;
use crate::gateway::wire::Command;
use crate::net::time;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const EVENTS: usize = 1024;
/// Bytes read with one call, and how many calls a connection has before others have their turn.
const READ: usize = 256 * 1024;
const READS: usize = 4;
/// Bytes written with one call, more by the last message.
const WRITE: usize = 64 * 1024;
/// What is sent through a virtual connection to a client that does not read, before its sender gives up: more than a queue.
const DEAF: u32 = 2 * 1024 * 1024;

/// Virtual connections and connections that are gone before their time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gone {
    /// Dials that came to nothing.
    pub(super) refused: u64,
    pub(super) closed: u64,
    pub(super) closed_deaf: u64,
    pub(super) dropped: u64,
    pub(super) dropped_deaf: u64,
}

/// Connections and their messages.
#[derive(Debug)]
pub(super) struct Exchange {
    size: Size,
    pub(super) ends: Ends,
    pub(super) ledger: Ledger,
    mold: Mold,
    poll: Poll,
    events: Events,
    /// Servers, then clients.
    links: Vec<Link>,
    /// Of each flow: whether it stands in its link's `ready`.
    queued: Vec<bool>,
    /// Links whose turn to write comes: clients, and servers, of whom each speaks for many.
    turns: [VecDeque<u32>; 2],
    /// Bytes that either have begun to send, so that both directions have the same.
    begun: [u64; 2],
    /// Links with commands to send.
    commanded: Vec<u32>,
    /// Links that have more to read.
    unread: Vec<u32>,
    /// What one read has told: flows that may go on, and commands to send.
    woken: Vec<u32>,
    room: Box<[u8]>,
    scratch: Vec<u8>,
    gone: Gone,
    is_sending: bool,
    began: Instant,
}

impl Exchange {
    pub(super) fn new(what: &GatewayLoad) -> io::Result<Self> {
        let size = what.size();
        let (first_id, has_credit) = match &what.between {
            Between::Gateway { first_id, door, .. } => (*first_id, *door == Door::Hmac),
            Between::Proxy(_) => (1, false),
        };
        let mut ends = Ends::new(size, first_id, has_credit);
        if matches!(what.between, Between::Proxy(_)) {
            ends.open_all();
        }
        let messages = what.messages.unwrap_or(u64::MAX);
        let room = Room { flow: what.window, deaf: DEAF, all: what.in_flight, messages };
        Ok(Self {
            size,
            ends,
            ledger: Ledger::new(what.sizes.clone(), room, (size.clients, size.each), what.deaf),
            mold: Mold::new(ChaCha20Rng::from_os_rng().random()),
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            links: Vec::new(),
            queued: vec![false; 2 * size.virtual_connections()],
            turns: [VecDeque::new(), VecDeque::new()],
            begun: [0; 2],
            commanded: Vec::new(),
            unread: Vec::new(),
            woken: Vec::new(),
            room: vec![0; READ].into(),
            scratch: Vec::new(),
            gone: Gone::default(),
            is_sending: false,
            began: time::mono(),
        })
    }

    /// Takes a server that is known to the gateway; they come before all clients.
    pub(super) fn add_server(&mut self, socket: TcpStream) -> io::Result<()> {
        let place = self.links.len();
        self.add(place, socket)
    }

    /// Takes a client, which asks for its virtual connections.
    pub(super) fn add_client(
        &mut self,
        number: usize,
        socket: TcpStream,
        token: Option<&GatewayToken>,
    ) -> io::Result<()> {
        let place = self.size.servers + number;
        self.add(place, socket)?;
        if let Some(token) = token {
            self.say(place, Command::Token(&token.0));
        }
        (0..self.size.each).for_each(|_| self.say(place, Command::New));
        Ok(())
    }

    /// Takes a client and the server that a proxy has connected it to.
    pub(super) fn pair(&mut self, client: TcpStream, server: TcpStream) -> io::Result<()> {
        // Pairs come one after the other, places are servers first: the links are put in order when all are there.
        for socket in [server, client] {
            socket.set_nonblocking(true)?;
            self.links.push(Link::new(socket));
        }
        if self.links.len() < 2 * self.size.clients {
            return Ok(());
        }
        let pairs = std::mem::take(&mut self.links).into_iter().enumerate();
        let (servers, clients): (Vec<_>, Vec<_>) = pairs.partition(|(place, _)| place % 2 == 0);
        for (place, (_, link)) in servers.into_iter().chain(clients).enumerate() {
            self.register(place, &link)?;
            self.links.push(link);
        }
        Ok(())
    }

    fn add(&mut self, place: usize, socket: TcpStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let link = Link::new(socket);
        self.register(place, &link)?;
        self.links.push(link);
        Ok(())
    }

    fn register(&self, place: usize, link: &Link) -> io::Result<()> {
        let Some(descriptor) = link.socket().map(AsRawFd::as_raw_fd) else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(place), interest)
    }

    /// Lets all send, and some read no more.
    pub(super) fn start(&mut self, what: &GatewayLoad) {
        self.is_sending = true;
        for client in 0..self.size.clients {
            self.links[self.size.servers + client].is_deaf = self.ledger.is_deaf(client);
        }
        let flows = 0..self.queued.len() as u32;
        let is_used = |flow: &u32| match what.way {
            Way::Up => flow.is_multiple_of(2),
            Way::Down => flow % 2 == 1,
            Way::Both => true,
        };
        flows.filter(is_used).for_each(|flow| self.wake(flow));
    }

    /// Returns how many virtual connections and connections of those who read are gone.
    pub(super) fn gone(&self) -> u64 {
        self.gone.closed + self.gone.dropped
    }

    /// Counts what has not come, and returns all counts.
    pub(super) fn settle(&mut self) -> (Counts, Gone) {
        self.ledger.settle();
        self.gone.refused = self.ends.refused;
        (self.ledger.counts, self.gone)
    }

    /// Receives and sends what there is, waiting for it as long as this at most.
    pub(super) fn pump(&mut self, wait: Duration) -> io::Result<()> {
        let is_busy = !self.unread.is_empty()
            || (self.turns.iter().any(|turns| !turns.is_empty()) && !self.ledger.is_full());
        let wait = if is_busy { Duration::ZERO } else { wait };
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(wait));
        for place in std::mem::take(&mut self.unread) {
            self.receive(place as usize);
        }
        events.iter().for_each(|event| self.happened(event));
        self.events = events;
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for place in std::mem::take(&mut self.commanded) {
            self.flush(place as usize);
        }
        self.send();
        Ok(())
    }

    fn happened(&mut self, event: &Event) {
        let place = event.token().0;
        if event.is_writable() {
            self.links[place].is_blocked = false;
            self.take_turn(place);
        }
        if event.is_error() || event.is_write_closed() {
            self.drop_link(place);
        } else if event.is_readable() {
            self.receive(place);
        }
    }

    fn receive(&mut self, place: usize) {
        let end = self.end(place);
        for _ in 0..READS {
            let link = &mut self.links[place];
            if link.is_deaf {
                return;
            }
            let read = match link.read(&mut self.room) {
                Ok(Some(read)) => read,
                Ok(None) => return,
                Err(_) => return self.drop_link(place),
            };
            let now = self.began.elapsed_ns();
            let mut reader = std::mem::take(&mut link.reader);
            let mut desk = Desk { ends: &mut self.ends, ledger: &mut self.ledger, woken: &mut self.woken };
            let mut said = Vec::new();
            let mut closed = Vec::new();
            let heard = reader.read(&self.mold, &self.room[..read], &mut |heard| {
                let (change, answer) = desk.hear(end, heard, now);
                said.extend(answer);
                closed.extend(change);
            });
            self.links[place].reader = reader;
            said.into_iter().for_each(|command| self.say(place, command));
            closed.into_iter().for_each(|number| self.count_closed(number));
            while let Some(flow) = self.woken.pop() {
                self.wake(flow);
            }
            if heard.is_err() {
                return self.drop_link(place);
            }
        }
        self.unread.push(place as u32);
    }

    fn end(&self, place: usize) -> End {
        match place.checked_sub(self.size.servers) {
            Some(client) => End::Client(client),
            None => End::Server(place),
        }
    }

    fn say(&mut self, place: usize, command: Command<'_>) {
        let link = &mut self.links[place];
        if link.commands.is_empty() {
            self.commanded.push(place as u32);
        }
        command.emit(&mut link.commands);
    }

    fn count_closed(&mut self, number: u32) {
        match self.ledger.is_deaf(self.ends.client_of(number)) {
            true => self.gone.closed_deaf += 1,
            false => self.gone.closed += 1,
        }
        self.ledger.close(number);
    }

    fn drop_link(&mut self, place: usize) {
        if !self.links[place].is_open() {
            return;
        }
        self.links[place].close();
        let end = self.end(place);
        match end {
            End::Client(client) if self.ledger.is_deaf(client) => self.gone.dropped_deaf += 1,
            _ => self.gone.dropped += 1,
        }
        self.ends.gone(end).into_iter().for_each(|number| self.count_closed(number));
    }

    /// Lets a flow send when its link's turn comes.
    fn wake(&mut self, flow: u32) {
        if !self.is_sending || self.queued[flow as usize] {
            return;
        }
        let place = match flow % 2 {
            0 => self.size.servers + self.ends.client_of(flow / 2),
            _ => self.ends.server_of(flow / 2),
        };
        if self.links[place].is_open() {
            self.queued[flow as usize] = true;
            let is_unheard = self.ledger.is_unheard(flow);
            self.links[place].make_ready(flow, is_unheard);
            self.take_turn(place);
        }
    }

    fn take_turn(&mut self, place: usize) {
        let link = &mut self.links[place];
        if !link.is_queued && !link.is_blocked && (link.has_tail() || link.is_ready()) {
            link.is_queued = true;
            self.turns[usize::from(place < self.size.servers)].push_back(place as u32);
        }
    }

    /// Sends commands, which wait for no window.
    fn flush(&mut self, place: usize) {
        let link = &mut self.links[place];
        let commands = std::mem::take(&mut link.commands);
        if link.write(&commands).is_err() {
            self.drop_link(place);
        }
    }

    /// Gives as many turns to write as there are who wait for one.
    fn send(&mut self) {
        for _ in 0..self.turns.iter().map(VecDeque::len).sum() {
            let side = usize::from(self.begun[1] < self.begun[0]);
            let side = if self.turns[side].is_empty() { 1 - side } else { side };
            let Some(place) = self.turns[side].pop_front() else { return };
            let link = &mut self.links[place as usize];
            if link.is_blocked || !link.is_open() {
                link.is_queued = false;
                continue;
            }
            let ready = link.write_tail();
            let filled = if matches!(ready, Ok(true)) { self.fill(place as usize) } else { Ok(()) };
            let link = &mut self.links[place as usize];
            let written = match ready {
                Ok(true) => link.write(&self.scratch),
                other => other.map(drop),
            };
            link.is_queued = false;
            if written.is_err() {
                self.drop_link(place as usize);
            } else if filled == Err(Wait::All) {
                link.is_queued = true;
                self.turns[side].push_front(place);
                return;
            } else {
                self.take_turn(place as usize);
            }
        }
    }

    /// Puts the next messages of a link into `scratch`.
    fn fill(&mut self, place: usize) -> Result<(), Wait> {
        self.scratch.clear();
        let at = self.began.elapsed_ns();
        let link = &mut self.links[place];
        while self.scratch.len() < WRITE {
            let Some(flow) = link.next_ready() else { return Ok(()) };
            let number = flow / 2;
            let is_down = flow % 2 == 1;
            if is_down && !self.ends.may_send(number) {
                self.queued[flow as usize] = false;
                continue;
            }
            match self.ledger.begin(flow) {
                Ok((nth, len)) => {
                    self.mold.emit(
                        self.ends.conn(number),
                        Stamp { flow, number: nth, at },
                        len,
                        &mut self.scratch,
                    );
                    self.begun[usize::from(is_down)] += u64::from(len);
                    if is_down {
                        self.ends.spend(number, len);
                    }
                    link.make_ready(flow, self.ledger.is_unheard(flow));
                }
                Err(Wait::All) => {
                    link.put_back(flow);
                    return Err(Wait::All);
                }
                Err(Wait::Flow | Wait::Over) => self.queued[flow as usize] = false,
            }
        }
        Ok(())
    }
}

/// Those who are told of what comes.
struct Desk<'a> {
    ends: &'a mut Ends,
    ledger: &'a mut Ledger,
    woken: &'a mut Vec<u32>,
}

impl Desk<'_> {
    /// Returns the virtual connection that was closed, and what is said to the gateway.
    fn hear(&mut self, end: End, heard: Heard<'_>, now: u64) -> (Option<u32>, Option<Command<'static>>) {
        let (conn, stamp, len, is_whole) = match heard {
            Heard::Command(command) => {
                let (change, said) = self.ends.hear(end, command);
                let closed = match change {
                    Some(Change::Closed(number)) => Some(number),
                    Some(Change::Credit(number)) => {
                        self.woken.push(2 * number + 1);
                        None
                    }
                    Some(Change::Up(_)) | None => None,
                };
                return (closed, said);
            }
            Heard::Message { conn, stamp, len, is_whole } => (conn, stamp, len, is_whole),
        };
        // Who hears is at the other end of who has sent.
        let from = u32::from(matches!(end, End::Client(_)));
        let number = stamp.map(|stamp| stamp.flow / 2).filter(|number| self.ends.is_of(*number, conn, end));
        let Some(number) = number else {
            self.ledger.counts.misdelivered += 1;
            return (None, None);
        };
        let flow = 2 * number + from;
        self.ledger.arrived(flow, stamp, (len, is_whole), now);
        self.woken.push(flow);
        (None, if from == 0 { self.ends.taken(number, len) } else { None })
    }
}

trait Elapsed {
    fn elapsed_ns(&self) -> u64;
}

impl Elapsed for Instant {
    fn elapsed_ns(&self) -> u64 {
        u64::try_from((time::mono() - *self).as_nanos()).unwrap_or(u64::MAX)
    }
}
