//! Bugs of the reference (`docs/wire/gateway.md`), and ginnel's behaviour.

use super::Gateway;
use super::endpoint::{CLOSE, DIAL, Endpoint, Pair, REFUSE, command, data};

/// The reference sends nothing to the other end, and leaks its virtual connections.
#[test]
fn a_dropped_end_closes_each_virtual_connection_at_the_other_end() {
    let gateway = Gateway::start("");
    for client_drops in [true, false] {
        let mut server = Endpoint::server(&gateway, 1);
        let mut client = Endpoint::client(&gateway);
        let mut conns: Vec<_> = (0..8).map(|_| client.dial(1)).collect();
        for _ in &conns {
            server.receive();
        }
        // The endpoint that disconnects has dialled, was dialled, and has not read its last frames.
        let unread = server.open();
        let number = if client_drops { 1 } else { 2 };
        server.send(&command(DIAL, &[unread, number]));
        server.receive();
        conns.push(unread);
        let (gone, mut survivor) = if client_drops { (client, server) } else { (server, client) };
        if !client_drops {
            survivor.receive();
        }
        drop(gone);
        let mut received: Vec<_> = conns.iter().map(|_| survivor.receive()).collect();
        let mut expected: Vec<_> = conns.iter().map(|conn| command(CLOSE, &[*conn])).collect();
        received.sort();
        expected.sort();
        assert_eq!(received, expected);
        survivor.fence();
        assert_forgotten(&mut survivor, &conns);
    }
}

/// Closed ids carry no data and cannot be dialled.
fn assert_forgotten(endpoint: &mut Endpoint, conns: &[u32]) {
    for conn in conns {
        endpoint.send(&command(DIAL, &[*conn, 1]));
        endpoint.expect_frames(&[command(REFUSE, &[*conn])]);
    }
}

/// The reference closes the connection of a peer that sends on an id that was closed a moment ago.
#[test]
fn messages_that_cross_a_close_do_not_cost_the_connection() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let other = pair.client.dial(1);
    pair.server.receive();
    pair.server.send(&command(CLOSE, &[pair.conn]));
    pair.server.expect_frames(&[command(CLOSE, &[pair.conn])]);
    // Close is in flight together with more than a hundred messages; they are no violations.
    for _ in 0..150 {
        pair.client.send(&data(pair.conn, b"still sending"));
    }
    pair.client.send(&data(other, b"the last one"));
    pair.server.expect_frames(&[data(other, b"the last one")]);
    pair.conn = other;
    pair.server.send(&data(other, b"and back"));
    loop {
        let received = pair.client.receive();
        if received == data(other, b"and back") {
            break;
        }
        assert_ne!(received, data(other, b""), "{received:02x?}");
        assert_eq!(received[8], CLOSE);
    }
    pair.exchange_data();
    pair.client.fence();
}

/// In the reference any endpoint may close any id.
#[test]
fn only_its_ends_can_close_a_virtual_connection() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let undialled = pair.client.open();
    for mut other in [Endpoint::client(&gateway), Endpoint::server(&gateway, 2)] {
        other.send(&command(CLOSE, &[pair.conn]));
        other.send(&command(CLOSE, &[undialled]));
        other.fence();
        pair.exchange_data();
    }
    pair.client.send(&command(DIAL, &[undialled, 1]));
    pair.client.expect_frames(&[command(super::endpoint::ACCEPT, &[undialled, 1])]);
}

/// In the reference an id that was never opened can be dialled, and ids are consecutive.
#[test]
fn only_ids_that_were_opened_here_can_be_dialled_and_none_can_be_guessed() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let mut other = Endpoint::client(&gateway);
    let undialled = pair.client.open();
    for foreign in [0, 1, 2, 0xffff_ffff, undialled, pair.conn] {
        other.send(&command(DIAL, &[foreign, 1]));
        other.expect_frames(&[command(REFUSE, &[foreign])]);
    }
    pair.exchange_data();
    pair.server.fence();
    pair.client.send(&command(DIAL, &[undialled, 1]));
    pair.client.expect_frames(&[command(super::endpoint::ACCEPT, &[undialled, 1])]);
    let ids: Vec<_> = (0..60).map(|_| other.open()).collect();
    assert!(ids.windows(2).all(|two| two[1].abs_diff(two[0]) > 1), "{ids:?}");
    let high = ids.iter().filter(|id| **id >= 1 << 31).count();
    assert!((1..60).contains(&high), "all of one half: {ids:?}");
}
