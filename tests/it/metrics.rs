//! `GET /metrics`: each counter moves when its cause occurs, and `docs/metrics.md` lists all of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use ginnel::stun::{Builder, Class, Message, Method, TransactionId, attr};
use serde_json::json;

use crate::raw_turn::{RawTurnClient, by_udp};
use crate::safety::unauthenticated::admitted_hellos;
use crate::signaling_client::SignalingClient;
use crate::test_server::{Lines, TestServer, free_ports};
use crate::turn_client::{BlockingTurnClient, config, response_code};
use crate::waiting::wait_for;

const SOON: Duration = Duration::from_secs(20);
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// No route leads there from a socket that is bound to loopback (TEST-NET-2).
const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The metrics page.
fn page(server: SocketAddr) -> String {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The value of one counter; `name` includes its label.
pub(crate) fn value(server: SocketAddr, name: &str) -> u64 {
    let text = page(server);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Waits until a counter is at least `least`.
fn wait_for_value(server: SocketAddr, name: &str, least: u64) {
    wait_for(SOON, || {
        let value = value(server, name);
        (value >= least).then_some(()).ok_or_else(|| format!("{name} is {value}, not {least}"))
    });
}

fn send_indication(client: &RawTurnClient, peer: SocketAddr, data: &[u8]) {
    let indication = Builder::new(Class::Indication, Method::SEND, TransactionId::new([7; 12]));
    let indication = indication.xor_address(attr::XOR_PEER_ADDRESS, peer).attribute(attr::DATA, data);
    client.send(&indication.finish());
}

#[test]
fn each_counter_of_the_relay_moves_when_its_cause_occurs() {
    let turn = format!(
        "allow_peers = [\"{HERE}/32\", \"{UNREACHABLE}/32\"]\nrelay_ports = \"47310-47310\"\n\
         new_peers_per_second = 1\nbandwidth_per_allocation = 4000"
    );
    let test_server = TestServer::with(&[HERE.into()], Lines { top: "workers = 1", turn: &turn });
    let server = test_server.address;
    // The server's self-test has allocated before.
    let counts = || {
        ["allocations", "allocations_total", "unauthorized_total"]
            .map(|name| value(server, &format!("ginnel_relay_{name}")))
    };
    let before = counts();
    let mut client = BlockingTurnClient::allocate(HERE, server);
    assert_eq!(counts(), before.map(|count| count + 1));
    assert_eq!(response_code(BlockingTurnClient::new(config(), HERE, server).try_allocate()), 508);
    wait_for_value(server, "ginnel_relay_ports_exhausted_total", 1);

    let peer = UdpSocket::bind((HERE, 0)).unwrap();
    peer.set_read_timeout(Some(SOON)).unwrap();
    let peer_address = peer.local_addr().unwrap();
    client.create_permission(peer_address).unwrap();
    client.send(peer_address, b"seven b");
    let mut buffer = [0; 100];
    let (len, relayed) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"seven b");
    peer.send_to(b"five!", relayed).unwrap();
    assert_eq!(client.receive().as_deref(), Some(&b"five!"[..]));
    assert_eq!(value(server, "ginnel_relay_bytes_to_peers_total"), 7);
    assert_eq!(value(server, "ginnel_relay_bytes_to_clients_total"), 5);

    drop(peer);
    client.send(peer_address, b"to a closed port");
    wait_for_value(server, "ginnel_relay_icmp_errors_total", 1);
    assert_eq!(response_code(client.create_permission("10.0.0.1:9".parse().unwrap())), 403);
    let denied = page(server);
    assert!(denied.contains("ginnel_relay_denied_peers_total{rule=\""), "{denied}");
    let unreachable = SocketAddr::new(UNREACHABLE.into(), 9);
    client.create_permission(unreachable).unwrap();
    client.send(unreachable, b"nowhere");
    wait_for_value(server, "ginnel_worker_dropped_packets_total{reason=\"send_error\"}", 1);

    client.socket().send(b"\x40\x01\0\x04data").unwrap();
    wait_for_value(server, "ginnel_relay_dropped_packets_total{reason=\"unbound_channel\"}", 1);
    for port in 50_000..50_010 {
        client.send(SocketAddr::new(HERE.into(), port), b"x");
    }
    wait_for_value(server, "ginnel_relay_new_peers_refused_total", 1);
    wait_for_value(server, "ginnel_relay_dropped_packets_total{reason=\"new_peer_rate\"}", 1);
    for _ in 0..20 {
        client.send(peer_address, &[0; 1000]);
    }
    wait_for_value(server, "ginnel_relay_dropped_packets_total{reason=\"bandwidth\"}", 1);
}

#[test]
fn each_packet_that_the_relay_drops_is_counted_by_its_reason() {
    let turn = format!(
        "allow_peers = [\"{HERE}/32\"]\nrelay_ports = \"47320-47321\"\n\
         [auth.hook]\nurl = \"http://{HERE}:1/\""
    );
    let test_server = TestServer::with(&[HERE.into()], Lines { top: "workers = 1", turn: &turn });
    let server = test_server.address;
    let drops = |reason: &str, cause: &dyn Fn()| {
        let name = format!("ginnel_relay_dropped_packets_total{{reason=\"{reason}\"}}");
        let before = value(server, &name);
        cause();
        wait_for_value(server, &name, before + 1);
    };
    let mut client = RawTurnClient::new(HERE, server);
    let allocated = client
        .request_signed(Method::ALLOCATE, |request| by_udp(request).attribute(attr::EVEN_PORT, &[0x80]));
    let relayed = Message::parse(&allocated).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    let reserved = SocketAddr::new(HERE.into(), relayed.unwrap().unwrap().port() + 1);
    let peer = UdpSocket::bind((HERE, 0)).unwrap().local_addr().unwrap();

    drops("no_permission", &|| send_indication(&client, peer, b"x"));
    let permitted = client.request_signed(Method::CREATE_PERMISSION, |request| {
        request.xor_address(attr::XOR_PEER_ADDRESS, peer)
    });
    assert_eq!(Message::parse(&permitted).unwrap().class(), Class::Success);
    drops("malformed", &|| client.send(b"\x40\x01\0\xFFdata"));
    let data = Builder::new(Class::Indication, Method::DATA, TransactionId::new([7; 12])).finish();
    drops("unexpected_message", &|| client.send(&data));
    drops("unreachable_peer", &|| send_indication(&client, SocketAddr::new(HERE.into(), 0), b"x"));
    drops("peer_denied", &|| send_indication(&client, server, b"x"));
    drops("closed_relay_port", &|| send_indication(&client, reserved, b"x"));
    let other = UdpSocket::bind((HERE, 0)).unwrap();
    drops("no_allocation", &|| {
        other.send_to(b"\x40\x01\0\x04data", server).unwrap();
    });
    client.set_ttl(1);
    drops("hop_limit", &|| send_indication(&client, peer, b"x"));
    // Nothing listens at the look-up service's address.
    let mut unknown = RawTurnClient::of(("unknown".to_owned(), "password".to_owned()), HERE, server);
    let request = by_udp(unknown.begin(Method::ALLOCATE));
    let request = unknown.sign(request).finish();
    drops("lookup_failed", &|| unknown.send(&request));
}

#[test]
fn tcp_connections_are_counted_while_they_are_open_and_when_they_close() {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address;
    let mut pages = 0;
    // The request for the page is itself an open connection, and the only one when all earlier ones have closed.
    let mut wait_for_open = |count: u64| {
        wait_for(SOON, || {
            pages += 1;
            let text = page(server);
            let values = ["open", "unauthenticated", "descriptors", "unauthenticated_bytes", "closed_total"]
                .map(|name| {
                    let name = format!("ginnel_connections_{name} ");
                    text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap()
                });
            let [open, unauthenticated, descriptors, bytes, closed] = values;
            let is_expected = [open, unauthenticated, descriptors] == [count; 3] && bytes > 0;
            is_expected.then_some((closed, pages)).ok_or_else(|| format!("not {count}: {values:?}"))
        })
    };
    let (closed_before, pages_before) = wait_for_open(1);
    let idle = [(); 3].map(|()| {
        let mut stream = TcpStream::connect(server).unwrap();
        // The start of a STUN message: the worker waits for the rest.
        stream.write_all(b"\0\x01\0\x08\x21\x12\xA4\x42").unwrap();
        stream
    });
    wait_for_open(4);
    drop(idle);
    let (closed, pages) = wait_for_open(1);
    assert_eq!(closed - closed_before, 3 + pages - pages_before);
}

#[test]
fn what_the_server_withholds_from_unverified_sources_is_counted() {
    let turn = "[limits]\nunlimited_from = []\nunauthenticated_rate = 5\nunauthenticated_burst = 30";
    let test_server = TestServer::with(&[HERE.into()], Lines { top: "workers = 1", turn });
    let server = test_server.address;
    let [first, socket] = [(); 2].map(|()| {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    });
    // A handshake costs a network 25 responses, so its burst of 30 allows at most one.
    let hellos = [&first, &socket].map(|socket| (socket, admitted_hellos(socket)));
    for (socket, [hello, _]) in &hellos {
        socket.send(hello).unwrap();
    }
    wait_for_value(server, "ginnel_unauthenticated_withheld_total{limit=\"dtls_handshakes\"}", 1);
    wait_for_value(server, "ginnel_worker_dropped_packets_total{reason=\"dtls\"}", 1);
    let unknown = "ginnel_worker_dropped_packets_total{reason=\"unknown_protocol\"}";
    assert_eq!(value(server, unknown), 0);
    socket.send(b"\xFF").unwrap();
    wait_for_value(server, unknown, 1);
    let binding = Builder::new(Class::Request, Method::BINDING, TransactionId::new([7; 12])).finish();
    for _ in 0..100 {
        socket.send(&binding).unwrap();
    }
    wait_for_value(server, "ginnel_unauthenticated_withheld_total{limit=\"rate\"}", 1);
    wait_for_value(server, "ginnel_worker_dropped_packets_total{reason=\"response_withheld\"}", 1);
}

#[test]
fn a_datagram_that_finds_the_queue_of_the_hub_full_is_counted() {
    let lines = Lines { top: "workers = 1", turn: "[signaling.limits]\ninbox = 1" };
    let test_server = TestServer::with(&[HERE.into()], lines);
    let server = test_server.address;
    let socket = UdpSocket::bind((HERE, 0)).unwrap();
    socket.connect(server).unwrap();
    let dropped = "ginnel_worker_dropped_packets_total{reason=\"signaling_queue_full\"}";
    assert_eq!(value(server, dropped), 0);
    // A worker queues the datagrams of one batch without waiting for the hub.
    wait_for(SOON, || {
        for _ in 0..100 {
            socket.send(br#"{"t":1}"#).unwrap();
        }
        (value(server, dropped) > 0).then_some(()).ok_or_else(|| "no datagram was dropped".to_owned())
    });
}

#[test]
fn each_counter_of_the_hub_moves_when_its_cause_occurs() {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address;
    let count = |name: &str| value(server, &format!("ginnel_signaling_{name}"));
    let wait_for_count =
        |name: &str, least| wait_for_value(server, &format!("ginnel_signaling_{name}"), least);
    let mut caller = SignalingClient::web(HERE, server);
    let mut callee = SignalingClient::udp(HERE, server);
    let [tag, rtag] = [&mut caller, &mut callee].map(|client| client.register(&json!({})));
    assert_eq!([count("clients"), count("websockets"), count("registrations_total")], [2, 1, 2]);
    callee.request(json!({"t": 2, "tag": rtag}));

    let unknown = caller.request(json!({"t": 4, "params": {"tag": tag, "rtag": "nobody"}}));
    assert_eq!((&unknown["code"], count("errors_total{code=\"203\"}")), (&json!(203), 1));

    let call = json!({"t": 4, "params": {"tag": tag, "rtag": rtag}});
    let refused = caller.request(call.clone())["extra"]["token"].clone();
    assert_eq!(count("calls"), 1);
    let notify = callee.receive(|message| message["t"] == 51 && message["token"] == refused);
    callee.send(&json!({"t": 51, "mid": notify["mid"], "token": refused, "code": 204}));
    wait_for_count("calls_ended_total{outcome=\"refused\"}", 1);
    wait_for_count("requests_total{result=\"acknowledged\"}", 1);

    let answered = caller.request(call)["extra"]["token"].clone();
    let notify = callee.receive(|message| message["t"] == 51 && message["token"] == answered);
    callee.send(&json!({"t": -51, "mid": notify["mid"], "token": answered, "code": 200}));
    caller.receive(|message| message["t"] == 52 && message["token"] == answered);
    caller.send(&json!({"t": -53, "token": answered, "code": 200, "extra": {"path": "direct"}}));
    caller.request(json!({"t": 55, "token": answered}));
    wait_for_count("calls_ended_total{outcome=\"direct\"}", 1);
    // The callee does not answer the hub's t=55.
    wait_for_count("requests_total{result=\"unanswered\"}", 1);
    drop(caller);
    wait_for(SOON, || {
        (count("websockets") == 0).then_some(()).ok_or_else(|| "a WebSocket is open".to_owned())
    });
    // A single server has no other hubs.
    assert_eq!(count("hub_messages_total{direction=\"sent\"}"), 0);
}

#[test]
fn a_relay_socket_that_the_system_refuses_is_counted() {
    let turn = "allocations_per_user = 1000";
    let test_server = TestServer::with_descriptors(120, turn);
    let server = test_server.address;
    let mut clients = Vec::new();
    loop {
        assert!(clients.len() < 120, "more sockets than descriptors");
        let mut client = BlockingTurnClient::new(config(), HERE, server);
        match response_code(client.try_allocate()) {
            0 => clients.push(client),
            code => break assert_eq!(code, 508),
        }
    }
    // A connection needs a descriptor too.
    for client in clients.iter_mut().take(5) {
        client.release();
    }
    assert!(value(server, "ginnel_relay_sockets_refused_total") >= 1);
}

#[test]
fn the_documentation_lists_exactly_the_metrics_that_exist() {
    let listen: IpAddr = HERE.into();
    let messaging = format!("[messaging]\nenabled = true\nport = {}", free_ports());
    let test_server = TestServer::at(&[listen], &messaging);
    let text = page(test_server.address);
    let exported: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let documented = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md"));
    let documented = documented.unwrap();
    let documented: BTreeMap<_, _> = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, rest)| {
            (name.split('{').next().unwrap().to_owned(), rest.split(' ').next().unwrap().to_owned())
        })
        .collect();
    assert_eq!(exported, documented);
}
