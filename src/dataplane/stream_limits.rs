//! Limits on clients of streams: time, and memory before they authenticate.

use crate::net::connection_limiter::ConnectionPermit;
use std::future::pending;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Time for one message, from its first byte to its last.
pub(crate) const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Longest message of an unauthenticated client, in bytes.
pub(crate) const UNAUTHENTICATED_MESSAGE: usize = 4096;
/// Bytes read at a time from an unauthenticated client, so that its responses stay few.
pub(crate) const UNAUTHENTICATED_READ: usize = 1024;
/// Bytes queued for an unauthenticated client.
pub(crate) const UNAUTHENTICATED_UNREAD: usize = 8 * 1024;
/// Longest silence of a stream: longer than an allocation lives without a Refresh.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(3660);
/// The same before the client has authenticated.
pub(crate) const UNAUTHENTICATED_IDLE_TIME: Duration = Duration::from_secs(60);
/// Longest time of one write to a client that does not read.
pub(crate) const WRITE_TIME: Duration = Duration::from_secs(30);
/// Time for a shutdown.
pub(crate) const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Bytes read at a time; a partial frame has at most 64 KiB.
pub(crate) const READ_SIZE: usize = 16 * 1024;

/// Waits until the connection must close because its place or its memory is needed.
pub(crate) fn evicted(connection: &ConnectionPermit) -> impl Future<Output = ()> + use<> {
    let (sender, evicted) = oneshot::channel();
    connection.on_evict(move || {
        let _ = sender.send(());
    });
    async {
        if evicted.await.is_err() {
            pending().await
        }
    }
}

/// Shuts a stream down; inside TLS it sends close_notify.
pub(crate) async fn shut_down(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    timeout(CLOSE_TIME, stream.shutdown()).await?
}
