//! The bytes of one connection: between a local socket and a stream.
//!
//! Each direction ends on its own: the end of a direction is passed on, and the other one continues. A failure of either end resets the other
//! end, so that nobody takes a part for the whole. Memory for data exists only while there is data.

use super::local_socket::LocalStream;
use super::session::{OpenError, Traffic, read_reply};
use crate::agent::{RecvStream, SendStream};
use bytes::Bytes;
use std::io;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

/// Bytes that are read from a local socket at a time.
const CHUNK: usize = 64 << 10;
/// Packets of a stream that are written to a local socket at a time.
const CHUNKS: usize = 48;

/// Copies both directions until both have ended. If the other side has to reply first, nothing is written to the local socket before; what that
/// sends does not wait.
///
/// # Errors
/// The first failure of either end, or the other side's refusal. The local socket is reset then, and so is the stream.
pub(super) async fn copy(
    local: LocalStream,
    (send, mut recv): (SendStream, RecvStream),
    traffic: &Traffic,
    awaits_reply: bool,
) -> Result<(), OpenError> {
    traffic.connections.fetch_add(1, Ordering::Relaxed);
    let moved = {
        let down_ended = Notify::new();
        let up = async { Ok::<_, OpenError>(upload(&local, send, &down_ended, traffic).await?) };
        let down = async {
            if awaits_reply {
                read_reply(&mut recv).await?;
            }
            download(&local, recv, traffic).await?;
            down_ended.notify_one();
            Ok(())
        };
        tokio::select! {
            // A refusal stops the stream too: it is the reason.
            biased;
            moved = async { tokio::try_join!(biased; down, up) } => moved.map(drop),
            error = local.broken() => Err(error.into()),
        }
    };
    if moved.is_err() {
        local.reset();
    }
    moved
}

/// Sends what the local socket has, until its end.
async fn upload(
    local: &LocalStream,
    mut send: SendStream,
    down_ended: &Notify,
    traffic: &Traffic,
) -> io::Result<()> {
    let stopped = send.stopped();
    // Before that a failure of the other side also resets what it sends. Quinn keeps an entry for each stream that is reset while this is awaited.
    let stopped = async {
        down_ended.notified().await;
        stopped.await;
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            ready = local.readable() => ready?,
            () = &mut stopped => return Err(io::ErrorKind::ConnectionReset.into()),
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            match local.try_read(&mut buffer) {
                Ok(0) => return send.finish().await,
                Ok(length) => {
                    send.write_all(&buffer[..length]).await?;
                    traffic.sent.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes what arrives to the local socket, until the end of the stream.
async fn download(local: &LocalStream, mut recv: RecvStream, traffic: &Traffic) -> io::Result<()> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    loop {
        let count = recv.read_chunks(&mut chunks).await?;
        match &mut chunks[..count] {
            [] => {
                local.finish();
                return Ok(());
            }
            [chunk] => {
                let chunk = std::mem::take(chunk);
                local.write_all(&chunk).await?;
                traffic.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            many => {
                let all = many.concat();
                many.fill(Bytes::new());
                local.write_all(&all).await?;
                traffic.received.fetch_add(all.len() as u64, Ordering::Relaxed);
            }
        }
    }
}
