//! Room for what one turn of a worker receives, from all of its sockets.

use super::control::RxMeta;
use super::mmsg::{self, Received};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// Buffers of a pool.
const BUFFERS: usize = 128;
/// Bytes in front of every buffer, for a header that is put before what was received: the longest a relay writes has 56.
const HEADROOM: usize = 64;
/// Bytes from one buffer to the next: headroom, and room for the largest UDP payload and so for any GRO run. Not a power of two,
/// so that the beginnings of all buffers do not compete for the same lines of the cache.
const STRIDE: usize = HEADROOM + 65_536 + 128;

/// A fixed pool of receive buffers; what has been received stays until [`RxBuffers::clear`].
#[derive(Debug)]
pub struct RxBuffers {
    buffers: Box<[u8]>,
    received: Box<[Received]>,
    filled: usize,
}

/// What one receive has brought: a part of an [`RxBuffers`].
#[derive(Debug, Clone, Copy)]
pub struct RxBatch {
    first: usize,
    count: usize,
    is_drained: bool,
    /// Where everything went that came to a socket bound to one address.
    bound_ip: Option<IpAddr>,
}

impl RxBatch {
    /// Returns how many messages it has, each a datagram or a GRO run of one sender.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.count
    }

    /// Returns whether the receive took all there was, so that the next one belongs after the next readiness event.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_drained
    }
}

/// One received datagram, borrowed from its [`RxBuffers`].
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// The local address it was sent to, where the system told.
    pub local_ip: Option<IpAddr>,
    /// TTL or hop limit it arrived with; 0 where the system did not tell.
    pub ttl: u8,
    /// DSCP and ECN it arrived with, as in the IP header.
    pub tos: u8,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl Default for RxBuffers {
    fn default() -> Self {
        Self {
            buffers: vec![0; BUFFERS * STRIDE].into(),
            received: vec![Received::default(); BUFFERS].into(),
            filled: 0,
        }
    }
}

impl RxBuffers {
    /// Forgets what was received.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Returns how many buffers are free.
    #[must_use]
    pub fn room(&self) -> usize {
        BUFFERS - self.filled
    }

    /// Iterates over the datagrams of a batch since the last [`RxBuffers::clear`], GRO runs taken apart.
    pub fn datagrams(&self, batch: RxBatch) -> impl Iterator<Item = Datagram<'_>> {
        let buffers = self.buffers.chunks_exact(STRIDE).zip(&self.received);
        let received = buffers.take(self.filled).skip(batch.first).take(batch.count);
        received
            .filter_map(|(buffer, received)| Some((buffer, received, received.name.socket_address()?)))
            .flat_map(move |(buffer, received, from)| {
                let RxMeta { local_ip, ttl, tos, stride } = RxMeta::of(&received.controls);
                let local_ip = local_ip.or(batch.bound_ip);
                let run = buffer.get(HEADROOM..HEADROOM + received.len).unwrap_or_default();
                // `chunks` finds nothing in an empty datagram, which is one all the same.
                let empty = run.is_empty().then_some(run);
                run.chunks(stride.unwrap_or(run.len()).max(1)).chain(empty).map(move |payload| Datagram {
                    from,
                    local_ip,
                    ttl,
                    tos,
                    payload,
                })
            })
    }

    /// Lists who sent the messages of a batch, each once for a whole GRO run.
    pub fn senders(&self, batch: RxBatch) -> impl Iterator<Item = SocketAddr> {
        let received = self.received.iter().take(self.filled).skip(batch.first).take(batch.count);
        received.filter_map(|received| received.name.socket_address())
    }

    /// Returns where `payload`, a part of a received datagram, lies; `None` when it is none.
    #[must_use]
    pub fn position(&self, payload: &[u8]) -> Option<usize> {
        let start = (payload.as_ptr() as usize).checked_sub(self.buffers.as_ptr() as usize)?;
        (start + payload.len() <= self.buffers.len()).then_some(start)
    }

    /// Writes `head` in front of the payload that begins at `start`, over bytes that nobody needs: the headroom of its buffer.
    /// Returns whether there is as much: behind the first datagram of a run there is none.
    pub fn put_before(&mut self, start: usize, head: &[u8]) -> bool {
        let is_first = start % STRIDE == HEADROOM;
        let room = start.checked_sub(head.len()).filter(|_| is_first && head.len() <= HEADROOM);
        let room = room.and_then(|from| self.buffers.get_mut(from..start));
        room.map(|room| room.copy_from_slice(head)).is_some()
    }

    /// Returns `len` bytes from `start` on.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> &[u8] {
        self.buffers.get(start..start + len).unwrap_or_default()
    }

    /// Lends the room from `start` on for bytes that come by another way than a datagram socket, so that what lies in them can
    /// leave with the rest: [`RxBuffers::part`]. For an RxBuffers that was cleared; what is staged has no headroom.
    pub fn stage(&mut self, start: usize) -> &mut [u8] {
        self.buffers.get_mut(start..).unwrap_or_default()
    }

    /// Receives at most `offered` messages behind those that are there; the batch is to be taken by [`RxBuffers::batch`].
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
