//! The signalling client: requests, responses and heartbeats over one WebSocket (see `docs/wire/signaling.md`).

use super::config::ServerName;
use crate::net::dialer::{ALPN_HTTP, DialError, DialTarget, DialedStream, Dialer, Duplex};
use crate::net::time;
use crate::signaling::wire::{
    self, ErrorCode, IceServer, MAX_EPOCH, MAX_TEXT, Message, MessageType, Request, RequestBody, Response,
    ResponseBody, Tag, Token,
};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the check after a change of the network.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Half of the heartbeat interval: every other tick sends a heartbeat, and the next one checks that something has arrived since.
const HEARTBEAT_TICK: Duration = Duration::from_millis(7500);
/// Maximum number of requests that wait for a response.
const MAX_PENDING: usize = 64;
const QUEUE: usize = 64;

/// Why a request to the server failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignalingError {
    #[error("cannot connect to the server")]
    Dial(#[source] DialError),
    #[error("the WebSocket handshake failed")]
    Handshake(#[source] Box<tungstenite::Error>),
    #[error("the server answered {}: {text}", code.number())]
    Refused { code: ErrorCode, text: String },
    #[error("the server does not answer")]
    TimedOut,
}

/// What the server sends on its own.
#[derive(Debug)]
pub(super) enum ServerEvent {
    /// A request, to be answered with [`SignalingClient::respond`].
    Request(Box<Request>),
    /// A call failed after the server had accepted it (S0-A20).
    CallFailed { token: Option<Token>, code: ErrorCode },
    /// The tag now belongs to a newer session ([`ErrorCode::Replaced`]) or is revoked ([`ErrorCode::Revoked`]); the connection ends.
    TagLost(ErrorCode),
    /// The connection has ended.
    Closed,
}

/// The result of a registration.
#[derive(Debug, Clone)]
pub(super) struct Registered {
    pub(super) tag: Tag,
    pub(super) ice_servers: Vec<IceServer>,
    pub(super) stun2: Option<String>,
    /// Whether the server allows to predict and probe ports.
    pub(super) spray: bool,
    /// The number of the session, for tags with an owner.
    pub(super) epoch: Option<i64>,
}

/// A handle to the signalling connection; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SignalingClient {
    outgoing: mpsc::Sender<OutgoingMessage>,
}

#[derive(Debug)]
enum OutgoingMessage {
    Request(RequestBody, Option<oneshot::Sender<ResponseBody>>),
    Response(Response),
}

/// The parameters of a registration.
#[derive(Debug, Clone)]
pub(super) struct RegistrationParams {
    /// The server's access key.
    pub(super) key: Option<String>,
    /// The owner's secret, which keeps the tag across reconnections.
    pub(super) secret: Option<String>,
    /// The number of the session; none at its first registration.
    pub(super) epoch: Option<i64>,
}

impl RegistrationParams {
    fn request(&self) -> RequestBody {
        let (key, secret) = (self.key.clone(), self.secret.clone());
        RequestBody::Register { key, secret, epoch: self.epoch, proof: None, laddrs: None }
    }

    /// Makes the registration over a new connection newer than the one over the old connection.
    pub(super) fn increment_epoch(&mut self) {
        self.epoch = self.epoch.map(|epoch| epoch.saturating_add(1).min(MAX_EPOCH));
    }
}

/// Opens the connection to a server's signalling.
pub(super) async fn connect(dialer: &Dialer, server: &ServerName) -> Result<DialedStream, SignalingError> {
    let alpn: &[&[u8]] = &[ALPN_HTTP];
    let target = DialTarget {
        host: &server.host,
        port: server.port,
        address: None,
        tls: server.tls.then_some(alpn),
        send_buffer: None,
        silence_limit: None,
    };
    dialer.dial(target, CONNECT_TIMEOUT).await.map_err(SignalingError::Dial)
}

impl SignalingClient {
    /// Completes the WebSocket handshake on `stream` and registers; then `events` receives what the server sends.
    pub(super) async fn open(
        stream: Box<dyn Duplex>,
        server: &ServerName,
        registration: &RegistrationParams,
        events: mpsc::Sender<ServerEvent>,
    ) -> Result<(Self, Registered), SignalingError> {
        let scheme = if server.tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{}/ws", server.authority());
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_TEXT)).max_frame_size(Some(MAX_TEXT));
        let handshake = client_async_with_config(url, stream, Some(config));
        let (socket, _) = timeout(RESPONSE_TIMEOUT, handshake)
            .await
            .map_err(|_| SignalingError::TimedOut)?
            .map_err(|error| SignalingError::Handshake(Box::new(error)))?;
        let (outgoing, outgoing_rx) = mpsc::channel(QUEUE);
        tokio::spawn(ConnectionTask::new(socket, events).run(outgoing_rx));
        let client = Self { outgoing };
        let registered = client.register(registration).await?;
        Ok((client, registered))
    }

    /// Registers, or registers again for new relay credentials.
    pub(super) async fn register(
        &self,
        registration: &RegistrationParams,
    ) -> Result<Registered, SignalingError> {
        match self.request(registration.request()).await? {
            ResponseBody::Registered { tag, ice_servers, stun2, spray, epoch, .. } => {
                Ok(Registered { tag, ice_servers, stun2, spray, epoch })
            }
            ResponseBody::Failed { code, em, .. } => Err(SignalingError::Refused { code, text: em }),
            _ => Err(SignalingError::TimedOut),
        }
    }

    /// Sends a request and waits for its response, which may be [`ResponseBody::Failed`].
    pub(super) async fn request(&self, body: RequestBody) -> Result<ResponseBody, SignalingError> {
        let (answer, answer_rx) = oneshot::channel();
        self.outgoing
            .send(OutgoingMessage::Request(body, Some(answer)))
            .await
            .map_err(|_| SignalingError::TimedOut)?;
        timeout(RESPONSE_TIMEOUT, answer_rx)
            .await
            .map_err(|_| SignalingError::TimedOut)?
            .map_err(|_| SignalingError::TimedOut)
    }

    /// Returns whether the server answers within [`CHECK_TIMEOUT`].
    pub(super) async fn is_alive(&self, tag: &Tag) -> bool {
        let response = self.request(RequestBody::Heartbeat { tag: tag.clone() });
        matches!(timeout(CHECK_TIMEOUT, response).await, Ok(Ok(_)))
    }

    /// Sends a request and ignores its response.
    pub(super) async fn notify(&self, body: RequestBody) {
        let _ = self.outgoing.send(OutgoingMessage::Request(body, None)).await;
    }

    /// Responds to a request of the server.
    pub(super) async fn respond(&self, mid: Option<i64>, body: ResponseBody) {
        let _ = self.outgoing.send(OutgoingMessage::Response(Response { mid, body })).await;
    }
}

/// The task that owns the WebSocket.
struct ConnectionTask {
    socket: WebSocketStream<Box<dyn Duplex>>,
    events: mpsc::Sender<ServerEvent>,
    pending: HashMap<i64, oneshot::Sender<ResponseBody>>,
    next_mid: i64,
    tag: Option<Tag>,
    /// A heartbeat was sent, and nothing has arrived since.
    is_unanswered: bool,
    /// The last tick sent a heartbeat.
    sent_last: bool,
}

impl ConnectionTask {
    fn new(socket: WebSocketStream<Box<dyn Duplex>>, events: mpsc::Sender<ServerEvent>) -> Self {
        let next_mid = i64::from(rand::random::<u32>());
        Self {
            socket,
            events,
            pending: HashMap::new(),
            next_mid,
            tag: None,
            is_unanswered: false,
            sent_last: false,
        }
    }

    async fn run(mut self, mut outgoing: mpsc::Receiver<OutgoingMessage>) {
        let mut heartbeat = interval_at((time::now().mono + HEARTBEAT_TICK).into(), HEARTBEAT_TICK);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                next = outgoing.recv() => match next {
                    Some(OutgoingMessage::Request(body, answer)) => self.send_request(body, answer).await,
                    Some(OutgoingMessage::Response(response)) => self.write(&Message::Response(response)).await,
                    None => break,
                },
                frame = self.socket.next() => match frame {
                    Some(Ok(frame)) => self.handle_frame(&frame).await,
                    Some(Err(error)) => Err(error),
                    None => break,
                },
                _ = heartbeat.tick() => self.on_heartbeat_tick().await,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "the signalling connection broke");
                break;
            }
        }
        let _ = timeout(Duration::from_millis(200), self.socket.close(None)).await;
        let _ = self.events.send(ServerEvent::Closed).await;
    }

    async fn on_heartbeat_tick(&mut self) -> Result<(), tungstenite::Error> {
        let Some(tag) = self.tag.clone() else { return Ok(()) };
        if self.is_unanswered {
            return Err(tungstenite::Error::ConnectionClosed);
        }
        self.sent_last = !self.sent_last;
        if !self.sent_last {
            return Ok(());
        }
        self.is_unanswered = true;
        self.send_request(RequestBody::Heartbeat { tag }, None).await
    }

    async fn send_request(
        &mut self,
        body: RequestBody,
        answer: Option<oneshot::Sender<ResponseBody>>,
    ) -> Result<(), tungstenite::Error> {
        self.pending.retain(|_, answer| !answer.is_closed());
        self.next_mid += 1;
        // The server does not respond to some requests without a mid.
        let mid = answer.is_some().then_some(self.next_mid);
        if let Some(answer) = answer.filter(|_| self.pending.len() < MAX_PENDING) {
            self.pending.insert(self.next_mid, answer);
        }
        self.write(&Message::Request(Request { mid, body })).await
    }

    async fn write(&mut self, message: &Message) -> Result<(), tungstenite::Error> {
        self.socket.send(Frame::text(message.encode())).await
    }

    async fn handle_frame(&mut self, frame: &Frame) -> Result<(), tungstenite::Error> {
        self.is_unanswered = false;
        let text = match frame {
            Frame::Text(text) => text,
            // The WebSocket closing handshake is not completed.
            Frame::Close(_) => return Err(tungstenite::Error::ConnectionClosed),
            _ => return Ok(()),
        };
        match wire::decode(text.as_bytes()) {
            Ok(Message::Request(request)) => {
                let _ = self.events.send(ServerEvent::Request(Box::new(request))).await;
            }
            Ok(Message::Response(response)) => self.handle_response(response).await?,
            Err(error) => tracing::debug!(%error, "an invalid message from the server"),
        }
        Ok(())
    }

    async fn handle_response(&mut self, response: Response) -> Result<(), tungstenite::Error> {
        if let ResponseBody::Registered { tag, .. } = &response.body {
            self.tag = Some(tag.clone());
        }
        let waiting = response.mid.and_then(|mid| self.pending.remove(&mid));
        match (waiting, response.body) {
            (Some(waiting), body) => {
                let _ = waiting.send(body);
            }
            (None, ResponseBody::Failed { t: MessageType::Call, token, code, .. }) => {
                let _ = self.events.send(ServerEvent::CallFailed { token, code }).await;
            }
            (None, ResponseBody::Failed { code: code @ (ErrorCode::Replaced | ErrorCode::Revoked), .. }) => {
                let _ = self.events.send(ServerEvent::TagLost(code)).await;
            }
            // Without its tag the connection is useless.
            (None, ResponseBody::Failed { t: MessageType::Heartbeat, code: ErrorCode::UnknownTag, .. }) => {
                return Err(tungstenite::Error::ConnectionClosed);
            }
            (None, _) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "signaling_client_tests.rs"]
mod tests;
