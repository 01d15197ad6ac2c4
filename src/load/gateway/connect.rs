//! Connections of clients and servers, and the servers' handshakes.

use crate::gateway::handshake::{CHALLENGE, Key, MD5_CHALLENGE, PROOF};
use crate::gateway::wire::{self, Command, Frame, HEADER_LEN, MAX_PACKET};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Time limit of a connection and of a handshake.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Clients per loopback address, below the server's limit per network.
const PER_ADDRESS: usize = 100;
/// The first of these addresses.
const FIRST_ADDRESS: u32 = 0x7F4F_0001;

/// Receive buffer of a client that does not read. Its messages are to be queued at the gateway.
const NON_READING_BUFFER: usize = 16 * 1024;

/// The handshake of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeKind {
    /// MD5 (S2-15 to S2-18).
    Md5,
    /// HMAC-SHA256, with credit.
    Hmac,
}

impl HandshakeKind {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Hmac => "hmac",
        }
    }

    /// Connects a server.
    pub(super) fn connect_server(self, address: SocketAddr, key: &Key, id: u32) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        let mut socket = connected(socket, address)?;
        socket.set_read_timeout(Some(CONNECT_TIME))?;
        match self {
            Self::Md5 => {
                let mut challenge = [0; MD5_CHALLENGE];
                socket.read_exact(&mut challenge)?;
                socket.write_all(&key.md5_answer(&challenge, id))?;
            }
            Self::Hmac => {
                let (mut challenge, mut nonce, mut proof) = ([0; CHALLENGE], [0; CHALLENGE], [0; PROOF]);
                ChaCha20Rng::from_os_rng().fill(&mut nonce);
                socket.read_exact(&mut challenge)?;
                socket.write_all(&key.answer(&challenge, &nonce, id))?;
                socket.read_exact(&mut proof)?;
                if !key.verify_proof(&challenge, &nonce, id, &proof) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the gateway has another key"));
                }
            }
        }
        await_registration(&mut socket)?;
        Ok(socket)
    }
}

/// Waits for an answer of the gateway: the MD5 handshake has none, and a dial to a server that is not yet registered is refused.
fn await_registration(socket: &mut TcpStream) -> io::Result<()> {
    let mut frame = Vec::new();
    Command::New.emit(&mut frame);
    socket.write_all(&frame)?;
    let mut answer = [0; HEADER_LEN + 1 + 4];
    socket.read_exact(&mut answer)?;
    let Ok(Some((Frame::Command(Command::Open(conn)), _))) = wire::frame(&answer, MAX_PACKET) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not a gateway's"));
    };
    frame.clear();
    Command::Close(conn).emit(&mut frame);
    socket.write_all(&frame)
}

/// Connects client `number`. On IPv4 loopback a hundred come from each address.
pub(super) fn connect_client(
    address: SocketAddr,
    number: usize,
    is_non_reading: bool,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if is_non_reading {
        socket.set_recv_buffer_size(NON_READING_BUFFER)?;
    }
    if address.is_ipv4() && address.ip().is_loopback() {
        let own = FIRST_ADDRESS + u32::try_from(number / PER_ADDRESS).unwrap_or(0);
        socket.bind(&SocketAddr::from((Ipv4Addr::from_bits(own), 0)).into())?;
    }
    connected(socket, address)
}

fn connected(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&address.into(), CONNECT_TIME)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Waits for a proxy's connection.
pub(super) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
