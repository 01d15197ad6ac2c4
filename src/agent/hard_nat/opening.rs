//! What the hard side sends in a round: packets that have its NAT map each socket to the easy side, and the start message.
//!
//! The first packets have a low TTL. They pass the near NATs and end before the far one, which might take an unexpected packet for an attack,
//! or give its mapping the port that the probes need. Packets with the usual TTL follow when the probes are out: one that meets a hole which
//! a lost probe has opened succeeds in its place.

use super::limits::Pacer;
use super::prediction::Prediction;
use std::time::{Duration, Instant};

/// The TTLs of the first packets of each socket.
const LOW_TTLS: [u8; 2] = [7, 4];
/// How often the start message is sent without an answer, and the time in between.
const STARTS: usize = 12;
const START_INTERVAL: Duration = Duration::from_millis(200);
/// The shortest time from the start message to the packets with the usual TTL.
const MIN_WAIT: Duration = Duration::from_millis(300);
/// How long a round waits for a late probe.
const REST: Duration = Duration::from_millis(1500);
/// How long a probe that has arrived may take to become a path.
const HIT_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Packets with a low TTL, by the index of the TTL.
    Open(usize),
    /// The probes are being sent.
    Wait(Instant),
    /// Packets with the usual TTL.
    Repeat,
    Rest(Instant),
}

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpeningOutput {
    Packet {
        socket: usize,
        ttl: Option<u8>,
    },
    Start,
    /// The round has ended.
    Over,
}

/// A round of the hard side.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) prediction: Prediction,
    step: Step,
    next_socket: usize,
    pacer: Pacer,
    starts: usize,
    next_start: Option<Instant>,
    /// Nothing is sent before: a probe has arrived.
    paused_until: Option<Instant>,
}

impl Opening {
    /// Begins the first round of these sockets.
    pub(super) fn new(now: Instant, prediction: Prediction) -> Self {
        Self {
            prediction,
            step: Step::Open(0),
            next_socket: 0,
            pacer: Pacer::new(now),
            starts: 0,
            next_start: None,
            paused_until: None,
        }
    }

    /// Begins another round: the mappings stand.
    pub(super) fn repeat(&mut self, now: Instant) {
        *self = Self { step: Step::Wait(now + self.probing_time()), ..Self::new(now, self.prediction) };
        self.next_start = Some(now);
    }

    fn probing_time(&self) -> Duration {
        let probes = u32::try_from(self.prediction.ports.probes()).unwrap_or(u32::MAX);
        super::limits::PACE.saturating_mul(probes).max(MIN_WAIT)
    }

    /// Handles that the other side has begun to probe.
    pub(super) fn handle_started(&mut self) {
        self.starts = STARTS;
        self.next_start = None;
    }

    /// Handles that a probe has arrived.
    pub(super) fn handle_hit(&mut self, now: Instant) {
        self.handle_started();
        self.paused_until = self.paused_until.or(Some(now + HIT_TIME));
    }

    /// Returns what is due, with at most `budget` packets.
    pub(super) fn poll(&mut self, now: Instant, budget: usize) -> Option<OpeningOutput> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        if self.next_start.is_some_and(|at| at <= now) {
            self.starts += 1;
            self.next_start = (self.starts < STARTS).then_some(now + START_INTERVAL);
            return Some(OpeningOutput::Start);
        }
        loop {
            let (ttl, next) = match self.step {
                Step::Wait(at) if at <= now => (None, Step::Repeat),
                Step::Rest(at) if at <= now => return Some(OpeningOutput::Over),
                Step::Wait(_) | Step::Rest(_) => return None,
                Step::Open(pass) => {
                    let next = if pass + 1 < LOW_TTLS.len() {
                        Step::Open(pass + 1)
                    } else {
                        Step::Wait(now + self.probing_time())
                    };
                    (Some(LOW_TTLS[pass]), next)
                }
                Step::Repeat => (None, Step::Rest(now + REST)),
            };
            if !matches!(self.step, Step::Wait(_)) && self.next_socket < self.prediction.sockets && budget > 0
            {
                return self.pacer.take(now).then(|| {
                    self.next_socket += 1;
                    OpeningOutput::Packet { socket: self.next_socket - 1, ttl }
                });
            }
            let is_open = self.step == Step::Open(0);
            (self.step, self.next_socket) = (next, 0);
            if is_open {
                self.next_start = Some(now + START_INTERVAL);
                self.starts = 1;
                return Some(OpeningOutput::Start);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let step = match self.step {
            Step::Wait(at) | Step::Rest(at) => at,
            Step::Open(_) | Step::Repeat => self.pacer.next(),
        };
        let next = self.next_start.map_or(step, |at| at.min(step));
        Some(self.paused_until.map_or(next, |until| until.max(next)))
    }
}
