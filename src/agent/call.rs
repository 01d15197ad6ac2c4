//! One call: the task that runs its session, path selector and ICE agents.

use super::call_auth::{CallAuth, InitialKey};
use super::candidate::CandidatePath;
use super::connection::PathHandle;
use super::error::{ConnectError, Refusal, RegistrationError};
use super::ice::{IceAgent, IceAgentConfig, IceEvent, RelayCredentials, SelectedPair};
use super::nat_probe::NatProbe;
use super::path::{PathInfo, PathKind};
use super::path_selector::{PathOutput, PathSelector};
use super::relay_reason::RelayReason;
use super::session::{NO_PATH, Session, SessionConfig, SessionFailure, SessionOutput};
use super::signaling_client::{ServerEvent, SignalingClient, SignalingError};
use super::tunnel::{Probe, Tunnel};
use crate::net::time;
use crate::signaling::wire::{self, IceDescription, NatType, Request, RequestBody, ResponseBody, Tag, Token};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

const QUEUE: usize = 128;
/// How long a new path may wait for the measurement of its round-trip time before it is published.
const MEASURE_TIME: Duration = Duration::from_millis(500);
/// Time limit for the signalling at the end of a call.
const END_TIMEOUT: Duration = Duration::from_millis(300);
/// Deadline of a timer that is not needed.
const FAR: Duration = Duration::from_secs(3600);

/// The first message of a call.
#[derive(Debug)]
pub(super) enum CallRequest {
    /// This side calls `callee` as `tag`.
    Outgoing { tag: Tag, callee: Tag },
    /// The other side has called.
    Incoming { mid: Option<i64>, token: Token, offer: IceDescription },
}

/// Both ends of a channel.
type Channel<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

/// The queues, the tunnel and the ICE agents of a call. They exist before the session, so that gathering starts while the connector registers.
pub(super) struct CallResources {
    pub(super) tunnel: Arc<Tunnel>,
    probes: mpsc::Receiver<(CandidatePath, Probe)>,
    events: Channel<(CandidatePath, IceEvent)>,
    nat: Channel<NatType>,
    udp_blocked: watch::Sender<Option<bool>>,
    server: SocketAddr,
    agents: [Option<IceAgent>; 2],
    started: Instant,
}

impl CallResources {
    /// Creates the queues. `udp_blocked` is the result of an earlier probe.
    pub(super) fn new(server: SocketAddr, udp_blocked: Option<bool>) -> Self {
        let (tunnel, probes) = Tunnel::new();
        Self {
            tunnel,
            probes,
            events: mpsc::channel(QUEUE),
            nat: mpsc::channel(1),
            udp_blocked: watch::Sender::new(udp_blocked),
            server,
            agents: [None, None],
            started: time::now().mono,
        }
    }

    /// Starts the ICE agent of a path, which begins to gather.
    pub(super) fn start_agent(
        &mut self,
        path: CandidatePath,
        session: &SessionConfig,
        relay: Option<RelayCredentials>,
    ) {
        let config = IceAgentConfig {
            path,
            role: session.role,
            ufrag: session.ufrag.clone(),
            pwd: session.pwd.clone(),
            server: self.server,
            relay,
            udp_blocked: self.udp_blocked.subscribe(),
        };
        let agent = IceAgent::start(config, Arc::clone(&self.tunnel), self.events.0.clone());
        self.agents[path as usize] = Some(agent);
    }

    /// Starts to test UDP and the NAT. `second_port` resolves to `host:port` of the server's second UDP port.
    pub(super) fn probe_nat(&self, second_port: impl Future<Output = Option<String>> + Send + 'static) {
        let (server, udp_blocked, nat) = (self.server, self.udp_blocked.clone(), self.nat.0.clone());
        tokio::spawn(async move {
            let Ok(probe) = NatProbe::start(server).await else {
                udp_blocked.send_replace(Some(true));
                return;
            };
            udp_blocked.send_replace(Some(probe.is_udp_blocked()));
            let second = match second_port.await {
                Some(name) => tokio::net::lookup_host(name)
                    .await
                    .ok()
                    .and_then(|mut found| found.find(|address| address.is_ipv4() == server.is_ipv4())),
                None => None,
            };
            if let Some(kind) = probe.finish(second).await {
                let _ = nat.send(kind).await;
            }
        });
    }
}

/// Negotiates a call until a path carries data. Returns the key of QUIC's Initial packets and the handle that keeps the path.
pub(super) async fn negotiate(
    resources: CallResources,
    config: SessionConfig,
    request: CallRequest,
    auth: CallAuth,
    signaling: SignalingClient,
    events: mpsc::Receiver<ServerEvent>,
) -> Result<(InitialKey, PathHandle), ConnectError> {
    let (ready, is_ready) = oneshot::channel();
    let (path, path_rx) = watch::channel(None);
    let (stop, stop_rx) = mpsc::channel(1);
    let (signaling_lost, signaling_lost_rx) = watch::channel(false);
    let server = resources.server;
    let task = CallTask {
        session: Session::new(config),
        selector: PathSelector::new(resources.started),
        resources,
        signaling,
        auth,
        answered: false,
        request: None,
        pending_call: None,
        token: None,
        pairs: [None, None],
        unpublished: None,
        ready: Some(ready),
        path,
        signaling_lost,
    };
    let task = tokio::spawn(task.run(request, events, stop_rx));
    let handle = PathHandle::new(path_rx, signaling_lost_rx, stop, task);
    // A task that ended without a word has lost the server.
    let result = is_ready.await.unwrap_or_else(|_| Err(signaling_lost_error(server)));
    match result {
        Ok(key) => Ok((key, handle)),
        Err(error) => {
            let reason =
                if matches!(error, ConnectError::NoPath(_)) { NO_PATH } else { "it could not go on" };
            handle.close(reason).await;
            Err(error)
        }
    }
}

fn signaling_lost_error(server: SocketAddr) -> ConnectError {
    RegistrationError::TimedOut { server: server.to_string() }.into()
}

impl From<SessionFailure> for ConnectError {
    fn from(failure: SessionFailure) -> Self {
        match failure {
            SessionFailure::NoAnswer => Self::Offline,
            SessionFailure::Ended(reason) => {
                Self::Ended(reason.unwrap_or_else(|| "no reason given".to_owned()))
            }
            SessionFailure::BadOffer => {
                Self::Refused(Refusal::Stated("the other side does not use ICE".to_owned()))
            }
            SessionFailure::NoPath(attempts) => Self::NoPath(attempts),
        }
    }
}

type PendingCall = JoinHandle<Result<ResponseBody, SignalingError>>;

struct CallTask {
    session: Session,
    selector: PathSelector,
    resources: CallResources,
    signaling: SignalingClient,
    auth: CallAuth,
    /// The other side's description has arrived.
    answered: bool,
    /// The request that the session's description belongs to, until it is sent.
    request: Option<CallRequest>,
    /// The call request that waits for the server's response.
    pending_call: Option<PendingCall>,
    token: Option<Token>,
    pairs: [Option<SelectedPair>; 2],
    /// A path to publish once its round-trip time is known, at the latest at this time.
    unpublished: Option<(CandidatePath, Option<RelayReason>, Instant)>,
    /// Resolved once: with the first path or the first failure.
    ready: Option<oneshot::Sender<Result<InitialKey, ConnectError>>>,
    path: watch::Sender<Option<PathInfo>>,
    signaling_lost: watch::Sender<bool>,
}

impl CallTask {
    async fn run(
        mut self,
        request: CallRequest,
        mut events: mpsc::Receiver<ServerEvent>,
        mut stop: mpsc::Receiver<String>,
    ) {
        self.start(request);
        let reason = loop {
            self.apply_outputs().await;
            let timers = [
                self.session.poll_timeout(),
                self.selector.poll_timeout(),
                self.unpublished.as_ref().map(|(.., at)| *at),
            ];
            let due = timers.into_iter().flatten().min().unwrap_or_else(|| time::now().mono + FAR);
            tokio::select! {
                reason = stop.recv() => break reason,
                Some(event) = events.recv() => self.handle_server_event(event).await,
                Some((path, event)) = self.resources.events.1.recv() => self.handle_ice_event(path, event),
                Some((path, probe)) = self.resources.probes.recv() => self.handle_probe(path, probe),
                Some(nat) = self.resources.nat.1.recv() => self.session.handle_nat(time::now().mono, nat),
                response = response(&mut self.pending_call) => {
                    self.pending_call = None;
                    self.handle_call_response(response);
                }
                () = sleep_until(due.into()) => self.handle_timeout(),
            }
        };
        self.close(reason).await;
    }

    fn start(&mut self, mut request: CallRequest) {
        let now = time::now().mono;
        match &mut request {
            CallRequest::Outgoing { .. } => self.session.dial(now),
            CallRequest::Incoming { token, offer, .. } => {
                self.token = Some(token.clone());
                self.session.handle_offer(now, std::mem::take(offer));
            }
        }
        self.request = Some(request);
    }

    async fn apply_outputs(&mut self) {
        loop {
            if let Some(output) = self.selector.poll_output() {
                self.apply_selector_output(output);
            } else if let Some(output) = self.session.poll_output() {
                self.apply_session_output(output).await;
            } else {
                break;
            }
        }
        self.publish_path(time::now().mono);
    }

    fn apply_selector_output(&mut self, output: PathOutput) {
        match output {
            PathOutput::Ping(path, number) => {
                self.resources.tunnel.send_probe(path, Probe::Ping(number));
            }
            PathOutput::Active(path) => {
                self.resources.tunnel.set_active(path);
                self.session.handle_active(path);
                if path.is_some() {
                    self.resolve(Ok(self.auth.initial_key()));
                }
            }
        }
    }

    async fn apply_session_output(&mut self, output: SessionOutput) {
        match output {
            SessionOutput::Call(ice) | SessionOutput::Accept(ice) => self.send_description(ice).await,
            SessionOutput::Trickle { cands, done, nat } => {
                if let Some(token) = self.token.clone() {
                    self.signaling.notify(RequestBody::Trickle { token, cands, done, nat }).await;
                }
            }
            SessionOutput::Start { ufrag, pwd } => {
                for agent in self.resources.agents.iter().flatten() {
                    agent.start_checks(ufrag.clone(), pwd.clone()).await;
                }
            }
            SessionOutput::Candidate(candidate) => {
                if let Some(agent) = &self.resources.agents[candidate.path as usize] {
                    agent.add_candidate(candidate.text).await;
                }
            }
            SessionOutput::Path(path, reason) => {
                self.unpublished = Some((path, reason, time::now().mono + MEASURE_TIME));
            }
            SessionOutput::Failed(failure) => self.resolve(Err(failure.into())),
        }
    }

    async fn send_description(&mut self, mut ice: IceDescription) {
        self.auth.sign(&mut ice);
        match self.request.take() {
            Some(CallRequest::Outgoing { tag, callee }) => {
                let signaling = self.signaling.clone();
                let call = RequestBody::Call { tag, rtag: callee, ice };
                self.pending_call = Some(tokio::spawn(async move { signaling.request(call).await }));
            }
            Some(CallRequest::Incoming { mid, token, .. }) => {
                self.signaling.respond(mid, ResponseBody::Accepted { token, ice }).await;
            }
            None => {}
        }
    }

    fn resolve(&mut self, result: Result<InitialKey, ConnectError>) {
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(result);
        }
    }

    async fn handle_server_event(&mut self, event: ServerEvent) {
        match event {
            ServerEvent::Request(request) => self.handle_request(time::now().mono, *request).await,
            ServerEvent::CallFailed { code, .. } | ServerEvent::TagLost(code) => {
                self.resolve(Err(ConnectError::from_code(code, None)));
            }
            ServerEvent::Closed => {
                self.signaling_lost.send_replace(true);
                self.resolve(Err(signaling_lost_error(self.resources.server)));
            }
        }
    }

    async fn handle_request(&mut self, now: Instant, request: Request) {
        let response = match request.body {
            RequestBody::Answered { token, ice, .. } => {
                self.token = Some(token.clone());
                self.session.handle_token(now);
                self.handle_answer(now, ice);
                ResponseBody::Noted { token }
            }
            RequestBody::Trickle { token, cands, done, nat } => {
                self.session.handle_trickle(&cands, done, nat);
                // Without a mid the server does not expect a response.
                if request.mid.is_none() {
                    return;
                }
                ResponseBody::Trickled { token }
            }
            RequestBody::Status { token } => {
                let path = self.selector.active().map(|path| match path {
                    CandidatePath::Direct => wire::ReportedPath::Direct,
                    CandidatePath::Relay => wire::ReportedPath::Relay,
                });
                ResponseBody::Status { token, punching: self.session.is_punching(now), path }
            }
            RequestBody::End { token, reason } => {
                self.session.handle_end(reason);
                ResponseBody::Ended { token }
            }
            _ => return,
        };
        self.signaling.respond(request.mid, response).await;
    }

    /// The server may repeat the answer; only the first one counts.
    fn handle_answer(&mut self, now: Instant, mut ice: IceDescription) {
        if self.answered {
            return;
        }
        self.answered = true;
        if self.auth.verify_answer(&mut ice) {
            self.session.handle_offer(now, ice);
        } else {
            let forged = "its answer was not made for this call";
            self.resolve(Err(ConnectError::Handshake(forged.into())));
        }
    }

    fn handle_call_response(&mut self, response: Result<ResponseBody, SignalingError>) {
        match response {
            Ok(ResponseBody::Calling { token }) => {
                self.token = Some(token);
                self.session.handle_token(time::now().mono);
            }
            Ok(ResponseBody::Failed { code, em, .. }) => {
                self.resolve(Err(ConnectError::from_code(code, Some(em))));
            }
            Ok(_) | Err(_) => self.resolve(Err(signaling_lost_error(self.resources.server))),
        }
    }

    fn handle_ice_event(&mut self, path: CandidatePath, event: IceEvent) {
        let now = time::now().mono;
        match event {
            IceEvent::Candidate(text) => self.session.handle_local(now, path, &text),
            IceEvent::Gathered => self.session.handle_gathered(now, path),
            IceEvent::Selected(pair) => {
                tracing::debug!(path = path.as_str(), "selected a candidate pair");
                self.pairs[path as usize] = Some(pair);
                self.selector.handle_selected(now, path);
            }
            IceEvent::Failed => {
                self.selector.handle_failed(path);
                self.session.handle_failed(path);
            }
        }
    }

    fn handle_probe(&mut self, path: CandidatePath, probe: Probe) {
        match probe {
            Probe::Ping(number) => self.resources.tunnel.send_probe(path, Probe::Pong(number)),
            Probe::Pong(number) => self.selector.handle_pong(time::now().mono, path, number),
        }
    }

    fn handle_timeout(&mut self) {
        let now = time::now().mono;
        for path in CandidatePath::ALL {
            if let Some(at) = self.resources.tunnel.last_received(path) {
                self.selector.handle_received(at, path);
            }
        }
        self.selector.handle_timeout(now);
        self.session.handle_timeout(now);
    }

    fn publish_path(&mut self, now: Instant) {
        let Some((path, _, at)) = self.unpublished else { return };
        let rtt = self.selector.rtt(path);
        let (Some(pair), true) = (self.pairs[path as usize], rtt.is_some() || now >= at) else { return };
        let Some((_, reason, _)) = self.unpublished.take() else { return };
        let remote = match path {
            CandidatePath::Direct => pair.remote,
            CandidatePath::Relay => self.resources.server,
        };
        self.path.send_replace(Some(PathInfo {
            kind: PathKind::from(path),
            local: pair.local,
            remote,
            rtt,
            since: now.saturating_duration_since(self.resources.started),
            reason: reason.map(|reason| reason.to_string()),
        }));
    }

    async fn close(mut self, reason: Option<String>) {
        // The path of a very short call is published without its round-trip time.
        self.publish_path(time::now().mono + MEASURE_TIME);
        if let Some(token) = self.token.take() {
            let _ = timeout(END_TIMEOUT, self.signaling.request(RequestBody::End { token, reason })).await;
        }
        let [direct, relay] = std::mem::take(&mut self.resources.agents).map(|agent| async move {
            if let Some(agent) = agent {
                agent.close().await;
            }
        });
        tokio::join!(direct, relay);
    }
}

async fn response(pending: &mut Option<PendingCall>) -> Result<ResponseBody, SignalingError> {
    match pending {
        Some(task) => task.await.unwrap_or(Err(SignalingError::TimedOut)),
        None => std::future::pending().await,
    }
}
