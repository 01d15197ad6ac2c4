//! UDP clients. On IPv4 loopback they share one socket, each with its own address of 127.0.0.0/8: a tag belongs to a transport address, and a
//! process has fewer descriptors than a server has tags.

use super::transport::{ClientSockets, MessageHandler, SendResult};
use crate::load::error::LoadError;
use crate::load::socket::{LoadSocket, PacketRun, ReceiveBatch, Segmentation, SocketRoute};
use crate::load::target::Target;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

const EVENTS: usize = 256;
/// Receive calls per socket before the next send.
const ROUNDS: usize = 16;

pub(super) struct UdpClients {
    target: Target,
    poll: Poll,
    events: Events,
    batch: ReceiveBatch,
    sockets: Vec<LoadSocket>,
    /// The destination, if all clients share the first socket.
    shared_to: Option<SocketAddr>,
    /// Sockets that may have more to receive.
    ready: Vec<usize>,
}

impl UdpClients {
    pub(super) fn new(target: Target, own_sockets: bool) -> io::Result<Self> {
        let address = target.address();
        let shared_to = (address.is_ipv4() && address.ip().is_loopback() && !own_sockets).then_some(address);
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            batch: ReceiveBatch::default(),
            sockets: Vec::new(),
            shared_to,
            ready: Vec::new(),
        })
    }
}

impl ClientSockets for UdpClients {
    fn open(&mut self) -> Result<(), LoadError> {
        if self.shared_to.is_some() && !self.sockets.is_empty() {
            return Ok(());
        }
        let number = self.sockets.len();
        // A shared socket receives from both ports of the server; a connected one only from the first.
        let opened = if self.shared_to.is_some() {
            LoadSocket::shared(true)
        } else {
            LoadSocket::connect(self.target)
        };
        let socket = opened.map_err(|source| LoadError::connecting(self.target, number, source))?;
        let (descriptor, token) = (socket.descriptor(), Token(number));
        self.poll.registry().register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        self.sockets.push(socket);
        Ok(())
    }

    fn send(&mut self, client: usize, text: &str) -> Result<SendResult, LoadError> {
        let (socket, index) = if self.shared_to.is_some() { (0, client) } else { (client, 0) };
        let run = PacketRun { bytes: text.as_bytes(), stride: text.len() };
        let Some(socket) = self.sockets.get_mut(socket) else { return Ok(SendResult::HeldBack) };
        match socket.send(SocketRoute { index, to: self.shared_to }, run, &mut Segmentation(false)) {
            Ok(0) => Ok(SendResult::HeldBack),
            Ok(_) => Ok(SendResult::Sent),
            Err(error) => Err(LoadError::connecting(self.target, client, error)),
        }
    }

    fn receive(&mut self, wait: Duration, on_message: MessageHandler<'_>) -> io::Result<()> {
        let wait = if self.ready.is_empty() { wait } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        let woken = self.events.iter().map(|event| event.token().0);
        self.ready.extend(woken);
        self.ready.sort_unstable();
        self.ready.dedup();
        let (sockets, batch, shared) = (&mut self.sockets, &mut self.batch, self.shared_to.is_some());
        let mut broken = Ok(());
        self.ready.retain(|number| {
            for _ in 0..ROUNDS {
                let client = |index| if shared { index } else { *number };
                match sockets[*number]
                    .receive(batch, |now, index, packet| on_message(now, client(index), packet))
                {
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
