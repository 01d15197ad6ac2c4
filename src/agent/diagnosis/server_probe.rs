//! One server by each transport, all at the same time. The TURN probes wait for the credentials that signalling grants.

use super::http_answer::{HttpAnswer, MAX_ANSWER};
use super::observations::{Failure, NO_WEBSOCKET, Outcome, ServerObservations};
use super::stun_socket::{StunAnswer, StunOptions, StunSocket};
use super::turn_probe;
use crate::agent::config::ServerName;
use crate::agent::connect::relay_credentials;
use crate::agent::relay_stream::StreamTarget;
use crate::agent::signaling_client::{self, RegistrationParams, SignalingClient, SignalingError};
use crate::net::dialer::{self, DialError, DialTarget, DialedStream, Dialer};
use crate::net::time;
use crate::signaling::wire::ErrorCode;
use crate::turn_client::LongTermCredentials;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;

/// How long the lookup of a name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(900);
/// How long signalling may keep the TURN probes waiting.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_millis(1300);
/// How long the answer of UDP may take.
const UDP_TIMEOUT: Duration = Duration::from_millis(1400);
/// How long the server's port may take before port 80 is tried, on which captive portals answer.
const MAIN_PORT_TIME: Duration = Duration::from_millis(600);
const TLS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;
const QUEUE: usize = 8;
const NO_FAMILY: &str = "the server has no such address";
const NO_LOCAL: &str = "this machine has no such address";
const NO_ADDRESS: &str = "the name is resolved only by the proxy";

/// What the probes of all servers share.
#[derive(Debug, Clone)]
pub(super) struct ProbeContext {
    pub(super) dialer: Dialer,
    pub(super) key: Option<String>,
    pub(super) deadline: Instant,
    /// Where the second UDP port is published that a server's signalling names.
    pub(super) second_port: Arc<watch::Sender<Option<u16>>>,
}

/// Resolves the name of a server.
pub(super) async fn look_up(name: &ServerName, deadline: Instant) -> Result<Vec<SocketAddr>, Failure> {
    let until = deadline.min(time::runtime() + LOOKUP_TIMEOUT);
    match timeout_at(until.into(), dialer::resolve(&name.host, name.port)).await {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(_)) | Err(_) => Err(Failure::NameNotFound),
    }
}

/// The credentials for TURN; `None` until it is known whether there are any.
type Granted = Option<Option<Arc<LongTermCredentials>>>;

/// Probes a server by every transport.
pub(super) async fn observe(
    name: ServerName,
    addresses: Result<Vec<SocketAddr>, Failure>,
    context: ProbeContext,
) -> ServerObservations {
    let proxy = context.dialer.proxies.proxy_of(&name.host, name.port);
    let (addresses, unresolved) = match addresses {
        Ok(addresses) => (addresses, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    if let (Some(failure), None) = (&unresolved, &proxy) {
        return unreachable(name, failure);
    }
    let of_family = |is_v4: bool| addresses.iter().copied().find(|address| address.is_ipv4() == is_v4);
    let (granted, granted_rx) = watch::channel::<Granted>(None);
    let probe = Probe { name: &name, address: addresses.first().copied(), context: &context };
    let udp_server =
        [of_family(true), of_family(false)].into_iter().flatten().find(|address| has_source(*address));
    let (stun_v4, stun_v6, web, tls, signaling, turn) = tokio::join!(
        stun(of_family(true), &context, proxy.is_some()),
        stun(of_family(false), &context, proxy.is_some()),
        probe.http(),
        probe.tls_443(),
        probe.signaling(granted),
        probe.turn(udp_server, granted_rx),
    );
    let mapped = [&stun_v4, &stun_v6].into_iter().filter_map(|(_, mapped)| *mapped).map(|mapped| mapped.ip());
    let mapped = mapped.collect();
    let [turn_udp, turn_tcp, turn_tls, turn_websocket] = turn;
    ServerObservations {
        addresses,
        proxy,
        stun_v4: stun_v4.0,
        stun_v6: stun_v6.0,
        mapped,
        tcp: web.tcp,
        tls: tls.into(),
        turn_udp,
        turn_tcp,
        turn_tls,
        turn_websocket,
        signaling: signaling.into(),
        http: web.answer,
        port_80: web.port_80,
        clock_ahead: web.clock_ahead,
        name,
    }
}

/// What is known of a server whose name cannot be resolved.
fn unreachable(name: ServerName, failure: &Failure) -> ServerObservations {
    let failed = || Outcome::Failed(failure.clone());
    ServerObservations {
        name,
        addresses: Vec::new(),
        proxy: None,
        stun_v4: failed(),
        stun_v6: failed(),
        mapped: Vec::new(),
        tcp: failed(),
        tls: failed(),
        turn_udp: failed(),
        turn_tcp: failed(),
        turn_tls: failed(),
        turn_websocket: failed(),
        signaling: failed(),
        http: None,
        port_80: None,
        clock_ahead: None,
    }
}

fn has_source(server: SocketAddr) -> bool {
    StunSocket::bind(server).is_some()
}

async fn stun(
    server: Option<SocketAddr>,
    context: &ProbeContext,
    is_proxied: bool,
) -> (Outcome, Option<SocketAddr>) {
    let Some(server) = server else {
        return (Outcome::NotTested(if is_proxied { NO_ADDRESS } else { NO_FAMILY }), None);
    };
    let Some(socket) = StunSocket::bind(server) else { return (Outcome::NotTested(NO_LOCAL), None) };
    let deadline = context.deadline.min(time::runtime() + UDP_TIMEOUT);
    match socket.ask(server, StunOptions::default(), deadline).await {
        Some(StunAnswer { mapped: Some(mapped), round_trip, .. }) => {
            (Outcome::Works(round_trip), Some(mapped))
        }
        Some(_) => (Outcome::Failed(Failure::Answer("refused".to_owned())), None),
        None => (Outcome::Failed(Failure::TimedOut), None),
    }
}

/// What HTTP on the server's port, or on port 80 in its place, has shown.
struct WebObservations {
    tcp: Outcome,
    answer: Option<HttpAnswer>,
    port_80: Option<HttpAnswer>,
    clock_ahead: Option<i64>,
}

struct Probe<'a> {
    name: &'a ServerName,
    address: Option<SocketAddr>,
    context: &'a ProbeContext,
}

impl Probe<'_> {
    fn target(&self, tls: bool) -> StreamTarget<'_> {
        StreamTarget { name: self.name, address: self.address, dialer: &self.context.dialer, tls }
    }

    async fn dial(&self, port: u16, alpn: Option<&[&[u8]]>) -> Result<DialedStream, Failure> {
        let target = DialTarget {
            host: &self.name.host,
            port,
            address: self.address.map(|address| SocketAddr::new(address.ip(), port)),
            tls: alpn,
            send_buffer: None,
            silence_limit: None,
        };
        let limit = self.context.deadline.saturating_duration_since(time::runtime());
        let dialed = timeout_at(self.context.deadline.into(), self.context.dialer.dial(target, limit)).await;
        Ok(dialed.map_err(|_| Failure::TimedOut)??)
    }

    async fn http(&self) -> WebObservations {
        let main = self.main_port();
        tokio::pin!(main);
        let patience = time::runtime() + MAIN_PORT_TIME;
        let is_proxied = self.context.dialer.proxies.select(&self.name.host, self.name.port).is_some();
        let early = timeout_at(patience.into(), &mut main).await;
        let (web, port_80) = match early {
            Ok(web) if web.answer.is_some() || is_proxied => (web, None),
            Ok(web) => (web, self.port_80().await),
            Err(_) if is_proxied => (main.await, None),
            Err(_) => tokio::join!(main, self.port_80()),
        };
        WebObservations { port_80, ..web }
    }

    async fn port_80(&self) -> Option<HttpAnswer> {
        let mut dialed = self.dial(HTTP_PORT, None).await.ok()?;
        self.get_health(&mut dialed).await
    }

    async fn main_port(&self) -> WebObservations {
        let alpn: &[&[u8]] = &[dialer::ALPN_HTTP];
        let started = time::runtime();
        let mut dialed = match self.dial(self.name.port, self.name.tls.then_some(alpn)).await {
            Ok(dialed) => dialed,
            Err(failure) => {
                let tcp = Outcome::Failed(failure);
                return WebObservations { tcp, answer: None, port_80: None, clock_ahead: None };
            }
        };
        let tcp = Outcome::Works(time::runtime().duration_since(started));
        let answer = self.get_health(&mut dialed).await;
        let unix = i64::try_from(time::now().unix).unwrap_or(i64::MAX);
        let date = answer.as_ref().filter(|answer| answer.is_healthy()).and_then(|answer| answer.date);
        let ahead = date.and_then(|date| Some(unix.saturating_sub(i64::try_from(date).ok()?)));
        // Both clocks count whole seconds.
        let clock_ahead = ahead.map(|ahead| if ahead.abs() <= 1 { 0 } else { ahead });
        WebObservations { tcp, answer, port_80: None, clock_ahead }
    }

    /// Asks for the server's health.
    async fn get_health(&self, dialed: &mut DialedStream) -> Option<HttpAnswer> {
        let request = format!(
            "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nUser-Agent: agent\r\n\r\n",
            self.name.authority()
        );
        let mut answer = Vec::new();
        let exchange = async {
            dialed.stream.write_all(request.as_bytes()).await?;
            dialed.stream.flush().await?;
            while answer.len() < MAX_ANSWER && dialed.stream.read_buf(&mut answer).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout_at(self.context.deadline.into(), exchange).await;
        HttpAnswer::parse(&answer)
    }

    async fn tls_443(&self) -> Result<Duration, Failure> {
        let started = time::runtime();
        self.dial(TLS_PORT, Some(&[dialer::ALPN_HTTP])).await?;
        Ok(time::runtime().duration_since(started))
    }

    /// Registers without a tag of its own; publishes the credentials for TURN and the second port.
    async fn signaling(&self, granted: watch::Sender<Granted>) -> Result<Duration, Failure> {
        let result = timeout_at(self.context.deadline.into(), self.register(&granted)).await;
        granted.send_if_modified(|granted| {
            let is_new = granted.is_none();
            granted.get_or_insert(None);
            is_new
        });
        result.map_err(|_| Failure::TimedOut)?
    }

    async fn register(&self, granted: &watch::Sender<Granted>) -> Result<Duration, Failure> {
        let dialed = signaling_client::connect(&self.context.dialer, self.name).await?;
        let registration = RegistrationParams { key: self.context.key.clone(), secret: None, epoch: None };
        let (events, _events_rx) = mpsc::channel(QUEUE);
        let (client, registered) =
            SignalingClient::open(dialed.stream, self.name, &registration, events).await?;
        let credentials = relay_credentials(&registered.ice_servers);
        let credentials =
            credentials.map(|found| Arc::new(LongTermCredentials::new(&found.username, &found.password)));
        granted.send_replace(Some(credentials));
        let port = registered.stun2.as_ref().and_then(|second| second.rsplit_once(':')?.1.parse().ok());
        if let Some(port) = port {
            self.context.second_port.send_replace(Some(port));
        }
        let started = time::runtime();
        let is_alive = client.is_alive(&registered.tag).await;
        let round_trip = time::runtime().duration_since(started);
        if is_alive { Ok(round_trip) } else { Err(Failure::TimedOut) }
    }

    /// Allocates by UDP, TCP, TLS and WebSocket.
    async fn turn(
        &self,
        udp_server: Option<SocketAddr>,
        mut granted: watch::Receiver<Granted>,
    ) -> [Outcome; 4] {
        let until = self.context.deadline.min(time::runtime() + CREDENTIALS_TIMEOUT);
        let known = timeout_at(until.into(), granted.wait_for(Option::is_some)).await;
        let credentials = known.ok().and_then(Result::ok).and_then(|granted| granted.clone()).flatten();
        let deadline = self.context.deadline;
        let udp = async {
            match udp_server {
                Some(server) => turn_probe::over_udp(server, credentials.clone(), deadline).await.into(),
                None => Outcome::NotTested(if self.address.is_none() { NO_ADDRESS } else { NO_LOCAL }),
            }
        };
        let (udp, tcp, tls, websocket) = tokio::join!(
            udp,
            turn_probe::over_stream(self.target(self.name.tls), credentials.clone(), deadline),
            turn_probe::over_stream(self.target(true), credentials.clone(), deadline),
            turn_probe::over_websocket(self.target(self.name.tls), credentials.clone(), deadline),
        );
        [udp, tcp.into(), tls.into(), websocket.into()]
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Resolve(_) => Self::NameNotFound,
            DialError::Connect(error) => Self::from(&error),
            error @ DialError::Proxy { .. } => Self::Proxy(error.to_string()),
            DialError::Tls(error) if error.to_string().contains("certificate") => {
                Self::Certificate(error.to_string())
            }
            DialError::Tls(error) if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            DialError::Tls(_) => Self::Answer("no TLS".to_owned()),
        }
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Self::NoRoute,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Self::Answer("connection closed".to_owned())
            }
            _ => Self::Answer("no ginnel server answers".to_owned()),
        }
    }
}

impl From<SignalingError> for Failure {
    fn from(error: SignalingError) -> Self {
        match error {
            SignalingError::Dial(error) => error.into(),
            SignalingError::Handshake(_) => Self::Answer(NO_WEBSOCKET.to_owned()),
            SignalingError::Refused { code: ErrorCode::NotAllowed, .. } => {
                Self::Unauthorized("401 (wrong key)")
            }
            SignalingError::Refused { code, .. } => Self::Answer(format!("refused ({})", code.number())),
            SignalingError::TimedOut => Self::TimedOut,
        }
    }
}
