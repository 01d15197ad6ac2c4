//! The task of a client inside TLS: carries frames between its stream and its worker.

use super::framing;
use super::inbox::{Inbox, ReplyReceiver, StreamLink, StreamMessage};
use super::peer_streams::PeerStream;
use super::stream_limits::{
    IDLE_TIME, MESSAGE_TIME, READ_SIZE, UNAUTHENTICATED_IDLE_TIME, UNAUTHENTICATED_MESSAGE,
    UNAUTHENTICATED_READ, WRITE_TIME, evicted, shut_down,
};
use crate::net::connection_limiter::ConnectionPermit;
use crate::turn_server::FiveTuple;
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::error::Elapsed;
use tokio::time::{Sleep, sleep, timeout};

/// Carries frames until the stream or the worker ends.
pub(crate) async fn carry_frames<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    client: FiveTuple,
    (worker, connection): (&Inbox, &ConnectionPermit),
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // The worker keeps the client until the link closes, also after an eviction.
    let evicted = evicted(connection);
    let Some((link, queue)) = worker.open(client, Some(connection.clone())).await else { return Ok(()) };
    let mut buffer = BytesMut::new();
    let ended = tokio::select! {
        ended = read_frames(&mut reader, &mut buffer, &link) => Some(ended.map(|()| None)),
        ended = write_replies(&mut writer, queue) => Some(ended),
        () = evicted => None,
    };
    link.close().await;
    match ended {
        Some(Ok(Some(peer_stream))) => peer_stream.run(reader.unsplit(writer), buffer).await,
        Some(ended) => ended.map(drop).and(shut_down(&mut writer).await),
        // Evicted: another client needs its place.
        None => Ok(()),
    }
}

async fn read_frames(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    link: &StreamLink,
) -> io::Result<()> {
    // Set while there is a partial frame.
    let mut deadline: Option<Pin<Box<Sleep>>> = None;
    loop {
        let run = framing::whole_frames(buffer);
        if run.len > 0 {
            deadline = None;
            if !link.send_frames(buffer.split_to(run.len).freeze()).await {
                return Ok(());
            }
        }
        if let Some(broken) = run.broken {
            return Err(io::Error::new(io::ErrorKind::InvalidData, broken));
        }
        if buffer.is_empty() {
            *buffer = BytesMut::new();
        } else if buffer.len() > UNAUTHENTICATED_MESSAGE && !link.is_authenticated() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "frame too long for an unauthenticated client",
            ));
        } else {
            deadline.get_or_insert_with(|| Box::pin(sleep(MESSAGE_TIME)));
        }
        let read = match &mut deadline {
            Some(deadline) => tokio::select! {
                read = read_in_time(reader, buffer, link) => read?,
                () = deadline => return Err(io::ErrorKind::TimedOut.into()),
            },
            None => read_in_time(reader, buffer, link).await?,
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Reads once, with a limit on silence.
async fn read_in_time(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    link: &StreamLink,
) -> io::Result<usize> {
    let mut silent = Duration::ZERO;
    loop {
        match timeout(UNAUTHENTICATED_IDLE_TIME, read(reader, buffer, link)).await {
            Ok(read) => return read,
            Err(elapsed) => silent += waited(link, silent, elapsed)?,
        }
    }
}

/// Reads once into a temporary buffer: an idle client has no buffer.
async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    link: &StreamLink,
) -> io::Result<usize> {
    poll_fn(|context| {
        let mut room = [const { MaybeUninit::uninit() }; READ_SIZE];
        let most = if link.is_authenticated() { READ_SIZE } else { UNAUTHENTICATED_READ };
        let mut room = ReadBuf::uninit(&mut room[..most]);
        ready!(Pin::new(&mut *reader).poll_read(context, &mut room))?;
        buffer.extend_from_slice(room.filled());
        Ok(room.filled().len()).into()
    })
    .await
}

/// Returns how long one more wait was, or an error when the silence is over its limit.
fn waited(link: &StreamLink, silent: Duration, elapsed: Elapsed) -> io::Result<Duration> {
    let may_wait = link.is_authenticated() && silent + UNAUTHENTICATED_IDLE_TIME < IDLE_TIME;
    if may_wait { Ok(UNAUTHENTICATED_IDLE_TIME) } else { Err(elapsed.into()) }
}

/// Writes frames until the worker drops the client or hands it a peer connection.
async fn write_replies(
    writer: &mut (impl AsyncWrite + Unpin),
    mut queue: ReplyReceiver,
) -> io::Result<Option<Box<PeerStream>>> {
    while let Some(message) = queue.next().await {
        let mut run = match message {
            StreamMessage::Frames(run) => run,
            StreamMessage::Join(peer_stream) => return Ok(Some(peer_stream)),
        };
        let length = run.len();
        // Each frame gets its own TLS record: some clients take only one frame from a record.
        while !run.is_empty() {
            let frame = run.split_to(framing::first_len(&run));
            timeout(WRITE_TIME, writer.write_all(&frame)).await??;
        }
        // TLS buffers until it is flushed.
        timeout(WRITE_TIME, writer.flush()).await??;
        queue.written(length);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::inbox::WorkerMessage;
    use super::*;
    use crate::net::connection_limiter::{ConnectionLimiter, ConnectionLimits};
    use crate::turn_server::Transport;

    #[tokio::test]
    async fn the_worker_learns_that_an_unauthenticated_stream_was_evicted() {
        let poll = mio::Poll::new().unwrap();
        let (worker, mut queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let limits = ConnectionLimits { total: 1, descriptors: 9, per_address: 9, bytes: 1 << 20 };
        let connections = ConnectionLimiter::new(limits, &[]);
        let connection = connections.admit().unwrap();
        let address = "192.0.2.7:1000".parse().unwrap();
        let client = FiveTuple { client: address, server: address, transport: Transport::Tls };
        let (_client, stream) = tokio::io::duplex(64);
        // Like the listener, which drops evicted connections.
        let evicted = evicted(&connection);
        let served = tokio::spawn(async move {
            tokio::select! {
                served = carry_frames(stream, client, (&worker, &connection)) => drop(served),
                () = evicted => {}
            }
        });
        let Some(WorkerMessage::StreamOpened { path, .. }) = queue.recv().await else {
            panic!("it is not announced")
        };
        let _other = connections.admit().unwrap();
        let remove_closed = timeout(Duration::from_secs(20), queue.recv()).await;
        assert!(
            matches!(remove_closed, Ok(Some(WorkerMessage::StreamClosed { link, .. })) if link == path.link)
        );
        drop(path);
        served.await.unwrap();
        assert_eq!(connections.counters().evicted, 0);
    }
}
