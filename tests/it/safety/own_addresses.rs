//! Addresses that the server's host gets while it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ginnel::stun::{Builder, Class, Method, TransactionId, attr};
use ginnel::turn_client::AddressFamilies;

use crate::lab::Net;
use crate::test_server::{TestServer, free_ports};
use crate::tools;
use crate::turn_client::{BlockingTurnClient, config, response_code};

/// How long the server may take to notice on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

fn permit(client: &mut BlockingTurnClient, peer: SocketAddr) -> u16 {
    response_code(client.create_permission(peer))
}

fn bind(client: &mut BlockingTurnClient, peer: SocketAddr) -> u16 {
    response_code(client.bind_channel(peer))
}

/// Sends in both ways to a peer whose permission and channel were refused.
fn send_to_refused(client: &BlockingTurnClient, peer: SocketAddr, channel: [u8; 2]) {
    let indication = Builder::new(Class::Indication, Method::SEND, TransactionId::new([9; 12]));
    let indication = indication.xor_address(attr::XOR_PEER_ADDRESS, peer).attribute(attr::DATA, b"hello");
    client.socket().send(&indication.finish()).unwrap();
    client.socket().send(&[&channel[..], &[0, 4, 1, 2, 3, 4]].concat()).unwrap();
}

/// Asks for the permission again and again until it is answered with `wanted`.
fn wait_for(wanted: u16, client: &mut BlockingTurnClient, peer: SocketAddr) {
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
        let mut config = config();
        config.families = AddressFamilies::Both;
        (BlockingTurnClient::new(config, client_host.address(), test_server.address), control)
    });
    client.try_allocate().unwrap();
    assert_eq!(permit(&mut client, control.local_addr().unwrap()), 0);

    let own: [IpAddr; 2] = ["9.9.9.77".parse().unwrap(), "2606:4700::77".parse().unwrap()];
    for (ip, channel) in own.into_iter().zip([[0x40, 0], [0x40, 1]]) {
        let peer = SocketAddr::new(ip, 9999);
        assert_eq!((permit(&mut client, peer), bind(&mut client, peer)), (0, 0), "{peer}");
        let prefixed = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        server_host.add_inner_address(&prefixed);
        let witness = server_host.inside(|| UdpSocket::bind(peer).unwrap());
        witness.set_nonblocking(true).unwrap();
        wait_for(403, &mut client, peer);
        assert_eq!(bind(&mut client, peer), 403, "{peer}");
        assert_eq!(permit(&mut client, SocketAddr::new(ip, 3478)), 403);
        send_to_refused(&client, peer, channel);
        // What was sent before would have arrived before this.
        client.send(control.local_addr().unwrap(), b"hello");
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
    let mut client = BlockingTurnClient::allocate(Ipv4Addr::LOCALHOST, test_server.address);
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
