//! A virtual connection as a byte stream.

use super::virtual_connection::ConnectionHandle;
use bytes::{Buf, Bytes};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one message carries at most.
const CHUNK: usize = 32 * 1024;

/// A stream of bytes over a virtual connection.
///
/// An empty message ends one direction; the other can continue. A virtual connection that is closed without one ends a read with
/// [`io::ErrorKind::ConnectionReset`]: the gateway also closes it when the other end has failed.
#[derive(Debug)]
pub struct VirtualStream {
    handle: Arc<ConnectionHandle>,
    unread: Bytes,
    end_read: bool,
    end_written: bool,
    chunk: usize,
}

impl VirtualStream {
    pub(super) fn new(handle: Arc<ConnectionHandle>) -> Self {
        let chunk = handle.max_message().clamp(1, CHUNK);
        Self { handle, unread: Bytes::new(), end_read: false, end_written: false, chunk }
    }
}

impl AsyncRead for VirtualStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() && !this.end_read {
            match ready!(this.handle.poll_receive(cx))? {
                Some(message) if message.is_empty() => this.end_read = true,
                Some(message) => this.unread = message,
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        let len = this.unread.len().min(buffer.remaining());
        buffer.put_slice(this.unread.get(..len).unwrap_or_default());
        this.unread.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for VirtualStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.end_written {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let chunk = bytes.get(..self.chunk).unwrap_or(bytes);
        if !chunk.is_empty() {
            ready!(self.handle.poll_send(cx, chunk.len(), || Bytes::copy_from_slice(chunk)))?;
        }
        Poll::Ready(Ok(chunk.len()))
    }

    /// Written bytes are sent without a flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.end_written {
            ready!(self.handle.poll_send(cx, 0, Bytes::new))?;
            self.end_written = true;
        }
        Poll::Ready(Ok(()))
    }
}
