//! A stream of which only so much is read until it is known to be worth more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Fails once more than so many bytes were read, until the limit is lifted.
#[derive(Debug)]
pub(crate) struct Limited<S> {
    stream: S,
    left: Option<usize>,
}

impl<S> Limited<S> {
    /// Lets `most` bytes be read.
    pub(crate) fn new(stream: S, most: usize) -> Self {
        Self { stream, left: Some(most) }
    }

    /// Lets everything be read from now on.
    pub(crate) fn lift(&mut self) {
        self.left = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let count = buffer.filled().len() - before;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn so_much_is_read_and_no_more_until_the_limit_is_lifted() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Limited::new(server, 4);
        client.write_all(b"1234").await.unwrap();
        let mut room = [0; 4];
        server.read_exact(&mut room).await.unwrap();
        client.write_all(b"5").await.unwrap();
        assert!(server.read(&mut room).await.is_err());
        server.lift();
        client.write_all(b"678").await.unwrap();
        assert_eq!(server.read(&mut room).await.unwrap(), 3);
    }
}
