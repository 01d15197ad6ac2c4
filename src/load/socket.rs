//! Sockets that send and receive runs of packets: UDP with GSO and GRO, and TCP.
//!
//! On IPv4 loopback one socket serves many endpoints. Each endpoint has its own address of 127.0.0.0/8, so that the server sees one 5-tuple per
//! endpoint, and one call receives the packets of all of them.

use super::target::{LoadTransport, Target};
use crate::net::time;
use crate::turn_wire as wire;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrStorage, recvmmsg,
    sendmmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Kernel buffer of a socket in each direction. A server may answer in bursts that exceed the default.
const BUFFER: usize = 1 << 20;
/// The same for a shared socket.
const SHARED_BUFFER: usize = 8 << 20;
/// Endpoints per shared socket.
pub(super) const ENDPOINTS_PER_SOCKET: usize = 128;
/// The address of the first endpoint of a shared socket; the others follow it.
const FIRST_ADDRESS: u32 = 0x7F4D_0001;
const MAX_DATAGRAM: usize = 65_535;
/// The largest and the smallest number of buffers of one receive call.
const MAX_BUFFERS: usize = 32;
const MIN_BUFFERS: usize = 4;
/// The limits of one GSO send, in packets and in bytes.
const MAX_SEGMENTS: usize = 64;
const MAX_BYTES: usize = 65_000;
/// Bytes queued for a TCP connection whose socket is full.
const MAX_QUEUED: usize = 256 * 1024;
const CONNECT_TIME: Duration = Duration::from_secs(5);

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
}

/// The source and the destination of packets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SocketRoute {
    /// The endpoint's index at a shared socket; otherwise 0.
    pub(super) index: usize,
    /// `None` on sockets that are connected.
    pub(super) to: Option<SocketAddr>,
}

/// A socket of one or several endpoints.
#[derive(Debug)]
pub(super) enum LoadSocket {
    /// One endpoint.
    Udp(UdpSocket),
    /// Up to [`ENDPOINTS_PER_SOCKET`].
    SharedUdp(UdpSocket),
    /// One endpoint.
    Tcp(FramedTcp),
}

#[derive(Debug)]
pub(super) struct FramedTcp {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl LoadSocket {
    /// Opens the socket of one client.
    pub(super) fn connect(target: Target) -> io::Result<Self> {
        match target.transport() {
            LoadTransport::Udp => {
                let socket = datagrams(target.address(), BUFFER)?;
                socket.connect(target.address())?;
                Ok(Self::Udp(socket))
            }
            LoadTransport::Tcp => {
                let stream = TcpStream::connect_timeout(&target.address(), CONNECT_TIME)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Tcp(FramedTcp { stream, inbox: Vec::new(), outbox: Vec::new() }))
            }
        }
    }

    /// Opens a peer's socket on a local address.
    pub(super) fn peer(ip: IpAddr) -> io::Result<Self> {
        let socket = datagrams(SocketAddr::new(ip, 0), BUFFER)?;
        socket2::SockRef::from(&socket).bind(&SocketAddr::new(ip, 0).into())?;
        Ok(Self::Udp(socket))
    }

    /// Opens a socket for many endpoints on loopback. With `reports_errors` a closed port is an error of the socket; all endpoints must then send
    /// only to the server.
    pub(super) fn shared(reports_errors: bool) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = datagrams(any, SHARED_BUFFER)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        if reports_errors {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        }
        socket2::SockRef::from(&socket).bind(&any.into())?;
        Ok(Self::SharedUdp(socket))
    }

    pub(super) fn descriptor(&self) -> RawFd {
        match self {
            Self::Udp(socket) | Self::SharedUdp(socket) => socket.as_raw_fd(),
            Self::Tcp(stream) => stream.stream.as_raw_fd(),
        }
    }

    /// Returns the address of an endpoint.
    pub(super) fn local_addr(&self, index: usize) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::SharedUdp(socket) => {
                Ok(SocketAddr::new(address_of(index).into(), socket.local_addr()?.port()))
            }
            Self::Tcp(stream) => stream.stream.local_addr(),
        }
    }

    /// Sends a run; returns how many of its packets the kernel accepted. The others are not sent.
    pub(super) fn send(
        &mut self,
        route: SocketRoute,
        run: PacketRun<'_>,
        segmentation: &mut Segmentation,
    ) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => send_all(run, segmentation, |run, segmentation| {
                send_from_own(socket, route.to, run, segmentation)
            }),
            Self::SharedUdp(socket) => send_all(run, segmentation, |run, segmentation| {
                send_shared(socket.as_raw_fd(), route, run, segmentation)
            }),
            Self::Tcp(stream) if stream.outbox.len() >= MAX_QUEUED => Ok(0),
            Self::Tcp(stream) => stream.send(run.bytes).map(|()| run.count()),
        }
    }

    /// Sends queued bytes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Udp(_) | Self::SharedUdp(_) => Ok(()),
            Self::Tcp(stream) => stream.flush(),
        }
    }

    /// Receives once and passes every message to `each` with the time after the call and the endpoint's index. Returns whether the socket is
    /// empty.
    pub(super) fn receive(
        &mut self,
        batch: &mut ReceiveBatch,
        mut each: impl FnMut(Instant, usize, &[u8]),
    ) -> io::Result<bool> {
        match self {
            Self::Udp(socket) | Self::SharedUdp(socket) => {
                match batch.fill(socket.as_raw_fd()) {
                    Err(Errno::EAGAIN) => return Ok(true),
                    Err(Errno::EINTR) => return Ok(false),
                    other => other?,
                }
                let now = time::mono();
                batch.packets().for_each(|(index, packet)| each(now, index, packet));
                Ok(batch.filled < batch.offered)
            }
            Self::Tcp(stream) => stream.receive(&mut batch.bytes, |now, frame| each(now, 0, frame)),
        }
    }
}

fn address_of(index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ADDRESS + u32::try_from(index).unwrap_or(0))
}

fn datagrams(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(buffer)?;
    socket.set_send_buffer_size(buffer)?;
    // Exceeds the system's limit where the process has the privilege.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &buffer);
    socket.set_nonblocking(true)?;
    // Older kernels do not support GRO: datagrams then arrive one by one.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    Ok(socket.into())
}

/// Calls `send` until the run is sent or the kernel accepts no more.
fn send_all(
    run: PacketRun<'_>,
    segmentation: &mut Segmentation,
    mut send: impl FnMut(PacketRun<'_>, Segmentation) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut sent = 0;
    while sent < run.count() {
        let rest = PacketRun { bytes: &run.bytes[sent * run.stride..], ..run };
        match send(rest, *segmentation) {
            Ok(count) => sent += count,
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EINTR => {}
                Errno::EAGAIN | Errno::ENOBUFS => break,
                // Packets that are too large for segments, or an interface without GSO: send them one by one.
                Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE if segmentation.0 => segmentation.0 = false,
                _ => return Err(error),
            },
        }
    }
    Ok(sent)
}

/// Returns how many packets go into one segmented send.
fn segments(run: PacketRun<'_>) -> usize {
    run.count().min(MAX_SEGMENTS).min((MAX_BYTES / run.stride).max(1))
}

fn send_from_own(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    run: PacketRun<'_>,
    segmentation: Segmentation,
) -> io::Result<usize> {
    match (run.count(), to) {
        (1, Some(to)) => socket.send_to(run.bytes, to).map(|_| 1),
        (1, None) => socket.send(run.bytes).map(|_| 1),
        _ if segmentation.0 => {
            let (count, size) = (segments(run), segment_size(run)?);
            let to = to.map(SockaddrStorage::from);
            let bytes = [IoSlice::new(&run.bytes[..count * run.stride])];
            let controls = [ControlMessage::UdpGsoSegments(&size)];
            sendmsg(socket.as_raw_fd(), &bytes, &controls, MsgFlags::empty(), to.as_ref())?;
            Ok(count)
        }
        _ => send_each(socket.as_raw_fd(), to.map(SockaddrStorage::from), run, &[]),
    }
}

fn send_shared(
    socket: RawFd,
    route: SocketRoute,
    run: PacketRun<'_>,
    segmentation: Segmentation,
) -> io::Result<usize> {
    let Some(SocketAddr::V4(to)) = route.to else { return Err(io::ErrorKind::InvalidInput.into()) };
    let (to, source) = (SockaddrIn::from(to), source(route.index));
    let from = ControlMessage::Ipv4PacketInfo(&source);
    if run.count() > 1 && !segmentation.0 {
        return send_each(socket, Some(to), run, &[from]);
    }
    let (count, size) = (segments(run), segment_size(run)?);
    let bytes = [IoSlice::new(&run.bytes[..count * run.stride])];
    match count {
        1 => sendmsg(socket, &bytes, &[from], MsgFlags::empty(), Some(&to))?,
        _ => {
            let controls = [from, ControlMessage::UdpGsoSegments(&size)];
            sendmsg(socket, &bytes, &controls, MsgFlags::empty(), Some(&to))?
        }
    };
    Ok(count)
}

fn source(index: usize) -> in_pktinfo {
    let s_addr = u32::from_ne_bytes(address_of(index).octets());
    in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: in_addr { s_addr }, ipi_addr: in_addr { s_addr: 0 } }
}

fn segment_size(run: PacketRun<'_>) -> io::Result<u16> {
    u16::try_from(run.stride).map_err(|_| io::Error::from(Errno::EMSGSIZE))
}

fn send_each<S: nix::sys::socket::SockaddrLike + Copy>(
    socket: RawFd,
    to: Option<S>,
    run: PacketRun<'_>,
    controls: &[ControlMessage<'_>],
) -> io::Result<usize> {
    let slices: Vec<_> =
        run.bytes.chunks_exact(run.stride).take(MAX_SEGMENTS).map(|packet| [IoSlice::new(packet)]).collect();
    let addresses = vec![to; slices.len()];
    let buffer = (!controls.is_empty()).then(|| nix::cmsg_space!(in_pktinfo));
    let mut headers = MultiHeaders::preallocate(slices.len(), buffer);
    let sent = sendmmsg(socket, &mut headers, &slices, &addresses, controls, MsgFlags::empty())?;
    Ok(sent.count())
}

impl FramedTcp {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.outbox.extend_from_slice(bytes);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let outcome = loop {
            if written == self.outbox.len() {
                break Ok(());
            }
            match self.stream.write(&self.outbox[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.outbox.drain(..written);
        outcome
    }

    fn receive(&mut self, buffer: &mut [u8], mut each: impl FnMut(Instant, &[u8])) -> io::Result<bool> {
        let buffer = &mut buffer[..MAX_DATAGRAM];
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = time::mono();
        self.inbox.extend_from_slice(&buffer[..count]);
        let mut begin = 0;
        while let Some(len) = wire::frame_len(&self.inbox[begin..])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
        {
            let Some(frame) = self.inbox.get(begin..begin + len) else { break };
            each(now, frame);
            begin += len;
        }
        self.inbox.drain(..begin);
        Ok(count < MAX_DATAGRAM)
    }
}

/// The content of one buffer after a call.
#[derive(Debug, Clone, Copy, Default)]
struct ReceivedBuffer {
    len: usize,
    /// Bytes of each packet except the last.
    stride: usize,
    index: usize,
}

/// The buffers of one receive call, shared by all sockets: 2 MB.
#[derive(Debug)]
pub(super) struct ReceiveBatch {
    bytes: Vec<u8>,
    arrivals: [ReceivedBuffer; MAX_BUFFERS],
    filled: usize,
    offered: usize,
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self {
            bytes: vec![0; MAX_DATAGRAM * MAX_BUFFERS],
            arrivals: [ReceivedBuffer::default(); MAX_BUFFERS],
            filled: 0,
            offered: MIN_BUFFERS,
        }
    }
}

impl ReceiveBatch {
    fn fill(&mut self, socket: RawFd) -> nix::Result<()> {
        self.offered = if self.filled == self.offered {
            (self.offered * 2).min(MAX_BUFFERS)
        } else {
            (self.filled * 2).next_power_of_two().clamp(MIN_BUFFERS, MAX_BUFFERS)
        };
        self.filled = 0;
        // `nix` leaves in used headers the lengths that the kernel wrote, so every call needs fresh ones.
        let mut headers =
            MultiHeaders::<()>::preallocate(self.offered, Some(nix::cmsg_space!(i32, in_pktinfo)));
        let mut chunks = self.bytes.chunks_exact_mut(MAX_DATAGRAM);
        let mut slices: [_; MAX_BUFFERS] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let received = recvmmsg(socket, &mut headers, slices.iter_mut(), MsgFlags::empty(), None)?;
        for (message, filled) in received.zip(&mut self.arrivals) {
            *filled = ReceivedBuffer { len: message.bytes, stride: message.bytes, index: 0 };
            for control in message.cmsgs().into_iter().flatten() {
                match control {
                    ControlMessageOwned::UdpGroSegments(size) => {
                        filled.stride = usize::try_from(size).unwrap_or(message.bytes);
                    }
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).to_bits();
                        filled.index = to.wrapping_sub(FIRST_ADDRESS) as usize;
                    }
                    _ => {}
                }
            }
            self.filled += 1;
        }
        Ok(())
    }

    fn packets(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let filled = self.bytes.chunks_exact(MAX_DATAGRAM).zip(&self.arrivals).take(self.filled);
        filled.flat_map(|(buffer, filled)| {
            buffer[..filled.len].chunks(filled.stride.max(1)).map(|packet| (filled.index, packet))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize, stride: usize) -> Vec<u8> {
        (0..count).flat_map(|n| vec![n as u8; stride]).collect()
    }

    fn received(socket: &mut LoadSocket, count: usize) -> Vec<(usize, Vec<u8>)> {
        let mut batch = ReceiveBatch::default();
        let mut all = Vec::new();
        while all.len() < count {
            socket.receive(&mut batch, |_, index, packet| all.push((index, packet.to_vec()))).unwrap();
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

    #[test]
    fn a_stream_is_split_into_its_frames() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = Target::new(listener.local_addr().unwrap(), LoadTransport::Tcp, false).unwrap();
        let mut socket = LoadSocket::connect(target).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(&[0x40, 0, 0, 1, 9, 0, 0, 0, 0x40, 0]).unwrap();
        assert_eq!(received(&mut socket, 1), [(0, vec![0x40, 0, 0, 1, 9, 0, 0, 0])]);
        server.write_all(&[0, 0]).unwrap();
        assert_eq!(received(&mut socket, 1), [(0, vec![0x40, 0, 0, 0])]);
        server.write_all(&[0xFF; 8]).unwrap();
        let mut batch = ReceiveBatch::default();
        let broken = loop {
            match socket.receive(&mut batch, |_, _, _| {}) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(broken.kind(), io::ErrorKind::InvalidData);
    }
}
