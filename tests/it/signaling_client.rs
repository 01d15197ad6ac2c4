//! A client of the signalling server that sends and receives JSON over WebSocket or UDP.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

/// How long a message may be awaited.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client by UDP waits before it asks again.
const REPEAT: Duration = Duration::from_millis(500);

/// Where a [`Signaler`]'s messages go.
enum Line {
    Web(Box<WebSocket<TcpStream>>),
    Udp(UdpSocket),
}

/// One client.
pub(crate) struct SignalingClient {
    line: Line,
    next_mid: i64,
    received: VecDeque<Value>,
}

impl SignalingClient {
    /// Opens a WebSocket from `ip`.
    pub(crate) fn web(ip: Ipv4Addr, server: SocketAddr) -> Self {
        let stream = connect(ip, server).unwrap_or_else(|error| panic!("{server}: {error}"));
        let (socket, _) = client(format!("ws://{server}/ws"), stream).unwrap();
        Self::on(Line::Web(Box::new(socket)))
    }

    /// Opens a UDP socket at `ip`.
    pub(crate) fn udp(ip: Ipv4Addr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.connect(server).unwrap();
        Self::on(Line::Udp(socket))
    }

    fn on(line: Line) -> Self {
        Self { line, next_mid: 1, received: VecDeque::new() }
    }

    /// Sends a message as it stands.
    pub(crate) fn send(&mut self, message: &Value) {
        match &mut self.line {
            Line::Web(socket) => socket.send(Message::text(message.to_string())).unwrap(),
            Line::Udp(socket) => {
                socket.send(message.to_string().as_bytes()).unwrap();
            }
        }
    }

    /// Sends a request under a `mid` of its own and returns the answer, whatever its code.
    pub(crate) fn request(&mut self, mut request: Value) -> Value {
        self.next_mid += 1;
        let mid = self.next_mid;
        request["mid"] = json!(mid);
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            self.send(&request);
            // What was sent by WebSocket is not lost.
            let wait = if matches!(self.line, Line::Udp(_)) { REPEAT } else { TIMEOUT };
            let answer =
                self.receive_within(wait, |message| message["mid"] == mid && message.get("code").is_some());
            if let Some(answer) = answer {
                return answer;
            }
        }
        panic!("{request} is not answered, but these messages arrived: {:?}", self.received)
    }

    /// Registers with `params` and returns the tag.
    pub(crate) fn register(&mut self, params: &Value) -> String {
        let welcome = self.request(json!({"t": 1, "params": params}));
        welcome["extra"]["tag"].as_str().unwrap_or_else(|| panic!("{welcome}")).to_owned()
    }

    /// The first message, received or yet to come, that `pick` accepts; those before it are kept.
    pub(crate) fn receive(&mut self, pick: impl Fn(&Value) -> bool) -> Value {
        self.receive_within(TIMEOUT, pick)
            .unwrap_or_else(|| panic!("no such message, but {:?}", self.received))
    }

    /// The same, with a time of its own; `None` at its end, and at the end of the line.
    pub(crate) fn receive_within(
        &mut self,
        within: Duration,
        pick: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        if let Some(index) = self.received.iter().position(&pick) {
            return self.received.remove(index);
        }
        let deadline = Instant::now() + within;
        loop {
            let message = self.next(deadline)?;
            if pick(&message) {
                return Some(message);
            }
            self.received.push_back(message);
        }
    }

    fn next(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            match &mut self.line {
                Line::Web(socket) => {
                    socket.get_ref().set_read_timeout(Some(left)).unwrap();
                    if let Message::Text(text) = socket.read().ok()? {
                        return Some(serde_json::from_str(&text).unwrap());
                    }
                }
                Line::Udp(socket) => {
                    let mut buffer = [0; 2048];
                    socket.set_read_timeout(Some(left)).unwrap();
                    let length = socket.recv(&mut buffer).ok()?;
                    return Some(serde_json::from_slice(&buffer[..length]).unwrap());
                }
            }
        }
    }
}

/// A TCP connection from `ip`.
pub(crate) fn connect(ip: Ipv4Addr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    if !ip.is_unspecified() {
        socket.bind(&SocketAddr::from((ip, 0)).into())?;
    }
    socket.connect(&server.into())?;
    Ok(socket.into())
}
