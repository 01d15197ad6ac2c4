//! [`HardNat`]: the state machine of both sides.

mod both_hard;

use super::limits::{
    MAX_PACKETS, MAX_TIME, MIN_RELAYED, PAUSE_AFTER_SUCCESS, SPRAY_PAUSE, SprayPermit, SprayRecord,
    USER_WAITS,
};
use super::mutual::{Mutual, MutualOutput};
use super::opening::{Opening, OpeningOutput};
use super::prediction::{MIN_SAMPLES, Prediction, SAMPLES};
use super::probing::Probing;
use super::sampling::Sampling;
use super::wire::{MessageBody, SprayMessage, SprayRefusal};
use crate::agent::candidate::{self, CandidatePath};
use crate::ice::{Candidate, CandidateKind, CandidateTransport};
use crate::signaling::wire::NatType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// How long plain ICE has for a direct path, once a relayed one stands.
const PLAIN_ICE_TIME: Duration = Duration::from_millis(800);
/// Waits after the copies of a message that has no answer.
const REPEATS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(2000),
];
/// Copies of a refusal that nobody asked for.
const ANNOUNCEMENTS: usize = 3;
/// The wait before the next attempt, if a host takes part in another one.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// Rounds of an attempt.
const MAX_ROUNDS: u8 = 3;
/// Attempts whose id is remembered.
const MAX_ENDED: usize = 64;

/// The parameters of a [`HardNat`].
#[derive(Debug, Clone)]
pub(in crate::agent) struct HardNatConfig {
    /// Whether the user allows it.
    pub(in crate::agent) is_allowed: bool,
    /// Addresses that are never probed.
    pub(in crate::agent) servers: Vec<IpAddr>,
    /// What the process has done.
    pub(in crate::agent) record: SprayRecord,
    pub(in crate::agent) seed: [u8; 32],
}

/// From which socket a probe is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum ProbeSource {
    /// The one whose mapping the server reports.
    Main,
    /// An extra one, by its index.
    Extra(usize),
}

/// What the caller must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent) enum HardNatOutput {
    /// Send it over the relayed pair in use.
    Message(SprayMessage),
    /// Have this many extra sockets.
    OpenSockets(usize),
    /// Send a request to the server from an extra socket.
    Ask { socket: usize, bytes: Vec<u8> },
    /// Send a check.
    Probe { from: ProbeSource, to: SocketAddr, ttl: Option<u8> },
    /// Close the extra sockets, but for those that have become candidates.
    CloseSockets,
    /// The state for the path line.
    Status(SprayStatus),
}

/// What users see of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum SprayStatus {
    Running,
    /// No probe met a mapping.
    Failed,
    /// `--no-spray` on this side.
    Off,
    /// `--no-spray` on the other side.
    OffThere,
    /// The server of one side forbids it.
    Vetoed,
    /// The pair was sprayed within the last hour.
    Recent,
    /// The hard NAT uses several addresses.
    SeveralAddresses,
}

/// What an attempt of the hard side keeps over its rounds.
#[derive(Debug)]
struct Attempt {
    id: u32,
    permit: SprayPermit,
    target: SocketAddr,
    round: u8,
    packets: usize,
    end: Instant,
    is_entered: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    /// The hard side waits for an answer.
    Requesting {
        id: u32,
        permit: SprayPermit,
        sent: usize,
        next: Instant,
    },
    /// The hard side waits for its mappings.
    Sampling {
        attempt: Attempt,
        sampling: Sampling,
    },
    /// The hard side opens its NAT.
    Opening {
        attempt: Attempt,
        opening: Opening,
    },
    /// The easy side takes part.
    Easy {
        id: u32,
        permit: SprayPermit,
        probing: Option<Probing>,
        end: Instant,
    },
    /// Both sides are hard, and predict.
    Mutual {
        id: u32,
        permit: SprayPermit,
        mutual: Box<Mutual>,
        /// Where the packets go, once there are any.
        target: Option<Ipv4Addr>,
        end: Instant,
    },
    /// A hard side that takes no part says so.
    Announcing {
        refusal: SprayRefusal,
        sent: usize,
        next: Instant,
    },
}

/// See the [module](super).
#[derive(Debug)]
pub(in crate::agent) struct HardNat {
    config: HardNatConfig,
    is_vetoed: bool,
    nat: Option<NatType>,
    /// The mapped address of the main socket.
    address: Option<SocketAddr>,
    path: Option<CandidatePath>,
    relayed_since: Option<Instant>,
    relayed: u64,
    /// No attempt begins before.
    not_before: Option<Instant>,
    state: State,
    /// Ids of the latest attempts: a relay may repeat what it has forwarded.
    ended: VecDeque<u32>,
    /// When this side last took part at the request of another hard one.
    followed_at: Option<Instant>,
    rng: ChaCha20Rng,
    outputs: VecDeque<HardNatOutput>,
}

impl HardNat {
    pub(in crate::agent) fn new(config: HardNatConfig) -> Self {
        Self {
            is_vetoed: false,
            nat: None,
            address: None,
            path: None,
            relayed_since: None,
            relayed: 0,
            not_before: None,
            state: State::Idle,
            ended: VecDeque::new(),
            followed_at: None,
            rng: ChaCha20Rng::from_seed(config.seed),
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Sets the type of the local NAT, and the mapped address of the main socket.
    pub(in crate::agent) fn set_nat(&mut self, nat: Option<NatType>, address: Option<SocketAddr>) {
        (self.nat, self.address) = (nat, address);
    }

    /// Adds an address that is never probed.
    pub(in crate::agent) fn add_server(&mut self, ip: IpAddr) {
        if !self.config.servers.contains(&ip) {
            self.config.servers.push(ip);
        }
    }

    /// Sets whether the server forbids prediction and spray.
    pub(in crate::agent) fn set_vetoed(&mut self, now: Instant, is_vetoed: bool) {
        self.is_vetoed = is_vetoed;
        if is_vetoed && !matches!(self.state, State::Idle | State::Announcing { .. }) {
            self.stop(now, SprayRefusal::Vetoed, Some(SprayStatus::Vetoed));
        }
    }

    /// Sets the path in use.
    pub(in crate::agent) fn set_path(&mut self, now: Instant, path: Option<CandidatePath>) {
        if self.path == path {
            return;
        }
        self.path = path;
        match path {
            Some(CandidatePath::Relay) => (self.relayed_since, self.relayed) = (Some(now), 0),
            Some(CandidatePath::Direct) => {
                self.relayed_since = None;
                if let Some(permit) = self.permit() {
                    permit.succeed();
                }
                if !matches!(self.state, State::Idle) {
                    self.finish(now, None);
                    self.not_before = Some(now + PAUSE_AFTER_SUCCESS);
                }
            }
            None => {}
        }
    }

    /// Returns the permit of the attempt that runs.
    fn permit(&self) -> Option<&SprayPermit> {
        match &self.state {
            State::Sampling { attempt, .. } | State::Opening { attempt, .. } => Some(&attempt.permit),
            State::Requesting { permit, .. } | State::Easy { permit, .. } | State::Mutual { permit, .. } => {
                Some(permit)
            }
            State::Idle | State::Announcing { .. } => None,
        }
    }

    /// Returns the path in use.
    pub(in crate::agent) fn path(&self) -> Option<CandidatePath> {
        self.path
    }

    /// Sets how many bytes were relayed since [`HardNat::set_path`].
    pub(in crate::agent) fn set_relayed(&mut self, bytes: u64) {
        self.relayed = bytes;
    }

    /// Returns the next output.
    pub(in crate::agent) fn poll_output(&mut self) -> Option<HardNatOutput> {
        self.outputs.pop_front()
    }

    /// Returns when [`HardNat::handle_timeout`] is due.
    pub(in crate::agent) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Idle => {
                let begin = self.relayed_since.filter(|_| self.nat == Some(NatType::Hard))? + PLAIN_ICE_TIME;
                let begin = self.not_before.map_or(begin, |at| at.max(begin));
                // Later it is traffic that begins an attempt.
                self.is_wanted(begin).then_some(begin)
            }
            State::Requesting { next, .. } | State::Announcing { next, .. } => Some(*next),
            State::Sampling { sampling, .. } => Some(sampling.poll_timeout()),
            State::Opening { attempt, opening } => opening.poll_timeout().map(|at| at.min(attempt.end)),
            State::Easy { probing, end, .. } => {
                let probe = probing.as_ref().and_then(Probing::poll_timeout);
                Some(probe.map_or(*end, |at| at.min(*end)))
            }
            State::Mutual { mutual, end, .. } => Some(mutual.poll_timeout().map_or(*end, |at| at.min(*end))),
        }
    }

    /// Whether the user waits, or enough was relayed.
    fn is_wanted(&self, now: Instant) -> bool {
        self.path == Some(CandidatePath::Relay)
            && self.nat == Some(NatType::Hard)
            && self.not_before.is_none_or(|at| at <= now)
            && self.relayed_since.is_some_and(|since| {
                since + PLAIN_ICE_TIME <= now && (now < since + USER_WAITS || self.relayed >= MIN_RELAYED)
            })
    }

    /// Handles the timers that are due.
    pub(in crate::agent) fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            if self.is_wanted(now) {
                self.request(now);
            } else if let Some(waits) =
                self.relayed_since.map(|since| since + USER_WAITS).filter(|at| *at <= now)
            {
                self.not_before = self.not_before.max(Some(waits));
            }
            return;
        }
        match &mut self.state {
            State::Requesting { id, sent, next, .. } if *next <= now => {
                let Some(wait) = REPEATS.get(*sent).copied() else { return self.finish(now, None) };
                (*sent, *next) = (*sent + 1, now + wait);
                let id = *id;
                self.send(id, MessageBody::Request);
            }
            State::Announcing { refusal, sent, next } if *next <= now => {
                if *sent == ANNOUNCEMENTS {
                    return self.finish(now, None);
                }
                let refusal = *refusal;
                (*sent, *next) = (*sent + 1, now + REPEATS[*sent]);
                self.send(0, MessageBody::Refuse(refusal));
            }
            State::Idle | State::Requesting { .. } | State::Announcing { .. } => {}
            State::Sampling { .. } => self.sample(now),
            State::Opening { .. } => self.open(now),
            State::Mutual { target, end, .. } if *end <= now => {
                let status = target.is_some().then_some(SprayStatus::Failed);
                self.finish(now, status);
            }
            State::Mutual { mutual, .. } => {
                mutual.handle_timeout(now);
                self.flush_mutual(now);
            }
            State::Easy { probing, end, .. } => {
                if *end <= now {
                    let status = probing.is_some().then_some(SprayStatus::Failed);
                    return self.finish(now, status);
                }
                while let Some(to) = probing.as_mut().and_then(|probing| probing.poll(now)) {
                    self.outputs.push_back(HardNatOutput::Probe { from: ProbeSource::Main, to, ttl: None });
                }
            }
        }
    }

    fn request(&mut self, now: Instant) {
        if let Some((refusal, status)) = self.own_refusal() {
            self.state = State::Announcing { refusal, sent: 0, next: now };
            self.outputs.push_back(HardNatOutput::Status(status));
            return self.handle_timeout(now);
        }
        match self.config.record.acquire() {
            Some(permit) => {
                self.state = State::Requesting { id: self.rng.random(), permit, sent: 0, next: now };
                self.handle_timeout(now);
            }
            None => self.not_before = Some(now + BUSY_WAIT),
        }
    }

    fn own_refusal(&self) -> Option<(SprayRefusal, SprayStatus)> {
        match (self.config.is_allowed, self.is_vetoed) {
            (false, _) => Some((SprayRefusal::Off, SprayStatus::Off)),
            (true, true) => Some((SprayRefusal::Vetoed, SprayStatus::Vetoed)),
            (true, false) => None,
        }
    }

    fn send(&mut self, id: u32, body: MessageBody) {
        self.outputs.push_back(HardNatOutput::Message(SprayMessage { id, body }));
    }

    /// Ends what runs, and says why.
    fn stop(&mut self, now: Instant, refusal: SprayRefusal, status: Option<SprayStatus>) {
        if let Some(id) = self.attempt_id() {
            self.send(id, MessageBody::Refuse(refusal));
        }
        self.finish(now, status);
    }

    /// Returns the id of the attempt in which this side takes part.
    fn attempt_id(&self) -> Option<u32> {
        match &self.state {
            State::Requesting { id, .. } | State::Easy { id, .. } | State::Mutual { id, .. } => Some(*id),
            State::Sampling { attempt, .. } | State::Opening { attempt, .. } => Some(attempt.id),
            State::Idle | State::Announcing { .. } => None,
        }
    }

    fn finish(&mut self, now: Instant, status: Option<SprayStatus>) {
        if matches!(self.state, State::Sampling { .. } | State::Opening { .. } | State::Mutual { .. }) {
            self.outputs.push_back(HardNatOutput::CloseSockets);
        }
        if let Some(id) = self.attempt_id() {
            self.ended.push_back(id);
            if self.ended.len() > MAX_ENDED {
                self.ended.pop_front();
            }
        }
        self.state = State::Idle;
        self.not_before = Some(now + SPRAY_PAUSE);
        self.outputs.extend(status.map(HardNatOutput::Status));
    }

    /// Handles a message of the other side, whose candidates these are.
    pub(in crate::agent) fn handle_message(
        &mut self,
        now: Instant,
        message: SprayMessage,
        remotes: &[Candidate],
    ) {
        let SprayMessage { id, body } = message;
        match (body, &self.state) {
            (MessageBody::Request, _) => self.handle_request(now, id),
            (MessageBody::Ready(address), State::Requesting { id: own, .. }) if *own == id => {
                self.handle_ready(now, address.into(), remotes);
            }
            (MessageBody::Start { round, ip, ports }, State::Easy { id: own, .. }) if *own == id => {
                self.handle_start(now, (round, ip, ports), remotes);
            }
            (MessageBody::Started { round }, State::Opening { attempt, .. })
                if attempt.id == id && attempt.round == round =>
            {
                if let State::Opening { opening, .. } = &mut self.state {
                    opening.handle_started();
                }
            }
            (MessageBody::Refuse(refusal), _) => self.handle_refusal(now, id, refusal),
            (MessageBody::Started { .. } | MessageBody::Window { .. } | MessageBody::Again { .. }, _) => {
                self.handle_mutual_message(now, message, remotes);
            }
            _ => {}
        }
    }

    fn handle_request(&mut self, now: Instant, id: u32) {
        match &self.state {
            _ if self.ended.contains(&id) => return,
            // A copy.
            State::Easy { id: own, .. } if *own == id => {}
            State::Mutual { id: own, .. } if *own == id => return,
            _ if self.nat == Some(NatType::Hard) => return self.handle_request_of_hard_side(now, id),
            _ => {
                if let Err(refusal) = self.accept(now, id) {
                    return self.send(id, MessageBody::Refuse(refusal));
                }
            }
        }
        if let Some(SocketAddr::V4(address)) = self.address {
            self.send(id, MessageBody::Ready(address));
        }
    }

    /// Begins to take part as the easy side.
    fn accept(&mut self, now: Instant, id: u32) -> Result<(), SprayRefusal> {
        if let Some((refusal, status)) = self.own_refusal() {
            self.outputs.push_back(HardNatOutput::Status(status));
            return Err(refusal);
        }
        if self.nat == Some(NatType::Blocked) {
            return Err(SprayRefusal::Nat);
        }
        // Of a NAT that is not known yet more will be known soon.
        if self.nat.is_none()
            || !matches!(self.address, Some(SocketAddr::V4(_)))
            || !matches!(self.state, State::Idle)
        {
            return Err(SprayRefusal::Busy);
        }
        let permit = self.config.record.acquire().ok_or(SprayRefusal::Busy)?;
        self.state = State::Easy { id, permit, probing: None, end: now + MAX_TIME };
        Ok(())
    }

    fn handle_ready(&mut self, now: Instant, target: SocketAddr, remotes: &[Candidate]) {
        let is_offered = remotes.iter().any(|remote| is_own_address(remote) && remote.address == target);
        if !is_offered || !self.may_probe(target.ip(), remotes) {
            return self.refuse_address(now, is_offered);
        }
        if let State::Requesting { id, permit, .. } = std::mem::replace(&mut self.state, State::Idle) {
            let (round, packets, end) = (0, 0, now + MAX_TIME);
            self.begin_sampling(now, Attempt { id, permit, target, round, packets, end, is_entered: false });
            self.outputs.push_back(HardNatOutput::Status(SprayStatus::Running));
        }
    }

    /// Refuses an address of the other side. The candidate that names it may still be on its way.
    fn refuse_address(&mut self, now: Instant, is_offered: bool) {
        let refusal = if is_offered { SprayRefusal::Address } else { SprayRefusal::Busy };
        self.stop(now, refusal, None);
        if !is_offered {
            self.not_before = Some(now + BUSY_WAIT);
        }
    }

    /// Never private addresses, servers, or where the other side has a relay.
    fn may_probe(&self, ip: IpAddr, remotes: &[Candidate]) -> bool {
        let is_relay =
            |remote: &Candidate| remote.kind == CandidateKind::Relayed && remote.address.ip() == ip;
        candidate::is_global(ip) && !self.config.servers.contains(&ip) && !remotes.iter().any(is_relay)
    }

    fn handle_start(
        &mut self,
        now: Instant,
        (round, ip, ports): (u8, Ipv4Addr, super::PredictedPorts),
        remotes: &[Candidate],
    ) {
        let is_allowed = self.is_reflexive(ip, remotes) && round < MAX_ROUNDS;
        let State::Easy { id, permit, probing, .. } = &mut self.state else { return };
        let (id, is_first) = (*id, probing.is_none());
        if probing.as_ref().is_some_and(|probing| probing.ip != ip) {
            return self.stop(now, SprayRefusal::Address, None);
        }
        if !is_allowed {
            return self.refuse_address(now, is_known_ip(ip.into(), remotes));
        }
        let own = self.address.map_or(IpAddr::V4(ip), |address| address.ip());
        if is_first && !permit.enter(now, [own, ip.into()], ports.is_sequence()) {
            return self.stop(now, SprayRefusal::Recent, Some(SprayStatus::Recent));
        }
        let probing = probing.get_or_insert_with(|| Probing::new(now, ip));
        probing.begin(round, ports, &mut self.rng);
        if is_first {
            self.outputs.push_back(HardNatOutput::Status(SprayStatus::Running));
        }
        self.send(id, MessageBody::Started { round });
        self.handle_timeout(now);
    }

    fn handle_refusal(&mut self, now: Instant, id: u32, refusal: SprayRefusal) {
        let own = self.attempt_id();
        let is_announced =
            id == 0 && own.is_none() && matches!(self.nat, Some(NatType::Easy | NatType::Open));
        if own != Some(id) && !is_announced {
            return;
        }
        let status = match refusal {
            SprayRefusal::Off => Some(SprayStatus::OffThere),
            SprayRefusal::Vetoed => Some(SprayStatus::Vetoed),
            SprayRefusal::Recent => Some(SprayStatus::Recent),
            SprayRefusal::Failed => Some(SprayStatus::Failed),
            SprayRefusal::Address | SprayRefusal::Busy | SprayRefusal::Nat => None,
        };
        if is_announced {
            return self.outputs.extend(status.map(HardNatOutput::Status));
        }
        self.finish(now, status);
        if refusal == SprayRefusal::Busy {
            self.not_before = Some(now + BUSY_WAIT);
        }
    }

    fn begin_sampling(&mut self, now: Instant, attempt: Attempt) {
        self.outputs.push_back(HardNatOutput::CloseSockets);
        self.outputs.push_back(HardNatOutput::OpenSockets(SAMPLES));
        self.state = State::Sampling { attempt, sampling: Sampling::new(now, &mut self.rng) };
        self.sample(now);
    }

    /// Handles a message of the server that arrived at an extra socket.
    pub(in crate::agent) fn handle_server_message(&mut self, now: Instant, socket: usize, bytes: &[u8]) {
        match &mut self.state {
            State::Sampling { sampling, .. } => {
                sampling.handle(socket, bytes);
                self.sample(now);
            }
            State::Mutual { mutual, .. } => {
                mutual.handle_server_message(now, socket, bytes);
                self.flush_mutual(now);
            }
            _ => {}
        }
    }

    /// Asks for mappings until enough are known.
    fn sample(&mut self, now: Instant) {
        let State::Sampling { sampling, .. } = &mut self.state else { return };
        match sampling.conclude(now) {
            Some(samples) => self.conclude_sampling(now, &samples),
            None => {
                let requests = sampling.poll(now).into_iter();
                self.outputs.extend(requests.map(|(socket, bytes)| HardNatOutput::Ask { socket, bytes }));
            }
        }
    }

    fn conclude_sampling(&mut self, now: Instant, samples: &[SocketAddr]) {
        let Some(prediction) = Prediction::new(samples) else {
            let status = match samples.len() < MIN_SAMPLES {
                true => SprayStatus::Failed,
                false => SprayStatus::SeveralAddresses,
            };
            return self.stop(now, SprayRefusal::Nat, Some(status));
        };
        let State::Sampling { attempt, .. } = &mut self.state else { return };
        let pair = [IpAddr::V4(prediction.ip), attempt.target.ip()];
        if !attempt.is_entered && !attempt.permit.enter(now, pair, prediction.ports.is_sequence()) {
            return self.stop(now, SprayRefusal::Recent, Some(SprayStatus::Recent));
        }
        attempt.is_entered = true;
        tracing::debug!(ports = ?prediction.ports, sockets = prediction.sockets, "opening the local NAT");
        self.outputs.push_back(HardNatOutput::OpenSockets(prediction.sockets));
        if let State::Sampling { attempt, .. } = std::mem::replace(&mut self.state, State::Idle) {
            self.state = State::Opening { attempt, opening: Opening::new(now, prediction) };
            self.open(now);
        }
    }

    /// Handles that an authentic check has arrived at an extra socket.
    pub(in crate::agent) fn handle_hit(&mut self, now: Instant) {
        match &mut self.state {
            State::Opening { opening, .. } => opening.handle_hit(now),
            State::Mutual { mutual, .. } => mutual.handle_hit(now),
            _ => {}
        }
    }

    fn open(&mut self, now: Instant) {
        loop {
            let State::Opening { attempt, opening } = &mut self.state else { return };
            if attempt.end <= now {
                return self.finish(now, Some(SprayStatus::Failed));
            }
            match opening.poll(now, MAX_PACKETS - attempt.packets) {
                Some(OpeningOutput::Packet { socket, ttl }) => {
                    attempt.packets += 1;
                    let from = ProbeSource::Extra(socket);
                    self.outputs.push_back(HardNatOutput::Probe { from, to: attempt.target, ttl });
                }
                Some(OpeningOutput::Start) => {
                    let Prediction { ip, ports, .. } = opening.prediction;
                    let (id, round) = (attempt.id, attempt.round);
                    self.send(id, MessageBody::Start { round, ip, ports });
                }
                Some(OpeningOutput::Over) => return self.begin_next_round(now),
                None => return,
            }
        }
    }

    fn begin_next_round(&mut self, now: Instant) {
        let State::Opening { attempt, opening } = &mut self.state else { return };
        attempt.round += 1;
        let ports = opening.prediction.ports;
        if attempt.round == MAX_ROUNDS || ports.probes() >= MAX_PACKETS {
            return self.stop(now, SprayRefusal::Failed, Some(SprayStatus::Failed));
        }
        if !ports.is_sequence() {
            opening.repeat(now);
            return self.open(now);
        }
        if let State::Opening { attempt, .. } = std::mem::replace(&mut self.state, State::Idle) {
            self.begin_sampling(now, attempt);
        }
    }
}

/// Whether the other side has a candidate of this address.
fn is_known_ip(ip: IpAddr, remotes: &[Candidate]) -> bool {
    remotes.iter().any(|remote| remote.address.ip() == ip)
}

/// Whether a candidate is an address of the other side itself.
fn is_own_address(remote: &Candidate) -> bool {
    matches!(remote.kind, CandidateKind::Host | CandidateKind::ServerReflexive)
        && remote.transport == CandidateTransport::Udp
}
