//! One call: the task that runs its session and its ICE engine.

use super::call_auth::{CallAuth, InitialKey};
use super::candidate::CandidatePath;
use super::connection::{PathHandle, ServerProbe};
use super::control_streams::{self, ControlEvent};
use super::engine::{ActivePath, Engine, EngineCommand, EngineConfig, EngineEvent};
use super::error::{ConnectError, Refusal, RegistrationError};
use super::path::{PathInfo, PathKind};
use super::quic::QuicEndpoint;
use super::relay_reason::RelayReason;
use super::resumption::{ResumedCall, Resumption};
use super::session::{Session, SessionConfig, SessionFailure, SessionOutput};
use super::signaling_client::{ServerEvent, SignalingClient, SignalingError};
use super::tunnel::Tunnel;
use crate::ice::IceCredentials;
use crate::net::time;
use crate::signaling::wire::{self, IceDescription, NatType, Request, RequestBody, ResponseBody, Tag, Token};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

/// Time limit for the signalling at the end of a call.
const END_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a session without a path waits for one. Without its server too: the network may be away, or the server restarted.
const LOSS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the relay must have taken over from the direct path, or the path must be lost, before users are told.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// How long a path may be lost, or the network new, before the other side is called again.
const RESUME_DELAY: Duration = Duration::from_millis(1000);
/// How long a direct path may be lost to the relay before the other side is called again.
const DOWNGRADE_DELAY: Duration = Duration::from_secs(5);
/// Application error code of a connection whose path is lost for good.
const LOST: u32 = 3;
/// Capacity of the queue of what is learned of the connection.
const CONTROL_QUEUE: usize = 8;
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

/// The engine, the tunnel and QUIC's endpoint of a call. They exist before the session, so that gathering starts while the connector registers,
/// and a listener is ready for its next call.
pub(super) struct CallResources {
    pub(super) endpoint: QuicEndpoint,
    engine: Engine,
    events: mpsc::Receiver<EngineEvent>,
    server: SocketAddr,
    probe: ServerProbe,
    started: Instant,
}

impl CallResources {
    /// Opens the sockets and starts to gather.
    pub(super) fn start(config: EngineConfig) -> Result<Self, ConnectError> {
        let (server, probe) = (config.server, ServerProbe::new(&config));
        let (tunnel, messages) = Tunnel::new(Some(server));
        let endpoint = QuicEndpoint::new(Arc::clone(&tunnel))?.for_ping(config.is_ping);
        let (engine, events) = Engine::start(config, tunnel, messages);
        Ok(Self { endpoint, engine, events, server, probe, started: time::now().mono })
    }

    /// Sets when the call began, for resources that existed before.
    pub(super) fn begin_call(&mut self) {
        self.started = time::now().mono;
    }

    /// Sends a command to the engine.
    pub(super) fn send(&self, command: EngineCommand) {
        self.engine.send(command);
    }

    /// Has the server's second port, `host:port`, tested too.
    pub(super) fn probe_second_port(&self, name: Option<String>) {
        let (server, engine) = (self.server, self.engine.sender());
        let Some(name) = name else { return };
        tokio::spawn(async move {
            let found = tokio::net::lookup_host(name).await.ok();
            let second = found.and_then(|mut found| found.find(|at| at.is_ipv4() == server.is_ipv4()));
            if let Some(second) = second {
                let _ = engine.send(EngineCommand::SecondServer(second)).await;
            }
        });
    }
}

/// A call that is being negotiated.
pub(super) struct Negotiation {
    /// Resolved when QUIC's first datagrams can be sent: the key of its Initial packets.
    pub(super) initial: oneshot::Receiver<InitialKey>,
    /// Resolved when a path has answered, or when the call has failed. Dropped, a call that fails closes the endpoint.
    pub(super) result: oneshot::Receiver<Result<(), ConnectError>>,
    /// Keeps the path.
    pub(super) path: PathHandle,
    server: SocketAddr,
}

impl Negotiation {
    /// Waits until a path has answered.
    pub(super) async fn result(&mut self) -> Result<(), ConnectError> {
        // A task that ended without a word has lost the server.
        (&mut self.result).await.unwrap_or_else(|_| Err(signaling_lost_error(self.server)))
    }
}

/// Begins to negotiate a call.
pub(super) fn negotiate(
    resources: CallResources,
    config: SessionConfig,
    request: CallRequest,
    auth: CallAuth,
    (signaling, events): (SignalingClient, mpsc::Receiver<ServerEvent>),
    resumption: Resumption,
) -> Result<Negotiation, ConnectError> {
    let (initial, initial_rx) = oneshot::channel();
    let (ready, result) = oneshot::channel();
    let (path, path_rx) = watch::channel(None);
    let (stop, stop_rx) = mpsc::channel(1);
    let (signaling_lost, signaling_lost_rx) = watch::channel(false);
    let (control, control_rx) = mpsc::channel(CONTROL_QUEUE);
    let (server, probe) = (resources.server, resources.probe.clone());
    let local = IceCredentials::new(&config.ufrag, &config.pwd);
    let local = local.map_err(|error| ConnectError::Setup(error.into()))?;
    resources.send(EngineCommand::Begin(config.role, local));
    let task = CallTask {
        session: Session::new(config.clone()),
        config,
        resumption,
        events,
        resources,
        signaling,
        auth,
        answered: false,
        request: None,
        pending_call: None,
        token: None,
        active: None,
        reason: None,
        initial: Some(initial),
        ready: Some(ready),
        path,
        signaling_lost,
        lost_since: None,
        lost_notice_at: None,
        publish_at: None,
        control: control_rx,
        quic: None,
    };
    let task = tokio::spawn(task.run(request, stop_rx));
    let path = PathHandle::new(path_rx, signaling_lost_rx, probe, stop, task).with_control(control);
    Ok(Negotiation { initial: initial_rx, result, path, server })
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
    config: SessionConfig,
    /// How the session goes on when it has lost its path.
    resumption: Resumption,
    events: mpsc::Receiver<ServerEvent>,
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
    /// The path in use.
    active: Option<ActivePath>,
    /// Why it is not direct.
    reason: Option<RelayReason>,
    /// Resolved once: with the first path or the first failure.
    ready: Option<oneshot::Sender<Result<(), ConnectError>>>,
    /// Resolved once: when the first datagrams can be sent.
    initial: Option<oneshot::Sender<InitialKey>>,
    path: watch::Sender<Option<PathInfo>>,
    signaling_lost: watch::Sender<bool>,
    /// Since when no path answers.
    lost_since: Option<Instant>,
    /// When users are told that it is lost.
    lost_notice_at: Option<Instant>,
    /// When a change from the direct path to the relay is published.
    publish_at: Option<Instant>,
    control: mpsc::Receiver<ControlEvent>,
    /// Carries candidates once it is open: the call's token at the server expires.
    quic: Option<quinn::Connection>,
}

impl CallTask {
    async fn run(mut self, request: CallRequest, mut stop: mpsc::Receiver<String>) {
        // The candidates that are known go with the offer or the answer.
        while let Ok(event) = self.resources.events.try_recv() {
            self.handle_engine_event(time::now().mono, event);
        }
        self.start(time::now().mono, request);
        let reason = loop {
            self.apply_outputs().await;
            let timers = [
                self.session.poll_timeout(),
                self.loss_deadline(),
                self.resumption.due(),
                self.publish_at,
                self.lost_notice_at,
            ];
            let due = timers.into_iter().flatten().min().unwrap_or_else(|| time::now().mono + FAR);
            tokio::select! {
                reason = stop.recv() => break reason,
                Some(event) = self.events.recv() => self.handle_server_event(event).await,
                resumed = self.resumption.next() => if let Some(resumed) = resumed {
                    self.handle_resumption(resumed);
                },
                Some(event) = self.control.recv() => match event {
                    ControlEvent::Opened(quic) => self.quic = Some(quic),
                    ControlEvent::Candidates(candidates) => self.session.handle_trickle(&candidates, false, None),
                },
                Some(event) = self.resources.events.recv() => self.handle_engine_event(time::now().mono, event),
                response = response(&mut self.pending_call) => {
                    self.pending_call = None;
                    self.handle_call_response(response);
                }
                () = sleep_until(due.into()) => self.handle_timeout(time::now().mono),
            }
        };
        // The connection ends with its last handle.
        self.quic = None;
        self.close(reason).await;
    }

    fn start(&mut self, now: Instant, mut request: CallRequest) {
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
        while let Some(output) = self.session.poll_output() {
            self.apply_session_output(output).await;
        }
    }

    async fn apply_session_output(&mut self, output: SessionOutput) {
        match output {
            SessionOutput::Call(ice) | SessionOutput::Accept(ice) => self.send_description(ice).await,
            SessionOutput::Trickle { cands, done, nat } => self.send_candidates(cands, done, nat).await,
            SessionOutput::Start { ufrag, pwd } => match IceCredentials::new(&ufrag, &pwd) {
                Ok(credentials) => self.resources.send(EngineCommand::Start(credentials)),
                Err(error) => self.fail(ConnectError::Handshake(error.into())),
            },
            SessionOutput::Candidate(text) => self.resources.send(EngineCommand::Candidate(text)),
            SessionOutput::EndOfCandidates => self.resources.send(EngineCommand::EndOfCandidates),
            SessionOutput::Path(_, reason) => {
                self.reason = reason;
                self.publish_path();
            }
            SessionOutput::Failed(failure) => self.fail(failure.into()),
        }
    }

    /// Both ways: the token may have expired, and the path that carries QUIC may be lost.
    async fn send_candidates(&mut self, cands: Vec<String>, done: bool, nat: Option<NatType>) {
        let has_streams = self.session.has_control_streams() && !cands.is_empty();
        if let Some(quic) = self.quic.clone().filter(|_| has_streams) {
            tokio::spawn(control_streams::send_candidates(quic, cands.clone()));
        }
        if let Some(token) = self.token.clone() {
            self.signaling.notify(RequestBody::Trickle { token, cands, done, nat }).await;
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

    /// Ends the call before its first path; later only an attempt to resume it.
    fn fail(&mut self, error: ConnectError) {
        if self.ready.is_some() {
            return self.resolve(Err(error));
        }
        tracing::debug!(%error, "the session was not resumed");
        match error {
            // The listener does not know the session any more. While a path answers, that is not true.
            ConnectError::Refused(Refusal::Ticket) if self.lost_since.is_some() => self.lose(),
            ConnectError::Refused(Refusal::Ticket) => {}
            _ => self.resumption.retry(time::now().mono),
        }
    }

    fn resolve(&mut self, result: Result<(), ConnectError>) {
        let Some(ready) = self.ready.take() else { return };
        // QUIC may have been faster than the checks, over a relay.
        if let Err(Err(error)) = ready.send(result) {
            tracing::debug!(%error, "a call without a path failed");
            self.lose();
        }
    }

    /// Lets QUIC begin.
    fn release_initial_key(&mut self) {
        if let Some(initial) = self.initial.take() {
            let _ = initial.send(self.auth.initial_key());
        }
    }

    async fn handle_server_event(&mut self, event: ServerEvent) {
        match event {
            ServerEvent::Request(request) => self.handle_request(time::now().mono, *request).await,
            ServerEvent::CallFailed { code, .. } | ServerEvent::TagLost(code) => {
                self.fail(ConnectError::from_code(code, None));
            }
            ServerEvent::Closed => {
                self.signaling_lost.send_replace(true);
                self.resources.send(EngineCommand::VerifyRelays);
                self.fail(signaling_lost_error(self.resources.server));
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
                let path = self.active.map(|active| match active.path {
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
            self.fail(ConnectError::Handshake(forged.into()));
        }
    }

    fn handle_call_response(&mut self, response: Result<ResponseBody, SignalingError>) {
        match response {
            Ok(ResponseBody::Calling { token }) => {
                self.token = Some(token);
                self.session.handle_token(time::now().mono);
            }
            Ok(ResponseBody::Failed { code, em, .. }) => {
                self.fail(ConnectError::from_code(code, Some(em)));
            }
            Ok(_) | Err(_) => self.fail(signaling_lost_error(self.resources.server)),
        }
    }

    fn handle_engine_event(&mut self, now: Instant, event: EngineEvent) {
        match event {
            EngineEvent::Candidate(text) => self.session.handle_local(now, &text),
            EngineEvent::Gathered => self.session.handle_gathered(now),
            EngineEvent::Nat(nat) => self.session.handle_nat(now, nat),
            EngineEvent::Spray(status) => self.session.handle_spray(status),
            EngineEvent::Selected(active) => {
                if self.active.is_some_and(|before| before.path < active.path) {
                    // The other side's addresses may have changed.
                    self.resumption.schedule_exchange(now + DOWNGRADE_DELAY);
                }
                // At the end of a session its path dies before the session does.
                let is_change = self.active.is_some_and(|before| before.path < active.path);
                self.publish_at = is_change.then_some(now + SETTLE_TIME);
                self.active = Some(active);
                self.session.handle_active(Some(active.path));
                self.reason = self.session.reason();
                self.publish_path();
                self.release_initial_key();
                self.resolve(Ok(()));
            }
            EngineEvent::Provisional => self.release_initial_key(),
            EngineEvent::Connected => {
                (self.lost_since, self.lost_notice_at) = (None, None);
                self.resumption.handle_connected();
                self.session.handle_active(self.active.map(|active| active.path));
                self.publish_path();
            }
            EngineEvent::Disconnected => {
                if self.lost_since.is_none() {
                    (self.lost_since, self.lost_notice_at) = (Some(now), Some(now + SETTLE_TIME));
                }
                self.session.handle_lost();
                self.resumption.schedule(now + RESUME_DELAY);
            }
            EngineEvent::NetworkChanged if self.ready.is_none() => {
                self.resumption.schedule_exchange(now + RESUME_DELAY);
            }
            EngineEvent::NetworkChanged => {}
            EngineEvent::ServerChanged(address) => {
                self.resources.server = address;
                self.publish_path();
            }
            EngineEvent::Restarted => self.continue_call(now),
            EngineEvent::Failed => self.session.handle_failed(),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        self.resumption.handle_timeout(now);
        let is_lost_notice_due = self.lost_notice_at.take_if(|at| *at <= now).is_some();
        if self.publish_at.take_if(|at| *at <= now).is_some() || is_lost_notice_due {
            self.publish_path();
        }
        if self.loss_deadline().is_some_and(|at| at <= now) {
            self.lose();
        }
    }

    /// Ends a session whose path is lost for good.
    fn lose(&mut self) {
        self.lost_since = None;
        self.resumption = Resumption::None;
        self.resources.endpoint.close(LOST, "no path answers");
    }

    /// Begins a call that resumes the session: ICE is restarted, then the description is sent with all candidates.
    fn handle_resumption(&mut self, resumed: ResumedCall) {
        let ResumedCall { signaling, events, request, auth, ufrag, pwd, server, relay, .. } = resumed;
        let Ok(local) = IceCredentials::new(&ufrag, &pwd) else { return };
        self.signaling_lost.send_replace(false);
        (self.signaling, self.events, self.auth) = (signaling, events, auth);
        (self.answered, self.pending_call, self.token) = (false, None, None);
        self.config = SessionConfig { ufrag, pwd, own_relay: relay.is_some(), ..self.config.clone() };
        self.session = self.session.resumed(self.config.clone());
        self.request = Some(request);
        self.resources.server = server.1;
        self.resources.send(EngineCommand::Server(server.0, server.1));
        self.resources.send(EngineCommand::AllowSpray(resumed.is_spray_allowed));
        self.resources.probe_second_port(resumed.second_port);
        self.resources.send(EngineCommand::Relay(relay));
        self.resources.send(EngineCommand::Restart(local));
    }

    /// ICE was restarted, and the session has the candidates.
    fn continue_call(&mut self, now: Instant) {
        if let Some(request) = self.request.take() {
            self.start(now, request);
        }
    }

    /// Returns when the session ends, while no path answers.
    fn loss_deadline(&self) -> Option<Instant> {
        self.lost_since.filter(|_| self.ready.is_none()).map(|since| since + LOSS_TIMEOUT)
    }

    fn publish_path(&mut self) {
        // A loss that ends soon is none.
        let is_settled = self.publish_at.is_none() && self.lost_notice_at.is_none();
        let Some(active) = self.active.filter(|_| is_settled) else { return };
        let remote = match active.path {
            CandidatePath::Direct => active.remote,
            CandidatePath::Relay => self.resources.server,
        };
        let info = PathInfo {
            kind: PathKind::from(active.path),
            transport: active.transport,
            local: active.local,
            remote,
            rtt: active.rtt,
            since: time::now().mono.saturating_duration_since(self.resources.started),
            reason: self.reason.map(|reason| reason.to_string()),
            is_lost: self.lost_since.is_some(),
        };
        self.path.send_if_modified(|current| {
            let is_same = current.as_ref().is_some_and(|current| {
                current.is_lost == info.is_lost
                    && (info.is_lost
                        || (current.kind, current.transport, current.remote, &current.reason)
                            == (info.kind, info.transport, info.remote, &info.reason))
            });
            let since = current.as_ref().filter(|_| is_same).map_or(info.since, |current| current.since);
            let has_news =
                !is_same || current.as_ref().is_some_and(|current| current.rtt.is_none() && !current.is_lost);
            if has_news {
                *current = Some(PathInfo { since, ..info });
            }
            has_news
        });
    }

    async fn close(mut self, reason: Option<String>) {
        if let Some(token) = self.token.take() {
            let _ = timeout(END_TIMEOUT, self.signaling.request(RequestBody::End { token, reason })).await;
        }
        self.resources.engine.close().await;
    }
}

async fn response(pending: &mut Option<PendingCall>) -> Result<ResponseBody, SignalingError> {
    match pending {
        Some(task) => task.await.unwrap_or(Err(SignalingError::TimedOut)),
        None => std::future::pending().await,
    }
}
