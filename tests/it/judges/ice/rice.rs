//! `rice-proto`, the agent of librice: sans-I/O, over UDP and TCP. It has no restart in this version, and stays on the pair that
//! is nominated first: it cannot move to another path.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ginnel::ice::IceRole;
use rice_proto::agent::{Agent, AgentPoll};
use rice_proto::candidate::{Candidate, CandidateType, TcpType, TransportType};
use rice_proto::component::ComponentConnectionState;
use rice_proto::stream::Credentials;
use stun_proto::Instant;
use stun_proto::agent::Transmit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::ROLES;
use super::driver::{Foreign, News, Order, Session};

const COMPONENT: usize = 1;

/// What sockets report.
enum Input {
    Bytes {
        transport: TransportType,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: Vec<u8>,
    },
    /// The connection that was asked for from the first address, or one that was accepted there.
    Connection {
        asked: SocketAddr,
        remote: SocketAddr,
        stream: Option<TcpStream>,
        is_accepted: bool,
    },
}

enum Next {
    Order(Option<Order>),
    Input(Input),
}

struct Rice {
    agent: Agent,
    stream: usize,
    start: std::time::Instant,
    socket: Arc<UdpSocket>,
    connections: HashMap<(SocketAddr, SocketAddr), OwnedWriteHalf>,
    inputs: UnboundedSender<Input>,
    news: UnboundedSender<News>,
}

async fn start(ours: IceRole, transport: TransportType) -> Foreign {
    let (orders, taken) = mpsc::unbounded_channel();
    let (news, reported) = mpsc::unbounded_channel();
    let (inputs, input) = mpsc::unbounded_channel();
    let mut agent = Agent::builder().trickle_ice(true).controlling(ours == IceRole::Controlled).build();
    let stream = agent.add_stream();
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = match transport {
        TransportType::Udp => socket.local_addr().unwrap(),
        TransportType::Tcp => listener.local_addr().unwrap(),
    };
    let credentials =
        Credentials { ufrag: "rice".to_owned(), passwd: format!("{:032x}", rand::random::<u128>()) };
    news.send(News::Credentials { ufrag: credentials.ufrag.clone(), password: credentials.passwd.clone() })
        .ok();
    let mut of_agent = agent.mut_stream(stream).unwrap();
    of_agent.set_local_credentials(credentials);
    assert_eq!(of_agent.add_component().unwrap(), COMPONENT);
    // Without a STUN server it gathers nothing.
    for candidate in candidates(transport, local) {
        news.send(News::Candidate(candidate.to_sdp_string().trim_start_matches("a=").to_owned())).ok();
        assert!(of_agent.add_local_candidate(candidate));
    }
    of_agent.end_of_local_candidates();
    news.send(News::EndOfCandidates).ok();
    read_datagrams(Arc::clone(&socket), inputs.clone());
    accept(listener, inputs.clone());
    let start = std::time::Instant::now();
    let rice = Rice { agent, stream, start, socket, connections: HashMap::new(), inputs, news };
    tokio::spawn(rice.run(taken, input));
    Foreign::new(orders, reported)
}

fn candidates(transport: TransportType, local: SocketAddr) -> Vec<Candidate> {
    let builder =
        |foundation| Candidate::builder(COMPONENT, CandidateType::Host, transport, foundation, local);
    let active = SocketAddr::new(local.ip(), 9);
    match transport {
        TransportType::Udp => vec![builder("1").build()],
        TransportType::Tcp => vec![
            builder("2").tcp_type(TcpType::Passive).build(),
            Candidate::builder(COMPONENT, CandidateType::Host, transport, "3", active)
                .tcp_type(TcpType::Active)
                .build(),
        ],
    }
}

fn read_datagrams(socket: Arc<UdpSocket>, inputs: UnboundedSender<Input>) {
    tokio::spawn(async move {
        let local = socket.local_addr().unwrap();
        let mut buffer = [0; 2048];
        loop {
            let Ok((len, remote)) = socket.recv_from(&mut buffer).await else { continue };
            let (transport, bytes) = (TransportType::Udp, buffer[..len].to_vec());
            if inputs.send(Input::Bytes { transport, local, remote, bytes }).is_err() {
                return;
            }
        }
    });
}

fn accept(listener: TcpListener, inputs: UnboundedSender<Input>) {
    tokio::spawn(async move {
        let asked = listener.local_addr().unwrap();
        while let Ok((stream, remote)) = listener.accept().await {
            inputs.send(Input::Connection { asked, remote, stream: Some(stream), is_accepted: true }).ok();
        }
    });
}

impl Rice {
    fn now(&self) -> Instant {
        Instant::from_std(self.start)
    }

    async fn run(mut self, mut orders: UnboundedReceiver<Order>, mut input: UnboundedReceiver<Input>) {
        loop {
            let wait = self.drain().await;
            let next = async {
                tokio::select! {
                    order = orders.recv() => Next::Order(order),
                    Some(input) = input.recv() => Next::Input(input),
                }
            };
            match tokio::time::timeout(wait, next).await {
                Ok(Next::Order(Some(order))) => self.handle_order(order).await,
                Ok(Next::Order(None)) => return,
                Ok(Next::Input(input)) => self.handle_input(input),
                // The agent is polled.
                Err(_) => {}
            }
        }
    }

    /// Handles everything that the agent wants; returns how long it waits.
    async fn drain(&mut self) -> Duration {
        let wait = loop {
            let now = self.now();
            let poll = self.agent.poll(now);
            while let Some(transmit) = self.agent.poll_transmit(now) {
                self.send(transmit.transmit).await;
            }
            match poll {
                AgentPoll::WaitUntil(at) => break at.saturating_duration_since(self.now()),
                AgentPoll::Closed => break Duration::from_secs(1),
                AgentPoll::AllocateSocket(socket) => self.connect(socket.from, socket.to),
                AgentPoll::RemoveSocket(socket) => drop(self.connections.remove(&(socket.from, socket.to))),
                AgentPoll::SelectedPair(pair) => {
                    let pair = pair.selected.candidate_pair();
                    let (local, remote) = (pair.local.base_address, pair.remote.address);
                    self.news.send(News::Pair { local, remote }).ok();
                    let mut stream = self.agent.mut_stream(self.stream).unwrap();
                    stream.mut_component(COMPONENT).unwrap().set_selected_pair(pair.clone()).unwrap();
                }
                AgentPoll::ComponentStateChange(change) => {
                    let is_connected = change.state == ComponentConnectionState::Connected;
                    self.news.send(News::Connected(is_connected)).ok();
                }
                AgentPoll::GatheredCandidate(_) | AgentPoll::GatheringComplete(_) => {}
            }
        };
        wait.clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    fn connect(&self, asked: SocketAddr, remote: SocketAddr) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let stream = TcpStream::connect(remote).await.ok();
            inputs.send(Input::Connection { asked, remote, stream, is_accepted: false }).ok();
        });
    }

    async fn handle_order(&mut self, order: Order) {
        let now = self.now();
        let mut stream = self.agent.mut_stream(self.stream).unwrap();
        match order {
            Order::Remote { ufrag, password } => {
                stream.set_remote_credentials(Credentials { ufrag, passwd: password });
            }
            Order::Candidate(text) => {
                stream.add_remote_candidate(format!("a={text}").parse::<Candidate>().unwrap());
            }
            Order::EndOfCandidates => stream.end_of_remote_candidates(),
            Order::Restart => panic!("it has no restart"),
            Order::Send(text) => {
                let data = [b"\x80", text.as_bytes()].concat();
                let sent = stream.mut_component(COMPONENT).unwrap().send(data, now);
                if let Ok(transmit) = sent {
                    self.send(transmit).await;
                }
            }
        }
    }

    fn handle_input(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Bytes { transport, local, remote, bytes } => {
                let mut stream = self.agent.mut_stream(self.stream).unwrap();
                let reply = stream.handle_incoming_data(
                    COMPONENT,
                    Transmit::new(bytes, transport, remote, local),
                    now,
                );
                let mut data: Vec<Vec<u8>> = reply.data.iter().map(|data| data.as_ref().to_vec()).collect();
                while reply.have_more_data
                    && let Some(more) = stream.poll_recv()
                {
                    data.push(more.data.to_vec());
                }
                for data in data {
                    self.news.send(News::Data(String::from_utf8_lossy(&data[1..]).into_owned())).ok();
                }
            }
            Input::Connection { asked, remote, stream, is_accepted } => {
                let local = stream.as_ref().map(|stream| stream.local_addr().unwrap());
                if !is_accepted {
                    let result = local.ok_or(stun_proto::agent::StunError::Aborted);
                    let mut stream = self.agent.mut_stream(self.stream).unwrap();
                    stream.allocated_socket(COMPONENT, TransportType::Tcp, asked, remote, result, now);
                }
                if let Some(stream) = stream {
                    self.read_stream(stream, remote);
                }
            }
        }
    }

    fn read_stream(&mut self, stream: TcpStream, remote: SocketAddr) {
        let local = stream.local_addr().unwrap();
        let (mut reader, writer) = stream.into_split();
        self.connections.insert((local, remote), writer);
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok(len) = reader.read(&mut buffer).await
                && len > 0
            {
                let (transport, bytes) = (TransportType::Tcp, buffer[..len].to_vec());
                inputs.send(Input::Bytes { transport, local, remote, bytes }).ok();
            }
        });
    }

    async fn send(&mut self, transmit: Transmit<Box<[u8]>>) {
        match transmit.transport {
            TransportType::Udp => drop(self.socket.send_to(&transmit.data, transmit.to).await),
            TransportType::Tcp => {
                if let Some(writer) = self.connections.get_mut(&(transmit.from, transmit.to)) {
                    writer.write_all(&transmit.data).await.ok();
                }
            }
        }
    }
}

#[tokio::test]
async fn rice_connects_in_both_roles_and_keeps_the_path() {
    for role in ROLES {
        let mut session = Session::new(role, false, start(role, TransportType::Udp).await).await;
        session.connect().await;
        session.exchange("first").await;
        session.keep().await;
        session.exchange("second").await;
    }
}

#[tokio::test]
async fn rice_connects_over_tcp_in_both_roles() {
    for role in ROLES {
        let mut session = Session::over_tcp(role, start(role, TransportType::Tcp).await).await;
        session.connect().await;
        session.exchange("over TCP").await;
        session.keep().await;
    }
}
