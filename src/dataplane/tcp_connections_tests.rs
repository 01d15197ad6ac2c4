//! TCP clients of a worker: reading, partial frames, time-outs, and that a slow client delays no other one.

use super::*;
use crate::net::time;
use crate::turn_server::Transport;
use mio::{Events, Poll};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as Client};
use std::time::Duration;

/// A poll that brings nothing would wait for this long.
const FOREVER: Duration = Duration::from_secs(20);
const FRAME: &[u8] = b"\x40\x01\0\x04here";

fn connection() -> ConnectionPermit {
    use crate::net::connection_limiter::{ConnectionLimiter, ConnectionLimits};
    let limits = ConnectionLimits { total: 1, descriptors: 1, per_address: 1, bytes: 1 << 20 };
    ConnectionLimiter::new(limits, &[]).admit().unwrap()
}

struct World {
    poll: Poll,
    connections: TcpConnections,
    rx: RxBuffers,
    start: Instant,
}

impl World {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        let connections = TcpConnections::new(poll.registry().try_clone().unwrap(), Handle::current());
        Self { poll, connections, rx: RxBuffers::default(), start: time::now().mono }
    }

    fn connect(&mut self, early: &[u8]) -> (Client, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = Client::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, address) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let server: SocketAddr = listener.local_addr().unwrap();
        let client = FiveTuple { client: address, server, transport: Transport::Tcp };
        let arrival = AcceptedSocket { client, socket, early: early.into(), connection: connection() };
        (near, self.connections.insert(self.start, arrival).unwrap())
    }

    /// Reads until `enough` bytes have come or the stream has ended.
    fn read(&mut self, enough: usize) -> (Vec<u8>, bool) {
        let (mut all, mut ended) = (Vec::new(), false);
        while all.len() < enough && !ended {
            if !self.connections.has_readable() {
                self.wait();
            }
            while let Some((_, read)) = self.connections.read(self.start, &mut self.rx, 0) {
                all.extend_from_slice(self.rx.slice(read.bytes.clone()).as_bytes());
                ended |= read.ended;
            }
        }
        (all, ended)
    }

    fn wait(&mut self) {
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(FOREVER)).unwrap();
        assert!(!events.is_empty(), "nothing happens");
        for event in &events {
            self.connections.on_event(slot(event.token()).unwrap(), event);
        }
    }

    fn ended(&mut self, after: Duration) -> Option<usize> {
        self.connections.handle_timeout(self.start + after);
        self.connections.take_ended().map(|(slot, _)| slot)
    }
}

#[tokio::test]
async fn what_was_read_early_and_what_begins_a_frame_come_before_the_rest() {
    let mut world = World::new();
    let (mut client, slot) = world.connect(&FRAME[..3]);
    assert_eq!(world.read(3), (FRAME[..3].to_vec(), false));
    assert!(world.connections.keep_partial(world.start, slot, &FRAME[..3], false));
    client.write_all(&FRAME[3..]).unwrap();
    assert_eq!(world.read(FRAME.len()), (FRAME.to_vec(), false));
    world.connections.mark_authenticated(slot);
    let large = vec![7; 3 * READ_SIZE];
    let writer = std::thread::spawn(move || {
        client.write_all(&large).unwrap();
        client
    });
    assert_eq!(world.read(3 * READ_SIZE).0.len(), 3 * READ_SIZE, "one event, several reads");
    writer.join().unwrap();
}

#[tokio::test]
async fn the_end_is_seen_behind_the_last_bytes_and_the_answer_still_goes_out() {
    let mut world = World::new();
    let (mut client, slot) = world.connect(b"");
    client.write_all(FRAME).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (bytes, ended) = world.read(FRAME.len() + 1);
    assert_eq!((&bytes[..], ended), (FRAME, true));
    assert!(world.connections.send(slot, [b"the ", b"answer", b""]));
    world.connections.close(world.start, slot);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "the answer");
    assert!(!world.connections.send(slot, [b"too late", b"", b""]));
}

#[tokio::test]
async fn frames_of_one_pass_arrive_in_their_order() {
    let mut world = World::new();
    let (mut client, slot) = world.connect(b"");
    for part in [b"one", b"two"] {
        assert!(world.connections.send(slot, [part, b",", b""]));
    }
    world.connections.flush(world.start);
    let mut both = [0; 8];
    client.read_exact(&mut both).unwrap();
    assert_eq!(&both, b"one,two,");
}

#[tokio::test]
async fn a_slow_reader_loses_frames_holds_up_nobody_and_gets_the_rest_whole() {
    let mut world = World::new();
    let ((mut slow, slot), (mut quick, other)) = (world.connect(b""), world.connect(b""));
    let mut taken = 0;
    for number in 0..1_000_000_u32 {
        if !world.connections.send(slot, [&number.to_be_bytes(), &[0; 1020], b""]) {
            break;
        }
        world.connections.flush(world.start);
        taken += 1;
    }
    assert!(taken < 1_000_000, "nothing is ever dropped");
    assert!(world.connections.send(other, [FRAME, b"", b""]));
    world.connections.flush(world.start);
    let mut last_read = [0; 8];
    quick.read_exact(&mut last_read).unwrap();
    assert_eq!(last_read, FRAME);
    let reader = std::thread::spawn(move || {
        let mut frame = [0; 1024];
        for number in 0..taken {
            slow.read_exact(&mut frame).unwrap();
            assert_eq!(frame[..4], u32::to_be_bytes(number));
        }
        slow
    });
    while world.connections.connections[slot].blocked_since.is_some() {
        world.wait();
        world.connections.flush(world.start);
    }
    let _slow = reader.join().unwrap();
    assert!(world.connections.send(slot, [FRAME, b"", b""]), "there is room again");
    assert_eq!(world.ended(WRITE_TIME), None, "it reads");
}

#[tokio::test]
async fn who_takes_nothing_for_half_a_minute_is_given_up() {
    let mut world = World::new();
    let (_client, slot) = world.connect(b"");
    while world.connections.send(slot, [&[7; 1024], b"", b""]) {
        world.connections.flush(world.start);
    }
    world.connections.mark_authenticated(slot);
    assert_eq!(world.connections.poll_timeout(), Some(world.start + WRITE_TIME));
    assert_eq!(world.ended(WRITE_TIME - Duration::from_millis(1)), None);
    assert_eq!(world.ended(WRITE_TIME), Some(slot));
}

#[tokio::test]
async fn a_client_is_silent_for_a_minute_or_with_credentials_for_an_hour() {
    let mut world = World::new();
    let ((_stranger, stranger), (_known, known)) = (world.connect(b""), world.connect(b""));
    world.connections.mark_authenticated(known);
    assert_eq!(world.ended(UNAUTHENTICATED_IDLE_TIME - Duration::from_millis(1)), None);
    assert_eq!(world.ended(UNAUTHENTICATED_IDLE_TIME), Some(stranger));
    world.connections.close(world.start, stranger);
    assert_eq!(world.ended(IDLE_TIME - Duration::from_millis(1)), None);
    assert_eq!(world.ended(IDLE_TIME), Some(known));
}

#[tokio::test]
async fn a_stranger_that_was_passed_over_is_read_once_it_has_shown_credentials() {
    let mut world = World::new();
    let (mut client, slot) = world.connect(b"");
    while world.connections.read(world.start, &mut world.rx, 0).is_some() {}
    while world.connections.send(slot, [&[7; 1024], b"", b""]) {
        world.connections.flush(world.start);
    }
    client.write_all(FRAME).unwrap();
    while !world.connections.has_readable() {
        world.wait();
    }
    assert!(world.connections.read(world.start, &mut world.rx, 0).is_none(), "it takes no answers");
    // By a request that has waited for the user look-up.
    world.connections.mark_authenticated(slot);
    let (last_read, _) = world.read(FRAME.len());
    assert_eq!(last_read, FRAME);
}
