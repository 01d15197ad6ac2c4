//! What an endpoint is read and written through: its own TCP socket, or our endpoint of a pair whose other endpoint a task serves.

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Pair(UnixStream),
}

impl Socket {
    pub(super) fn read(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(slices),
            Self::Pair(stream) => stream.read_vectored(slices),
        }
    }

    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Pair(stream) => stream.write_vectored(slices),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interests),
            Self::Pair(stream) => stream.register(registry, token, interests),
        }
    }
}
