//! Virtual connections: who may open, dial and close, and what the other endpoint is told.

use super::super::token::{TokenClaims, TokenIssuer};
use super::*;

#[test]
fn a_client_dials_a_server_and_a_server_dials_a_client() {
    let mut world = World::new(Limits::default());
    let (client, server) = (world.client(), world.server(9, false));
    let (conn, received) = world.dial(client, 9);
    assert_eq!(received, [Received::Accept(conn, 9)], "a client hears the server's id");
    assert_eq!(world.receive(server), [Received::Accept(conn, 1)], "a server hears the client's");
    world.message(client, conn, 5);
    world.message(client, conn, 0);
    assert_eq!(world.receive(server), [Received::Data(conn, 5), Received::Data(conn, 0)]);
    let (back, received) = world.dial(server, 1);
    assert_eq!(received, [Received::Accept(back, 1)]);
    assert_eq!(world.receive(client), [Received::Accept(back, 9)]);
    world.send_command(server, Command::Close(ConnId(conn)));
    assert_eq!(
        (world.receive(server), world.receive(client)),
        (vec![Received::Close(conn)], vec![Received::Close(conn)])
    );
}

#[test]
fn a_dial_is_refused_where_there_is_nobody_and_where_there_are_too_many() {
    let mut world = World::new(Limits { per_client: 2, ..Limits::default() });
    let (client, server) = (world.client(), world.server(9, false));
    let (conn, received) = world.dial(client, 8);
    assert_eq!(received, [Received::Refuse(conn)]);
    world.send_command(client, Command::Dial { conn: ConnId(conn), remote: 9 });
    assert_eq!(world.receive(client), [Received::Refuse(conn)], "a refused id is gone");
    let first = world.connect(client, server, 9);
    let second = world.connect(client, server, 9);
    let (third, received) = world.dial(client, 9);
    assert_eq!(received, [Received::Refuse(third)]);
    assert_eq!(world.dial(server, 1).1.len(), 1, "what others dial does not count");
    world.receive(client);
    for conn in [first, second] {
        world.message(client, conn, 1);
        assert_eq!(world.receive(server), [Received::Data(conn, 1)], "the earlier ones live on");
    }
    world.send_command(client, Command::Close(ConnId(first)));
    world.receive(client);
    world.receive(server);
    world.connect(client, server, 9);
}

/// The reference accepts any number, and counts them up (section 3.1, bug (d)).
#[test]
fn an_id_is_random_and_good_for_whom_it_was_opened_for_alone() {
    let mut world = World::new(Limits::default());
    let (client, other, server) = (world.client(), world.client(), world.server(9, false));
    let ids: Vec<u32> = (0..8).map(|_| world.open(client)).collect();
    assert!(ids.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) > 1), "{ids:?}");
    world.send_command(other, Command::Dial { conn: ConnId(ids[0]), remote: 9 });
    assert_eq!(world.receive(other), [Received::Refuse(ids[0])]);
    world.send_command(other, Command::Dial { conn: ConnId(1), remote: 9 });
    assert_eq!(world.receive(other), [Received::Refuse(1)]);
    world.send_command(client, Command::Dial { conn: ConnId(ids[0]), remote: 9 });
    assert_eq!(world.receive(client), [Received::Accept(ids[0], 9)], "it is still its opener's");
    assert_eq!(world.receive(server).len(), 1);
}

/// The reference lets anybody close anything (section 3.1, bug (c)).
#[test]
fn only_an_end_closes_a_virtual_connection() {
    let mut world = World::new(Limits::default());
    let (client, other, server) = (world.client(), world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    world.send_command(other, Command::Close(ConnId(conn)));
    world.message(other, conn, 3);
    assert_eq!(world.receive(other), [Received::Close(conn)], "the message's answer; the Close has none");
    assert_eq!((world.receive(client), world.receive(server)), (vec![], vec![]));
    world.message(client, conn, 3);
    assert_eq!(world.receive(server), [Received::Data(conn, 3)]);
    assert_eq!(world.router.counters().violations, 2);
}

/// The reference drops an honest peer's whole connection (section 3.1, bug (b)).
#[test]
fn what_was_on_the_way_when_the_other_end_closed_is_no_violation() {
    let mut world = World::new(Limits { violations: 2, ..Limits::default() });
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    world.send_command(client, Command::Close(ConnId(conn)));
    for _ in 0..500 {
        world.message(server, conn, 100);
    }
    assert!(world.dropped.is_empty());
    assert_eq!((world.router.counters().late, world.router.counters().violations), (500, 0));
    assert_eq!(world.receive(server).len(), 501, "each is told so");
    world.message(client, conn, 1);
    world.message(client, conn, 1);
    assert_eq!(world.dropped.get(&client), Some(&CloseReason::Violations), "who has closed it knows");
}

/// The reference tells the survivor nothing (section 3.1, bug (a)).
#[test]
fn the_survivor_is_told_and_nothing_is_left() {
    let mut world = World::new(Limits::default());
    let (client, server) = (world.client(), world.server(9, false));
    let conns: Vec<u32> = (0..8).map(|_| world.connect(client, server, 9)).collect();
    world.open(client);
    world.message(server, conns[0], 30_000);
    world.router.handle_disconnected(world.now, client);
    world.settle();
    let mut told = world.receive(server);
    told.sort_by_key(|received| format!("{received:?}"));
    let mut expected: Vec<_> = conns.iter().map(|conn| Received::Close(*conn)).collect();
    expected.sort_by_key(|received| format!("{received:?}"));
    assert_eq!(told, expected);
    let counters = world.router.counters();
    assert_eq!((counters.virtual_connections, counters.half_open, counters.waiting), (0, 0, 0));
}

#[test]
fn the_newest_server_takes_an_id_or_is_refused_it() {
    let mut world = World::new(Limits::default());
    let (client, first) = (world.client(), world.server(9, false));
    let conn = world.connect(client, first, 9);
    let refused = world.router.add_server(world.now, 9, false, Duplicates::Refuse);
    assert!(refused.is_err() && world.dropped.is_empty());
    let second = world.server(9, false);
    assert_eq!(world.dropped.get(&first), Some(&CloseReason::Replaced));
    assert_eq!(world.receive(client), [Received::Close(conn)]);
    world.connect(client, second, 9);
}

#[test]
fn whoever_dials_in_vain_over_and_over_is_read_more_slowly() {
    let mut world = World::new(Limits::default());
    let (client, other, server) = (world.client(), world.client(), world.server(9, false));
    let mut refused = 0;
    while !world.is_paused(client) {
        let (conn, received) = world.dial(client, 5);
        assert_eq!(received, [Received::Refuse(conn)]);
        refused += 1;
        assert!(refused < 1000);
    }
    assert!(refused >= 50, "{refused} at once are nobody's fault");
    for _ in 0..100 {
        world.send_command(client, Command::Dial { conn: ConnId(1), remote: 5 });
    }
    world.connect(other, server, 9);
    world.wait(Duration::from_secs(5));
    let received = world.receive(client).len();
    assert!((40..=60).contains(&received), "{received} in five seconds");
    world.wait(Duration::from_secs(10));
    assert_eq!(world.receive(client).len() + received, 100);
    assert!(!world.is_paused(client) && world.dropped.is_empty());
    world.connect(client, server, 9);
}

#[test]
fn refusals_of_one_address_are_counted_together() {
    let mut world = World::new(Limits::default());
    let mut refused = 0;
    for _ in 0..100 {
        let client = world.client_at([10, 9, 9, 9]);
        for _ in 0..40 {
            if !world.is_paused(client) {
                world.dial(client, 5);
                refused += 1;
            }
        }
    }
    assert!((500..=700).contains(&refused), "{refused} Dials of one address were looked at");
}

#[test]
fn ids_that_are_not_dialled_are_few_and_the_oldest_ends() {
    let mut world = World::new(Limits { half_open: 2, ..Limits::default() });
    let client = world.client();
    let (first, second) = (world.open(client), world.open(client));
    world.send_command(client, Command::New);
    let received = world.receive(client);
    assert!(
        matches!(received[..], [Received::Close(closed), Received::Open(_)] if closed == first),
        "{received:?}"
    );
    world.message(client, second, 1);
    assert_eq!(world.receive(client), [Received::Close(second)], "S2-A9: no message before a Dial");
    assert_eq!(world.router.counters().half_open, 1);
}

#[test]
fn a_second_dial_of_a_live_id_and_a_close_of_an_unknown_one_are_ignored() {
    let mut world = World::new(Limits::default());
    let (client, server) = (world.client(), world.server(9, false));
    let conn = world.connect(client, server, 9);
    world.send_command(client, Command::Dial { conn: ConnId(conn), remote: 9 });
    world.send_command(client, Command::Close(ConnId(conn.wrapping_add(1))));
    assert_eq!((world.receive(client), world.receive(server)), (vec![], vec![]));
    assert_eq!(world.router.counters().violations, 0);
}

#[test]
fn what_is_no_frame_of_an_endpoint_drops_it() {
    let open = |command: Command<'_>| {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        bytes
    };
    let conn = ConnId(3);
    for bytes in [
        open(Command::Open(conn)),
        open(Command::Refuse(conn)),
        open(Command::Accept { conn, remote: 1 }),
        open(Command::Credit { conn, bytes: 1 }),
        b"\x03\0\0\0".to_vec(),
        b"\x04\0\0\0\0\0\0\0".to_vec(),
        b"\xff\xff\xff\xff".to_vec(),
    ] {
        let mut world = World::new(Limits::default());
        let client = world.client();
        world.send(client, &bytes);
        assert_eq!(world.dropped.get(&client), Some(&CloseReason::Malformed), "{bytes:?}");
        assert_eq!(world.router.counters().clients, 0);
    }
}

#[test]
fn a_token_admits_to_what_it_says_until_it_expires() {
    let issuer = TokenIssuer::new(&[5; 32]);
    let rules = RouterConfig { tokens: Some(issuer.clone()), ..RouterConfig::default() };
    let mut world = World::with(rules);
    world.server(9, false);
    world.server(8, false);
    let expires = world.now.unix + 100;
    for (server, remote, accepted) in [(None, 9, true), (Some(9), 9, true), (Some(9), 8, false)] {
        let client = world.client();
        world.send_command(client, Command::Token(&issuer.issue(TokenClaims { server, expires }).0));
        let (conn, received) = world.dial(client, remote);
        let expected = if accepted { Received::Accept(conn, remote) } else { Received::Refuse(conn) };
        assert_eq!(received, [expected], "{server:?} {remote}");
        world.now = world.now.after(Duration::from_secs(100));
        let (conn, received) = world.dial(client, remote);
        assert_eq!(received, [Received::Refuse(conn)], "it has ended");
        world.now.unix -= 100;
    }
    let forged = TokenIssuer::new(&[6; 32]).issue(TokenClaims { server: None, expires });
    for first in [Command::New, Command::Token(&forged.0), Command::Token(b"")] {
        let client = world.client();
        world.send_command(client, first);
        assert_eq!(world.dropped.get(&client), Some(&CloseReason::Token), "{first:?}");
    }
    let silent = world.client();
    world.wait(Duration::from_secs(3));
    assert_eq!(world.dropped.get(&silent), Some(&CloseReason::Token));
}
