//! Local sockets of the side that forwards. They stay open while the connection to the other side is lost.

use super::MAX_CONNECTIONS;
use super::copying::copy;
use super::flow::{Flow, FlowTable};
use super::link::Link;
use super::local_socket::{LocalListener, LocalStream};
use super::session::OpenError;
use super::wire::{Request, Target};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

/// Why a local connection was not forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The connection to the other side is lost, and did not return in time.
    #[error("no connection to the other side")]
    NoSession,
    /// The other side refused, or the connection to it ended.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Handles local connections that were not forwarded.
pub(crate) type OnFailure = Arc<dyn Fn(&Target, &ForwardError) + Send + Sync>;

/// Forwards each connection that a listener accepts. Beyond [`MAX_CONNECTIONS`] they wait in the listener's queue.
pub(crate) async fn forward_streams(
    listener: LocalListener,
    target: Target,
    link: Link,
    on_failure: OnFailure,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        let local = listener.accept().await;
        let (target, link, on_failure) = (target.clone(), link.clone(), Arc::clone(&on_failure));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = forward(local, &target, &link).await {
                report(&target, &error, &on_failure);
            }
        });
    }
}

/// Reports what the user can act on. A connection that one of its ends reset is no such failure.
pub(super) fn report(target: &Target, error: &ForwardError, on_failure: &OnFailure) {
    match error {
        ForwardError::NoSession | ForwardError::Open(OpenError::Refused(_) | OpenError::Wire(_)) => {
            on_failure(target, error);
        }
        ForwardError::Open(error) => tracing::debug!(%error, "a forwarded connection has ended"),
    }
}

async fn forward(local: LocalStream, target: &Target, link: &Link) -> Result<(), ForwardError> {
    let Some(session) = link.session().await else {
        local.reset();
        return Err(ForwardError::NoSession);
    };
    match session.open(&Request::Connect(target.clone())).await {
        Ok(stream) => Ok(copy(local, stream, &session.traffic, true).await?),
        Err(error) => {
            local.reset();
            Err(error.into())
        }
    }
}

/// Forwards the datagrams that arrive at a socket: each source has a flow of its own. Without a connection to the other side they are dropped.
pub(crate) async fn forward_datagrams(socket: UdpSocket, target: Target, link: Link, on_failure: OnFailure) {
    let socket = Arc::new(socket);
    // Before this the runtime does not know that it can send.
    if socket.writable().await.is_err() {
        return;
    }
    let mut flows = FlowTable::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error reports that an earlier datagram did not arrive.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        let payload = &buffer[..length];
        if let Some(flow) = flows.get(&source) {
            flow.send(payload);
            continue;
        }
        let Some(session) = link.current() else { continue };
        let opened = flows.insert(source, || {
            let (back, failed_target, on_failure) =
                (Arc::clone(&socket), target.clone(), Arc::clone(&on_failure));
            let deliver = move |payload: &[u8]| drop(back.try_send_to(payload, source));
            Flow::open(&session, target.clone(), deliver, move |error| {
                report(&failed_target, &error.into(), &on_failure);
            })
        });
        match opened {
            Ok(flow) => flow.send(payload),
            Err(error) => report(&target, &OpenError::from(error).into(), &on_failure),
        }
    }
}
