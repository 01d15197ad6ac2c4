//! Which lane carries the data: a machine over what each lane was heard to do.
//!
//! The first lane that ICE declares valid carries data at once. A better one (direct beats relay) takes over after it has
//! answered two pings, and the other way round when the lane in use has been silent for [`SILENCE`] in spite of pings while
//! the other still answers. A lane that was lost has to answer [`RETURN`] pings before it is trusted again.

use super::candidate::CandidatePath;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Silence after which the lane in use is pinged, and the time between those pings.
const QUIET: Duration = Duration::from_millis(500);
const URGENT: Duration = Duration::from_millis(250);
/// Silence after which the lane in use counts as lost.
pub(super) const SILENCE: Duration = Duration::from_millis(1500);
/// How long a lane must have left pings unanswered to count as lost.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Time between pings of a lane that does not carry data.
const SPARE: Duration = Duration::from_secs(5);
/// Time between pings of a lane that has yet to prove itself.
const PROVING: Duration = Duration::from_millis(200);
/// Time between pings of a lane that was lost.
const LOST: Duration = Duration::from_secs(1);
/// Pings a lost lane must answer in a row.
pub(super) const RETURN: u8 = 3;
/// Pings a fresh lane must answer before it takes over.
const PROOF: u8 = 2;

/// What the hands are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Send a ping with this number over this lane.
    Ping(CandidatePath, u64),
    /// Carry data over this lane from now on; `None`: there is none.
    Active(Option<CandidatePath>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathHealth {
    /// ICE has no pair for it.
    Down,
    /// It has, and this many pings in a row were answered.
    Probing(u8),
    /// It may carry data.
    Usable,
    /// It was silent for too long; this many pings in a row were answered since.
    Lost(u8),
}

#[derive(Debug)]
struct PathState {
    health: PathHealth,
    heard: Instant,
    pinged: Option<Instant>,
    /// When the first ping was sent after which nothing was heard.
    asked: Option<Instant>,
    /// The ping that is not answered yet.
    waiting: Option<(u64, Instant)>,
    rtt: Option<Duration>,
}

/// Chooses between the lanes of one session.
#[derive(Debug)]
pub(super) struct PathSelector {
    lanes: [PathState; 2],
    active: Option<CandidatePath>,
    next_ping: u64,
    outputs: VecDeque<Output>,
}

impl PathSelector {
    /// Begins without any valid lane.
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        let lane = || PathState {
            health: PathHealth::Down,
            heard: now,
            pinged: None,
            asked: None,
            waiting: None,
            rtt: None,
        };
        Self { lanes: [lane(), lane()], active: None, next_ping: 1, outputs: VecDeque::new() }
    }

    fn lane(&mut self, kind: CandidatePath) -> &mut PathState {
        &mut self.lanes[kind as usize]
    }

    /// Returns the lane that carries data.
    #[must_use]
    pub(super) fn active(&self) -> Option<CandidatePath> {
        self.active
    }

    /// Returns the last measured round trip over a lane; before its second answer a lane has none, since the first may have
    /// waited for the other side to be ready.
    #[must_use]
    pub(super) fn rtt(&self, kind: CandidatePath) -> Option<Duration> {
        let lane = &self.lanes[kind as usize];
        lane.rtt.filter(|_| !matches!(lane.health, PathHealth::Probing(_)))
    }

    /// Takes note that ICE has selected a pair for the lane.
    pub(super) fn handle_valid(&mut self, now: Instant, kind: CandidatePath) {
        let lane = self.lane(kind);
        if lane.health == PathHealth::Down {
            lane.health = PathHealth::Probing(0);
            lane.heard = now;
            self.ping(now, kind);
        }
        self.choose();
    }

    /// Takes note that ICE has given the lane up.
    pub(super) fn handle_failed(&mut self, kind: CandidatePath) {
        self.lane(kind).health = PathHealth::Down;
        self.choose();
    }

    /// Takes note of when the last datagram came over the lane, whatever was in it.
    pub(super) fn handle_heard(&mut self, at: Instant, kind: CandidatePath) {
        let lane = self.lane(kind);
        lane.heard = lane.heard.max(at);
        lane.asked = lane.asked.filter(|asked| *asked > at);
    }

    /// Takes the answer to a ping; one that is not waited for changes nothing.
    pub(super) fn handle_pong(&mut self, now: Instant, kind: CandidatePath, number: u64) {
        self.handle_heard(now, kind);
        let lane = self.lane(kind);
        let Some((_, sent)) = lane.waiting.filter(|(waiting, _)| *waiting == number) else { return };
        lane.waiting = None;
        let rtt = now.saturating_duration_since(sent);
        lane.rtt = Some(match (lane.health, lane.rtt) {
            (PathHealth::Probing(_), Some(before)) => before.min(rtt),
            _ => rtt,
        });
        lane.health = match lane.health {
            PathHealth::Probing(answered) if answered + 1 < PROOF => PathHealth::Probing(answered + 1),
            PathHealth::Lost(answered) if answered + 1 < RETURN => PathHealth::Lost(answered + 1),
            PathHealth::Down => PathHealth::Down,
            _ => PathHealth::Usable,
        };
        if matches!(lane.health, PathHealth::Probing(_)) {
            self.ping(now, kind);
        }
        self.choose();
    }

    /// Sends the pings that are due and drops a lane that has been silent for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for kind in CandidatePath::ALL {
            if self.ping_due(kind).is_some_and(|due| due <= now) {
                let lane = self.lane(kind);
                if let (PathHealth::Lost(answered), Some(_)) = (&mut lane.health, lane.waiting) {
                    *answered = 0;
                }
                self.ping(now, kind);
            }
            let spare = CandidatePath::ALL.into_iter().any(|other| {
                other != kind
                    && matches!(self.lane(other).health, PathHealth::Usable | PathHealth::Probing(1..))
            });
            let lane = self.lane(kind);
            let unanswered = lane.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= PATIENCE);
            let silent = unanswered && now.saturating_duration_since(lane.heard) >= SILENCE;
            if silent && spare && matches!(lane.health, PathHealth::Usable | PathHealth::Probing(_)) {
                lane.health = PathHealth::Lost(0);
            }
        }
        self.choose();
    }

    /// Returns when [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        CandidatePath::ALL.into_iter().filter_map(|kind| self.ping_due(kind)).min()
    }

    /// Takes the next thing to do.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn ping_due(&self, kind: CandidatePath) -> Option<Instant> {
        let lane = &self.lanes[kind as usize];
        let pinged = lane.pinged?;
        match lane.health {
            PathHealth::Down => None,
            PathHealth::Lost(_) => Some(pinged + LOST),
            PathHealth::Probing(_) => Some(pinged + PROVING),
            PathHealth::Usable if lane.asked.is_some() => Some(pinged + URGENT),
            PathHealth::Usable if self.active != Some(kind) => Some(pinged + SPARE),
            PathHealth::Usable => Some((lane.heard + QUIET).max(pinged + QUIET)),
        }
    }

    fn ping(&mut self, now: Instant, kind: CandidatePath) {
        let number = self.next_ping;
        self.next_ping += 1;
        let lane = self.lane(kind);
        lane.pinged = Some(now);
        lane.asked = lane.asked.or(Some(now));
        lane.waiting = Some((number, now));
        self.outputs.push_back(Output::Ping(kind, number));
    }

    fn choose(&mut self) {
        let health = |kind: CandidatePath| self.lanes[kind as usize].health;
        let first = |wanted: fn(PathHealth) -> bool| {
            CandidatePath::ALL.into_iter().find(|kind| wanted(health(*kind)))
        };
        let good = first(|health| health == PathHealth::Usable);
        let in_use =
            self.active.filter(|kind| matches!(health(*kind), PathHealth::Usable | PathHealth::Probing(_)));
        let chosen = match in_use {
            Some(in_use) => good.filter(|good| *good < in_use).or(Some(in_use)),
            None => good
                .or_else(|| first(|health| matches!(health, PathHealth::Probing(_))))
                .or_else(|| self.active.filter(|kind| health(*kind) != PathHealth::Down))
                .or_else(|| first(|health| health != PathHealth::Down)),
        };
        if chosen != self.active {
            self.active = chosen;
            self.outputs.push_back(Output::Active(chosen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidatePath::{Direct, Relay};

    /// A fake wire: lanes that answer after `rtt`, or not at all.
    struct Bench {
        now: Instant,
        lanes: PathSelector,
        answers: [Option<Duration>; 2],
        in_flight: Vec<(Instant, CandidatePath, u64)>,
        history: Vec<Option<CandidatePath>>,
        pings: usize,
    }

    impl Bench {
        fn new() -> Self {
            let now = crate::net::time::now().mono;
            let lanes = PathSelector::new(now);
            let rtt = Some(Duration::from_millis(10));
            Self { now, lanes, answers: [rtt, rtt], in_flight: vec![], history: vec![], pings: 0 }
        }

        fn drain(&mut self) {
            while let Some(output) = self.lanes.poll_output() {
                match output {
                    Output::Active(lane) => self.history.push(lane),
                    Output::Ping(lane, number) => {
                        self.pings += 1;
                        if let Some(rtt) = self.answers[lane as usize] {
                            self.in_flight.push((self.now + rtt, lane, number));
                        }
                    }
                }
            }
        }

        fn valid(&mut self, lane: CandidatePath) {
            self.lanes.handle_valid(self.now, lane);
            self.drain();
        }

        fn run(&mut self, millis: u64) {
            let end = self.now + Duration::from_millis(millis);
            loop {
                let due = self.in_flight.iter().map(|(at, ..)| *at).chain(self.lanes.poll_timeout()).min();
                let Some(next) = due.filter(|due| *due <= end) else { break };
                self.now = self.now.max(next);
                if let Some(at) = self.in_flight.iter().position(|(at, ..)| *at <= self.now) {
                    let (_, lane, number) = self.in_flight.remove(at);
                    self.lanes.handle_pong(self.now, lane, number);
                } else {
                    self.lanes.handle_timeout(self.now);
                }
                self.drain();
            }
            self.now = end;
        }
    }

    #[test]
    fn the_first_valid_lane_carries_data_at_once() {
        let mut bench = Bench::new();
        bench.valid(Relay);
        assert_eq!(bench.history, [Some(Relay)]);
    }

    #[test]
    fn a_direct_lane_takes_over_after_two_answers() {
        let mut bench = Bench::new();
        bench.valid(Relay);
        bench.run(100);
        bench.valid(Direct);
        assert_eq!(bench.history, [Some(Relay)]);
        bench.run(15);
        assert_eq!(bench.history, [Some(Relay)], "one answer is not enough");
        bench.run(15);
        assert_eq!(bench.history, [Some(Relay), Some(Direct)]);
        assert_eq!(bench.lanes.rtt(Direct), Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_direct_lane_that_carries_nothing_never_takes_over() {
        let mut bench = Bench::new();
        bench.valid(Relay);
        bench.answers[Direct as usize] = None;
        bench.valid(Direct);
        bench.run(60_000);
        assert_eq!(bench.history, [Some(Relay)]);
    }

    #[test]
    fn a_silent_direct_lane_gives_way_and_comes_back() {
        let mut bench = Bench::new();
        bench.valid(Direct);
        bench.valid(Relay);
        bench.run(10_000);
        assert_eq!(bench.history, [Some(Direct)]);
        bench.answers[Direct as usize] = None;
        bench.run(2_100);
        assert_eq!(bench.history, [Some(Direct), Some(Relay)], "lost within about two seconds");
        bench.run(60_000);
        assert_eq!(bench.history.len(), 2, "no flapping");
        bench.answers[Direct as usize] = Some(Duration::from_millis(10));
        bench.run(5_000);
        assert_eq!(bench.history, [Some(Direct), Some(Relay), Some(Direct)]);
    }

    #[test]
    fn a_spare_lane_that_answers_is_ready_at_any_time() {
        for idle in (1_000..12_000).step_by(130) {
            let mut bench = Bench::new();
            bench.valid(Direct);
            bench.valid(Relay);
            bench.run(idle);
            bench.answers[Direct as usize] = None;
            bench.run(2_100);
            assert_eq!(bench.history, [Some(Direct), Some(Relay)], "after {idle} ms");
        }
    }

    #[test]
    fn the_only_lane_is_kept_however_silent() {
        let mut bench = Bench::new();
        bench.valid(Direct);
        bench.run(1_000);
        bench.answers[Direct as usize] = None;
        bench.run(60_000);
        assert_eq!(bench.history, [Some(Direct)]);
    }

    #[test]
    fn a_failed_lane_is_left_and_no_lane_is_said() {
        let mut bench = Bench::new();
        bench.valid(Direct);
        bench.valid(Relay);
        bench.run(1_000);
        bench.lanes.handle_failed(Direct);
        bench.drain();
        bench.lanes.handle_failed(Relay);
        bench.drain();
        assert_eq!(bench.history, [Some(Direct), Some(Relay), None]);
    }

    #[test]
    fn traffic_is_proof_of_life_and_saves_pings() {
        let mut bench = Bench::new();
        bench.valid(Direct);
        bench.run(1_000);
        let before = bench.pings;
        for _ in 0..100 {
            bench.run(100);
            bench.lanes.handle_heard(bench.now, Direct);
        }
        assert!(bench.pings - before <= 1, "{} pings under traffic", bench.pings - before);
    }

    #[test]
    fn foreign_and_repeated_pongs_change_nothing() {
        let mut bench = Bench::new();
        bench.valid(Relay);
        bench.answers[Direct as usize] = None;
        bench.valid(Direct);
        for number in 0..100 {
            bench.lanes.handle_pong(bench.now, Direct, number + 1_000);
        }
        bench.drain();
        assert_eq!(bench.history, [Some(Relay)]);
    }
}
