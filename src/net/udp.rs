//! Batched UDP sockets: `recvmmsg` with GRO in, `sendmmsg` with UDP_SEGMENT out, and with each datagram its local address, TTL
//! and TOS.

mod batch_socket;
mod control;
mod error_queue;
mod hop_limit;
mod mmsg;
mod rx_buffers;

pub use batch_socket::BatchSocket;
use control::{Controls, Name};
pub use error_queue::PeerError;
use hop_limit::HopLimit;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
pub use rx_buffers::{Datagram, RxBatch, RxBuffers};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

/// Bytes of kernel buffer asked for in each direction. A stall of 2 ms overruns the usual default, and what waits for the
/// link address of one dead neighbour fills it, so that it holds up the socket's other peers.
const BUFFER: usize = 4 << 20;
/// How often a call is made again that may have failed with an ICMP error that had been waiting on the socket. The system
/// keeps one at a time, so that a second failure is hardly ever another's.
const RETRIES: usize = 3;
/// Fewest datagrams that a receive offers room for.
const MIN_OFFER: u8 = 4;

/// A non-blocking UDP socket that receives in batches and says of every datagram how it arrived.
#[derive(Debug)]
pub struct BatchUdpSocket {
    socket: UdpSocket,
    local: SocketAddr,
    role: Role,
    state: Arc<State>,
    /// How many datagrams the next receive offers room for: what is offered costs a little even when nothing comes.
    offer: AtomicU8,
}

/// What belongs to the socket and not to one handle on it.
#[derive(Debug)]
struct State {
    dont_fragment: AtomicBool,
    hop_limit: HopLimit,
    errors_wait: AtomicBool,
    /// The port of the last datagram that was too large.
    refused_port: AtomicU16,
}

/// How a [`BatchUdpSocket`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A listening port shared by the workers (`SO_REUSEPORT`).
    Shared,
    /// A port of its own.
    Single,
    /// A relay's port, of its own too; keeps the ICMP errors of its peers for [`BatchUdpSocket::take_errors`].
    Relay,
}

/// Where a datagram goes, and what its IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where it goes.
    pub to: SocketAddr,
    /// The local address to send from, of the same family; default the bound one, or the system's choice.
    pub source: Option<IpAddr>,
    /// TTL or hop limit, from 1; default the system's.
    pub ttl: Option<u8>,
    /// DSCP and ECN, as in the IP header; default 0.
    pub tos: u8,
    /// Whether the IPv4 header has DF set, and an IPv6 datagram is not fragmented here; default false.
    pub dont_fragment: bool,
}

impl Route {
    /// A route of which nothing but the destination matters.
    #[must_use]
    pub fn to(to: SocketAddr) -> Self {
        Self { to, source: None, ttl: None, tos: 0, dont_fragment: false }
    }
}

/// Most datagrams that leave in one run, and most bytes of a run (`UDP_MAX_SEGMENTS`; the IP length field).
pub const MAX_RUN: usize = 64;
/// See [`MAX_RUN`].
pub const MAX_RUN_BYTES: usize = 65_000;

/// What one message of a [`BatchUdpSocket::send_all`] is besides its bytes: a datagram, or a run of them.
#[derive(Debug, Clone, Copy)]
pub struct TxMessage {
    name: Name,
    controls: Controls,
    parts: usize,
    port: u16,
    dont_fragment: bool,
}

impl BatchUdpSocket {
    /// Opens and binds a socket; an IPv6 address takes IPv6 only.
    ///
    /// # Errors
    /// Whatever the system says to socket creation, its options or `bind`.
    pub fn bind(address: SocketAddr, role: Role) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if role == Role::Shared {
            socket.set_reuse_port(true)?;
        }
        enlarge_buffers(&socket)?;
        socket.set_nonblocking(true)?;
        control::ask_for(&socket, address)?;
        if role == Role::Relay {
            error_queue::turn_on(&socket, address.is_ipv6())?;
        }
        allow_fragments(&socket, address.is_ipv6(), true)?;
        socket.bind(&address.into())?;
        let socket: UdpSocket = socket.into();
        let local = socket.local_addr()?;
        let state = Arc::new(State {
            dont_fragment: AtomicBool::new(false),
            hop_limit: HopLimit::of(&socket, address.is_ipv6())?,
            errors_wait: AtomicBool::new(false),
            refused_port: AtomicU16::new(0),
        });
        Ok(Self { socket, local, role, state, offer: AtomicU8::new(MIN_OFFER) })
    }

    /// Opens a second handle on the same socket, for another thread's sends. Only one of the handles' threads may send
    /// datagrams with [`Route::dont_fragment`], because the system keeps that for the socket.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        let (state, offer) = (Arc::clone(&self.state), AtomicU8::new(MIN_OFFER));
        Ok(Self { socket, local: self.local, role: self.role, state, offer })
    }

    /// Returns the bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram. ICMP errors of earlier datagrams are no answer to this one: they wait for
    /// [`BatchUdpSocket::take_errors`].
    ///
    /// # Errors
    /// The system's answer: `WouldBlock` when the send buffer is full, `EMSGSIZE` when the datagram is too large to go
    /// unfragmented, `InvalidInput` for a source of the other family. A datagram that was refused is lost.
    pub fn send(&self, route: &Route, contents: &[u8]) -> io::Result<()> {
        let message = self.message(route, None, 1)?;
        let mut sent = Ok(());
        self.send_all(&[message], &[IoSlice::new(contents)], |_, error| sent = Err(error));
        sent
    }

    /// Addresses a message whose bytes lie in `parts` places, for [`BatchUdpSocket::send_all`] of this port. With `segment` it is a run of
    /// datagrams of so many bytes each, but for the last, which may be shorter: at most [`MAX_RUN`] of them and [`MAX_RUN_BYTES`]
    /// in all.
    ///
    /// # Errors
    /// `InvalidInput` for a source of another family than the destination's.
    pub fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<TxMessage> {
        let ttl = self.state.hop_limit.to_set(&self.socket, route.ttl);
        let controls = Controls::of(&Route { ttl, ..*route })?;
        let controls = segment.map_or(controls, |size| controls.segmented(size));
        let (name, port) = (Name::from(route.to), route.to.port());
        Ok(TxMessage { name, controls, parts, port, dont_fragment: route.dont_fragment })
    }

    /// Sends `messages` in their order, with as few calls as there can be; their bytes are in `parts`, one message's behind the
    /// other's. `lost` hears the number of each message that the system did not take, and why, as [`BatchUdpSocket::send`] would say it;
    /// the datagrams of a run may still pass one by one unless it is `WouldBlock`.
    pub fn send_all(
        &self,
        messages: &[TxMessage],
        parts: &[IoSlice<'_>],
        mut lost: impl FnMut(usize, io::Error),
    ) {
        let (mut at, mut parts, mut retries) = (0, parts, RETRIES);
        while let Some(first) = messages.get(at) {
            if let Err(error) = self.set_dont_fragment(first.dont_fragment) {
                lost(at, error);
                at += 1;
                parts = &parts[first.parts.min(parts.len())..];
                continue;
            }
            let mut unsent = parts;
            let alike = messages[at..].iter().take_while(|next| next.dont_fragment == first.dont_fragment);
            let batch = alike.map(|message| {
                let (own, rest) = unsent.split_at(message.parts.min(unsent.len()));
                unsent = rest;
                mmsg::Sent { name: &message.name, controls: &message.controls, parts: own }
            });
            let gone = match mmsg::send(self.as_fd(), batch) {
                Ok(sent) => sent,
                Err(Errno::EINTR) => 0,
                Err(error) if retries > 0 && self.is_peer_error(error) => {
                    retries -= 1;
                    continue;
                }
                Err(Errno::EAGAIN) => {
                    (at..messages.len()).for_each(|unsent| lost(unsent, Errno::EAGAIN.into()));
                    return;
                }
                Err(error) => {
                    if error == Errno::EMSGSIZE {
                        self.state.refused_port.store(first.port, Ordering::Relaxed);
                    }
                    lost(at, error.into());
                    1
                }
            };
            retries = RETRIES;
            let gone_parts: usize = messages[at..at + gone].iter().map(|message| message.parts).sum();
            parts = &parts[gone_parts.min(parts.len())..];
            at += gone;
        }
    }

    fn set_dont_fragment(&self, dont_fragment: bool) -> io::Result<()> {
        if self.state.dont_fragment.load(Ordering::Relaxed) != dont_fragment {
            allow_fragments(&self.socket, self.local.is_ipv6(), !dont_fragment)?;
            self.state.dont_fragment.store(dont_fragment, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Receives datagrams that are waiting into what room `rx` has left. ICMP errors are passed over: they wait for
    /// [`BatchUdpSocket::take_errors`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; otherwise the system's answer.
    pub fn recv(&self, rx: &mut RxBuffers) -> io::Result<RxBatch> {
        let offered = usize::from(self.offer.load(Ordering::Relaxed)).min(rx.room());
        let mut retries = RETRIES;
        let count = loop {
            match rx.fill(self.as_fd(), offered) {
                Err(Errno::EINTR) => {}
                Err(error) if retries > 0 && self.is_peer_error(error) => retries -= 1,
                other => break other?,
            }
        };
        let next = match count {
            count if count == offered => offered * 2,
            count if count * 4 < offered => offered / 2,
            _ => offered,
        };
        let next = next.clamp(MIN_OFFER.into(), mmsg::MOST);
        self.offer.store(next as u8, Ordering::Relaxed);
        let bound_ip = Some(self.local.ip()).filter(|ip| !ip.is_unspecified());
        Ok(rx.batch(count, count < offered, bound_ip))
    }

    /// Returns whether a call may have failed with an error that concerns another datagram, and notes that it waits.
    fn is_peer_error(&self, error: Errno) -> bool {
        let is = self.role == Role::Relay && error_queue::may_be_of_a_peer(error);
        if is {
            self.state.errors_wait.store(true, Ordering::Relaxed);
        }
        is
    }

    /// Tells `each` of the ICMP errors that peers or routers have sent since the last time, on a [`Role::Relay`] port.
    /// Costs no system call while no send or receive has run into one.
    ///
    /// Call it after [`BatchUdpSocket::recv`] whenever the port was reported ready, whatever came of that: the report may have been of
    /// an error, and what is not taken fills the receive buffer.
    pub fn take_errors(&self, mut each: impl FnMut(PeerError)) {
        if !self.state.errors_wait.swap(false, Ordering::Relaxed) {
            return;
        }
        let drained = error_queue::drain(self.as_raw_fd(), |mut error| {
            // The system does not know which IPv4 datagram it refused itself.
            if error.peer.port() == 0 {
                error.peer.set_port(self.state.refused_port.load(Ordering::Relaxed));
            }
            each(error);
        });
        if !drained {
            self.state.errors_wait.store(true, Ordering::Relaxed);
        }
    }
}

/// Asks for large buffers: past the usual ceiling where this process may.
fn enlarge_buffers(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    Ok(())
}

/// Sets DF off or on for what is sent from now on. Not allowed, a datagram may be as large as the interface takes: what the
/// system has learned of the path does not count, so that it is the network that answers, and with a fresh MTU.
fn allow_fragments(socket: &impl AsFd, is_ipv6: bool, allowed: bool) -> io::Result<()> {
    match (is_ipv6, allowed) {
        // Not DONT, which also hides the answers to datagrams that had DF set.
        (false, true) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::OMIT)?,
        (false, false) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        (true, true) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT)?,
        (true, false) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

impl AsFd for BatchUdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for BatchUdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
