//! A UDP socket of the agent: one local address, GSO and GRO.

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Kernel buffer in each direction, in bytes: a burst of a fast path must not overrun it.
const BUFFER: usize = 4 << 20;

/// A bound socket.
#[derive(Debug)]
pub(super) struct UdpPort {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    default_ttl: Option<u32>,
}

impl UdpPort {
    /// Binds a socket to a local address.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let state = UdpSocketState::new((&socket).into())?;
        for result in [
            state.set_recv_buffer_size((&socket).into(), BUFFER),
            state.set_send_buffer_size((&socket).into(), BUFFER),
        ] {
            if let Err(error) = result {
                tracing::debug!(%error, "the socket keeps its default buffer");
            }
        }
        let default_ttl = socket.ttl().ok();
        Ok(Self { io: UdpSocket::from_std(socket)?, state, local, default_ttl })
    }

    /// Returns the bound address.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns how many segments one send may have.
    pub(super) fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends one datagram, or several of `segment_size` bytes. Errors other than `WouldBlock` lose the datagram only.
    pub(super) fn send(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        (segment_size, ecn): (Option<usize>, Option<EcnCodepoint>),
    ) -> io::Result<()> {
        let transmit = Transmit { destination, ecn, contents, segment_size, src_ip: None };
        // Directly: a new socket is not known to be writable yet.
        match self.state.send((&self.io).into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.io.try_io(Interest::WRITABLE, || Err(error))
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::trace!(%error, %destination, "a datagram was not sent");
                Ok(())
            }
            other => other,
        }
    }

    /// Sends a message of STUN, which is retransmitted if it is lost.
    pub(super) fn send_message(&self, destination: SocketAddr, contents: &[u8]) {
        let _ = self.send(destination, contents, (None, None));
    }

    /// Sends a message with another TTL than usual, where the system allows it. No other send may run at the same time.
    pub(super) fn send_probe(&self, destination: SocketAddr, contents: &[u8], ttl: Option<u8>) {
        let ttl = ttl.zip(self.default_ttl);
        if let Some((ttl, _)) = ttl {
            let _ = self.io.set_ttl(ttl.into());
        }
        self.send_message(destination, contents);
        if let Some((_, default)) = ttl {
            let _ = self.io.set_ttl(default);
        }
    }

    /// Waits until a send may succeed.
    pub(super) async fn writable(&self) {
        let _ = self.io.writable().await;
    }

    /// Receives datagrams, at least one.
    pub(super) fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, meta));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }
}
