//! Liveness: silence, pings, killed endpoints, and restarts of the gateway.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::{ACCEPT, CLOSE, DIAL, Endpoint, PING, Pair, REFUSE, command, data};
use super::python_endpoints::{self, Role};
use super::{Gateway, KEY, TIMEOUT};
use crate::waiting::{pace, wait_for};

/// Dials until the remote is connected.
pub(super) fn dial_until_there(endpoint: &mut Endpoint, remote: u32) -> u32 {
    wait_for(TIMEOUT, || {
        let conn = endpoint.open();
        endpoint.send(&command(DIAL, &[conn, remote]));
        let answer = endpoint.receive();
        if answer == command(ACCEPT, &[conn, remote]) {
            return Ok(conn);
        }
        assert_eq!(answer, command(REFUSE, &[conn]));
        Err(format!("{remote} is not connected"))
    })
}

#[test]
fn a_silent_client_can_be_dialled() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 7);
    let mut client = Endpoint::connect(gateway.clients());
    let conn = dial_until_there(&mut server, 1);
    client.expect_frames(&[command(ACCEPT, &[conn, 7])]);
    Pair { client, server, conn }.exchange_data();
}

#[test]
fn endpoints_that_answer_no_ping_are_dropped_and_their_connections_closed() {
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    for client_is_mute in [true, false] {
        let mut server = Endpoint::server(&gateway, 7);
        let mut client = Endpoint::client(&gateway);
        let conn = client.dial(7);
        server.receive();
        let (mut mute, mut other) = if client_is_mute { (client, server) } else { (server, client) };
        other.answers = true;
        other.expect_frames(&[command(CLOSE, &[conn])]);
        assert_eq!(mute.read_to_end(), command(PING, &[]));
    }
}

#[test]
fn after_a_ping_data_does_not_keep_a_connection() {
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    let Pair { mut client, mut server, conn } = Pair::new(&gateway, 7);
    server.answers = true;
    client.expect_frames(&[command(PING, &[])]);
    let message = data(conn, b"I am here");
    // Messages arrive more often than pings are sent, so only the unanswered Ping can close the connection.
    let deadline = Instant::now() + TIMEOUT;
    client.send(&message);
    server.expect_frames(std::slice::from_ref(&message));
    loop {
        client.stream.write_all(&message).ok();
        let received = server.receive();
        if received == command(CLOSE, &[conn]) {
            break;
        }
        assert_eq!(received, message);
        assert!(Instant::now() < deadline, "it is still open");
        pace(Duration::from_millis(50));
    }
    client.assert_closed();
}

#[test]
fn an_endpoint_that_sends_data_is_not_pinged() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let gateway = Gateway::start("[gateway.times]\nping = 2");
    let mut server = Endpoint::server(&gateway, 7);
    server.answers = true;
    for _ in 0..5 {
        let mut client = Endpoint::client(&gateway);
        let conn = client.dial(7);
        server.receive();
        let message = data(conn, b"I am here");
        let (begun, mut sent_at, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while begun.elapsed() < 2 * INTERVAL {
            client.send(&message);
            server.expect_frames(std::slice::from_ref(&message));
            longest = longest.max(sent_at.elapsed());
            sent_at = Instant::now();
            pace(Duration::from_millis(50));
        }
        // On an overloaded machine the result means nothing.
        if longest < INTERVAL / 2 {
            client.fence();
            return;
        }
        drop(client);
        server.expect_frames(&[command(CLOSE, &[conn])]);
    }
    panic!("this machine is too busy");
}

#[test]
fn a_client_that_is_killed_leaves_nothing_behind() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 7);
    let Some(client) = python_endpoints::echoing(&gateway, Role::Client, &["--greet"]) else { return };
    let conns: Vec<_> = (0..20).map(|_| dial_until_there(&mut server, 1)).collect();
    drop(client);
    let mut received: Vec<_> = conns.iter().map(|_| server.receive()).collect();
    let mut expected: Vec<_> = conns.iter().map(|conn| command(CLOSE, &[*conn])).collect();
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    server.dial_refused(1);
    drop(server);
    gateway.assert_becomes_empty();
}

#[test]
fn a_server_that_is_killed_leaves_nothing_behind() {
    let gateway = Gateway::start("");
    let Some(server) = python_endpoints::echoing(&gateway, Role::Server(7), &[]) else { return };
    let mut clients: Vec<_> = (0..3).map(|_| Endpoint::client(&gateway)).collect();
    let dial = |client: &mut Endpoint| (0..8).map(|_| dial_until_there(client, 7)).collect::<Vec<_>>();
    let conns: Vec<_> = clients.iter_mut().map(dial).collect();
    drop(server);
    for (client, conns) in clients.iter_mut().zip(&conns) {
        let mut received: Vec<_> = conns.iter().map(|_| client.receive()).collect();
        let mut expected: Vec<_> = conns.iter().map(|conn| command(CLOSE, &[*conn])).collect();
        received.sort();
        expected.sort();
        assert_eq!(received, expected);
        client.dial_refused(7);
    }
    // The id is free again, and the limits count from zero.
    let _server = Endpoint::server(&gateway, 7);
    for client in &mut clients {
        for _ in 0..8 {
            client.dial(7);
        }
    }
    drop((clients, _server));
    gateway.assert_becomes_empty();
}

#[test]
fn a_restarted_gateway_closes_everything_and_serves_reconnecting_endpoints() {
    let mut gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 7);
    pair.exchange_data();
    gateway.test_server.restart();
    let Pair { mut client, mut server, conn } = pair;
    for endpoint in [&mut client, &mut server] {
        let received = endpoint.read_to_end();
        assert!(received.is_empty() || received == command(CLOSE, &[conn]), "{received:02x?}");
    }
    let mut again = Pair::new(&gateway, 7);
    again.exchange_data();
    // The ids of before are gone.
    again.client.send(&data(conn, b"as before"));
    again.client.expect_frames(&[command(CLOSE, &[conn])]);
    again.exchange_data();
    drop(again);
    gateway.assert_becomes_empty();
}

#[test]
fn after_everything_has_ended_all_gauges_are_zero() {
    let gateway = Gateway::start("");
    for round in 0..3 {
        let mut server = Endpoint::server(&gateway, 7);
        let mut proving = Endpoint::hmac_server(&gateway, 8, KEY).unwrap();
        let mut clients: Vec<_> = (0..4).map(|_| Endpoint::client(&gateway)).collect();
        for client in &mut clients {
            client.open();
            client.dial_refused(99);
            for id in [7, 8, 7] {
                let conn = client.dial(id);
                client.send(&command(CLOSE, &[conn]));
                client.expect_frames(&[command(CLOSE, &[conn])]);
            }
            let conn = client.dial(7);
            client.send(&data(conn, &[0; 10_000]));
            // Server 8 has granted nothing, so that this waits.
            let conn = client.dial(8);
            client.send(&data(conn, &[0; 10_000]));
        }
        let mut dialler = Endpoint::server(&gateway, 9);
        dialler.dial(round * 4 + 1);
        assert!(gateway.gauges().iter().all(|(_, value)| *value > 0.0), "{:?}", gateway.gauges());
        server.send(&command(PING, &[]));
        proving.send(&command(255, &[]));
        proving.read_to_end();
    }
    gateway.assert_becomes_empty();
}

#[test]
fn an_endpoint_that_never_reads_is_dropped_although_it_sends() {
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    let (mut server, mut non_reader) = (Endpoint::server(&gateway, 7), Endpoint::narrow_client(&gateway));
    let conn = non_reader.dial(7);
    server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    let mut receiver = Endpoint { stream: server.stream.try_clone().unwrap(), answers: true };
    let (closed, deadline) = (AtomicBool::new(false), Instant::now() + TIMEOUT);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            receiver.expect_frames(&[command(CLOSE, &[conn])]);
            closed.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !closed.load(Ordering::Relaxed) && Instant::now() < deadline {
                non_reader.stream.write_all(&command(PING, &[])).ok();
                pace(Duration::from_millis(100));
            }
        });
        // A server with one virtual connection is paused without limit.
        while !closed.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "it is still open");
            server.send(&data(conn, &[0; 65_536]));
        }
    });
}
