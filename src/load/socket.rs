//! Sockets that send and receive in runs: UDP with GSO and GRO, TCP with whatever fits.

use super::target::{Target, Transport};
use crate::net::time;
use crate::turn_server::wire;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Kernel buffer of a socket, in each direction: a server may answer in larger bursts than the default holds.
const BUFFER: usize = 1 << 20;
const MAX_DATAGRAM: usize = 65_535;
/// Most buffers of one receiving call, and how many are offered while little comes.
const MOST_BUFFERS: usize = 32;
const FEW_BUFFERS: usize = 4;
/// What the kernel takes as one GSO send, in packets and in bytes.
const MOST_SEGMENTS: usize = 64;
const MOST_BYTES: usize = 65_000;
/// Bytes that may wait for a connection that takes no more.
const MOST_WAITING: usize = 256 * 1024;
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Whether runs of datagrams are handed to the kernel as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segmentation(pub(super) bool);

/// Packets of one size for one destination.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Run {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

/// One end that packets leave from and arrive at.
#[derive(Debug)]
pub(super) enum Door {
    Datagrams(UdpSocket),
    Stream(Stream),
}

#[derive(Debug)]
pub(super) struct Stream {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Door {
    /// Opens the way of one client to the server.
    pub(super) fn to(target: Target) -> io::Result<Self> {
        match target.transport() {
            Transport::Udp => {
                let socket = datagrams(target.address())?;
                socket.connect(target.address())?;
                Ok(Self::Datagrams(socket))
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&target.address(), CONNECT_TIME)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Stream(Stream { stream, inbox: Vec::new(), outbox: Vec::new() }))
            }
        }
    }

    /// Opens a peer's socket on a local address.
    pub(super) fn peer(ip: IpAddr) -> io::Result<(Self, SocketAddr)> {
        let socket = datagrams(SocketAddr::new(ip, 0))?;
        socket2::SockRef::from(&socket).bind(&SocketAddr::new(ip, 0).into())?;
        let address = socket.local_addr()?;
        Ok((Self::Datagrams(socket), address))
    }

    pub(super) fn descriptor(&self) -> RawFd {
        match self {
            Self::Datagrams(socket) => socket.as_raw_fd(),
            Self::Stream(stream) => stream.stream.as_raw_fd(),
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Datagrams(socket) => socket.local_addr(),
            Self::Stream(stream) => stream.stream.local_addr(),
        }
    }

    /// Sends one message, whole or not at all.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagrams(socket) => socket.send(message).map(drop),
            Self::Stream(stream) => stream.send(message),
        }
    }

    /// Sends a run; returns how many packets of it the kernel took. What finds its buffers full stays behind.
    pub(super) fn send_run(
        &mut self,
        to: Option<SocketAddr>,
        run: &Run,
        segmentation: &mut Segmentation,
    ) -> io::Result<usize> {
        match self {
            Self::Datagrams(socket) => send_datagrams(socket, to, run, segmentation),
            Self::Stream(stream) if stream.outbox.len() >= MOST_WAITING => Ok(0),
            Self::Stream(stream) => stream.send(&run.bytes).map(|()| run.count),
        }
    }

    /// Sends what had to wait.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Datagrams(_) => Ok(()),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Receives once, and hands every message to `each` with the moment after the call. Returns whether nothing more waits.
    pub(super) fn receive(
        &mut self,
        batch: &mut Batch,
        mut each: impl FnMut(Instant, &[u8]),
    ) -> io::Result<bool> {
        match self {
            Self::Datagrams(socket) => {
                match batch.fill(socket.as_raw_fd()) {
                    Err(Errno::EAGAIN) => return Ok(true),
                    Err(Errno::EINTR) => return Ok(false),
                    other => other?,
                }
                let now = time::now().mono;
                batch.packets().for_each(|packet| each(now, packet));
                Ok(batch.filled < batch.offered)
            }
            Self::Stream(stream) => stream.receive(&mut batch.bytes, each),
        }
    }
}

fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    // Older kernels know no GRO: datagrams then arrive one by one.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    Ok(socket.into())
}

fn send_datagrams(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    run: &Run,
    segmentation: &mut Segmentation,
) -> io::Result<usize> {
    let stride = run.bytes.len() / run.count.max(1);
    let mut sent = 0;
    while sent < run.count {
        let rest = &run.bytes[sent * stride..];
        let outcome = match run.count - sent {
            1 => match to {
                Some(to) => socket.send_to(rest, to).map(|_| 1),
                None => socket.send(rest).map(|_| 1),
            },
            count if segmentation.0 => {
                let count = count.min(MOST_SEGMENTS).min((MOST_BYTES / stride).max(1));
                send_segments(socket.as_raw_fd(), to, &rest[..count * stride], stride).map(|()| count)
            }
            count => send_each(socket.as_raw_fd(), to, &rest[..count * stride], stride),
        };
        match outcome {
            Ok(count) => sent += count,
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EINTR => {}
                Errno::EAGAIN | Errno::ENOBUFS => break,
                // Packets that are too large for a segment, or an interface that cannot: one by one then.
                Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE if segmentation.0 => segmentation.0 = false,
                _ => return Err(error),
            },
        }
    }
    Ok(sent)
}

fn send_segments(socket: RawFd, to: Option<SocketAddr>, bytes: &[u8], stride: usize) -> io::Result<()> {
    let size = u16::try_from(stride).map_err(|_| io::Error::from(Errno::EMSGSIZE))?;
    let to = to.map(SockaddrStorage::from);
    let controls = [ControlMessage::UdpGsoSegments(&size)];
    sendmsg(socket, &[IoSlice::new(bytes)], &controls, MsgFlags::empty(), to.as_ref())?;
    Ok(())
}

fn send_each(socket: RawFd, to: Option<SocketAddr>, bytes: &[u8], stride: usize) -> io::Result<usize> {
    let slices: Vec<_> = bytes.chunks_exact(stride).map(|packet| [IoSlice::new(packet)]).collect();
    let addresses = vec![to.map(SockaddrStorage::from); slices.len()];
    let mut headers = MultiHeaders::preallocate(slices.len(), None);
    let sent = sendmmsg(socket, &mut headers, &slices, &addresses, [], MsgFlags::empty())?;
    Ok(sent.count())
}

impl Stream {
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

    fn receive(&mut self, room: &mut [u8], mut each: impl FnMut(Instant, &[u8])) -> io::Result<bool> {
        let room = &mut room[..MAX_DATAGRAM];
        let count = match self.stream.read(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = time::now().mono;
        self.inbox.extend_from_slice(&room[..count]);
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

/// Room for what one receiving call takes, shared by all sockets: 2 MB.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Length of each filled buffer, and of the packets in it.
    lengths: [(usize, usize); MOST_BUFFERS],
    filled: usize,
    offered: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: vec![0; MAX_DATAGRAM * MOST_BUFFERS],
            lengths: [(0, 0); MOST_BUFFERS],
            filled: 0,
            offered: FEW_BUFFERS,
        }
    }
}

impl Batch {
    fn fill(&mut self, socket: RawFd) -> nix::Result<()> {
        self.offered = if self.filled == self.offered {
            (self.offered * 2).min(MOST_BUFFERS)
        } else {
            (self.offered / 2).max(FEW_BUFFERS)
        };
        self.filled = 0;
        // `nix` leaves in used headers the lengths that the kernel wrote, so every call needs fresh ones.
        let mut headers =
            MultiHeaders::<SockaddrStorage>::preallocate(self.offered, Some(nix::cmsg_space!(i32)));
        let mut chunks = self.bytes.chunks_exact_mut(MAX_DATAGRAM);
        let mut slices: [_; MOST_BUFFERS] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let received = recvmmsg(socket, &mut headers, slices.iter_mut(), MsgFlags::empty(), None)?;
        for (message, lengths) in received.zip(&mut self.lengths) {
            let segment = message.cmsgs().into_iter().flatten().find_map(|control| match control {
                ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
                _ => None,
            });
            *lengths = (message.bytes, segment.unwrap_or(message.bytes));
            self.filled += 1;
        }
        Ok(())
    }

    fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let filled = self.bytes.chunks_exact(MAX_DATAGRAM).zip(&self.lengths).take(self.filled);
        filled.flat_map(|(buffer, (len, stride))| buffer[..*len].chunks((*stride).max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn run(count: usize, stride: usize) -> Run {
        Run { bytes: (0..count).flat_map(|n| vec![n as u8; stride]).collect(), count }
    }

    fn received(door: &mut Door, count: usize) -> Vec<Vec<u8>> {
        let mut batch = Batch::default();
        let mut all = Vec::new();
        while all.len() < count {
            door.receive(&mut batch, |_, packet| all.push(packet.to_vec())).unwrap();
        }
        all
    }

    #[test]
    fn runs_arrive_packet_by_packet_with_and_without_segmentation() {
        let ip = Ipv4Addr::LOCALHOST.into();
        for on in [true, false] {
            let (mut here, _) = Door::peer(ip).unwrap();
            let (mut there, to) = Door::peer(ip).unwrap();
            for (count, stride) in [(1, 20), (7, 172), (100, 1200), (3, 40_000)] {
                let run = run(count, stride);
                let sent = here.send_run(Some(to), &run, &mut Segmentation(on)).unwrap();
                assert_eq!(sent, count, "{count} of {stride}");
                let packets = received(&mut there, count);
                assert_eq!(packets.concat(), run.bytes);
                assert!(packets.iter().all(|packet| packet.len() == stride));
            }
        }
    }

    #[test]
    fn a_stream_is_cut_into_its_frames() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = Target::new(listener.local_addr().unwrap(), Transport::Tcp, false).unwrap();
        let mut door = Door::to(target).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(&[0x40, 0, 0, 1, 9, 0, 0, 0, 0x40, 0]).unwrap();
        assert_eq!(received(&mut door, 1), [[0x40, 0, 0, 1, 9, 0, 0, 0]]);
        server.write_all(&[0, 0]).unwrap();
        assert_eq!(received(&mut door, 1), [[0x40, 0, 0, 0]]);
        server.write_all(&[0xFF; 8]).unwrap();
        let mut batch = Batch::default();
        let broken = loop {
            match door.receive(&mut batch, |_, _| {}) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(broken.kind(), io::ErrorKind::InvalidData);
    }
}
