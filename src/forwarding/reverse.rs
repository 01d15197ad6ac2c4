//! Reverse forwarding: the side that shares listens, and the side that forwards connects its own targets.

use super::MAX_CONNECTIONS;
use super::copying::copy;
use super::local_socket::{self, LocalAddress, LocalListener, LocalStream};
use super::policy::ServiceTarget;
use super::session::{OpenError, Session, accept, read_reply, read_request, refuse};
use super::wire::{Refusal, RefusalCode, Request, Transport};
use crate::agent::{ConnectionError, RecvStream, SendStream};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

/// Listens for the other side as long as its stream lasts. Each connection is a stream to it.
pub(super) async fn listen(
    session: &Arc<Session>,
    (listener, at): (u32, SocketAddr),
    (mut send, mut recv): (SendStream, RecvStream),
    connections: Arc<Semaphore>,
    on_listening: impl Fn(SocketAddr),
) -> Result<(), OpenError> {
    let bound = LocalListener::bind(&LocalAddress::Ip(at)).await;
    let socket = match bound {
        Ok(socket) => socket,
        Err(error) => {
            refuse((send, recv), local_socket::refusal(&error)).await;
            return Ok(());
        }
    };
    let at = match socket.address()? {
        LocalAddress::Ip(at) => at,
        LocalAddress::Unix(_) => at,
    };
    accept(&mut send, Transport::Tcp, at.port()).await?;
    on_listening(at);
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let local = socket.accept().await;
            let session = Arc::clone(session);
            tokio::spawn(async move {
                let _permit = permit;
                if let Err(error) = pass_on(&session, listener, local).await {
                    tracing::debug!(%error, "a connection of a listener has ended");
                }
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        // The other side sends nothing: its end is the end of the listener.
        _ = recv.read_u8() => {}
    }
    Ok(())
}

async fn pass_on(session: &Arc<Session>, listener: u32, local: LocalStream) -> Result<(), OpenError> {
    match session.open(&Request::Incoming { listener }).await {
        Ok(stream) => copy(local, stream, &session.traffic, true).await,
        Err(error) => {
            local.reset();
            Err(error)
        }
    }
}

/// Handles connections of a listener whose target, on this side, cannot be reached.
pub(crate) type OnUnreachable = Arc<dyn Fn(&ServiceTarget, &Refusal) + Send + Sync>;

/// A listener at the other side; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RemoteListener {
    _stream: (SendStream, RecvStream),
    /// The port that it listens at.
    pub(crate) port: u16,
}

/// Asks the other side to listen. `listener` is the key of the target in [`serve`].
///
/// # Errors
/// [`OpenError::Refused`] if the other side does not permit it, or the port is in use there.
pub(crate) async fn request_listener(
    session: &Session,
    listener: u32,
    (host, port): (String, u16),
) -> Result<RemoteListener, OpenError> {
    let (send, mut recv) = session.open(&Request::Listen { listener, host, port }).await?;
    let (_, port) = read_reply(&mut recv).await?;
    Ok(RemoteListener { _stream: (send, recv), port })
}

/// Serves a connection of the side that forwards until it ends: connects what arrives at its listeners, and delivers the datagrams of its flows.
/// The other side reaches these targets and nothing else.
pub(crate) async fn serve(
    session: &Arc<Session>,
    targets: Arc<HashMap<u32, ServiceTarget>>,
    on_failure: OnUnreachable,
) -> ConnectionError {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            let stream = match session.connection().accept_bi().await {
                Ok(stream) => stream,
                Err(error) => return error,
            };
            let (session, targets) = (Arc::clone(session), Arc::clone(&targets));
            let (connections, on_failure) = (Arc::clone(&connections), Arc::clone(&on_failure));
            tokio::spawn(async move {
                let permit = connections.try_acquire();
                let is_busy = permit.is_err();
                if let Err(error) = handle_stream(&session, &targets, stream, (is_busy, &on_failure)).await {
                    tracing::debug!(%error, "a connection from the other side has ended");
                }
            });
        }
    };
    tokio::select! {
        error = accepting => error,
        error = session.deliver_datagrams() => error,
    }
}

async fn handle_stream(
    session: &Session,
    targets: &HashMap<u32, ServiceTarget>,
    (mut send, mut recv): (SendStream, RecvStream),
    (is_busy, on_failure): (bool, &OnUnreachable),
) -> Result<(), OpenError> {
    let target = match read_request(&mut recv).await? {
        Request::Incoming { listener } => targets.get(&listener),
        _ => None,
    };
    let connected = match target {
        None => Err(Refusal::new(RefusalCode::NotPermitted, "this side shares nothing")),
        Some(_) if is_busy => Err(Refusal::new(RefusalCode::Busy, "too many connections")),
        Some(target) => connect(target).await.inspect_err(|refusal| on_failure(target, refusal)),
    };
    match connected {
        Ok(local) => {
            accept(&mut send, Transport::Tcp, 0).await?;
            copy(local, (send, recv), &session.traffic, false).await
        }
        Err(refusal) => {
            refuse((send, recv), refusal).await;
            Ok(())
        }
    }
}

/// Connects to a target that this side's user named.
async fn connect(target: &ServiceTarget) -> Result<LocalStream, Refusal> {
    match target {
        ServiceTarget::Tcp(address) => {
            local_socket::connect_tcp(&local_socket::resolve(address, |_| true).await?).await
        }
        ServiceTarget::Unix(path) => local_socket::connect_unix(path).await,
        ServiceTarget::Udp(_) => Err(Refusal::new(RefusalCode::Unsupported, "no TCP target")),
    }
}
