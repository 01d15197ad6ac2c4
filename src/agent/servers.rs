//! Which of several servers an agent uses: the first that answers.
//!
//! Connections are attempted as RFC 8305 has it for the addresses of one name: each attempt starts when the one before fails, or after [`STAGGER`].
//! A listener has the same tag on every server, so that the other side finds it wherever it has registered.

use super::config::ServerName;
use super::error::RegistrationError;
use super::signaling_client::{self, Registered, RegistrationParams, ServerEvent, SignalingClient};
use crate::net::dialer::{self, Dialer, Duplex};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most servers of an agent and of a ticket.
pub(super) const MAX_SERVERS: usize = 4;
/// The delay before the next server is tried.
const STAGGER: Duration = Duration::from_millis(250);
const QUEUE: usize = 64;
/// How long the lookup of a server's name may take that a proxy resolves too.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// The address of a server that only the proxy can resolve: the IPv4 dummy address of RFC 7600 section 4.8, to which nothing is forwarded.
const UNKNOWN_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// An open connection to a server, without a registration.
pub(super) struct ServerStream {
    pub(super) stream: Box<dyn Duplex>,
    pub(super) address: SocketAddr,
    /// The local address of the connection.
    pub(super) local: Option<IpAddr>,
}

/// A registered connection to a server.
pub(super) struct ServerSession {
    pub(super) name: ServerName,
    pub(super) client: SignalingClient,
    pub(super) registered: Registered,
    pub(super) address: SocketAddr,
    /// The local address of the connection.
    pub(super) local: Option<IpAddr>,
}

/// Connects to the server that answers first; returns its index.
pub(super) async fn connect_first(
    dialer: &Dialer,
    servers: &[ServerName],
) -> Result<(usize, ServerStream), RegistrationError> {
    let mut waiting = servers.iter().cloned().enumerate();
    let mut attempts = JoinSet::new();
    let mut last = RegistrationError::NoServer;
    loop {
        let next = waiting.next();
        let delay = if next.is_some() { STAGGER } else { Duration::MAX };
        if let Some((index, server)) = next {
            let dialer = dialer.clone();
            attempts.spawn(async move { connect(&dialer, &server).await.map(|stream| (index, stream)) });
        }
        match timeout(delay, attempts.join_next()).await {
            Ok(Some(Ok(Ok(connected)))) => return Ok(connected),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(None) => return Err(last),
            Ok(Some(Err(_))) | Err(_) => {}
        }
    }
}

/// Registers with the first server that answers and accepts the registration.
pub(super) async fn register(
    dialer: &Dialer,
    mut servers: Vec<ServerName>,
    registration: &RegistrationParams,
) -> Result<(ServerSession, mpsc::Receiver<ServerEvent>), RegistrationError> {
    let mut refused = None;
    loop {
        let (index, opened) = match connect_first(dialer, &servers).await {
            Ok(connected) => connected,
            Err(error) => return Err(refused.unwrap_or(error)),
        };
        let name = servers.remove(index);
        let ServerStream { stream, address, local } = opened;
        let (events, events_rx) = mpsc::channel(QUEUE);
        match SignalingClient::open(stream, &name, registration, events).await {
            Ok((client, registered)) => {
                return Ok((ServerSession { name, client, registered, address, local }, events_rx));
            }
            Err(error) => refused = Some(RegistrationError::from_signaling(&name.to_string(), error)),
        }
    }
}

async fn connect(dialer: &Dialer, server: &ServerName) -> Result<ServerStream, RegistrationError> {
    let dialed = signaling_client::connect(dialer, server).await;
    let dialed = dialed.map_err(|error| RegistrationError::from_signaling(&server.to_string(), error))?;
    let address = match dialed.remote {
        Some(address) => address,
        None => look_up_behind_proxy(server).await,
    };
    Ok(ServerStream { stream: dialed.stream, address, local: dialed.local.map(|local| local.ip()) })
}

/// Returns the address of a server that is reached through a proxy, for its UDP ports; [`UNKNOWN_SERVER`] if its name cannot be resolved.
async fn look_up_behind_proxy(server: &ServerName) -> SocketAddr {
    let found = timeout(LOOKUP_TIMEOUT, dialer::resolve(&server.host, server.port)).await;
    let first = found.ok().and_then(Result::ok).and_then(|addresses| addresses.into_iter().next());
    first.unwrap_or((UNKNOWN_SERVER, server.port).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    fn name(address: SocketAddr) -> ServerName {
        ServerName { host: address.ip().to_string(), port: address.port(), tls: false }
    }

    #[tokio::test]
    async fn a_server_that_refuses_or_is_silent_does_not_keep_the_next_one_from_being_tried() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // A queue that is full answers no SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let _fills = TcpStream::connect(silent).await.unwrap();
        let dialer = Dialer::default();
        for servers in [&[address][..], &[closed, address], &[silent, address], &[silent, closed, address]] {
            let servers: Vec<ServerName> = servers.iter().copied().map(name).collect();
            let (index, opened) = connect_first(&dialer, &servers).await.unwrap();
            assert_eq!((index, opened.address), (servers.len() - 1, address));
        }
        let error = connect_first(&dialer, &[name(closed)]).await.err().unwrap();
        assert!(matches!(error, RegistrationError::Unreachable { .. }), "{error}");
        assert!(matches!(connect_first(&dialer, &[]).await.err().unwrap(), RegistrationError::NoServer));
    }
}
