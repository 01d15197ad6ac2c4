//! Batched UDP sockets: `recvmmsg` with GRO in, one datagram or a run of them out, and with each its local
//! address, TTL and TOS.

mod control;
mod error_queue;

use control::Arrival;
pub use error_queue::PeerError;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmsg};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

/// Bytes of kernel buffer asked for in each direction. A stall of 2 ms overruns the usual default, and what waits for the
/// link address of one dead neighbour fills it, so that it holds up the socket's other peers.
const BUFFER: usize = 4 << 20;
/// The largest UDP payload, and so the room one received buffer needs with GRO.
const MAX_DATAGRAM: usize = 65_535;
/// Most buffers of one batch, and how many are offered while few datagrams come.
const BATCH: usize = 32;
const SMALL_BATCH: usize = 8;
/// How often a call is made again that may have failed with an ICMP error that had been waiting on the socket. The system
/// keeps one at a time, so that a second failure is hardly ever another's.
const RETRIES: usize = 3;

/// A non-blocking UDP socket that receives in batches and says of every datagram how it arrived.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    local: SocketAddr,
    role: Role,
    state: Arc<State>,
}

/// What belongs to the socket and not to one handle on it.
#[derive(Debug, Default)]
struct State {
    dont_fragment: AtomicBool,
    errors_wait: AtomicBool,
    /// The port of the last datagram that was too large.
    refused_port: AtomicU16,
}

/// How a [`UdpPort`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A listening port shared by the workers (`SO_REUSEPORT`).
    Shared,
    /// A port of its own.
    Single,
    /// A relay's port, of its own too; keeps the ICMP errors of its peers for [`UdpPort::take_errors`].
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

impl UdpPort {
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
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_send_buffer_size(BUFFER)?;
        socket.set_nonblocking(true)?;
        control::ask_for(&socket, address)?;
        if role == Role::Relay {
            error_queue::turn_on(&socket, address.is_ipv6())?;
        }
        allow_fragments(&socket, address.is_ipv6(), true)?;
        socket.bind(&address.into())?;
        let socket: UdpSocket = socket.into();
        let local = socket.local_addr()?;
        Ok(Self { socket, local, role, state: Arc::default() })
    }

    /// Opens a second handle on the same socket, for another thread's sends. Only one of the handles' threads may send
    /// datagrams with [`Route::dont_fragment`], because the system keeps that for the socket.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, local: self.local, role: self.role, state: Arc::clone(&self.state) })
    }

    /// Returns the bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram. ICMP errors of earlier datagrams are no answer to this one: they wait for
    /// [`UdpPort::take_errors`].
    ///
    /// # Errors
    /// The system's answer: `WouldBlock` when the send buffer is full, `EMSGSIZE` when the datagram is too large to go
    /// unfragmented, `InvalidInput` for a source of the other family. A datagram that was refused is lost.
    pub fn send(&self, route: &Route, contents: &[u8]) -> io::Result<()> {
        let sent = self.depart(route, &[IoSlice::new(contents)], None);
        if sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::EMSGSIZE as i32)) {
            self.state.refused_port.store(route.to.port(), Ordering::Relaxed);
        }
        sent
    }

    /// Sends one datagram whose bytes lie in several places.
    ///
    /// # Errors
    /// As [`UdpPort::send`].
    pub fn send_parts(&self, route: &Route, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.depart(route, parts, None)
    }

    /// Sends several datagrams of `segment` bytes each, but for the last, which may be shorter, with one call (UDP_SEGMENT).
    /// At most [`MAX_RUN`] of them and [`MAX_RUN_BYTES`] in all.
    ///
    /// # Errors
    /// As [`UdpPort::send`], for all of them; besides `WouldBlock` the same datagrams may pass one by one.
    pub fn send_run(&self, route: &Route, parts: &[IoSlice<'_>], segment: u16) -> io::Result<()> {
        self.depart(route, parts, Some(segment))
    }

    fn depart(&self, route: &Route, parts: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
        if self.state.dont_fragment.load(Ordering::Relaxed) != route.dont_fragment {
            allow_fragments(&self.socket, self.local.is_ipv6(), !route.dont_fragment)?;
            self.state.dont_fragment.store(route.dont_fragment, Ordering::Relaxed);
        }
        let to = SockaddrStorage::from(route.to);
        control::with_departure(route, segment, |controls| {
            self.past_errors(|| {
                sendmsg(self.as_raw_fd(), parts, controls, MsgFlags::empty(), Some(&to)).map(drop)
            })
        })
    }

    /// Receives as many datagrams as are waiting, up to the batch's room. ICMP errors are passed over: they wait for
    /// [`UdpPort::take_errors`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; otherwise the system's answer.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.begin();
        batch.local_ip = Some(self.local.ip()).filter(|ip| !ip.is_unspecified());
        self.past_errors(|| batch.fill(self.as_raw_fd()))
    }

    /// Makes a system call, and again as long as it answers with an error that concerns another datagram.
    fn past_errors(&self, mut call: impl FnMut() -> nix::Result<()>) -> io::Result<()> {
        for _ in 0..RETRIES {
            match call() {
                Err(Errno::EINTR) => {}
                Err(error) if self.role == Role::Relay && error_queue::may_be_of_a_peer(error) => {
                    self.state.errors_wait.store(true, Ordering::Relaxed);
                }
                other => return Ok(other?),
            }
        }
        Ok(call()?)
    }

    /// Tells `each` of the ICMP errors that peers or routers have sent since the last time, on a [`Role::Relay`] port.
    /// Costs no system call while no send or receive has run into one.
    ///
    /// Call it after [`UdpPort::recv`] whenever the port was reported ready, whatever came of that: the report may have been of
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

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Room for one batch of received datagrams, reused from batch to batch.
#[derive(Debug)]
pub struct RecvBatch {
    buffers: Vec<u8>,
    arrivals: [Arrival; BATCH],
    filled: usize,
    offered: usize,
    /// Where every datagram went that came to a socket bound to one address.
    local_ip: Option<IpAddr>,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self {
            buffers: vec![0; MAX_DATAGRAM * BATCH],
            arrivals: [Arrival::default(); BATCH],
            local_ip: None,
            filled: 0,
            offered: SMALL_BATCH,
        }
    }
}

/// One received datagram, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// The local address it was sent to, where the system told.
    pub local_ip: Option<IpAddr>,
    /// TTL or hop limit it arrived with; 0 where the system did not tell.
    pub ttl: u8,
    /// DSCP and ECN it arrived with, as in the IP header.
    pub tos: u8,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl RecvBatch {
    /// Returns where `payload`, a part of one of the last datagrams, lies, for [`RecvBatch::part`]; `None` when it is none.
    #[must_use]
    pub fn position(&self, payload: &[u8]) -> Option<usize> {
        let start = (payload.as_ptr() as usize).checked_sub(self.buffers.as_ptr() as usize)?;
        (start + payload.len() <= self.buffers.len()).then_some(start)
    }

    /// Returns `len` bytes from `start` on, of the last datagrams.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> &[u8] {
        self.buffers.get(start..start + len).unwrap_or_default()
    }

    /// Lends the room from `start` on for bytes that come by another way than a datagram socket, so that what lies in them can
    /// leave with the batch: [`RecvBatch::part`]. The last datagrams are overwritten.
    pub fn stage(&mut self, start: usize) -> &mut [u8] {
        self.buffers.get_mut(start..).unwrap_or_default()
    }

    /// Iterates over the datagrams of the last [`UdpPort::recv`], GRO runs taken apart.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let filled = self.arrivals.iter().zip(self.buffers.chunks_exact(MAX_DATAGRAM)).take(self.filled);
        filled.filter_map(|(arrival, buffer)| Some((arrival, buffer, arrival.from?))).flat_map(
            |(arrival, buffer, from)| {
                let run = &buffer[..arrival.len];
                // `chunks` finds nothing in an empty datagram, which is one all the same.
                let empty = run.is_empty().then_some(run);
                run.chunks(arrival.stride.max(1)).chain(empty).map(move |payload| Datagram {
                    from,
                    local_ip: arrival.local_ip,
                    ttl: arrival.ttl,
                    tos: arrival.tos,
                    payload,
                })
            },
        )
    }

    /// Returns whether the last [`UdpPort::recv`] took all there was, so that the next one belongs after the next readiness
    /// event.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.filled < self.offered
    }

    /// Forgets the last datagrams, and offers as many buffers as the traffic seems to want.
    fn begin(&mut self) {
        self.offered = match self.filled {
            filled if filled == self.offered => BATCH,
            filled if filled * 4 < self.offered => (self.offered / 2).max(SMALL_BATCH),
            _ => self.offered,
        };
        self.filled = 0;
    }

    /// Receives once. Every call needs fresh headers, because `nix` leaves in them the lengths that the system has written:
    /// a run of datagrams would not find room for its size where a single one had been before.
    fn fill(&mut self, socket: RawFd) -> nix::Result<()> {
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(self.offered, Some(control::room()));
        let mut chunks = self.buffers.chunks_exact_mut(MAX_DATAGRAM);
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let received = recvmmsg(socket, &mut headers, slices.iter_mut(), MsgFlags::empty(), None)?;
        for (message, arrival) in received.zip(&mut self.arrivals) {
            *arrival = Arrival::of(&message, self.local_ip);
            self.filled += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
