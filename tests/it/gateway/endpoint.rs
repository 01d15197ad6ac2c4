//! An endpoint on a plain socket. It sends and receives raw frames, grants no credit by itself, and answers Pings only where a test enables it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use md5::{Digest, Md5};
use ring::hmac;

use super::{Gateway, KEY, TIMEOUT};

pub(super) const NEW: u8 = 0;
pub(super) const OPEN: u8 = 1;
pub(super) const DIAL: u8 = 2;
pub(super) const REFUSE: u8 = 3;
pub(super) const ACCEPT: u8 = 4;
pub(super) const CLOSE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const CREDIT: u8 = 7;
pub(super) const TOKEN: u8 = 8;

/// A small receive buffer, so that little is queued in the kernel.
const SMALL_BUFFER: usize = 4096;

/// A whole frame.
pub(super) fn data(conn: u32, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(4 + message.len()).unwrap();
    [&length.to_le_bytes()[..], &conn.to_le_bytes(), message].concat()
}

/// A whole frame with a command.
pub(super) fn command(kind: u8, arguments: &[u32]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    data(0, &message)
}

/// The whole frame's connection, 0 for commands.
pub(super) fn conn_of(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[4..8].try_into().unwrap())
}

/// What a server sends back to an MD5 challenge (S2-16).
pub(super) fn md5_answer(challenge: [u8; 8], key: &[u8], id: u32) -> Vec<u8> {
    let code = Md5::new().chain_update(challenge).chain_update(key).finalize();
    [&code[..], &id.to_le_bytes()].concat()
}

/// A connection to the gateway.
pub(super) struct Endpoint {
    pub(super) stream: TcpStream,
    /// Whether Pings are answered and not returned to the test.
    pub(super) answers: bool,
}

impl Endpoint {
    /// A bare connection.
    pub(super) fn connect(to: SocketAddr) -> Self {
        Self::on(TcpStream::connect(to).unwrap())
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, answers: false }
    }

    /// A client that the gateway has recognised.
    pub(super) fn client(gateway: &Gateway) -> Self {
        let mut client = Self::connect(gateway.clients());
        client.fence();
        client
    }

    /// A client at another address of the loopback network.
    pub(super) fn client_from(gateway: &Gateway, ip: [u8; 4]) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect(&gateway.clients().into()).unwrap();
        let mut client = Self::on(socket.into());
        client.fence();
        client
    }

    /// A client with small socket buffers.
    pub(super) fn narrow_client(gateway: &Gateway) -> Self {
        let mut client = Self::narrow(gateway.clients());
        client.fence();
        client
    }

    fn narrow(to: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(SMALL_BUFFER).unwrap();
        socket.connect(&to.into()).unwrap();
        Self::on(socket.into())
    }

    /// A registered server of the MD5 listener.
    pub(super) fn server(gateway: &Gateway, id: u32) -> Self {
        let mut server = Self::authenticating(gateway, id, KEY);
        server.fence();
        server
    }

    /// The same with small socket buffers.
    pub(super) fn narrow_server(gateway: &Gateway, id: u32) -> Self {
        let mut server = Self::narrow(gateway.md5);
        server.authenticate(id, KEY);
        server.fence();
        server
    }

    /// A server of the MD5 listener that has answered the challenge with this key.
    pub(super) fn authenticating(gateway: &Gateway, id: u32, key: &str) -> Self {
        let mut server = Self::connect(gateway.md5);
        server.authenticate(id, key);
        server
    }

    fn authenticate(&mut self, id: u32, key: &str) {
        let challenge = self.bytes(8).try_into().unwrap();
        self.send(&md5_answer(challenge, key.as_bytes(), id));
    }

    /// A server of the HMAC listener with this key; `None` if the gateway refuses it. If only the id is refused, the proof is
    /// still received.
    pub(super) fn hmac_server(gateway: &Gateway, id: u32, key: &str) -> Option<Self> {
        let mut server = Self::connect(gateway.hmac);
        let (challenge, nonce, id) = (server.bytes(32), [0x5a; 32], id.to_le_bytes());
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        let signed = [b"ginnel gateway, server v1", &challenge[..], &nonce, &id].concat();
        server.send(&[&nonce[..], &id, hmac::sign(&key, &signed).as_ref()].concat());
        let mut proof = [0; 32];
        server.stream.read_exact(&mut proof).ok()?;
        let signed = [b"ginnel gateway, gateway v1", &nonce[..], &challenge, &id].concat();
        hmac::verify(&key, &signed, &proof).expect("the gateway proves itself");
        server.send(&command(NEW, &[]));
        let mut opened = [0; 13];
        server.stream.read_exact(&mut opened).ok()?;
        assert_eq!(opened[8], OPEN);
        Some(server)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("no {count} bytes: {error}"));
        bytes
    }

    /// The next frame, whole.
    pub(super) fn receive(&mut self) -> Vec<u8> {
        loop {
            let mut frame = self.bytes(4);
            let length = u32::from_le_bytes(frame[..].try_into().unwrap());
            frame.extend(self.bytes(length as usize));
            if !self.answers || frame != command(PING, &[]) {
                return frame;
            }
            self.send(&frame);
        }
    }

    /// Asserts that the next frames are these.
    pub(super) fn expect_frames(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            let received = self.receive();
            assert!(received == *frame, "received {} instead of {}", shown(&received), shown(frame));
        }
    }

    /// Requests an id. Asserts that the answer is the next frame.
    pub(super) fn open(&mut self) -> u32 {
        self.send(&command(NEW, &[]));
        let answer = self.receive();
        let conn = u32::from_le_bytes(answer[answer.len() - 4..].try_into().unwrap());
        assert!(answer == command(OPEN, &[conn]) && conn != 0, "no Open: {}", shown(&answer));
        conn
    }

    /// Asserts that all sent frames were processed and that no unexpected frame has arrived.
    pub(super) fn fence(&mut self) {
        self.open();
    }

    /// A virtual connection to `remote`, as its dialler sees it.
    pub(super) fn dial(&mut self, remote: u32) -> u32 {
        let conn = self.open();
        self.send(&command(DIAL, &[conn, remote]));
        self.expect_frames(&[command(ACCEPT, &[conn, remote])]);
        conn
    }

    /// A virtual connection that is refused; returns the id that it had.
    pub(super) fn dial_refused(&mut self, remote: u32) -> u32 {
        let conn = self.open();
        self.send(&command(DIAL, &[conn, remote]));
        self.expect_frames(&[command(REFUSE, &[conn])]);
        conn
    }

    /// The bytes that arrive before the gateway closes the connection.
    pub(super) fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("still open after {TIMEOUT:?}; received {}", shown(&bytes))
            }
            // Data in flight to the gateway causes a reset.
            Ok(_) | Err(_) => bytes,
        }
    }

    /// The first bytes that arrive; none if the gateway closes the connection.
    pub(super) fn first_bytes(&mut self) -> Vec<u8> {
        let mut byte = [0; 1];
        match self.stream.read(&mut byte) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("neither data nor the end")
            }
            Ok(count) => byte[..count].to_vec(),
            Err(_) => Vec::new(),
        }
    }

    /// Asserts that the gateway closes the connection without more data.
    pub(super) fn assert_closed(&mut self) {
        let received = self.read_to_end();
        assert!(received.is_empty(), "received {} before the end", shown(&received));
    }
}

/// Two ends and what connects them.
pub(super) struct Pair {
    pub(super) client: Endpoint,
    pub(super) server: Endpoint,
    pub(super) conn: u32,
}

impl Pair {
    /// A client, the first one of this gateway, that has dialled server `id`.
    pub(super) fn new(gateway: &Gateway, id: u32) -> Self {
        let (server, mut client) = (Endpoint::server(gateway, id), Endpoint::client(gateway));
        let conn = client.dial(id);
        let mut pair = Self { client, server, conn };
        pair.server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
        pair
    }

    /// Asserts that messages pass both ways.
    pub(super) fn exchange_data(&mut self) {
        let message = data(self.conn, b"are you there?");
        self.client.send(&message);
        self.server.expect_frames(std::slice::from_ref(&message));
        self.server.send(&message);
        self.client.expect_frames(&[message]);
    }
}

/// Formats the first bytes.
pub(super) fn shown(bytes: &[u8]) -> String {
    let head: Vec<_> = bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes: {}", bytes.len(), head.join(" "))
}
