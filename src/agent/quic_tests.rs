//! Two sides in one process: ICE engines over loopback, candidates exchanged by the test, QUIC over the path that they select.

use super::*;
use crate::agent::candidate::CandidatePath;
use crate::agent::config::ServerName;
use crate::agent::connection::{Connection, PathHandle, ServerProbe};
use crate::agent::datagram_queue::DatagramQueue;
use crate::agent::engine::{
    Engine, EngineCommand, EngineConfig, EngineEvent, IceImplementation, RelayCredentials,
};
use crate::agent::error::DatagramError;
use crate::agent::keys::SECRET_LEN;
use crate::agent::path::PathPolicy;
use crate::agent::webrtc_engine;
use crate::ice::IceCredentials;
use crate::net::dialer::Dialer;
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        net: webrtc_engine::system_net(),
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
    endpoint: QuicEndpoint,
    engine: Engine,
    events: mpsc::Receiver<EngineEvent>,
}

fn side(
    role: AgentRole,
    implementation: IceImplementation,
    policy: PathPolicy,
    server: SocketAddr,
) -> QuicSide {
    let (tunnel, messages) = Tunnel::new(Some(server));
    let endpoint = QuicEndpoint::new(Arc::clone(&tunnel)).unwrap();
    let (engine, events) = Engine::start(config(implementation, policy, server), tunnel, messages);
    let relay = RelayCredentials { username: "user".into(), password: "password".into() };
    engine.send(EngineCommand::Relay(Some(relay)));
    engine.send(EngineCommand::Begin(role, credentials(role)));
    QuicSide { endpoint, engine, events }
}

fn config(implementation: IceImplementation, policy: PathPolicy, server: SocketAddr) -> EngineConfig {
    let name = ServerName { host: server.ip().to_string(), port: server.port(), tls: false };
    EngineConfig {
        is_ping: false,
        implementation,
        policy,
        server,
        name,
        further_servers: Vec::new(),
        key: None,
        dialer: Dialer::default(),
        port_mapping: false,
        is_spray_allowed: true,
    }
}

fn credentials(role: AgentRole) -> IceCredentials {
    IceCredentials::new(&format!("{role:?}"), &"p".repeat(32)).unwrap()
}

/// Forwards the candidates of one side to the other, and returns the first path.
async fn exchange_candidates(from: &mut mpsc::Receiver<EngineEvent>, to: &Engine) -> CandidatePath {
    loop {
        match from.recv().await.unwrap() {
            EngineEvent::Candidate(text) => to.send(EngineCommand::Candidate(text)),
            EngineEvent::Selected(active) => return active.path,
            EngineEvent::Failed => panic!("the engine failed"),
            _ => {}
        }
    }
}

async fn transfer(implementations: [IceImplementation; 2], policy: PathPolicy, expected: CandidatePath) {
    let (turn, address) = turn_server().await;
    let (mut a, mut b) = (
        side(AgentRole::Connector, implementations[0], policy, address),
        side(AgentRole::Listener, implementations[1], policy, address),
    );
    a.engine.send(EngineCommand::Start(credentials(AgentRole::Listener)));
    b.engine.send(EngineCommand::Start(credentials(AgentRole::Connector)));
    let both = async {
        tokio::join!(
            exchange_candidates(&mut a.events, &b.engine),
            exchange_candidates(&mut b.events, &a.engine)
        )
    };
    let paths = tokio::time::timeout(Duration::from_secs(20), both).await.expect("a path works");
    if policy != PathPolicy::All {
        assert_eq!(paths, (expected, expected), "{implementations:?}");
    }

    let secret = Secret([3; SECRET_LEN]);
    let (key_a, key_b) = (initial(3), initial(3));
    let (client, server) = tokio::join!(
        a.endpoint.clone().handshake(&secret, &key_a, AgentRole::Connector),
        b.endpoint.clone().handshake(&secret, &key_b, AgentRole::Listener)
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[1] ^ n.to_le_bytes()[0]).collect();
    let sending = async {
        let mut stream = client.connection.open_uni().await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receiving = async {
        let mut stream = server.connection.accept_uni().await.unwrap();
        stream.read_to_end(sent.len()).await.unwrap()
    };
    let moved = async { tokio::join!(sending, receiving).1 };
    let received = tokio::time::timeout(Duration::from_secs(30), moved).await.expect("everything moves");
    assert!(received == sent);
    for side in [&client, &server] {
        assert!(
            side.connection.stats().frame_tx.ack_frequency > 0,
            "fewer acknowledgements were not requested"
        );
    }
    a.engine.close().await;
    b.engine.close().await;
    turn.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_connect_to_each_other_and_to_themselves() {
    use IceImplementation::{Ginnel, WebRtc};
    for implementations in [[Ginnel, Ginnel], [Ginnel, WebRtc], [WebRtc, Ginnel], [WebRtc, WebRtc]] {
        transfer(implementations, PathPolicy::DirectOnly, CandidatePath::Direct).await;
        transfer(implementations, PathPolicy::All, CandidatePath::Direct).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_flows_through_a_relay_of_the_crate_turn() {
    use IceImplementation::{Ginnel, WebRtc};
    for implementations in [[Ginnel, Ginnel], [WebRtc, WebRtc]] {
        transfer(implementations, PathPolicy::RelayOnly, CandidatePath::Relay).await;
    }
}

fn initial(secret: u8) -> InitialKey {
    InitialKey::without_call(&Secret([secret; SECRET_LEN]))
}

/// A tunnel whose datagrams the test forwards.
struct TestTunnel {
    tunnel: Arc<Tunnel>,
    queue: Arc<DatagramQueue>,
}

impl TestTunnel {
    fn new() -> Self {
        let queue = Arc::new(DatagramQueue::default());
        Self { tunnel: Tunnel::with_queue(Arc::clone(&queue)), queue }
    }

    async fn handshake(
        &self,
        secret: &Secret,
        initial: InitialKey,
        role: AgentRole,
    ) -> Result<QuicConnection, ConnectError> {
        QuicEndpoint::new(Arc::clone(&self.tunnel))?.handshake(secret, &initial, role).await
    }
}

/// Delivers whatever `from` sends to each of `to` in turn.
fn wire(from: &TestTunnel, to: &[&TestTunnel]) -> tokio::task::JoinHandle<()> {
    let from = Arc::clone(&from.queue);
    let to: Vec<_> = to.iter().map(|to| Arc::clone(&to.tunnel)).collect();
    tokio::spawn(async move {
        loop {
            let datagram = from.next().await;
            to.iter().for_each(|to| to.deliver(datagram.clone()));
        }
    })
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
    let (connector, listener) = (TestTunnel::new(), TestTunnel::new());
    let (false_connector, false_listener) = (TestTunnel::new(), TestTunnel::new());
    let secret = |byte| Secret([byte; SECRET_LEN]);
    for (side, role) in [(&false_connector, AgentRole::Connector), (&false_listener, AgentRole::Listener)] {
        let endpoint = QuicEndpoint::new(Arc::clone(&side.tunnel)).unwrap();
        tokio::spawn(async move { endpoint.handshake(&secret(2), &initial(2), role).await.map(drop) });
    }
    // The other endpoint sends the listener's first packet and answers the connector's.
    listener.tunnel.deliver(false_connector.queue.next().await);
    wire(&false_connector, &[&listener]);
    wire(&false_listener, &[&connector]);
    wire(&listener, &[&connector]);
    let begin = async {
        let first = connector.queue.next().await;
        connector.tunnel.deliver(Bytes::from(version_negotiation(&first)));
        false_listener.tunnel.deliver(first);
        wire(&connector, &[&false_listener, &listener]);
    };
    let secret = secret(1);
    let (client, server, ()) = tokio::join!(
        connector.handshake(&secret, initial(1), AgentRole::Connector),
        listener.handshake(&secret, initial(1), AgentRole::Listener),
        begin
    );
    assert!(client.is_ok(), "{:?}", client.err());
    assert!(server.is_ok(), "{:?}", server.err());
}

/// Its last acknowledgement and its close are lost, and it has left.
#[tokio::test]
async fn a_side_whose_peer_has_used_everything_and_left_has_finished() {
    let (connector, listener) = (TestTunnel::new(), TestTunnel::new());
    let wires = [wire(&connector, &[&listener]), wire(&listener, &[&connector])];
    let secret = Secret([1; SECRET_LEN]);
    let (client, server) = tokio::join!(
        connector.handshake(&secret, initial(1), AgentRole::Connector),
        listener.handshake(&secret, initial(1), AgentRole::Listener)
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    let mut done = server.connection.open_uni().await.unwrap();
    done.write_all(b"done").await.unwrap();
    done.finish().unwrap();
    done.stopped().await.unwrap();
    wires.iter().for_each(tokio::task::JoinHandle::abort);
    Connection::new(client, path_handle()).finish().await.unwrap();
}

/// Returns both ends of a connection in this process.
pub(crate) async fn connection_pair() -> [Connection; 2] {
    let (connector, listener) = (TestTunnel::new(), TestTunnel::new());
    wire(&connector, &[&listener]);
    wire(&listener, &[&connector]);
    let secret = Secret([1; SECRET_LEN]);
    let (client, server) = tokio::join!(
        connector.handshake(&secret, initial(1), AgentRole::Connector),
        listener.handshake(&secret, initial(1), AgentRole::Listener)
    );
    [client.unwrap(), server.unwrap()].map(|side| Connection::new(side, path_handle()))
}

fn path_handle() -> PathHandle {
    let (path, signaling_lost) = (watch::channel(None).1, watch::channel(false).1);
    let probe = ServerProbe::new(&config(IceImplementation::Ginnel, PathPolicy::All, PEER));
    PathHandle::new(path, signaling_lost, probe, mpsc::channel(1).0, tokio::spawn(async {}))
}

#[tokio::test]
async fn datagrams_are_exchanged_up_to_the_size_of_the_path() {
    let [client, server] = connection_pair().await;
    let largest = client.max_datagram_size().unwrap();
    assert!(largest > 1100, "{largest}");
    for length in [0, 1, largest] {
        client.send_datagram(Bytes::from(vec![7; length])).unwrap();
        assert_eq!(server.read_datagram().await.unwrap(), vec![7; length]);
    }
    let too_large = client.send_datagram(Bytes::from(vec![7; 2000]));
    assert!(matches!(too_large, Err(DatagramError::TooLarge)), "{too_large:?}");
    client.abort("the end").await;
    assert!(server.read_datagram().await.is_err());
    assert!(matches!(server.send_datagram(Bytes::new()), Err(DatagramError::Connection(_))));
}

/// The opener gives up before the first byte of the stream has arrived.
#[tokio::test]
async fn a_stream_that_is_reset_at_once_does_not_end_the_connection() {
    let [client, server] = connection_pair().await;
    for _ in 0..20 {
        drop(client.open_bi().await.unwrap());
    }
    let (mut send, _recv) = client.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().await.unwrap();
    loop {
        let (_send, mut recv) = server.accept_bi().await.unwrap();
        let mut text = String::new();
        if recv.read_to_string(&mut text).await.is_ok() && text == "hello" {
            return;
        }
    }
}

/// The keys of two calls by one ticket differ, though the certificates are the same.
#[tokio::test]
async fn packets_of_one_call_start_no_handshake_in_another() {
    let (connector, listener, other) = (TestTunnel::new(), TestTunnel::new(), TestTunnel::new());
    wire(&connector, &[&other, &listener]);
    wire(&listener, &[&connector]);
    wire(&other, &[&connector]);
    let secret = Secret([1; SECRET_LEN]);
    let in_vain = other.handshake(&secret, initial(7), AgentRole::Listener);
    let work = async {
        tokio::join!(
            connector.handshake(&secret, initial(1), AgentRole::Connector),
            listener.handshake(&secret, initial(1), AgentRole::Listener)
        )
    };
    tokio::select! {
        (client, server) = work => assert!(client.is_ok() && server.is_ok()),
        other = in_vain => panic!("{:?}", other.err()),
    }
}
