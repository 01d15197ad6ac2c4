//! The way back to a client: through the door it came in by, whatever its transport.

use super::dtls::Dtls;
use super::inbox::{REPLY_QUEUE, StreamLeg, ToStream};
use super::moved_clients::Neighbours;
use super::peer_connections::Joint;
use super::stream_limits::STRANGER_WAITING;
use super::tcp_client::{Arrival, MAX_WAITING, TcpLegs};
use super::worker::DoorSocket;
use crate::ids::Pii;
use crate::limits::Limit;
use crate::net::connections::Place;
use crate::net::udp::{Route, UdpPort};
use crate::turn_server::machine::{IpHeader, ToClient};
use crate::turn_server::{FiveTuple, Transport};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How a stream client is reached.
#[derive(Debug)]
enum Stream {
    /// Its socket is the worker's own.
    Own(usize),
    /// By a task, which writes what is gathered for it in one pass: TLS, WebSocket.
    Task { leg: StreamLeg, out: BytesMut, frames: u64 },
}

impl Stream {
    /// Gives a task what was gathered for it; returns how many frames were lost because it does not keep up.
    fn hand_over(&mut self) -> u64 {
        let Self::Task { leg, out, frames } = self else { return 0 };
        let count = std::mem::take(frames);
        if count == 0 {
            return 0;
        }
        let bytes = out.split().freeze();
        let length = bytes.len();
        leg.waiting.fetch_add(length, Ordering::Relaxed);
        if leg.replies.try_send(ToStream::Frames(bytes)).is_ok() {
            return 0;
        }
        leg.waiting.fetch_sub(length, Ordering::Relaxed);
        Limit::QueuedFramesPerClient.reached(REPLY_QUEUE);
        count
    }
}

/// The parts of [`Legs`] that a worker brings along.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, to send by.
    pub(crate) elsewhere: Vec<UdpPort>,
    pub(crate) dtls: Dtls,
    pub(crate) tcp: TcpLegs,
    pub(crate) neighbours: Neighbours,
}

/// One worker's listening sockets, its DTLS sessions and its stream clients.
#[derive(Debug)]
pub(crate) struct Legs {
    pub(crate) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, to send by.
    elsewhere: Vec<UdpPort>,
    streams: HashMap<FiveTuple, Stream>,
    /// Clients whose tasks are to be handed what was gathered for them.
    unsent: Vec<FiveTuple>,
    pub(crate) tcp: TcpLegs,
    pub(crate) dtls: Dtls,
    pub(crate) neighbours: Neighbours,
    dropped: Arc<AtomicU64>,
}

const ZEROS: [u8; 3] = [0; 3];

impl Legs {
    pub(crate) fn new(ways: Ways, dropped: Arc<AtomicU64>) -> Self {
        let Ways { doors, elsewhere, dtls, tcp, neighbours } = ways;
        let (streams, unsent) = (HashMap::new(), Vec::new());
        Self { doors, elsewhere, streams, unsent, tcp, dtls, neighbours, dropped }
    }

    /// Takes over the socket of a client by TCP; says whether an older stream had the same addresses.
    pub(crate) fn adopt(&mut self, now: Instant, arrival: Arrival) -> bool {
        let client = arrival.client;
        match self.tcp.adopt(now, arrival) {
            Ok(slot) => self.enter(now, client, Stream::Own(slot)),
            Err(error) => {
                tracing::debug!(%error, "stream");
                false
            }
        }
    }

    /// Takes in a client whose stream a task carries; says whether an older stream had the same addresses.
    pub(crate) fn open(&mut self, now: Instant, client: FiveTuple, leg: StreamLeg) -> bool {
        self.enter(now, client, Stream::Task { leg, out: BytesMut::new(), frames: 0 })
    }

    fn enter(&mut self, now: Instant, client: FiveTuple, stream: Stream) -> bool {
        let older = self.streams.insert(client, stream);
        if let Some(Stream::Own(slot)) = older {
            self.tcp.close(now, slot);
        }
        older.is_some()
    }

    /// Forgets a client whose task has ended; `false` when it was another one's.
    pub(crate) fn forget_task(&mut self, client: FiveTuple, link: u64) -> bool {
        let its_own = |stream: &Stream| matches!(stream, Stream::Task { leg, .. } if leg.link == link);
        self.streams.get(&client).is_some_and(its_own) && self.streams.remove(&client).is_some()
    }

    /// Closes a socket of the worker's own; `false` when its client has another stream by now.
    pub(crate) fn close(&mut self, now: Instant, slot: usize, client: FiveTuple) -> bool {
        self.tcp.close(now, slot);
        let its_own = |stream: &Stream| matches!(stream, Stream::Own(of) if *of == slot);
        self.streams.get(&client).is_some_and(its_own) && self.streams.remove(&client).is_some()
    }

    /// Ends a client by TCP that has shown no credentials, unless another one has its addresses by now.
    pub(crate) fn evict(&mut self, client: FiveTuple, number: u64) {
        if let Some(Stream::Own(slot)) = self.streams.get(&client) {
            self.tcp.evict(*slot, number);
        }
    }

    /// Sends stream clients what was gathered for them in this pass.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.tcp.flush(now);
        while let Some(client) = self.unsent.pop() {
            let lost = self.streams.get_mut(&client).map_or(0, Stream::hand_over);
            self.dropped.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// Sends relayed data to a client whom a stream reaches, without putting it together first; `false` when it is none.
    pub(crate) fn relay_to_stream(&mut self, forward: &ToClient<'_>) -> bool {
        let ToClient { client, header, payload, padding, .. } = forward;
        let by_stream = client.transport.is_stream();
        if by_stream {
            self.send_to_stream(*client, [header.as_bytes(), payload, &ZEROS[..(*padding).min(ZEROS.len())]]);
        }
        by_stream
    }

    /// A stream that does not keep up loses datagrams, as a network would; it holds up nobody else.
    fn send_to_stream(&mut self, client: FiveTuple, parts: [&[u8]; 3]) {
        let sent = match self.streams.get_mut(&client) {
            Some(Stream::Own(slot)) => self.tcp.send(*slot, parts),
            Some(Stream::Task { leg, out, frames }) => {
                let length = parts.iter().map(|part| part.len()).sum::<usize>() + out.len();
                let is_proven = leg.proven.load(Ordering::Relaxed);
                let most = if is_proven { MAX_WAITING } else { STRANGER_WAITING };
                let room = leg.waiting.load(Ordering::Relaxed) + length <= most;
                if !room {
                    Limit::UnreadBytesPerClient.reached(most);
                } else {
                    if *frames == 0 {
                        self.unsent.push(client);
                    }
                    *frames += 1;
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                }
                room
            }
            None => return self.send_by_neighbour(client, &parts.concat()),
        };
        if !sent {
            self.note_dropped();
        }
    }

    /// Answers a client who arrives at another worker.
    fn send_by_neighbour(&self, client: FiveTuple, bytes: &[u8]) {
        if self.neighbours.answer(client, bytes) != Some(true) {
            self.note_dropped();
        }
    }

    /// Sends `bytes`, one whole frame, to `client`.
    pub(crate) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        self.send_marked(client, IpHeader::default(), bytes);
    }

    /// The same for relayed data, whose IP header passes something on where the client is reached by datagrams.
    pub(crate) fn send_marked(&mut self, client: FiveTuple, marks: IpHeader, bytes: &[u8]) {
        match client.transport {
            Transport::Udp if self.neighbours.is_current(client) => self.send_by_neighbour(client, bytes),
            Transport::Udp => self.send_datagram(client, marks, bytes),
            // It leaves as what the sessions put out.
            Transport::Dtls => {
                if !self.dtls.send(client, bytes) {
                    self.send_by_neighbour(client, bytes);
                }
            }
            _ => self.send_to_stream(client, [bytes, &[], &[]]),
        }
    }

    /// Notes that a client has shown good credentials: where it is connected, it may stay silent for longer.
    pub(crate) fn prove(&mut self, client: FiveTuple) {
        match client.transport {
            Transport::Udp => {}
            Transport::Dtls => self.dtls.prove(client),
            _ => match self.streams.get(&client) {
                Some(Stream::Own(slot)) => self.tcp.prove(*slot),
                Some(Stream::Task { leg, .. }) => {
                    leg.proven.store(true, Ordering::Relaxed);
                    leg.place.iter().for_each(Place::prove);
                }
                None => {}
            },
        }
    }

    /// Sends one datagram as it is.
    pub(crate) fn send_datagram(&self, client: FiveTuple, marks: IpHeader, bytes: &[u8]) {
        let Some((door, route)) = self.route_to(client, marks) else { return };
        if let Some(port) = self.port(door) {
            self.note_sent(port.send(&route, bytes), client.client);
        }
    }

    /// Returns the number of the socket and the route by which a client of datagrams is reached.
    pub(crate) fn route_to(&self, client: FiveTuple, marks: IpHeader) -> Option<(usize, Route)> {
        let here = client.server;
        let (door, port) = self.door_to(here)?;
        let source = port.local_addr().ip().is_unspecified().then_some(here.ip());
        let ttl = (marks.ttl > 0).then_some(marks.ttl);
        Some((door, Route { source, ttl, tos: marks.tos, ..Route::to(client.client) }))
    }

    /// Returns the socket of that number: the worker's own, then the others' that it may send by.
    pub(crate) fn port(&self, door: usize) -> Option<&UdpPort> {
        match self.doors.get(door) {
            Some(door) => Some(&door.port),
            None => self.elsewhere.get(door - self.doors.len()),
        }
    }

    /// Hands a peer's stream to the client's connection that is to be joined with it; both end if either is gone.
    pub(crate) fn join(&mut self, client: FiveTuple, joint: Option<Box<Joint>>) {
        let mut stream = self.streams.get_mut(&client);
        let lost = stream.as_mut().map_or(0, |stream| stream.hand_over());
        self.dropped.fetch_add(lost, Ordering::Relaxed);
        let joined = joint.zip(stream).is_some_and(|(joint, stream)| match stream {
            Stream::Own(slot) => self.tcp.join(*slot, joint),
            Stream::Task { leg, .. } => leg.replies.try_send(ToStream::Join(joint)).is_ok(),
        });
        if !joined {
            self.note_dropped();
        }
    }

    /// Returns the socket that receives what is sent to `here`.
    fn door_to(&self, here: SocketAddr) -> Option<(usize, &UdpPort)> {
        self.doors.iter().map(|door| &door.port).chain(&self.elsewhere).enumerate().find(|(_, port)| {
            let local = port.local_addr();
            local.port() == here.port()
                && (local.ip() == here.ip()
                    || (local.ip().is_unspecified() && local.is_ipv4() == here.is_ipv4()))
        })
    }

    /// Counts a datagram that the system did not take: one unreachable peer harms no other (no route, closed port, full buffer).
    pub(crate) fn note_sent(&self, sent: io::Result<()>, to: SocketAddr) {
        if let Err(error) = sent {
            self.note_lost(to, &error);
        }
    }

    /// The same for one that is known to be lost.
    pub(crate) fn note_lost(&self, to: SocketAddr, error: &io::Error) {
        self.note_dropped();
        tracing::trace!(to = %Pii(to), %error, "not sent");
    }

    /// Counts dropped frames.
    pub(crate) fn note_lost_frames(&self, count: usize) {
        if count > 0 {
            self.dropped.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// Counts one dropped frame.
    pub(crate) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
