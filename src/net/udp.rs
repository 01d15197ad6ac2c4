//! Batched UDP sockets: `recvmmsg` with UDP_GRO, `sendmmsg` with UDP_SEGMENT; each received datagram has its local address, TTL and
//! TOS.

mod batch_socket;
mod control;
mod error_queue;
mod hop_limit;
mod mmsg;
mod rx_buffers;

pub(crate) use batch_socket::BatchSocket;
use control::{Controls, Name};
pub(crate) use error_queue::PeerError;
use hop_limit::HopLimit;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
pub(crate) use rx_buffers::{Datagram, RxBatch, RxBuffers, RxSlice};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

/// Kernel buffer in each direction, in bytes. A stall of 2 ms overruns the usual default, and packets that wait for the link address of one dead
/// neighbour would block the socket's other peers.
const BUFFER: usize = 4 << 20;
/// Retries of a call that may have failed with a pending ICMP error. The system keeps one error at a time, so that a second failure is
/// hardly ever another one.
const RETRIES: usize = 3;
/// Fewest buffers of one receive.
const MIN_OFFER: u8 = 4;

/// A non-blocking UDP socket that receives and sends in batches.
#[derive(Debug)]
pub(crate) struct BatchUdpSocket {
    socket: UdpSocket,
    local: SocketAddr,
    /// The only peer, if the socket is connected.
    peer: Option<SocketAddr>,
    role: Role,
    state: Arc<SocketState>,
    /// Buffers of the next receive: each costs a little even when nothing arrives.
    offer: AtomicU8,
}

/// State of the socket, shared by its handles.
#[derive(Debug)]
struct SocketState {
    dont_fragment: AtomicBool,
    hop_limit: HopLimit,
    errors_wait: AtomicBool,
    /// The destination port of the last datagram that was too large.
    refused_port: AtomicU16,
}

/// How a [`BatchUdpSocket`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A listening port shared by the workers (`SO_REUSEPORT`).
    Shared,
    /// An exclusive port.
    Single,
    /// A relay port: exclusive, and it keeps ICMP errors for [`BatchUdpSocket::take_errors`].
    Relay,
}

/// The destination of a datagram and the fields of its IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// The destination.
    pub to: SocketAddr,
    /// The local address to send from, of the same family; default: the bound one, or the system chooses.
    pub source: Option<IpAddr>,
    /// TTL or hop limit, from 1; default: the system default.
    pub ttl: Option<u8>,
    /// DSCP and ECN, as in the IP header; default 0.
    pub tos: u8,
    /// Sets DF of IPv4, and prevents local fragmentation of IPv6; default false.
    pub dont_fragment: bool,
}

impl Route {
    /// Creates a route with defaults except the destination.
    #[must_use]
    pub(crate) fn to(to: SocketAddr) -> Self {
        Self { to, source: None, ttl: None, tos: 0, dont_fragment: false }
    }
}

/// Most datagrams and most bytes of one run (`UDP_MAX_SEGMENTS`; the IP length field).
pub(crate) const MAX_RUN: usize = 64;
/// See [`MAX_RUN`].
pub(crate) const MAX_RUN_BYTES: usize = 65_000;

/// The header of one message of [`BatchUdpSocket::send_all`]: a datagram, or a run of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TxMessage {
    name: Name,
    controls: Controls,
    parts: usize,
    port: u16,
    dont_fragment: bool,
}

impl BatchUdpSocket {
    /// Opens and binds a socket; an IPv6 address takes only IPv6.
    ///
    /// # Errors
    /// The system's error of socket creation, its options or `bind`.
    pub(crate) fn bind(address: SocketAddr, role: Role) -> io::Result<Self> {
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
        let state = Arc::new(SocketState {
            dont_fragment: AtomicBool::new(false),
            hop_limit: HopLimit::of(&socket, address.is_ipv6())?,
            errors_wait: AtomicBool::new(false),
            refused_port: AtomicU16::new(0),
        });
        Ok(Self { socket, local, peer: None, role, state, offer: AtomicU8::new(MIN_OFFER) })
    }

    /// Connects the socket: it receives only from `peer`, reports closed ports of `peer`, and sends faster to it.
    ///
    /// # Errors
    /// The system's error of `connect`.
    pub(crate) fn connect(&mut self, peer: SocketAddr) -> io::Result<()> {
        socket2::SockRef::from(&self.socket).connect(&peer.into())?;
        self.local = self.socket.local_addr()?;
        self.peer = Some(peer);
        Ok(())
    }

    /// Opens a second handle for sending on another thread. Only one thread may send datagrams with
    /// [`Route::dont_fragment`], because that is an option of the socket.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        let (state, offer) = (Arc::clone(&self.state), AtomicU8::new(MIN_OFFER));
        Ok(Self { socket, local: self.local, peer: self.peer, role: self.role, state, offer })
    }

    /// Returns the bound address.
    #[must_use]
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram. ICMP errors of earlier datagrams do not fail this one; they wait for
    /// [`BatchUdpSocket::take_errors`].
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full, `EMSGSIZE` when the datagram is too large to leave unfragmented, `InvalidInput` for a source of the
    /// other family. The datagram is lost.
    pub(crate) fn send(&self, route: &Route, contents: &[u8]) -> io::Result<()> {
        let message = self.message(route, None, 1)?;
        let mut sent = Ok(());
        self.send_all(&[message], &[IoSlice::new(contents)], |_, error| sent = Err(error));
        sent
    }

    /// Creates the header of a message of `parts` slices for [`BatchUdpSocket::send_all`]. With `segment` the message is a run of datagrams of that
    /// size, of which the last may be shorter: at most [`MAX_RUN`] datagrams and [`MAX_RUN_BYTES`]
    /// bytes.
    ///
    /// # Errors
    /// `InvalidInput` for a source of another family than the destination.
    pub(crate) fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<TxMessage> {
        let ttl = self.state.hop_limit.to_set(&self.socket, route.ttl);
        let controls = Controls::of(&Route { ttl, ..*route })?;
        let controls = segment.map_or(controls, |size| controls.segmented(size));
        // With an address the system would look up the route of a connected socket again.
        let name = if self.peer == Some(route.to) { Name::default() } else { Name::from(route.to) };
        let port = route.to.port();
        Ok(TxMessage { name, controls, parts, port, dont_fragment: route.dont_fragment })
    }

    /// Sends `messages` in order with as few system calls as possible; `parts` holds their slices one after another. `lost` is called with the
    /// index and the error of each message that was not sent, as [`BatchUdpSocket::send`] would return it. The datagrams of a failed run may
    /// still pass one by one, except after `WouldBlock`.
    pub(crate) fn send_all(
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
                mmsg::MessageToSend { name: &message.name, controls: &message.controls, parts: own }
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

    /// Receives pending datagrams into the free buffers of `rx`. ICMP errors are skipped; they wait for
    /// [`BatchUdpSocket::take_errors`].
    ///
    /// # Errors
    /// `WouldBlock` when no datagram is pending; otherwise the system's error.
    pub(crate) fn recv(&self, rx: &mut RxBuffers) -> io::Result<RxBatch> {
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

    /// Returns whether an error may concern an earlier datagram, and remembers that it is pending.
    fn is_peer_error(&self, error: Errno) -> bool {
        let is = self.role == Role::Relay && error_queue::may_be_of_a_peer(error);
        if is {
            self.state.errors_wait.store(true, Ordering::Relaxed);
        }
        is
    }

    /// Calls `each` for the ICMP errors that have arrived since the last call, on a [`Role::Relay`] port. It makes no
    /// system call while no send or receive has met one.
    ///
    /// Call it after [`BatchUdpSocket::recv`] whenever the port was reported ready: the event may have been an
    /// error, and pending errors fill the receive buffer.
    pub(crate) fn take_errors(&self, mut each: impl FnMut(PeerError)) {
        if !self.state.errors_wait.swap(false, Ordering::Relaxed) {
            return;
        }
        let drained = error_queue::drain(self.as_raw_fd(), |mut error| {
            // The system does not report the port of an IPv4 datagram that it refused itself.
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

/// Enlarges the buffers, beyond the usual maximum where the process may.
fn enlarge_buffers(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    Ok(())
}

/// Sets or clears DF for later datagrams. Without DF, datagrams may be as large as the interface takes: the cached path MTU is
/// ignored, so that the network answers with a fresh MTU.
fn allow_fragments(socket: &impl AsFd, is_ipv6: bool, allowed: bool) -> io::Result<()> {
    match (is_ipv6, allowed) {
        // Not DONT, which would hide the ICMP errors of datagrams with DF.
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
