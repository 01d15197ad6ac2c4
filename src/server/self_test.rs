//! Self-test: Binding and a real allocation through the advertised address, over UDP and TCP.

use crate::net::time;
use crate::stun::{Builder, Class, Message, Method, TransactionId};
use crate::turn_client::{
    AddressFamilies, ClientTransport, LongTermCredentials, TurnClient, TurnClientConfig, TurnError, TurnEvent,
};
use crate::turn_server::auth::RestCredentials;
use crate::turn_wire::frame_len;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Time for a response, and for an allocation and its release.
const RESPONSE_TIME: Duration = Duration::from_secs(1);
const ALLOCATION_TIME: Duration = Duration::from_secs(3);

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
        let mut socket = Socket::Udp(socket);
        result.stun = socket.binding().await.is_ok();
        result.turn_udp = socket.allocate_all(families, credentials).await.is_ok();
    }
    if let Ok(Ok(stream)) = timeout(RESPONSE_TIME, TcpStream::connect(server)).await {
        result.turn_tcp = Socket::Tcp(stream).allocate_all(families, credentials).await.is_ok();
    }
    result
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    /// Sends once; nothing is lost on loopback or this host's own interface.
    async fn binding(&mut self) -> io::Result<()> {
        let id = TransactionId::new(ChaCha20Rng::from_os_rng().random());
        self.send(&Builder::new(Class::Request, Method::BINDING, id).finish()).await?;
        let answer = timeout(RESPONSE_TIME, self.receive()).await??;
        match Message::parse(&answer) {
            Ok(message) if message.transaction() == id && message.class() == Class::Success => Ok(()),
            _ => Err(io::Error::other("refused")),
        }
    }

    /// Creates and ends one allocation of each family in `relay`.
    async fn allocate_all(&mut self, relay: &[IpAddr], credentials: &RestCredentials) -> io::Result<()> {
        for ip in relay {
            timeout(ALLOCATION_TIME, self.allocate(credentials, ip.is_ipv6())).await??;
        }
        Ok(())
    }

    async fn allocate(&mut self, credentials: &RestCredentials, v6: bool) -> io::Result<()> {
        let credentials = LongTermCredentials::new(&credentials.username, &credentials.credential);
        let mut config = TurnClientConfig::new(Arc::new(credentials));
        config.families = if v6 { AddressFamilies::V6 } else { AddressFamilies::V4 };
        config.transport = match self {
            Self::Udp(_) => ClientTransport::Datagram,
            Self::Tcp(_) => ClientTransport::Stream,
        };
        let mut client = TurnClient::new(config, ChaCha20Rng::from_os_rng().random());
        client.allocate(time::mono());
        loop {
            match client.poll_event() {
                Some(TurnEvent::Allocated { .. }) => client.release(time::mono()),
                Some(TurnEvent::Released) => return Ok(()),
                // ALTERNATE-SERVER is configured, so this is the expected response.
                Some(TurnEvent::Failed(TurnError::Redirected { .. })) => return Ok(()),
                Some(TurnEvent::Failed(error)) => return Err(io::Error::other(error)),
                Some(_) => {}
                None => {
                    while let Some(message) = client.poll_transmit() {
                        self.send(&message).await?;
                    }
                    let answer = self.receive().await?;
                    client.handle(time::mono(), &answer);
                }
            }
        }
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).await.map(drop),
            Self::Tcp(stream) => stream.write_all(message).await,
        }
    }

    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; 1500];
        match self {
            Self::Udp(socket) => {
                let len = socket.recv(&mut answer).await?;
                answer.truncate(len);
            }
            Self::Tcp(stream) => {
                stream.read_exact(&mut answer[..4]).await?;
                let len = frame_len(&answer[..4]).map_err(io::Error::other)?.filter(|len| *len <= 1500);
                answer.truncate(len.ok_or(io::ErrorKind::InvalidData)?);
                stream.read_exact(&mut answer[4..]).await?;
            }
        }
        Ok(answer)
    }
}
