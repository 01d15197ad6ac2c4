//! Clients of RFC 3489: shared secrets over TLS, and Binding requests signed with them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ginnel::stun::{
    Builder, Class, ClassicText, Key, Message, Method, TransactionId, append_classic_integrity, attr,
};

use crate::authority::Authority;
use crate::test_server::{Lines, TestServer};
use crate::transports::tls;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Without the magic cookie.
const ID: TransactionId = TransactionId([7; 16]);

fn shared_secret_request() -> Vec<u8> {
    Builder::new(Class::Request, Method::SHARED_SECRET, ID).finish()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Sends a request on a stream and reads the answer.
fn request_on_stream(stream: &mut (impl Read + Write), request: &[u8]) -> Vec<u8> {
    stream.write_all(request).unwrap();
    let mut answer = vec![0; 20];
    stream.read_exact(&mut answer).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([answer[2], answer[3]]))];
    stream.read_exact(&mut body).unwrap();
    answer.extend(body);
    answer
}

/// A client by UDP.
struct Client(UdpSocket);

impl Client {
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        Self(socket)
    }

    /// Sends a request, again where it was lost, and returns the answer.
    fn request(&self, request: &[u8]) -> Vec<u8> {
        let mut buffer = [0; 1500];
        for _ in 0..40 {
            self.0.send(request).unwrap();
            if let Ok(len) = self.0.recv(&mut buffer) {
                return buffer[..len].to_vec();
            }
        }
        panic!("no answer")
    }
}

fn error_code(answer: &[u8]) -> Option<u16> {
    let answer = Message::parse(answer).unwrap();
    assert_eq!(answer.transaction(), ID);
    answer.unverified().error_code()
}

fn binding(name: Option<&str>, password: &str) -> Vec<u8> {
    let mut request = Builder::new(Class::Request, Method::BINDING, ID);
    if let Some(name) = name {
        request = request.attribute(attr::USERNAME, name.as_bytes());
    }
    let mut bytes = request.finish();
    append_classic_integrity(&mut bytes, &Key::short_term(password), ClassicText::Padded);
    bytes
}

#[test]
fn a_shared_secret_request_gets_433_by_udp_and_tcp_and_credentials_by_tls() {
    let authority = Authority::new();
    let test_server = TestServer::with_tls(Lines::default(), Some(&authority));
    let client = Client::new(test_server.address);
    let by_udp = client.request(&shared_secret_request());
    assert_eq!((&by_udp[..2], error_code(&by_udp)), (&[0x01, 0x12][..], Some(433)));
    let by_tcp = request_on_stream(&mut connect(test_server.address), &shared_secret_request());
    assert_eq!((&by_tcp[..2], error_code(&by_tcp)), (&[0x01, 0x12][..], Some(433)));

    let mut names = Vec::new();
    for address in [test_server.address, test_server.tls] {
        let mut stream = tls(connect(address), &authority);
        let granted = request_on_stream(&mut stream, &shared_secret_request());
        let granted = Message::parse(&granted).unwrap();
        assert_eq!((granted.class(), granted.method()), (Class::Success, Method::SHARED_SECRET));
        let text = |kind| std::str::from_utf8(granted.unverified().get(kind).unwrap()).unwrap().to_owned();
        let (name, password) = (text(attr::USERNAME), text(attr::PASSWORD));
        assert!(password.len() >= 32, "128 bits, four a digit: {password}");
        let key = Key::short_term(&password);
        let answer = client.request(&binding(Some(&name), &password));
        let answer = Message::parse(&answer).unwrap();
        assert_eq!(answer.class(), Class::Success);
        assert_eq!(answer.verify_classic(&key), Some(ClassicText::Padded));
        let mapped = answer.unverified().plain_address(attr::MAPPED_ADDRESS).unwrap();
        assert_eq!(mapped, Some(client.0.local_addr().unwrap()));
        assert_eq!(error_code(&client.request(&binding(Some(&name), "another"))), Some(431));
        assert_eq!(error_code(&client.request(&binding(None, &password))), Some(432));
        names.push(name);
    }
    assert_ne!(names[0], names[1]);
}

#[test]
fn a_binding_request_with_a_foreign_user_name_is_answered_without_integrity() {
    let test_server = TestServer::on_loopback("");
    let answer = Client::new(test_server.address).request(&binding(Some("them:me"), "an ICE password"));
    let answer = Message::parse(&answer).unwrap();
    assert_eq!((answer.class(), answer.has_integrity()), (Class::Success, false));
}

#[test]
fn everything_else_without_the_magic_cookie_is_dropped() {
    let test_server = TestServer::on_loopback("");
    let client = Client::new(test_server.address);
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method(0x7F)] {
        let request = Builder::new(Class::Request, method, TransactionId([1; 16]));
        client.0.send(&request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).finish()).unwrap();
        // One socket of the server receives both in order: the first answer belongs to the second request.
        let answer = client.request(&Builder::new(Class::Request, Method::BINDING, ID).finish());
        assert_eq!((error_code(&answer), &answer[..2]), (None, &[1, 1][..]), "{method:?}");
    }
}
