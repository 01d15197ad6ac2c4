//! Bugs of the reference (`docs/wire/gateway.md`), and our behaviour instead.

use super::Gateway;
use super::endpoint::{CLOSE, DIAL, Endpoint, Pair, REFUSE, command, data};

/// (a) There the other end gets nothing, and its virtual connections leak.
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
        // The one that goes has dialled some and was dialled by others, and has not read the last ones.
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
        let mut told: Vec<_> = conns.iter().map(|_| survivor.receive()).collect();
        let mut expected: Vec<_> = conns.iter().map(|conn| command(CLOSE, &[*conn])).collect();
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
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

/// (b) There an honest peer that sends once more on an id that was closed a moment ago loses its whole connection.
#[test]
fn messages_that_cross_a_close_do_not_cost_the_connection() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let other = pair.client.dial(1);
    pair.server.receive();
    pair.server.send(&command(CLOSE, &[pair.conn]));
    pair.server.expect_frames(&[command(CLOSE, &[pair.conn])]);
    // Close is under way while more than a hundred messages are; even so many are no violations.
    for _ in 0..150 {
        pair.client.send(&data(pair.conn, b"have not heard yet"));
    }
    pair.client.send(&data(other, b"the last one"));
    pair.server.expect_frames(&[data(other, b"the last one")]);
    pair.conn = other;
    pair.server.send(&data(other, b"and back"));
    loop {
        let heard = pair.client.receive();
        if heard == data(other, b"and back") {
            break;
        }
        assert_ne!(heard, data(other, b""), "{heard:02x?}");
        assert_eq!(heard[8], CLOSE);
    }
    pair.exchange_data();
    pair.client.fence();
}

/// (c) There any endpoint may close any id.
#[test]
fn nobody_else_can_close_a_virtual_connection() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let undialled = pair.client.open();
    for mut stranger in [Endpoint::client(&gateway), Endpoint::server(&gateway, 2)] {
        stranger.send(&command(CLOSE, &[pair.conn]));
        stranger.send(&command(CLOSE, &[undialled]));
        stranger.fence();
        pair.exchange_data();
    }
    pair.client.send(&command(DIAL, &[undialled, 1]));
    pair.client.expect_frames(&[command(super::endpoint::ACCEPT, &[undialled, 1])]);
}

/// (d) There an id that was never opened can be dialled, and ids follow one another.
#[test]
fn only_ids_that_were_opened_here_can_be_dialled_and_none_can_be_guessed() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 1);
    let mut stranger = Endpoint::client(&gateway);
    let undialled = pair.client.open();
    for foreign in [0, 1, 2, 0xffff_ffff, undialled, pair.conn] {
        stranger.send(&command(DIAL, &[foreign, 1]));
        stranger.expect_frames(&[command(REFUSE, &[foreign])]);
    }
    pair.exchange_data();
    pair.server.fence();
    pair.client.send(&command(DIAL, &[undialled, 1]));
    pair.client.expect_frames(&[command(super::endpoint::ACCEPT, &[undialled, 1])]);
    let ids: Vec<_> = (0..60).map(|_| stranger.open()).collect();
    assert!(ids.windows(2).all(|two| two[1].abs_diff(two[0]) > 1), "{ids:?}");
    let high = ids.iter().filter(|id| **id >= 1 << 31).count();
    assert!((1..60).contains(&high), "all of one half: {ids:?}");
}
