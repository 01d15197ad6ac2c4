//! Slow receivers: which senders are paused, and which virtual connections are closed.

use super::super::budget::READ;
use super::*;

const SMALL: Limits = Limits {
    max_packet: 70_000,
    queue: 4096,
    memory: 4 * READ + 200_000,
    per_client: 8,
    half_open: 64,
    violations: 100,
    virtual_connections: 1000,
};
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn a_sender_with_one_virtual_connection_waits_as_long_as_it_takes() {
    let mut gateway = TestGateway::new(SMALL);
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    for _ in 0..5 {
        gateway.message(client, conn, 1000);
    }
    assert!(gateway.is_paused(client), "the fifth exceeds the queue");
    gateway.wait(PAUSE * 4);
    assert!(gateway.is_paused(client) && gateway.dropped.is_empty());
    assert_eq!(gateway.receive(server), vec![TestFrame::Data(conn, 1000); 5], "the rest follows");
    assert!(!gateway.is_paused(client));
}

#[test]
fn a_slow_receiver_pauses_the_sender_for_a_while_and_then_loses_its_connection() {
    let mut gateway = TestGateway::new(SMALL);
    let (slow, quick, server) = (gateway.client(), gateway.client(), gateway.server(9, false));
    let (first, second) = (gateway.connect(slow, server, 9), gateway.connect(quick, server, 9));
    for _ in 0..5 {
        gateway.message(server, first, 1000);
    }
    gateway.message(server, second, 7);
    assert!(gateway.is_paused(server));
    assert_eq!(gateway.receive(quick), [], "it is queued behind the first connection's messages");
    gateway.wait(PAUSE);
    assert!(!gateway.is_paused(server));
    assert_eq!(gateway.receive(quick), [TestFrame::Data(second, 7)]);
    assert_eq!(
        gateway.receive(server),
        [TestFrame::Close(first), TestFrame::Close(first)],
        "one for the paused message"
    );
    assert_eq!(gateway.receive(slow), [TestFrame::Close(first)], "its queue is dropped");
    assert_eq!(gateway.router.counters().slow, 1);
    gateway.message(server, first, 1000);
    assert_eq!(gateway.router.counters().late, 2, "the paused message and this one are late, not violations");
}

#[test]
fn a_receiver_that_takes_nothing_pauses_no_sender_twice() {
    let mut gateway = TestGateway::new(SMALL);
    let (slow, server) = (gateway.client(), gateway.server(9, false));
    let conns: Vec<u32> = (0..4).map(|_| gateway.connect(slow, server, 9)).collect();
    for _ in 0..5 {
        gateway.message(server, conns[0], 1000);
    }
    gateway.wait(PAUSE);
    assert_eq!(gateway.router.counters().slow, 1);
    let others = [gateway.connect_other(server, 9), gateway.connect_other(server, 9)];
    for conn in &conns[1..] {
        for _ in 0..5 {
            gateway.message(server, *conn, 1000);
        }
        assert!(!gateway.is_paused(server), "it has stalled for long enough already");
    }
    assert_eq!((gateway.router.counters().slow, others.len()), (4, 2));
}

#[test]
fn a_server_with_credit_is_never_paused_and_keeps_its_connections() {
    let mut gateway = TestGateway::new(SMALL);
    let (slow, quick, server) = (gateway.client(), gateway.client(), gateway.server(9, true));
    let mut conns = Vec::new();
    for client in [slow, quick] {
        let (conn, _) = gateway.dial(client, 9);
        let received = gateway.receive(server);
        assert!(matches!(received[1], TestFrame::Credit(same, 4096) if same == conn), "{received:?}");
        conns.push(conn);
    }
    // The credit covers four frames of 1008 bytes; a fifth may exceed it.
    for _ in 0..4 {
        gateway.message(server, conns[0], 1000);
    }
    gateway.wait(PAUSE * 3);
    gateway.message(server, conns[1], 7);
    assert_eq!(gateway.receive(quick), [TestFrame::Ping, TestFrame::Data(conns[1], 7)][1..].to_vec());
    assert!(!gateway.is_paused(server));
    assert_eq!(gateway.receive(slow).len(), 4, "nothing was closed");
    assert_eq!(gateway.receive(server), [TestFrame::Credit(conns[0], 4 * 1008)]);
}

#[test]
fn a_server_grants_credit_and_its_clients_wait_for_it() {
    let mut gateway = TestGateway::new(SMALL);
    let (client, server) = (gateway.client(), gateway.server(9, true));
    let (conn, _) = gateway.dial(client, 9);
    gateway.receive(server);
    gateway.message(client, conn, 100);
    assert!(gateway.is_paused(client), "nothing is granted yet");
    gateway.send_command(server, Command::Credit { conn: ConnId(conn), bytes: 150 });
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 100)]);
    gateway.message(client, conn, 100);
    gateway.message(client, conn, 100);
    assert_eq!(
        gateway.receive(server),
        [TestFrame::Data(conn, 100)],
        "42 are left, which one frame may exceed"
    );
    assert!(gateway.is_paused(client));
    gateway.send_command(server, Command::Credit { conn: ConnId(conn), bytes: 1000 });
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 100)]);
}

#[test]
fn memory_is_bounded_and_taken_back_from_receivers_without_progress() {
    let mut gateway = TestGateway::new(Limits { queue: 100_000, ..SMALL });
    let server = gateway.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| gateway.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| gateway.connect(*client, server, 9)).collect();
    let mut sent = 0;
    for conn in conns.iter().cycle() {
        if gateway.is_paused(server) {
            break;
        }
        gateway.message(server, *conn, 20_000);
        sent += 1;
        assert!(gateway.router.counters().waiting <= SMALL.memory as u64 + 20_008);
    }
    assert!(sent * 20_008 + READ >= SMALL.memory, "{sent} messages fill it");
    // One client reads and frees memory; the others read nothing.
    gateway.wait(PAUSE / 2);
    assert!(gateway.receive(clients[0]).len() > 1 && !gateway.is_paused(server));
    for _ in 0..40 {
        gateway.message(server, conns[0], 20_000);
    }
    assert!(gateway.is_paused(server), "the memory is used up again");
    gateway.wait(PAUSE / 2);
    gateway.receive(clients[0]);
    gateway.wait(PAUSE * 2);
    assert!(!gateway.is_paused(server), "memory is free again");
    assert!(
        gateway.router.counters().slow <= 7
            && !gateway.receive(clients[0]).contains(&TestFrame::Close(conns[0]))
    );
}

#[test]
fn memory_of_stalled_receivers_is_reclaimed_as_soon_as_it_is_short() {
    let mut gateway = TestGateway::new(Limits { queue: 100_000, ..SMALL });
    let server = gateway.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| gateway.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| gateway.connect(*client, server, 9)).collect();
    for conn in conns.iter().cycle() {
        if gateway.router.counters().waiting + 2 * 20_008 + READ as u64 > SMALL.memory as u64 {
            break;
        }
        gateway.message(server, *conn, 20_000);
    }
    gateway.wait(PAUSE);
    assert!(
        !gateway.is_paused(server) && gateway.router.counters().slow == 0,
        "no endpoint waits for memory yet"
    );
    for conn in conns.iter().cycle().take(8) {
        if !gateway.is_paused(server) {
            gateway.message(server, *conn, 20_000);
        }
    }
    assert!(gateway.is_paused(server));
    gateway.wait(PAUSE / 4);
    assert!(!gateway.is_paused(server) && gateway.router.counters().slow > 0);
}

/// Bytes of the frames below.
const LONG: usize = 60_008;

#[test]
fn an_announced_length_uses_no_memory_before_its_bytes_arrive() {
    let mut gateway = TestGateway::new(SMALL);
    let clients: Vec<EndpointKey> =
        (0..200).map(|client| gateway.client_at([10, 9, 9, client % 2])).collect();
    let (honest, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(honest, server, 9);
    for client in &clients {
        gateway.send(*client, &long_frame(7)[..72]);
    }
    assert!(gateway.router.counters().waiting <= 2 * 200 * 4096);
    gateway.message(honest, conn, 100);
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 100)], "incomplete frames delay no other");
    assert!(!gateway.is_paused(honest) && gateway.dropped.is_empty());
}

#[test]
fn frames_of_one_address_use_only_its_share_and_all_complete() {
    let mut gateway = TestGateway::new(Limits { queue: 1_000_000, ..SMALL });
    let server = gateway.server(9, false);
    let same_address: Vec<EndpointKey> = (0..8).map(|_| gateway.client_at([10, 9, 9, 9])).collect();
    let (other, mut waits) = (gateway.client(), HashMap::new());
    let conns: Vec<u32> = same_address.iter().map(|client| gateway.connect(*client, server, 9)).collect();
    for (client, conn) in same_address.iter().zip(&conns) {
        let frame = long_frame(*conn);
        let left = gateway.send_readable(*client, &frame[..30_000]);
        waits.insert(*client, [left, frame[30_000..].to_vec()].concat());
    }
    let share = (SMALL.memory / 8).max(SMALL.max_packet + 4) + SMALL.max_packet;
    let waiting = gateway.router.counters().waiting as usize;
    assert!(waiting <= share + 8 * 4096, "{waiting} of {share}");
    assert!(
        gateway.router.counters().share_waits > 0
            && same_address.iter().any(|client| gateway.is_paused(*client))
    );
    // A frame from another address passes at once.
    let conn = gateway.connect(other, server, 9);
    assert!(gateway.send_readable(other, &long_frame(conn)).is_empty());
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, LONG - 8)]);
    let mut received = Vec::new();
    for _ in 0..same_address.len() {
        for client in &same_address {
            let left = waits.remove(client).unwrap();
            let left = gateway.send_readable(*client, &left);
            waits.insert(*client, left);
        }
        received.extend(gateway.receive(server));
    }
    received.sort_by_key(|received| if let TestFrame::Data(conn, _) = received { *conn } else { 0 });
    let mut expected: Vec<_> = conns.iter().map(|conn| TestFrame::Data(*conn, LONG - 8)).collect();
    expected.sort_by_key(|received| if let TestFrame::Data(conn, _) = received { *conn } else { 0 });
    assert_eq!(received, expected);
    assert_eq!(gateway.router.counters().waiting, 0);
}

#[test]
fn short_frames_pass_while_long_ones_use_all_their_memory() {
    let mut gateway = TestGateway::new(SMALL);
    let (honest, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(honest, server, 9);
    let mut paused = 0;
    for _ in 0..18 {
        let client = gateway.client();
        gateway.send_readable(client, &long_frame(7)[..40_000]);
        paused += usize::from(gateway.is_paused(client));
    }
    assert!(paused > 8, "{paused}");
    for _ in 0..50 {
        gateway.message(honest, conn, 100);
        assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 100)]);
        gateway.dial(honest, 8);
    }
    assert!(gateway.dropped.is_empty());
    gateway.wait(PAUSE * 3);
    assert!(gateway.dropped.len() > 4, "incomplete frames are closed when others need the memory");
    assert!(gateway.dropped.values().all(|why| *why == CloseReason::SlowFrame));
}

#[test]
fn memory_of_a_dropped_frame_goes_to_waiting_endpoints() {
    let mut gateway = TestGateway::new(SMALL);
    let clients: Vec<EndpointKey> = (0..12).map(|_| gateway.client()).collect();
    let mut left = Vec::new();
    for client in &clients {
        left.push(gateway.send_readable(*client, &long_frame(7)[..30_000]));
    }
    let paused = |gateway: &TestGateway| clients.iter().filter(|client| gateway.is_paused(**client)).count();
    let before = paused(&gateway);
    assert!(before > 0 && !gateway.is_paused(clients[0]), "there is no memory for all of them");
    assert!(left[0].is_empty());
    gateway.send(clients[0], &long_frame(7)[30_000..]);
    assert_eq!(gateway.receive(clients[0]), [TestFrame::Close(7)], "its id is unknown");
    assert!(paused(&gateway) < before);
}

#[test]
fn memory_of_slow_receivers_is_reclaimed_when_it_is_short() {
    let mut gateway = TestGateway::new(Limits { queue: 100_000, ..SMALL });
    let server = gateway.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| gateway.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| gateway.connect(*client, server, 9)).collect();
    for conn in conns.iter().cycle().take(40) {
        if !gateway.is_paused(server) {
            gateway.message(server, *conn, 20_000);
        }
    }
    assert!(gateway.is_paused(server), "the memory is used up");
    for _ in 0..12 {
        gateway.wait(PAUSE / 4);
        for client in &clients {
            gateway.router.handle_written(gateway.now, *client, 1);
        }
    }
    assert!(gateway.router.counters().slow > 0 && !gateway.is_paused(server));
}

#[test]
fn memory_is_not_kept_by_frames_that_never_end() {
    let mut gateway = TestGateway::new(SMALL);
    let clients: Vec<EndpointKey> = (0..20).map(|_| gateway.client()).collect();
    for client in &clients {
        gateway.send_readable(*client, &long_frame(7)[..30_000]);
    }
    assert!(gateway.is_paused(clients[19]), "there is no memory for all of them");
    for _ in 0..5 {
        gateway.wait(PAUSE / 2);
        for client in &clients[..7] {
            gateway.send(*client, b"x");
        }
    }
    assert!(clients[..7].iter().all(|client| gateway.dropped.get(client) == Some(&CloseReason::SlowFrame)));
}

#[test]
fn an_endpoint_that_does_not_read_its_answers_is_not_read() {
    let mut gateway = TestGateway::new(Limits::default());
    let client = gateway.client();
    let mut sent = 0;
    while !gateway.is_paused(client) {
        gateway.send_command(client, Command::New);
        sent += 1;
        assert!(sent < 100_000);
    }
    assert!(gateway.router.counters().waiting < 100_000);
    // The oldest ids that were not dialled were closed.
    assert_eq!(gateway.receive(client).len(), 2 * sent - Limits::default().half_open);
    assert!(!gateway.is_paused(client));
}

/// A whole long frame.
fn long_frame(conn: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::emit_header(&mut bytes, ConnId(conn), LONG - 8);
    bytes.resize(LONG, 0);
    bytes
}

impl TestGateway {
    /// A virtual connection of another client, which reads.
    fn connect_other(&mut self, server: EndpointKey, server_id: u32) -> u32 {
        let other = self.client();
        let (conn, _) = self.dial(other, server_id);
        self.receive(server);
        conn
    }
}
