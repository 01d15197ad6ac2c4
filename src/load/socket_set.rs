//! All sockets of a load on one thread: TURN clients, peers, and sockets without a client.

use super::error::LoadError;
use super::packets::Packets;
use super::socket::{ENDPOINTS_PER_SOCKET, LoadSocket, PacketRun, Segmentation, SocketRoute};
use super::target::{LoadTransport, Target};
use crate::clock::Deadlines;
use crate::net::time;
use crate::net::udp::RxBuffers;
use crate::stun::{Builder, Class, Method, TransactionId, attr};
use crate::turn_client::{Received, TurnClient, TurnClientConfig, TurnError, TurnEvent};
use crate::turn_wire::{CHANNELS, FrameHeader};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Events per poll.
const EVENTS: usize = 1024;
/// The longest wait between checks of the stop flag.
const STOP_CHECK: Duration = Duration::from_millis(20);
/// Time limit to release that many allocations.
const RELEASE_TIME: Duration = Duration::from_secs(3);
const RELEASE_BATCH: usize = 2048;

/// Handles a payload; returns whether it is to be sent back.
pub(super) type PayloadHandler<'a> = &'a mut dyn FnMut(usize, Instant, &[u8]) -> bool;

/// One end of a flow.
#[derive(Debug)]
struct FlowEnd {
    socket: usize,
    route: SocketRoute,
    client: Option<Box<TurnClient>>,
    /// The bytes before each payload, and the number of zero bytes after it.
    head: Vec<u8>,
    padding: usize,
}

#[derive(Debug)]
struct SharedSocket {
    socket: LoadSocket,
    /// Its endpoints, by index.
    endpoints: Vec<usize>,
    /// Whether it may have more to receive.
    is_ready: bool,
}

/// Whether endpoints share sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketSharing {
    /// Each endpoint has its own socket.
    Never,
    /// Endpoints share sockets if the server is on IPv4 loopback.
    OnLoopback,
}

/// When to stop waiting for answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimit<'a> {
    /// Set by the caller.
    pub(super) stop: &'a AtomicBool,
    /// The latest end.
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
    rx: RxBuffers,
    echo: Packets,
    changed: Vec<usize>,
    sockets: Vec<SharedSocket>,
    endpoints: Vec<FlowEnd>,
    /// The shared sockets that are not full, for clients and for peers.
    open: [Option<usize>; 2],
    shares: bool,
    ready: VecDeque<usize>,
    deadlines: Deadlines<usize>,
    client_events: VecDeque<(usize, TurnEvent)>,
    pub(super) segmentation: Segmentation,
}

impl SocketSet {
    pub(super) fn new(target: Target, sharing: SocketSharing, segmentation: bool) -> io::Result<Self> {
        let is_loopback = target.address().is_ipv4() && target.address().ip().is_loopback();
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            rx: RxBuffers::default(),
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

    /// Opens an endpoint towards the server, with or without a TURN client.
    pub(super) fn open(&mut self, client: Option<(TurnClientConfig, [u8; 32])>) -> Result<usize, LoadError> {
        let shared = self.open[0].filter(|_| self.shares);
        let socket = match shared {
            Some(socket) => socket,
            None => {
                let opened =
                    if self.shares { LoadSocket::shared(true) } else { LoadSocket::connect(self.target) };
                self.insert_socket(opened)?
            }
        };
        let endpoint = self.insert_endpoint(socket, Some(self.target.address()));
        self.open[0] =
            Some(socket).filter(|socket| self.sockets[*socket].endpoints.len() < ENDPOINTS_PER_SOCKET);
        self.endpoints[endpoint].client =
            client.map(|(config, seed)| Box::new(TurnClient::new(config, seed)));
        Ok(endpoint)
    }

    /// Opens the endpoint of a peer on the clients' local address.
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

    /// Registers a socket.
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

    /// Adds an endpoint to a socket.
    fn insert_endpoint(&mut self, socket: usize, to: Option<SocketAddr>) -> usize {
        let number = self.endpoints.len();
        let route = SocketRoute { index: self.sockets[socket].endpoints.len(), to };
        self.sockets[socket].endpoints.push(number);
        self.endpoints.push(FlowEnd { socket, route, client: None, head: Vec::new(), padding: 0 });
        number
    }

    pub(super) fn relayed(&self, endpoint: usize) -> Option<SocketAddr> {
        self.endpoints[endpoint].client.as_ref()?.relayed_addresses().first().copied()
    }

    pub(super) fn head(&self, endpoint: usize) -> (&[u8], usize) {
        let endpoint = &self.endpoints[endpoint];
        (&endpoint.head, endpoint.padding)
    }

    /// Sends payloads without header to `to` from now on.
    pub(super) fn set_destination(&mut self, endpoint: usize, to: SocketAddr) {
        self.endpoints[endpoint].route.to = Some(to);
    }

    /// Sends `head` before every payload.
    pub(super) fn set_header(&mut self, endpoint: usize, head: Vec<u8>) {
        self.endpoints[endpoint].head = head;
    }

    /// Sends payloads of `size` bytes as ChannelData from now on, or as Send indications to `peer`.
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
            endpoint.head = FrameHeader::channel_data(*CHANNELS.start(), size).as_bytes().to_vec();
        }
        endpoint.padding = if indications || is_stream { padded } else { 0 };
    }

    /// Sends packets; returns how many the kernel accepted.
    pub(super) fn send(&mut self, packets: &Packets) -> Result<u64, LoadError> {
        let mut taken = 0;
        for (endpoint, run) in packets.runs() {
            let FlowEnd { socket, route, .. } = &self.endpoints[endpoint];
            let sent = self.sockets[*socket].socket.send(*route, run, &mut self.segmentation);
            taken += sent.map_err(|error| self.broken(endpoint, error))? as u64;
        }
        Ok(taken)
    }

    /// Runs one request per endpoint, at most `concurrency` at a time; calls `done` with the duration of each.
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
                if let Some(error) = failure(event) {
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
                self.poll_once(STOP_CHECK, &mut |_, _, _| false)?;
            }
        }
    }

    /// Keeps allocations alive until `until`, or until `or` is set.
    pub(super) fn keep_alive(
        &mut self,
        until: WaitLimit<'_>,
        or: Option<&AtomicBool>,
    ) -> Result<(), LoadError> {
        while !until.is_over() && !or.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            self.poll_once(STOP_CHECK, &mut |_, _, _| false)?;
            self.check_client_events()?;
        }
        Ok(())
    }

    /// Releases all allocations; stops at the first failure.
    pub(super) fn release(&mut self) {
        let endpoints: Vec<usize> =
            (0..self.endpoints.len()).filter(|endpoint| self.relayed(*endpoint).is_some()).collect();
        self.client_events.clear();
        let stop = AtomicBool::new(false);
        for some in endpoints.chunks(RELEASE_BATCH) {
            let until = WaitLimit { stop: &stop, deadline: Some(time::mono() + RELEASE_TIME) };
            if self.run_requests(some, 64, until, |_, client, now| client.release(now), |_| {}).is_err() {
                return;
            }
        }
    }

    /// Fails if a client has failed.
    pub(super) fn check_client_events(&mut self) -> Result<(), LoadError> {
        while let Some((endpoint, event)) = self.client_events.pop_front() {
            if let Some(error) = failure(event) {
                return Err(LoadError::Refused { number: endpoint + 1, of: self.endpoints.len(), error });
            }
        }
        Ok(())
    }

    /// Waits at most `wait` for events, receives, and handles the clients' timeouts.
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

    /// Receives once from a socket, and again in the next iteration if it may have more.
    fn read(&mut self, number: usize, on_payload: PayloadHandler<'_>) -> Result<(), LoadError> {
        let SharedSocket { socket, endpoints: behind, is_ready } = &mut self.sockets[number];
        let (echo, changed, endpoints) = (&mut self.echo, &mut self.changed, &mut self.endpoints);
        echo.clear();
        changed.clear();
        let received = socket.receive(&mut self.rx, |now, index, frame| {
            let Some(&endpoint) = behind.get(index) else { return };
            let FlowEnd { client, head, padding, .. } = &mut endpoints[endpoint];
            let payload = match client {
                None => Some(frame),
                Some(client) => unwrap_payload(client, now, frame, || changed.push(endpoint)),
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

    /// Handles a client's events, messages and timeout.
    fn run_client(&mut self, number: usize) -> Result<(), LoadError> {
        let FlowEnd { socket, route, client: Some(client), .. } = &mut self.endpoints[number] else {
            return Ok(());
        };
        while let Some(event) = client.poll_event() {
            self.client_events.push_back((number, event));
        }
        let mut outcome = Ok(0);
        while let Some(bytes) = client.poll_transmit() {
            let run = PacketRun { bytes: &bytes, stride: bytes.len() };
            // The client retransmits what is not sent now.
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

/// Returns the payload of a frame for a client. Any other message is handled by the client; then `was_handled` is called.
fn unwrap_payload<'a>(
    client: &mut TurnClient,
    now: Instant,
    frame: &'a [u8],
    was_handled: impl FnOnce(),
) -> Option<&'a [u8]> {
    match client.handle(now, frame) {
        Received::Data { payload, .. } => return frame.get(payload),
        Received::Control | Received::Unrelated => was_handled(),
    }
    None
}

/// Returns the error of a client that has failed, or could not reach its peer.
fn failure(event: TurnEvent) -> Option<TurnError> {
    match event {
        TurnEvent::Failed(error) | TurnEvent::PeerFailed(error) => Some(error),
        _ => None,
    }
}
