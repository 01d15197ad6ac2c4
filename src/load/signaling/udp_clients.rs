//! UDP clients. On IPv4 loopback they share one socket, each with its own address of 127.0.0.0/8: a tag belongs to a transport address, and a
//! process has fewer descriptors than a server has tags.

use super::transport::{ClientSockets, MessageHandler, SendResult};
use crate::load::error::LoadError;
use crate::load::socket::{LoadSocket, PacketRun, Segmentation, SocketRoute};
use crate::load::target::Target;
use crate::net::udp::RxBuffers;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::time::Duration;

const EVENTS: usize = 256;
/// Receive calls per socket before the next send.
const ROUNDS: usize = 16;

pub(super) struct UdpClients {
    target: Target,
    poll: Poll,
    events: Events,
    rx: RxBuffers,
    sockets: Vec<LoadSocket>,
    /// Whether all clients share the first socket.
    is_shared: bool,
    /// Sockets that may have more to receive.
    ready: Vec<usize>,
}

impl UdpClients {
    pub(super) fn new(target: Target, own_sockets: bool) -> io::Result<Self> {
        let address = target.address();
        let is_shared = address.is_ipv4() && address.ip().is_loopback() && !own_sockets;
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            rx: RxBuffers::default(),
            sockets: Vec::new(),
            is_shared,
            ready: Vec::new(),
        })
    }
}

impl ClientSockets for UdpClients {
    fn open(&mut self) -> Result<(), LoadError> {
        if self.is_shared && !self.sockets.is_empty() {
            return Ok(());
        }
        let number = self.sockets.len();
        // A shared socket receives from both ports of the server; a connected one only from the first.
        let opened = if self.is_shared { LoadSocket::shared(true) } else { LoadSocket::connect(self.target) };
        let socket = opened.map_err(|source| LoadError::connecting(self.target, number, source))?;
        let (descriptor, token) = (socket.descriptor(), Token(number));
        self.poll.registry().register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        self.sockets.push(socket);
        Ok(())
    }

    fn send(&mut self, client: usize, text: &str) -> Result<SendResult, LoadError> {
        let (socket, index) = if self.is_shared { (0, client) } else { (client, 0) };
        let run = PacketRun { bytes: text.as_bytes(), stride: text.len() };
        let Some(socket) = self.sockets.get_mut(socket) else { return Ok(SendResult::HeldBack) };
        match socket.send(
            SocketRoute { index, to: Some(self.target.address()) },
            run,
            &mut Segmentation(false),
        ) {
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
        let (sockets, rx, is_shared) = (&mut self.sockets, &mut self.rx, self.is_shared);
        let mut broken = Ok(());
        self.ready.retain(|number| {
            for _ in 0..ROUNDS {
                let client = |index| if is_shared { index } else { *number };
                match sockets[*number]
                    .receive(rx, |now, index, packet| on_message(now, client(index), packet))
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
