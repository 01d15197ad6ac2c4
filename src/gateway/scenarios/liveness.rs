//! Ping, and what becomes of those who are silent or slow.

use super::*;

const PING: Duration = Duration::from_secs(30);

#[test]
fn silence_is_asked_for_a_ping_and_then_ends() {
    let mut world = World::new(Limits::default());
    let client = world.client();
    world.wait(PING);
    assert_eq!(world.receive(client), [Received::Ping]);
    world.wait(PING - Duration::from_secs(1));
    assert!(world.dropped.is_empty());
    world.wait(Duration::from_secs(1));
    assert_eq!(world.dropped.get(&client), Some(&CloseReason::Silent));
}

#[test]
fn a_ping_keeps_a_connection_and_is_not_echoed() {
    let mut world = World::new(Limits::default());
    let client = world.client();
    for _ in 0..5 {
        world.wait(PING);
        assert_eq!(world.receive(client), [Received::Ping]);
        world.send_command(client, Command::Ping);
    }
    world.send_command(client, Command::Ping);
    assert_eq!(world.receive(client), [], "unsolicited ones are taken in silence");
    assert!(world.dropped.is_empty());
}

#[test]
fn data_puts_a_ping_off_but_does_not_answer_it() {
    let mut world = World::new(Limits::default());
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    let say = |world: &mut World| {
        world.wait(PING / 2);
        world.message(client, conn, 1);
        world.send_command(server, Command::Ping);
        world.receive(server);
    };
    for _ in 0..6 {
        say(&mut world);
    }
    assert_eq!(world.receive(client), [], "never silent for long enough");
    world.wait(PING);
    assert_eq!(world.receive(client), [Received::Ping]);
    say(&mut world);
    assert!(world.dropped.is_empty());
    world.wait(PING / 2);
    assert_eq!(world.dropped.get(&client), Some(&CloseReason::Silent), "S2-A11: only a Ping answers");
}

#[test]
fn half_a_frame_is_waited_for_and_then_given_up() {
    let mut world = World::new(Limits::default());
    let client = world.client();
    world.send(client, b"\x00\x01\0\0");
    for _ in 0..8 {
        world.wait(PING / 2);
        world.send(client, b"x");
    }
    assert_eq!(world.dropped.get(&client), Some(&CloseReason::SlowFrame));
}

#[test]
fn whoever_takes_nothing_is_dropped_in_the_end() {
    let mut world = World::new(Limits::default());
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    world.message(server, conn, 1000);
    let mut told = Vec::new();
    // It sends, so that it is never asked for a Ping, but does not read.
    for _ in 0..5 {
        world.wait(PING / 2);
        world.message(client, conn, 1);
        world.send_command(server, Command::Ping);
        told.extend(world.receive(server));
    }
    assert_eq!(world.dropped.get(&client), Some(&CloseReason::Unread));
    assert!(told.contains(&Received::Close(conn)));
}

#[test]
fn whoever_is_not_read_is_not_blamed_for_silence() {
    let mut world = World::new(Limits { queue: 4096, ..Limits::default() });
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    for _ in 0..6 {
        world.message(client, conn, 1000);
    }
    assert!(world.is_paused(client));
    for _ in 0..3 {
        world.wait(PING - Duration::from_secs(1));
        world.send_command(server, Command::Ping);
        // The server takes a little, so that it is not dropped itself.
        let mut slices = [IoSlice::new(&[]); 1];
        let some = world.router.peek(server, &mut slices).min(1);
        world.router.handle_written(world.now, server, some);
        world.settle();
    }
    assert!(!world.dropped.contains_key(&client), "{:?}", world.dropped);
}

#[test]
fn an_id_that_is_wanted_is_kept_by_a_server_that_is_there_and_lost_by_one_that_is_not() {
    let wants = |world: &mut World| world.router.add_server(world.now, 9, true, Duplicates::Refuse);
    for answers in [true, false] {
        let mut world = World::new(Limits::default());
        let server = world.server(9, true);
        world.wait(Duration::from_millis(10));
        assert!(wants(&mut world).is_err());
        world.settle();
        assert_eq!(world.receive(server), [Received::Ping]);
        assert!(wants(&mut world).is_err());
        world.settle();
        assert_eq!(world.receive(server), [], "it is asked once");
        world.wait(Duration::from_millis(900));
        if answers {
            world.send_command(server, Command::Ping);
        }
        world.wait(Duration::from_millis(200));
        assert_eq!(world.dropped.contains_key(&server), !answers);
        assert_eq!(wants(&mut world).is_err(), answers);
    }
}
