//! The way back to a client: through the door it came in by, whatever its transport.

use super::dtls::Dtls;
use super::worker::DoorSocket;
use crate::ids::Pii;
use crate::net::udp::{Transmit, UdpPort};
use crate::turn_server::machine::Marks;
use crate::turn_server::{FiveTuple, Transport};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// One worker's listening sockets, its DTLS sessions and the queues of its stream clients.
#[derive(Debug)]
pub(super) struct Legs {
    pub(super) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, to send by.
    elsewhere: Vec<UdpPort>,
    /// Each with the number of its link.
    pub(super) streams: HashMap<FiveTuple, (u64, mpsc::Sender<Bytes>)>,
    pub(super) dtls: Dtls,
    dropped: Arc<AtomicU64>,
}

impl Legs {
    pub(super) fn new(
        doors: Vec<DoorSocket>,
        elsewhere: Vec<UdpPort>,
        dtls: Dtls,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        Self { doors, elsewhere, streams: HashMap::new(), dtls, dropped }
    }

    /// Sends `bytes`, one whole frame, to `client`.
    pub(super) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        self.send_marked(client, Marks::default(), bytes);
    }

    /// The same for relayed data, whose IP header passes something on where the client is reached by datagrams.
    pub(super) fn send_marked(&mut self, client: FiveTuple, marks: Marks, bytes: &[u8]) {
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
                    .map(|(_, replies)| replies.try_send(Bytes::copy_from_slice(bytes)));
                if !matches!(queued, Some(Ok(()))) {
                    self.note_dropped();
                }
            }
        }
    }

    /// Sends one datagram as it is.
    pub(super) fn send_datagram(&self, client: FiveTuple, marks: Marks, bytes: &[u8]) {
        let here = client.server;
        let Some(port) = self.door_to(here) else { return };
        let source = port.local_addr().ip().is_unspecified().then_some(here.ip());
        let ttl = (marks.ttl > 0).then_some(marks.ttl);
        let sent = port.send(&Transmit { source, ttl, tos: marks.tos, ..Transmit::to(client.client, bytes) });
        self.note_sent(sent, client.client);
    }

    /// Returns the socket that receives what is sent to `here`.
    fn door_to(&self, here: SocketAddr) -> Option<&UdpPort> {
        self.doors.iter().map(|door| &door.port).chain(&self.elsewhere).find(|port| {
            let local = port.local_addr();
            local.port() == here.port()
                && (local.ip() == here.ip()
                    || (local.ip().is_unspecified() && local.is_ipv4() == here.is_ipv4()))
        })
    }

    /// Counts a datagram that the system did not take: one unreachable peer harms no other (no route, closed port, full buffer).
    pub(super) fn note_sent(&self, sent: io::Result<()>, to: SocketAddr) {
        if let Err(error) = sent {
            self.note_dropped();
            tracing::trace!(to = %Pii(to), %error, "not sent");
        }
    }

    /// Counts one dropped frame.
    pub(super) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
