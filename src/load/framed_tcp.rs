//! A TCP connection that carries TURN frames.

use crate::net::time;
use crate::turn_wire as wire;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Bytes queued for a connection whose socket is full.
const MAX_QUEUED: usize = 256 * 1024;
/// Bytes of one read.
const READ: usize = 65_535;
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A non-blocking connection that reads whole frames.
#[derive(Debug)]
pub(super) struct FramedTcp {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl FramedTcp {
    pub(super) fn connect(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, CONNECT_TIME)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, inbox: Vec::new(), outbox: Vec::new() })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends or queues bytes; returns whether there was space for them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.outbox.len() >= MAX_QUEUED {
            return Ok(false);
        }
        self.outbox.extend_from_slice(bytes);
        self.flush()?;
        Ok(true)
    }

    /// Sends queued bytes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let outcome = loop {
            if written == self.outbox.len() {
                break Ok(());
            }
            match self.stream.write(&self.outbox[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.outbox.drain(..written);
        outcome
    }

    /// Reads once into `buffer` and passes every complete frame to `each` with the time after the call. Returns whether the socket is empty.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(Instant, &[u8]),
    ) -> io::Result<bool> {
        let size = buffer.len().min(READ);
        let buffer = &mut buffer[..size];
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = time::mono();
        self.inbox.extend_from_slice(&buffer[..count]);
        let mut begin = 0;
        while let Some(len) = wire::frame_len(&self.inbox[begin..])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
        {
            let Some(frame) = self.inbox.get(begin..begin + len) else { break };
            each(now, frame);
            begin += len;
        }
        self.inbox.drain(..begin);
        Ok(count < size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    fn received(socket: &mut FramedTcp) -> Vec<u8> {
        let (mut buffer, mut first) = ([0; 100], None);
        while first.is_none() {
            socket.receive(&mut buffer, |_, frame| first = Some(frame.to_vec())).unwrap();
        }
        first.unwrap()
    }

    #[test]
    fn a_stream_is_split_into_its_frames() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut socket = FramedTcp::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(&[0x40, 0, 0, 1, 9, 0, 0, 0, 0x40, 0]).unwrap();
        assert_eq!(received(&mut socket), [0x40, 0, 0, 1, 9, 0, 0, 0]);
        server.write_all(&[0, 0]).unwrap();
        assert_eq!(received(&mut socket), [0x40, 0, 0, 0]);
        server.write_all(&[0xFF; 8]).unwrap();
        let broken = loop {
            match socket.receive(&mut [0; 100], |_, _| {}) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(broken.kind(), io::ErrorKind::InvalidData);
    }
}
