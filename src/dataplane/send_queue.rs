//! The send queue: datagrams are collected during one iteration of a worker, grouped by socket and destination, and sent with as few
//! system calls as possible.
//!
//! Payloads stay in the receive buffers. Headers and responses are written to one buffer of the queue. Datagrams of one flow (one socket, one
//! destination) leave in order; there is no order between flows.

use crate::net::udp::{BatchSocket, MAX_RUN, MAX_RUN_BYTES, Route, RxBuffers, RxSlice, TxMessage};
use crate::turn_server::RelayId;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};

/// Most messages, and most slices, of one call.
const MESSAGES: usize = 64;
const PARTS: usize = 4 * MAX_RUN;
/// Slots of the caches that find the latest datagram of a flow or socket.
const FLOWS: usize = 512;
const SOCKETS: usize = 256;
/// Bytes of headers and copied payloads after which [`SendQueue::send`] is due.
const MAX_WRITTEN: usize = 128 << 10;
/// Capacity that the buffer keeps after a large frame.
const WRITTEN_KEPT: usize = 2 * MAX_WRITTEN;

const NONE: u32 = u32::MAX;
const ZEROS: [u8; 3] = [0; 3];

/// The socket that sends a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendSocket {
    /// The worker's listening socket with this index.
    Listener(usize),
    /// The socket of a relay port.
    Relay(RelayId),
}

impl SendSocket {
    fn number(self) -> usize {
        match self {
            Self::Listener(index) => index,
            Self::Relay(relay) => relay + 8,
        }
    }
}

/// One queued datagram.
#[derive(Debug, Clone, Copy)]
struct PendingSend {
    socket: SendSocket,
    route: Route,
    /// Offset and length of its header in the buffer of headers.
    head: (u32, u32),
    /// Offset and length of its payload in the receive buffers.
    body: (usize, usize),
    /// Zero bytes after the payload.
    padding: u8,
    /// The next datagram of the same flow.
    next: u32,
}

impl PendingSend {
    fn size(&self) -> usize {
        self.head.1 as usize + self.body.1 + usize::from(self.padding)
    }
}

/// Datagrams from one socket to one destination: the first of them, and the next flow of the socket.
#[derive(Debug, Clone, Copy)]
struct Flow {
    first: u32,
    next: u32,
}

/// All flows of one socket.
#[derive(Debug, Clone, Copy)]
struct SocketFlows {
    socket: SendSocket,
    first: u32,
    last: u32,
}

/// A cache slot; it is empty unless its generation is the current one.
#[derive(Debug, Clone, Copy, Default)]
struct CacheSlot {
    generation: u32,
    index: u32,
}

/// The datagrams that a worker sends at the end of an iteration. `M` is the socket's message header.
#[derive(Debug)]
pub(crate) struct SendQueue<M = TxMessage> {
    pending_sends: Vec<PendingSend>,
    written: Vec<u8>,
    flows: Vec<Flow>,
    queues: Vec<SocketFlows>,
    generation: u32,
    flow_cache: Box<[CacheSlot]>,
    socket_cache: Box<[CacheSlot]>,
    messages: Vec<M>,
    /// The messages' slices; empty between two calls of [`SendQueue::send`].
    parts: Vec<IoSlice<'static>>,
    /// For each message its first datagram and their number.
    runs: Vec<(u32, usize)>,
}

impl<M> Default for SendQueue<M> {
    fn default() -> Self {
        Self {
            pending_sends: Vec::new(),
            written: Vec::new(),
            flows: Vec::new(),
            queues: Vec::new(),
            generation: 1,
            flow_cache: vec![CacheSlot::default(); FLOWS].into(),
            socket_cache: vec![CacheSlot::default(); SOCKETS].into(),
            messages: Vec::new(),
            parts: Vec::new(),
            runs: Vec::new(),
        }
    }
}

impl<M> SendQueue<M> {
    /// Returns whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending_sends.is_empty()
    }

    /// Returns whether the queue must be sent now because its buffer is full.
    pub(crate) fn is_full(&self) -> bool {
        self.written.len() >= MAX_WRITTEN
    }

    /// Appends a datagram: `head`, `body`, and `padding` zero bytes, at most three.
    pub(crate) fn push(
        &mut self,
        socket: SendSocket,
        route: Route,
        head: &[u8],
        body: RxSlice<'_>,
        padding: usize,
    ) {
        let start = self.written.len() as u32;
        self.written.extend_from_slice(head);
        let body = match body.offset() {
            Some(offset) => (offset, body.as_bytes().len()),
            None => {
                self.written.extend_from_slice(body.as_bytes());
                (0, 0)
            }
        };
        let head = (start, (self.written.len() - start as usize) as u32);
        let padding = padding.min(ZEROS.len()) as u8;
        self.append(PendingSend { socket, route, head, body, padding, next: NONE });
    }

    /// Appends a datagram to its flow.
    fn append(&mut self, pending: PendingSend) {
        let (socket, route) = (pending.socket, pending.route);
        let index = self.pending_sends.len() as u32;
        self.pending_sends.push(pending);
        let slot = &mut self.flow_cache[flow_slot(socket, route.to)];
        let slot = std::mem::replace(slot, CacheSlot { generation: self.generation, index });
        if slot.generation == self.generation
            && let Some(last) = self.pending_sends.get_mut(slot.index as usize)
            && (last.socket, last.route) == (socket, route)
        {
            last.next = index;
            return;
        }
        let flow = self.flows.len() as u32;
        self.flows.push(Flow { first: index, next: NONE });
        let slot = &mut self.socket_cache[socket.number() % SOCKETS];
        if slot.generation == self.generation
            && let Some(queue) = self.queues.get_mut(slot.index as usize)
            && queue.socket == socket
        {
            self.flows[queue.last as usize].next = flow;
            queue.last = flow;
            return;
        }
        *slot = CacheSlot { generation: self.generation, index: self.queues.len() as u32 };
        self.queues.push(SocketFlows { socket, first: flow, last: flow });
    }

    /// Sends everything. `socket_of` returns the socket; `failed` is called for each datagram that was not sent.
    pub(crate) fn send<'s, S: BatchSocket<TxMessage = M> + 's>(
        &mut self,
        rx: &RxBuffers,
        socket_of: impl Fn(SendSocket) -> Option<&'s S>,
        mut failed: impl FnMut(&Route, &io::Error),
    ) {
        let (mut messages, mut runs) = (std::mem::take(&mut self.messages), std::mem::take(&mut self.runs));
        let mut parts = emptied(std::mem::take(&mut self.parts));
        for queue in &self.queues {
            let Some(socket) = socket_of(queue.socket) else {
                let lost = self.starts_of(queue).flat_map(|first| self.flow(first));
                lost.for_each(|lost| failed(&lost.route, &io::ErrorKind::NotConnected.into()));
                continue;
            };
            let mut starts = self.starts_of(queue);
            let mut start = starts.next();
            while start.is_some() {
                parts.clear();
                messages.clear();
                runs.clear();
                while let Some(first) = start {
                    let count = self.run_length(first);
                    if messages.len() == MESSAGES || parts.len() + 3 * count > PARTS {
                        break;
                    }
                    let before = parts.len();
                    let mut next = first;
                    for pending in self.flow(first).take(count) {
                        self.write_parts(pending, rx, &mut parts);
                        next = pending.next;
                    }
                    start = if next == NONE { starts.next() } else { Some(next) };
                    let pending = &self.pending_sends[first as usize];
                    let segment = (count > 1).then(|| pending.size() as u16);
                    match socket.message(&pending.route, segment, parts.len() - before) {
                        Ok(message) => {
                            messages.push(message);
                            runs.push((first, count));
                        }
                        Err(error) => {
                            parts.truncate(before);
                            failed(&pending.route, &error);
                        }
                    }
                }
                socket.send_all(&messages, &parts, |message, error| {
                    let run = runs.get(message).copied().unwrap_or_default();
                    self.retry(socket, rx, run, &error, &mut failed);
                });
            }
        }
        self.parts = emptied(parts);
        (self.messages, self.runs) = (messages, runs);
        self.clear();
    }

    /// Copies each header in front of its payload where there is headroom: a second slice costs the system more than a copy of a few
    /// bytes.
    pub(crate) fn merge_headers(&mut self, rx: &mut RxBuffers) {
        for pending in &mut self.pending_sends {
            let ((at, head_len), (start, len)) = (pending.head, pending.body);
            let head = self.written.get(at as usize..at as usize + head_len as usize).unwrap_or_default();
            if head_len > 0 && len > 0 && rx.put_before(start, head) {
                pending.head = (at, 0);
                pending.body = (start - head.len(), head.len() + len);
            }
        }
    }

    /// Sends the datagrams of a run one by one after the run failed: it was too large for the path, or the system has no UDP_SEGMENT.
    fn retry(
        &self,
        socket: &impl BatchSocket<TxMessage = M>,
        rx: &RxBuffers,
        (first, count): (u32, usize),
        error: &io::Error,
        failed: &mut impl FnMut(&Route, &io::Error),
    ) {
        for pending in self.flow(first).take(count) {
            if count == 1 || error.kind() == io::ErrorKind::WouldBlock {
                failed(&pending.route, error);
                continue;
            }
            let mut parts = Vec::new();
            self.write_parts(pending, rx, &mut parts);
            match socket.message(&pending.route, None, parts.len()) {
                Ok(message) => socket.send_all(&[message], &parts, |_, error| failed(&pending.route, &error)),
                Err(error) => failed(&pending.route, &error),
            }
        }
    }

    /// Appends the slices of a datagram to `parts`.
    fn write_parts<'a>(&'a self, pending: &PendingSend, rx: &'a RxBuffers, parts: &mut Vec<IoSlice<'a>>) {
        let (start, len) = pending.head;
        let head = self.written.get(start as usize..start as usize + len as usize).unwrap_or_default();
        let (start, len) = pending.body;
        let body = rx.slice(start..start + len).as_bytes();
        let pieces = [head, body, &ZEROS[..usize::from(pending.padding)]];
        parts.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new));
    }

    fn starts_of(&self, queue: &SocketFlows) -> impl Iterator<Item = u32> {
        let mut next = queue.first;
        std::iter::from_fn(move || {
            let flow = self.flows.get(next as usize)?;
            next = flow.next;
            Some(flow.first)
        })
    }

    /// Iterates over a datagram and its successors in the flow.
    fn flow(&self, first: u32) -> impl Iterator<Item = &PendingSend> {
        let mut next = first;
        std::iter::from_fn(move || {
            let pending = self.pending_sends.get(next as usize)?;
            next = pending.next;
            Some(pending)
        })
    }

    /// Returns how many datagrams from `first` on can leave as one run: equally long, except for the last.
    fn run_length(&self, first: u32) -> usize {
        let mut sizes = self.flow(first).map(PendingSend::size);
        let Some(size) = sizes.next() else { return 0 };
        let most = MAX_RUN.min((MAX_RUN_BYTES / size.max(1)).max(1));
        let mut count = 1;
        while count < most
            && let Some(next) = sizes.next().filter(|next| (1..=size).contains(next))
        {
            count += 1;
            if next < size {
                break;
            }
        }
        count
    }

    fn clear(&mut self) {
        self.pending_sends.clear();
        self.flows.clear();
        self.queues.clear();
        self.written.clear();
        self.written.shrink_to(WRITTEN_KEPT);
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // Otherwise slots of 2^32 generations ago would look current.
            self.flow_cache.fill(CacheSlot::default());
            self.socket_cache.fill(CacheSlot::default());
            self.generation = 1;
        }
    }
}

/// Reuses the allocation of a vector for slices of another lifetime: the standard library collects in place.
fn emptied<'a>(mut parts: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    parts.clear();
    parts.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// Returns the cache slot of a flow.
fn flow_slot(socket: SendSocket, to: SocketAddr) -> usize {
    let ip = match to.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => (u128::from(ip) ^ (u128::from(ip) >> 64)) as u64,
    };
    let mixed = (ip << 16) ^ ip.rotate_right(16) ^ u64::from(to.port()) ^ ((socket.number() as u64) << 48);
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FLOWS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::udp::{BatchUdpSocket, Role, RxBatch};
    use std::cell::RefCell;

    fn send_queue(all: &[(SendSocket, &str, usize)]) -> SendQueue {
        let mut send_queue = SendQueue::default();
        for (socket, to, len) in all {
            send_queue.push(
                *socket,
                Route::to(to.parse().unwrap()),
                &[],
                RxSlice::outside(&vec![7; *len]),
                0,
            );
        }
        send_queue
    }

    #[test]
    fn datagrams_of_one_flow_form_runs() {
        let (here, there) = ("192.0.2.1:1", "192.0.2.1:2");
        let from_listener = |to, len| (SendSocket::Listener(0), to, len);
        for (all, expected) in [
            (vec![from_listener(here, 9)], 1),
            (vec![from_listener(here, 9), from_listener(here, 9), from_listener(here, 9)], 3),
            (vec![from_listener(here, 9), from_listener(there, 9), from_listener(here, 9)], 2),
            (vec![from_listener(here, 9), from_listener(here, 5), from_listener(here, 5)], 2),
            (vec![from_listener(here, 9), from_listener(here, 0), from_listener(here, 5)], 1),
            (vec![from_listener(here, 9), from_listener(here, 10)], 1),
            (vec![from_listener(here, 9), from_listener(there, 9)], 1),
            (vec![from_listener(here, 9), (SendSocket::Relay(0), here, 9)], 1),
            (vec![from_listener(here, 9); 100], MAX_RUN),
            (vec![from_listener(here, 9996); 100], 6),
            (vec![from_listener(here, 65_500); 2], 1),
        ] {
            assert_eq!(send_queue(&all).run_length(0), expected);
        }
    }

    #[test]
    fn every_datagram_arrives_and_each_flow_in_its_order() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let bind = || BatchUdpSocket::bind(SocketAddr::new(ip, 0), Role::Single).unwrap();
        let (senders, receivers) = ([(); 3].map(|()| bind()), [(); 5].map(|()| bind()));
        let mut send_queue = SendQueue::default();
        let mut expected = vec![Vec::new(); receivers.len()];
        for generation in 0..3 {
            for number in 0..150_usize {
                let (from, to) = (number % 3, number * 7 % 5);
                let head = [generation as u8, number as u8, from as u8];
                let (route, padding) = (Route::to(receivers[to].local_addr()), number % 4);
                let body = vec![9; number % 11 / 10];
                send_queue.push(SendSocket::Relay(from), route, &head, RxSlice::outside(&body), padding);
                expected[to].push([&head[..], &body, &ZEROS[..padding]].concat());
            }
            let socket_of = |socket| match socket {
                SendSocket::Relay(index) => senders.get(index),
                SendSocket::Listener(_) => None,
            };
            assert!(!send_queue.is_empty());
            send_queue.send(&RxBuffers::default(), socket_of, |_, error| panic!("{error}"));
            assert!(send_queue.is_empty());
        }
        for (port, expected) in receivers.iter().zip(expected) {
            let (mut rx, mut received) = (RxBuffers::default(), Vec::new());
            while let Ok(batch) = port.recv(&mut rx) {
                received.extend(rx.datagrams(batch).map(|datagram| datagram.payload.as_bytes().to_vec()));
                rx.clear();
            }
            for from in 0..3 {
                let of_flow = |all: &[Vec<u8>]| -> Vec<_> {
                    all.iter().filter(|payload| payload[2] == from).cloned().collect()
                };
                assert_eq!(of_flow(&received), of_flow(&expected));
            }
            assert_eq!(received.len(), expected.len());
        }
    }

    /// Destination, segment and bytes.
    type Message = (u16, Option<u16>, usize);

    /// A socket that records the messages of every call.
    #[derive(Default)]
    struct Recorder {
        calls: RefCell<Vec<Vec<Message>>>,
    }

    impl BatchSocket for Recorder {
        type TxMessage = (Route, Option<u16>, usize);

        fn recv(&self, _: &mut RxBuffers) -> io::Result<RxBatch> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Self::TxMessage> {
            Ok((*route, segment, parts))
        }

        fn send_all(
            &self,
            messages: &[Self::TxMessage],
            mut parts: &[IoSlice<'_>],
            _: impl FnMut(usize, io::Error),
        ) {
            let message = |(route, segment, count): &Self::TxMessage| {
                let own = parts.split_off(..*count).unwrap();
                (route.to.port(), *segment, own.iter().map(|part| part.len()).sum())
            };
            self.calls.borrow_mut().push(messages.iter().map(message).collect());
        }
    }

    #[test]
    fn each_socket_sends_with_one_call_and_one_message_for_each_run() {
        let sockets = [Recorder::default(), Recorder::default()];
        let mut send_queue = SendQueue::default();
        for number in 0..24_u16 {
            let (socket, to) = (SendSocket::Listener(usize::from(number % 2)), number % 4);
            let route = Route::to(SocketAddr::from(([192, 0, 2, 1], 1 + to)));
            send_queue.push(socket, route, &[7; 4], RxSlice::outside(&[8; 100]), 0);
        }
        let socket_of =
            |socket| if let SendSocket::Listener(index) = socket { sockets.get(index) } else { None };
        send_queue.send(&RxBuffers::default(), socket_of, |_, error| panic!("{error}"));
        for (first, socket) in (1..).zip(&sockets) {
            let run = |to| (to, Some(104), 6 * 104);
            assert_eq!(*socket.calls.borrow(), [[run(first), run(first + 2)]]);
        }
    }

    #[test]
    fn datagrams_without_a_socket_are_reported_as_lost() {
        let mut lost = Vec::new();
        let mut send_queue =
            send_queue(&[(SendSocket::Relay(3), "192.0.2.1:1", 4), (SendSocket::Relay(3), "192.0.2.1:2", 4)]);
        send_queue.send(
            &RxBuffers::default(),
            |_| None::<&BatchUdpSocket>,
            |route, _| lost.push(route.to.port()),
        );
        assert_eq!(lost, [1, 2]);
        assert!(send_queue.is_empty());
    }
}
