//! Slow receivers: who waits for them, and who does not.

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
const HOLD: Duration = Duration::from_secs(5);

#[test]
fn a_sender_with_one_virtual_connection_waits_as_long_as_it_takes() {
    let mut world = World::new(SMALL);
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    for _ in 0..5 {
        world.message(client, conn, 1000);
    }
    assert!(world.is_paused(client), "the fifth finds no room");
    world.wait(HOLD * 4);
    assert!(world.is_paused(client) && world.dropped.is_empty());
    assert_eq!(world.receive(server), vec![Received::Data(conn, 1000); 5], "then all of it comes");
    assert!(!world.is_paused(client));
}

#[test]
fn a_slow_receiver_holds_up_the_others_for_a_while_and_then_loses_its_own() {
    let mut world = World::new(SMALL);
    let (slow, quick, server) = (world.client(), world.client(), world.server(9, false));
    let (first, second) = (world.connect(slow, server, 9), world.connect(quick, server, 9));
    for _ in 0..5 {
        world.message(server, first, 1000);
    }
    world.message(server, second, 7);
    assert!(world.is_paused(server));
    assert_eq!(world.receive(quick), [], "it is behind what waits");
    world.wait(HOLD);
    assert!(!world.is_paused(server));
    assert_eq!(world.receive(quick), [Received::Data(second, 7)]);
    assert_eq!(
        world.receive(server),
        [Received::Close(first), Received::Close(first)],
        "and for the one that was held"
    );
    assert_eq!(world.receive(slow), [Received::Close(first)], "what waited for it is gone");
    assert_eq!(world.router.counters().slow, 1);
    world.message(server, first, 1000);
    assert_eq!(world.router.counters().late, 2, "the one that was held, and this one, are no violations");
}

#[test]
fn a_receiver_that_takes_nothing_holds_up_nobody_twice() {
    let mut world = World::new(SMALL);
    let (slow, server) = (world.client(), world.server(9, false));
    let conns: Vec<u32> = (0..4).map(|_| world.connect(slow, server, 9)).collect();
    for _ in 0..5 {
        world.message(server, conns[0], 1000);
    }
    world.wait(HOLD);
    assert_eq!(world.router.counters().slow, 1);
    let others = [world.connect_other(server, 9), world.connect_other(server, 9)];
    for conn in &conns[1..] {
        for _ in 0..5 {
            world.message(server, *conn, 1000);
        }
        assert!(!world.is_paused(server), "it has stalled for long enough already");
    }
    assert_eq!((world.router.counters().slow, others.len()), (4, 2));
}

#[test]
fn a_server_with_credit_is_never_held_and_nothing_of_it_is_closed() {
    let mut world = World::new(SMALL);
    let (slow, quick, server) = (world.client(), world.client(), world.server(9, true));
    let mut conns = Vec::new();
    for client in [slow, quick] {
        let (conn, _) = world.dial(client, 9);
        let received = world.receive(server);
        assert!(matches!(received[1], Received::Credit(same, 4096) if same == conn), "{received:?}");
        conns.push(conn);
    }
    // What the credit is good for, in frames of 1008 bytes: four, and one that goes below it.
    for _ in 0..4 {
        world.message(server, conns[0], 1000);
    }
    world.wait(HOLD * 3);
    world.message(server, conns[1], 7);
    assert_eq!(world.receive(quick), [Received::Ping, Received::Data(conns[1], 7)][1..].to_vec());
    assert!(!world.is_paused(server));
    assert_eq!(world.receive(slow).len(), 4, "nothing was closed");
    assert_eq!(world.receive(server), [Received::Credit(conns[0], 4 * 1008)]);
}

#[test]
fn a_server_grants_credit_and_its_clients_wait_for_it() {
    let mut world = World::new(SMALL);
    let (client, server) = (world.client(), world.server(9, true));
    let (conn, _) = world.dial(client, 9);
    world.receive(server);
    world.message(client, conn, 100);
    assert!(world.is_paused(client), "nothing is granted yet");
    world.send_command(server, Command::Credit { conn: ConnId(conn), bytes: 150 });
    assert_eq!(world.receive(server), [Received::Data(conn, 100)]);
    world.message(client, conn, 100);
    world.message(client, conn, 100);
    assert_eq!(world.receive(server), [Received::Data(conn, 100)], "42 are left, which one frame may exceed");
    assert!(world.is_paused(client));
    world.send_command(server, Command::Credit { conn: ConnId(conn), bytes: 1000 });
    assert_eq!(world.receive(server), [Received::Data(conn, 100)]);
}

#[test]
fn memory_is_bounded_and_those_who_take_nothing_give_it_back() {
    let mut world = World::new(Limits { queue: 100_000, ..SMALL });
    let server = world.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| world.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| world.connect(*client, server, 9)).collect();
    let mut sent = 0;
    for conn in conns.iter().cycle() {
        if world.is_paused(server) {
            break;
        }
        world.message(server, *conn, 20_000);
        sent += 1;
        assert!(world.router.counters().waiting <= SMALL.memory as u64 + 20_008);
    }
    assert!(sent * 20_008 + READ >= SMALL.memory, "{sent} messages fill it");
    // One of them reads on and leaves some room, the others take nothing.
    world.wait(HOLD / 2);
    assert!(world.receive(clients[0]).len() > 1 && !world.is_paused(server));
    for _ in 0..40 {
        world.message(server, conns[0], 20_000);
    }
    assert!(world.is_paused(server), "it is all taken again");
    world.wait(HOLD / 2);
    world.receive(clients[0]);
    world.wait(HOLD * 2);
    assert!(!world.is_paused(server), "there is room again");
    assert!(
        world.router.counters().slow <= 7 && !world.receive(clients[0]).contains(&Received::Close(conns[0]))
    );
}

#[test]
fn whoever_has_taken_nothing_for_long_gives_memory_back_as_soon_as_it_is_short() {
    let mut world = World::new(Limits { queue: 100_000, ..SMALL });
    let server = world.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| world.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| world.connect(*client, server, 9)).collect();
    for conn in conns.iter().cycle() {
        if world.router.counters().waiting + 2 * 20_008 + READ as u64 > SMALL.memory as u64 {
            break;
        }
        world.message(server, *conn, 20_000);
    }
    world.wait(HOLD);
    assert!(!world.is_paused(server) && world.router.counters().slow == 0, "nobody wants it yet");
    for conn in conns.iter().cycle().take(8) {
        if !world.is_paused(server) {
            world.message(server, *conn, 20_000);
        }
    }
    assert!(world.is_paused(server));
    world.wait(HOLD / 4);
    assert!(!world.is_paused(server) && world.router.counters().slow > 0);
}

/// Bytes of the frames below.
const LONG: usize = 60_008;

#[test]
fn a_length_that_is_announced_takes_no_memory_before_its_bytes_come() {
    let mut world = World::new(SMALL);
    let clients: Vec<EndpointKey> = (0..200).map(|client| world.client_at([10, 9, 9, client % 2])).collect();
    let (honest, server) = (world.client(), world.server(9, false));
    let conn = world.connect(honest, server, 9);
    for client in &clients {
        world.send(*client, &long_frame(7)[..72]);
    }
    assert!(world.router.counters().waiting <= 2 * 200 * 4096);
    world.message(honest, conn, 100);
    assert_eq!(world.receive(server), [Received::Data(conn, 100)], "nobody waits for them");
    assert!(!world.is_paused(honest) && world.dropped.is_empty());
}

#[test]
fn frames_of_one_address_take_its_share_and_all_of_them_come_in_the_end() {
    let mut world = World::new(Limits { queue: 1_000_000, ..SMALL });
    let server = world.server(9, false);
    let crowd: Vec<EndpointKey> = (0..8).map(|_| world.client_at([10, 9, 9, 9])).collect();
    let (other, mut waits) = (world.client(), HashMap::new());
    let conns: Vec<u32> = crowd.iter().map(|client| world.connect(*client, server, 9)).collect();
    for (client, conn) in crowd.iter().zip(&conns) {
        let frame = long_frame(*conn);
        let left = world.pour(*client, &frame[..30_000]);
        waits.insert(*client, [left, frame[30_000..].to_vec()].concat());
    }
    let share = (SMALL.memory / 8).max(SMALL.max_packet + 4) + SMALL.max_packet;
    let waiting = world.router.counters().waiting as usize;
    assert!(waiting <= share + 8 * 4096, "{waiting} of {share}");
    assert!(world.router.counters().share_waits > 0 && crowd.iter().any(|client| world.is_paused(*client)));
    // Somebody else's passes at once.
    let conn = world.connect(other, server, 9);
    assert!(world.pour(other, &long_frame(conn)).is_empty());
    assert_eq!(world.receive(server), [Received::Data(conn, LONG - 8)]);
    let mut received = Vec::new();
    for _ in 0..crowd.len() {
        for client in &crowd {
            let left = waits.remove(client).unwrap();
            let left = world.pour(*client, &left);
            waits.insert(*client, left);
        }
        received.extend(world.receive(server));
    }
    received.sort_by_key(|received| if let Received::Data(conn, _) = received { *conn } else { 0 });
    let mut expected: Vec<_> = conns.iter().map(|conn| Received::Data(*conn, LONG - 8)).collect();
    expected.sort_by_key(|received| if let Received::Data(conn, _) = received { *conn } else { 0 });
    assert_eq!(received, expected);
    assert_eq!(world.router.counters().waiting, 0);
}

#[test]
fn short_frames_pass_while_long_ones_have_all_that_they_may_have() {
    let mut world = World::new(SMALL);
    let (honest, server) = (world.client(), world.server(9, false));
    let conn = world.connect(honest, server, 9);
    let mut held = 0;
    for _ in 0..18 {
        let client = world.client();
        world.pour(client, &long_frame(7)[..40_000]);
        held += usize::from(world.is_paused(client));
    }
    assert!(held > 8, "{held}");
    for _ in 0..50 {
        world.message(honest, conn, 100);
        assert_eq!(world.receive(server), [Received::Data(conn, 100)]);
        world.dial(honest, 8);
    }
    assert!(world.dropped.is_empty());
    world.wait(HOLD * 3);
    assert!(world.dropped.len() > 4, "whoever keeps it for nothing makes room for the others");
    assert!(world.dropped.values().all(|why| *why == CloseReason::SlowFrame));
}

#[test]
fn memory_of_what_is_dropped_goes_to_whoever_waits_for_it() {
    let mut world = World::new(SMALL);
    let clients: Vec<EndpointKey> = (0..12).map(|_| world.client()).collect();
    let mut left = Vec::new();
    for client in &clients {
        left.push(world.pour(*client, &long_frame(7)[..30_000]));
    }
    let held = |world: &World| clients.iter().filter(|client| world.is_paused(**client)).count();
    let before = held(&world);
    assert!(before > 0 && !world.is_paused(clients[0]), "there is no memory for all of them");
    assert!(left[0].is_empty());
    world.send(clients[0], &long_frame(7)[30_000..]);
    assert_eq!(world.receive(clients[0]), [Received::Close(7)], "it was for nobody");
    assert!(held(&world) < before);
}

#[test]
fn whoever_takes_a_little_at_a_time_gives_memory_back_when_it_is_short() {
    let mut world = World::new(Limits { queue: 100_000, ..SMALL });
    let server = world.server(9, false);
    let clients: Vec<EndpointKey> = (0..8).map(|_| world.client()).collect();
    let conns: Vec<u32> = clients.iter().map(|client| world.connect(*client, server, 9)).collect();
    for conn in conns.iter().cycle().take(40) {
        if !world.is_paused(server) {
            world.message(server, *conn, 20_000);
        }
    }
    assert!(world.is_paused(server), "it is all taken");
    for _ in 0..12 {
        world.wait(HOLD / 4);
        for client in &clients {
            world.router.handle_written(world.now, *client, 1);
        }
    }
    assert!(world.router.counters().slow > 0 && !world.is_paused(server));
}

#[test]
fn memory_is_not_kept_by_frames_that_never_end() {
    let mut world = World::new(SMALL);
    let clients: Vec<EndpointKey> = (0..20).map(|_| world.client()).collect();
    for client in &clients {
        world.pour(*client, &long_frame(7)[..30_000]);
    }
    assert!(world.is_paused(clients[19]), "there is no memory for all of them");
    for _ in 0..5 {
        world.wait(HOLD / 2);
        for client in &clients[..7] {
            world.send(*client, b"x");
        }
    }
    assert!(clients[..7].iter().all(|client| world.dropped.get(client) == Some(&CloseReason::SlowFrame)));
}

#[test]
fn whoever_does_not_read_its_answers_is_not_read_either() {
    let mut world = World::new(Limits::default());
    let client = world.client();
    let mut sent = 0;
    while !world.is_paused(client) {
        world.send_command(client, Command::New);
        sent += 1;
        assert!(sent < 100_000);
    }
    assert!(world.router.counters().waiting < 100_000);
    // The oldest ids that were not dialled were closed.
    assert_eq!(world.receive(client).len(), 2 * sent - Limits::default().half_open);
    assert!(!world.is_paused(client));
}

/// A whole long frame.
fn long_frame(conn: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::head(&mut bytes, ConnId(conn), LONG - 8);
    bytes.resize(LONG, 0);
    bytes
}

impl World {
    /// A virtual connection of somebody else, who reads.
    fn connect_other(&mut self, server: EndpointKey, server_id: u32) -> u32 {
        let other = self.client();
        let (conn, _) = self.dial(other, server_id);
        self.receive(server);
        conn
    }
}
