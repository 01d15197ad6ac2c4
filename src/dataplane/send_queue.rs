//! Datagrams on their way out: gathered over one turn of a worker, sorted by socket and destination, and sent with as few
//! system calls as there can be.
//!
//! Payloads stay where they were received; what is written beside them (headers, answers) lies in one buffer of its own. Datagrams
//! of one socket for one destination leave in the order in which they came; between flows there is no order.

use crate::net::udp::{BatchSocket, Intake, Letter, MAX_RUN, MAX_RUN_BYTES, Route};
use crate::turn_server::RelayId;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};

/// Most messages, and most pieces of them, that are handed to a socket at a time.
const LETTERS: usize = 64;
const PARTS: usize = 4 * MAX_RUN;
/// Places of the caches that find a flow's or a socket's latest datagram again.
const FLOWS: usize = 512;
const EXITS: usize = 256;
/// What may be written before the next [`Departures::send`] is due.
const WRITTEN: usize = 128 << 10;
/// What is kept of the buffer for writing when a large frame has passed through it.
const WRITTEN_KEPT: usize = 2 * WRITTEN;

const NONE: u32 = u32::MAX;
const ZEROS: [u8; 3] = [0; 3];

/// Which socket a datagram leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The worker's listening socket of that index.
    Door(usize),
    /// A relay port's.
    Relay(RelayId),
}

impl Exit {
    fn number(self) -> usize {
        match self {
            Self::Door(index) => index,
            Self::Relay(relay) => relay + 8,
        }
    }
}

/// A payload that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// Where it was received.
    Received {
        /// Where it lies in the intake.
        start: usize,
        len: usize,
    },
    /// Somewhere that will not last: it is copied.
    Fleeting(&'a [u8]),
}

/// One datagram that waits.
#[derive(Debug, Clone, Copy)]
struct Departure {
    exit: Exit,
    route: Route,
    /// Where its header lies in what was written, and how long it is.
    head: (u32, u32),
    /// Where its payload lies in the intake, and how long it is.
    body: (usize, usize),
    /// Zero bytes behind the payload.
    padding: u8,
    /// The next one of the same flow.
    next: u32,
}

impl Departure {
    fn size(&self) -> usize {
        self.head.1 as usize + self.body.1 + usize::from(self.padding)
    }
}

/// Datagrams that go the same way: their socket, the first of them, and the next such chain of the socket.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u32,
    next: u32,
}

/// All chains of one socket.
#[derive(Debug, Clone, Copy)]
struct Queue {
    exit: Exit,
    first: u32,
    last: u32,
}

/// A place of a cache: what is from another turn is nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Recent {
    turn: u32,
    index: u32,
}

/// What leaves at the end of a worker's turn, by sockets that address messages as `L`.
#[derive(Debug)]
pub(crate) struct Departures<L = Letter> {
    waiting: Vec<Departure>,
    written: Vec<u8>,
    chains: Vec<Chain>,
    queues: Vec<Queue>,
    turn: u32,
    flows: Box<[Recent]>,
    exits: Box<[Recent]>,
    letters: Vec<L>,
    /// Room for what the letters consist of; empty between two sends.
    parts: Vec<IoSlice<'static>>,
    /// For each letter its first datagram and how many there are.
    runs: Vec<(u32, usize)>,
}

impl<L> Default for Departures<L> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            written: Vec::new(),
            chains: Vec::new(),
            queues: Vec::new(),
            turn: 1,
            flows: vec![Recent::default(); FLOWS].into(),
            exits: vec![Recent::default(); EXITS].into(),
            letters: Vec::new(),
            parts: Vec::new(),
            runs: Vec::new(),
        }
    }
}

impl<L> Departures<L> {
    /// Returns whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether it is time to send, lest the buffer grow.
    pub(crate) fn is_full(&self) -> bool {
        self.written.len() >= WRITTEN
    }

    /// Adds a datagram: `head`, then `body`, then `padding` zero bytes, at most three.
    pub(crate) fn push(&mut self, exit: Exit, route: Route, head: &[u8], body: Payload<'_>, padding: usize) {
        let start = self.written.len() as u32;
        self.written.extend_from_slice(head);
        let body = match body {
            Payload::Received { start, len } => (start, len),
            Payload::Fleeting(bytes) => {
                self.written.extend_from_slice(bytes);
                (0, 0)
            }
        };
        let head = (start, (self.written.len() - start as usize) as u32);
        let padding = padding.min(ZEROS.len()) as u8;
        self.file(Departure { exit, route, head, body, padding, next: NONE });
    }

    /// Puts a datagram behind the last one of its flow.
    fn file(&mut self, departure: Departure) {
        let (exit, route) = (departure.exit, departure.route);
        let index = self.waiting.len() as u32;
        self.waiting.push(departure);
        let place = &mut self.flows[flow_place(exit, route.to)];
        let recent = std::mem::replace(place, Recent { turn: self.turn, index });
        if recent.turn == self.turn
            && let Some(last) = self.waiting.get_mut(recent.index as usize)
            && (last.exit, last.route) == (exit, route)
        {
            last.next = index;
            return;
        }
        let chain = self.chains.len() as u32;
        self.chains.push(Chain { first: index, next: NONE });
        let place = &mut self.exits[exit.number() % EXITS];
        if place.turn == self.turn
            && let Some(queue) = self.queues.get_mut(place.index as usize)
            && queue.exit == exit
        {
            self.chains[queue.last as usize].next = chain;
            queue.last = chain;
            return;
        }
        *place = Recent { turn: self.turn, index: self.queues.len() as u32 };
        self.queues.push(Queue { exit, first: chain, last: chain });
    }

    /// Sends everything; `socket` names the socket of an exit, `failed` hears of each datagram that was lost.
    pub(crate) fn send<'s, S: BatchSocket<Letter = L> + 's>(
        &mut self,
        intake: &Intake,
        socket: impl Fn(Exit) -> Option<&'s S>,
        mut failed: impl FnMut(&Route, &io::Error),
    ) {
        let (mut letters, mut runs) = (std::mem::take(&mut self.letters), std::mem::take(&mut self.runs));
        let mut parts = emptied(std::mem::take(&mut self.parts));
        for queue in &self.queues {
            let Some(port) = socket(queue.exit) else {
                let lost = self.starts_of(queue).flat_map(|first| self.chain(first));
                lost.for_each(|lost| failed(&lost.route, &io::ErrorKind::NotConnected.into()));
                continue;
            };
            let mut starts = self.starts_of(queue);
            let mut start = starts.next();
            while start.is_some() {
                parts.clear();
                letters.clear();
                runs.clear();
                while let Some(first) = start {
                    let count = self.run_length(first);
                    if letters.len() == LETTERS || parts.len() + 3 * count > PARTS {
                        break;
                    }
                    let before = parts.len();
                    let mut next = first;
                    for departure in self.chain(first).take(count) {
                        self.write_parts(departure, intake, &mut parts);
                        next = departure.next;
                    }
                    start = if next == NONE { starts.next() } else { Some(next) };
                    let departure = &self.waiting[first as usize];
                    let segment = (count > 1).then(|| departure.size() as u16);
                    match port.letter(&departure.route, segment, parts.len() - before) {
                        Ok(letter) => {
                            letters.push(letter);
                            runs.push((first, count));
                        }
                        Err(error) => {
                            parts.truncate(before);
                            failed(&departure.route, &error);
                        }
                    }
                }
                port.send_all(&letters, &parts, |letter, error| {
                    let run = runs.get(letter).copied().unwrap_or_default();
                    self.retry(port, intake, run, &error, &mut failed);
                });
            }
        }
        self.parts = emptied(parts);
        (self.letters, self.runs) = (letters, runs);
        self.clear();
    }

    /// Makes one piece of header and payload where the payload has room in front of it: a second piece costs the system more
    /// than this copy of a few bytes.
    pub(crate) fn put_heads_before_bodies(&mut self, intake: &mut Intake) {
        for departure in &mut self.waiting {
            let ((at, head_len), (start, len)) = (departure.head, departure.body);
            let head = self.written.get(at as usize..at as usize + head_len as usize).unwrap_or_default();
            if head_len > 0 && len > 0 && intake.put_before(start, head) {
                departure.head = (at, 0);
                departure.body = (start - head.len(), head.len() + len);
            }
        }
    }

    /// Sends the datagrams of a run that did not leave together one by one: it was too large for the path, or the system cannot.
    fn retry(
        &self,
        port: &impl BatchSocket<Letter = L>,
        intake: &Intake,
        (first, count): (u32, usize),
        error: &io::Error,
        failed: &mut impl FnMut(&Route, &io::Error),
    ) {
        for departure in self.chain(first).take(count) {
            if count == 1 || error.kind() == io::ErrorKind::WouldBlock {
                failed(&departure.route, error);
                continue;
            }
            let mut parts = Vec::new();
            self.write_parts(departure, intake, &mut parts);
            match port.letter(&departure.route, None, parts.len()) {
                Ok(letter) => port.send_all(&[letter], &parts, |_, error| failed(&departure.route, &error)),
                Err(error) => failed(&departure.route, &error),
            }
        }
    }

    /// Adds the pieces of a datagram to `parts`.
    fn write_parts<'a>(&'a self, departure: &Departure, intake: &'a Intake, parts: &mut Vec<IoSlice<'a>>) {
        let (at, len) = departure.head;
        let head = self.written.get(at as usize..at as usize + len as usize).unwrap_or_default();
        let body = intake.part(departure.body.0, departure.body.1);
        let pieces = [head, body, &ZEROS[..usize::from(departure.padding)]];
        parts.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new));
    }

    fn starts_of(&self, queue: &Queue) -> impl Iterator<Item = u32> {
        let mut next = queue.first;
        std::iter::from_fn(move || {
            let chain = self.chains.get(next as usize)?;
            next = chain.next;
            Some(chain.first)
        })
    }

    /// Iterates over a datagram and those behind it in its flow.
    fn chain(&self, first: u32) -> impl Iterator<Item = &Departure> {
        let mut next = first;
        std::iter::from_fn(move || {
            let departure = self.waiting.get(next as usize)?;
            next = departure.next;
            Some(departure)
        })
    }

    /// Returns how many datagrams from `first` on can leave as one run: equally long but for the last.
    fn run_length(&self, first: u32) -> usize {
        let mut sizes = self.chain(first).map(Departure::size);
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
        self.waiting.clear();
        self.chains.clear();
        self.queues.clear();
        self.written.clear();
        self.written.shrink_to(WRITTEN_KEPT);
        self.turn = self.turn.wrapping_add(1);
        if self.turn == 0 {
            // Places from 2^32 turns ago would count as this turn's.
            self.flows.fill(Recent::default());
            self.exits.fill(Recent::default());
            self.turn = 1;
        }
    }
}

/// Lends a vector's room to what lives shorter or longer: the library collects in place.
fn emptied<'a>(mut parts: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    parts.clear();
    parts.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// Returns the place of a flow in the cache.
fn flow_place(exit: Exit, to: SocketAddr) -> usize {
    let ip = match to.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => (u128::from(ip) ^ (u128::from(ip) >> 64)) as u64,
    };
    let mixed = (ip << 16) ^ ip.rotate_right(16) ^ u64::from(to.port()) ^ ((exit.number() as u64) << 48);
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FLOWS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::udp::{Haul, Role, UdpPort};
    use std::cell::RefCell;

    fn departures(all: &[(Exit, &str, usize)]) -> Departures {
        let mut departures = Departures::default();
        for (exit, to, len) in all {
            departures.push(*exit, Route::to(to.parse().unwrap()), &[], Payload::Fleeting(&vec![7; *len]), 0);
        }
        departures
    }

    #[test]
    fn what_goes_the_same_way_leaves_together() {
        let (here, there) = ("192.0.2.1:1", "192.0.2.1:2");
        let door = |to, len| (Exit::Door(0), to, len);
        for (all, expected) in [
            (vec![door(here, 9)], 1),
            (vec![door(here, 9), door(here, 9), door(here, 9)], 3),
            (vec![door(here, 9), door(there, 9), door(here, 9)], 2),
            (vec![door(here, 9), door(here, 5), door(here, 5)], 2),
            (vec![door(here, 9), door(here, 0), door(here, 5)], 1),
            (vec![door(here, 9), door(here, 10)], 1),
            (vec![door(here, 9), door(there, 9)], 1),
            (vec![door(here, 9), (Exit::Relay(0), here, 9)], 1),
            (vec![door(here, 9); 100], MAX_RUN),
            (vec![door(here, 9996); 100], 6),
            (vec![door(here, 65_500); 2], 1),
        ] {
            assert_eq!(departures(&all).run_length(0), expected);
        }
    }

    #[test]
    fn every_datagram_arrives_and_each_flow_in_its_order() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let bind = || UdpPort::bind(SocketAddr::new(ip, 0), Role::Single).unwrap();
        let (senders, receivers) = ([(); 3].map(|()| bind()), [(); 5].map(|()| bind()));
        let mut departures = Departures::default();
        let mut expected = vec![Vec::new(); receivers.len()];
        for turn in 0..3 {
            for number in 0..150_usize {
                let (from, to) = (number % 3, number * 7 % 5);
                let head = [turn as u8, number as u8, from as u8];
                let (route, padding) = (Route::to(receivers[to].local_addr()), number % 4);
                let body = vec![9; number % 11 / 10];
                departures.push(Exit::Relay(from), route, &head, Payload::Fleeting(&body), padding);
                expected[to].push([&head[..], &body, &ZEROS[..padding]].concat());
            }
            let socket = |exit| match exit {
                Exit::Relay(index) => senders.get(index),
                Exit::Door(_) => None,
            };
            assert!(!departures.is_empty());
            departures.send(&Intake::default(), socket, |_, error| panic!("{error}"));
            assert!(departures.is_empty());
        }
        for (port, expected) in receivers.iter().zip(expected) {
            let (mut intake, mut heard) = (Intake::default(), Vec::new());
            while let Ok(haul) = port.recv(&mut intake) {
                heard.extend(intake.datagrams(haul).map(|datagram| datagram.payload.to_vec()));
                intake.clear();
            }
            for from in 0..3 {
                let of_flow = |all: &[Vec<u8>]| -> Vec<_> {
                    all.iter().filter(|payload| payload[2] == from).cloned().collect()
                };
                assert_eq!(of_flow(&heard), of_flow(&expected));
            }
            assert_eq!(heard.len(), expected.len());
        }
    }

    /// Destination, segment and bytes.
    type Message = (u16, Option<u16>, usize);

    /// A socket that writes down every message of every call.
    #[derive(Default)]
    struct Recorder {
        calls: RefCell<Vec<Vec<Message>>>,
    }

    impl BatchSocket for Recorder {
        type Letter = (Route, Option<u16>, usize);

        fn recv(&self, _: &mut Intake) -> io::Result<Haul> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn letter(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Self::Letter> {
            Ok((*route, segment, parts))
        }

        fn send_all(
            &self,
            letters: &[Self::Letter],
            mut parts: &[IoSlice<'_>],
            _: impl FnMut(usize, io::Error),
        ) {
            let message = |(route, segment, count): &Self::Letter| {
                let own = parts.split_off(..*count).unwrap();
                (route.to.port(), *segment, own.iter().map(|part| part.len()).sum())
            };
            self.calls.borrow_mut().push(letters.iter().map(message).collect());
        }
    }

    #[test]
    fn one_call_for_each_socket_takes_everything_and_one_message_each_run() {
        let sockets = [Recorder::default(), Recorder::default()];
        let mut departures = Departures::default();
        for number in 0..24_u16 {
            let (exit, to) = (Exit::Door(usize::from(number % 2)), number % 4);
            let route = Route::to(SocketAddr::from(([192, 0, 2, 1], 1 + to)));
            departures.push(exit, route, &[7; 4], Payload::Fleeting(&[8; 100]), 0);
        }
        let door = |exit| if let Exit::Door(index) = exit { sockets.get(index) } else { None };
        departures.send(&Intake::default(), door, |_, error| panic!("{error}"));
        for (first, socket) in (1..).zip(&sockets) {
            let run = |to| (to, Some(104), 6 * 104);
            assert_eq!(*socket.calls.borrow(), [[run(first), run(first + 2)]]);
        }
    }

    #[test]
    fn what_has_no_socket_is_lost_and_said_to_be() {
        let mut lost = Vec::new();
        let mut departures =
            departures(&[(Exit::Relay(3), "192.0.2.1:1", 4), (Exit::Relay(3), "192.0.2.1:2", 4)]);
        departures.send(&Intake::default(), |_| None::<&UdpPort>, |route, _| lost.push(route.to.port()));
        assert_eq!(lost, [1, 2]);
        assert!(departures.is_empty());
    }
}
