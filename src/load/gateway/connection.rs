//! The socket of one client or server, with its send queue.

use super::message::LoadMessageReader;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// A connection of a client or a server.
#[derive(Debug)]
pub(super) struct LoadConnection {
    socket: Option<TcpStream>,
    pub(super) reader: LoadMessageReader,
    /// Flows with something to send to a reading client or a server.
    ready: VecDeque<u32>,
    /// The other flows. They come first, so that the gateway's queues are full soon.
    to_non_readers: VecDeque<u32>,
    /// Commands to send before messages.
    pub(super) commands: Vec<u8>,
    /// Bytes that the kernel has not accepted.
    tail: Vec<u8>,
    tail_at: usize,
    /// Whether the socket is full.
    pub(super) is_blocked: bool,
    /// Whether it is queued to write.
    pub(super) is_queued: bool,
    /// Whether it is not read.
    pub(super) is_non_reading: bool,
}

impl LoadConnection {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket: Some(socket),
            reader: LoadMessageReader::default(),
            ready: VecDeque::new(),
            to_non_readers: VecDeque::new(),
            commands: Vec::new(),
            tail: Vec::new(),
            tail_at: 0,
            is_blocked: false,
            is_queued: false,
            is_non_reading: false,
        }
    }

    pub(super) fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    pub(super) fn close(&mut self) {
        (self.socket, self.tail, self.commands) = (None, Vec::new(), Vec::new());
        (self.ready, self.to_non_readers) = (VecDeque::new(), VecDeque::new());
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty() || !self.to_non_readers.is_empty()
    }

    pub(super) fn make_ready(&mut self, flow: u32, is_to_non_reader: bool) {
        if is_to_non_reader { self.to_non_readers.push_back(flow) } else { self.ready.push_back(flow) }
    }

    pub(super) fn next_ready(&mut self) -> Option<u32> {
        self.to_non_readers.pop_front().or_else(|| self.ready.pop_front())
    }

    /// Takes back a flow of [`LoadConnection::next_ready`] whose receiver reads.
    pub(super) fn put_back(&mut self, flow: u32) {
        self.ready.push_front(flow);
    }

    pub(super) fn has_tail(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Reads once; `None` if the socket is empty.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(socket) = &mut self.socket else { return Ok(None) };
        match socket.read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Writes queued bytes; returns whether all were written.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(super) fn write_tail(&mut self) -> io::Result<bool> {
        let written = self.push(None)?;
        self.tail_at += written;
        if self.tail_at == self.tail.len() {
            (self.tail, self.tail_at) = (Vec::new(), 0);
        }
        Ok(self.tail.is_empty())
    }

    /// Writes `bytes` after the queued ones, and queues what the kernel does not accept.
    ///
    /// # Errors
    /// If the connection has ended.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = if self.has_tail() { 0 } else { self.push(Some(bytes))? };
        self.tail.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    fn push(&mut self, bytes: Option<&[u8]>) -> io::Result<usize> {
        let bytes = bytes.unwrap_or(&self.tail[self.tail_at..]);
        let Some(socket) = &mut self.socket else { return Ok(bytes.len()) };
        let mut written = 0;
        while written < bytes.len() {
            match socket.write(&bytes[written..]) {
                Ok(now) => written += now,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_blocked = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}
