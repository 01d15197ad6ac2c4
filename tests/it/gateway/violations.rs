//! Protocol violations (`docs/wire/gateway.md`), each by a client and by a server, beside a virtual connection that must not be affected.

use std::io::Write;
use std::time::{Duration, Instant};

use super::endpoint::{ACCEPT, CLOSE, CREDIT, DIAL, Endpoint, NEW, OPEN, PING, Pair, REFUSE, command, data};
use super::{Gateway, TIMEOUT};
use crate::waiting::{pace, wait_until, wait_until_steady};

/// A connected client and a registered server.
fn other_endpoints(gateway: &Gateway) -> [Endpoint; 2] {
    [Endpoint::client(gateway), Endpoint::server(gateway, 99)]
}

/// Asserts that each of these byte strings closes its connection without an answer.
fn assert_closed_by(cases: &[(&str, Vec<u8>)]) {
    let gateway = Gateway::start("");
    let mut bystanders = Pair::new(&gateway, 1);
    for (what, bytes) in cases {
        for mut other in other_endpoints(&gateway) {
            other.send(bytes);
            let received = other.read_to_end();
            assert!(received.is_empty(), "{what} is answered with {received:02x?}");
        }
        bystanders.exchange_data();
    }
}

#[test]
fn a_malformed_frame_closes_its_connection_without_an_answer() {
    assert_closed_by(&[
        ("Length 0", b"\0\0\0\0".to_vec()),
        ("Length 1", b"\x01\0\0\0\0".to_vec()),
        ("Length 3", b"\x03\0\0\0\0\0\0".to_vec()),
        ("a command without a type", b"\x04\0\0\0\0\0\0\0".to_vec()),
        // The gateway does not wait for the body.
        ("a packet over 512 KiB", b"\x01\0\x08\0\x01\0\0\0".to_vec()),
        ("a packet of 4 GiB", b"\xff\xff\xff\xff\x01\0\0\0".to_vec()),
        ("a command of 4 GiB", b"\xff\xff\xff\xff\0\0\0\0\0".to_vec()),
    ]);
}

#[test]
fn a_command_with_arguments_of_a_wrong_length_closes_its_connection() {
    let with = |kind: u8, length: usize| data(0, &[&[kind][..], &vec![1; length]].concat());
    assert_closed_by(&[
        ("Dial without arguments", with(DIAL, 0)),
        ("Dial with one argument", with(DIAL, 4)),
        ("Dial cut short", with(DIAL, 7)),
        ("Dial with a byte too many", with(DIAL, 9)),
        ("Close without an argument", with(CLOSE, 0)),
        ("Close cut short", with(CLOSE, 3)),
        ("Close with two arguments", with(CLOSE, 8)),
        ("New with an argument", with(NEW, 4)),
        ("Ping with a byte", with(PING, 1)),
    ]);
}

#[test]
fn unknown_commands_and_those_of_the_gateway_close_the_connection() {
    assert_closed_by(&[
        ("command 9", command(9, &[])),
        ("command 255", command(255, &[1])),
        ("Open", command(OPEN, &[1])),
        ("Refuse", command(REFUSE, &[1])),
        ("Accept", command(ACCEPT, &[1, 1])),
        // Neither clients nor MD5 servers use credit.
        ("Credit", command(CREDIT, &[1, 1])),
    ]);
}

#[test]
fn a_dropped_endpoint_closes_its_virtual_connections_at_the_other_ends() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    let conns: Vec<_> = (0..3).map(|_| client.dial(1)).collect();
    server.expect_frames(&conns.iter().map(|conn| command(ACCEPT, &[*conn, 1])).collect::<Vec<_>>());
    client.send(&command(255, &[]));
    client.assert_closed();
    let mut closed: Vec<_> = (0..3).map(|_| server.receive()).collect();
    let mut expected: Vec<_> = conns.iter().map(|conn| command(CLOSE, &[*conn])).collect();
    closed.sort();
    expected.sort();
    assert_eq!(closed, expected);
    server.fence();
}

#[test]
fn data_on_an_unknown_id_gets_close_and_the_hundredth_in_a_minute_drops_the_connection() {
    let gateway = Gateway::start("");
    for mut other in other_endpoints(&gateway) {
        // Random ids differ from these with a probability of 1 − 10^-8.
        for id in 1..100_u32 {
            other.send(&data(id, b"anybody?"));
            other.expect_frames(&[command(CLOSE, &[id])]);
        }
        other.fence();
        other.send(&data(100, b"anybody?"));
        let received = other.read_to_end();
        assert!(received.is_empty() || received == command(CLOSE, &[100]), "{received:02x?}");
    }
}

#[test]
fn the_number_of_violations_is_a_setting() {
    let gateway = Gateway::start("[gateway.limits]\nviolations = 3");
    let mut client = Endpoint::client(&gateway);
    client.send(&[data(1, b""), data(2, b"")].concat());
    client.expect_frames(&[command(CLOSE, &[1]), command(CLOSE, &[2])]);
    client.fence();
    client.send(&data(3, b""));
    let received = client.read_to_end();
    assert!(received.is_empty() || received == command(CLOSE, &[3]), "{received:02x?}");
}

#[test]
fn data_on_a_foreign_id_gets_close_and_does_not_affect_its_owners() {
    let gateway = Gateway::start("");
    let mut owners = Pair::new(&gateway, 1);
    for mut other in other_endpoints(&gateway) {
        for _ in 0..99 {
            other.send(&data(owners.conn, b"let me in"));
            other.expect_frames(&[command(CLOSE, &[owners.conn])]);
        }
        owners.exchange_data();
        other.send(&data(owners.conn, b"let me in"));
        let received = other.read_to_end();
        assert!(received.is_empty() || received == command(CLOSE, &[owners.conn]), "{received:02x?}");
        owners.exchange_data();
    }
}

#[test]
fn data_on_an_undialled_id_gets_close() {
    let gateway = Gateway::start("");
    for mut endpoint in other_endpoints(&gateway) {
        let conn = endpoint.open();
        endpoint.send(&data(conn, b"hello?"));
        endpoint.expect_frames(&[command(CLOSE, &[conn])]);
        endpoint.fence();
    }
}

#[test]
fn close_of_an_unknown_id_is_ignored_every_time() {
    let gateway = Gateway::start("");
    for mut endpoint in other_endpoints(&gateway) {
        for id in 0..500 {
            endpoint.send(&command(CLOSE, &[id]));
        }
        endpoint.fence();
    }
}

#[test]
fn a_second_dial_of_a_live_id_is_ignored() {
    let gateway = Gateway::start("");
    let mut other = Endpoint::server(&gateway, 2);
    let mut pair = Pair::new(&gateway, 1);
    for id in [1, 2, 3] {
        pair.client.send(&command(DIAL, &[pair.conn, id]));
    }
    pair.exchange_data();
    for endpoint in [&mut pair.client, &mut pair.server, &mut other] {
        endpoint.fence();
    }
}

#[test]
fn an_unsolicited_ping_is_accepted_and_not_echoed() {
    let gateway = Gateway::start("");
    for mut endpoint in other_endpoints(&gateway) {
        for _ in 0..10 {
            endpoint.send(&command(PING, &[]));
        }
        endpoint.fence();
    }
}

#[test]
fn an_unfinished_frame_closes_its_connection() {
    // The time limit of a frame is checked at the interval of pings.
    let gateway = Gateway::start("[gateway.times]\nframe = 1\nping = 1");
    let mut bystanders = Pair::new(&gateway, 1);
    (bystanders.client.answers, bystanders.server.answers) = (true, true);
    let whole = data(bystanders.conn, &[0; 1000]);
    let begin = |begun: usize| {
        other_endpoints(&gateway).map(|mut other| {
            other.send(&whole[..begun]);
            (other, begun)
        })
    };
    let mut slow: Vec<_> = [1, 8, 500].into_iter().flat_map(begin).collect();
    let deadline = Instant::now() + TIMEOUT;
    while !slow.is_empty() {
        // They send, but far too slowly. A sender is not pinged, so that the frame's time limit applies.
        slow.retain_mut(|(other, sent)| {
            *sent += 1;
            other.stream.write_all(&whole[*sent - 1..*sent]).is_ok()
        });
        bystanders.exchange_data();
        assert!(Instant::now() < deadline, "{} are still open", slow.len());
        pace(Duration::from_millis(50));
    }
}

#[test]
fn half_a_frame_of_a_virtual_connection_never_reaches_its_other_end() {
    let gateway = Gateway::start("");
    let Pair { mut client, mut server, conn } = Pair::new(&gateway, 1);
    let frame = data(conn, &[7; 1000]);
    client.send(&[&frame[..], &frame[..500]].concat());
    server.expect_frames(&[frame]);
    drop(client);
    server.expect_frames(&[command(CLOSE, &[conn])]);
    server.fence();
}

#[test]
fn what_was_sent_before_close_arrives_before_it() {
    let gateway = Gateway::start("");
    for client_closes in [true, false] {
        let (mut server, mut client) = (Endpoint::server(&gateway, 1), Endpoint::client(&gateway));
        let conn = client.dial(1);
        server.receive();
        let (mut closer, mut other) = if client_closes { (client, server) } else { (server, client) };
        let mut frames: Vec<_> = (0..100_u8).map(|number| data(conn, &[number; 1000])).collect();
        frames.push(command(CLOSE, &[conn]));
        closer.send(&frames.concat());
        other.expect_frames(&frames);
        closer.expect_frames(&frames[100..]);
    }
}

#[test]
fn a_client_that_never_reads_is_not_read_and_later_gets_every_answer() {
    const REQUESTED: usize = 400_000;
    let gateway = Gateway::start("");
    let mut client = Endpoint::client(&gateway);
    let mut sender = Endpoint { stream: client.stream.try_clone().unwrap(), answers: false };
    std::thread::scope(|scope| {
        let requesting = scope.spawn(move || sender.send(&command(NEW, &[]).repeat(REQUESTED)));
        // Answers are queued until the client is paused; there are fewer than requests.
        wait_until(TIMEOUT, "answers are queued", || gateway.metric("waiting_bytes") > 0.0);
        let mut most = 0.0_f64;
        wait_until_steady(TIMEOUT, Duration::from_millis(100), || {
            let waiting = gateway.metric("waiting_bytes");
            most = most.max(waiting);
            waiting
        });
        assert!(most < 1_000_000.0, "{most} bytes wait");
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for answer in client.bytes(13 * (2 * REQUESTED + 1 - 64)).chunks(13) {
            let id = u32::from_le_bytes(answer[9..].try_into().unwrap());
            if answer[8] == OPEN { opened.push(id) } else { closed.push(id) }
        }
        assert!(closed[1..] == opened[..REQUESTED - 64], "the oldest goes first");
        requesting.join().unwrap();
    });
    drop(client);
    gateway.assert_becomes_empty();
}

#[test]
fn messages_and_close_may_follow_dial_at_once() {
    let gateway = Gateway::start("");
    let (mut server, mut client) = (Endpoint::server(&gateway, 1), Endpoint::client(&gateway));
    let conn = client.open();
    let messages = [data(conn, b"first"), data(conn, b""), data(conn, b"last")].concat();
    client.send(&[command(DIAL, &[conn, 1]), messages.clone(), command(CLOSE, &[conn])].concat());
    let expected = [&command(ACCEPT, &[conn, 1])[..], &messages, &command(CLOSE, &[conn])].concat();
    assert_eq!(server.bytes(expected.len()), expected);
    client.expect_frames(&[command(ACCEPT, &[conn, 1]), command(CLOSE, &[conn])]);
}
