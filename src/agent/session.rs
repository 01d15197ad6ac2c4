//! The negotiation of one call: offer, answer, trickled candidates, timeouts.
//!
//! Both roles use the same state machine. The connector starts with [`Session::dial`], the listener with the connector's offer
//! ([`Session::handle_offer`]). Candidates are trickled (RFC 8838, S0-A18), and the checks start as soon as both sides' ICE credentials are known.

use super::candidate::{self, CandidatePath};
use super::error::PathAttempts;
use super::hard_nat::SprayStatus;
use super::keys::AgentRole;
use super::mdns;
use super::path::PathPolicy;
use super::relay_reason::{self, Observations, RelayReason};
use crate::ice::{Candidate, CandidateError, CandidateKind};
use crate::signaling::wire::{IceDescription, NatType};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Time limit for the other side's answer; the server gives up after 7.5 s (S0-A17).
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// Time limit of the search for a path.
pub(super) const PATH_TIMEOUT: Duration = Duration::from_secs(15);
/// ICE options that a description can have.
const TRICKLE: &str = "trickle";
/// The sender uses no relay.
const DIRECT_ONLY: &str = "direct-only";
/// The sender reads candidates from the QUIC connection too.
const CONTROL_STREAMS: &str = "control-streams";
/// The reason given to the other side (t = 55) after [`PATH_TIMEOUT`].
pub(super) const NO_PATH: &str = "no path";
/// Time until a relay path is explained by what is known of the NATs; the direct checks continue.
pub(super) const DIRECT_TRIAL_TIME: Duration = Duration::from_secs(3);
/// Candidates found within this time share one message.
const GATHER_TIME: Duration = Duration::from_millis(10);
/// Maximum number of candidates in one message.
const MAX_PER_MESSAGE: usize = 32;
/// Maximum number of remote candidates that are used.
pub(super) const MAX_REMOTE: usize = 48;
/// Stands for the address of a candidate that has a name.
const LINK: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 0, 1));
/// Maximum number of local candidates that are sent.
const MAX_LOCAL: usize = 48;

/// The parameters of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionConfig {
    /// The role of this side.
    pub(super) role: AgentRole,
    /// The paths that may be used.
    pub(super) policy: PathPolicy,
    /// The local ICE user name fragment.
    pub(super) ufrag: String,
    /// The local ICE password.
    pub(super) pwd: String,
    /// This side has relay credentials.
    pub(super) own_relay: bool,
}

/// What the caller must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionOutput {
    /// Call the other side (t = 4) with this description.
    Call(IceDescription),
    /// Accept the call (t = -51) with this description.
    Accept(IceDescription),
    /// Send more candidates (t = 54).
    Trickle {
        /// Candidates found since the last message.
        cands: Vec<String>,
        /// End of candidates.
        done: bool,
        /// The local NAT.
        nat: Option<NatType>,
    },
    /// Start the checks, with the remote ICE credentials.
    Start {
        /// User name fragment.
        ufrag: String,
        /// Password.
        pwd: String,
    },
    /// Add this remote candidate.
    Candidate(String),
    /// The other side has no more candidates.
    EndOfCandidates,
    /// The path in use or the reason for it has changed.
    Path(CandidatePath, Option<RelayReason>),
    /// The session has failed.
    Failed(SessionFailure),
}

/// Why a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionFailure {
    /// The other side did not answer the call.
    NoAnswer,
    /// The other side ended the call, for the reason that it states.
    Ended(Option<String>),
    /// The offer had no ICE credentials.
    BadOffer,
    /// No candidate pair works.
    NoPath(PathAttempts),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionState {
    /// Nothing was sent or received.
    New,
    /// The connector waits for the answer.
    Calling,
    /// Checks are running; no path has been in use.
    Checking,
    /// A path is or was in use.
    Connected,
    Failed,
}

/// The state machine of one side of a call.
#[derive(Debug)]
pub(super) struct Session {
    config: SessionConfig,
    state: SessionState,
    deadline: Option<Instant>,
    direct_trial_end: Option<Instant>,
    /// Until then the server keeps the call's token alive for a direct path.
    search_end: Option<Instant>,
    /// The call has a token, so that candidates can be trickled.
    can_trickle: bool,
    unsent: Vec<String>,
    flush_at: Option<Instant>,
    sent: usize,
    /// The ICE engine has no more candidates.
    is_gathered: bool,
    end_of_candidates_sent: bool,
    nat_sent: bool,
    observed: Observations,
    /// The candidates of the other side that are used.
    known_remote: Vec<String>,
    remote_relay: bool,
    /// The other side uses no relay.
    remote_direct_only: bool,
    /// The other side reads candidates from the QUIC connection too.
    remote_control_streams: bool,
    /// Candidates that arrived before the remote credentials.
    early: Vec<String>,
    started: bool,
    /// A path answers.
    has_path: bool,
    path: Option<(CandidatePath, Option<RelayReason>)>,
    outputs: VecDeque<SessionOutput>,
}

impl Session {
    /// Returns a new session.
    pub(super) fn new(config: SessionConfig) -> Self {
        let observed = Observations { policy: config.policy, ..Observations::default() };
        Self {
            config,
            state: SessionState::New,
            deadline: None,
            direct_trial_end: None,
            search_end: None,
            can_trickle: false,
            unsent: Vec::new(),
            flush_at: None,
            sent: 0,
            is_gathered: false,
            end_of_candidates_sent: false,
            nat_sent: false,
            observed,
            known_remote: Vec::new(),
            remote_relay: false,
            remote_direct_only: false,
            remote_control_streams: false,
            early: Vec::new(),
            started: false,
            has_path: false,
            path: None,
            outputs: VecDeque::new(),
        }
    }

    /// Returns the session of a call that resumes this one, whose path may still be in use.
    pub(super) fn resumed(&self, config: SessionConfig) -> Self {
        let mut session = Self::new(config);
        let Observations { own_nat, lost_direct, active, .. } = self.observed;
        session.observed = Observations { own_nat, lost_direct, active, ..session.observed };
        (session.has_path, session.path) = (self.has_path, self.path);
        session
    }

    /// Calls the other side, with the candidates found so far.
    pub(super) fn dial(&mut self, now: Instant) {
        if self.state == SessionState::New {
            self.state = SessionState::Calling;
            self.deadline = Some(now + ANSWER_TIMEOUT);
            let description = self.local_description();
            self.outputs.push_back(SessionOutput::Call(description));
        }
    }

    /// Handles the token of the call, from which on candidates can be trickled.
    pub(super) fn handle_token(&mut self, now: Instant) {
        self.can_trickle = true;
        self.schedule_flush(now);
    }

    /// Handles the offer, on the listener, or the answer, on the connector.
    pub(super) fn handle_offer(&mut self, now: Instant, ice: IceDescription) {
        if self.started || self.state == SessionState::Failed {
            return;
        }
        let (Some(ufrag), Some(pwd)) = (ice.ufrag, ice.pwd) else {
            return self.fail(SessionFailure::BadOffer);
        };
        if self.config.role == AgentRole::Listener {
            let description = self.local_description();
            self.outputs.push_back(SessionOutput::Accept(description));
            self.can_trickle = true;
        }
        self.started = true;
        // A session that is resumed may have its path still.
        self.state = if self.has_path { SessionState::Connected } else { SessionState::Checking };
        self.deadline = (!self.has_path).then_some(now + PATH_TIMEOUT);
        self.direct_trial_end = Some(now + DIRECT_TRIAL_TIME);
        self.search_end = Some(now + PATH_TIMEOUT);
        self.remote_control_streams = ice.opts.iter().any(|option| option == CONTROL_STREAMS);
        self.remote_direct_only = ice.opts.iter().any(|option| option == DIRECT_ONLY);
        self.outputs.push_back(SessionOutput::Start { ufrag, pwd });
        for candidate in std::mem::take(&mut self.early) {
            self.outputs.push_back(SessionOutput::Candidate(candidate));
        }
        self.handle_trickle(&ice.cands, false, ice.nat);
        self.schedule_flush(now);
    }

    /// Handles trickled candidates of the other side.
    pub(super) fn handle_trickle(&mut self, cands: &[String], done: bool, nat: Option<NatType>) {
        self.observed.their_nat = nat.or(self.observed.their_nat);
        for text in cands {
            // The same candidate may come over the signalling and over the connection.
            let Some(candidate) = parse(text).ok().filter(|_| !self.known_remote.contains(text)) else {
                continue;
            };
            if self.known_remote.len() >= MAX_REMOTE {
                break;
            }
            let is_relayed = candidate.kind == CandidateKind::Relayed;
            self.observed.their_direct |= !is_relayed;
            self.remote_relay |= is_relayed;
            if self.is_useful(&candidate) {
                self.known_remote.push(text.clone());
                if self.started {
                    self.outputs.push_back(SessionOutput::Candidate(text.clone()));
                } else {
                    self.early.push(text.clone());
                }
            }
        }
        if done && !self.observed.their_done {
            self.outputs.push_back(SessionOutput::EndOfCandidates);
        }
        self.observed.their_done |= done;
        self.fail_if_hopeless();
        self.update_path();
    }

    /// Fails at once if no path is possible: the other side has sent all its candidates, and both sides share no path, or only
    /// the relay path and neither has a relay.
    fn fail_if_hopeless(&mut self) {
        if self.state == SessionState::Checking && self.observed.their_done {
            let attempts = self.attempts();
            if !attempts.direct && !attempts.relay() {
                self.fail(SessionFailure::NoPath(attempts));
            }
        }
    }

    /// Returns whether a remote candidate is worth checking. A relay refuses to send to private addresses. Without a relay of its own, a side
    /// that may use only relays reaches the one of the other side.
    fn is_useful(&self, candidate: &Candidate) -> bool {
        let is_relayed = candidate.kind == CandidateKind::Relayed;
        match self.config.policy {
            PathPolicy::All => true,
            PathPolicy::DirectOnly => !is_relayed,
            PathPolicy::RelayOnly => {
                is_relayed || (self.config.own_relay && candidate::is_global(candidate.address.ip()))
            }
        }
    }

    /// Returns whether the other side reads candidates of this call from the QUIC connection.
    pub(super) fn has_control_streams(&self) -> bool {
        self.started && self.remote_control_streams
    }

    /// Handles a local candidate, as RFC 8839 formats it.
    pub(super) fn handle_local(&mut self, now: Instant, text: &str) {
        if self.sent + self.unsent.len() < MAX_LOCAL {
            self.unsent.push(text.to_owned());
            self.schedule_flush(now);
        }
    }

    /// Handles the end of gathering.
    pub(super) fn handle_gathered(&mut self, now: Instant) {
        self.is_gathered = true;
        self.schedule_flush(now);
    }

    /// Handles the type of the local NAT.
    pub(super) fn handle_nat(&mut self, now: Instant, nat: NatType) {
        self.observed.own_nat = Some(nat);
        self.schedule_flush(now);
        self.update_path();
    }

    /// Handles what became of the prediction of ports.
    pub(super) fn handle_spray(&mut self, status: SprayStatus) {
        self.observed.spray = Some(status);
        self.update_path();
    }

    /// Handles a change of the path that carries the data.
    pub(super) fn handle_active(&mut self, path: Option<CandidatePath>) {
        let Some(path) = path else { return };
        self.observed.lost_direct |=
            self.observed.active == Some(CandidatePath::Direct) && path == CandidatePath::Relay;
        self.observed.active = Some(path);
        self.has_path = true;
        match self.state {
            // The path of the session that this one resumes has changed meanwhile.
            SessionState::New | SessionState::Calling => {
                if self.path.is_some_and(|(known, _)| known != path) {
                    self.path = Some((path, relay_reason::relay_reason(&self.observed)));
                }
            }
            SessionState::Checking | SessionState::Connected => {
                self.state = SessionState::Connected;
                self.deadline = None;
            }
            SessionState::Failed => {}
        }
        self.update_path();
    }

    /// Handles that no path answers.
    pub(super) fn handle_lost(&mut self) {
        self.has_path = false;
    }

    /// Returns why the path in use is not direct.
    pub(super) fn reason(&self) -> Option<RelayReason> {
        self.path.and_then(|(_, reason)| reason)
    }

    /// Handles the failure of the ICE engine.
    pub(super) fn handle_failed(&mut self) {
        self.observed.direct_trial_over = true;
        if matches!(self.state, SessionState::Checking | SessionState::Calling) {
            self.fail(SessionFailure::NoPath(self.attempts()));
        }
        self.update_path();
    }

    /// Handles the end of the call by the other side. If it found no path, this side has none either.
    pub(super) fn handle_end(&mut self, reason: Option<String>) {
        match self.state {
            SessionState::Connected => {}
            SessionState::Checking if reason.as_deref() == Some(NO_PATH) => {
                self.fail(SessionFailure::NoPath(self.attempts()))
            }
            _ => self.fail(SessionFailure::Ended(reason)),
        }
    }

    /// Returns whether this side still searches for a direct path, for the server's status request (t = 53).
    pub(super) fn is_punching(&self, now: Instant) -> bool {
        let settled = self.observed.active == Some(CandidatePath::Direct)
            || self.config.policy == PathPolicy::RelayOnly;
        let ended = self.search_end.is_some_and(|end| end <= now);
        match self.state {
            SessionState::Failed => false,
            SessionState::Connected => !settled && !ended,
            _ => true,
        }
    }

    /// Handles the timers that are due at `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.flush();
        }
        if self.direct_trial_end.is_some_and(|at| at <= now) {
            self.direct_trial_end = None;
            self.observed.direct_trial_over = true;
            self.update_path();
        }
        if self.deadline.is_some_and(|at| at <= now) {
            let failure = match self.state {
                SessionState::Calling => SessionFailure::NoAnswer,
                _ => SessionFailure::NoPath(self.attempts()),
            };
            self.fail(failure);
        }
    }

    /// Returns when [`Self::handle_timeout`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.deadline, self.direct_trial_end, self.flush_at].into_iter().flatten().min()
    }

    /// Returns the next output.
    pub(super) fn poll_output(&mut self) -> Option<SessionOutput> {
        self.outputs.pop_front()
    }

    fn local_description(&mut self) -> IceDescription {
        let cands = self.take_unsent();
        self.nat_sent |= self.observed.own_nat.is_some();
        IceDescription {
            ufrag: Some(self.config.ufrag.clone()),
            pwd: Some(self.config.pwd.clone()),
            cands,
            nat: self.observed.own_nat,
            opts: self.options(),
            ..IceDescription::default()
        }
    }

    /// ICE options ([RFC 8839 section 5.6](https://www.rfc-editor.org/rfc/rfc8839#section-5.6)) and what the other side must know besides.
    fn options(&self) -> Vec<String> {
        let direct_only = (self.config.policy == PathPolicy::DirectOnly).then_some(DIRECT_ONLY);
        [TRICKLE, CONTROL_STREAMS].into_iter().chain(direct_only).map(str::to_owned).collect()
    }

    fn take_unsent(&mut self) -> Vec<String> {
        let rest = self.unsent.split_off(self.unsent.len().min(MAX_PER_MESSAGE));
        let taken = std::mem::replace(&mut self.unsent, rest);
        self.sent += taken.len();
        taken
    }

    fn schedule_flush(&mut self, now: Instant) {
        let due = now + GATHER_TIME;
        self.flush_at = Some(self.flush_at.map_or(due, |at| at.min(due))).filter(|_| self.can_trickle);
    }

    fn flush(&mut self) {
        loop {
            let cands = self.take_unsent();
            let done = self.is_gathered && self.unsent.is_empty() && !self.end_of_candidates_sent;
            let nat = self.observed.own_nat.filter(|_| !self.nat_sent);
            if cands.is_empty() && !done && nat.is_none() {
                return;
            }
            self.end_of_candidates_sent |= done;
            self.nat_sent |= nat.is_some();
            self.outputs.push_back(SessionOutput::Trickle { cands, done, nat });
        }
    }

    fn update_path(&mut self) {
        let Some(path) = self.observed.active.filter(|_| self.state == SessionState::Connected) else {
            return;
        };
        let path = (path, relay_reason::relay_reason(&self.observed));
        if self.path != Some(path) {
            self.path = Some(path);
            self.outputs.push_back(SessionOutput::Path(path.0, path.1));
        }
    }

    fn attempts(&self) -> PathAttempts {
        let allows_relay = self.config.policy.allows(CandidatePath::Relay);
        PathAttempts {
            local: self.sent,
            remote: self.known_remote.len(),
            policy: self.config.policy,
            direct: self.config.policy.allows(CandidatePath::Direct) && self.observed.their_direct,
            own_relay: self.config.own_relay && allows_relay && !self.remote_direct_only,
            their_relay: self.remote_relay && allows_relay,
            gateway: false,
            own_nat: self.observed.own_nat,
            their_nat: self.observed.their_nat,
        }
    }

    fn fail(&mut self, failure: SessionFailure) {
        if self.state != SessionState::Failed {
            self.state = SessionState::Failed;
            (self.deadline, self.direct_trial_end, self.flush_at) = (None, None, None);
            self.outputs.push_back(SessionOutput::Failed(failure));
        }
    }
}

/// Parses a remote candidate. One with a name in place of its address is of use on its link only.
fn parse(text: &str) -> Result<Candidate, CandidateError> {
    match mdns::name_of(text) {
        Some(_) => mdns::with_address(text, LINK).parse(),
        None => text.parse(),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
