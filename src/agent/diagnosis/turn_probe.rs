//! A relayed address by each transport, released as soon as it is there.

use super::observations::{Failure, NO_WEBSOCKET};
use super::stun_socket::StunSocket;
use crate::agent::relay_stream::{StreamTarget, next_frame};
use crate::net::time;
use crate::turn_client::{
    ClientTransport, LongTermCredentials, TurnClient, TurnClientConfig, TurnError, TurnEvent,
};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep_until, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Before the first retransmission over UDP.
const FIRST_WAIT: Duration = Duration::from_millis(150);
const READ_BUFFER: usize = 4096;
/// Without credentials the server's challenge is the answer.
const NO_KEY: &str = "401 (no key given)";
const REFUSED_CREDENTIALS: &str = "401 (credentials refused)";

/// An open way to the server.
enum TurnLink {
    Udp(StunSocket, SocketAddr),
    Stream(Box<dyn crate::net::dialer::Duplex>, BytesMut),
    WebSocket(Box<WebSocketStream<Box<dyn crate::net::dialer::Duplex>>>),
}

impl TurnLink {
    async fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Udp(socket, server) => {
                socket.send(*server, &bytes);
                Ok(())
            }
            Self::Stream(stream, _) => {
                stream.write_all(&bytes).await?;
                stream.flush().await
            }
            Self::WebSocket(socket) => {
                socket.send(Message::Binary(bytes.into())).await.map_err(io::Error::other)
            }
        }
    }

    async fn receive(&mut self, deadline: Instant) -> io::Result<Bytes> {
        match self {
            Self::Udp(socket, _) => match socket.receive(deadline).await {
                Some((bytes, _)) => Ok(bytes.into()),
                None => std::future::pending().await,
            },
            Self::Stream(stream, buffer) => loop {
                if let Some(frame) = next_frame(buffer)? {
                    return Ok(frame);
                }
                if stream.read_buf(buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            },
            Self::WebSocket(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Binary(frame))) => return Ok(frame),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(io::Error::other(error)),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
            },
        }
    }
}

/// Allocates over UDP; returns how long it took.
pub(super) async fn over_udp(
    server: SocketAddr,
    credentials: Option<Arc<LongTermCredentials>>,
    deadline: Instant,
) -> Result<Duration, Failure> {
    let socket = StunSocket::bind(server).ok_or(Failure::NoRoute)?;
    allocate(TurnLink::Udp(socket, server), credentials, deadline).await
}

/// Allocates over TCP, or over TLS.
pub(super) async fn over_stream(
    target: StreamTarget<'_>,
    credentials: Option<Arc<LongTermCredentials>>,
    deadline: Instant,
) -> Result<Duration, Failure> {
    let dialed = timeout_at(deadline.into(), target.dial_turn()).await.map_err(|_| Failure::TimedOut)??;
    let link = TurnLink::Stream(dialed.stream, BytesMut::with_capacity(READ_BUFFER));
    allocate(link, credentials, deadline).await
}

/// Allocates inside a WebSocket.
pub(super) async fn over_websocket(
    target: StreamTarget<'_>,
    credentials: Option<Arc<LongTermCredentials>>,
    deadline: Instant,
) -> Result<Duration, Failure> {
    let open = async {
        let dialed = target.dial_http().await?;
        target.upgrade(dialed.stream).await.map_err(|_| Failure::Answer(NO_WEBSOCKET.to_owned()))
    };
    let socket = timeout_at(deadline.into(), open).await.map_err(|_| Failure::TimedOut)??;
    allocate(TurnLink::WebSocket(Box::new(socket)), credentials, deadline).await
}

async fn allocate(
    mut link: TurnLink,
    credentials: Option<Arc<LongTermCredentials>>,
    deadline: Instant,
) -> Result<Duration, Failure> {
    let has_key = credentials.is_some();
    // With any credentials the server shows that it is there.
    let credentials = credentials.unwrap_or_else(|| Arc::new(LongTermCredentials::new("probe", "")));
    let mut config = TurnClientConfig::new(credentials);
    config.first_wait = FIRST_WAIT;
    if !matches!(link, TurnLink::Udp(..)) {
        config.transport = ClientTransport::Stream;
    }
    let mut turn = TurnClient::new(config, rand::random());
    let started = time::runtime();
    turn.allocate(started);
    let ended = timeout_at(deadline.into(), drive(&mut turn, &mut link, deadline)).await;
    let result = match ended {
        Err(_) => Err(Failure::TimedOut),
        Ok(Err(error)) => Err(Failure::from(&error)),
        Ok(Ok(Ok(()))) => Ok(time::runtime().duration_since(started)),
        Ok(Ok(Err(error))) => Err(refusal(&error, has_key)),
    };
    turn.release(time::runtime());
    while let Some(bytes) = turn.poll_transmit() {
        if link.send(bytes).await.is_err() {
            break;
        }
    }
    result
}

/// Runs the client until it has an allocation or cannot have one.
async fn drive(
    turn: &mut TurnClient,
    link: &mut TurnLink,
    deadline: Instant,
) -> io::Result<Result<(), TurnError>> {
    loop {
        while let Some(bytes) = turn.poll_transmit() {
            link.send(bytes).await?;
        }
        while let Some(event) = turn.poll_event() {
            match event {
                TurnEvent::Allocated { .. } => return Ok(Ok(())),
                TurnEvent::Failed(error) => return Ok(Err(error)),
                _ => {}
            }
        }
        let due = turn.poll_timeout().map_or(deadline, |due| due.min(deadline));
        tokio::select! {
            received = link.receive(deadline) => drop(turn.handle(time::runtime(), &received?)),
            () = sleep_until(due.into()) => turn.handle_timeout(time::runtime()),
        }
    }
}

fn refusal(error: &TurnError, has_key: bool) -> Failure {
    match error {
        TurnError::Refused { code: 401 | 441, .. } if has_key => Failure::Unauthorized(REFUSED_CREDENTIALS),
        TurnError::Refused { code: 401 | 441, .. } => Failure::Unauthorized(NO_KEY),
        TurnError::Refused { code: 486, .. } => Failure::Answer("486 (quota reached)".to_owned()),
        TurnError::Refused { code: 508, .. } => Failure::Answer("508 (no capacity)".to_owned()),
        TurnError::Refused { code, .. } => Failure::Answer(format!("refused ({code})")),
        TurnError::NoResponse { .. } => Failure::TimedOut,
        TurnError::Redirected { .. } => Failure::Answer("redirected to another server".to_owned()),
        _ => Failure::Answer("no TURN server answers".to_owned()),
    }
}
