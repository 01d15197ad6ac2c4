//! Clients by UDP. On IPv4 loopback they share one socket, with an address of 127.0.0.0/8 each: a tag belongs to an address and a
//! port, and a process has far fewer descriptors than a server has tags.

use super::carrier::{Carrier, Ear, Sent};
use crate::load::error::LoadError;
use crate::load::socket::{Batch, Door, Route, Run, Segmentation};
use crate::load::target::Target;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

const EVENTS: usize = 256;
/// Receiving calls on one socket between two looks at what must be sent.
const ROUNDS: usize = 16;

pub(super) struct Datagrams {
    target: Target,
    poll: Poll,
    events: Events,
    batch: Batch,
    doors: Vec<Door>,
    /// Where all clients share the first door.
    shared_to: Option<SocketAddr>,
    /// Doors that may hold more than was taken.
    ready: Vec<usize>,
}

impl Datagrams {
    pub(super) fn new(target: Target, own_sockets: bool) -> io::Result<Self> {
        let address = target.address();
        let shared_to = (address.is_ipv4() && address.ip().is_loopback() && !own_sockets).then_some(address);
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            batch: Batch::default(),
            doors: Vec::new(),
            shared_to,
            ready: Vec::new(),
        })
    }
}

impl Carrier for Datagrams {
    fn open(&mut self) -> Result<(), LoadError> {
        if self.shared_to.is_some() && !self.doors.is_empty() {
            return Ok(());
        }
        let number = self.doors.len();
        // A socket that many share takes messages from both ports of the server; one that is connected, from the first alone.
        let opened = if self.shared_to.is_some() { Door::shared(true) } else { Door::to(self.target) };
        let door = opened.map_err(|source| LoadError::connecting(self.target, number, source))?;
        let (descriptor, token) = (door.descriptor(), Token(number));
        self.poll.registry().register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        self.doors.push(door);
        Ok(())
    }

    fn send(&mut self, client: usize, text: &str) -> Result<Sent, LoadError> {
        let (door, end) = if self.shared_to.is_some() { (0, client) } else { (client, 0) };
        let run = Run { bytes: text.as_bytes(), stride: text.len() };
        let Some(door) = self.doors.get_mut(door) else { return Ok(Sent::HeldBack) };
        match door.send(Route { end, to: self.shared_to }, run, &mut Segmentation(false)) {
            Ok(0) => Ok(Sent::HeldBack),
            Ok(_) => Ok(Sent::Left),
            Err(error) => Err(LoadError::connecting(self.target, client, error)),
        }
    }

    fn receive(&mut self, wait: Duration, ear: Ear<'_>) -> io::Result<()> {
        let wait = if self.ready.is_empty() { wait } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        let woken = self.events.iter().map(|event| event.token().0);
        self.ready.extend(woken);
        self.ready.sort_unstable();
        self.ready.dedup();
        let (doors, batch, shared) = (&mut self.doors, &mut self.batch, self.shared_to.is_some());
        let mut broken = Ok(());
        self.ready.retain(|number| {
            for _ in 0..ROUNDS {
                let client = |end| if shared { end } else { *number };
                match doors[*number].receive(batch, |now, end, packet| ear(now, client(end), packet)) {
                    Ok(true) => return false,
                    Ok(false) => {}
                    Err(error) => {
                        broken = Err(error);
                        return false;
                    }
                }
            }
            true
        });
        broken
    }

    fn closed(&self) -> usize {
        0
    }
}
