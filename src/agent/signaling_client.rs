//! The agent's line to the signalling server: document 000's messages over one WebSocket.

use crate::net::{connect, time};
use crate::signaling::wire::{
    self, ErrorCode, IceServer, MAX_EPOCH, MAX_TEXT, Message, Request, RequestBody, Response, ResponseBody,
    Tag, Token,
};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long the server may take to answer when the network has changed.
const PROBE_TIME: Duration = Duration::from_secs(1);
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Every other time a heartbeat is sent, and the time after that something must have come since.
const HEARTBEAT: Duration = Duration::from_millis(7500);
/// Requests of ours that may wait for an answer.
const PENDING: usize = 64;
const QUEUE: usize = 64;

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignalingError {
    #[error("no address of the server's name could be found")]
    Name(#[source] io::Error),
    #[error("no connection to the server")]
    Connect(#[source] io::Error),
    #[error("what answers there does not speak WebSocket")]
    Protocol(#[source] Box<tungstenite::Error>),
    #[error("the server said {}: {text}", code.number())]
    Refused { code: ErrorCode, text: String },
    #[error("the server does not answer")]
    Silent,
}

/// What comes from the server unasked.
#[derive(Debug)]
pub(super) enum ServerEvent {
    /// A request, which wants an answer by [`SignalingClient::answer`].
    Request(Box<Request>),
    /// A call that had been accepted cannot go on (S0-A20).
    CallFailed { token: Option<Token>, code: ErrorCode },
    /// The tag is a newer session's ([`ErrorCode::Replaced`]) or nobody's ([`ErrorCode::Revoked`]), and the line ends.
    Over(ErrorCode),
    /// The line is cut; nothing comes any more.
    Closed,
}

/// What registration brought.
#[derive(Debug, Clone)]
pub(super) struct Registered {
    pub(super) tag: Tag,
    pub(super) ice_servers: Vec<IceServer>,
    pub(super) stun2: Option<String>,
    /// The session's number; of owned tags only.
    pub(super) epoch: Option<i64>,
}

/// A handle on the line; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SignalingClient {
    outgoing: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
enum Outgoing {
    Ask(RequestBody, Option<oneshot::Sender<ResponseBody>>),
    Answer(Response),
}

/// Who is calling the server, and how.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    /// The server's access key.
    pub(super) key: Option<String>,
    /// Keeps the tag over reconnections.
    pub(super) secret: Option<String>,
    /// The session's number, last told or shown; none at its first registration.
    pub(super) epoch: Option<i64>,
}

impl Registration {
    fn ask(&self) -> RequestBody {
        let (key, secret) = (self.key.clone(), self.secret.clone());
        RequestBody::Register { key, secret, epoch: self.epoch, proof: None, laddrs: None }
    }

    /// Counts on before the same session registers by a new line, so that it is newer than by its old one.
    pub(super) fn count_on(&mut self) {
        self.epoch = self.epoch.map(|epoch| epoch.saturating_add(1).min(MAX_EPOCH));
    }
}

/// Finds the addresses of a server, IPv4 first because the relay client prefers it.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, SignalingError> {
    let mut addresses: Vec<SocketAddr> =
        lookup_host((host, port)).await.map_err(SignalingError::Name)?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err(SignalingError::Name(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

/// Connects to the first of a server's addresses that answers.
pub(super) async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), SignalingError> {
    let connected = timeout(CONNECT_TIME, connect::connect(addresses)).await;
    connected.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(SignalingError::Connect)
}

impl SignalingClient {
    /// Speaks WebSocket on `stream`, registers, and then tells `heard` what the server says.
    pub(super) async fn open(
        stream: TcpStream,
        host: &str,
        registration: &Registration,
        heard: mpsc::Sender<ServerEvent>,
    ) -> Result<(Self, Registered), SignalingError> {
        let address = stream.peer_addr().map_err(SignalingError::Connect)?;
        let _ = stream.set_nodelay(true);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = format!("ws://{host}:{}/ws", address.port());
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_TEXT)).max_frame_size(Some(MAX_TEXT));
        let shake = client_async_with_config(url, stream, Some(config));
        let (socket, _) = timeout(ANSWER_TIME, shake)
            .await
            .map_err(|_| SignalingError::Silent)?
            .map_err(|error| SignalingError::Protocol(Box::new(error)))?;
        let (outgoing, outgoing_rx) = mpsc::channel(QUEUE);
        tokio::spawn(Line::new(socket, heard).run(outgoing_rx));
        let link = Self { outgoing };
        let welcome = link.register(registration).await?;
        Ok((link, welcome))
    }

    /// Registers, or registers again for fresh credentials.
    pub(super) async fn register(&self, registration: &Registration) -> Result<Registered, SignalingError> {
        match self.ask(registration.ask()).await? {
            ResponseBody::Registered { tag, ice_servers, stun2, epoch, .. } => {
                Ok(Registered { tag, ice_servers, stun2, epoch })
            }
            ResponseBody::Failed { code, em, .. } => Err(SignalingError::Refused { code, text: em }),
            _ => Err(SignalingError::Silent),
        }
    }

    /// Asks the server and waits for its answer, which may be [`ResponseBody::Failed`].
    pub(super) async fn ask(&self, ask: RequestBody) -> Result<ResponseBody, SignalingError> {
        let (answer, answer_rx) = oneshot::channel();
        self.outgoing.send(Outgoing::Ask(ask, Some(answer))).await.map_err(|_| SignalingError::Silent)?;
        timeout(ANSWER_TIME, answer_rx)
            .await
            .map_err(|_| SignalingError::Silent)?
            .map_err(|_| SignalingError::Silent)
    }

    /// Says whether the server still answers, and soon.
    pub(super) async fn is_alive(&self, tag: &Tag) -> bool {
        let asked = self.ask(RequestBody::Heartbeat { tag: tag.clone() });
        matches!(timeout(PROBE_TIME, asked).await, Ok(Ok(_)))
    }

    /// Tells the server something whose answer does not matter.
    pub(super) async fn tell(&self, ask: RequestBody) {
        let _ = self.outgoing.send(Outgoing::Ask(ask, None)).await;
    }

    /// Answers a request of the server's.
    pub(super) async fn answer(&self, mid: Option<i64>, body: ResponseBody) {
        let _ = self.outgoing.send(Outgoing::Answer(Response { mid, body })).await;
    }
}

/// The task that owns the socket.
struct Line {
    socket: WebSocketStream<TcpStream>,
    heard: mpsc::Sender<ServerEvent>,
    pending: HashMap<i64, oneshot::Sender<ResponseBody>>,
    next_mid: i64,
    tag: Option<Tag>,
    /// A heartbeat was sent, and nothing has come since.
    unanswered: bool,
    /// Whether the time before was one for a heartbeat.
    sent_last: bool,
}

impl Line {
    fn new(socket: WebSocketStream<TcpStream>, heard: mpsc::Sender<ServerEvent>) -> Self {
        let next_mid = i64::from(rand::random::<u32>());
        Self {
            socket,
            heard,
            pending: HashMap::new(),
            next_mid,
            tag: None,
            unanswered: false,
            sent_last: false,
        }
    }

    async fn run(mut self, mut outgoing: mpsc::Receiver<Outgoing>) {
        let mut heartbeat = interval_at((time::now().mono + HEARTBEAT).into(), HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                next = outgoing.recv() => match next {
                    Some(Outgoing::Ask(ask, answer)) => self.ask(ask, answer).await,
                    Some(Outgoing::Answer(response)) => self.write(&Message::Response(response)).await,
                    None => break,
                },
                frame = self.socket.next() => match frame {
                    Some(Ok(frame)) => self.read(&frame).await,
                    Some(Err(error)) => Err(error),
                    None => break,
                },
                _ = heartbeat.tick() => self.beat().await,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "the signalling line broke");
                break;
            }
        }
        let _ = timeout(Duration::from_millis(200), self.socket.close(None)).await;
        let _ = self.heard.send(ServerEvent::Closed).await;
    }

    async fn beat(&mut self) -> Result<(), tungstenite::Error> {
        let Some(tag) = self.tag.clone() else { return Ok(()) };
        if self.unanswered {
            return Err(tungstenite::Error::ConnectionClosed);
        }
        self.sent_last = !self.sent_last;
        if !self.sent_last {
            return Ok(());
        }
        self.unanswered = true;
        self.ask(RequestBody::Heartbeat { tag }, None).await
    }

    async fn ask(
        &mut self,
        body: RequestBody,
        answer: Option<oneshot::Sender<ResponseBody>>,
    ) -> Result<(), tungstenite::Error> {
        self.pending.retain(|_, answer| !answer.is_closed());
        self.next_mid += 1;
        // Without a mid some things need no answer at all.
        let mid = answer.is_some().then_some(self.next_mid);
        if let Some(answer) = answer.filter(|_| self.pending.len() < PENDING) {
            self.pending.insert(self.next_mid, answer);
        }
        self.write(&Message::Request(Request { mid, body })).await
    }

    async fn write(&mut self, message: &Message) -> Result<(), tungstenite::Error> {
        self.socket.send(Frame::text(message.encode())).await
    }

    async fn read(&mut self, frame: &Frame) -> Result<(), tungstenite::Error> {
        self.unanswered = false;
        let text = match frame {
            Frame::Text(text) => text,
            // Whether the server hangs up as well is its own affair.
            Frame::Close(_) => return Err(tungstenite::Error::ConnectionClosed),
            _ => return Ok(()),
        };
        match wire::decode(text.as_bytes()) {
            Ok(Message::Request(request)) => {
                let _ = self.heard.send(ServerEvent::Request(Box::new(request))).await;
            }
            Ok(Message::Response(response)) => self.take_answer(response).await?,
            Err(error) => tracing::debug!(%error, "the server said something that is not understood"),
        }
        Ok(())
    }

    async fn take_answer(&mut self, response: Response) -> Result<(), tungstenite::Error> {
        if let ResponseBody::Registered { tag, .. } = &response.body {
            self.tag = Some(tag.clone());
        }
        let waiting = response.mid.and_then(|mid| self.pending.remove(&mid));
        match (waiting, response.body) {
            (Some(waiting), body) => {
                let _ = waiting.send(body);
            }
            (None, ResponseBody::Failed { t: 4, token, code, .. }) => {
                let _ = self.heard.send(ServerEvent::CallFailed { token, code }).await;
            }
            (None, ResponseBody::Failed { code: code @ (ErrorCode::Replaced | ErrorCode::Revoked), .. }) => {
                let _ = self.heard.send(ServerEvent::Over(code)).await;
            }
            // The tag is gone, and with it everything this line is for.
            (None, ResponseBody::Failed { t: 2, code: ErrorCode::UnknownTag, .. }) => {
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
