//! `agent forward`, and what it shares with `agent socks`: local sockets over a connection that is re-established.

use super::error::CommandError;
use super::forward_error::ForwardCommandError;
use super::forward_report::SeenMessages;
use super::forward_spec::{LocalForward, MAX_SOCKETS, ReverseForward, is_forward};
use super::path_line;
use super::reach::{ReachOptions, Target as Peer};
use super::report::Reporter;
use super::terminal::{close_politely, interrupted, raise_descriptor_limit};
use super::{BACKOFF, INTERRUPTED, OutputOptions};
use crate::agent::{ConnectError, Connection, ConnectionError, Protocol, RegistrationError};
use crate::forwarding::link::{Link, link};
use crate::forwarding::listening::{self, OnFailure};
use crate::forwarding::local_socket::{LocalAddress, LocalListener};
use crate::forwarding::policy::ServiceTarget;
use crate::forwarding::reverse::{self, OnUnreachable, RemoteListener};
use crate::forwarding::session::{OpenError, Session};
use crate::forwarding::socks;
use crate::forwarding::wire::Target;
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long the first lines wait for the path to be measured.
const PATH_WAIT: Duration = Duration::from_secs(2);

const AFTER_HELP: &str = "\
  agent forward 2222:ssh agent:…                     a service that the other side has named
  agent forward 8080:10.0.0.5:80 5353:dns/udp        an address that it shares; UDP
  agent forward ./docker.sock:docker                 a Unix socket here; a service of either kind there
  agent forward 0.0.0.0:2222:ssh                     open to other hosts
  agent forward -R 8080:localhost:3000               port 8080 of the other side leads to port 3000 here
When the connection to the other side is lost, forwarded connections are reset. New ones wait up to 10 s for the next one.";

/// Options of `agent forward`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Forward {
    /// [BIND:]PORT:TARGET[/udp] or /PATH:TARGET, any number of them: connections to the local port or socket go to TARGET at the other side, which
    /// is a name that `agent share` printed, HOST:PORT or /PATH. And the ticket or name of the other side; default: --ticket-file, AGENT_TICKET,
    /// or a prompt
    #[arg(value_name = "FORWARD|PEER")]
    words: Vec<String>,
    /// Reverse: connections to PORT at the other side go to HOST:PORT here, if `agent share --allow-reverse` permits it
    #[arg(short = 'R', long = "reverse", value_name = "[BIND:]PORT:HOST:PORT")]
    reverse: Vec<String>,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Forward {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let (forwards, peer): (Vec<_>, Vec<_>) = self.words.iter().partition(|word| is_forward(word));
        let forwards: Vec<LocalForward> =
            forwards.into_iter().map(|text| LocalForward::parse(text)).collect::<Result<_, _>>()?;
        let reverse: Vec<ReverseForward> =
            self.reverse.iter().map(|text| ReverseForward::parse(text)).collect::<Result<_, _>>()?;
        if !(1..=MAX_SOCKETS).contains(&(forwards.len() + reverse.len())) {
            return Err(ForwardCommandError::NothingForwarded.into());
        }
        raise_descriptor_limit();
        let mut sockets = Vec::new();
        for forward in forwards {
            sockets.push(LocalSocket::bind(forward, report).await?);
        }
        let peer: Vec<&str> = peer.into_iter().map(String::as_str).collect();
        let peer = (!peer.is_empty()).then(|| peer.join(" "));
        let peer = self.reach.target(peer.as_deref(), report)?;
        Forwarding { reach: &self.reach, peer, sockets, reverse, report: report.clone() }.run().await
    }
}

/// A local socket, bound before the other side is connected.
pub(super) struct LocalSocket {
    /// Its address.
    address: LocalAddress,
    /// What its connections reach, as it is shown.
    shown_target: String,
    kind: SocketKind,
}

enum SocketKind {
    Streams(LocalListener, LocalForward),
    Datagrams(UdpSocket, LocalForward),
    Socks(TcpListener),
}

fn warn_if_open(address: SocketAddr, report: &Reporter) {
    if !address.ip().is_loopback() {
        report.note(&format!("other hosts can use {address}"));
    }
}

impl LocalSocket {
    async fn bind(forward: LocalForward, report: &Reporter) -> Result<Self, ForwardCommandError> {
        let listen = |source| ForwardCommandError::Listen { address: forward.local.to_string(), source };
        let shown_target = forward.target.to_string();
        let (address, kind) = match &forward.local {
            LocalAddress::Ip(at) if forward.is_udp => {
                let socket = UdpSocket::bind(at).await.map_err(listen)?;
                let address = LocalAddress::Ip(socket.local_addr().map_err(listen)?);
                (address, SocketKind::Datagrams(socket, forward))
            }
            local => {
                let listener = LocalListener::bind(local).await.map_err(listen)?;
                let address = listener.address().map_err(listen)?;
                (address, SocketKind::Streams(listener, forward))
            }
        };
        if let LocalAddress::Ip(address) = address {
            warn_if_open(address, report);
        }
        Ok(Self { address, shown_target, kind })
    }

    /// Binds a SOCKS server.
    pub(super) async fn socks(at: SocketAddr, report: &Reporter) -> Result<Self, ForwardCommandError> {
        let listen = |source| ForwardCommandError::Listen { address: at.to_string(), source };
        let listener = TcpListener::bind(at).await.map_err(listen)?;
        let at = listener.local_addr().map_err(listen)?;
        warn_if_open(at, report);
        let kind = SocketKind::Socks(listener);
        Ok(Self {
            address: LocalAddress::Ip(at),
            shown_target: "SOCKS 5 from the other side".to_owned(),
            kind,
        })
    }

    /// Asks the other side whether the target is shared.
    async fn check(&self, session: &Session) -> Result<(), CommandError> {
        let forward = match &self.kind {
            SocketKind::Streams(_, forward) | SocketKind::Datagrams(_, forward) => forward,
            SocketKind::Socks(_) => return Ok(()),
        };
        let transport =
            session.query(&forward.target).await.map_err(|error| refused(&self.shown_target, error))?;
        if forward.permits(transport) {
            return Ok(());
        }
        let target = self.shown_target.clone();
        Err(ForwardCommandError::OtherTransport { target, transport }.into())
    }

    /// Forwards for ever.
    async fn run(self, link: Link, on_failure: OnFailure) {
        match self.kind {
            SocketKind::Streams(listener, forward) => {
                listening::forward_streams(listener, forward.target, link, on_failure).await;
            }
            SocketKind::Datagrams(socket, forward) => {
                listening::forward_datagrams(socket, forward.target, link, on_failure).await;
            }
            SocketKind::Socks(listener) => socks::serve(listener, link, on_failure).await,
        }
    }
}

fn refused(target: &str, error: OpenError) -> CommandError {
    match error {
        OpenError::Connection(error) => error.into(),
        source => ForwardCommandError::Refused { target: target.to_owned(), source }.into(),
    }
}

/// Local sockets and the connection that they use.
pub(super) struct Forwarding<'a> {
    pub(super) reach: &'a ReachOptions,
    pub(super) peer: Peer,
    pub(super) sockets: Vec<LocalSocket>,
    pub(super) reverse: Vec<ReverseForward>,
    pub(super) report: Reporter,
}

impl Forwarding<'_> {
    /// Runs until a signal, or until the other side ends it.
    pub(super) async fn run(self) -> Result<u8, CommandError> {
        let mut tasks = JoinSet::new();
        let ended = self.forward(&mut tasks).await;
        // Closes the local sockets, and removes the files of Unix sockets.
        tasks.shutdown().await;
        ended
    }

    async fn forward(mut self, tasks: &mut JoinSet<()>) -> Result<u8, CommandError> {
        // One for the whole time: a signal between two would be lost.
        let interrupt = interrupted();
        tokio::pin!(interrupt);
        let (setter, link) = link();
        let mut retry = Retry::new();
        let mut connection = tokio::select! {
            connection = self.connect() => connection?,
            () = &mut interrupt => {
                close_politely().await;
                return Ok(INTERRUPTED);
            }
        };
        let seen = Arc::new(SeenMessages::default());
        let (mut sent, mut received) = (0, 0);
        loop {
            let started = time::now().mono;
            let session = Session::new(connection);
            let held = async {
                let listeners = self.prepare(&session).await?;
                setter.set(Some(Arc::clone(&session)));
                self.start(&session, &listeners, (&link, &seen), tasks).await;
                Ok::<_, CommandError>(self.hold(&session).await)
            };
            let ended = tokio::select! {
                ended = held => Some(ended),
                () = &mut interrupt => None,
            };
            setter.set(None);
            sent += session.traffic.sent.load(Ordering::Relaxed);
            received += session.traffic.received.load(Ordering::Relaxed);
            let lost = match ended {
                Some(Ok(error)) | Some(Err(CommandError::Connection(error))) if is_loss(&error) => error,
                Some(ended) => {
                    session.connection().shut_down("the other side ended").await;
                    return Err(ended.map_or_else(|error| error, CommandError::from));
                }
                None => {
                    session.connection().shut_down("the other side was interrupted").await;
                    self.report.closed(sent, received);
                    return Ok(INTERRUPTED);
                }
            };
            self.report.peer_lost(&lost.to_string());
            seen.clear();
            retry.backoff.reset_after(time::now().mono.saturating_duration_since(started));
            connection = tokio::select! {
                connection = self.reconnect(&mut retry) => connection?,
                () = &mut interrupt => return Ok(INTERRUPTED),
            };
            self.report.peer_back();
        }
    }

    async fn connect(&self) -> Result<Connection, CommandError> {
        self.reach.connect(&self.peer, Protocol::FORWARD, &self.report).await
    }

    /// Connects again, with any number of attempts.
    async fn reconnect(&self, retry: &mut Retry) -> Result<Connection, CommandError> {
        loop {
            retry.network.wait_to_retry(&mut retry.backoff).await;
            match self.connect().await {
                Err(error) if may_pass(&error) => {
                    tracing::debug!(error = %error.message(), "not connected again yet")
                }
                connected => return connected,
            }
        }
    }

    /// Asks for everything that was named. What the other side does not permit ends the command.
    async fn prepare(&self, session: &Session) -> Result<Vec<RemoteListener>, CommandError> {
        for socket in &self.sockets {
            socket.check(session).await?;
        }
        let mut listeners = Vec::new();
        for (number, forward) in (0..).zip(&self.reverse) {
            let at = (forward.host.clone(), forward.port);
            let listener = reverse::request_listener(session, number, at).await;
            listeners.push(listener.map_err(|error| refused(&format!("-R {}", forward.port), error))?);
        }
        Ok(listeners)
    }

    /// Starts the local sockets, once, and reports them.
    async fn start(
        &mut self,
        session: &Session,
        listeners: &[RemoteListener],
        (link, seen): (&Link, &Arc<SeenMessages>),
        tasks: &mut JoinSet<()>,
    ) {
        if !tasks.is_empty() {
            return;
        }
        let mut changes = session.connection().path_changes();
        let path = timeout(PATH_WAIT, changes.next()).await.ok().flatten();
        let on_failure: OnFailure = {
            let (report, seen) = (self.report.clone(), Arc::clone(seen));
            Arc::new(move |target: &Target, error| {
                let (target, why) = (target.to_string(), error.to_string());
                if seen.is_new(&format!("{target} {why}")) {
                    report.not_forwarded(&target, &why);
                }
            })
        };
        for socket in std::mem::take(&mut self.sockets) {
            self.report.forwarding(&socket.address, &socket.shown_target, path.as_ref());
            tasks.spawn(socket.run(link.clone(), Arc::clone(&on_failure)));
        }
        for (forward, listener) in self.reverse.iter().zip(listeners) {
            let host = if forward.host.is_empty() { "127.0.0.1" } else { &forward.host };
            let at = format!("{host}:{} there", listener.port);
            self.report.forwarding(&at, &forward.target.to_string(), path.as_ref());
        }
        // Only reverse forwardings have no task.
        if tasks.is_empty() {
            tasks.spawn(std::future::pending());
        }
    }

    /// Serves the session, and shows its paths, until it ends.
    async fn hold(&self, session: &Arc<Session>) -> ConnectionError {
        let targets: HashMap<u32, ServiceTarget> =
            (0..).zip(&self.reverse).map(|(number, forward)| (number, forward.target.clone())).collect();
        let report = self.report.clone();
        let on_failure: OnUnreachable = Arc::new(move |target, refusal| {
            report.not_forwarded(&target.to_string(), &refusal.detail);
        });
        let serving = async {
            reverse::serve(session, Arc::new(targets), on_failure).await;
            session.connection().closed().await
        };
        path_line::show_while(&self.report, session.connection().path_changes(), serving).await
    }
}

/// The waits before the attempts to connect again.
struct Retry {
    backoff: Backoff,
    network: NetworkChanges,
}

impl Retry {
    fn new() -> Self {
        Self { backoff: Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng()), network: NetworkChanges::start() }
    }
}

/// Returns whether a connection ended without the will of the other side, so that it may be opened again.
fn is_loss(error: &ConnectionError) -> bool {
    !matches!(error, ConnectionError::PeerClosed(_) | ConnectionError::Version | ConnectionError::Closed)
}

/// Returns whether another attempt to connect may succeed.
fn may_pass(error: &CommandError) -> bool {
    let CommandError::Connect { error, .. } = error else { return false };
    matches!(
        error,
        ConnectError::Offline
            | ConnectError::NoPath(_)
            | ConnectError::HandshakeTimedOut
            | ConnectError::Ended(_)
            | ConnectError::Registration(
                RegistrationError::Unreachable { .. } | RegistrationError::TimedOut { .. }
            )
    )
}
