//! A stream whose first bytes were looked at before somebody else reads them.

use bytes::{Buf, BufMut, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Room for what is read ahead at a time; the longest PROXY header fits.
const AHEAD: usize = 1024;

/// A stream with bytes in front that were read ahead of their reader.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: BytesMut,
    stream: S,
}

impl<S: AsyncRead + Unpin> Prefixed<S> {
    /// Wraps a stream of which nothing was read.
    pub(crate) fn new(stream: S) -> Self {
        Self { prefix: BytesMut::new(), stream }
    }

    /// Reads ahead until `judge` knows what the first bytes mean; `None` at the end of a stream it could not judge. The bytes
    /// stay for the next reader. `judge` must come to its verdict within 1024 bytes.
    ///
    /// # Errors
    /// The stream's error, and `InvalidData` when 1024 bytes were not enough.
    pub(crate) async fn sniff<T>(&mut self, judge: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        self.gather(judge, AHEAD).await
    }

    /// The same with at most `most` bytes.
    ///
    /// # Errors
    /// The stream's error, and `InvalidData` when that was not enough.
    pub(crate) async fn gather<T>(
        &mut self,
        judge: impl Fn(&[u8]) -> Option<T>,
        most: usize,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(verdict) = judge(&self.prefix) {
                return Ok(Some(verdict));
            }
            let left = most.saturating_sub(self.prefix.len()).min(AHEAD);
            if left == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.prefix.reserve(left);
            if self.stream.read_buf(&mut (&mut self.prefix).limit(left)).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Says whether nothing has come.
    pub(crate) fn is_silent(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Returns what was read ahead and not taken, and the stream behind it.
    pub(crate) fn into_parts(self) -> (BytesMut, S) {
        (self.prefix, self.stream)
    }

    /// Takes `count` bytes that were read ahead off the stream.
    pub(crate) fn skip(&mut self, count: usize) {
        self.prefix.advance(count.min(self.prefix.len()));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix.split_to(count));
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
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
                let mut server = Prefixed::new(server);
                let write = async {
                    client.write_all(&bytes[..split]).await.unwrap();
                    tokio::task::yield_now().await;
                    client.write_all(&bytes[split..]).await.unwrap();
                    drop(client);
                };
                let read = async {
                    let judged = server.sniff(demux::stream).await.unwrap();
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
        assert_eq!(Prefixed::new(server).sniff(demux::stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn skipped_bytes_are_gone_and_the_rest_is_judged() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"0123GET / ").await.unwrap();
        let mut server = Prefixed::new(server);
        server.sniff(|start| (start.len() >= 4).then_some(())).await.unwrap();
        server.skip(4);
        assert_eq!(server.sniff(demux::stream).await.unwrap(), Some(StreamKind::Http));
    }
}
