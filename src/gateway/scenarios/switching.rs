//! Virtual connections: who may open, dial and close, and what the other endpoint receives.

use super::super::token::{TokenClaims, TokenIssuer};
use super::*;

#[test]
fn a_client_dials_a_server_and_a_server_dials_a_client() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let (conn, received) = gateway.dial(client, 9);
    assert_eq!(received, [TestFrame::Accept(conn, 9)], "the client receives the server's id");
    assert_eq!(gateway.receive(server), [TestFrame::Accept(conn, 1)], "the server receives the client's");
    gateway.message(client, conn, 5);
    gateway.message(client, conn, 0);
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 5), TestFrame::Data(conn, 0)]);
    let (back, received) = gateway.dial(server, 1);
    assert_eq!(received, [TestFrame::Accept(back, 1)]);
    assert_eq!(gateway.receive(client), [TestFrame::Accept(back, 9)]);
    gateway.send_command(server, Command::Close(ConnId(conn)));
    assert_eq!(
        (gateway.receive(server), gateway.receive(client)),
        (vec![TestFrame::Close(conn)], vec![TestFrame::Close(conn)])
    );
}

#[test]
fn a_dial_is_refused_for_an_unknown_server_and_above_the_limit() {
    let mut gateway = TestGateway::new(Limits { per_client: 2, ..Limits::default() });
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let (conn, received) = gateway.dial(client, 8);
    assert_eq!(received, [TestFrame::Refuse(conn)]);
    gateway.send_command(client, Command::Dial { conn: ConnId(conn), remote: 9 });
    assert_eq!(gateway.receive(client), [TestFrame::Refuse(conn)], "a refused id is gone");
    let first = gateway.connect(client, server, 9);
    let second = gateway.connect(client, server, 9);
    let (third, received) = gateway.dial(client, 9);
    assert_eq!(received, [TestFrame::Refuse(third)]);
    assert_eq!(gateway.dial(server, 1).1.len(), 1, "what others dial does not count");
    gateway.receive(client);
    for conn in [first, second] {
        gateway.message(client, conn, 1);
        assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 1)], "the earlier ones live on");
    }
    gateway.send_command(client, Command::Close(ConnId(first)));
    gateway.receive(client);
    gateway.receive(server);
    gateway.connect(client, server, 9);
}

#[test]
fn an_id_is_random_and_valid_only_for_the_endpoint_that_opened_it() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, other, server) = (gateway.client(), gateway.client(), gateway.server(9, false));
    let ids: Vec<u32> = (0..8).map(|_| gateway.open(client)).collect();
    assert!(ids.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) > 1), "{ids:?}");
    gateway.send_command(other, Command::Dial { conn: ConnId(ids[0]), remote: 9 });
    assert_eq!(gateway.receive(other), [TestFrame::Refuse(ids[0])]);
    gateway.send_command(other, Command::Dial { conn: ConnId(1), remote: 9 });
    assert_eq!(gateway.receive(other), [TestFrame::Refuse(1)]);
    gateway.send_command(client, Command::Dial { conn: ConnId(ids[0]), remote: 9 });
    assert_eq!(gateway.receive(client), [TestFrame::Accept(ids[0], 9)], "it still belongs to its opener");
    assert_eq!(gateway.receive(server).len(), 1);
}

#[test]
fn only_an_end_closes_a_virtual_connection() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, other, server) = (gateway.client(), gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    gateway.send_command(other, Command::Close(ConnId(conn)));
    gateway.message(other, conn, 3);
    assert_eq!(
        gateway.receive(other),
        [TestFrame::Close(conn)],
        "the answer to the message; the Close has none"
    );
    assert_eq!((gateway.receive(client), gateway.receive(server)), (vec![], vec![]));
    gateway.message(client, conn, 3);
    assert_eq!(gateway.receive(server), [TestFrame::Data(conn, 3)]);
    assert_eq!(gateway.router.counters().violations, 2);
}

#[test]
fn what_was_on_the_way_when_the_other_end_closed_is_no_violation() {
    let mut gateway = TestGateway::new(Limits { violations: 2, ..Limits::default() });
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    gateway.send_command(client, Command::Close(ConnId(conn)));
    for _ in 0..500 {
        gateway.message(server, conn, 100);
    }
    assert!(gateway.dropped.is_empty());
    assert_eq!((gateway.router.counters().late, gateway.router.counters().violations), (500, 0));
    assert_eq!(gateway.receive(server).len(), 501, "each message is answered with Close");
    gateway.message(client, conn, 1);
    gateway.message(client, conn, 1);
    assert_eq!(
        gateway.dropped.get(&client),
        Some(&CloseReason::Violations),
        "an endpoint that closed the id itself has no excuse"
    );
}

#[test]
fn the_other_endpoint_receives_close_and_nothing_is_left() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conns: Vec<u32> = (0..8).map(|_| gateway.connect(client, server, 9)).collect();
    gateway.open(client);
    gateway.message(server, conns[0], 30_000);
    gateway.router.handle_disconnected(gateway.now, client);
    gateway.settle();
    let mut received = gateway.receive(server);
    received.sort_by_key(|received| format!("{received:?}"));
    let mut expected: Vec<_> = conns.iter().map(|conn| TestFrame::Close(*conn)).collect();
    expected.sort_by_key(|received| format!("{received:?}"));
    assert_eq!(received, expected);
    let counters = gateway.router.counters();
    assert_eq!((counters.virtual_connections, counters.half_open, counters.waiting), (0, 0, 0));
}

#[test]
fn the_newest_server_takes_an_id_or_is_refused_it() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, first) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, first, 9);
    let refused = gateway.router.add_server(gateway.now, 9, false, Duplicates::Refuse);
    assert!(refused.is_err() && gateway.dropped.is_empty());
    let second = gateway.server(9, false);
    assert_eq!(gateway.dropped.get(&first), Some(&CloseReason::Replaced));
    assert_eq!(gateway.receive(client), [TestFrame::Close(conn)]);
    gateway.connect(client, second, 9);
}

#[test]
fn an_endpoint_with_many_refused_dials_is_read_more_slowly() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, other, server) = (gateway.client(), gateway.client(), gateway.server(9, false));
    let mut refused = 0;
    while !gateway.is_paused(client) {
        let (conn, received) = gateway.dial(client, 5);
        assert_eq!(received, [TestFrame::Refuse(conn)]);
        refused += 1;
        assert!(refused < 1000);
    }
    assert!(refused >= 50, "a burst of {refused} is allowed");
    for _ in 0..100 {
        gateway.send_command(client, Command::Dial { conn: ConnId(1), remote: 5 });
    }
    gateway.connect(other, server, 9);
    gateway.wait(Duration::from_secs(5));
    let received = gateway.receive(client).len();
    assert!((40..=60).contains(&received), "{received} in five seconds");
    gateway.wait(Duration::from_secs(10));
    assert_eq!(gateway.receive(client).len() + received, 100);
    assert!(!gateway.is_paused(client) && gateway.dropped.is_empty());
    gateway.connect(client, server, 9);
}

#[test]
fn refusals_of_one_address_are_counted_together() {
    let mut gateway = TestGateway::new(Limits::default());
    let mut refused = 0;
    for _ in 0..100 {
        let client = gateway.client_at([10, 9, 9, 9]);
        for _ in 0..40 {
            if !gateway.is_paused(client) {
                gateway.dial(client, 5);
                refused += 1;
            }
        }
    }
    assert!((500..=700).contains(&refused), "{refused} Dials of one address were handled");
}

#[test]
fn ids_that_are_not_dialled_are_few_and_the_oldest_ends() {
    let mut gateway = TestGateway::new(Limits { half_open: 2, ..Limits::default() });
    let client = gateway.client();
    let (first, second) = (gateway.open(client), gateway.open(client));
    gateway.send_command(client, Command::New);
    let received = gateway.receive(client);
    assert!(
        matches!(received[..], [TestFrame::Close(closed), TestFrame::Open(_)] if closed == first),
        "{received:?}"
    );
    gateway.message(client, second, 1);
    assert_eq!(gateway.receive(client), [TestFrame::Close(second)], "S2-A9: no message before a Dial");
    assert_eq!(gateway.router.counters().half_open, 1);
}

#[test]
fn a_second_dial_of_a_live_id_and_a_close_of_an_unknown_one_are_ignored() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    gateway.send_command(client, Command::Dial { conn: ConnId(conn), remote: 9 });
    gateway.send_command(client, Command::Close(ConnId(conn.wrapping_add(1))));
    assert_eq!((gateway.receive(client), gateway.receive(server)), (vec![], vec![]));
    assert_eq!(gateway.router.counters().violations, 0);
}

#[test]
fn a_frame_that_endpoints_do_not_send_closes_the_connection() {
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
        let mut gateway = TestGateway::new(Limits::default());
        let client = gateway.client();
        gateway.send(client, &bytes);
        assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::Malformed), "{bytes:?}");
        assert_eq!(gateway.router.counters().clients, 0);
    }
}

#[test]
fn a_token_allows_what_it_states_until_it_expires() {
    let issuer = TokenIssuer::new(&[5; 32]);
    let config = RouterConfig { tokens: Some(issuer.clone()), ..RouterConfig::default() };
    let mut gateway = TestGateway::with(config);
    gateway.server(9, false);
    gateway.server(8, false);
    let expires = gateway.now.unix + 100;
    for (server, remote, accepted) in [(None, 9, true), (Some(9), 9, true), (Some(9), 8, false)] {
        let client = gateway.client();
        gateway.send_command(client, Command::Token(&issuer.issue(TokenClaims { server, expires }).0));
        let (conn, received) = gateway.dial(client, remote);
        let expected = if accepted { TestFrame::Accept(conn, remote) } else { TestFrame::Refuse(conn) };
        assert_eq!(received, [expected], "{server:?} {remote}");
        gateway.now = gateway.now.after(Duration::from_secs(100));
        let (conn, received) = gateway.dial(client, remote);
        assert_eq!(received, [TestFrame::Refuse(conn)], "it has expired");
        gateway.now.unix -= 100;
    }
    let forged = TokenIssuer::new(&[6; 32]).issue(TokenClaims { server: None, expires });
    for first in [Command::New, Command::Token(&forged.0), Command::Token(b"")] {
        let client = gateway.client();
        gateway.send_command(client, first);
        assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::Token), "{first:?}");
    }
    let silent = gateway.client();
    gateway.wait(Duration::from_secs(3));
    assert_eq!(gateway.dropped.get(&silent), Some(&CloseReason::Token));
}
