//! TCP on the main port: accept, sniff, and give each stream to the protocol it speaks.

use super::inbox::{Inbox, ToWorker};
use crate::net::connections::Connections;
use crate::net::demux::{self, SNIFF_LEN, StreamKind};
use crate::turn_server::wire::frame_len;
use crate::turn_server::{FiveTuple, Transport};
use axum::Router;
use axum::extract::ConnectInfo;
use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection may stay silent before its protocol is known.
const SNIFF_TIME: Duration = Duration::from_secs(5);
/// How long an HTTP client may take over its request's head.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a STUN or TURN stream may stay silent: longer than any allocation lives without a Refresh.
const IDLE_TIME: Duration = Duration::from_secs(3660);
/// How long one write may hang on a client that does not read.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Replies that wait for one client; more are dropped, as a network would.
const REPLY_QUEUE: usize = 256;
/// Bytes read at a time; a frame, and so the buffer, has at most 64 KiB.
const READ_ROOM: usize = 4096;
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection may be given to.
#[derive(Debug, Clone)]
pub(super) struct StreamDoor {
    pub(super) workers: Arc<[Inbox]>,
    pub(super) router: Router,
    /// Permits for connections, over all listeners.
    pub(super) room: Arc<Semaphore>,
    /// Permits for the connections of one address.
    pub(super) connections: Arc<Connections>,
}

impl StreamDoor {
    /// Accepts until dropped.
    pub(super) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let mut turn = 0_usize;
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let Some(counted) = self.connections.admit(client.ip()) else { continue };
                    turn = turn.wrapping_add(1);
                    let door = self.clone();
                    let worker = self.workers[turn % self.workers.len()].clone();
                    connections.spawn(async move {
                        if let Err(error) = door.connection(stream, client, worker).await {
                            tracing::debug!(%error, "stream ended");
                        }
                        drop((permit, counted));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self, mut stream: TcpStream, client: SocketAddr, worker: Inbox) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let kind = timeout(SNIFF_TIME, sniff(&mut stream)).await.unwrap_or(Ok(StreamKind::Unknown))?;
        match kind {
            StreamKind::Http => self.http(stream, client).await,
            StreamKind::Stun => {
                let server = stream.local_addr()?;
                turn(stream, FiveTuple { client, server, transport: Transport::Tcp }, worker).await
            }
            StreamKind::Unknown => Ok(()),
        }
    }

    async fn http(self, stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        let router = self.router.layer(axum::Extension(ConnectInfo(client)));
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades()
            .await
            .map_err(io::Error::other)
    }
}

/// Looks at a stream's first bytes without taking them.
async fn sniff(stream: &mut TcpStream) -> io::Result<StreamKind> {
    let mut start = [0; SNIFF_LEN];
    let mut seen = 0;
    loop {
        let len = stream.peek(&mut start).await?;
        if let Some(kind) = demux::stream(&start[..len]) {
            return Ok(kind);
        }
        if len == 0 {
            return Ok(StreamKind::Unknown);
        }
        if len == seen {
            // Peeked bytes keep the socket readable, so only time tells whether more have come.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen = len;
    }
}

/// Carries frames between one stream and its worker until either ends.
async fn turn(stream: TcpStream, client: FiveTuple, worker: Inbox) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(REPLY_QUEUE);
    if !worker.send(ToWorker::Opened { client, replies }).await {
        return Ok(());
    }
    let ended = tokio::select! {
        ended = read_frames(reader, client, &worker) => ended,
        ended = write_replies(writer, queue) => ended,
    };
    worker.send(ToWorker::Gone { client }).await;
    ended
}

async fn read_frames(
    mut reader: impl AsyncReadExt + Unpin,
    client: FiveTuple,
    worker: &Inbox,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(bytes) = next_frame(&mut buffer)? {
            if !worker.send(ToWorker::Frame { client, bytes }).await {
                return Ok(());
            }
        }
        buffer.reserve(READ_ROOM);
        if timeout(IDLE_TIME, reader.read_buf(&mut buffer)).await?? == 0 {
            return Ok(());
        }
    }
}

/// Takes the first whole frame off `buffer`.
fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let frame = frame_len(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(frame.filter(|len| *len <= buffer.len()).map(|len| buffer.split_to(len).freeze()))
}

async fn write_replies(
    mut writer: impl AsyncWriteExt + Unpin,
    mut queue: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        timeout(WRITE_TIME, writer.write_all(&bytes)).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_under_every_split() {
        let message = [&[0, 1, 0, 4][..], &[0; 16], b"attr"].concat();
        let channel_data = b"\x40\x01\0\x03abc\0".to_vec();
        let stream = [message.clone(), channel_data.clone(), message.clone()].concat();
        for split in 0..stream.len() {
            let mut buffer = BytesMut::from(&stream[..split]);
            let mut frames = Vec::new();
            for rest in [&[][..], &stream[split..]] {
                buffer.extend_from_slice(rest);
                while let Some(frame) = next_frame(&mut buffer).unwrap() {
                    frames.push(frame.to_vec());
                }
            }
            assert_eq!(frames, [message.clone(), channel_data.clone(), message.clone()], "split at {split}");
        }
    }
}
