//! The negotiation of one call as a machine: what was said, found and timed out, to what is to be said and tried.
//!
//! Both roles run the same machine. The connector begins with [`Session::dial`], the listener with the connector's offer
//! ([`Session::handle_offer`]). Candidates are trickled: each side tells the other of its candidates as it finds them
//! (S0-A18), and lanes are tried as soon as both credentials are known.

use super::candidate::{self, CandidatePath, Origin, RemoteCandidate};
use super::pinned_tls::Role;
use super::relay_reason::{self, Observations, RelayReason};
use crate::signaling::wire::{IceDescription, NatType};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the other side may take to answer a call; the server gives up after 7.5 s (S0-A17).
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(12);
/// How long both sides may look for a path.
pub(super) const PATH_TIME: Duration = Duration::from_secs(15);
/// The reason given to the other side (t = 55) after [`PATH_TIME`].
pub(super) const NO_PATH: &str = "no path";
/// How long "still being tried" is said of the direct path; it goes on being tried after that.
pub(super) const TRIAL_TIME: Duration = Duration::from_secs(3);
/// Candidates found within this time share one message.
const GATHER_TIME: Duration = Duration::from_millis(10);
/// The most candidates one message may carry on the wire.
const CANDIDATES_A_MESSAGE: usize = 32;
/// The most candidates taken from the other side, all lanes together.
pub(super) const MAX_REMOTE: usize = 48;
/// The most candidates of our own that are told.
const MAX_LOCAL: usize = 48;

/// Which paths may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best there is.
    #[default]
    Auto,
    /// Only through the relay; inner addresses are told to nobody.
    RelayOnly,
    /// Only from machine to machine.
    NoRelay,
}

impl Tried {
    /// Says whether a relay was tried.
    #[must_use]
    pub fn relay(&self) -> bool {
        self.own_relay || self.their_relay
    }
}

impl Mode {
    /// Says whether a lane may be used.
    #[must_use]
    pub fn allows(self, lane: CandidatePath) -> bool {
        match self {
            Self::Auto => true,
            Self::RelayOnly => lane == CandidatePath::Relay,
            Self::NoRelay => lane == CandidatePath::Direct,
        }
    }
}

/// What a session is begun with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionConfig {
    /// Which end this is.
    pub role: Role,
    /// Which paths may be used.
    pub mode: Mode,
    /// This side's ICE user name fragment.
    pub ufrag: String,
    /// This side's ICE password.
    pub pwd: String,
    /// This side has relay credentials.
    pub own_relay: bool,
}

/// What the hands are to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Call the other side (t = 4) and say this.
    Call(IceDescription),
    /// Accept the call (t = -51) and say this.
    Accept(IceDescription),
    /// Say this too (t = 54).
    Trickle {
        /// Candidates found since the last message.
        cands: Vec<String>,
        /// There will be no more.
        done: bool,
        /// What this side's NAT does.
        nat: Option<NatType>,
    },
    /// Begin checks in every lane, with the other side's credentials.
    Start {
        /// Its user name fragment.
        ufrag: String,
        /// Its password.
        pwd: String,
    },
    /// Give the lane this candidate of the other side.
    Candidate(RemoteCandidate),
    /// The path, or the reason for it, is now this.
    Path(CandidatePath, Option<RelayReason>),
    /// It did not work.
    Failed(Failure),
}

/// Why a session ended without a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The other side did not answer the call.
    NoAnswer,
    /// The other side ended the call, with its words.
    Ended(Option<String>),
    /// The offer had no ICE credentials.
    BadOffer,
    /// Nothing got through.
    NoPath(Tried),
}

/// What was tried in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    /// Candidates of this side.
    pub local: usize,
    /// Candidates of the other side.
    pub remote: usize,
    /// Which paths this side was allowed.
    pub mode: Mode,
    /// The other side took part in the search for a direct path.
    pub direct: bool,
    /// This side had a relay, and the other side would use it.
    pub own_relay: bool,
    /// The other side had a relay, and this side was allowed to use it.
    pub their_relay: bool,
    /// The server's gateway was tried as well.
    pub gateway: bool,
    /// This side's NAT.
    pub mine: Option<NatType>,
    /// The other side's NAT.
    pub theirs: Option<NatType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The connector has not dialled.
    New,
    /// GatewayListener for the other side's terms.
    Calling,
    /// Looking for the first path.
    Trying,
    /// There is one, or there was.
    Connected,
    /// Over.
    Failed,
}

/// One call, seen from one side.
#[derive(Debug)]
pub(super) struct Session {
    setup: SessionConfig,
    stage: Stage,
    deadline: Option<Instant>,
    trial_end: Option<Instant>,
    /// Until then a direct path is worth the server's while.
    search_end: Option<Instant>,
    /// A token exists, so that trickling is possible.
    talking: bool,
    untold: Vec<String>,
    flush_at: Option<Instant>,
    told: usize,
    ungathered: Vec<CandidatePath>,
    done_told: bool,
    nat_told: bool,
    observed: Observations,
    remote_count: usize,
    remote_relay: bool,
    /// The other side has told at least one candidate for the relay lane.
    their_relay_lane: bool,
    /// Came before the other side's credentials.
    early: Vec<RemoteCandidate>,
    started: bool,
    dead: Vec<CandidatePath>,
    path: Option<(CandidatePath, Option<RelayReason>)>,
    outputs: VecDeque<Output>,
}

impl Session {
    /// Begins a session.
    #[must_use]
    pub(super) fn new(setup: SessionConfig) -> Self {
        let ungathered: Vec<CandidatePath> =
            CandidatePath::ALL.into_iter().filter(|lane| setup.mode.allows(*lane)).collect();
        let observed = Observations { mode: setup.mode, ..Observations::default() };
        Self {
            setup,
            stage: Stage::New,
            deadline: None,
            trial_end: None,
            search_end: None,
            talking: false,
            untold: Vec::new(),
            flush_at: None,
            told: 0,
            ungathered,
            done_told: false,
            nat_told: false,
            observed,
            remote_count: 0,
            remote_relay: false,
            their_relay_lane: false,
            early: Vec::new(),
            started: false,
            dead: Vec::new(),
            path: None,
            outputs: VecDeque::new(),
        }
    }

    /// Calls the other side, with the candidates found so far.
    pub(super) fn dial(&mut self, now: Instant) {
        if self.stage == Stage::New {
            self.stage = Stage::Calling;
            self.deadline = Some(now + ANSWER_TIME);
            let terms = self.terms();
            self.outputs.push_back(Output::Call(terms));
        }
    }

    /// Takes note that the server has given the call a token, so that more can be said.
    pub(super) fn handle_token(&mut self, now: Instant) {
        self.talking = true;
        self.flush_soon(now);
    }

    /// Takes what the other side says of itself: the connector's call or the listener's answer.
    pub(super) fn handle_offer(&mut self, now: Instant, ice: IceDescription) {
        if self.started || self.stage == Stage::Failed {
            return;
        }
        let (Some(ufrag), Some(pwd)) = (ice.ufrag, ice.pwd) else {
            return self.fail(Failure::BadOffer);
        };
        if self.setup.role == Role::Listener {
            let terms = self.terms();
            self.outputs.push_back(Output::Accept(terms));
            self.talking = true;
        }
        self.started = true;
        self.stage = Stage::Trying;
        self.deadline = Some(now + PATH_TIME);
        self.trial_end = Some(now + TRIAL_TIME);
        self.search_end = Some(now + PATH_TIME);
        self.outputs.push_back(Output::Start { ufrag, pwd });
        for candidate in std::mem::take(&mut self.early) {
            self.outputs.push_back(Output::Candidate(candidate));
        }
        self.handle_trickle(&ice.cands, false, ice.nat);
        self.flush_soon(now);
    }

    /// Takes more of the other side's candidates.
    pub(super) fn handle_trickle(&mut self, cands: &[String], done: bool, nat: Option<NatType>) {
        self.observed.theirs = nat.or(self.observed.theirs);
        for candidate in cands.iter().filter_map(|text| candidate::read(text)) {
            if self.remote_count >= MAX_REMOTE {
                break;
            }
            self.observed.their_direct |= candidate.lane == CandidatePath::Direct;
            self.their_relay_lane |= candidate.lane == CandidatePath::Relay;
            self.remote_relay |= candidate.origin == Origin::Relayed;
            if self.admits(&candidate) {
                self.remote_count += 1;
                if self.started {
                    self.outputs.push_back(Output::Candidate(candidate));
                } else {
                    self.early.push(candidate);
                }
            }
        }
        self.observed.their_done |= done;
        self.give_up_if_hopeless();
        self.explain();
    }

    /// Ends a search that cannot find anything: the other side has told all it has, and there is no lane that both sides take part in, or only
    /// the relay's, and neither side has a relay.
    fn give_up_if_hopeless(&mut self) {
        if self.stage == Stage::Trying && self.observed.their_done {
            let tried = self.tried();
            if !tried.direct && !tried.relay() {
                self.fail(Failure::NoPath(tried));
            }
        }
    }

    /// A relay is not asked to send to inner addresses, which it must refuse; and without a relay of its own this side may
    /// use the relay lane only towards the other side's relay, or the lane would be a second direct one.
    fn admits(&self, candidate: &RemoteCandidate) -> bool {
        let mode = self.setup.mode;
        let sensible = match (candidate.lane, self.setup.own_relay) {
            (CandidatePath::Direct, _) => candidate.origin != Origin::Relayed,
            (CandidatePath::Relay, true) => {
                candidate.origin == Origin::Relayed || candidate::is_global(candidate.address.ip())
            }
            (CandidatePath::Relay, false) => candidate.origin == Origin::Relayed,
        };
        mode.allows(candidate.lane) && sensible
    }

    /// Takes a candidate that one of our lanes has found, as its ICE agent writes it.
    pub(super) fn handle_local(&mut self, now: Instant, lane: CandidatePath, text: &str) {
        if self.told + self.untold.len() < MAX_LOCAL {
            self.untold.push(candidate::write(lane, text));
            self.flush_soon(now);
        }
    }

    /// Takes note that a lane has found all its candidates.
    pub(super) fn handle_gathered(&mut self, now: Instant, lane: CandidatePath) {
        self.ungathered.retain(|other| *other != lane);
        self.flush_soon(now);
    }

    /// Takes what was found out about this side's NAT.
    pub(super) fn handle_nat(&mut self, now: Instant, nat: NatType) {
        self.observed.mine = Some(nat);
        self.flush_soon(now);
        self.explain();
    }

    /// Takes note that data goes over this lane from now on, or over none.
    pub(super) fn handle_active(&mut self, lane: Option<CandidatePath>) {
        let Some(lane) = lane else { return };
        self.observed.lost_direct |=
            self.observed.active == Some(CandidatePath::Direct) && lane == CandidatePath::Relay;
        self.observed.active = Some(lane);
        if self.stage != Stage::Failed {
            self.stage = Stage::Connected;
            self.deadline = None;
        }
        self.explain();
    }

    /// Takes note that a lane has given up.
    pub(super) fn handle_dead(&mut self, lane: CandidatePath) {
        self.dead.push(lane);
        self.observed.trial_over |= lane == CandidatePath::Direct;
        let hopeless = CandidatePath::ALL
            .into_iter()
            .filter(|lane| self.setup.mode.allows(*lane))
            .all(|lane| self.dead.contains(&lane));
        if hopeless && self.stage == Stage::Trying {
            self.fail(Failure::NoPath(self.tried()));
        }
        self.explain();
    }

    /// Takes note that the other side has ended the call. One that found no path speaks for both.
    pub(super) fn handle_end(&mut self, reason: Option<String>) {
        match self.stage {
            Stage::Connected => {}
            Stage::Trying if reason.as_deref() == Some(NO_PATH) => self.fail(Failure::NoPath(self.tried())),
            _ => self.fail(Failure::Ended(reason)),
        }
    }

    /// Answers the server's question whether this side is still at it (t = 53): a relay path is no reason to stop.
    #[must_use]
    pub(super) fn is_punching(&self, now: Instant) -> bool {
        let settled =
            self.observed.active == Some(CandidatePath::Direct) || self.setup.mode == Mode::RelayOnly;
        let ended = self.search_end.is_some_and(|end| end <= now);
        match self.stage {
            Stage::Failed => false,
            Stage::Connected => !settled && !ended,
            _ => true,
        }
    }

    /// Lets time pass.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.flush();
        }
        if self.trial_end.is_some_and(|at| at <= now) {
            self.trial_end = None;
            self.observed.trial_over = true;
            self.explain();
        }
        if self.deadline.is_some_and(|at| at <= now) {
            let failure = match self.stage {
                Stage::Calling => Failure::NoAnswer,
                _ => Failure::NoPath(self.tried()),
            };
            self.fail(failure);
        }
    }

    /// Returns when [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.deadline, self.trial_end, self.flush_at].into_iter().flatten().min()
    }

    /// Takes the next thing to do.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn terms(&mut self) -> IceDescription {
        let cands = self.take_untold();
        self.nat_told |= self.observed.mine.is_some();
        IceDescription {
            ufrag: Some(self.setup.ufrag.clone()),
            pwd: Some(self.setup.pwd.clone()),
            cands,
            nat: self.observed.mine,
            ..IceDescription::default()
        }
    }

    fn take_untold(&mut self) -> Vec<String> {
        let rest = self.untold.split_off(self.untold.len().min(CANDIDATES_A_MESSAGE));
        let now_told = std::mem::replace(&mut self.untold, rest);
        self.told += now_told.len();
        now_told
    }

    fn flush_soon(&mut self, now: Instant) {
        let due = now + GATHER_TIME;
        self.flush_at = Some(self.flush_at.map_or(due, |at| at.min(due))).filter(|_| self.talking);
    }

    fn flush(&mut self) {
        loop {
            let cands = self.take_untold();
            let done = self.ungathered.is_empty() && self.untold.is_empty() && !self.done_told;
            let nat = self.observed.mine.filter(|_| !self.nat_told);
            if cands.is_empty() && !done && nat.is_none() {
                return;
            }
            self.done_told |= done;
            self.nat_told |= nat.is_some();
            self.outputs.push_back(Output::Trickle { cands, done, nat });
        }
    }

    fn explain(&mut self) {
        let Some(lane) = self.observed.active.filter(|_| self.stage == Stage::Connected) else { return };
        let path = (lane, relay_reason::of(&self.observed));
        if self.path != Some(path) {
            self.path = Some(path);
            self.outputs.push_back(Output::Path(path.0, path.1));
        }
    }

    fn tried(&self) -> Tried {
        let allows_relay = self.setup.mode.allows(CandidatePath::Relay);
        Tried {
            local: self.told,
            remote: self.remote_count,
            mode: self.setup.mode,
            direct: self.setup.mode.allows(CandidatePath::Direct) && self.observed.their_direct,
            own_relay: self.setup.own_relay && allows_relay && self.their_relay_lane,
            their_relay: self.remote_relay && allows_relay,
            gateway: false,
            mine: self.observed.mine,
            theirs: self.observed.theirs,
        }
    }

    fn fail(&mut self, failure: Failure) {
        if self.stage != Stage::Failed {
            self.stage = Stage::Failed;
            (self.deadline, self.trial_end, self.flush_at) = (None, None, None);
            self.outputs.push_back(Output::Failed(failure));
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
