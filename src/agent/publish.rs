//! Publishes a TCP service at a gateway under a server id, and connects byte streams to one.

use super::config::ServerName;
use crate::gateway::client::{AcceptError, ConnectionError, Endpoint, Raw, VirtualConnection, VirtualStream};
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CHUNK: usize = 32 * 1024;
/// Time limit for the published service to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client's connection to the published service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceConnection {
    /// The number of the client at the gateway.
    pub(crate) client: u32,
    /// The number of the virtual connection.
    pub(crate) conn: u32,
}

/// A change of a [`ServiceConnection`].
#[derive(Debug)]
pub(crate) enum ServiceEvent {
    /// The service has accepted it.
    Opened,
    /// Both directions have ended.
    Closed {
        /// Bytes to the client.
        sent: u64,
        /// Bytes from the client.
        received: u64,
    },
    /// The service does not accept connections.
    Unreachable(io::Error),
    /// One of the two ends reset it.
    Broken(io::Error),
}

impl fmt::Display for ServiceConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} · virtual connection {}", self.client, self.conn)
    }
}

/// Connects every client that dials this server to the TCP service `to`, each with a TCP connection of its own, and reports to `on_event`.
/// Returns when the endpoint ends; a connection ends together with the gateway that it came through.
pub(crate) async fn publish(
    endpoint: &Endpoint<Raw>,
    to: &ServerName,
    on_event: impl Fn(ServiceConnection, ServiceEvent) + Clone + Send + Sync + 'static,
) -> ConnectionError {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = endpoint.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(connection) => {
                let (to, on_event) = (to.clone(), on_event.clone());
                connections.spawn(async move {
                    let service = ServiceConnection { client: connection.remote(), conn: connection.id() };
                    let end = serve(connection, &to, || on_event(service, ServiceEvent::Opened)).await;
                    on_event(service, end);
                });
            }
            Err(AcceptError(loss)) => return loss,
        }
    }
}

async fn serve(connection: VirtualConnection<Raw>, to: &ServerName, opened: impl FnOnce()) -> ServiceEvent {
    let service = timeout(CONNECT_TIMEOUT, TcpStream::connect((to.host.as_str(), to.port))).await;
    let service = match service.unwrap_or_else(|elapsed| Err(elapsed.into())) {
        Ok(service) => service,
        Err(error) => return ServiceEvent::Unreachable(error),
    };
    opened();
    let _ = service.set_nodelay(true);
    match bridge(connection.into_stream(), service).await {
        Ok((sent, received)) => ServiceEvent::Closed { sent, received },
        Err(error) => ServiceEvent::Broken(error),
    }
}

/// Copies between a virtual connection and another stream until both directions have ended. Returns the number of bytes into the virtual
/// connection and out of it.
///
/// # Errors
/// The first I/O error of either.
pub(crate) async fn bridge(
    mut gateway: VirtualStream,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<(u64, u64)> {
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut gateway, CHUNK, CHUNK).await;
    copied.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionReset if error.get_ref().is_none() => {
            io::Error::new(error.kind(), "reset by the other end")
        }
        _ => error,
    })
}
