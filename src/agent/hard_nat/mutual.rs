//! Prediction by two hard sides whose NATs both map one port after the other.
//!
//! A packet passes both NATs only if it comes from the mapping that the other side has sent to, and goes to the mapping from which the other
//! side has sent. So neither side can wait: both open a mapping with each packet, and both aim at the ports that the other one's NAT is about
//! to assign. Where both predictions hold, packet `n` of one side and packet `n` of the other meet. Each mapping that is taken by somebody
//! else shifts what follows, by `a` in total at one NAT and by `b` at the other. The *leading* side aims packet `n` at port `n`. The following
//! side aims packet `m` at port `m + y`, where `y` counts up from a little below 0 ([`CYCLES`]): packets meet where `y = a + b`. Both shifts
//! only grow, and `y` grows by one at each step, so that it meets every sum up to the end of the cycle.
//!
//! ```text
//! leads                                     follows
//!  | Request (of the higher id) -------------> |
//!  |                                           | eight sockets ask the server for their mappings
//!  | <-------------------------------- Window  |   repeated until the other one arrives
//!  | the same here                             |
//!  | Window ---------------------------------> |   repeated until Started
//!  | <------------------------------- Started  |
//!  | <=== checks of ICE from fresh sockets ==> |   three times each; the first ones with a low TTL
//!  | Again ----------------------------------> |   after a round without success
//! ```

use super::limits::Pacer;
use super::prediction::{MAX_STEP, PredictedPorts, Prediction, SAMPLES};
use super::sampling::Sampling;
use super::wire::{MessageBody, PortWindow, SprayRefusal};
use rand::Rng;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The packets of the leading side in a pass, each from a socket of its own: those of the other side, and its shift.
const LEADING_PACKETS: u16 = 96;
/// The lengths of the cycles of the following side.
const CYCLES: [u16; 2] = [24, 40];
/// A cycle begins this much below 0: a packet that was lost before its NAT has taken no port.
const BEHIND: i32 = 5;
/// The TTL of each pass. The first packets end before the far NAT if they can, as in `opening.rs`; later ones replace those that were lost.
const PASSES: [Option<u8>; 3] = [Some(7), None, None];
/// Between the copies of a message that has no answer.
const REPEAT: Duration = Duration::from_millis(150);
/// How long a round waits for a late packet.
const REST: Duration = Duration::from_millis(500);
/// How long a packet that has arrived may take to become a path.
const HIT_TIME: Duration = Duration::from_secs(2);
/// Rounds of an attempt.
const MAX_ROUNDS: u8 = 3;
/// Most packets of one side in an attempt.
pub(super) const MAX_SENT: usize = LEADING_PACKETS as usize * PASSES.len() * MAX_ROUNDS as usize;

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MutualOutput {
    Message(MessageBody),
    /// Close the extra sockets.
    CloseSockets,
    /// Have this many.
    OpenSockets(usize),
    Ask {
        socket: usize,
        bytes: Vec<u8>,
    },
    /// Both windows are known: packets go from one NAT to the other.
    Begin {
        own: Ipv4Addr,
        theirs: Ipv4Addr,
    },
    Packet {
        socket: usize,
        to: SocketAddr,
        ttl: Option<u8>,
    },
    /// All rounds are over, or there is nothing to predict.
    End(SprayRefusal),
}

#[derive(Debug)]
enum Phase {
    Sampling(Sampling),
    /// The other side's message is awaited: its window, or on the following side after a round, [`MessageBody::Again`].
    Waiting,
    /// Pass, and packet of that pass.
    Sending {
        pass: usize,
        packet: u16,
        pacer: Pacer,
    },
    Resting(Instant),
}

/// One side of an attempt.
#[derive(Debug)]
pub(super) struct Mutual {
    leads: bool,
    round: u8,
    phase: Phase,
    own: Option<PortWindow>,
    theirs: Option<PortWindow>,
    /// The next copy of this side's message; `None` once it is answered.
    repeat_at: Option<Instant>,
    /// Nothing is sent before: a packet has arrived.
    paused_until: Option<Instant>,
    outputs: VecDeque<MutualOutput>,
}

impl Mutual {
    /// The side that takes part at the request of the other one.
    pub(super) fn following(now: Instant, rng: &mut impl Rng) -> Self {
        let mut mutual = Self::new(false);
        mutual.begin_sampling(now, rng);
        mutual
    }

    /// The side whose request was answered.
    pub(super) fn leading() -> Self {
        Self::new(true)
    }

    fn new(leads: bool) -> Self {
        Self {
            leads,
            round: 0,
            phase: Phase::Waiting,
            own: None,
            theirs: None,
            repeat_at: None,
            paused_until: None,
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn poll_output(&mut self) -> Option<MutualOutput> {
        self.outputs.pop_front()
    }

    fn begin_sampling(&mut self, now: Instant, rng: &mut impl Rng) {
        self.outputs.extend([MutualOutput::CloseSockets, MutualOutput::OpenSockets(SAMPLES)]);
        (self.own, self.repeat_at) = (None, None);
        self.phase = Phase::Sampling(Sampling::new(now, rng));
        self.handle_timeout(now);
    }

    /// Handles a message of the server that arrived at an extra socket.
    pub(super) fn handle_server_message(&mut self, now: Instant, socket: usize, bytes: &[u8]) {
        if let Phase::Sampling(sampling) = &mut self.phase {
            sampling.handle(socket, bytes);
            self.handle_timeout(now);
        }
    }

    /// Handles the other side's window.
    pub(super) fn handle_window(&mut self, now: Instant, round: u8, window: PortWindow, rng: &mut impl Rng) {
        let is_usable = window.step != 0 && window.step.unsigned_abs() <= MAX_STEP;
        if round != self.round || !is_usable {
            return;
        }
        match (self.leads, &self.phase) {
            (true, Phase::Waiting) => {
                self.theirs = Some(window);
                self.begin_sampling(now, rng);
            }
            (false, Phase::Waiting) if self.own.is_some() && self.theirs.is_none() => {
                self.theirs = Some(window);
                self.repeat_at = None;
                self.outputs.push_back(MutualOutput::Message(MessageBody::Started { round }));
                self.begin_sending(now);
            }
            // A copy.
            (false, Phase::Sending { .. } | Phase::Resting(_)) => {
                self.outputs.push_back(MutualOutput::Message(MessageBody::Started { round }));
            }
            _ => {}
        }
    }

    /// Handles that the other side has this side's window.
    pub(super) fn handle_started(&mut self, round: u8) {
        if self.leads && round == self.round && self.own.is_some() {
            self.repeat_at = None;
        }
    }

    /// Handles that the leading side begins another round.
    pub(super) fn handle_again(&mut self, now: Instant, round: u8, rng: &mut impl Rng) {
        if !self.leads && round > self.round && round < MAX_ROUNDS {
            self.round = round;
            self.theirs = None;
            self.begin_sampling(now, rng);
        }
    }

    /// Handles that an authentic check has arrived at an extra socket.
    pub(super) fn handle_hit(&mut self, now: Instant) {
        self.repeat_at = None;
        self.paused_until = self.paused_until.or(Some(now + HIT_TIME));
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        if self.repeat_at.is_some_and(|at| at <= now) {
            self.repeat_at = Some(now + REPEAT);
            let body = match self.own {
                Some(window) => MessageBody::Window { round: self.round, window },
                None => MessageBody::Again { round: self.round },
            };
            self.outputs.push_back(MutualOutput::Message(body));
        }
        match &mut self.phase {
            Phase::Sampling(sampling) => match sampling.conclude(now) {
                Some(samples) => self.conclude_sampling(now, &samples),
                None => {
                    let requests = sampling.poll(now).into_iter();
                    self.outputs.extend(requests.map(|(socket, bytes)| MutualOutput::Ask { socket, bytes }));
                }
            },
            Phase::Waiting => {}
            Phase::Sending { .. } => self.send(now),
            Phase::Resting(end) if *end <= now => self.end_round(now),
            Phase::Resting(_) => {}
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Sampling(sampling) => Some(sampling.poll_timeout()),
            Phase::Waiting => None,
            Phase::Sending { pacer, .. } => Some(pacer.next()),
            Phase::Resting(end) => Some(*end),
        };
        let next = [phase, self.repeat_at].into_iter().flatten().min()?;
        Some(self.paused_until.map_or(next, |until| until.max(next)))
    }

    fn conclude_sampling(&mut self, now: Instant, samples: &[SocketAddr]) {
        let predicted = Prediction::new(samples);
        let Some((ip, first, step)) = predicted.and_then(|Prediction { ip, ports, .. }| match ports {
            PredictedPorts::Sequence { first, step, .. } => Some((ip, first, step)),
            PredictedPorts::Range { .. } => None,
        }) else {
            return self.outputs.push_back(MutualOutput::End(SprayRefusal::Nat));
        };
        self.own = Some(PortWindow { ip, first, step });
        self.repeat_at = Some(now);
        match self.leads {
            true => self.begin_sending(now),
            false => {
                self.phase = Phase::Waiting;
                self.handle_timeout(now);
            }
        }
    }

    fn begin_sending(&mut self, now: Instant) {
        let (Some(own), Some(theirs)) = (self.own, self.theirs) else { return };
        self.outputs.push_back(MutualOutput::Begin { own: own.ip, theirs: theirs.ip });
        self.outputs.push_back(MutualOutput::OpenSockets(self.packets().into()));
        self.phase = Phase::Sending { pass: 0, packet: 0, pacer: Pacer::new(now) };
        self.handle_timeout(now);
    }

    /// Returns the number of packets in a pass.
    fn packets(&self) -> u16 {
        if self.leads { LEADING_PACKETS } else { CYCLES.iter().sum() }
    }

    /// Returns at which of the other side's next mappings a packet aims.
    fn aim(&self, packet: u16) -> i32 {
        let packet = i32::from(packet);
        let first = i32::from(CYCLES[0]);
        match (self.leads, packet < first) {
            (true, _) => packet,
            (false, true) => packet + packet - BEHIND,
            (false, false) => packet + packet - first - BEHIND,
        }
    }

    fn send(&mut self, now: Instant) {
        let (packets, Some(theirs)) = (self.packets(), self.theirs) else { return };
        loop {
            let Phase::Sending { pass, packet, pacer } = &mut self.phase else { return };
            if *packet == packets {
                (*pass, *packet) = (*pass + 1, 0);
            }
            let Some(ttl) = PASSES.get(*pass).copied() else {
                self.phase = Phase::Resting(now + REST);
                return;
            };
            if !pacer.take(now) {
                return;
            }
            let index = *packet;
            *packet += 1;
            let port = i32::from(theirs.first) + self.aim(index) * i32::from(theirs.step);
            if let Some(port) = u16::try_from(port).ok().filter(|port| *port != 0) {
                let (socket, to) = (index.into(), (IpAddr::V4(theirs.ip), port).into());
                self.outputs.push_back(MutualOutput::Packet { socket, to, ttl });
            }
        }
    }

    fn end_round(&mut self, now: Instant) {
        self.phase = Phase::Waiting;
        if self.leads && self.round + 1 == MAX_ROUNDS {
            self.outputs.push_back(MutualOutput::End(SprayRefusal::Failed));
        } else if self.leads {
            self.round += 1;
            (self.own, self.theirs, self.repeat_at) = (None, None, Some(now));
            self.handle_timeout(now);
        }
    }
}
