//! TCP towards peers (RFC 6062): listeners on relayed addresses, connections to peers, and their binding to client data connections.

use super::inbox::{Inbox, WorkerMessage};
use crate::net::time;
use crate::turn_server::pending_connections::UserBandwidth;
use crate::turn_server::{ConnectionId, RelayId};
use bytes::BytesMut;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Backlog of one relayed address.
const BACKLOG: i32 = 64;
/// Pause after a failed accept, usually caused by a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes copied at a time.
const CHUNK: usize = 16 * 1024;
/// Pause of a direction that is over its bandwidth.
const PACE_PAUSE: Duration = Duration::from_millis(5);
/// Time to write the rest to a peer after the other end has closed.
const CLOSE_TIME: Duration = Duration::from_secs(30);

/// All workers' peer connections: a client data connection may belong to another worker than the control connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerStreamTable(Arc<Mutex<HashMap<ConnectionId, PeerStreamState>>>);

#[derive(Debug)]
enum PeerStreamState {
    Connecting(AbortHandle),
    Waiting { stream: TcpStream, owner: Inbox },
    Joined(Arc<Notify>),
}

/// A peer connection on its way to its client data connection.
#[derive(Debug)]
pub(crate) struct PeerStream {
    /// The response that precedes the first byte.
    pub(crate) reply: Vec<u8>,
    stream: TcpStream,
    ended: Arc<Notify>,
    bandwidth: UserBandwidth,
    closing: CloseNotice,
}

/// Reports on drop that the peer connection has ended.
#[derive(Debug)]
struct CloseNotice {
    connection: ConnectionId,
    owner: Inbox,
    streams: PeerStreamTable,
}

impl Drop for CloseNotice {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.connection);
        // If the inbox is full, the relay forgets the connection with its allocation.
        self.owner.try_send(WorkerMessage::PeerClosed { connection: self.connection });
    }
}

/// One worker's listeners and connections.
#[derive(Debug)]
pub(crate) struct PeerTcp {
    streams: PeerStreamTable,
    inbox: Inbox,
    runtime: Handle,
    listeners: HashMap<RelayId, AbortHandle>,
}

impl PeerStreamTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, PeerStreamState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerTcp {
    pub(crate) fn new(streams: PeerStreamTable, inbox: Inbox, runtime: Handle) -> Self {
        Self { streams, inbox, runtime, listeners: HashMap::new() }
    }

    /// Listens on a relayed address.
    pub(crate) fn listen(&mut self, relay: RelayId, address: SocketAddr) -> io::Result<()> {
        let socket = open(address)?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        let accepting = self.runtime.spawn(accept(listener, relay, self.inbox.clone()));
        self.listeners.insert(relay, accepting.abort_handle());
        Ok(())
    }

    /// Closes a listener; returns `false` when there is none.
    pub(crate) fn close(&mut self, relay: RelayId) -> bool {
        self.listeners.remove(&relay).is_some_and(|accepting| {
            accepting.abort();
            true
        })
    }

    /// Connects to a peer; [`WorkerMessage::PeerConnected`] reports the result.
    pub(crate) fn connect(&self, connection: ConnectionId, from: SocketAddr, to: SocketAddr) {
        let (streams, inbox) = (self.streams.clone(), self.inbox.clone());
        // The lock is held until the entry exists, because the task replaces it.
        let mut held = self.streams.lock();
        let connecting = self.runtime.spawn(async move {
            let connected = async { TcpSocket::from_std_stream(open(from)?.into()).connect(to).await }.await;
            if let Err(error) = &connected {
                tracing::debug!(%error, "connection to a peer");
            }
            let is_connected = connected.is_ok();
            if let Ok(stream) = connected {
                streams.lock().insert(connection, PeerStreamState::Waiting { stream, owner: inbox.clone() });
            }
            inbox.send(WorkerMessage::PeerConnected { connection, is_connected }).await;
        });
        held.insert(connection, PeerStreamState::Connecting(connecting.abort_handle()));
    }

    /// Keeps a peer connection until the client binds it.
    pub(crate) fn hold(&self, connection: ConnectionId, stream: TcpStream) {
        self.streams
            .lock()
            .insert(connection, PeerStreamState::Waiting { stream, owner: self.inbox.clone() });
    }

    /// Takes a peer connection to bind it to a client data connection.
    pub(crate) fn join(
        &self,
        connection: ConnectionId,
        reply: Vec<u8>,
        bandwidth: UserBandwidth,
    ) -> Option<PeerStream> {
        let mut held = self.streams.lock();
        let Some(PeerStreamState::Waiting { stream, owner }) = held.remove(&connection) else { return None };
        let ended = Arc::new(Notify::new());
        held.insert(connection, PeerStreamState::Joined(Arc::clone(&ended)));
        let closing = CloseNotice { connection, owner, streams: self.streams.clone() };
        Some(PeerStream { reply, stream, ended, bandwidth, closing })
    }

    /// Closes a peer connection and what it is bound to.
    pub(crate) fn disconnect(&self, connection: ConnectionId) {
        match self.streams.lock().remove(&connection) {
            Some(PeerStreamState::Connecting(task)) => task.abort(),
            Some(PeerStreamState::Joined(ended)) => ended.notify_one(),
            Some(PeerStreamState::Waiting { .. }) | None => {}
        }
    }
}

impl PeerStream {
    /// Puts `queued` in front of the response.
    pub(crate) fn behind(mut self, mut queued: Vec<u8>) -> Self {
        queued.append(&mut self.reply);
        self.reply = queued;
        self
    }

    /// Copies bytes in both directions until both ends have closed or the allocation ends; `early` is what the client sent after its
    /// request.
    pub(crate) async fn run<S>(self, client: S, early: BytesMut) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { reply, stream, ended, bandwidth, closing: _closing } = self;
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_peer, mut to_peer) = stream.into_split();
        let moving = async {
            to_client.write_all(&reply).await?;
            to_client.flush().await?;
            to_peer.write_all(&early).await?;
            tokio::try_join!(
                pump(&mut from_client, &mut to_peer, &bandwidth),
                pump(&mut from_peer, &mut to_client, &bandwidth),
            )
        };
        tokio::select! {
            moved = moving => moved.map(drop),
            () = ended.notified() => Ok(()),
        }
    }
}

/// Copies one direction within the user's bandwidth, then shuts it down.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    bandwidth: &UserBandwidth,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return tokio::time::timeout(CLOSE_TIME, to.shutdown()).await?;
        }
        while !bandwidth.try_take(time::now().mono, length) {
            tokio::time::sleep(PACE_PAUSE).await;
        }
        to.write_all(&chunk[..length]).await?;
        to.flush().await?;
    }
}

/// Opens a socket on a relayed address, shared by the listener and connections to peers.
fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn accept(listener: std::net::TcpListener, relay: RelayId, inbox: Inbox) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if !inbox.send(WorkerMessage::PeerAccepted { relay, peer, stream }).await {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "accept on a relayed address");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
