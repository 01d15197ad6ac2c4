//! Forwarders: the cost of relaying without the work of a relay. They implement only as much TURN as a client needs for a socket and a peer, and
//! check nothing: no credentials, permissions, lifetimes or limits. Only for benchmarks.

use anyhow::{Context, bail};
use ginnel::stun::{Builder, Class, Message, Method, attr};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, sendmsg,
    setsockopt, sockopt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

const BUFFER: usize = 4 << 20;
const BATCH: usize = 32;
const MAX_DATAGRAM: usize = 65_535;
const HEADER: usize = 4;
/// The largest run of segments, in packets.
const MOST_SEGMENTS: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IoMode {
    /// One `recvfrom` and one `sendto` per packet.
    Plain,
    /// `recvmmsg`, and `sendmmsg` per socket.
    Batched,
    /// The same with UDP_GRO and UDP_SEGMENT.
    Segmented,
}

struct Flow {
    client: SocketAddrV4,
    socket: UdpSocket,
    peer: Option<SocketAddrV4>,
    header: [u8; HEADER],
}

struct Received {
    from: SocketAddrV4,
    len: usize,
    stride: usize,
}

struct Forwarder {
    mode: IoMode,
    main: UdpSocket,
    poll: Poll,
    flows: Vec<Flow>,
    by_client: HashMap<SocketAddrV4, usize>,
    buffers: Vec<u8>,
    received: Vec<Received>,
}

/// Forwards until it is killed.
pub(super) fn run(mode: &str, address: SocketAddr) -> anyhow::Result<()> {
    let mode = match mode {
        "plain" => IoMode::Plain,
        "batched" => IoMode::Batched,
        "segmented" => IoMode::Segmented,
        _ => bail!("--forward {mode}: not plain, batched or segmented"),
    };
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let main = open(address, mode)?;
    let poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&main.as_raw_fd()), Token(0), Interest::READABLE)?;
    let mut forwarder = Forwarder {
        mode,
        main,
        poll,
        flows: Vec::new(),
        by_client: HashMap::new(),
        buffers: vec![0; MAX_DATAGRAM * BATCH],
        received: Vec::new(),
    };
    let mut events = Events::with_capacity(1024);
    loop {
        match forwarder.poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let Token(token) = event.token();
            while forwarder.step(token)? {}
        }
    }
}

fn open(address: SocketAddr, mode: IoMode) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if mode == IoMode::Segmented {
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    }
    Ok(socket.into())
}

impl Forwarder {
    /// Receives once from the main socket (0) or that of a flow, and forwards; returns whether it may have more.
    fn step(&mut self, token: usize) -> anyhow::Result<bool> {
        let socket = match token {
            0 => &self.main,
            _ => &self.flows[token - 1].socket,
        };
        let more = receive(self.mode, socket, &mut self.buffers, &mut self.received)?;
        if self.received.is_empty() {
            return Ok(false);
        }
        if token == 0 {
            self.from_clients()?
        } else {
            self.to_client(token - 1)?
        }
        Ok(more)
    }

    fn from_clients(&mut self) -> anyhow::Result<()> {
        let mut at = 0;
        while at < self.received.len() {
            let Received { from, len, stride } = self.received[at];
            let packet = &self.buffers[at * MAX_DATAGRAM..][..len];
            if packet.first().is_none_or(|first| first & 0xC0 != 0x40) {
                let packet = packet.to_vec();
                self.answer(from, &packet)?;
                at += 1;
                continue;
            }
            // Consecutive packets of one client are sent by one socket.
            let end = at + self.received[at..].iter().take_while(|next| next.from == from).count();
            if let Some(flow) = self.by_client.get(&from).map(|flow| &self.flows[*flow])
                && let Some(peer) = flow.peer
            {
                let packets = self.received[at..end].iter().enumerate().flat_map(|(n, received)| {
                    self.buffers[(at + n) * MAX_DATAGRAM..][..received.len].chunks(stride.max(HEADER))
                });
                let payloads: Vec<_> = packets
                    .filter_map(|packet| Some([IoSlice::new(packet.get(HEADER..)?), IoSlice::new(&[])]))
                    .collect();
                send(self.mode, &flow.socket, peer, &payloads)?;
            }
            at = end;
        }
        Ok(())
    }

    fn to_client(&mut self, flow: usize) -> anyhow::Result<()> {
        let flow = &self.flows[flow];
        let packets = self.received.iter().enumerate().flat_map(|(n, received)| {
            self.buffers[n * MAX_DATAGRAM..][..received.len].chunks(received.stride.max(1))
        });
        let mut headers = Vec::new();
        let packets: Vec<_> = packets.collect();
        for packet in &packets {
            let [high, low] = u16::try_from(packet.len())?.to_be_bytes();
            headers.push([flow.header[0], flow.header[1], high, low]);
        }
        let framed: Vec<_> = headers
            .iter()
            .zip(&packets)
            .map(|(header, packet)| [IoSlice::new(header), IoSlice::new(packet)])
            .collect();
        send(self.mode, &self.main, flow.client, &framed)
    }

    fn answer(&mut self, from: SocketAddrV4, packet: &[u8]) -> anyhow::Result<()> {
        let Ok(message) = Message::parse(packet) else { return Ok(()) };
        let mut reply = Builder::new(Class::Success, message.method(), message.transaction());
        let attributes = message.unverified();
        if message.method() == Method::ALLOCATE {
            let flow = match self.by_client.get(&from) {
                Some(flow) => *flow,
                None => self.add(from)?,
            };
            reply = reply.xor_address(attr::XOR_RELAYED_ADDRESS, self.flows[flow].socket.local_addr()?);
            reply = reply.attribute(attr::LIFETIME, &600_u32.to_be_bytes());
        } else if let Some(flow) = self.by_client.get(&from) {
            let flow = &mut self.flows[*flow];
            if let Ok(Some(SocketAddr::V4(peer))) = attributes.xor_address(attr::XOR_PEER_ADDRESS) {
                flow.peer = Some(peer);
            }
            if let Some([high, low, ..]) = attributes.get(attr::CHANNEL_NUMBER) {
                flow.header = [*high, *low, 0, 0];
            }
        }
        self.main.send_to(&reply.xor_address(attr::XOR_MAPPED_ADDRESS, from.into()).finish(), from)?;
        Ok(())
    }

    fn add(&mut self, client: SocketAddrV4) -> anyhow::Result<usize> {
        let ip = self.main.local_addr()?.ip();
        let socket = open(SocketAddr::new(ip, 0), self.mode).context("another flow")?;
        let number = self.flows.len();
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(number + 1),
            Interest::READABLE,
        )?;
        self.flows.push(Flow { client, socket, peer: None, header: [0; HEADER] });
        self.by_client.insert(client, number);
        Ok(number)
    }
}

/// Receives once; returns whether the socket may have more.
fn receive(
    mode: IoMode,
    socket: &UdpSocket,
    buffers: &mut [u8],
    received: &mut Vec<Received>,
) -> anyhow::Result<bool> {
    received.clear();
    if mode == IoMode::Plain {
        return match socket.recv_from(&mut buffers[..MAX_DATAGRAM]) {
            Ok((len, SocketAddr::V4(from))) => {
                received.push(Received { from, len, stride: len });
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
            other => bail!("{other:?}"),
        };
    }
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, Some(nix::cmsg_space!(i32)));
    let mut slices: Vec<_> =
        buffers.chunks_exact_mut(MAX_DATAGRAM).map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let messages =
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::empty(), None) {
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::ECONNREFUSED | Errno::EINTR) => return Ok(true),
            other => other?,
        };
    for message in messages {
        let stride = message.cmsgs().into_iter().flatten().find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.map(SocketAddrV4::from).context("no address")?;
        received.push(Received { from, len: message.bytes, stride: stride.unwrap_or(message.bytes) });
    }
    Ok(received.len() == BATCH)
}

/// Sends packets of two parts each; those that do not fit the socket's buffer are lost.
fn send(
    mode: IoMode,
    socket: &UdpSocket,
    to: SocketAddrV4,
    packets: &[[IoSlice<'_>; 2]],
) -> anyhow::Result<()> {
    let to = Some(SockaddrIn::from(to));
    let outcome = match mode {
        _ if packets.is_empty() => return Ok(()),
        IoMode::Segmented if packets.len() > 1 => return send_segments(socket, to, packets),
        IoMode::Plain | IoMode::Segmented => packets.iter().try_for_each(|parts| {
            sendmsg(socket.as_raw_fd(), parts, &[], MsgFlags::empty(), to.as_ref()).map(drop)
        }),
        IoMode::Batched => {
            let mut headers = MultiHeaders::preallocate(packets.len(), None);
            let to = vec![to; packets.len()];
            sendmmsg(socket.as_raw_fd(), &mut headers, packets, &to, [], MsgFlags::empty()).map(drop)
        }
    };
    match outcome {
        Ok(()) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn send_segments(
    socket: &UdpSocket,
    to: Option<SockaddrIn>,
    packets: &[[IoSlice<'_>; 2]],
) -> anyhow::Result<()> {
    let len = |parts: &[IoSlice<'_>; 2]| parts[0].len() + parts[1].len();
    let same = |a: &[IoSlice<'_>; 2], b: &[IoSlice<'_>; 2]| len(a) == len(b);
    for run in packets.chunk_by(same) {
        let most = MOST_SEGMENTS.min(MAX_DATAGRAM / (len(&run[0]) + 1).max(28));
        for run in run.chunks(most) {
            let size = u16::try_from(len(&run[0]))?;
            let parts: Vec<_> = run.iter().flatten().copied().collect();
            let controls = [ControlMessage::UdpGsoSegments(&size)];
            match sendmsg(socket.as_raw_fd(), &parts, &controls, MsgFlags::empty(), to.as_ref()) {
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
