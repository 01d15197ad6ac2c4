//! The TURN client of webrtc-rs, in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use crate::test_server::{PASSWORD, TestServer, USER};

const SHORT: Duration = Duration::from_secs(10);

async fn client(test_server: &TestServer, password: &str) -> Client {
    let conn = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(ClientConfig {
        stun_serv_addr: test_server.address.to_string(),
        turn_serv_addr: test_server.address.to_string(),
        username: USER.to_owned(),
        password: password.to_owned(),
        realm: String::new(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(conn),
        vnet: None,
    })
    .await
    .unwrap();
    client.listen().await.unwrap();
    client
}

#[tokio::test]
async fn webrtc_rs_allocates_and_exchanges_data_with_a_peer() {
    let test_server = TestServer::on_loopback("allow_peers = [\"127.0.0.1/32\"]");
    let client = client(&test_server, PASSWORD).await;
    let mapped = timeout(SHORT, client.send_binding_request()).await.unwrap().unwrap();
    assert_eq!(mapped.ip(), test_server.address.ip());
    let relay = timeout(SHORT, client.allocate()).await.unwrap().unwrap();
    let relayed = relay.local_addr().unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let peer_address = peer.local_addr().unwrap();
    // The client's first packets go by Send, later ones through the channel that it binds meanwhile.
    for round in 0..50_u8 {
        timeout(SHORT, relay.send_to(&[round; 900], peer_address)).await.unwrap().unwrap();
        assert_eq!(receive(&peer).await, (vec![round; 900], relayed));
        peer.send_to(&[!round; 700], relayed).await.unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = timeout(SHORT, relay.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], from), (&[!round; 700][..], peer_address));
    }
    relay.close().await.unwrap();
    client.close().await.unwrap();
}

#[tokio::test]
async fn webrtc_rs_gets_no_allocation_with_a_wrong_password() {
    let test_server = TestServer::on_loopback("");
    let client = client(&test_server, "another password").await;
    assert!(timeout(SHORT, client.allocate()).await.unwrap().is_err());
    client.close().await.unwrap();
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = timeout(SHORT, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    (buffer[..length].to_vec(), from)
}
