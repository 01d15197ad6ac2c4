//! A TCP service of this network, published at a gateway under a server's id; and any stream through the gateway to one.

use super::config::ServerName;
use crate::gateway::client::{AcceptError, Endpoint, Loss, Raw, VirtualConnection, VirtualStream};
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CHUNK: usize = 32 * 1024;
/// How long the published service may take to answer.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A client's use of the published service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceConnection {
    /// The client's number at the gateway.
    pub client: u32,
    /// The virtual connection.
    pub conn: u32,
}

/// What became of a visit.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// It has begun.
    Opened,
    /// Both directions have ended.
    Closed {
        /// Bytes to the client.
        sent: u64,
        /// Bytes from the client.
        received: u64,
    },
    /// The service cannot be reached.
    Unreachable(io::Error),
    /// One of the two ends broke it off.
    Broken(io::Error),
}

impl fmt::Display for ServiceConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} · virtual connection {}", self.client, self.conn)
    }
}

/// Connects every client that dials this server to the TCP service `to`, each by a connection of its own, and `tell`s of it. Goes on until the
/// endpoint ends; a visit ends with the gateway that it came through.
pub async fn publish(
    endpoint: &Endpoint<Raw>,
    to: &ServerName,
    tell: impl Fn(ServiceConnection, ServiceEvent) + Clone + Send + Sync + 'static,
) -> Loss {
    let mut visits = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = endpoint.accept() => accepted,
            Some(_) = visits.join_next() => continue,
        };
        match accepted {
            Ok(connection) => {
                let (to, tell) = (to.clone(), tell.clone());
                visits.spawn(async move {
                    let visit = ServiceConnection { client: connection.remote(), conn: connection.id() };
                    let end = serve(connection, &to, || tell(visit, ServiceEvent::Opened)).await;
                    tell(visit, end);
                });
            }
            Err(AcceptError(loss)) => return loss,
        }
    }
}

async fn serve(connection: VirtualConnection<Raw>, to: &ServerName, opened: impl FnOnce()) -> ServiceEvent {
    let service = timeout(CONNECT_TIME, TcpStream::connect((to.host.as_str(), to.port))).await;
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

/// Copies between a virtual connection and another stream until both directions have ended; bytes into the virtual connection, and out of it.
///
/// # Errors
/// That of either.
pub async fn bridge(
    mut gateway: VirtualStream,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<(u64, u64)> {
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut gateway, CHUNK, CHUNK).await;
    copied.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionReset if error.get_ref().is_none() => {
            io::Error::new(error.kind(), "broken off by the other end")
        }
        _ => error,
    })
}
