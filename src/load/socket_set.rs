//! All sockets of a load on one thread: clients with their machines, peers, and bare sockets.

use super::error::LoadError;
use super::packets::Packets;
use super::socket::{Batch, ENDPOINTS_PER_SOCKET, LoadSocket, PacketRun, Segmentation, SocketRoute};
use super::target::{LoadTransport, Target};
use super::turn_client::{CHANNEL, ClientEvent, ClientSettings, TurnClient};
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
/// How long giving so many allocations back may take in the index.
const RELEASE_TIME: Duration = Duration::from_secs(3);
const RELEASED_TOGETHER: usize = 2048;

/// What becomes of a payload: it is taken or, with `true`, sent back.
pub(super) type PayloadHandler<'a> = &'a mut dyn FnMut(usize, Instant, &[u8]) -> bool;

/// One index of a flow.
#[derive(Debug)]
struct Endpoint {
    socket: usize,
    route: SocketRoute,
    client: Option<Box<TurnClient>>,
    /// What stands in front of each payload, and zero bytes behind it.
    head: Vec<u8>,
    padding: usize,
}

#[derive(Debug)]
struct SharedSocket {
    socket: LoadSocket,
    /// The endpoints behind it, by the numbers of their ends.
    endpoints: Vec<usize>,
    /// Whether more may be waiting than its last call has taken.
    is_ready: bool,
}

/// Which endpoints have sockets of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketSharing {
    /// All.
    Never,
    /// None, where the server is reached by IPv4 loopback.
    OnLoopback,
}

/// When to stop waiting for answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimit<'a> {
    /// The user's wish.
    pub(super) stop: &'a AtomicBool,
    /// The index of patience.
    pub(super) deadline: Option<Instant>,
}

impl WaitLimit<'_> {
    fn is_over(self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|at| time::mono() >= at)
    }
}

/// The sockets.
#[derive(Debug)]
pub(super) struct SocketSet {
    target: Target,
    poll: Poll,
    events: Events,
    batch: Batch,
    echo: Packets,
    changed: Vec<usize>,
    sockets: Vec<SharedSocket>,
    endpoints: Vec<Endpoint>,
    /// The shared sockets that still have room, for clients and for peers.
    open: [Option<usize>; 2],
    shares: bool,
    ready: VecDeque<usize>,
    deadlines: Deadlines<usize>,
    client_events: VecDeque<(usize, ClientEvent)>,
    pub(super) segmentation: Segmentation,
}

impl SocketSet {
    pub(super) fn new(target: Target, sharing: SocketSharing, segmentation: bool) -> io::Result<Self> {
        let is_loopback = target.address().is_ipv4() && target.address().ip().is_loopback();
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            batch: Batch::default(),
            echo: Packets::default(),
            changed: Vec::new(),
            sockets: Vec::new(),
            endpoints: Vec::new(),
            open: [None; 2],
            shares: sharing == SocketSharing::OnLoopback
                && is_loopback
                && target.transport() == LoadTransport::Udp,
            ready: VecDeque::new(),
            deadlines: Deadlines::default(),
            client_events: VecDeque::new(),
            segmentation: Segmentation(segmentation),
        })
    }

    /// Opens a way to the server, with a client behind it or none.
    pub(super) fn open(&mut self, client: Option<(ClientSettings, u64)>) -> Result<usize, LoadError> {
        let shared = self.open[0].filter(|_| self.shares);
        let socket = match shared {
            Some(socket) => socket,
            None => {
                let opened =
                    if self.shares { LoadSocket::shared(true) } else { LoadSocket::connect(self.target) };
                self.insert_socket(opened)?
            }
        };
        let to = self.shares.then(|| self.target.address());
        let endpoint = self.insert_endpoint(socket, to);
        self.open[0] =
            Some(socket).filter(|socket| self.sockets[*socket].endpoints.len() < ENDPOINTS_PER_SOCKET);
        self.endpoints[endpoint].client =
            client.map(|(settings, salt)| Box::new(TurnClient::new(settings, salt)));
        Ok(endpoint)
    }

    /// Opens the way of a peer, on the address that clients have.
    pub(super) fn open_peer(&mut self) -> Result<(usize, SocketAddr), LoadError> {
        let shared = self.open[1].filter(|_| self.shares);
        let socket = match shared {
            Some(socket) => socket,
            None => {
                let ip = match self.sockets.first() {
                    Some(first) => first.socket.local_addr(0)?.ip(),
                    None => return Err(io::Error::from(io::ErrorKind::NotConnected).into()),
                };
                let opened = if self.shares { LoadSocket::shared(false) } else { LoadSocket::peer(ip) };
                self.insert_socket(opened)?
            }
        };
        let endpoint = self.insert_endpoint(socket, None);
        self.open[1] =
            Some(socket).filter(|socket| self.sockets[*socket].endpoints.len() < ENDPOINTS_PER_SOCKET);
        Ok((endpoint, self.sockets[socket].socket.local_addr(self.endpoints[endpoint].route.index)?))
    }

    /// Takes a new socket in.
    fn insert_socket(&mut self, socket: io::Result<LoadSocket>) -> Result<usize, LoadError> {
        let failed = |error| LoadError::connecting(self.target, self.sockets.len(), error);
        let socket = socket.map_err(failed)?;
        let number = self.sockets.len();
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        let interest = if matches!(socket, LoadSocket::Tcp(_)) { interest } else { Interest::READABLE };
        self.poll.registry().register(&mut SourceFd(&socket.descriptor()), Token(number), interest)?;
        self.sockets.push(SharedSocket { socket, endpoints: Vec::new(), is_ready: false });
        Ok(number)
    }

    /// Takes a new endpoint in, behind a socket.
    fn insert_endpoint(&mut self, socket: usize, to: Option<SocketAddr>) -> usize {
        let number = self.endpoints.len();
        let route = SocketRoute { index: self.sockets[socket].endpoints.len(), to };
        self.sockets[socket].endpoints.push(number);
        self.endpoints.push(Endpoint { socket, route, client: None, head: Vec::new(), padding: 0 });
        number
    }

    pub(super) fn relayed(&self, endpoint: usize) -> Option<SocketAddr> {
        self.endpoints[endpoint].client.as_ref()?.relayed()
    }

    pub(super) fn head(&self, endpoint: usize) -> (&[u8], usize) {
        let endpoint = &self.endpoints[endpoint];
        (&endpoint.head, endpoint.padding)
    }

    /// Sends bare payloads to `to` from now on.
    pub(super) fn set_destination(&mut self, endpoint: usize, to: SocketAddr) {
        self.endpoints[endpoint].route.to = Some(to);
    }

    /// Puts `head` in front of everything.
    pub(super) fn set_header(&mut self, endpoint: usize, head: Vec<u8>) {
        self.endpoints[endpoint].head = head;
    }

    /// Sends payloads of `size` bytes by the client's channel from now on, or by Send indications to `peer`.
    pub(super) fn set_framing(&mut self, endpoint: usize, peer: SocketAddr, size: u16, indications: bool) {
        let is_stream = self.target.transport() == LoadTransport::Tcp;
        let padded = usize::from(size).next_multiple_of(4) - usize::from(size);
        let endpoint = &mut self.endpoints[endpoint];
        if indications {
            let id = TransactionId::new([0x47; 12]);
            let head = Builder::new(Class::Indication, Method::SEND, id)
                .xor_address(attr::XOR_PEER_ADDRESS, peer)
                .attribute(attr::DATA, &vec![0; size.into()])
                .finish();
            endpoint.head = head[..head.len() - usize::from(size) - padded].to_vec();
        } else {
            endpoint.head = FrameHeader::channel_data(CHANNEL, size).as_bytes().to_vec();
        }
        endpoint.padding = if indications || is_stream { padded } else { 0 };
    }

    /// Sends packets; returns how many the kernel took.
    pub(super) fn send(&mut self, packets: &Packets) -> Result<u64, LoadError> {
        let mut taken = 0;
        for (endpoint, run) in packets.runs() {
            let Endpoint { socket, route, .. } = &self.endpoints[endpoint];
            let sent = self.sockets[*socket].socket.send(*route, run, &mut self.segmentation);
            taken += sent.map_err(|error| self.broken(endpoint, error))? as u64;
        }
        Ok(taken)
    }

    /// Lets each of `endpoints` do one thing, at most `concurrency` at a time, until all have; tells `done` how long each took.
    pub(super) fn run_requests(
        &mut self,
        endpoints: &[usize],
        concurrency: usize,
        until: WaitLimit<'_>,
        mut begin: impl FnMut(usize, &mut TurnClient, Instant),
        mut done: impl FnMut(Duration),
    ) -> Result<(), LoadError> {
        let mut waiting = endpoints.iter().copied();
        let mut busy: HashMap<usize, Instant> = HashMap::new();
        loop {
            while busy.len() < concurrency.max(1)
                && let Some(endpoint) = waiting.next()
            {
                let now = time::mono();
                if let Some(client) = &mut self.endpoints[endpoint].client {
                    begin(endpoint, client, now);
                    busy.insert(endpoint, now);
                    self.run_client(endpoint)?;
                }
            }
            while let Some((endpoint, event)) = self.client_events.pop_front() {
                let began = busy.remove(&endpoint);
                if let ClientEvent::Failed(error) = event {
                    let number = endpoints.iter().position(|l| *l == endpoint).map_or(0, |at| at + 1);
                    return Err(LoadError::Refused { number, of: endpoints.len(), error });
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
                self.poll_once(LOOK, &mut |_, _, _| false)?;
            }
        }
    }

    /// Waits until `until` or another wish, and keeps what there is alive.
    pub(super) fn keep_alive(
        &mut self,
        until: WaitLimit<'_>,
        or: Option<&AtomicBool>,
    ) -> Result<(), LoadError> {
        while !until.is_over() && !or.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            self.poll_once(LOOK, &mut |_, _, _| false)?;
            self.check_client_events()?;
        }
        Ok(())
    }

    /// Gives all allocations back, as far as the server plays along.
    pub(super) fn release(&mut self) {
        let endpoints: Vec<usize> =
            (0..self.endpoints.len()).filter(|endpoint| self.relayed(*endpoint).is_some()).collect();
        self.client_events.clear();
        let stop = AtomicBool::new(false);
        for some in endpoints.chunks(RELEASED_TOGETHER) {
            let until = WaitLimit { stop: &stop, deadline: Some(time::mono() + RELEASE_TIME) };
            if self.run_requests(some, 64, until, |_, client, now| client.release(now), |_| {}).is_err() {
                return;
            }
        }
    }

    /// Fails if a client has lost what it had.
    pub(super) fn check_client_events(&mut self) -> Result<(), LoadError> {
        while let Some((endpoint, event)) = self.client_events.pop_front() {
            if let ClientEvent::Failed(error) = event {
                return Err(LoadError::Refused { number: endpoint + 1, of: self.endpoints.len(), error });
            }
        }
        Ok(())
    }

    /// Waits at most `wait` for something to arrive, takes all that did, and lets clients do what is due.
    pub(super) fn poll_once(
        &mut self,
        wait: Duration,
        on_payload: PayloadHandler<'_>,
    ) -> Result<(), LoadError> {
        let wait = if self.ready.is_empty() { wait } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let mut failed = None;
        for event in &self.events {
            let Token(number) = event.token();
            let SharedSocket { socket, is_ready, endpoints } = &mut self.sockets[number];
            if (event.is_readable() || event.is_error()) && !*is_ready {
                *is_ready = true;
                self.ready.push_back(number);
            }
            if event.is_writable()
                && let Err(error) = socket.flush()
            {
                failed = Some((endpoints[0], error));
            }
        }
        if let Some((endpoint, error)) = failed {
            return Err(self.broken(endpoint, error));
        }
        for _ in 0..self.ready.len() {
            let Some(socket) = self.ready.pop_front() else { break };
            self.read(socket, &mut *on_payload)?;
        }
        if self.deadlines.next().is_some() {
            let now = time::mono();
            while let Some(endpoint) = self.deadlines.pop_due(now) {
                if let Some(client) = &mut self.endpoints[endpoint].client {
                    client.handle_timeout(now);
                }
                self.run_client(endpoint)?;
            }
        }
        Ok(())
    }

    /// Receives once from a socket, and again in the next turn if there may be more.
    fn read(&mut self, number: usize, on_payload: PayloadHandler<'_>) -> Result<(), LoadError> {
        let SharedSocket { socket, endpoints: behind, is_ready } = &mut self.sockets[number];
        let (echo, changed, endpoints) = (&mut self.echo, &mut self.changed, &mut self.endpoints);
        echo.clear();
        changed.clear();
        let received = socket.receive(&mut self.batch, |now, index, frame| {
            let Some(&endpoint) = behind.get(index) else { return };
            let Endpoint { client, head, padding, .. } = &mut endpoints[endpoint];
            let payload = match client {
                None => Some(frame),
                Some(client) => unwrap(client, now, frame, || changed.push(endpoint)),
            };
            if let Some(payload) = payload
                && on_payload(endpoint, now, payload)
            {
                echo.push(endpoint, [head, payload], *padding);
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
        for at in 0..self.changed.len() {
            self.run_client(self.changed[at])?;
        }
        Ok(())
    }

    /// Does what a client wants done.
    fn run_client(&mut self, number: usize) -> Result<(), LoadError> {
        let Endpoint { socket, route, client: Some(client), .. } = &mut self.endpoints[number] else {
            return Ok(());
        };
        while let Some(event) = client.poll_event() {
            self.client_events.push_back((number, event));
        }
        let mut outcome = Ok(0);
        while let Some(bytes) = client.poll_transmit() {
            let run = PacketRun { bytes: &bytes, stride: bytes.len() };
            // What does not leave now the client will ask again.
            outcome = self.sockets[*socket].socket.send(*route, run, &mut self.segmentation);
        }
        match client.poll_timeout() {
            Some(at) => self.deadlines.set(number, at),
            None => self.deadlines.clear(number),
        }
        outcome.map(drop).map_err(|error| self.broken(number, error))
    }

    fn broken(&self, endpoint: usize, error: io::Error) -> LoadError {
        let (address, transport) = (self.target.address(), self.target.transport().name());
        let closed =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => LoadError::NobodyThere { address, transport },
            _ if closed.contains(&error.kind()) => {
                LoadError::Closed { address, number: endpoint + 1, of: self.endpoints.len() }
            }
            _ => error.into(),
        }
    }
}

/// Returns the payload that a client was sent; what is not one is the client's, and `was_handled` then.
fn unwrap<'a>(
    client: &mut TurnClient,
    now: Instant,
    frame: &'a [u8],
    was_handled: impl FnOnce(),
) -> Option<&'a [u8]> {
    if frame.first().is_some_and(|first| first & 0xC0 == 0x40) {
        return wire::parse_channel_data(frame).map(|(_, payload)| payload);
    }
    let message = Message::parse(frame).ok()?;
    if (message.class(), message.method()) == (Class::Indication, Method::DATA) {
        return message.unverified().get(attr::DATA);
    }
    client.handle(now, &message);
    was_handled();
    None
}
