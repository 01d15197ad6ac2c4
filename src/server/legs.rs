//! The way back to a client: through the door it came in by, whatever its transport.

use super::dtls::Dtls;
use super::inbox::{StreamLeg, ToStream};
use super::neighbours::Neighbours;
use super::tcp_relay::Joint;
use super::worker::DoorSocket;
use crate::ids::Pii;
use crate::net::udp::{Route, UdpPort};
use crate::turn_server::machine::Marks;
use crate::turn_server::{FiveTuple, Transport};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One worker's listening sockets, its DTLS sessions and the queues of its stream clients.
#[derive(Debug)]
pub(super) struct Legs {
    pub(super) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, to send by.
    elsewhere: Vec<UdpPort>,
    pub(super) streams: HashMap<FiveTuple, StreamLeg>,
    pub(super) dtls: Dtls,
    pub(super) neighbours: Neighbours,
    dropped: Arc<AtomicU64>,
}

impl Legs {
    pub(super) fn new(
        doors: Vec<DoorSocket>,
        elsewhere: Vec<UdpPort>,
        dtls: Dtls,
        neighbours: Neighbours,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        Self { doors, elsewhere, streams: HashMap::new(), dtls, neighbours, dropped }
    }

    /// Sends `bytes`, one whole frame, to `client`.
    pub(super) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        self.send_marked(client, Marks::default(), bytes);
    }

    /// The same for relayed data, whose IP header passes something on where the client is reached by datagrams.
    pub(super) fn send_marked(&mut self, client: FiveTuple, marks: Marks, bytes: &[u8]) {
        if client.transport != Transport::Udp
            && let Some(passed) = self.neighbours.answer(client, bytes)
        {
            if !passed {
                self.note_dropped();
            }
            return;
        }
        match client.transport {
            Transport::Udp => self.send_datagram(client, marks, bytes),
            // It leaves as what the sessions put out.
            Transport::Dtls => {
                if !self.dtls.send(client, bytes) {
                    self.note_dropped();
                }
            }
            // A stream that does not keep up loses datagrams, as a network would; it holds up nobody else.
            _ => {
                let queued = self
                    .streams
                    .get(&client)
                    .map(|leg| leg.replies.try_send(ToStream::Frame(Bytes::copy_from_slice(bytes))));
                if !matches!(queued, Some(Ok(()))) {
                    self.note_dropped();
                }
            }
        }
    }

    /// Notes that a client has shown good credentials: where it is connected, it may stay silent for longer.
    pub(super) fn prove(&mut self, client: FiveTuple) {
        match client.transport {
            Transport::Udp => {}
            Transport::Dtls => self.dtls.prove(client),
            _ => {
                if let Some(leg) = self.streams.get(&client) {
                    leg.proven.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Sends one datagram as it is.
    pub(super) fn send_datagram(&self, client: FiveTuple, marks: Marks, bytes: &[u8]) {
        let Some((door, route)) = self.route_to(client, marks) else { return };
        if let Some(port) = self.port(door) {
            self.note_sent(port.send(&route, bytes), client.client);
        }
    }

    /// Returns the number of the socket and the route by which a client of datagrams is reached.
    pub(super) fn route_to(&self, client: FiveTuple, marks: Marks) -> Option<(usize, Route)> {
        let here = client.server;
        let (door, port) = self.door_to(here)?;
        let source = port.local_addr().ip().is_unspecified().then_some(here.ip());
        let ttl = (marks.ttl > 0).then_some(marks.ttl);
        Some((door, Route { source, ttl, tos: marks.tos, ..Route::to(client.client) }))
    }

    /// Returns the socket of that number: the worker's own, then the others' that it may send by.
    pub(super) fn port(&self, door: usize) -> Option<&UdpPort> {
        match self.doors.get(door) {
            Some(door) => Some(&door.port),
            None => self.elsewhere.get(door - self.doors.len()),
        }
    }

    /// Hands a peer's stream to the client's connection that is to be joined with it; both end if either is gone.
    pub(super) fn join(&self, client: FiveTuple, joint: Option<Box<Joint>>) {
        let stream = self.streams.get(&client);
        let joined =
            joint.zip(stream).map(|(joint, leg)| leg.replies.try_send(ToStream::Join(joint)).is_ok());
        if joined != Some(true) {
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
    pub(super) fn note_sent(&self, sent: io::Result<()>, to: SocketAddr) {
        if let Err(error) = sent {
            self.note_lost(to, &error);
        }
    }

    /// The same for one that is known to be lost.
    pub(super) fn note_lost(&self, to: SocketAddr, error: &io::Error) {
        self.note_dropped();
        tracing::trace!(to = %Pii(to), %error, "not sent");
    }

    /// Counts one dropped frame.
    pub(super) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
