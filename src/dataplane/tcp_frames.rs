//! Reads the TCP connections that a worker owns, and handles their frames in the receive buffers.

use super::tcp_connections::{READ_SIZE, TcpRead};
use super::worker::{Progress, Worker};
use crate::clock::Now;
use crate::net::udp::RxBuffers;
use crate::turn_server::FiveTuple;
use crate::turn_wire::frame_len;
use std::ops::Range;

/// Most reads of one iteration, so that they do not delay the other sockets.
const READS_PER_ITERATION: usize = 64;
/// Bytes that one read may need: a partial frame and new data.
const READ_ROOM: usize = 2 * READ_SIZE + 4096;

impl Worker {
    /// Reads connections that have data.
    pub(super) fn poll_tcp_connections(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        self.flush_and_clear(rx);
        let mut start = 0;
        for _ in 0..READS_PER_ITERATION {
            let Some((slot, read)) = self.clients.tcp.read(now.mono, rx, start) else { break };
            let TcpRead { client, bytes, ended } = read;
            start = bytes.end;
            let must_close = self.handle_stream_bytes(now, (slot, client), bytes, rx);
            if ended || must_close {
                self.close_tcp_connection(now, slot, client);
            }
            if rx.stage(start).len() < READ_ROOM {
                self.flush_sends(rx);
                start = 0;
            }
        }
        self.flush_sends(rx);
        if self.clients.tcp.has_readable() { Progress::More } else { Progress::Drained }
    }

    /// Handles the whole frames of one read; returns whether the connection must close.
    fn handle_stream_bytes(
        &mut self,
        now: Now,
        (slot, client): (usize, FiveTuple),
        bytes: Range<usize>,
        rx: &RxBuffers,
    ) -> bool {
        let mut at = bytes.start;
        let is_malformed = loop {
            match frame_len(rx.slice(at..bytes.end).as_bytes()) {
                Err(_) => break true,
                Ok(Some(len)) if len <= bytes.end - at && self.clients.tcp.reads_frames(slot, client) => {
                    self.handle_frame(now, client, rx.slice(at..at + len));
                    self.handle_outputs(now, len, rx);
                    at += len;
                }
                Ok(_) => break false,
            }
        };
        let rest = rx.slice(at..bytes.end).as_bytes();
        let is_kept = self.clients.tcp.keep_partial(now.mono, slot, rest, at > bytes.start);
        // What follows a ConnectionBind request belongs to the peer, whether it looks like a frame or not.
        (is_malformed || !is_kept) && self.clients.tcp.reads_frames(slot, client)
    }

    /// Closes the connections that ended while they were written or reached a deadline.
    pub(super) fn close_ended_connections(&mut self, now: Now) {
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
}
