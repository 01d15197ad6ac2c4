//! [`ginnel::ice`] on loopback sockets against an agent of others that runs in real time.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ginnel::ice::{
    Candidate, CandidateKind, CandidateTransport, IceAgent, IceConfig, IceCredentials, IceEvent, IceInput,
    IceRole, IceState, IceTransmit,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// How long a condition may take.
const LIMIT: Duration = Duration::from_secs(45);
/// The first byte of data: neither of STUN nor of a length of TCP framing.
const DATA: u8 = 0x80;

/// What an agent of others is to do.
#[derive(Debug)]
pub(super) enum Order {
    Remote { ufrag: String, password: String },
    Candidate(String),
    EndOfCandidates,
    Restart,
    Send(String),
}

/// What it reports.
#[derive(Debug)]
pub(super) enum News {
    Credentials { ufrag: String, password: String },
    Candidate(String),
    EndOfCandidates,
    Connected(bool),
    Pair { local: SocketAddr, remote: SocketAddr },
    Data(String),
}

/// An agent of others.
pub(super) struct Foreign {
    pub(super) orders: UnboundedSender<Order>,
    news: UnboundedReceiver<News>,
    pub(super) is_connected: bool,
    pub(super) pair: Option<(SocketAddr, SocketAddr)>,
    pub(super) data: Vec<String>,
    candidates: Vec<String>,
    is_end_of_candidates: bool,
}

impl Foreign {
    pub(super) fn new(orders: UnboundedSender<Order>, news: UnboundedReceiver<News>) -> Self {
        let (data, candidates) = (Vec::new(), Vec::new());
        Self { orders, news, is_connected: false, pair: None, data, candidates, is_end_of_candidates: false }
    }
}

enum Input {
    Message { local: SocketAddr, remote: SocketAddr, is_tcp: bool, bytes: Vec<u8> },
    Connected { local: SocketAddr, remote: SocketAddr, stream: TcpStream },
    Closed { local: SocketAddr, remote: SocketAddr },
}

/// Our agent and its sockets.
pub(super) struct Ours {
    pub(super) agent: IceAgent,
    sockets: HashMap<SocketAddr, Arc<UdpSocket>>,
    connections: HashMap<(SocketAddr, SocketAddr), UnboundedSender<Vec<u8>>>,
    input: UnboundedReceiver<Input>,
    inputs: UnboundedSender<Input>,
    /// The local addresses whose datagrams are lost.
    lost: HashSet<SocketAddr>,
    data: Vec<String>,
    /// The user name fragments of the checks that wait for a response.
    checks: HashMap<Vec<u8>, String>,
    /// The fragments of the peer under which a check was answered, and our own ones that it has used.
    answered: HashSet<String>,
    used: HashSet<String>,
}

impl Ours {
    fn new(role: IceRole, renomination: bool) -> Self {
        let mut config = IceConfig::new(role);
        config.renomination = renomination;
        let (inputs, input) = mpsc::unbounded_channel();
        Self {
            agent: IceAgent::new(config, rand::random()),
            sockets: HashMap::new(),
            connections: HashMap::new(),
            input,
            inputs,
            lost: HashSet::new(),
            data: Vec::new(),
            checks: HashMap::new(),
            answered: HashSet::new(),
            used: HashSet::new(),
        }
    }

    /// Opens UDP sockets; the first one is preferred.
    async fn bind_udp(&mut self, count: u16) {
        for number in 0..count {
            let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            let local = socket.local_addr().unwrap();
            self.sockets.insert(local, Arc::clone(&socket));
            let candidate = Candidate::host(CandidateTransport::Udp, local, 65_535 - 1000 * number);
            self.agent.add_local_candidate(Instant::now(), candidate);
            let inputs = self.inputs.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                loop {
                    // An ICMP error of a datagram before is none of the socket.
                    let Ok((len, remote)) = socket.recv_from(&mut buffer).await else { continue };
                    let bytes = buffer[..len].to_vec();
                    if inputs.send(Input::Message { local, remote, is_tcp: false, bytes }).is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// Opens a listener, and adds active and passive candidates.
    async fn bind_tcp(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        for transport in [CandidateTransport::TcpActive, CandidateTransport::TcpPassive] {
            self.agent.add_local_candidate(Instant::now(), Candidate::host(transport, local, 1000));
        }
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                inputs.send(Input::Connected { local, remote, stream }).ok();
            }
        });
    }

    fn connect(&self, local: SocketAddr, remote: SocketAddr) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let input = match TcpStream::connect(remote).await {
                Ok(stream) => Input::Connected { local, remote, stream },
                Err(_) => Input::Closed { local, remote },
            };
            inputs.send(input).ok();
        });
    }

    /// Reads and writes a connection with the framing of RFC 4571.
    fn run_connection(&mut self, local: SocketAddr, remote: SocketAddr, stream: TcpStream) {
        let (sender, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
        self.connections.insert((local, remote), sender);
        let inputs = self.inputs.clone();
        let (mut reader, mut writer) = stream.into_split();
        tokio::spawn(async move {
            while let Some(bytes) = outgoing.recv().await {
                let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
                framed.extend(bytes);
                if writer.write_all(&framed).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(len) = reader.read_u16().await {
                let mut bytes = vec![0; usize::from(len)];
                if reader.read_exact(&mut bytes).await.is_err() {
                    break;
                }
                inputs.send(Input::Message { local, remote, is_tcp: true, bytes }).ok();
            }
            inputs.send(Input::Closed { local, remote }).ok();
        });
    }

    fn handle(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Message { local, .. } if self.lost.contains(&local) => {}
            Input::Message { local, remote, is_tcp, bytes } if bytes.first() == Some(&DATA) => {
                match is_tcp {
                    true => self.agent.handle_tcp_data_received(local, remote),
                    false => self.agent.handle_data_received(local, remote),
                }
                self.data.push(String::from_utf8_lossy(&bytes[1..]).into_owned());
            }
            Input::Message { local, remote, is_tcp, bytes } => {
                let handled = match is_tcp {
                    true => self.agent.handle_tcp_message(now, local, remote, &bytes),
                    false => self.agent.handle_message(now, local, remote, &bytes),
                };
                if handled == IceInput::Handled {
                    self.record(&bytes);
                }
            }
            Input::Connected { local, remote, stream } => {
                // An accepted connection becomes known by its first check.
                if local.port() == 9 {
                    self.agent.handle_tcp_connected(now, local, remote);
                }
                self.run_connection(local, remote, stream);
            }
            Input::Closed { local, remote } => {
                self.connections.remove(&(local, remote));
                self.agent.handle_tcp_closed(now, local, remote);
            }
        }
    }

    /// Remembers which credentials an authentic message was for.
    fn record(&mut self, bytes: &[u8]) {
        let own = self.agent.local_credentials().ufrag().to_owned();
        match bytes[0..2] {
            [0x00, 0x01] if contains(bytes, &format!("{own}:")) => drop(self.used.insert(own)),
            [0x01, 0x01] => self.answered.extend(self.checks.remove(&bytes[8..20])),
            _ => {}
        }
    }

    fn flush(&mut self) {
        while let Some(IceTransmit { local, remote, is_tcp, bytes }) = self.agent.poll_transmit() {
            if bytes[0..2] == [0x00, 0x01]
                && let Some(remote) = self.agent.remote_credentials()
                && contains(&bytes, &format!("{}:", remote.ufrag()))
            {
                self.checks.insert(bytes[8..20].to_vec(), remote.ufrag().to_owned());
            }
            self.send(local, remote, is_tcp, bytes);
        }
        while let Some(event) = self.agent.poll_event() {
            match event {
                IceEvent::Connect { local, remote, .. } => self.connect(local, remote),
                IceEvent::Close { local, remote } => drop(self.connections.remove(&(local, remote))),
                _ => {}
            }
        }
    }

    fn send(&self, local: SocketAddr, remote: SocketAddr, is_tcp: bool, bytes: Vec<u8>) {
        if self.lost.contains(&local) {
            return;
        }
        if is_tcp {
            self.connections.get(&(local, remote)).map(|connection| connection.send(bytes));
        } else {
            // A datagram that cannot be sent is lost.
            self.sockets[&local].try_send_to(&bytes, remote).ok();
        }
    }

    fn send_data(&mut self, text: &str) {
        let Some(pair) = self.agent.selected() else { return };
        let bytes = [&[DATA], text.as_bytes()].concat();
        let is_tcp = pair.local.transport != CandidateTransport::Udp;
        self.send(pair.local.base, pair.remote.address, is_tcp, bytes);
        self.agent.handle_data_sent(Instant::now());
    }

    /// Whether checks of the current credentials were answered on both sides.
    fn is_checked(&self) -> bool {
        let remote = self.agent.remote_credentials().map(|remote| remote.ufrag());
        remote.is_some_and(|ufrag| self.answered.contains(ufrag))
            && self.used.contains(self.agent.local_credentials().ufrag())
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

enum Next {
    Input(Input),
    News(Option<News>),
}

/// The two agents.
pub(super) struct Session {
    pub(super) ours: Ours,
    pub(super) foreign: Foreign,
}

impl Session {
    /// Makes our agent with two UDP sockets.
    pub(super) async fn new(role: IceRole, renomination: bool, foreign: Foreign) -> Self {
        let mut ours = Ours::new(role, renomination);
        ours.bind_udp(2).await;
        Self { ours, foreign }
    }

    /// Makes our agent with TCP candidates only.
    pub(super) async fn over_tcp(role: IceRole, foreign: Foreign) -> Self {
        let mut ours = Ours::new(role, false);
        ours.bind_tcp().await;
        Self { ours, foreign }
    }

    fn order(&self, order: Order) {
        self.foreign.orders.send(order).unwrap();
    }

    fn signal_credentials(&self) {
        let credentials = self.ours.agent.local_credentials();
        let (ufrag, password) = (credentials.ufrag().to_owned(), credentials.password().to_owned());
        self.order(Order::Remote { ufrag, password });
    }

    /// Passes our candidates one by one.
    fn signal_candidates(&self) {
        for candidate in self.ours.agent.local_candidates() {
            self.order(Order::Candidate(candidate.to_string()));
        }
        self.order(Order::EndOfCandidates);
    }

    fn handle_news(&mut self, news: News) {
        let (now, agent) = (Instant::now(), &mut self.ours.agent);
        match news {
            News::Credentials { ufrag, password } => {
                agent.set_remote_credentials(now, IceCredentials::new(&ufrag, &password).unwrap());
                (self.foreign.candidates, self.foreign.is_end_of_candidates) = (Vec::new(), false);
            }
            News::Candidate(text) => {
                // Those of other components and of host names are not for this agent.
                if let Ok(candidate) = text.parse() {
                    agent.add_remote_candidate(now, candidate);
                }
                self.foreign.candidates.push(text);
            }
            News::EndOfCandidates => {
                agent.handle_end_of_candidates(now);
                self.foreign.is_end_of_candidates = true;
            }
            News::Connected(is_connected) => self.foreign.is_connected = is_connected,
            News::Pair { local, remote } => self.foreign.pair = Some((local, remote)),
            News::Data(text) => self.foreign.data.push(text),
        }
    }

    /// Runs both until a condition holds.
    pub(super) async fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        assert!(self.comes_true(LIMIT, &holds).await, "not {what}\n{}", self.report());
    }

    /// Runs both until a condition holds, for at most `limit`; returns whether it does.
    pub(super) async fn comes_true(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            self.ours.flush();
            if holds(self) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            let timer = self.ours.agent.poll_timeout().unwrap_or(end).min(end);
            let next = async {
                tokio::select! {
                    Some(input) = self.ours.input.recv() => Next::Input(input),
                    news = self.foreign.news.recv() => Next::News(news),
                }
            };
            match tokio::time::timeout_at(timer.into(), next).await {
                Ok(Next::Input(input)) => self.ours.handle(input),
                Ok(Next::News(Some(news))) => self.handle_news(news),
                Ok(Next::News(None)) => panic!("the other agent has ended\n{}", self.report()),
                Err(_) => self.ours.agent.handle_timeout(Instant::now()),
            }
        }
    }

    fn report(&self) -> String {
        let Self { ours, foreign } = self;
        format!(
            "ours: {:?} {:?}\ntheirs: connected {} {:?} {:?} {:?}",
            ours.agent.state(),
            ours.agent.selected(),
            foreign.is_connected,
            foreign.pair,
            foreign.candidates,
            foreign.data,
        )
    }

    /// Whether both are connected with the current credentials.
    pub(super) fn is_connected(&self) -> bool {
        self.ours.agent.state() == IceState::Connected && self.foreign.is_connected && self.ours.is_checked()
    }

    /// Whether both send on the same pair. Our local address is that of the remote candidate of theirs.
    pub(super) fn is_agreed(&self) -> bool {
        let selected = self.ours.agent.selected().filter(|_| self.is_connected());
        let theirs = self.foreign.pair;
        selected.zip(theirs).is_some_and(|(ours, (local, remote))| {
            // A TCP connection has a port of its own on the side that opened it.
            let is_open_here = ours.local.transport == CandidateTransport::TcpActive;
            let is_open_there = ours.remote.transport == CandidateTransport::TcpActive;
            (is_open_here || ours.local.base == remote) && (is_open_there || ours.remote.address == local)
        })
    }

    /// Connects by trickled candidates: the credentials first, the candidates of each side afterwards.
    pub(super) async fn connect(&mut self) {
        self.signal_credentials();
        self.wait("described", |session| session.ours.agent.remote_credentials().is_some()).await;
        self.signal_candidates();
        self.wait("connected", Self::is_connected).await;
        self.wait("agreed", Self::is_agreed).await;
        let selected = self.ours.agent.selected().unwrap();
        assert_ne!(selected.local.kind, CandidateKind::Relayed);
    }

    /// Sends data both ways, until it arrives: single datagrams may be lost.
    pub(super) async fn exchange(&mut self, mark: &str) {
        for _ in 0..20 {
            self.ours.send_data(&format!("{mark} to them"));
            self.order(Order::Send(format!("{mark} to us")));
            let arrived = |session: &Self| {
                session.foreign.data.iter().any(|text| text.contains(&format!("{mark} to them")))
                    && session.ours.data.iter().any(|text| text.contains(&format!("{mark} to us")))
            };
            if self.comes_true(Duration::from_millis(500), arrived).await {
                return;
            }
        }
        panic!("no data of {mark}\n{}", self.report());
    }

    /// Runs both for longer than two checks for consent take; neither may lose the path.
    pub(super) async fn keep(&mut self) {
        let is_lost = |session: &Self| !session.is_connected();
        let lost = self.comes_true(Duration::from_secs(13), is_lost).await;
        assert!(!lost, "the path was lost\n{}", self.report());
    }

    /// Restarts both, ours first, and waits for checks with the new credentials.
    pub(super) async fn restart(&mut self) {
        let before = self.ours.agent.remote_credentials().cloned();
        self.ours.agent.restart(Instant::now());
        self.order(Order::Restart);
        self.signal_credentials();
        self.wait("described anew", |session| {
            let now = session.ours.agent.remote_credentials();
            now.is_some() && now != before.as_ref()
        })
        .await;
        self.signal_candidates();
        self.wait("connected again", |session| session.is_connected() && session.is_agreed()).await;
    }

    /// Loses the datagrams of the selected socket until ours has moved to the other one.
    pub(super) async fn lose_selected(&mut self) -> SocketAddr {
        let local = self.ours.agent.selected().unwrap().local.base;
        self.ours.lost.insert(local);
        self.wait("on the other socket", |session| {
            session.ours.agent.selected().is_some_and(|pair| pair.local.base != local)
                && session.ours.agent.state() == IceState::Connected
        })
        .await;
        local
    }
}
