//! Embeds the relay only: a TURN server on one UDP socket, with one user and a UDP socket for each relayed address.
//! Run it with `cargo run --example embed_relay -- 127.0.0.1:3478 alice secret`.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it prints and reads the clocks")]

use ginnel::{Now, Relay, turn_server::*};
use rand::{TryRngCore, rngs::OsRng};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{collections::HashMap, net::SocketAddr, sync::Arc};
use tokio::{net::UdpSocket, sync::mpsc};

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { mono: Instant::now(), unix }
}

fn to_frame(to: &ToClient, received: &[u8]) -> Vec<u8> {
    [to.header.as_bytes(), &received[to.payload.clone()], &vec![0; to.padding]].concat()
}

async fn receive(port: RelayId, socket: Arc<UdpSocket>, to: mpsc::Sender<(RelayId, SocketAddr, Vec<u8>)>) {
    let mut buffer = vec![0; 65_536];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        let _ = to.send((port, peer, buffer[..len].to_vec())).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [listen, user, password] = [1, 2, 3].map(|index| std::env::args().nth(index).unwrap_or_default());
    let socket = UdpSocket::bind(&listen).await?;
    let server = socket.local_addr()?;
    let mut random = [[0; 32]; 2];
    random.iter_mut().try_for_each(|key| OsRng.try_fill_bytes(key))?;
    let users = AuthenticatorConfig::new("example.org").with_user(&user, &password);
    let mut config = RelayConfig::new(Authenticator::with(users, &random[0]), &[server.ip().into()]);
    config.features.tcp = false;
    config.policy.allow_peers.push(NetworkPrefix::new(server.ip(), 32, 128)); // denied by default
    let mut relay = Relay::new(now(), config, random[1]);
    let mut relay_sockets = HashMap::<RelayId, (Arc<UdpSocket>, tokio::task::JoinHandle<()>)>::new();
    let (sender, mut from_peers) = mpsc::channel::<(RelayId, SocketAddr, Vec<u8>)>(64);
    let mut buffer = vec![0; 65_536];
    println!("listening on {server}");
    loop {
        let deadline = relay.poll_timeout().unwrap_or_else(|| now().mono + Duration::from_secs(60));
        tokio::select! {
            Ok((len, client)) = socket.recv_from(&mut buffer) => {
                let client = FiveTuple { client, server, transport: Transport::Udp };
                let Some(frame) = ClientFrame::parse(&buffer[..len]) else { continue };
                match relay.handle_client(now(), client, IpHeader::default(), frame) {
                    Forward::Peer(to) => drop(relay_sockets[&to.relay].0.try_send_to(&buffer[to.payload], to.peer)),
                    Forward::LocalClient(to) => drop(socket.try_send_to(&to_frame(&to, &buffer), to.client.client)),
                    _ => {} // a request, whose response is an output, or a drop
                }
            }
            Some((port, peer, payload)) = from_peers.recv() => {
                let to = relay.handle_peer(now(), port, peer, IpHeader::default(), &payload);
                let _ = to.map(|to| socket.try_send_to(&to_frame(&to, &payload), to.client.client));
            }
            () = tokio::time::sleep_until(deadline.into()) => relay.handle_timeout(now()),
        }
        while let Some(output) = relay.poll_output() {
            match output {
                Output::Response { client, bytes, .. } => drop(socket.try_send_to(&bytes, client.client)),
                Output::OpenRelaySocket { relay: port, address, .. } => {
                    let opened =
                        UdpSocket::bind(address).await.map(Arc::new).map_err(|_| RelaySocketError::PortInUse);
                    relay.handle_relay_opened(now(), port, opened.as_ref().map(drop).map_err(|error| *error));
                    let Ok(opened) = opened else { continue };
                    let task = tokio::spawn(receive(port, Arc::clone(&opened), sender.clone()));
                    relay_sockets.insert(port, (opened, task));
                }
                Output::CloseRelaySocket { relay } => {
                    relay_sockets.remove(&relay).iter().for_each(|it| it.1.abort())
                }
                _ => {} // TCP, workers and user look-ups, which are not configured
            }
        }
    }
}
