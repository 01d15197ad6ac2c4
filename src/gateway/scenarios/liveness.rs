//! Ping, and closing endpoints that are silent or slow.

use super::*;

const PING: Duration = Duration::from_secs(30);

#[test]
fn a_silent_endpoint_is_sent_a_ping_and_then_closed() {
    let mut gateway = TestGateway::new(Limits::default());
    let client = gateway.client();
    gateway.wait(PING);
    assert_eq!(gateway.receive(client), [TestFrame::Ping]);
    gateway.wait(PING - Duration::from_secs(1));
    assert!(gateway.dropped.is_empty());
    gateway.wait(Duration::from_secs(1));
    assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::Silent));
}

#[test]
fn a_ping_keeps_a_connection_and_is_not_echoed() {
    let mut gateway = TestGateway::new(Limits::default());
    let client = gateway.client();
    for _ in 0..5 {
        gateway.wait(PING);
        assert_eq!(gateway.receive(client), [TestFrame::Ping]);
        gateway.send_command(client, Command::Ping);
    }
    gateway.send_command(client, Command::Ping);
    assert_eq!(gateway.receive(client), [], "an unsolicited Ping has no answer");
    assert!(gateway.dropped.is_empty());
}

#[test]
fn data_puts_a_ping_off_but_does_not_answer_it() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    let exchange = |gateway: &mut TestGateway| {
        gateway.wait(PING / 2);
        gateway.message(client, conn, 1);
        gateway.send_command(server, Command::Ping);
        gateway.receive(server);
    };
    for _ in 0..6 {
        exchange(&mut gateway);
    }
    assert_eq!(gateway.receive(client), [], "never silent for long enough");
    gateway.wait(PING);
    assert_eq!(gateway.receive(client), [TestFrame::Ping]);
    exchange(&mut gateway);
    assert!(gateway.dropped.is_empty());
    gateway.wait(PING / 2);
    assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::Silent), "S2-A11: only a Ping answers");
}

#[test]
fn an_incomplete_frame_has_a_deadline() {
    let mut gateway = TestGateway::new(Limits::default());
    let client = gateway.client();
    gateway.send(client, b"\x00\x01\0\0");
    for _ in 0..8 {
        gateway.wait(PING / 2);
        gateway.send(client, b"x");
    }
    assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::SlowFrame));
}

#[test]
fn an_endpoint_that_takes_nothing_is_closed() {
    let mut gateway = TestGateway::new(Limits::default());
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    gateway.message(server, conn, 1000);
    let mut received = Vec::new();
    // It sends, so that it is never sent a Ping, but does not read.
    for _ in 0..5 {
        gateway.wait(PING / 2);
        gateway.message(client, conn, 1);
        gateway.send_command(server, Command::Ping);
        received.extend(gateway.receive(server));
    }
    assert_eq!(gateway.dropped.get(&client), Some(&CloseReason::Unread));
    assert!(received.contains(&TestFrame::Close(conn)));
}

#[test]
fn a_paused_endpoint_is_not_closed_as_silent() {
    let mut gateway = TestGateway::new(Limits { queue: 4096, ..Limits::default() });
    let (client, server) = (gateway.client(), gateway.server(9, false));
    let conn = gateway.connect(client, server, 9);
    for _ in 0..6 {
        gateway.message(client, conn, 1000);
    }
    assert!(gateway.is_paused(client));
    for _ in 0..3 {
        gateway.wait(PING - Duration::from_secs(1));
        gateway.send_command(server, Command::Ping);
        // The server takes a little, so that it is not dropped itself.
        let mut slices = [IoSlice::new(&[]); 1];
        let some = gateway.router.peek(server, &mut slices).min(1);
        gateway.router.handle_written(gateway.now, server, some);
        gateway.settle();
    }
    assert!(!gateway.dropped.contains_key(&client), "{:?}", gateway.dropped);
}

#[test]
fn a_contested_id_stays_with_a_server_that_answers_and_leaves_one_that_does_not() {
    let claim =
        |gateway: &mut TestGateway| gateway.router.add_server(gateway.now, 9, true, Duplicates::Refuse);
    for answers in [true, false] {
        let mut gateway = TestGateway::new(Limits::default());
        let server = gateway.server(9, true);
        gateway.wait(Duration::from_millis(10));
        assert!(claim(&mut gateway).is_err());
        gateway.settle();
        assert_eq!(gateway.receive(server), [TestFrame::Ping]);
        assert!(claim(&mut gateway).is_err());
        gateway.settle();
        assert_eq!(gateway.receive(server), [], "it is sent one Ping");
        gateway.wait(Duration::from_millis(900));
        if answers {
            gateway.send_command(server, Command::Ping);
        }
        gateway.wait(Duration::from_millis(200));
        assert_eq!(gateway.dropped.contains_key(&server), !answers);
        assert_eq!(claim(&mut gateway).is_err(), answers);
    }
}
