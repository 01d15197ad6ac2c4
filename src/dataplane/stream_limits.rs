//! What clients on streams may take: time, and memory while they have shown no credentials.

use crate::net::connection_limiter::ConnectionPermit;
use std::future::pending;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a message may take from its first byte to its last.
pub(crate) const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// The longest message of a client that has shown no credentials.
pub(crate) const UNAUTHENTICATED_MESSAGE: usize = 4096;
/// Bytes read at a time from such a client, so that the answers to them are few.
pub(crate) const UNAUTHENTICATED_READ: usize = 1024;
/// Bytes that wait for such a client to read them.
pub(crate) const UNAUTHENTICATED_UNREAD: usize = 8 * 1024;
/// How long a STUN or TURN stream may stay silent: longer than any allocation lives without a Refresh.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(3660);
/// The same before the client has shown good credentials.
pub(crate) const UNAUTHENTICATED_IDLE_TIME: Duration = Duration::from_secs(60);
/// How long one write may hang on a client that does not read.
pub(crate) const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long the shutdown may take.
pub(crate) const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Bytes read at a time; a frame, and so what is kept of one that is not whole, has at most 64 KiB.
pub(crate) const READ_SIZE: usize = 16 * 1024;

/// Waits until a connection is to end because its place or its memory is needed.
pub(crate) fn evicted(connection: &ConnectionPermit) -> impl Future<Output = ()> + use<> {
    let (say, evicted) = oneshot::channel();
    connection.on_evict(move || {
        let _ = say.send(());
    });
    async {
        if evicted.await.is_err() {
            pending().await
        }
    }
}

/// Ends a stream in order: inside TLS the client is told.
pub(crate) async fn shut_down(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    timeout(CLOSE_TIME, stream.shutdown()).await?
}
