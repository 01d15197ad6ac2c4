//! The way back to a client: through the door it came in by, whatever its transport.

use super::dtls::Dtls;
use super::worker::DoorSocket;
use crate::ids::Pii;
use crate::net::udp::UdpPort;
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
    /// Each with the number of its link.
    pub(super) streams: HashMap<FiveTuple, (u64, mpsc::Sender<Bytes>)>,
    pub(super) dtls: Dtls,
    dropped: Arc<AtomicU64>,
}

impl Legs {
    pub(super) fn new(doors: Vec<DoorSocket>, dtls: Dtls, dropped: Arc<AtomicU64>) -> Self {
        Self { doors, streams: HashMap::new(), dtls, dropped }
    }

    /// Sends `bytes`, one whole frame, to `client`.
    pub(super) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        match client.transport {
            Transport::Udp => self.send_datagram(client, bytes),
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
    pub(super) fn send_datagram(&self, client: FiveTuple, bytes: &[u8]) {
        let here = client.server;
        let Some(port) = self.door_to(here) else { return };
        let source = port.local_addr().ip().is_unspecified().then_some(here.ip());
        self.note_sent(port.send(client.client, source, bytes), client.client);
    }

    /// Returns the socket that receives what is sent to `here`.
    fn door_to(&self, here: SocketAddr) -> Option<&UdpPort> {
        self.doors.iter().map(|door| &door.port).find(|port| {
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
