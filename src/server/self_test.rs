//! Self-test: Binding and a real allocation through the advertised address, over UDP and TCP.

use crate::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use crate::turn_server::auth::RestCredentials;
use crate::turn_wire::frame_len;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Time for each response.
const RESPONSE_TIME: Duration = Duration::from_secs(1);

/// Which tests succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SelfTest {
    /// Binding over UDP.
    pub stun: bool,
    /// Allocate, and Refresh with lifetime 0, over UDP.
    pub turn_udp: bool,
    /// The same over TCP.
    pub turn_tcp: bool,
}

/// Tests `server` as a client with `credentials`; makes one allocation of each family that it relays in.
pub(super) async fn run(server: SocketAddr, families: &[IpAddr], credentials: &RestCredentials) -> SelfTest {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut result = SelfTest::default();
    if let Ok(socket) = UdpSocket::bind((any, 0)).await
        && socket.connect(server).await.is_ok()
    {
        let mut client = TestClient::new(Socket::Udp(socket));
        result.stun = client.exchange(Method::BINDING, |builder| builder).await.is_ok();
        result.turn_udp = client.allocate_all(families, credentials).await.is_ok();
    }
    if let Ok(Ok(stream)) = timeout(RESPONSE_TIME, TcpStream::connect(server)).await {
        result.turn_tcp =
            TestClient::new(Socket::Tcp(stream)).allocate_all(families, credentials).await.is_ok();
    }
    result
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

struct TestClient {
    socket: Socket,
    rng: ChaCha20Rng,
}

impl TestClient {
    fn new(socket: Socket) -> Self {
        Self { socket, rng: ChaCha20Rng::from_os_rng() }
    }

    /// Creates and ends one allocation of each family in `relay`.
    async fn allocate_all(&mut self, relay: &[IpAddr], credentials: &RestCredentials) -> io::Result<()> {
        for ip in relay {
            self.allocate(credentials, ip.is_ipv6()).await?;
        }
        Ok(())
    }

    async fn allocate(&mut self, credentials: &RestCredentials, v6: bool) -> io::Result<()> {
        let udp = |builder: Builder| {
            let builder = builder.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            if v6 { builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]) } else { builder }
        };
        let challenge = match self.exchange(Method::ALLOCATE, udp).await {
            Err(ExchangeError::Response(bytes)) => bytes,
            _ => return Err(io::Error::other("no challenge")),
        };
        let message = Message::parse(&challenge).map_err(io::Error::other)?;
        let (Some(realm), Some(nonce)) = (message.realm(), message.nonce()) else {
            return Err(io::Error::other("no realm"));
        };
        let RestCredentials { username, credential } = credentials;
        let key = Key::from_bytes(&long_term_digest(username, realm, credential));
        let sign = |builder: Builder| {
            builder
                .attribute(attr::USERNAME, username.as_bytes())
                .attribute(attr::REALM, realm.as_bytes())
                .attribute(attr::NONCE, nonce.as_bytes())
                .integrity(&key)
        };
        match self.exchange(Method::ALLOCATE, |builder| sign(udp(builder))).await {
            // ALTERNATE-SERVER is configured, so this is the expected response.
            Err(ExchangeError::Response(bytes)) if error_code(&bytes) == Some(300) => return Ok(()),
            other => other?,
        }
        self.exchange(Method::REFRESH, |builder| sign(builder.attribute(attr::LIFETIME, &[0; 4]))).await?;
        Ok(())
    }

    /// Sends once; nothing is lost on loopback or this host's own interface.
    async fn exchange(
        &mut self,
        method: Method,
        fill: impl FnOnce(Builder) -> Builder,
    ) -> Result<(), ExchangeError> {
        let id = TransactionId::new(self.rng.random());
        let request = fill(Builder::new(Class::Request, method, id)).finish();
        let answer =
            timeout(RESPONSE_TIME, self.socket.exchange(&request)).await.map_err(io::Error::from)??;
        match Message::parse(&answer) {
            Ok(message) if message.transaction() == id && message.class() == Class::Success => Ok(()),
            _ => Err(ExchangeError::Response(answer)),
        }
    }
}

fn error_code(answer: &[u8]) -> Option<u16> {
    Message::parse(answer).ok()?.unverified().error_code()
}

/// Why an exchange did not end with a success response.
enum ExchangeError {
    /// Another response.
    Response(Vec<u8>),
    Io(io::Error),
}

impl From<io::Error> for ExchangeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ExchangeError> for io::Error {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Response(_) => Self::other("refused"),
            ExchangeError::Io(error) => error,
        }
    }
}

impl Socket {
    async fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; 1500];
        match self {
            Self::Udp(socket) => {
                socket.send(request).await?;
                let len = socket.recv(&mut answer).await?;
                answer.truncate(len);
            }
            Self::Tcp(stream) => {
                stream.write_all(request).await?;
                stream.read_exact(&mut answer[..4]).await?;
                let len = frame_len(&answer[..4]).map_err(io::Error::other)?.filter(|len| *len <= 1500);
                answer.truncate(len.ok_or(io::ErrorKind::InvalidData)?);
                stream.read_exact(&mut answer[4..]).await?;
            }
        }
        Ok(answer)
    }
}
