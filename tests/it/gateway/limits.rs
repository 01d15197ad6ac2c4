//! Limits of the gateway, and numbering.

use super::endpoint::{ACCEPT, CLOSE, DIAL, Endpoint, NEW, Pair, REFUSE, command, conn_of, data};
use super::{Gateway, KEY};

#[test]
fn a_ninth_virtual_connection_is_refused_and_the_earlier_ones_stay_open() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    let conns: Vec<_> = (0..8).map(|_| client.dial(1)).collect();
    client.dial_refused(1);
    for conn in &conns {
        server.expect_frames(&[command(ACCEPT, &[*conn, 1])]);
    }
    for conn in &conns {
        client.send(&data(*conn, b"still here"));
        server.expect_frames(&[data(*conn, b"still here")]);
    }
    // A closed one frees a place.
    server.send(&command(CLOSE, &[conns[3]]));
    for endpoint in [&mut server, &mut client] {
        endpoint.expect_frames(&[command(CLOSE, &[conns[3]])]);
    }
    let again = client.dial(1);
    server.expect_frames(&[command(ACCEPT, &[again, 1])]);
    client.dial_refused(1);
    let counted = "ginnel_limit_reached_total{limit=\"gateway.limits.per_client\"} 2\n";
    assert!(gateway.get("/metrics", "").contains(counted), "both were counted");
}

#[test]
fn only_the_dialling_client_is_counted_and_servers_have_no_limit() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    for _ in 0..8 {
        let conn = client.dial(1);
        server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    }
    for _ in 0..50 {
        let conn = server.dial(1);
        client.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    }
    client.dial_refused(1);
}

#[test]
fn a_flood_of_refused_dials_slows_only_its_sender() {
    let gateway = Gateway::start("");
    let (mut server, mut flood) = (Endpoint::server(&gateway, 1), Endpoint::client(&gateway));
    flood.send(&command(DIAL, &[5, 1]).repeat(4000));
    for _ in 0..50 {
        flood.expect_frames(&[command(REFUSE, &[5])]);
    }
    let mut client = Endpoint::client(&gateway);
    let conn = client.dial(1);
    server.expect_frames(&[command(ACCEPT, &[conn, 2])]);
    let reached = gateway.get("/metrics", "");
    let refused = gateway.metric("refused_total{why=\"not_opened\"}");
    assert!(
        reached.contains("{limit=\"gateway_refusals\"} ")
            && !reached.contains("{limit=\"gateway_refusals\"} 0")
    );
    assert!(refused < 1000.0, "{refused} at once");
}

#[test]
fn the_number_of_dials_of_a_client_is_a_setting() {
    let gateway = Gateway::start("[gateway.limits]\nper_client = 2");
    let _server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    client.dial(1);
    client.dial(1);
    client.dial_refused(1);
    // Another client has its own.
    Endpoint::client(&gateway).dial(1);
}

#[test]
fn the_number_of_virtual_connections_is_capped() {
    let gateway = Gateway::start("[gateway.limits]\nvirtual_connections = 4");
    let mut server = Endpoint::authenticating(&gateway, 1, KEY);
    let mut client = Endpoint::connect(gateway.clients());
    let mut conns = Vec::new();
    // The wire does not define whether New or Dial is refused, only that at most four connections exist.
    for _ in 0..6 {
        client.send(&command(NEW, &[]));
        let answer = client.receive();
        let conn = u32::from_le_bytes(answer[9..].try_into().unwrap());
        if answer[8] != REFUSE && answer[8] != CLOSE {
            client.send(&command(DIAL, &[conn, 1]));
            let answer = client.receive();
            if answer == command(ACCEPT, &[conn, 1]) {
                conns.push(conn);
            }
        }
    }
    assert_eq!(conns.len(), 4);
    for conn in &conns {
        client.send(&data(*conn, b"here"));
    }
    let received: Vec<_> = (0..8).map(|_| server.receive()).filter(|frame| conn_of(frame) != 0).collect();
    assert_eq!(received, conns.iter().map(|conn| data(*conn, b"here")).collect::<Vec<_>>());
}

#[test]
fn the_oldest_undialled_id_is_closed_above_the_cap() {
    let gateway = Gateway::start("[gateway.limits]\nhalf_open = 3");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::connect(gateway.clients());
    let ids: Vec<_> = (0..3).map(|_| client.open()).collect();
    client.send(&command(NEW, &[]));
    let (mut is_closed, mut fourth) = (false, None);
    while !is_closed || fourth.is_none() {
        let received = client.receive();
        match received == command(CLOSE, &[ids[0]]) {
            true => is_closed = true,
            false => fourth = Some(u32::from_le_bytes(received[9..].try_into().unwrap())),
        }
    }
    client.send(&command(DIAL, &[ids[0], 1]));
    client.expect_frames(&[command(REFUSE, &[ids[0]])]);
    for conn in [ids[1], ids[2], fourth.unwrap()] {
        client.send(&command(DIAL, &[conn, 1]));
        client.expect_frames(&[command(ACCEPT, &[conn, 1])]);
        server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    }
}

#[test]
fn sixty_four_ids_may_wait_to_be_dialled() {
    let gateway = Gateway::start("");
    let _server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::connect(gateway.clients());
    let ids: Vec<_> = (0..64).map(|_| client.open()).collect();
    client.send(&command(DIAL, &[ids[0], 1]));
    client.expect_frames(&[command(ACCEPT, &[ids[0], 1])]);
}

#[test]
fn the_maximum_packet_length_is_a_setting_and_includes_the_connection_id() {
    let gateway = Gateway::start("[gateway.limits]\nmax_packet = 1024");
    let mut pair = Pair::new(&gateway, 1);
    let longest = data(pair.conn, &[1; 1020]);
    for _ in 0..3 {
        pair.client.send(&longest);
        pair.server.expect_frames(std::slice::from_ref(&longest));
    }
    // Only its head: the gateway does not wait for the body.
    pair.client.send(&data(pair.conn, &[1; 1021])[..8]);
    pair.client.assert_closed();
    pair.server.expect_frames(&[command(CLOSE, &[pair.conn])]);
}

#[test]
fn clients_are_numbered_from_one_and_numbers_are_not_reused() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    for number in 1..=5_u32 {
        let mut client = Endpoint::client(&gateway);
        let conn = client.dial(1);
        server.expect_frames(&[command(ACCEPT, &[conn, number])]);
        drop(client);
        server.expect_frames(&[command(CLOSE, &[conn])]);
        server.dial_refused(number);
    }
}
