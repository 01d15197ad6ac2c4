//! Two sides in one process: ICE agents over loopback, candidates exchanged by the test, QUIC over the path that the test selects.

use super::*;
use crate::agent::candidate::CandidatePath;
use crate::agent::ice::{self, IceAgent, IceAgentConfig, IceEvent, RelayCredentials};
use crate::agent::keys::SECRET_LEN;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use turn::auth::AuthHandler;
use turn::relay::relay_static::RelayAddressGeneratorStatic;
use turn::server::Server;
use turn::server::config::{ConnConfig, ServerConfig as TurnConfig};

const REALM: &str = "example";

struct OneUser;

impl AuthHandler for OneUser {
    fn auth_handle(&self, username: &str, realm: &str, _: SocketAddr) -> Result<Vec<u8>, turn::Error> {
        Ok(turn::auth::generate_auth_key(username, realm, "password"))
    }
}

async fn turn_server() -> (Server, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let generator = RelayAddressGeneratorStatic {
        relay_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        address: "127.0.0.1".to_owned(),
        net: ice::system_net(),
    };
    let config = TurnConfig {
        conn_configs: vec![ConnConfig { conn: Arc::new(socket), relay_addr_generator: Box::new(generator) }],
        realm: REALM.to_owned(),
        auth_handler: Arc::new(OneUser),
        channel_bind_timeout: Duration::ZERO,
        alloc_close_notify: None,
    };
    (Server::new(config).await.unwrap(), address)
}

struct QuicSide {
    tunnel: Arc<Tunnel>,
    agents: [IceAgent; 2],
    events: mpsc::Receiver<(CandidatePath, IceEvent)>,
    _blocked: watch::Sender<Option<bool>>,
}

fn side(role: AgentRole, server: SocketAddr) -> QuicSide {
    let (tunnel, probes) = Tunnel::new();
    drop(probes);
    let (events_tx, events) = mpsc::channel(64);
    let blocked = watch::Sender::new(Some(false));
    let agents = CandidatePath::ALL.map(|path| {
        let relay = RelayCredentials { username: "user".into(), password: "password".into() };
        let config = IceAgentConfig {
            path,
            role,
            ufrag: format!("{role:?}"),
            pwd: "p".repeat(32),
            server,
            relay: Some(relay).filter(|_| path == CandidatePath::Relay),
            udp_blocked: blocked.subscribe(),
        };
        IceAgent::start(config, Arc::clone(&tunnel), events_tx.clone())
    });
    QuicSide { tunnel, agents, events, _blocked: blocked }
}

/// Forwards the candidates of one side to the other until both of its agents have selected a pair.
async fn exchange_candidates(from: &mut mpsc::Receiver<(CandidatePath, IceEvent)>, to: &[IceAgent; 2]) {
    let mut selected = 0;
    while selected < 2 {
        match from.recv().await.unwrap() {
            (path, IceEvent::Candidate(text)) => to[path as usize].add_candidate(text).await,
            (_, IceEvent::Selected(_)) => selected += 1,
            (_, IceEvent::Gathered) => {}
            (path, IceEvent::Failed) => panic!("{path:?} failed"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_survives_the_change_from_the_relay_to_the_direct_path() {
    let (turn, address) = turn_server().await;
    let (mut a, mut b) = (side(AgentRole::Connector, address), side(AgentRole::Listener, address));
    for agent in &a.agents {
        agent.start_checks("Listener".into(), "p".repeat(32)).await;
    }
    for agent in &b.agents {
        agent.start_checks("Connector".into(), "p".repeat(32)).await;
    }
    let both = async {
        tokio::join!(
            exchange_candidates(&mut a.events, &b.agents),
            exchange_candidates(&mut b.events, &a.agents)
        )
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("both paths work");

    let secret = Secret([3; SECRET_LEN]);
    a.tunnel.set_active(Some(CandidatePath::Relay));
    b.tunnel.set_active(Some(CandidatePath::Relay));
    let (client, server) = tokio::join!(
        handshake(Arc::clone(&a.tunnel), &secret, initial(3), AgentRole::Connector),
        handshake(Arc::clone(&b.tunnel), &secret, initial(3), AgentRole::Listener)
    );
    let (client, server) = (client.unwrap(), server.unwrap());

    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[1] ^ n.to_le_bytes()[0]).collect();
    let sending = async {
        let mut stream = client.connection.open_uni().await.unwrap();
        for (n, chunk) in sent.chunks(sent.len() / 4).enumerate() {
            stream.write_all(chunk).await.unwrap();
            let path = if n % 2 == 0 { CandidatePath::Direct } else { CandidatePath::Relay };
            a.tunnel.set_active(Some(path));
        }
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receiving = async {
        let mut stream = server.connection.accept_uni().await.unwrap();
        let mut received = Vec::new();
        while let Some(chunk) = stream.read_chunk(65_536, true).await.unwrap() {
            received.extend_from_slice(&chunk.bytes);
            if received.len() > 1_000_000 {
                b.tunnel.set_active(Some(CandidatePath::Direct));
            }
        }
        received
    };
    let moved = async { tokio::join!(sending, receiving).1 };
    let received = tokio::time::timeout(Duration::from_secs(30), moved).await.expect("everything moves");
    assert!(received == sent);

    for agent in a.agents.into_iter().chain(b.agents) {
        agent.close().await;
    }
    turn.close().await.unwrap();
}

fn initial(secret: u8) -> InitialKey {
    InitialKey::without_call(&Secret([secret; SECRET_LEN]))
}

/// A tunnel with an active path, without a network.
fn tunnel() -> Arc<Tunnel> {
    let (tunnel, _) = Tunnel::new();
    tunnel.set_active(Some(CandidatePath::Direct));
    tunnel
}

/// Delivers whatever `from` sends to each of `to` in turn.
fn wire(from: &Arc<Tunnel>, to: &[&Arc<Tunnel>]) {
    let (from, to) = (Arc::clone(from), to.iter().map(|to| Arc::clone(to)).collect::<Vec<_>>());
    tokio::spawn(async move {
        loop {
            let datagram = from.next_outgoing(CandidatePath::Direct).await;
            to.iter().for_each(|to| to.deliver(CandidatePath::Direct, &datagram));
        }
    });
}

/// Answers a client's first packet as a server with another version of QUIC would.
fn version_negotiation(initial: &[u8]) -> Vec<u8> {
    let (dcid, rest) = initial[6..].split_at(usize::from(initial[5]));
    let scid = &rest[1..=usize::from(rest[0])];
    let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
    [&[0xC0, 0, 0, 0, 0, len(scid)], scid, &[len(dcid)], dcid, &[0x0A; 4]].concat()
}

#[tokio::test]
async fn only_a_holder_of_the_ticket_can_start_or_end_the_handshake_of_a_call() {
    let (connector, listener) = (tunnel(), tunnel());
    let (false_connector, false_listener) = (tunnel(), tunnel());
    let secret = |byte| Secret([byte; SECRET_LEN]);
    for (tunnel, role) in [(&false_connector, AgentRole::Connector), (&false_listener, AgentRole::Listener)] {
        let tunnel = Arc::clone(tunnel);
        tokio::spawn(async move { handshake(tunnel, &secret(2), initial(2), role).await.map(drop) });
    }
    // The other endpoint sends the listener's first packet and answers the connector's.
    let first = false_connector.next_outgoing(CandidatePath::Direct).await;
    listener.deliver(CandidatePath::Direct, &first);
    wire(&false_connector, &[&listener]);
    wire(&false_listener, &[&connector]);
    wire(&listener, &[&connector]);
    let begin = async {
        let first = connector.next_outgoing(CandidatePath::Direct).await;
        connector.deliver(CandidatePath::Direct, &version_negotiation(&first));
        false_listener.deliver(CandidatePath::Direct, &first);
        wire(&connector, &[&false_listener, &listener]);
    };
    let secret = secret(1);
    let (client, server, ()) = tokio::join!(
        handshake(Arc::clone(&connector), &secret, initial(1), AgentRole::Connector),
        handshake(Arc::clone(&listener), &secret, initial(1), AgentRole::Listener),
        begin
    );
    assert!(client.is_ok(), "{:?}", client.err());
    assert!(server.is_ok(), "{:?}", server.err());
}

/// The keys of two calls by one ticket differ, though the certificates are the same.
#[tokio::test]
async fn packets_of_one_call_start_no_handshake_in_another() {
    let (connector, listener, other) = (tunnel(), tunnel(), tunnel());
    wire(&connector, &[&other, &listener]);
    wire(&listener, &[&connector]);
    wire(&other, &[&connector]);
    let secret = Secret([1; SECRET_LEN]);
    let in_vain = handshake(other, &secret, initial(7), AgentRole::Listener);
    let work = async {
        tokio::join!(
            handshake(connector, &secret, initial(1), AgentRole::Connector),
            handshake(listener, &secret, initial(1), AgentRole::Listener)
        )
    };
    tokio::select! {
        (client, server) = work => assert!(client.is_ok() && server.is_ok()),
        other = in_vain => panic!("{:?}", other.err()),
    }
}
