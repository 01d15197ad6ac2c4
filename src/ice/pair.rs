//! A candidate pair: its checks, round trip time and signs of life.

use super::candidate::{Candidate, CandidateKind};
use super::machine::IceRole;
use crate::stun::TransactionId;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Waits after the checks of a round. The round trip is unknown, and a check costs 100 bytes.
const ROUND: [Duration; 7] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(800),
    Duration::from_millis(1300),
    Duration::from_millis(2000),
];
/// Checks of the first round that do not wait for those of many other pairs: only the second or third one passes a filter that the peer opens.
const PROMPT_CHECKS: usize = 3;
/// Checks of a round after one without a response.
const LATER_ROUND: usize = 3;
/// The longest wait between rounds: of a pair that never answered, and of one that did, which may come back at any time.
const MAX_PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE_AFTER_SUCCESS: Duration = Duration::from_secs(8);
/// Between the checks of a round over TCP, which retransmits by itself, and how many there are.
const TCP_WAIT: Duration = Duration::from_secs(1);
const TCP_ROUND: usize = 3;
/// How long a TCP connection may take to open, and how long it may be silent while an answer is due.
const TCP_PATIENCE: Duration = Duration::from_secs(4);
/// Checks without a response that are remembered: a late response still counts.
const MAX_OUTSTANDING: usize = 16;
/// Consent expires (RFC 7675 section 5.1).
const CONSENT: Duration = Duration::from_secs(30);
/// Limits of the time in which a peer must answer.
const SILENCE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(800));

/// Checks that are sent before their answer is overdue.
const CHECKS_OF_SILENCE: u32 = 3;

/// Names a pair: protocol, local base and remote address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PairKey {
    pub(super) is_tcp: bool,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// As a few numbers: what is derived takes three times as long, and a pair is looked up for each packet.
impl Hash for PairKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut port = u64::from(self.is_tcp);
        for address in [self.local, self.remote] {
            port = port << 16 | u64::from(address.port());
            match address.ip() {
                IpAddr::V4(ip) => state.write_u32(ip.to_bits()),
                IpAddr::V6(ip) => state.write_u128(ip.to_bits()),
            }
        }
        state.write_u64(port);
    }
}

/// The state of a pair (RFC 8445 section 6.1.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairState {
    /// Another pair with the same foundations is checked first.
    Frozen,
    /// A round of checks is running; the number that were sent. Waiting or In-Progress in the RFC.
    Checking(usize),
    /// A check was answered, and consent is valid.
    Succeeded,
    /// A round had no response; the next one is due later.
    Failed,
}

/// A check without a response.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    id: TransactionId,
    sent: Instant,
    nominates: bool,
}

/// What a response was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// The check had USE-CANDIDATE.
    pub(super) nominates: bool,
    /// It is the first success since the pair was made or failed.
    pub(super) is_first: bool,
}

/// A candidate pair.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: PairKey,
    pub(super) local: Candidate,
    pub(super) remote: Candidate,
    pub(super) state: PairState,
    pub(super) next_check: Option<Instant>,
    /// The time between checks that are answered.
    interval: Duration,
    /// Rounds without a response, one after the other.
    failures: u32,
    outstanding: VecDeque<Outstanding>,
    pub(super) round_trip: Option<Duration>,
    /// The shortest one since it succeeded: what queues on a loaded path add does not count against it.
    pub(super) best_round_trip: Option<Duration>,
    last_response: Option<Instant>,
    /// The first data or check that was sent after the peer's last sign of life.
    waiting_since: Option<Instant>,
    /// It was silent for too long: it carries data only if no other pair can.
    pub(super) is_suspect: bool,
    /// What made the selected pair silent may have ended this one too: it has not answered since.
    pub(super) is_doubtful: bool,
    /// The next check has USE-CANDIDATE.
    pub(super) is_to_be_nominated: bool,
    /// The peer has checked it, and no check has been sent since.
    pub(super) was_triggered: bool,
    /// The peer has checked it.
    pub(super) is_checked_by_peer: bool,
    /// It may carry data before it has answered.
    pub(super) is_provisional: bool,
    /// The caller knows that.
    pub(super) is_announced: bool,
}

impl Pair {
    pub(super) fn new(local: &Candidate, remote: &Candidate) -> Self {
        Self {
            key: PairKey { is_tcp: local.transport.is_tcp(), local: local.base, remote: remote.address },
            local: local.clone(),
            remote: remote.clone(),
            state: PairState::Frozen,
            next_check: None,
            interval: ROUND[0],
            failures: 0,
            outstanding: VecDeque::new(),
            round_trip: None,
            best_round_trip: None,
            last_response: None,
            waiting_since: None,
            is_suspect: false,
            is_doubtful: false,
            is_to_be_nominated: false,
            was_triggered: false,
            is_checked_by_peer: false,
            is_provisional: false,
            is_announced: false,
        }
    }

    /// RFC 8445 section 6.1.2.3.
    pub(super) fn priority(&self, role: IceRole) -> u64 {
        let (controlling, controlled) = match role {
            IceRole::Controlling => (self.local.priority, self.remote.priority),
            IceRole::Controlled => (self.remote.priority, self.local.priority),
        };
        let (least, most) = (controlling.min(controlled), controlling.max(controlled));
        (u64::from(least) << 32) + 2 * u64::from(most) + u64::from(controlling > controlled)
    }

    /// Returns its rank by kind, 0 is the best: each relay counts three, TCP to the peer or to a relay one.
    pub(super) fn tier(&self) -> usize {
        let relayed = |candidate: &Candidate| {
            3 * usize::from(candidate.kind == CandidateKind::Relayed)
                + usize::from(candidate.is_relayed_by_stream())
        };
        relayed(&self.local) + relayed(&self.remote) + usize::from(self.key.is_tcp)
    }

    pub(super) fn foundations(&self) -> (&str, &str) {
        (&self.local.foundation, &self.remote.foundation)
    }

    /// Returns what it shares with the other pairs of its remote candidate.
    pub(super) fn remote_key(&self) -> (SocketAddr, bool) {
        (self.key.remote, self.key.is_tcp)
    }

    /// Returns whether data may be sent on it.
    pub(super) fn is_usable(&self) -> bool {
        self.state == PairState::Succeeded
    }

    /// Returns whether it has had few checks, or none in this round.
    pub(super) fn is_new(&self) -> bool {
        match self.state {
            PairState::Frozen | PairState::Checking(0) => true,
            PairState::Checking(sent) => sent < PROMPT_CHECKS && self.failures == 0 && !self.key.is_tcp,
            PairState::Succeeded | PairState::Failed => false,
        }
    }

    /// Begins a round of checks at once, unless one has just begun.
    pub(super) fn check_now(&mut self, now: Instant) {
        match self.state {
            PairState::Checking(sent) if sent <= 1 && self.next_check.is_some() => {}
            PairState::Succeeded => {}
            _ => self.state = PairState::Checking(0),
        }
        self.next_check = Some(self.next_check.map_or(now, |at| at.min(now)));
    }

    /// Handles that a check was sent; `interval` is the time until the next one of a pair that has succeeded.
    pub(super) fn on_check_sent(
        &mut self,
        now: Instant,
        id: TransactionId,
        nominates: bool,
        interval: Duration,
    ) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Outstanding { id, sent: now, nominates });
        self.on_sent(now);
        self.interval = interval;
        let wait = match &mut self.state {
            PairState::Checking(sent) => {
                let wait = if self.key.is_tcp { TCP_WAIT } else { ROUND[(*sent).min(ROUND.len() - 1)] };
                *sent += 1;
                wait
            }
            // Until the response: like the first checks of a round.
            PairState::Succeeded if self.is_suspect => self.silence_limit().max(ROUND[1]),
            // One lost check is no silence.
            PairState::Succeeded => self.silence_limit() / CHECKS_OF_SILENCE,
            _ => interval,
        };
        self.next_check = Some(now + wait);
    }

    /// Begins the next round if it failed before, or ends one whose checks were all sent and not answered. Returns whether a check is to be
    /// sent.
    pub(super) fn begin_check(&mut self, now: Instant) -> bool {
        match self.state {
            PairState::Frozen | PairState::Failed => self.state = PairState::Checking(0),
            PairState::Checking(sent) if sent >= self.round_len() => {
                let most = self.last_response.map_or(MAX_PAUSE, |_| MAX_PAUSE_AFTER_SUCCESS);
                self.state = PairState::Failed;
                self.next_check = Some(now + Duration::from_secs(1 << self.failures.min(6)).min(most));
                self.failures += 1;
                self.is_to_be_nominated = false;
            }
            _ => {}
        }
        self.state != PairState::Failed
    }

    fn round_len(&self) -> usize {
        if self.failures == 0 { ROUND.len() } else { LATER_ROUND }
    }

    /// Handles that its TCP connection is being opened.
    pub(super) fn on_connecting(&mut self, now: Instant) {
        if let PairState::Checking(sent) = &mut self.state {
            *sent += 1;
        }
        self.next_check = Some(now + TCP_PATIENCE);
    }

    /// Handles that its TCP connection is open: it is checked.
    pub(super) fn on_connected(&mut self, now: Instant) {
        if !self.is_usable() {
            self.state = PairState::Checking(self.round_len() - TCP_ROUND);
            self.next_check = Some(now);
        }
    }

    /// Handles that its TCP connection is closed: it is opened again soon, a few times.
    pub(super) fn on_closed(&mut self, now: Instant) {
        self.waiting_since = None;
        self.is_suspect = false;
        self.outstanding.clear();
        match self.state {
            PairState::Succeeded => {
                self.state = PairState::Checking(0);
                self.next_check = Some(now);
            }
            PairState::Checking(sent) => {
                self.next_check = Some(now + ROUND[sent.saturating_sub(1).min(ROUND.len() - 1)]);
            }
            PairState::Frozen | PairState::Failed => {}
        }
    }

    /// Handles a response to one of its checks; `None` if it is to none, or to one that was answered.
    pub(super) fn on_response(&mut self, now: Instant, id: TransactionId) -> Option<Answered> {
        let index = self.outstanding.iter().position(|check| check.id == id)?;
        let check = self.outstanding.remove(index)?;
        let sample = now.saturating_duration_since(check.sent);
        // A late response after silence tells how long that was. Otherwise RFC 6298's smoothing, with the weight of few samples.
        let is_late = self.is_suspect && index < self.outstanding.len();
        self.round_trip = match self.round_trip {
            Some(known) if is_late => Some(known),
            Some(known) => Some((known * 3 + sample) / 4),
            None => Some(sample),
        };
        let is_first = self.state != PairState::Succeeded;
        let best = self.best_round_trip.filter(|_| !is_first);
        self.best_round_trip = Some(best.map_or(sample, |best| best.min(sample)));
        self.state = PairState::Succeeded;
        self.last_response = Some(now);
        self.failures = 0;
        if !self.is_to_be_nominated {
            self.next_check = Some(now + self.interval);
        }
        self.on_alive();
        Some(Answered { nominates: check.nominates, is_first })
    }

    /// Handles an error response: the check is answered, the pair has not succeeded.
    pub(super) fn on_error(&mut self, id: TransactionId) -> bool {
        let before = self.outstanding.len();
        self.outstanding.retain(|check| check.id != id);
        self.outstanding.len() < before
    }

    pub(super) fn has_outstanding(&self, id: TransactionId) -> bool {
        self.outstanding.iter().any(|check| check.id == id)
    }

    /// Handles a sign of life.
    pub(super) fn on_alive(&mut self) {
        self.waiting_since = None;
        self.is_suspect = false;
        self.is_doubtful = false;
    }

    /// Handles that something was sent that the peer answers.
    pub(super) fn on_sent(&mut self, now: Instant) {
        if self.waiting_since.is_none() && self.is_usable() {
            self.waiting_since = Some(now);
        }
    }

    /// The time in which a peer that is there answers.
    pub(super) fn silence_limit(&self) -> Duration {
        self.round_trip.map_or(SILENCE.1, |round_trip| (round_trip * 4).clamp(SILENCE.0, SILENCE.1))
    }

    /// Returns when an answer is overdue.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        let waits = self.is_usable() && !self.is_suspect;
        self.waiting_since.filter(|_| waits).map(|since| since + self.silence_limit())
    }

    /// Makes it suspect if its answer is overdue, and checks it at once.
    pub(super) fn detect_silence(&mut self, now: Instant) -> bool {
        let is_overdue = self.silence_deadline().is_some_and(|at| at <= now);
        if is_overdue {
            self.is_suspect = true;
            self.next_check = Some(now);
        }
        is_overdue
    }

    /// Ends it if the consent has expired (RFC 7675 section 5.1).
    pub(super) fn expire_consent(&mut self, now: Instant) -> bool {
        let is_expired = self.is_usable() && self.consent_deadline().is_some_and(|at| at <= now);
        if is_expired {
            self.is_suspect = false;
            self.waiting_since = None;
            self.state = PairState::Checking(0);
            self.next_check = Some(now);
        }
        is_expired
    }

    /// Returns when consent ends. Over TCP a silent connection is given up sooner: a new one may work.
    pub(super) fn consent_deadline(&self) -> Option<Instant> {
        let consent = self.last_response? + CONSENT;
        let silence = self.waiting_since.filter(|_| self.key.is_tcp).map(|since| since + TCP_PATIENCE);
        self.is_usable().then(|| silence.map_or(consent, |silence| silence.min(consent)))
    }

    /// Returns when something must be done.
    pub(super) fn next_event(&self) -> Option<Instant> {
        [self.silence_deadline(), self.consent_deadline()].into_iter().flatten().min()
    }
}
