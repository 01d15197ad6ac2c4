//! A worker's turns with what comes by no datagram socket: clients by TCP, and other workers' parcels. Both are brought into the
//! batch, so that what they make the relay send leaves together.

use super::counters::WorkerDropReason;
use super::framing;
use super::tcp_connections::{READ_SIZE, TcpRead};
use super::worker::{Progress, Worker};
use crate::clock::Now;
use crate::net::udp::RxBuffers;
use crate::turn_server::{FiveTuple, InternalPacket};
use std::ops::Range;

/// Sockets of clients read, and parcels taken, before others have their turn.
const READS_PER_TURN: usize = 64;
const BATCHES_PER_TURN: usize = 8;
/// Bytes that one read may bring: those of a begun frame, and what is new.
const STREAM_ROOM: usize = 2 * READ_SIZE + 4096;

impl Worker {
    /// Reads clients' sockets that have something.
    pub(crate) fn poll_tcp_connections(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        self.flush_and_clear(rx);
        let mut start = 0;
        for _ in 0..READS_PER_TURN {
            let Some((slot, reading)) = self.clients.tcp.read(now.mono, rx, start) else { break };
            let TcpRead { client, bytes, ended } = reading;
            start = bytes.end;
            let broken = self.handle_stream_bytes(now, slot, client, bytes, rx);
            if ended || broken {
                self.close_tcp_connection(now, slot, client);
            }
            if rx.stage(start).len() < STREAM_ROOM {
                self.flush_sends(rx);
                start = 0;
            }
        }
        self.flush_sends(rx);
        if self.clients.tcp.has_readable() { Progress::More } else { Progress::Drained }
    }

    /// Hears the whole frames of what a socket has brought; says whether it can bring no more.
    fn handle_stream_bytes(
        &mut self,
        now: Now,
        slot: usize,
        client: FiveTuple,
        bytes: Range<usize>,
        rx: &RxBuffers,
    ) -> bool {
        let run = framing::whole_frames(rx.part(bytes.start, bytes.len()));
        let (mut at, end) = (bytes.start, bytes.start + run.len);
        while at < end && self.clients.tcp.reads_frames(slot, client) {
            let len = framing::first_len(rx.part(at, end - at));
            self.handle_frame(now, client, rx.part(at, len), rx);
            self.handle_outputs(now, len, rx);
            at += len;
        }
        // What follows the request that has joined it with a peer is the peer's, be it frames or not.
        let joined = !self.clients.tcp.reads_frames(slot, client);
        let rest = rx.part(at, bytes.end - at);
        let kept = self.clients.tcp.keep_partial(now.mono, slot, rest, at > bytes.start);
        (run.broken.is_some() || !kept) && !joined
    }

    /// Forgets clients whose sockets have ended while they were written, or were given up.
    pub(crate) fn close_ended_connections(&mut self, now: Now) {
        while let Some((slot, client)) = self.clients.tcp.take_ended() {
            self.close_tcp_connection(now, slot, client);
        }
    }

    fn close_tcp_connection(&mut self, now: Now, slot: usize, client: FiveTuple) {
        self.clients.moved.remove_closed(client);
        if self.clients.close(now.mono, slot, client) {
            self.relay.handle_client_gone(client);
        }
    }

    /// Hears frames that a task hands over.
    pub(crate) fn handle_frames(&mut self, now: Now, client: FiveTuple, mut run: &[u8], rx: &RxBuffers) {
        while !run.is_empty() {
            let (frame, rest) = run.split_at(framing::first_len(run));
            self.handle_frame(now, client, frame, rx);
            self.handle_outputs(now, 0, rx);
            run = rest;
        }
    }

    /// Hears a frame of a client who arrives at the worker `where they arrive`, and tells that worker when the client is served here.
    pub(crate) fn handle_forwarded_frame(
        &mut self,
        now: Now,
        (client, arrived_at): (FiveTuple, u16),
        bytes: &[u8],
        rx: &RxBuffers,
    ) {
        self.clients.moved.begin_forwarded(client, arrived_at);
        self.handle_frame(now, client, bytes, rx);
        let served = self.relay.user_and_expiry(client);
        let is_served = served.is_some();
        if let Some((user, until)) = served
            && is_request(bytes)
        {
            // Before the answer: what the client sends upon that must be passed on.
            self.clients.moved.send_moved(client, user, until);
        }
        self.handle_outputs(now, 0, rx);
        self.clients.moved.end_forwarded(client, is_served);
    }

    /// Packs what a client sends to another worker's client.
    pub(crate) fn send_to_worker(&mut self, packet: &InternalPacket, frame: &[u8]) {
        let payload = frame.get(packet.payload.clone()).unwrap_or_default();
        let lost = self.worker_channels.push(packet, payload);
        self.clients.drops.add(WorkerDropReason::WorkerQueueFull, lost as u64);
    }

    /// Takes parcels that other workers have left.
    pub(crate) fn poll_worker_channels(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        self.flush_and_clear(rx);
        for _ in 0..BATCHES_PER_TURN {
            let Some(batch) = self.worker_channels.take_batch() else { return Progress::Drained };
            let Some(room) = rx.stage(0).get_mut(..batch.bytes.len()) else {
                self.clients.drops.add(WorkerDropReason::WorkerQueueFull, batch.packets.len() as u64);
                self.worker_channels.recycle(batch);
                continue;
            };
            room.copy_from_slice(&batch.bytes);
            for packet in &batch.packets {
                let payload = rx.part(packet.start, packet.len);
                if let Ok(to) = self.relay.handle_internal(now, packet.route, packet.ip_header, payload) {
                    self.send_to_client(&to, payload, rx);
                }
                self.handle_outputs(now, packet.len, rx);
            }
            self.flush_sends(rx);
            self.worker_channels.recycle(batch);
        }
        Progress::More
    }

    /// Ends a pass: what was gathered for streams and for other workers goes off.
    pub(crate) fn finish_iteration(&mut self, now: Now, rx: &RxBuffers) {
        self.clients.tcp.handle_timeout(now.mono);
        self.clients.flush(now.mono);
        self.close_ended_connections(now);
        self.handle_outputs(now, 0, rx);
        let lost = self.worker_channels.flush();
        self.clients.drops.add(WorkerDropReason::WorkerQueueFull, lost as u64);
    }
}

/// Says whether a frame is a STUN request, by its class bits.
fn is_request(frame: &[u8]) -> bool {
    matches!(frame, [first, second, ..] if first & 0xC1 == 0 && second & 0x10 == 0)
}
