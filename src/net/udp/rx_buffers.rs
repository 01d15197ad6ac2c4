//! Receive buffers for one iteration of a worker, shared by all its sockets.

use super::control::RxMeta;
use super::mmsg::{self, ReceivedMessage};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// Buffers of a pool.
const BUFFERS: usize = 128;
/// Bytes in front of every buffer for a header; the longest one that a relay writes has 56.
const HEADROOM: usize = 64;
/// Distance of two buffers: headroom, and the largest UDP payload or GRO run. Not a power of two, so
/// that the starts of the buffers do not compete for the same cache lines.
const STRIDE: usize = HEADROOM + 65_536 + 128;

/// A fixed pool of receive buffers. ReceivedMessage bytes stay until [`RxBuffers::clear`].
#[derive(Debug)]
pub(crate) struct RxBuffers {
    buffers: Box<[u8]>,
    received: Box<[ReceivedMessage]>,
    filled: usize,
}

/// The result of one receive: a range of buffers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RxBatch {
    first: usize,
    count: usize,
    is_drained: bool,
    /// The local address of a socket that is bound to one address.
    bound_ip: Option<IpAddr>,
}

impl RxBatch {
    /// Returns the number of messages, each a datagram or a GRO run of one sender.
    #[must_use]
    pub(crate) fn messages(&self) -> usize {
        self.count
    }

    /// Returns whether the receive has emptied the socket, so that the next one waits for a readiness event.
    #[must_use]
    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained
    }
}

/// One received datagram, borrowed from its [`RxBuffers`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// The local address it was sent to, where the system reports it.
    pub local_ip: Option<IpAddr>,
    /// TTL or hop limit; 0 where the system does not report it.
    pub ttl: u8,
    /// DSCP and ECN, as in the IP header.
    pub tos: u8,
    /// The payload.
    pub payload: RxSlice<'a>,
}

/// Bytes of a datagram or of a frame. Their offset is known if they lie in the receive buffers, from which they can be sent without a
/// copy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RxSlice<'a> {
    bytes: &'a [u8],
    offset: Option<usize>,
}

impl<'a> RxSlice<'a> {
    /// Wraps bytes that lie elsewhere.
    #[must_use]
    pub(crate) fn outside(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: None }
    }

    /// Returns the bytes.
    #[must_use]
    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the offset in the receive buffers; `None` when the bytes lie elsewhere.
    #[must_use]
    pub(crate) fn offset(self) -> Option<usize> {
        self.offset
    }

    /// Returns a part of the bytes; it is empty when `range` exceeds them.
    #[must_use]
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        let offset = self.offset.map(|offset| offset + range.start);
        Self { bytes: self.bytes.get(range).unwrap_or_default(), offset }
    }
}

impl Default for RxBuffers {
    fn default() -> Self {
        Self {
            buffers: vec![0; BUFFERS * STRIDE].into(),
            received: vec![ReceivedMessage::default(); BUFFERS].into(),
            filled: 0,
        }
    }
}

impl RxBuffers {
    /// Releases all buffers.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Returns the number of free buffers.
    #[must_use]
    pub(crate) fn room(&self) -> usize {
        BUFFERS - self.filled
    }

    /// Iterates over the datagrams of a batch; GRO runs are split.
    pub(crate) fn datagrams(&self, batch: RxBatch) -> impl Iterator<Item = Datagram<'_>> {
        let starts = (HEADROOM..).step_by(STRIDE).zip(&self.received);
        let received = starts.take(self.filled).skip(batch.first).take(batch.count);
        received
            .filter_map(|(start, received)| Some((start, received, received.name.socket_address()?)))
            .flat_map(move |(start, received, from)| {
                let RxMeta { local_ip, ttl, tos, stride } = RxMeta::of(&received.controls);
                let local_ip = local_ip.or(batch.bound_ip);
                let (end, size) = (start + received.len, stride.unwrap_or(received.len).max(1));
                // An empty datagram has a start too.
                (start..end.max(start + 1)).step_by(size).map(move |start| {
                    let payload = self.slice(start..end.min(start + size));
                    Datagram { from, local_ip, ttl, tos, payload }
                })
            })
    }

    /// Iterates over the senders of the messages of a batch, one for each GRO run.
    pub(crate) fn senders(&self, batch: RxBatch) -> impl Iterator<Item = SocketAddr> {
        let received = self.received.iter().take(self.filled).skip(batch.first).take(batch.count);
        received.filter_map(|received| received.name.socket_address())
    }

    /// Writes `head` in front of the payload at `start`, into the headroom of its buffer. Returns
    /// whether there is headroom: only the first datagram of a GRO run has it.
    pub(crate) fn put_before(&mut self, start: usize, head: &[u8]) -> bool {
        let is_first = start % STRIDE == HEADROOM;
        let room = start.checked_sub(head.len()).filter(|_| is_first && head.len() <= HEADROOM);
        let room = room.and_then(|from| self.buffers.get_mut(from..start));
        room.map(|room| room.copy_from_slice(head)).is_some()
    }

    /// Returns the bytes at these offsets.
    #[must_use]
    pub(crate) fn slice(&self, range: Range<usize>) -> RxSlice<'_> {
        let offset = Some(range.start);
        RxSlice { bytes: self.buffers.get(range).unwrap_or_default(), offset }
    }

    /// Lends the bytes from `start` on for data that does not come from a UDP socket, so that it can be sent from here:
    /// [`RxBuffers::slice`]. The pool must be clear; staged bytes have no headroom.
    pub(crate) fn stage(&mut self, start: usize) -> &mut [u8] {
        self.buffers.get_mut(start..).unwrap_or_default()
    }

    /// Receives at most `offered` messages; [`RxBuffers::batch`] then claims them.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>, offered: usize) -> Result<usize, Errno> {
        let offered = offered.min(self.room());
        let received = &mut self.received[self.filled..self.filled + offered];
        let buffers = self.buffers[self.filled * STRIDE..].chunks_exact_mut(STRIDE);
        mmsg::receive(socket, buffers.map(|buffer| &mut buffer[HEADROOM..]), received)
    }

    pub(super) fn batch(&mut self, count: usize, is_drained: bool, bound_ip: Option<IpAddr>) -> RxBatch {
        let first = self.filled;
        self.filled += count.min(self.room());
        RxBatch { first, count, is_drained, bound_ip }
    }
}
