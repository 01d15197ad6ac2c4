//! Sockets that send and receive runs of packets: UDP with GSO and GRO, and TCP.
//!
//! On IPv4 loopback one socket serves many endpoints. Each endpoint has its own address of 127.0.0.0/8, so that the server sees one 5-tuple per
//! endpoint, and one call receives the packets of all of them.

use super::framed_tcp::FramedTcp;
use super::target::{LoadTransport, Target};
use crate::net::time;
use crate::net::udp::{BatchUdpSocket, MAX_RUN, MAX_RUN_BYTES, Role, Route, RxBuffers};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

/// Kernel receive buffer of a shared socket.
const SHARED_BUFFER: usize = 8 << 20;
/// Endpoints per shared socket.
pub(super) const ENDPOINTS_PER_SOCKET: usize = 128;
/// The address of the first endpoint of a shared socket; the others follow it.
const FIRST_ADDRESS: u32 = 0x7F4D_0001;

/// Whether runs of datagrams are sent with one call (GSO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segmentation(pub(super) bool);

/// Consecutive packets of one size for one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacketRun<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of each packet.
    pub(super) stride: usize,
}

impl PacketRun<'_> {
    pub(super) fn count(&self) -> usize {
        self.bytes.len() / self.stride.max(1)
    }

    /// Splits off the packets of one call.
    fn split(self, segmentation: Segmentation) -> (Self, Self) {
        let stride = self.stride.max(1);
        let most = if segmentation.0 { (MAX_RUN_BYTES / stride).clamp(1, MAX_RUN) } else { MAX_RUN };
        let end = (most * stride).min(self.bytes.len());
        let (first, rest) = self.bytes.split_at(end);
        (Self { bytes: first, ..self }, Self { bytes: rest, ..self })
    }
}

/// The source and the destination of packets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SocketRoute {
    /// The endpoint's index at a shared socket; otherwise 0.
    pub(super) index: usize,
    /// `None` for a peer that does not know its destination yet. A TCP connection ignores it.
    pub(super) to: Option<SocketAddr>,
}

/// A socket of one or several endpoints.
#[derive(Debug)]
pub(super) enum LoadSocket {
    /// One endpoint.
    Udp(BatchUdpSocket),
    /// Up to [`ENDPOINTS_PER_SOCKET`].
    SharedUdp(BatchUdpSocket),
    /// One endpoint.
    Tcp(FramedTcp),
}

impl LoadSocket {
    /// Opens the socket of one client.
    pub(super) fn connect(target: Target) -> io::Result<Self> {
        let server = target.address();
        match target.transport() {
            LoadTransport::Udp => {
                let any: IpAddr = match server {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let mut socket = BatchUdpSocket::bind(SocketAddr::new(any, 0), Role::Single)?;
                socket.connect(server)?;
                Ok(Self::Udp(socket))
            }
            LoadTransport::Tcp => FramedTcp::connect(server).map(Self::Tcp),
        }
    }

    /// Opens a peer's socket on a local address.
    pub(super) fn peer(ip: IpAddr) -> io::Result<Self> {
        BatchUdpSocket::bind(SocketAddr::new(ip, 0), Role::Single).map(Self::Udp)
    }

    /// Opens a socket for many endpoints on loopback. With `reports_errors` a closed port is an error of the socket; all endpoints must then send
    /// only to the server.
    pub(super) fn shared(reports_errors: bool) -> io::Result<Self> {
        let socket = BatchUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into(), Role::Single)?;
        // Exceeds the system's limit, which only a privileged process may do.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SHARED_BUFFER);
        if reports_errors {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        }
        Ok(Self::SharedUdp(socket))
    }

    pub(super) fn descriptor(&self) -> RawFd {
        match self {
            Self::Udp(socket) | Self::SharedUdp(socket) => socket.as_raw_fd(),
            Self::Tcp(stream) => stream.descriptor(),
        }
    }

    /// Returns the address of an endpoint.
    pub(super) fn local_addr(&self, index: usize) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => Ok(socket.local_addr()),
            Self::SharedUdp(socket) => {
                Ok(SocketAddr::new(address_of(index).into(), socket.local_addr().port()))
            }
            Self::Tcp(stream) => stream.local_addr(),
        }
    }

    /// Sends a run; returns how many of its packets the kernel accepted. The others are not sent.
    pub(super) fn send(
        &mut self,
        route: SocketRoute,
        run: PacketRun<'_>,
        segmentation: &mut Segmentation,
    ) -> io::Result<usize> {
        let (socket, source) = match self {
            Self::Udp(socket) => (socket, None),
            Self::SharedUdp(socket) => (socket, Some(address_of(route.index).into())),
            Self::Tcp(stream) => return Ok(if stream.send(run.bytes)? { run.count() } else { 0 }),
        };
        let to = route.to.ok_or(io::ErrorKind::NotConnected)?;
        send_run(socket, &Route { source, ..Route::to(to) }, run, segmentation)
    }

    /// Sends queued bytes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Udp(_) | Self::SharedUdp(_) => Ok(()),
            Self::Tcp(stream) => stream.flush(),
        }
    }

    /// Receives once and passes every message to `each` with the time after the call and the endpoint's index. Returns whether the socket is
    /// empty. All sockets may share `rx`.
    pub(super) fn receive(
        &mut self,
        rx: &mut RxBuffers,
        mut each: impl FnMut(Instant, usize, &[u8]),
    ) -> io::Result<bool> {
        rx.clear();
        let (socket, is_shared) = match self {
            Self::Udp(socket) => (socket, false),
            Self::SharedUdp(socket) => (socket, true),
            Self::Tcp(stream) => return stream.receive(rx.stage(0), |now, frame| each(now, 0, frame)),
        };
        let batch = match socket.recv(rx) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            other => other?,
        };
        let now = time::mono();
        for datagram in rx.datagrams(batch) {
            let index = if is_shared { datagram.local_ip.and_then(index_of) } else { Some(0) };
            if let Some(index) = index {
                each(now, index, datagram.payload.as_bytes());
            }
        }
        Ok(batch.is_drained())
    }
}

fn address_of(index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ADDRESS + u32::try_from(index).unwrap_or(0))
}

fn index_of(ip: IpAddr) -> Option<usize> {
    match ip {
        IpAddr::V4(ip) => usize::try_from(ip.to_bits().checked_sub(FIRST_ADDRESS)?).ok(),
        IpAddr::V6(_) => None,
    }
}

/// Sends until the run is sent or the kernel accepts no more.
fn send_run(
    socket: &BatchUdpSocket,
    route: &Route,
    run: PacketRun<'_>,
    segmentation: &mut Segmentation,
) -> io::Result<usize> {
    let (mut sent, mut rest) = (0, run);
    while !rest.bytes.is_empty() {
        let (first, later) = rest.split(*segmentation);
        let (count, error) = send_once(socket, route, first, *segmentation)?;
        sent += count;
        match error.as_ref().and_then(io::Error::raw_os_error).map(Errno::from_raw) {
            None => rest = later,
            Some(Errno::EAGAIN | Errno::ENOBUFS) => break,
            // Packets that are too large for segments, or an interface without GSO: send them one by one.
            Some(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE) if segmentation.0 => segmentation.0 = false,
            Some(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// Sends a run with one call; returns how many packets the kernel accepted, and the first error.
fn send_once(
    socket: &BatchUdpSocket,
    route: &Route,
    run: PacketRun<'_>,
    segmentation: Segmentation,
) -> io::Result<(usize, Option<io::Error>)> {
    let is_segmented = segmentation.0 && run.count() > 1;
    let segment = is_segmented.then(|| u16::try_from(run.stride).map_err(|_| Errno::EMSGSIZE)).transpose()?;
    let message = socket.message(route, segment, 1)?;
    let (mut lost, mut first_error) = (0, None);
    let mut on_lost = |_, error| {
        lost += 1;
        first_error.get_or_insert(error);
    };
    let messages = if is_segmented || run.count() <= 1 {
        socket.send_all(&[message], &[IoSlice::new(run.bytes)], &mut on_lost);
        1
    } else {
        let parts: Vec<_> = run.bytes.chunks_exact(run.stride).map(IoSlice::new).collect();
        socket.send_all(&vec![message; parts.len()], &parts, &mut on_lost);
        parts.len()
    };
    Ok((run.count() / messages * (messages - lost), first_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize, stride: usize) -> Vec<u8> {
        (0..count).flat_map(|n| vec![n as u8; stride]).collect()
    }

    fn received(socket: &mut LoadSocket, count: usize) -> Vec<(usize, Vec<u8>)> {
        let mut rx = RxBuffers::default();
        let mut all = Vec::new();
        while all.len() < count {
            socket.receive(&mut rx, |_, index, packet| all.push((index, packet.to_vec()))).unwrap();
        }
        all
    }

    #[test]
    fn runs_arrive_packet_by_packet_with_and_without_segmentation() {
        let ip = Ipv4Addr::LOCALHOST.into();
        for on in [true, false] {
            for mut here in [LoadSocket::peer(ip).unwrap(), LoadSocket::shared(false).unwrap()] {
                let mut there = LoadSocket::peer(ip).unwrap();
                let route = SocketRoute { index: 0, to: Some(there.local_addr(0).unwrap()) };
                for (count, stride) in [(1, 20), (7, 172), (100, 1200), (3, 40_000)] {
                    let bytes = bytes(count, stride);
                    let run = PacketRun { bytes: &bytes, stride };
                    let sent = here.send(route, run, &mut Segmentation(on)).unwrap();
                    assert_eq!(sent, count, "{count} of {stride}");
                    let packets = received(&mut there, count);
                    assert!(packets.iter().all(|(index, packet)| (*index, packet.len()) == (0, stride)));
                    let packets: Vec<_> = packets.into_iter().flat_map(|(_, packet)| packet).collect();
                    assert_eq!(packets, bytes);
                }
            }
        }
    }

    #[test]
    fn endpoints_of_a_shared_socket_have_their_own_addresses() {
        let mut here = LoadSocket::shared(true).unwrap();
        let mut there = LoadSocket::shared(false).unwrap();
        for index in [0, 1, ENDPOINTS_PER_SOCKET - 1] {
            let other = ENDPOINTS_PER_SOCKET - 1 - index;
            let route = SocketRoute { index: other, to: Some(there.local_addr(index).unwrap()) };
            here.send(route, PacketRun { bytes: b"hello", stride: 5 }, &mut Segmentation(true)).unwrap();
            assert_eq!(received(&mut there, 1), [(index, b"hello".to_vec())]);
            let back = SocketRoute { index, to: Some(here.local_addr(other).unwrap()) };
            there.send(back, PacketRun { bytes: b"back", stride: 4 }, &mut Segmentation(true)).unwrap();
            assert_eq!(received(&mut here, 1), [(other, b"back".to_vec())]);
        }
    }
}
