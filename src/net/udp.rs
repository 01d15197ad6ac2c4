//! Batched UDP sockets: `recvmmsg` with GRO in, one datagram or a GSO run out, local addresses kept.

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// Bytes of kernel buffer asked for in each direction. A stall of 2 ms overruns the usual default, and what waits for the
/// link address of one dead neighbour fills it, so that it holds up the socket's other peers.
const BUFFER: usize = 4 << 20;
/// The largest UDP payload, and so the room one received buffer needs with GRO.
const MAX_DATAGRAM: usize = 65_535;

/// A non-blocking UDP socket that receives in batches and says on which local address a datagram arrived.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

/// How a [`UdpPort`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A listening port shared by the workers (`SO_REUSEPORT`).
    Shared,
    /// A port of its own, such as one allocation's relayed address.
    Single,
}

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
        socket.bind(&address.into())?;
        Self::from_std(socket.into())
    }

    fn from_std(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        Ok(Self { socket, state, local })
    }

    /// Opens a second handle on the same socket, for another thread's sends.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::from_std(self.socket.try_clone()?)
    }

    /// Returns the bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram, from the local address `source` where one is given.
    ///
    /// # Errors
    /// The system's answer; `WouldBlock` when the send buffer is full. A datagram that was refused is lost.
    pub fn send(&self, to: SocketAddr, source: Option<IpAddr>, contents: &[u8]) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: source };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    /// Receives as many datagrams as are waiting, up to the batch's room.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; otherwise the system's answer, which may be a peer's ICMP error.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.filled = 0;
        let mut slices: Vec<IoSliceMut<'_>> =
            batch.buffers.chunks_exact_mut(MAX_DATAGRAM).map(IoSliceMut::new).collect();
        batch.filled = self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut batch.meta)?;
        Ok(())
    }
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
    meta: [RecvMeta; BATCH_SIZE],
    filled: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self {
            buffers: vec![0; MAX_DATAGRAM * BATCH_SIZE],
            meta: [RecvMeta::default(); BATCH_SIZE],
            filled: 0,
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
    /// Its bytes.
    pub payload: &'a [u8],
}

impl RecvBatch {
    /// Iterates over the datagrams of the last [`UdpPort::recv`], GRO runs taken apart.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let filled = self.meta.iter().zip(self.buffers.chunks_exact(MAX_DATAGRAM)).take(self.filled);
        filled.flat_map(|(meta, buffer)| {
            buffer[..meta.len].chunks(meta.stride.max(1)).map(|payload| Datagram {
                from: meta.addr,
                local_ip: meta.dst_ip,
                payload,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Interest, Token, unix::SourceFd};
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn datagrams_arrive_with_both_addresses() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (a, b) = (UdpPort::bind(any, Role::Shared).unwrap(), UdpPort::bind(any, Role::Single).unwrap());
        b.send(a.local_addr(), None, b"one").unwrap();
        b.send(a.local_addr(), None, b"three").unwrap();
        let mut batch = RecvBatch::default();
        let mut poll = mio::Poll::new().unwrap();
        let door = a.as_raw_fd();
        poll.registry().register(&mut SourceFd(&door), Token(0), Interest::READABLE).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_secs(5))).unwrap();
            a.recv(&mut batch).unwrap();
            seen.extend(batch.datagrams().map(|d| (d.from, d.local_ip, d.payload.to_vec())));
        }
        let local = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(seen[0], (b.local_addr(), local, b"one".to_vec()));
        assert_eq!(seen[1], (b.local_addr(), local, b"three".to_vec()));
    }
}
