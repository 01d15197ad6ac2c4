//! Addresses that the server's host gets while it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ginnel::stun::{Builder, Class, Message, Method, TransactionId, attr};

use crate::lab::Net;
use crate::test_server::{TestServer, free_ports};
use crate::tools;
use crate::turn_client::{TurnClient, by_udp};

/// How long the server may take to notice on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

fn code(answer: &[u8]) -> u16 {
    Message::parse(answer).unwrap().unverified().error_code().unwrap_or(0)
}

fn permit(client: &mut TurnClient, peer: SocketAddr) -> u16 {
    code(&client.request_signed(Method::CREATE_PERMISSION, |b| b.xor_address(attr::XOR_PEER_ADDRESS, peer)))
}

/// The channel of a peer's family.
fn channel(peer: SocketAddr) -> [u8; 2] {
    [0x40, u8::from(peer.is_ipv6())]
}

fn bind(client: &mut TurnClient, peer: SocketAddr) -> u16 {
    let [high, low] = channel(peer);
    code(&client.request_signed(Method::CHANNEL_BIND, |b| {
        b.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]).xor_address(attr::XOR_PEER_ADDRESS, peer)
    }))
}

fn send(client: &TurnClient, peer: SocketAddr) {
    let indication = Builder::new(Class::Indication, Method::SEND, TransactionId::new([9; 12]));
    let indication = indication.xor_address(attr::XOR_PEER_ADDRESS, peer).attribute(attr::DATA, b"hello");
    client.send(&indication.finish());
}

/// Asks for the permission again and again until it is answered with `wanted`.
fn wait_for(wanted: u16, client: &mut TurnClient, peer: SocketAddr) {
    let end = Instant::now() + TIMEOUT;
    while permit(client, peer) != wanted {
        assert!(Instant::now() < end, "no {wanted} for {peer}");
    }
}

#[test]
fn an_address_added_to_the_host_is_denied_as_a_peer_until_it_is_removed() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, client_host) = (net.island(10), net.public(20));
    server_host.enable_ipv6();
    server_host.add_inner_address("2606:4700::10/128");
    let test_server =
        TestServer::on_with(&server_host, "relay_addresses = [\"203.0.113.10\", \"2606:4700::10\"]");
    let (mut client, control) = client_host.inside(|| {
        let control = UdpSocket::bind((client_host.address(), 0)).unwrap();
        control.set_read_timeout(Some(TIMEOUT)).unwrap();
        (TurnClient::new(client_host.address(), test_server.address), control)
    });
    let both = |b: Builder| by_udp(b).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    assert_eq!(code(&client.request_signed(Method::ALLOCATE, both)), 0);
    assert_eq!(permit(&mut client, control.local_addr().unwrap()), 0);

    let own: [IpAddr; 2] = ["9.9.9.77".parse().unwrap(), "2606:4700::77".parse().unwrap()];
    for ip in own {
        let peer = SocketAddr::new(ip, 9999);
        assert_eq!((permit(&mut client, peer), bind(&mut client, peer)), (0, 0), "{peer}");
        let prefixed = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        server_host.add_inner_address(&prefixed);
        let witness = server_host.inside(|| UdpSocket::bind(peer).unwrap());
        witness.set_nonblocking(true).unwrap();
        wait_for(403, &mut client, peer);
        assert_eq!(bind(&mut client, peer), 403, "{peer}");
        assert_eq!(permit(&mut client, SocketAddr::new(ip, 3478)), 403);
        send(&client, peer);
        client.send(&[&channel(peer)[..], &[0, 4, 1, 2, 3, 4]].concat());
        // What was sent before would have arrived before this.
        send(&client, control.local_addr().unwrap());
        control.recv(&mut [0; 16]).unwrap();
        assert!(witness.recv(&mut [0; 16]).is_err(), "{peer} has received something");
        drop(witness);
        server_host.remove_inner_address(&prefixed);
        wait_for(0, &mut client, peer);
    }
}

#[test]
fn the_servers_own_listeners_stay_denied_whatever_allow_peers_says() {
    let gateway = free_ports();
    let rest = format!(
        "allow_peers = [\"0.0.0.0/0\", \"::/0\"]\n[gateway]\nserver_port = {gateway}\nhmac_port = {}",
        gateway + 1
    );
    let test_server = TestServer::on_loopback(&rest);
    let mut client = TurnClient::allocate(Ipv4Addr::LOCALHOST, test_server.address);
    let main = test_server.address.port();
    for port in [main, main + 1, gateway, gateway + 1] {
        for ip in ["127.0.0.1", "127.9.9.9", "224.0.0.1"] {
            let peer = SocketAddr::new(ip.parse().unwrap(), port);
            assert_eq!(bind(&mut client, peer), 403, "{peer}");
        }
    }
    for port in [0, 9, main, gateway] {
        let peer = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        assert_eq!((permit(&mut client, peer), bind(&mut client, peer)), (403, 403), "{peer}");
    }
    let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    assert_eq!((permit(&mut client, other), bind(&mut client, other)), (0, 0));
}
