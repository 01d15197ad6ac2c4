//! A stream whose first bytes are read ahead to find out its protocol, and of which a limited number of bytes is read until that is lifted.

use bytes::{Buf, BufMut, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes that are read ahead at a time; the longest PROXY header fits.
const AHEAD: usize = 1024;

/// A stream in front of which the bytes that were read ahead stay for the next reader.
#[derive(Debug)]
pub(crate) struct PeekedStream<S> {
    ahead: BytesMut,
    stream: S,
    /// Bytes that may still be read; `None` for no limit.
    left: Option<usize>,
}

impl<S: AsyncRead + Unpin> PeekedStream<S> {
    /// Wraps a stream of which nothing was read.
    pub(crate) fn new(stream: S) -> Self {
        Self { ahead: BytesMut::new(), stream, left: None }
    }

    /// Reads ahead until `judge` returns something for the first bytes; `None` at the end of a stream for which it does not. `judge` must
    /// decide within 1024 bytes.
    ///
    /// # Errors
    /// The stream's error, and `InvalidData` when 1024 bytes were not enough.
    pub(crate) async fn peek<T>(&mut self, judge: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        self.peek_up_to(AHEAD, judge).await
    }

    /// Does the same with at most `max` bytes.
    ///
    /// # Errors
    /// The stream's error, and `InvalidData` when that was not enough.
    pub(crate) async fn peek_up_to<T>(
        &mut self,
        max: usize,
        judge: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(verdict) = judge(&self.ahead) {
                return Ok(Some(verdict));
            }
            let left = max.saturating_sub(self.ahead.len()).min(AHEAD);
            if left == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.ahead.reserve(left);
            if self.stream.read_buf(&mut (&mut self.ahead).limit(left)).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Returns whether nothing is read ahead.
    pub(crate) fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Returns what is read ahead, and the stream behind it.
    pub(crate) fn into_parts(self) -> (BytesMut, S) {
        (self.ahead, self.stream)
    }

    /// Takes `count` bytes that are read ahead off the stream.
    pub(crate) fn consume(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
    }

    /// Has reads fail with `FileTooLarge` after `max` bytes more, until [`PeekedStream::lift_limit`].
    pub(crate) fn limit(&mut self, max: usize) {
        self.left = Some(max);
    }

    pub(crate) fn lift_limit(&mut self) {
        self.left = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeekedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.ahead.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(count));
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
        }
        let count = buffer.filled().len() - before;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeekedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::demux::{self, StreamKind};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn every_split_is_judged_alike_and_nothing_is_lost() {
        for (bytes, kind) in [
            (&b"\x16\x03\x01\0\xFAhello"[..], StreamKind::Tls),
            (b"GET / HTTP/1.1\r\n\r\n", StreamKind::Http),
            (b"\0\x01\0\0\x21\x12\xA4\x42transaction!", StreamKind::Stun),
            (b"SSH-2.0-client\r\n", StreamKind::Unknown),
        ] {
            for split in 0..bytes.len() {
                let (mut client, server) = tokio::io::duplex(64);
                let mut server = PeekedStream::new(server);
                let write = async {
                    client.write_all(&bytes[..split]).await.unwrap();
                    tokio::task::yield_now().await;
                    client.write_all(&bytes[split..]).await.unwrap();
                    drop(client);
                };
                let read = async {
                    let judged = server.peek(demux::stream).await.unwrap();
                    let mut all = Vec::new();
                    server.read_to_end(&mut all).await.unwrap();
                    (judged, all)
                };
                let ((), (judged, all)) = tokio::join!(write, read);
                assert_eq!((judged, &all[..]), (Some(kind), bytes), "split at {split}");
            }
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_before_it_is_known_is_no_protocol() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"\x16").await.unwrap();
        drop(client);
        assert_eq!(PeekedStream::new(server).peek(demux::stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn consumed_bytes_are_gone_and_the_rest_is_judged() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"0123GET / ").await.unwrap();
        let mut server = PeekedStream::new(server);
        server.peek(|start| (start.len() >= 4).then_some(())).await.unwrap();
        server.consume(4);
        assert_eq!(server.peek(demux::stream).await.unwrap(), Some(StreamKind::Http));
    }

    #[tokio::test]
    async fn so_much_is_read_and_no_more_until_the_limit_is_lifted() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = PeekedStream::new(server);
        client.write_all(b"12").await.unwrap();
        server.peek(|start| (start.len() >= 2).then_some(())).await.unwrap();
        server.limit(4);
        client.write_all(b"34").await.unwrap();
        let mut room = [0; 4];
        server.read_exact(&mut room).await.unwrap();
        client.write_all(b"5").await.unwrap();
        assert!(server.read(&mut room).await.is_err());
        server.lift_limit();
        client.write_all(b"678").await.unwrap();
        assert_eq!(server.read(&mut room).await.unwrap(), 3);
    }
}
