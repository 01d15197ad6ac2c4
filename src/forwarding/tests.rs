//! Both sides in one process, with real sockets on loopback.

use super::link::{Link, LinkSetter, link};
use super::listening::{OnFailure, forward_datagrams, forward_streams};
use super::local_socket::{LocalAddress, LocalListener};
use super::policy::{ListenRule, Policy, Service, ServiceTarget};
use super::session::{OpenError, Session};
use super::sharing::{self, SharingEvent};
use super::wire::{HostPort, RefusalCode, Target, Transport};
use super::{flow, reverse, socks};
use crate::agent::connection_pair;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const LOCALHOST: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const LONG: Duration = Duration::from_secs(20);

/// A connection with one side that shares and one that forwards.
struct Pair {
    forwarder: Arc<Session>,
    sharer: Arc<Session>,
    setter: LinkSetter,
    link: Link,
    on_failure: OnFailure,
    failures: mpsc::UnboundedReceiver<String>,
    events: mpsc::UnboundedReceiver<SharingEvent>,
}

async fn pair(policy: Policy) -> Pair {
    pair_with(policy, HashMap::new()).await
}

async fn pair_with(policy: Policy, targets: HashMap<u32, ServiceTarget>) -> Pair {
    let (setter, link) = link();
    let (failed, failures) = mpsc::unbounded_channel();
    let (event, events) = mpsc::unbounded_channel();
    let [forwarder, sharer] = connection_pair().await.map(Session::new);
    serve(&sharer, policy, event);
    let serving = Arc::clone(&forwarder);
    tokio::spawn(async move { reverse::serve(&serving, Arc::new(targets), Arc::new(|_, _| {})).await });
    setter.set(Some(Arc::clone(&forwarder)));
    let on_failure: OnFailure =
        Arc::new(move |target, error| drop(failed.send(format!("{target}: {error}"))));
    Pair { forwarder, sharer, setter, link, on_failure, failures, events }
}

fn serve(sharer: &Arc<Session>, policy: Policy, event: mpsc::UnboundedSender<SharingEvent>) {
    let (sharer, policy) = (Arc::clone(sharer), Arc::new(policy));
    tokio::spawn(async move {
        sharing::serve(&sharer, &policy, Arc::new(move |happened| drop(event.send(happened)))).await
    });
}

fn policy(name: &str, target: ServiceTarget) -> Policy {
    let mut policy = Policy::default();
    policy.add(Service { name: name.to_owned(), target }).unwrap();
    policy
}

fn host_port(address: SocketAddr) -> HostPort {
    address.to_string().parse().unwrap()
}

fn service(name: &str) -> Target {
    Target::Service(name.to_owned())
}

impl Pair {
    /// Forwards a local TCP port to a target.
    async fn forward(&self, target: Target) -> SocketAddr {
        let at = LocalAddress::Ip(LOCALHOST.into());
        let listener = LocalListener::bind(&at).await.unwrap();
        let LocalAddress::Ip(address) = listener.address().unwrap() else { panic!("no port") };
        tokio::spawn(forward_streams(listener, target, self.link.clone(), Arc::clone(&self.on_failure)));
        address
    }

    /// Forwards a local UDP port to a target.
    async fn forward_udp(&self, target: Target) -> SocketAddr {
        let socket = UdpSocket::bind(LOCALHOST).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(forward_datagrams(socket, target, self.link.clone(), Arc::clone(&self.on_failure)));
        address
    }
}

/// A TCP service and a policy that shares it as `tcp`.
async fn tcp_service() -> (TcpListener, Policy) {
    let listener = TcpListener::bind(LOCALHOST).await.unwrap();
    let target = ServiceTarget::Tcp(host_port(listener.local_addr().unwrap()));
    (listener, policy("tcp", target))
}

async fn connected(at: SocketAddr, service: &TcpListener) -> (TcpStream, TcpStream) {
    let (client, server) = tokio::join!(TcpStream::connect(at), service.accept());
    (client.unwrap(), server.unwrap().0)
}

#[tokio::test]
async fn each_direction_of_a_connection_ends_on_its_own() {
    let (listener, policy) = tcp_service().await;
    let pair = pair(policy).await;
    let at = pair.forward(service("tcp")).await;
    for client_ends_first in [true, false] {
        let (client, server) = connected(at, &listener).await;
        let (mut first, mut second) = if client_ends_first { (client, server) } else { (server, client) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut text = String::new();
        second.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        // The other direction goes on after that end.
        let long = vec![7; 3_000_000];
        let writing = async {
            second.write_all(&long).await.unwrap();
            second.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(writing, first.read_to_end(&mut got));
        read.unwrap();
        assert!(got == long, "{} bytes", got.len());
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_in_both_directions() {
    let (listener, policy) = tcp_service().await;
    let pair = pair(policy).await;
    let at = pair.forward(service("tcp")).await;
    for by_client in [true, false] {
        for half_closed in [true, false] {
            let (client, server) = connected(at, &listener).await;
            let (mut resetting, mut other) = if by_client { (client, server) } else { (server, client) };
            resetting.write_all(b"x").await.unwrap();
            other.read_exact(&mut [0]).await.unwrap();
            if half_closed {
                resetting.shutdown().await.unwrap();
                assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
            }
            socket2::SockRef::from(&resetting).set_linger(Some(Duration::ZERO)).unwrap();
            drop(resetting);
            let ended = async {
                loop {
                    // After a half-close the end of input has been read: only writing shows the reset.
                    match half_closed {
                        true => other.write_all(b"y").await?,
                        false => assert_ne!(other.read(&mut [0]).await?, 0, "an end in place of a reset"),
                    }
                    tokio::task::yield_now().await;
                }
            };
            let ended: std::io::Result<()> = timeout(LONG, ended).await.expect("the reset arrives");
            let kind = ended.unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind}");
        }
    }
}

#[tokio::test]
async fn unix_sockets_are_forwarded_and_an_abandoned_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (remote, local) = (folder.path().join("remote.sock"), folder.path().join("local.sock"));
    let listener = UnixListener::bind(&remote).unwrap();
    let target = ServiceTarget::Unix(remote.to_str().unwrap().to_owned());
    let pair = pair(policy("db", target)).await;
    drop(UnixListener::bind(&local).unwrap());
    let bound = LocalListener::bind(&LocalAddress::Unix(local.clone())).await.unwrap();
    let forwarding =
        tokio::spawn(forward_streams(bound, service("db"), pair.link.clone(), Arc::clone(&pair.on_failure)));
    let (client, server) = tokio::join!(UnixStream::connect(&local), listener.accept());
    let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let again = LocalListener::bind(&LocalAddress::Unix(local.clone())).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
    forwarding.abort();
    let _ = forwarding.await;
    assert!(!local.exists(), "the file is removed");
    std::fs::write(&local, "a file").unwrap();
    assert!(LocalListener::bind(&LocalAddress::Unix(local)).await.is_err(), "a file is not replaced");
}

/// Sends back what it gets.
async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind(LOCALHOST).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn datagrams_of_every_size_come_back_to_their_source() {
    let echo = udp_echo().await;
    let pair = pair(policy("dns", ServiceTarget::Udp(host_port(echo)))).await;
    let at = pair.forward_udp(service("dns")).await;
    for source in 0..3_u8 {
        let client = UdpSocket::bind(LOCALHOST).await.unwrap();
        client.connect(at).await.unwrap();
        // The first goes before the flow is known; 1452 is WireGuard's at an MTU of 1420; 60000 needs many packets.
        for length in [1, 100, 1100, 1452, 4096, 60_000, 0] {
            let sent = vec![source; length];
            client.send(&sent).await.unwrap();
            let mut got = vec![0; 65_536];
            let received = timeout(LONG, client.recv(&mut got)).await.expect("an answer").unwrap();
            assert!(got[..received] == sent, "{received} of {length} bytes");
        }
    }
    assert_eq!(pair.forwarder.traffic.dropped.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(pair.sharer.traffic.connections.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_full_table_of_flows_replaces_the_one_that_is_idle_for_longest() {
    let echo = udp_echo().await;
    let pair = pair(policy("dns", ServiceTarget::Udp(host_port(echo)))).await;
    let mut table = flow::FlowTable::new();
    for number in 0..super::MAX_FLOWS + 10 {
        let flow = table.insert(number, || flow::Flow::open(&pair.forwarder, service("dns"), |_| {}, |_| {}));
        assert!(flow.is_ok(), "{number}");
        assert!(table.get(&number).is_some());
    }
    let left = (0..super::MAX_FLOWS + 10).filter(|number| table.get(number).is_some()).count();
    assert!(left <= super::MAX_FLOWS, "{left}");
}

#[tokio::test]
async fn what_is_not_shared_is_refused_with_its_reason() {
    let (listener, policy) = tcp_service().await;
    let open = TcpListener::bind(LOCALHOST).await.unwrap();
    let mut pair = pair(policy).await;
    let not_shared = Target::Tcp(host_port(open.local_addr().unwrap()));
    for (target, code) in [
        (service("other"), RefusalCode::NoSuchService),
        (not_shared.clone(), RefusalCode::NotPermitted),
        (Target::Unix("/run/x.sock".to_owned()), RefusalCode::NotPermitted),
    ] {
        let refused = pair.forwarder.query(&target).await;
        assert!(matches!(&refused, Err(OpenError::Refused(refusal)) if refusal.code == code), "{refused:?}");
        let Some(SharingEvent::Refused(seen, _)) = pair.events.recv().await else { panic!("no event") };
        assert_eq!(seen, target);
        let at = pair.forward(target.clone()).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let read = timeout(LONG, client.read(&mut [0])).await.expect("an end");
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let failure = pair.failures.recv().await.unwrap();
        assert!(failure.starts_with(&target.to_string()) && failure.contains("shared"), "{failure}");
        pair.events.recv().await.unwrap();
    }
    let permitted = pair.forwarder.query(&service("tcp")).await;
    assert!(matches!(permitted, Ok(Transport::Tcp)), "{permitted:?}");
    // A flow to a TCP service, and a service that is gone.
    drop(listener);
    let at = pair.forward(service("tcp")).await;
    let _client = TcpStream::connect(at).await.unwrap();
    assert_eq!(pair.failures.recv().await.unwrap(), "tcp: nothing listens there");
    let at = pair.forward_udp(service("tcp")).await;
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    client.send_to(b"x", at).await.unwrap();
    assert_eq!(pair.failures.recv().await.unwrap(), "tcp: it is no UDP service: leave out /udp");
    // Nobody has come to what was not shared.
    assert!(timeout(Duration::ZERO, open.accept()).await.is_err());
}

#[tokio::test]
async fn the_sharing_side_listens_only_where_it_permits_and_reaches_only_the_named_target() {
    let target = TcpListener::bind(LOCALHOST).await.unwrap();
    let targets = HashMap::from([(7, ServiceTarget::Tcp(host_port(target.local_addr().unwrap())))]);
    let forbidding = pair(Policy::default()).await;
    let refused = reverse::request_listener(&forbidding.forwarder, 7, (String::new(), 0)).await;
    assert!(
        matches!(&refused, Err(OpenError::Refused(refusal)) if refusal.code == RefusalCode::NotPermitted)
    );

    let mut policy = Policy::default();
    policy.allow_listen(ListenRule::LOOPBACK);
    let mut pair = pair_with(policy, targets).await;
    let listener = reverse::request_listener(&pair.forwarder, 7, (String::new(), 0)).await.unwrap();
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, listener.port).into();
    let Some(SharingEvent::Listening(seen)) = pair.events.recv().await else { panic!("no event") };
    assert_eq!(seen, at);
    let taken = reverse::request_listener(&pair.forwarder, 8, (String::new(), listener.port)).await;
    assert!(matches!(&taken, Err(OpenError::Refused(refusal)) if refusal.code == RefusalCode::AddressInUse));
    let (mut client, mut server) = connected(at, &target).await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    // Another number than one that was asked for leads nowhere, and neither does any other request.
    for request in
        [super::wire::Request::Incoming { listener: 9 }, super::wire::Request::Connect(service("x"))]
    {
        let (_send, mut recv) = pair.sharer.open(&request).await.unwrap();
        let refused = super::session::read_reply(&mut recv).await;
        assert!(
            matches!(&refused, Err(OpenError::Refused(refusal)) if refusal.code == RefusalCode::NotPermitted)
        );
    }
    drop(listener);
    let closed = async { while TcpStream::connect(at).await.is_ok() {} };
    timeout(LONG, closed).await.expect("the listener ends with its stream");
}

#[tokio::test]
async fn after_a_loss_old_connections_are_reset_and_new_ones_wait_for_the_next_session() {
    let (listener, policy) = tcp_service().await;
    let pair = pair(policy.clone()).await;
    let at = pair.forward(service("tcp")).await;
    let (mut client, mut server) = connected(at, &listener).await;
    client.write_all(b"x").await.unwrap();
    server.read_exact(&mut [0]).await.unwrap();
    pair.setter.set(None);
    pair.sharer.connection().shut_down("a loss").await;
    for end in [&mut client, &mut server] {
        let read = timeout(LONG, end.read(&mut [0])).await.expect("an end");
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    // The local socket still accepts, and the connection goes on when there is a session.
    let mut waiting = TcpStream::connect(at).await.unwrap();
    waiting.write_all(b"hello").await.unwrap();
    let [forwarder, sharer] = connection_pair().await.map(Session::new);
    serve(&sharer, policy, mpsc::unbounded_channel().0);
    pair.setter.set(Some(forwarder));
    let (mut server, _) = timeout(LONG, listener.accept()).await.expect("a connection").unwrap();
    let mut text = [0; 5];
    server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
}

#[tokio::test]
async fn a_socks_client_connects_and_sends_datagrams_from_the_other_side() {
    let (listener, mut policy) = tcp_service().await;
    let echo = udp_echo().await;
    policy.add(Service { name: "udp".to_owned(), target: ServiceTarget::Udp(host_port(echo)) }).unwrap();
    let pair = pair(policy).await;
    let socks = TcpListener::bind(LOCALHOST).await.unwrap();
    let at = socks.local_addr().unwrap();
    tokio::spawn(socks::serve(socks, pair.link.clone(), Arc::clone(&pair.on_failure)));
    let request = async |command: u8, port: u16| {
        let mut client = TcpStream::connect(at).await.unwrap();
        let name = b"localhost";
        let request = [&[5, 1, 0, 5, command, 0, 3, 9][..], name, &port.to_be_bytes()].concat();
        client.write_all(&request).await.unwrap();
        let mut reply = [0; 12];
        client.read_exact(&mut reply).await.unwrap();
        (client, reply)
    };
    let (mut client, reply) = request(1, listener.local_addr().unwrap().port()).await;
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    client.write_all(b"hello").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut text = [0; 5];
    server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
    let (_, reply) = request(1, 1).await;
    assert_eq!(reply[3], 2, "what is not shared is not allowed");
    let (_, reply) = request(2, 1).await;
    assert_eq!(reply[3], 7, "BIND is not supported");

    let (association, reply) = request(3, 1).await;
    assert_eq!(reply[3], 0);
    let udp = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_be_bytes([reply[10], reply[11]])));
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    let header = [&[0, 0, 0, 1, 127, 0, 0, 1][..], &echo.port().to_be_bytes()].concat();
    let datagram = [&header, &b"ping"[..]].concat();
    client.send_to(&datagram, udp).await.unwrap();
    let mut got = [0; 100];
    let (length, _) = timeout(LONG, client.recv_from(&mut got)).await.expect("an answer").unwrap();
    assert_eq!(got[..length], datagram);
    drop(association);
    // The association ends with its connection: its port is free again.
    let ended = async {
        while UdpSocket::bind(udp).await.is_err() {
            tokio::task::yield_now().await
        }
    };
    timeout(LONG, ended).await.expect("the association ends");
}
