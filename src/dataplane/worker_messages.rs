//! What a worker receives from other threads: the messages of its inbox, and batches of packets from other workers.

use super::counters::WorkerDropReason;
use super::framing;
use super::inbox::WorkerMessage;
use super::worker::{Progress, Worker};
use crate::clock::Now;
use crate::net::udp::{RxBuffers, RxSlice};
use crate::turn_server::FiveTuple;

/// Most messages and most batches of one iteration, so that they do not delay the sockets.
const MESSAGES_PER_ITERATION: usize = 128;
const BATCHES_PER_ITERATION: usize = 8;

impl Worker {
    /// Handles the messages of the inbox, at most [`MESSAGES_PER_ITERATION`].
    pub(super) fn poll_inbox(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        for _ in 0..MESSAGES_PER_ITERATION {
            let Ok(message) = self.inbox.try_recv() else { return Progress::Drained };
            if let WorkerMessage::Stop = message {
                return Progress::Stop;
            }
            self.handle_message(now, message, rx);
            self.handle_outputs(now, 0, rx);
            if self.send_queue.is_full() {
                self.flush_sends(rx);
            }
        }
        Progress::More
    }

    fn handle_message(&mut self, now: Now, message: WorkerMessage, rx: &RxBuffers) {
        match message {
            WorkerMessage::TcpAccepted(accepted) => {
                let client = accepted.client;
                if self.clients.insert_socket(now.mono, *accepted) {
                    self.relay.handle_client_gone(client);
                }
            }
            WorkerMessage::TcpEvicted { client, number } => self.clients.evict(client, number),
            WorkerMessage::StreamOpened { client, path } => {
                if self.clients.insert_task(now.mono, client, path) {
                    self.relay.handle_client_gone(client);
                }
            }
            WorkerMessage::Frames { client, run } => self.handle_frames(now, client, &run, rx),
            WorkerMessage::StreamClosed { client, link } => {
                self.clients.moved.remove_closed(client);
                if self.clients.remove_task(client, link) {
                    self.relay.handle_client_gone(client);
                }
            }
            WorkerMessage::LookupDone { query, is_answered } => {
                self.relay.handle_lookup_done(now, &query, is_answered);
            }
            WorkerMessage::ForwardedFrame { client, arrived_at, bytes } => {
                self.handle_forwarded_frame(now, (client, arrived_at), &bytes, rx);
            }
            WorkerMessage::ClientMoved { client, entry } => {
                self.clients.moved.insert(now.mono, client, entry);
            }
            WorkerMessage::ForwardedClientClosed { client } => self.relay.handle_client_gone(client),
            WorkerMessage::ForwardedReply { client, bytes } => self.clients.send(client, &bytes),
            WorkerMessage::ClientLeft { client } => self.clients.moved.remove(client),
            WorkerMessage::PeerAccepted { relay, peer, stream } => {
                if let Some(connection) = self.relay.handle_accepted(now, relay, peer) {
                    self.peer_tcp.hold(connection, stream);
                }
            }
            WorkerMessage::PeerConnected { connection, is_connected } => {
                self.relay.handle_connected(now, connection, is_connected);
            }
            WorkerMessage::PeerClosed { connection } => self.relay.handle_connection_closed(connection),
            WorkerMessage::Revoked { name } => self.relay.handle_revoked(&name),
            WorkerMessage::OwnAddresses(addresses) => self.relay.handle_own_addresses(addresses),
            // The handler may have stopped waiting.
            WorkerMessage::ReadCounters(sender) => drop(sender.send(Box::new(self.counters()))),
            WorkerMessage::Stop => {}
        }
    }

    /// Handles frames from a client's task.
    fn handle_frames(&mut self, now: Now, client: FiveTuple, mut run: &[u8], rx: &RxBuffers) {
        while !run.is_empty() {
            let (frame, rest) = run.split_at(framing::first_len(run));
            self.handle_frame(now, client, RxSlice::outside(frame));
            self.handle_outputs(now, 0, rx);
            run = rest;
        }
    }

    /// Handles a frame of a client that arrives at the worker `arrived_at`. That worker learns whether the client is served here.
    fn handle_forwarded_frame(
        &mut self,
        now: Now,
        (client, arrived_at): (FiveTuple, u16),
        bytes: &[u8],
        rx: &RxBuffers,
    ) {
        self.clients.moved.begin_forwarded(client, arrived_at);
        self.handle_frame(now, client, RxSlice::outside(bytes));
        let served = self.relay.user_and_expiry(client);
        let is_served = served.is_some();
        if let Some((user, until)) = served
            && is_request(bytes)
        {
            // Before the response: what the client sends after it must be forwarded.
            self.clients.moved.send_moved(client, user, until);
        }
        self.handle_outputs(now, 0, rx);
        self.clients.moved.end_forwarded(client, is_served);
    }

    /// Handles batches of packets from other workers' clients, at most [`BATCHES_PER_ITERATION`].
    pub(super) fn poll_worker_channels(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        self.flush_and_clear(rx);
        for _ in 0..BATCHES_PER_ITERATION {
            let Some(batch) = self.worker_channels.take_batch() else { return Progress::Drained };
            let Some(room) = rx.stage(0).get_mut(..batch.bytes.len()) else {
                self.clients.drops.add(WorkerDropReason::WorkerQueueFull, batch.packets.len() as u64);
                self.worker_channels.recycle(batch);
                continue;
            };
            room.copy_from_slice(&batch.bytes);
            for packet in &batch.packets {
                let payload = rx.slice(packet.payload.clone());
                let (route, ip_header) = (packet.route, packet.ip_header);
                if let Ok(to) = self.relay.handle_internal(now, route, ip_header, payload.as_bytes()) {
                    self.send_to_client(&to, payload);
                }
                self.handle_outputs(now, packet.payload.len(), rx);
            }
            self.flush_sends(rx);
            self.worker_channels.recycle(batch);
        }
        Progress::More
    }
}

/// Returns whether a frame is a STUN request, by its class bits.
fn is_request(frame: &[u8]) -> bool {
    matches!(frame, [first, second, ..] if first & 0xC1 == 0 && second & 0x10 == 0)
}
