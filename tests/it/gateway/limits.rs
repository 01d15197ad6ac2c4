//! What is counted and capped.

use super::endpoint::{ACCEPT, CLOSE, DIAL, Endpoint, NEW, Pair, REFUSE, command, conn_of, data};
use super::{Gateway, KEY};

#[test]
fn a_ninth_virtual_connection_is_refused_and_the_earlier_ones_live_on() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    let conns: Vec<_> = (0..8).map(|_| client.dial(1)).collect();
    client.dial_in_vain(1);
    for conn in &conns {
        server.hears(&[command(ACCEPT, &[*conn, 1])]);
    }
    for conn in &conns {
        client.say(&data(*conn, b"still here"));
        server.hears(&[data(*conn, b"still here")]);
    }
    // One that is closed makes room for one.
    server.say(&command(CLOSE, &[conns[3]]));
    for endpoint in [&mut server, &mut client] {
        endpoint.hears(&[command(CLOSE, &[conns[3]])]);
    }
    let again = client.dial(1);
    server.hears(&[command(ACCEPT, &[again, 1])]);
    client.dial_in_vain(1);
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
        server.hears(&[command(ACCEPT, &[conn, 1])]);
    }
    for _ in 0..50 {
        let conn = server.dial(1);
        client.hears(&[command(ACCEPT, &[conn, 1])]);
    }
    client.dial_in_vain(1);
}

#[test]
fn a_flood_of_dials_in_vain_is_read_slowly_and_others_are_not() {
    let gateway = Gateway::start("");
    let (mut server, mut flood) = (Endpoint::server(&gateway, 1), Endpoint::client(&gateway));
    flood.say(&command(DIAL, &[5, 1]).repeat(4000));
    for _ in 0..50 {
        flood.hears(&[command(REFUSE, &[5])]);
    }
    let mut client = Endpoint::client(&gateway);
    let conn = client.dial(1);
    server.hears(&[command(ACCEPT, &[conn, 2])]);
    let reached = gateway.get("/metrics", "");
    let refused = gateway.metric("refused_total{why=\"not_opened\"}");
    assert!(
        reached.contains("{limit=\"gateway_refusals\"} ")
            && !reached.contains("{limit=\"gateway_refusals\"} 0")
    );
    assert!(refused < 1000.0, "{refused} at once");
}

#[test]
fn how_many_a_client_may_dial_is_a_setting() {
    let gateway = Gateway::start("[gateway.limits]\nper_client = 2");
    let _server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::client(&gateway);
    client.dial(1);
    client.dial(1);
    client.dial_in_vain(1);
    // Another client has its own.
    Endpoint::client(&gateway).dial(1);
}

#[test]
fn the_gateway_has_room_for_so_many_virtual_connections() {
    let gateway = Gateway::start("[gateway.limits]\nvirtual_connections = 4");
    let mut server = Endpoint::shaking(&gateway, 1, KEY);
    let mut client = Endpoint::connect(gateway.clients());
    let mut conns = Vec::new();
    // Whether New or Dial is what is refused is not laid down: that four at the most come about is.
    for _ in 0..6 {
        client.say(&command(NEW, &[]));
        let answer = client.hear();
        let conn = u32::from_le_bytes(answer[9..].try_into().unwrap());
        if answer[8] != REFUSE && answer[8] != CLOSE {
            client.say(&command(DIAL, &[conn, 1]));
            let answer = client.hear();
            if answer == command(ACCEPT, &[conn, 1]) {
                conns.push(conn);
            }
        }
    }
    assert_eq!(conns.len(), 4);
    for conn in &conns {
        client.say(&data(*conn, b"here"));
    }
    let heard: Vec<_> = (0..8).map(|_| server.hear()).filter(|frame| conn_of(frame) != 0).collect();
    assert_eq!(heard, conns.iter().map(|conn| data(*conn, b"here")).collect::<Vec<_>>());
}

#[test]
fn the_oldest_id_that_was_never_dialled_goes_when_there_are_too_many() {
    let gateway = Gateway::start("[gateway.limits]\nhalf_open = 3");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::connect(gateway.clients());
    let ids: Vec<_> = (0..3).map(|_| client.open()).collect();
    client.say(&command(NEW, &[]));
    let (mut told, mut fourth) = (false, None);
    while !told || fourth.is_none() {
        let heard = client.hear();
        match heard == command(CLOSE, &[ids[0]]) {
            true => told = true,
            false => fourth = Some(u32::from_le_bytes(heard[9..].try_into().unwrap())),
        }
    }
    client.say(&command(DIAL, &[ids[0], 1]));
    client.hears(&[command(REFUSE, &[ids[0]])]);
    for conn in [ids[1], ids[2], fourth.unwrap()] {
        client.say(&command(DIAL, &[conn, 1]));
        client.hears(&[command(ACCEPT, &[conn, 1])]);
        server.hears(&[command(ACCEPT, &[conn, 1])]);
    }
}

#[test]
fn sixty_four_ids_may_wait_to_be_dialled() {
    let gateway = Gateway::start("");
    let _server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::connect(gateway.clients());
    let ids: Vec<_> = (0..64).map(|_| client.open()).collect();
    client.say(&command(DIAL, &[ids[0], 1]));
    client.hears(&[command(ACCEPT, &[ids[0], 1])]);
}

#[test]
fn the_longest_packet_is_a_setting_and_counts_the_connections_id() {
    let gateway = Gateway::start("[gateway.limits]\nmax_packet = 1024");
    let mut pair = Pair::new(&gateway, 1);
    let longest = data(pair.conn, &[1; 1020]);
    for _ in 0..3 {
        pair.client.say(&longest);
        pair.server.hears(std::slice::from_ref(&longest));
    }
    // Its head alone: the body is not waited for.
    pair.client.say(&data(pair.conn, &[1; 1021])[..8]);
    pair.client.is_dropped();
    pair.server.hears(&[command(CLOSE, &[pair.conn])]);
}

#[test]
fn clients_are_numbered_from_one_and_a_number_is_not_given_again() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::server(&gateway, 1);
    for number in 1..=5_u32 {
        let mut client = Endpoint::client(&gateway);
        let conn = client.dial(1);
        server.hears(&[command(ACCEPT, &[conn, number])]);
        drop(client);
        server.hears(&[command(CLOSE, &[conn])]);
        server.dial_in_vain(number);
    }
}
