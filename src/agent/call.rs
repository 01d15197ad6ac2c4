//! The hands of one call: feed the session and the lane selector, do what they say, and keep the lanes until the end.

use super::call_auth::{CallAuth, InitialKey};
use super::candidate::CandidatePath;
use super::ice::{IceAgent, IceAgentConfig, IceEvent, RelayCredentials, SelectedPair};
use super::nat_probe::NatProbe;
use super::path::{PathInfo, PathKind};
use super::path_selector::{self, PathSelector};
use super::relay_reason::RelayReason;
use super::session::{self, Failure, Session, SessionConfig};
use super::signaling_client::{SignalingClient, SignalingError};
use super::tunnel::{Probe, Tunnel};
use crate::net::time;
use crate::signaling::wire::{
    self, ErrorCode, IceDescription, NatType, Request, RequestBody, ResponseBody, Tag, Token,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

const QUEUE: usize = 128;
/// How long the news of a path may wait for its round trip to be measured.
const MEASURE_TIME: Duration = Duration::from_millis(500);
/// How long the end of a call may wait for the signalling line.
const GOODBYE_TIME: Duration = Duration::from_millis(300);
/// How long a server may take to accept a connection before it counts as gone.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// A timer that is never waited for.
const FAR: Duration = Duration::from_secs(3600);

/// What the signalling line brings to one call.
#[derive(Debug)]
pub(super) enum Signal {
    /// The server asks: 52, 53, 54 or 55.
    Request(Box<Request>),
    /// The call cannot go on.
    Failed(ErrorCode),
    /// Nothing will come any more.
    LineCut,
}

/// How far a call has come.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// No lane carries data yet.
    Searching,
    /// One did at least once; both sides begin QUIC with this key.
    Ready(InitialKey),
    /// It is over.
    Failed(CallFailure),
}

/// Why a call failed.
#[derive(Debug, Clone)]
pub(super) enum CallFailure {
    /// As the session says.
    Session(Failure),
    /// The server said no.
    Refused(ErrorCode, String),
    /// The other side would not be called, or the call could not go on.
    Declined(ErrorCode),
    /// The other side's answer was made by somebody without the ticket, or for another call.
    Impostor,
    /// The signalling line was cut before there was a path.
    LineCut,
}

/// How a call begins.
#[derive(Debug)]
pub(super) enum CallRequest {
    /// This side calls `callee`.
    Dial { tag: Tag, callee: Tag },
    /// This side was called.
    Answer { mid: Option<i64>, token: Token, offer: Box<IceDescription> },
}

/// Both ends of a queue.
type Channel<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

/// The queues and sockets of a call; they exist before the session, so that gathering overlaps with registering.
pub(super) struct CallResources {
    pub(super) tunnel: Arc<Tunnel>,
    probes: mpsc::Receiver<(CandidatePath, Probe)>,
    events: Channel<(CandidatePath, IceEvent)>,
    nat: Channel<NatType>,
    blocked: watch::Sender<Option<bool>>,
    server: SocketAddr,
    lanes: [Option<IceAgent>; 2],
    begun: Instant,
}

impl CallResources {
    /// Makes the queues. `blocked`: whether UDP failed to reach the server the last time it was tried.
    pub(super) fn new(server: SocketAddr, blocked: Option<bool>) -> Self {
        let (tunnel, probes) = Tunnel::new();
        Self {
            tunnel,
            probes,
            events: mpsc::channel(QUEUE),
            nat: mpsc::channel(1),
            blocked: watch::Sender::new(blocked),
            server,
            lanes: [None, None],
            begun: time::now().mono,
        }
    }

    /// Opens a lane's sockets and begins to gather.
    pub(super) fn open_lane(
        &mut self,
        kind: CandidatePath,
        setup: &SessionConfig,
        relay: Option<RelayCredentials>,
    ) {
        let config = IceAgentConfig {
            kind,
            role: setup.role,
            ufrag: setup.ufrag.clone(),
            pwd: setup.pwd.clone(),
            server: self.server,
            relay,
            blocked: self.blocked.subscribe(),
        };
        let lane = IceAgent::open(config, Arc::clone(&self.tunnel), self.events.0.clone());
        self.lanes[kind as usize] = Some(lane);
    }

    /// Begins to find out about UDP and the NAT; `stun2` brings `host:port` of the server's second UDP port.
    pub(super) fn probe(&self, stun2: impl Future<Output = Option<String>> + Send + 'static) {
        let (server, blocked, nat) = (self.server, self.blocked.clone(), self.nat.0.clone());
        tokio::spawn(async move {
            let Ok(probe) = NatProbe::start(server).await else {
                blocked.send_replace(Some(true));
                return;
            };
            blocked.send_replace(Some(probe.blocked()));
            let second = match stun2.await {
                Some(name) => tokio::net::lookup_host(name)
                    .await
                    .ok()
                    .and_then(|mut found| found.find(|address| address.is_ipv4() == server.is_ipv4())),
                None => None,
            };
            if let Some(known) = probe.finish(second).await {
                let _ = nat.send(known).await;
            }
        });
    }
}

/// A running call.
#[derive(Debug)]
pub(super) struct Call {
    progress: watch::Receiver<Progress>,
    pub(super) path: watch::Receiver<Option<PathInfo>>,
    /// The line to the server was cut since the call began.
    was_cut: Arc<AtomicBool>,
    stop: mpsc::Sender<String>,
    task: JoinHandle<()>,
}

impl Call {
    /// Starts the negotiation.
    pub(super) fn start(
        resources: CallResources,
        setup: SessionConfig,
        (opening, binding): (CallRequest, CallAuth),
        link: SignalingClient,
        signals: mpsc::Receiver<Signal>,
    ) -> Self {
        let (progress, progress_rx) = watch::channel(Progress::Searching);
        let (path, path_rx) = watch::channel(None);
        let (stop, stop_rx) = mpsc::channel(1);
        let was_cut = Arc::new(AtomicBool::new(false));
        let driver = Driver {
            session: Session::new(setup),
            selector: PathSelector::new(resources.begun),
            resources,
            link,
            binding,
            answered: false,
            dial: None,
            token: None,
            pairs: [None, None],
            news: None,
            progress,
            path,
            was_cut: Arc::clone(&was_cut),
        };
        let task = tokio::spawn(driver.run(opening, signals, stop_rx));
        Self { progress: progress_rx, path: path_rx, was_cut, stop, task }
    }

    /// Stands for a path that was found without negotiation and is kept by `task` until it is told to `stop`.
    pub(super) fn found(
        path: watch::Receiver<Option<PathInfo>>,
        stop: mpsc::Sender<String>,
        task: JoinHandle<()>,
    ) -> Self {
        let (_, progress) = watch::channel(Progress::Searching);
        Self { progress, path, was_cut: Arc::default(), stop, task }
    }

    /// Names the server that carries the connection, where it is gone or the line to it was cut, so that what it carried is lost.
    pub(super) async fn lost_server(&self) -> Option<SocketAddr> {
        let path = self.path.borrow().clone().filter(|path| path.kind != PathKind::Direct)?;
        let answers =
            || async { matches!(timeout(ANSWER_TIME, TcpStream::connect(path.remote)).await, Ok(Ok(_))) };
        (self.was_cut.load(Ordering::Relaxed) || !answers().await).then_some(path.remote)
    }

    /// Waits until data can flow, or until that is hopeless; returns the key to begin QUIC with.
    pub(super) async fn ready(&mut self) -> Result<InitialKey, CallFailure> {
        let reached = self.progress.wait_for(|progress| !matches!(progress, Progress::Searching)).await;
        match reached.as_deref() {
            Ok(Progress::Ready(key)) => Ok(key.clone()),
            Ok(Progress::Failed(failure)) => Err(failure.clone()),
            Ok(Progress::Searching) | Err(_) => Err(CallFailure::LineCut),
        }
    }

    /// Ends the call for this reason: tells the other side, closes the lanes and gives the relayed address back.
    pub(super) async fn end(self, reason: &str) {
        let _ = self.stop.send(reason.to_owned()).await;
        let _ = self.task.await;
    }
}

type Dialled = JoinHandle<Result<ResponseBody, SignalingError>>;

struct Driver {
    session: Session,
    selector: PathSelector,
    resources: CallResources,
    link: SignalingClient,
    binding: CallAuth,
    /// The other side's terms have come.
    answered: bool,
    /// Where an offer of the session's goes.
    dial: Option<CallRequest>,
    token: Option<Token>,
    pairs: [Option<SelectedPair>; 2],
    /// A path that is to be told once its round trip is known, at the latest at that time.
    news: Option<(CandidatePath, Option<RelayReason>, Instant)>,
    progress: watch::Sender<Progress>,
    path: watch::Sender<Option<PathInfo>>,
    was_cut: Arc<AtomicBool>,
}

impl Driver {
    async fn run(
        mut self,
        opening: CallRequest,
        mut signals: mpsc::Receiver<Signal>,
        mut stop: mpsc::Receiver<String>,
    ) {
        let mut dialled = None;
        self.open(opening);
        let reason = loop {
            self.drain(&mut dialled).await;
            let timers = [
                self.session.poll_timeout(),
                self.selector.poll_timeout(),
                self.news.as_ref().map(|(.., at)| *at),
            ];
            let due = timers.into_iter().flatten().min().unwrap_or_else(|| time::now().mono + FAR);
            tokio::select! {
                reason = stop.recv() => break reason,
                Some(signal) = signals.recv() => self.take_signal(signal).await,
                Some((lane, event)) = self.resources.events.1.recv() => self.take_event(lane, event),
                Some((lane, probe)) = self.resources.probes.recv() => self.take_sign(lane, probe),
                Some(nat) = self.resources.nat.1.recv() => self.session.handle_nat(time::now().mono, nat),
                answer = answered(&mut dialled) => {
                    dialled = None;
                    self.take_answer(answer);
                }
                () = sleep_until(due.into()) => self.pass_time(),
            }
        };
        self.close(reason).await;
    }

    fn open(&mut self, opening: CallRequest) {
        let now = time::now().mono;
        match opening {
            CallRequest::Answer { mid, token, mut offer } => {
                self.token = Some(token.clone());
                let offer = std::mem::take(&mut *offer);
                self.dial = Some(CallRequest::Answer { mid, token, offer: Box::default() });
                self.session.handle_offer(now, offer);
            }
            dial @ CallRequest::Dial { .. } => {
                self.dial = Some(dial);
                self.session.dial(now);
            }
        }
    }

    async fn drain(&mut self, dialled: &mut Option<Dialled>) {
        loop {
            if let Some(output) = self.selector.poll_output() {
                self.apply_selector_output(output);
            } else if let Some(output) = self.session.poll_output() {
                self.apply_session_output(output, dialled).await;
            } else {
                break;
            }
        }
        self.tell_news(time::now().mono);
    }

    fn apply_selector_output(&mut self, output: path_selector::Output) {
        match output {
            path_selector::Output::Ping(lane, number) => {
                self.resources.tunnel.send_probe(lane, Probe::Ping(number))
            }
            path_selector::Output::Active(lane) => {
                self.resources.tunnel.set_active(lane);
                self.session.handle_active(lane);
                if lane.is_some() {
                    self.advance(Progress::Ready(self.binding.initial_key()));
                }
            }
        }
    }

    async fn apply_session_output(&mut self, output: session::Output, dialled: &mut Option<Dialled>) {
        match output {
            session::Output::Call(mut ice) => {
                self.binding.prove(&mut ice);
                if let Some(CallRequest::Dial { tag, callee }) = self.dial.take() {
                    let link = self.link.clone();
                    let ask = RequestBody::Call { tag, rtag: callee, ice };
                    *dialled = Some(tokio::spawn(async move { link.ask(ask).await }));
                }
            }
            session::Output::Accept(mut ice) => {
                self.binding.prove(&mut ice);
                if let Some(CallRequest::Answer { mid, token, .. }) = self.dial.take() {
                    self.link.answer(mid, ResponseBody::Accepted { token, ice }).await;
                }
            }
            session::Output::Trickle { cands, done, nat } => {
                if let Some(token) = self.token.clone() {
                    self.link.tell(RequestBody::Trickle { token, cands, done, nat }).await;
                }
            }
            session::Output::Start { ufrag, pwd } => {
                for lane in self.resources.lanes.iter().flatten() {
                    lane.start(ufrag.clone(), pwd.clone()).await;
                }
            }
            session::Output::Candidate(candidate) => {
                if let Some(lane) = &self.resources.lanes[candidate.lane as usize] {
                    lane.add_candidate(candidate.text).await;
                }
            }
            session::Output::Path(lane, reason) => {
                self.news = Some((lane, reason, time::now().mono + MEASURE_TIME));
            }
            session::Output::Failed(failure) => self.advance(Progress::Failed(CallFailure::Session(failure))),
        }
    }

    /// The first end of the search is the one that counts.
    fn advance(&self, to: Progress) {
        self.progress.send_if_modified(|progress| {
            let searching = matches!(progress, Progress::Searching);
            if searching {
                *progress = to;
            }
            searching
        });
    }

    async fn take_signal(&mut self, signal: Signal) {
        let now = time::now().mono;
        match signal {
            Signal::Request(request) => self.take_request(now, *request).await,
            Signal::Failed(code) => self.advance(Progress::Failed(CallFailure::Declined(code))),
            Signal::LineCut => {
                self.was_cut.store(true, Ordering::Relaxed);
                self.advance(Progress::Failed(CallFailure::LineCut));
            }
        }
    }

    async fn take_request(&mut self, now: Instant, request: Request) {
        let answer = match request.body {
            RequestBody::Answered { token, mut ice, .. } => {
                self.token = Some(token.clone());
                self.session.handle_token(now);
                self.take_terms(now, &mut ice);
                ResponseBody::Noted { token }
            }
            RequestBody::Trickle { token, cands, done, nat } => {
                self.session.handle_trickle(&cands, done, nat);
                // Without a mid the server does not wait for an answer.
                if request.mid.is_none() {
                    return;
                }
                ResponseBody::Trickled { token }
            }
            RequestBody::Question { token } => {
                let path = self.selector.active().map(|lane| match lane {
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
        self.link.answer(request.mid, answer).await;
    }

    /// The server may repeat the answer; only the first counts.
    fn take_terms(&mut self, now: Instant, ice: &mut IceDescription) {
        if self.answered {
            return;
        }
        self.answered = true;
        if self.binding.take_answer(ice) {
            self.session.handle_offer(now, std::mem::take(ice));
        } else {
            self.advance(Progress::Failed(CallFailure::Impostor));
        }
    }

    fn take_answer(&mut self, answer: Result<ResponseBody, SignalingError>) {
        match answer {
            Ok(ResponseBody::Calling { token }) => {
                self.token = Some(token);
                self.session.handle_token(time::now().mono);
            }
            Ok(ResponseBody::Failed { code, em, .. }) => {
                self.advance(Progress::Failed(CallFailure::Refused(code, em)));
            }
            Ok(_) | Err(_) => self.advance(Progress::Failed(CallFailure::LineCut)),
        }
    }

    fn take_event(&mut self, lane: CandidatePath, event: IceEvent) {
        let now = time::now().mono;
        match event {
            IceEvent::Candidate(text) => self.session.handle_local(now, lane, &text),
            IceEvent::Gathered => self.session.handle_gathered(now, lane),
            IceEvent::Valid(pair) => {
                tracing::debug!(lane = lane.word(), "a pair was selected");
                self.pairs[lane as usize] = Some(pair);
                self.selector.handle_valid(now, lane);
            }
            IceEvent::Failed => {
                self.selector.handle_failed(lane);
                self.session.handle_dead(lane);
            }
        }
    }

    fn take_sign(&mut self, lane: CandidatePath, probe: Probe) {
        match probe {
            Probe::Ping(number) => self.resources.tunnel.send_probe(lane, Probe::Pong(number)),
            Probe::Pong(number) => self.selector.handle_pong(time::now().mono, lane, number),
        }
    }

    fn pass_time(&mut self) {
        let now = time::now().mono;
        for lane in CandidatePath::ALL {
            if let Some(heard) = self.resources.tunnel.last_heard(lane) {
                self.selector.handle_heard(heard, lane);
            }
        }
        self.selector.handle_timeout(now);
        self.session.handle_timeout(now);
    }

    fn tell_news(&mut self, now: Instant) {
        let Some((lane, _, at)) = self.news else { return };
        let rtt = self.selector.rtt(lane);
        let (Some(pair), true) = (self.pairs[lane as usize], rtt.is_some() || now >= at) else { return };
        let Some((_, reason, _)) = self.news.take() else { return };
        let remote = match lane {
            CandidatePath::Direct => pair.remote,
            CandidatePath::Relay => self.resources.server,
        };
        let path = PathInfo {
            kind: PathKind::from(lane),
            local: pair.local,
            remote,
            rtt,
            since: now.saturating_duration_since(self.resources.begun),
            reason: reason.map(|reason| reason.to_string()),
        };
        self.path.send_replace(Some(path));
    }

    async fn close(mut self, reason: Option<String>) {
        // A call that was over before its path was measured still has one.
        self.tell_news(time::now().mono + MEASURE_TIME);
        if let Some(token) = self.token.take() {
            let _ = timeout(GOODBYE_TIME, self.link.ask(RequestBody::End { token, reason })).await;
        }
        let [direct, relay] = std::mem::take(&mut self.resources.lanes).map(|lane| async move {
            if let Some(lane) = lane {
                lane.close().await;
            }
        });
        tokio::join!(direct, relay);
    }
}

async fn answered(dialled: &mut Option<Dialled>) -> Result<ResponseBody, SignalingError> {
    match dialled {
        Some(task) => task.await.unwrap_or(Err(SignalingError::Silent)),
        None => std::future::pending().await,
    }
}
