//! WebSocket clients on one thread, each with a connection. They send and receive any text messages.

use super::transport::{ClientSockets, MessageHandler, SendResult};
use crate::load::error::LoadError;
use crate::load::target::Target;
use crate::net::time;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::client::client_with_config;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocket, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, HandshakeError};

const EVENTS: usize = 1024;
/// The read buffer of a connection. Most connections are idle.
const BUFFER: usize = 2048;
/// Bytes per write; the buffer is allocated when it is needed.
const WRITE_BUFFER: usize = 64 * 1024;
/// Time limit of a connection and of its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients per loopback address, below the server's limit per network.
const PER_ADDRESS: usize = 100;
/// The first of these addresses.
const FIRST_ADDRESS: u32 = 0x7F4E_0001;

/// WebSockets to one server.
#[derive(Debug)]
pub struct WebSocketClients {
    target: Target,
    poll: Poll,
    events: Events,
    sockets: Vec<Option<WebSocket<TcpStream>>>,
    closed: usize,
}

impl WebSocketClients {
    /// Creates an empty set.
    ///
    /// # Errors
    /// If no descriptors are left.
    pub fn new(target: Target) -> io::Result<Self> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(EVENTS));
        Ok(Self { target, poll, events, sockets: Vec::new(), closed: 0 })
    }

    /// Opens one more at `path`, such as `/ws`. On IPv4 loopback a hundred share an address.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open_at(&mut self, path: &str) -> Result<(), LoadError> {
        let number = self.sockets.len();
        let failed = |source| LoadError::connecting(self.target, number, source);
        let stream = self.connect(number).map_err(failed)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(None);
        let url = format!("ws://{}{path}", self.target.address());
        let (socket, _) = match client_with_config(url, stream, Some(config)) {
            Ok(opened) => opened,
            Err(HandshakeError::Failure(error)) => return Err(failed(system(error))),
            Err(HandshakeError::Interrupted(_)) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        socket.get_ref().set_nonblocking(true)?;
        let descriptor = socket.get_ref().as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(number), interest)?;
        self.sockets.push(Some(socket));
        Ok(())
    }

    fn connect(&self, number: usize) -> io::Result<TcpStream> {
        let address = self.target.address();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv4() && address.ip().is_loopback() {
            let own = FIRST_ADDRESS + u32::try_from(number / PER_ADDRESS).unwrap_or(0);
            socket.bind(&SocketAddr::from((Ipv4Addr::from_bits(own), 0)).into())?;
        }
        socket.connect_timeout(&address.into(), CONNECT_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        Ok(socket.into())
    }

    /// Returns the number of connections, closed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Returns how many connections the server has closed.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.closed
    }

    /// Sends texts, usually with one write; returns `false` if the connection has ended.
    pub fn send_texts(&mut self, number: usize, texts: &[impl AsRef<str>]) -> bool {
        let Some(Some(socket)) = self.sockets.get_mut(number) else { return false };
        let written = texts.iter().try_for_each(|text| socket.write(Message::text(text.as_ref())));
        match written.and_then(|()| socket.flush()) {
            Ok(()) => true,
            // What the kernel does not accept is queued in the WebSocket.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(_) => {
                self.close(number);
                false
            }
        }
    }

    /// Waits at most `wait`, passes received texts to `on_message`, and answers pings.
    ///
    /// # Errors
    /// If the system cannot poll.
    pub fn receive_texts(
        &mut self,
        wait: Duration,
        on_message: &mut dyn FnMut(Instant, usize, &[u8]),
    ) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let mut broken = Vec::new();
        for number in self.events.iter().map(|event| event.token().0) {
            let Some(Some(socket)) = self.sockets.get_mut(number) else { continue };
            if !receive(socket, |now, text| on_message(now, number, text)) {
                broken.push(number);
            }
        }
        broken.into_iter().for_each(|number| self.close(number));
        Ok(())
    }

    fn close(&mut self, number: usize) {
        self.closed += usize::from(self.sockets[number].take().is_some());
    }
}

/// Receives until the socket is empty; returns whether the connection is open.
fn receive(socket: &mut WebSocket<TcpStream>, mut each: impl FnMut(Instant, &[u8])) -> bool {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => each(time::mono(), text.as_bytes()),
            Ok(Message::Close(_)) => return false,
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => return false,
        }
    }
    // Sends queued bytes and the answers to pings.
    match socket.flush() {
        Ok(()) => true,
        Err(Error::Io(error)) => error.kind() == io::ErrorKind::WouldBlock,
        Err(_) => false,
    }
}

fn system(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl ClientSockets for WebSocketClients {
    fn open(&mut self) -> Result<(), LoadError> {
        self.open_at("/ws")
    }

    fn send(&mut self, client: usize, text: &str) -> Result<SendResult, LoadError> {
        Ok(if self.send_texts(client, &[text]) { SendResult::Sent } else { SendResult::HeldBack })
    }

    fn receive(&mut self, wait: Duration, on_message: MessageHandler<'_>) -> io::Result<()> {
        self.receive_texts(wait, on_message)
    }

    fn closed(&self) -> usize {
        self.closed
    }
}
