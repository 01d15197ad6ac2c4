//! A SOCKS 5 server ([RFC 1928](https://www.rfc-editor.org/rfc/rfc1928)) whose connections and datagrams go through the other side, which
//! also resolves the names. It asks for no password: only programs that reach its address can use it, which is on loopback by default.

use super::MAX_CONNECTIONS;
use super::copying::copy;
use super::flow::{Flow, FlowTable};
use super::link::Link;
use super::listening::{ForwardError, OnFailure, report};
use super::session::{OpenError, Session, read_reply};
use super::wire::{HostPort, Refusal, RefusalCode, Request, Target};
use fast_socks5::server::{Socks5ServerProtocol, states};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command, new_udp_header, parse_udp_request};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Time limit for a client to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The bound address in replies: that of the other side's socket does not concern the client.
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A client whose request was read.
type Client = Socks5ServerProtocol<TcpStream, states::CommandRead>;

/// Serves each client that the listener accepts. Beyond [`MAX_CONNECTIONS`] they wait in the listener's queue.
pub(crate) async fn serve(listener: TcpListener, link: Link, on_failure: OnFailure) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let (link, on_failure) = (link.clone(), Arc::clone(&on_failure));
        tokio::spawn(async move {
            let _permit = permit;
            handle_client(stream, &link, &on_failure).await;
        });
    }
}

async fn handle_client(stream: TcpStream, link: &Link, on_failure: &OnFailure) {
    let _ = stream.set_nodelay(true);
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let request = async { Socks5ServerProtocol::accept_no_auth(stream).await?.read_command().await };
    let (client, command, target) = match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tracing::debug!(%error, "no request of SOCKS 5"),
        Err(_) => return,
    };
    match (command, host_port(&target)) {
        (Socks5Command::TCPConnect, Some(target)) => {
            let target = Target::Tcp(target);
            if let Err(error) = connect(client, &target, link).await {
                report(&target, &error, on_failure);
            }
        }
        (Socks5Command::UDPAssociate, _) => {
            if let Err(error) = associate(client, [local.ip(), peer.ip()], link, on_failure).await {
                tracing::debug!(%error, "a UDP association has ended");
            }
        }
        (Socks5Command::TCPConnect, None) => {
            let _ = client.reply_error(&ReplyError::HostUnreachable).await;
        }
        (Socks5Command::TCPBind, _) => {
            let _ = client.reply_error(&ReplyError::CommandNotSupported).await;
        }
    }
}

fn host_port(target: &TargetAddr) -> Option<HostPort> {
    match target {
        TargetAddr::Ip(address) => HostPort::new(&address.ip().to_string(), address.port()),
        TargetAddr::Domain(name, port) => HostPort::new(name, *port),
    }
}

/// Returns the reply that stands for a failure (RFC 1928 section 6).
fn reply_code(error: &ForwardError) -> ReplyError {
    let ForwardError::Open(OpenError::Refused(refusal)) = error else {
        return ReplyError::NetworkUnreachable;
    };
    match refusal.code {
        RefusalCode::NotPermitted | RefusalCode::NoSuchService => ReplyError::ConnectionNotAllowed,
        RefusalCode::ConnectionRefused => ReplyError::ConnectionRefused,
        RefusalCode::TimedOut => ReplyError::ConnectionTimeout,
        RefusalCode::HostUnreachable => ReplyError::HostUnreachable,
        RefusalCode::Unsupported => ReplyError::CommandNotSupported,
        RefusalCode::Busy | RefusalCode::AddressInUse | RefusalCode::Failed => ReplyError::GeneralFailure,
    }
}

async fn connect(client: Client, target: &Target, link: &Link) -> Result<(), ForwardError> {
    let opened = async {
        let session = link.session().await.ok_or(ForwardError::NoSession)?;
        let (send, mut recv) = session.open(&Request::Connect(target.clone())).await?;
        read_reply(&mut recv).await?;
        Ok((session, (send, recv)))
    };
    match opened.await {
        Ok((session, stream)) => {
            let local = client.reply_success(UNSPECIFIED).await.map_err(closed)?;
            Ok(copy(local.into(), stream, &session.traffic, false).await?)
        }
        Err(error) => {
            let _ = client.reply_error(&reply_code(&error)).await;
            Err(error)
        }
    }
}

fn closed(error: fast_socks5::server::SocksServerError) -> OpenError {
    OpenError::Io(io::Error::new(io::ErrorKind::BrokenPipe, error))
}

/// Serves the datagrams of one client until its TCP connection ends (RFC 1928 section 7). That shows at which address the client reaches this
/// host, and where it sends from.
async fn associate(
    client: Client,
    [local, peer]: [IpAddr; 2],
    link: &Link,
    on_failure: &OnFailure,
) -> Result<(), OpenError> {
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
    socket.writable().await?;
    let mut stream = client.reply_success(socket.local_addr()?).await.map_err(closed)?;
    let mut rest = [0; 64];
    let ended = async { while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {} };
    tokio::select! {
        () = ended => {}
        () = exchange(Arc::new(socket), peer, link, on_failure) => {}
    }
    Ok(())
}

/// Forwards the datagrams of one client. Each of its ports has a flow for each target.
async fn exchange(socket: Arc<UdpSocket>, peer: IpAddr, link: &Link, on_failure: &OnFailure) {
    let mut flows = FlowTable::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        if source.ip() != peer {
            continue;
        }
        let Ok((fragment, address, payload)) = parse_udp_request(&buffer[..length]).await else { continue };
        // A server may drop fragments, and nobody sends them.
        let Some(target) = host_port(&address).filter(|_| fragment == 0) else { continue };
        let key = (source, target);
        if let Some(flow) = flows.get(&key) {
            flow.send(payload);
            continue;
        }
        let (Some(session), Ok(header)) = (link.current(), new_udp_header(address)) else { continue };
        let target = Target::Udp(key.1.clone());
        let opened = flows.insert(key, || open(&session, (&socket, source), &target, &header, on_failure));
        match opened {
            Ok(flow) => flow.send(payload),
            Err(error) => report(&target, &OpenError::from(error).into(), on_failure),
        }
    }
}

/// Opens a flow whose datagrams go back to the client with this header.
fn open(
    session: &Arc<Session>,
    (socket, client): (&Arc<UdpSocket>, SocketAddr),
    target: &Target,
    header: &[u8],
    on_failure: &OnFailure,
) -> Result<Flow, Refusal> {
    let (socket, header) = (Arc::clone(socket), header.to_owned());
    let deliver =
        move |payload: &[u8]| drop(socket.try_send_to(&[header.as_slice(), payload].concat(), client));
    let (failed, on_failure) = (target.clone(), Arc::clone(on_failure));
    Flow::open(session, target.clone(), deliver, move |error| report(&failed, &error.into(), &on_failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_reply_code() {
        let reply = |code| {
            let error = ForwardError::Open(OpenError::Refused(Refusal::new(code, "")));
            reply_code(&error).as_u8()
        };
        for (code, number) in [
            (RefusalCode::NotPermitted, 2),
            (RefusalCode::NoSuchService, 2),
            (RefusalCode::HostUnreachable, 4),
            (RefusalCode::ConnectionRefused, 5),
            (RefusalCode::TimedOut, 6),
            (RefusalCode::Unsupported, 7),
            (RefusalCode::Busy, 1),
        ] {
            assert_eq!(reply(code), number, "{code:?}");
        }
        assert_eq!(reply_code(&ForwardError::NoSession).as_u8(), 3);
    }

    #[test]
    fn a_name_of_a_client_that_no_host_can_have_is_none() {
        let name = |name: &str| host_port(&TargetAddr::Domain(name.to_owned(), 80));
        assert_eq!(name("a.example").unwrap().to_string(), "a.example:80");
        assert!(name("\u{1b}[2J").is_none() && name("").is_none() && name("a b").is_none());
        let address = TargetAddr::Ip("[2001:db8::1]:443".parse().unwrap());
        assert_eq!(host_port(&address).unwrap().to_string(), "[2001:db8::1]:443");
    }
}
