//! TURN requests that the library's client never sends: malformed, out of order, repeated at once, or with attributes that it does not know.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};

use crate::test_server::{PASSWORD, USER};
use crate::waiting::pace;

/// RFC 8489 section 6.2.1: the time before a request is sent again, and how often it is sent.
const RETRANSMISSION: Duration = Duration::from_millis(500);
const TRANSMISSIONS: usize = 7;

/// A socket with credentials and the server's challenge; the test writes each request.
pub(crate) struct RawTurnClient {
    socket: UdpSocket,
    user: (String, String),
    realm: String,
    nonce: Vec<u8>,
    transaction: u8,
}

/// REQUESTED-TRANSPORT for UDP, which every Allocate carries.
pub(crate) fn by_udp(request: Builder) -> Builder {
    request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
}

impl RawTurnClient {
    /// Requests realm and nonce, without credentials, from an address of this host.
    pub(crate) fn new(ip: Ipv4Addr, server: SocketAddr) -> Self {
        Self::of((USER.to_owned(), PASSWORD.to_owned()), ip, server)
    }

    /// The same with another user's name and password.
    pub(crate) fn of(user: (String, String), ip: Ipv4Addr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(RETRANSMISSION)).unwrap();
        let mut client = Self { socket, user, realm: String::new(), nonce: Vec::new(), transaction: 0 };
        let request = by_udp(client.begin(Method::ALLOCATE)).finish();
        let challenge = client.request(&request).unwrap();
        let challenge = Message::parse(&challenge).unwrap().unverified();
        assert_eq!(challenge.error_code(), Some(401));
        client.realm = String::from_utf8(challenge.get(attr::REALM).unwrap().to_vec()).unwrap();
        client.nonce = challenge.get(attr::NONCE).unwrap().to_vec();
        client
    }

    /// Allocates from an address of this host.
    pub(crate) fn allocate(ip: Ipv4Addr, server: SocketAddr) -> Self {
        let mut client = Self::new(ip, server);
        let allocated = client.request_signed(Method::ALLOCATE, by_udp);
        assert_eq!(Message::parse(&allocated).unwrap().class(), Class::Success);
        client
    }

    /// Waits for the next datagram, for half a second.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        let len = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..len].to_vec())
    }

    /// Sends an indication or what else gets no answer.
    pub(crate) fn send(&self, message: &[u8]) {
        self.socket.send(message).unwrap();
    }

    /// Sets the TTL of all later datagrams.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        self.socket.set_ttl(ttl).unwrap();
    }

    /// Begins a request.
    pub(crate) fn begin(&mut self, method: Method) -> Builder {
        self.transaction = self.transaction.wrapping_add(1);
        Builder::new(Class::Request, method, TransactionId::new([self.transaction; 12]))
    }

    /// Adds the credentials.
    pub(crate) fn sign(&self, request: Builder) -> Builder {
        let (user, password) = &self.user;
        request
            .attribute(attr::USERNAME, user.as_bytes())
            .attribute(attr::REALM, self.realm.as_bytes())
            .attribute(attr::NONCE, &self.nonce)
            .integrity(&Key::from_bytes(&long_term_digest(user, &self.realm, password)))
    }

    /// Sends a request with credentials and returns its answer.
    pub(crate) fn request_signed(
        &mut self,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> Vec<u8> {
        let request = fill(self.begin(method));
        let request = self.sign(request).finish();
        self.request(&request).unwrap_or_else(|| panic!("no answer to {method:?}"))
    }

    /// Sends `request`, again if need be, and returns its answer.
    pub(crate) fn request(&self, request: &[u8]) -> Option<Vec<u8>> {
        (0..TRANSMISSIONS).find_map(|_| self.request_once(request))
    }

    /// Sends `request` and returns its answer, if one comes within half a second.
    pub(crate) fn request_once(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(request).unwrap();
        let mut buffer = [0; 2048];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) if len >= 20 && buffer[4..20] == request[4..20] => {
                    return Some(buffer[..len].to_vec());
                }
                Ok(_) => {}
                // A server that starts opens TCP first; without a wait all transmissions would be refused at once.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    pace(RETRANSMISSION);
                    return None;
                }
                Err(_) => return None,
            }
        }
    }
}
