//! Selects the path that carries the data.
//!
//! The first path with a selected pair carries data at once. A preferred path (direct before relay) takes over after it has
//! answered [`PROBATION`] pings. The other path takes over if it answers and the active one has not, for [`LOSS_TIMEOUT`].
//! A lost path must answer [`RECOVERY`] pings in a row before it is used again.

use super::candidate::CandidatePath;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time without a datagram after which the active path is pinged.
const IDLE_TIME: Duration = Duration::from_millis(500);
/// Ping interval while pings are unanswered.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Time without a datagram after which a path counts as lost.
pub(super) const LOSS_TIMEOUT: Duration = Duration::from_millis(1500);
/// Time with unanswered pings after which a path counts as lost.
const UNANSWERED_TIMEOUT: Duration = Duration::from_millis(1000);
/// Ping interval of a path that does not carry data.
const STANDBY_INTERVAL: Duration = Duration::from_secs(5);
/// Ping interval of a new path.
const PROBATION_INTERVAL: Duration = Duration::from_millis(200);
/// Ping interval of a lost path.
const LOST_INTERVAL: Duration = Duration::from_secs(1);
/// Number of pings that a lost path must answer in a row.
pub(super) const RECOVERY: u8 = 3;
/// Number of pings that a new path must answer before it takes over.
const PROBATION: u8 = 2;

/// What the caller must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathOutput {
    /// Send a ping with this number over this path.
    Ping(CandidatePath, u64),
    /// Send data over this path; `None`: no path works.
    Active(Option<CandidatePath>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathHealth {
    /// No selected pair.
    Down,
    /// New; has answered this many pings in a row.
    Probing(u8),
    Usable,
    /// Stopped answering; has answered this many pings in a row since.
    Lost(u8),
}

#[derive(Debug)]
struct PathState {
    health: PathHealth,
    received_at: Instant,
    pinged_at: Option<Instant>,
    /// Time of the first ping since the last datagram.
    unanswered_since: Option<Instant>,
    /// The unanswered ping.
    outstanding: Option<(u64, Instant)>,
    rtt: Option<Duration>,
}

/// Selects between the paths of one session.
#[derive(Debug)]
pub(super) struct PathSelector {
    paths: [PathState; 2],
    active: Option<CandidatePath>,
    next_ping: u64,
    outputs: VecDeque<PathOutput>,
}

impl PathSelector {
    /// Returns a selector without a usable path.
    pub(super) fn new(now: Instant) -> Self {
        let down = || PathState {
            health: PathHealth::Down,
            received_at: now,
            pinged_at: None,
            unanswered_since: None,
            outstanding: None,
            rtt: None,
        };
        Self { paths: [down(), down()], active: None, next_ping: 1, outputs: VecDeque::new() }
    }

    fn state(&mut self, path: CandidatePath) -> &mut PathState {
        &mut self.paths[path as usize]
    }

    /// Returns the path that carries data.
    pub(super) fn active(&self) -> Option<CandidatePath> {
        self.active
    }

    /// Returns the last round-trip time of a path; `None` before its second answer, since the first one may have waited for the other
    /// side to be ready.
    pub(super) fn rtt(&self, path: CandidatePath) -> Option<Duration> {
        let state = &self.paths[path as usize];
        state.rtt.filter(|_| !matches!(state.health, PathHealth::Probing(_)))
    }

    /// Handles the selection of a pair by the path's ICE agent.
    pub(super) fn handle_selected(&mut self, now: Instant, path: CandidatePath) {
        let state = self.state(path);
        if state.health == PathHealth::Down {
            state.health = PathHealth::Probing(0);
            state.received_at = now;
            self.ping(now, path);
        }
        self.select();
    }

    /// Handles the failure of the path's ICE agent.
    pub(super) fn handle_failed(&mut self, path: CandidatePath) {
        self.state(path).health = PathHealth::Down;
        self.select();
    }

    /// Handles the arrival time of the last datagram over the path.
    pub(super) fn handle_received(&mut self, at: Instant, path: CandidatePath) {
        let state = self.state(path);
        state.received_at = state.received_at.max(at);
        state.unanswered_since = state.unanswered_since.filter(|since| *since > at);
    }

    /// Handles a pong; one without an outstanding ping is ignored.
    pub(super) fn handle_pong(&mut self, now: Instant, path: CandidatePath, number: u64) {
        self.handle_received(now, path);
        let state = self.state(path);
        let Some((_, sent)) = state.outstanding.filter(|(outstanding, _)| *outstanding == number) else {
            return;
        };
        state.outstanding = None;
        let rtt = now.saturating_duration_since(sent);
        state.rtt = Some(match (state.health, state.rtt) {
            (PathHealth::Probing(_), Some(before)) => before.min(rtt),
            _ => rtt,
        });
        state.health = match state.health {
            PathHealth::Probing(answered) if answered + 1 < PROBATION => PathHealth::Probing(answered + 1),
            PathHealth::Lost(answered) if answered + 1 < RECOVERY => PathHealth::Lost(answered + 1),
            PathHealth::Down => PathHealth::Down,
            _ => PathHealth::Usable,
        };
        if matches!(state.health, PathHealth::Probing(_)) {
            self.ping(now, path);
        }
        self.select();
    }

    /// Sends the pings that are due and marks paths as lost.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for path in CandidatePath::ALL {
            if self.ping_due(path).is_some_and(|due| due <= now) {
                let state = self.state(path);
                if let (PathHealth::Lost(answered), Some(_)) = (&mut state.health, state.outstanding) {
                    *answered = 0;
                }
                self.ping(now, path);
            }
            let has_standby = CandidatePath::ALL.into_iter().any(|other| {
                other != path
                    && matches!(self.state(other).health, PathHealth::Usable | PathHealth::Probing(1..))
            });
            let state = self.state(path);
            let unanswered = state
                .unanswered_since
                .is_some_and(|since| now.saturating_duration_since(since) >= UNANSWERED_TIMEOUT);
            let silent = unanswered && now.saturating_duration_since(state.received_at) >= LOSS_TIMEOUT;
            if silent && has_standby && matches!(state.health, PathHealth::Usable | PathHealth::Probing(_)) {
                state.health = PathHealth::Lost(0);
            }
        }
        self.select();
    }

    /// Returns when [`Self::handle_timeout`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        CandidatePath::ALL.into_iter().filter_map(|path| self.ping_due(path)).min()
    }

    /// Returns the next output.
    pub(super) fn poll_output(&mut self) -> Option<PathOutput> {
        self.outputs.pop_front()
    }

    fn ping_due(&self, path: CandidatePath) -> Option<Instant> {
        let state = &self.paths[path as usize];
        let pinged = state.pinged_at?;
        match state.health {
            PathHealth::Down => None,
            PathHealth::Lost(_) => Some(pinged + LOST_INTERVAL),
            PathHealth::Probing(_) => Some(pinged + PROBATION_INTERVAL),
            PathHealth::Usable if state.unanswered_since.is_some() => Some(pinged + RETRY_INTERVAL),
            PathHealth::Usable if self.active != Some(path) => Some(pinged + STANDBY_INTERVAL),
            PathHealth::Usable => Some((state.received_at + IDLE_TIME).max(pinged + IDLE_TIME)),
        }
    }

    fn ping(&mut self, now: Instant, path: CandidatePath) {
        let number = self.next_ping;
        self.next_ping += 1;
        let state = self.state(path);
        state.pinged_at = Some(now);
        state.unanswered_since = state.unanswered_since.or(Some(now));
        state.outstanding = Some((number, now));
        self.outputs.push_back(PathOutput::Ping(path, number));
    }

    fn select(&mut self) {
        let health = |path: CandidatePath| self.paths[path as usize].health;
        let first = |wanted: fn(PathHealth) -> bool| {
            CandidatePath::ALL.into_iter().find(|path| wanted(health(*path)))
        };
        let good = first(|health| health == PathHealth::Usable);
        let in_use =
            self.active.filter(|path| matches!(health(*path), PathHealth::Usable | PathHealth::Probing(_)));
        let chosen = match in_use {
            Some(in_use) => good.filter(|good| *good < in_use).or(Some(in_use)),
            None => good
                .or_else(|| first(|health| matches!(health, PathHealth::Probing(_))))
                .or_else(|| self.active.filter(|path| health(*path) != PathHealth::Down))
                .or_else(|| first(|health| health != PathHealth::Down)),
        };
        if chosen != self.active {
            self.active = chosen;
            self.outputs.push_back(PathOutput::Active(chosen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidatePath::{Direct, Relay};

    /// A simulated network: paths that answer after their round-trip time, or never.
    struct Simulation {
        now: Instant,
        selector: PathSelector,
        answers: [Option<Duration>; 2],
        in_flight: Vec<(Instant, CandidatePath, u64)>,
        history: Vec<Option<CandidatePath>>,
        pings: usize,
    }

    impl Simulation {
        fn new() -> Self {
            let now = crate::net::time::now().mono;
            let selector = PathSelector::new(now);
            let rtt = Some(Duration::from_millis(10));
            Self { now, selector, answers: [rtt, rtt], in_flight: vec![], history: vec![], pings: 0 }
        }

        fn drain(&mut self) {
            while let Some(output) = self.selector.poll_output() {
                match output {
                    PathOutput::Active(path) => self.history.push(path),
                    PathOutput::Ping(path, number) => {
                        self.pings += 1;
                        if let Some(rtt) = self.answers[path as usize] {
                            self.in_flight.push((self.now + rtt, path, number));
                        }
                    }
                }
            }
        }

        fn valid(&mut self, path: CandidatePath) {
            self.selector.handle_selected(self.now, path);
            self.drain();
        }

        fn run(&mut self, millis: u64) {
            let end = self.now + Duration::from_millis(millis);
            loop {
                let due = self.in_flight.iter().map(|(at, ..)| *at).chain(self.selector.poll_timeout()).min();
                let Some(next) = due.filter(|due| *due <= end) else { break };
                self.now = self.now.max(next);
                if let Some(at) = self.in_flight.iter().position(|(at, ..)| *at <= self.now) {
                    let (_, path, number) = self.in_flight.remove(at);
                    self.selector.handle_pong(self.now, path, number);
                } else {
                    self.selector.handle_timeout(self.now);
                }
                self.drain();
            }
            self.now = end;
        }
    }

    #[test]
    fn the_first_valid_path_carries_data_at_once() {
        let mut simulation = Simulation::new();
        simulation.valid(Relay);
        assert_eq!(simulation.history, [Some(Relay)]);
    }

    #[test]
    fn a_direct_path_takes_over_after_two_answers() {
        let mut simulation = Simulation::new();
        simulation.valid(Relay);
        simulation.run(100);
        simulation.valid(Direct);
        assert_eq!(simulation.history, [Some(Relay)]);
        simulation.run(15);
        assert_eq!(simulation.history, [Some(Relay)], "one answer is not enough");
        simulation.run(15);
        assert_eq!(simulation.history, [Some(Relay), Some(Direct)]);
        assert_eq!(simulation.selector.rtt(Direct), Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_direct_path_that_carries_nothing_never_takes_over() {
        let mut simulation = Simulation::new();
        simulation.valid(Relay);
        simulation.answers[Direct as usize] = None;
        simulation.valid(Direct);
        simulation.run(60_000);
        assert_eq!(simulation.history, [Some(Relay)]);
    }

    #[test]
    fn a_silent_direct_path_is_replaced_and_comes_back() {
        let mut simulation = Simulation::new();
        simulation.valid(Direct);
        simulation.valid(Relay);
        simulation.run(10_000);
        assert_eq!(simulation.history, [Some(Direct)]);
        simulation.answers[Direct as usize] = None;
        simulation.run(2_100);
        assert_eq!(simulation.history, [Some(Direct), Some(Relay)], "lost within about two seconds");
        simulation.run(60_000);
        assert_eq!(simulation.history.len(), 2, "no flapping");
        simulation.answers[Direct as usize] = Some(Duration::from_millis(10));
        simulation.run(5_000);
        assert_eq!(simulation.history, [Some(Direct), Some(Relay), Some(Direct)]);
    }

    #[test]
    fn a_standby_path_that_answers_is_ready_at_any_time() {
        for idle in (1_000..12_000).step_by(130) {
            let mut simulation = Simulation::new();
            simulation.valid(Direct);
            simulation.valid(Relay);
            simulation.run(idle);
            simulation.answers[Direct as usize] = None;
            simulation.run(2_100);
            assert_eq!(simulation.history, [Some(Direct), Some(Relay)], "after {idle} ms");
        }
    }

    #[test]
    fn the_only_path_is_kept_however_silent() {
        let mut simulation = Simulation::new();
        simulation.valid(Direct);
        simulation.run(1_000);
        simulation.answers[Direct as usize] = None;
        simulation.run(60_000);
        assert_eq!(simulation.history, [Some(Direct)]);
    }

    #[test]
    fn a_failed_path_is_left_and_no_path_is_reported() {
        let mut simulation = Simulation::new();
        simulation.valid(Direct);
        simulation.valid(Relay);
        simulation.run(1_000);
        simulation.selector.handle_failed(Direct);
        simulation.drain();
        simulation.selector.handle_failed(Relay);
        simulation.drain();
        assert_eq!(simulation.history, [Some(Direct), Some(Relay), None]);
    }

    #[test]
    fn traffic_is_proof_of_life_and_saves_pings() {
        let mut simulation = Simulation::new();
        simulation.valid(Direct);
        simulation.run(1_000);
        let before = simulation.pings;
        for _ in 0..100 {
            simulation.run(100);
            simulation.selector.handle_received(simulation.now, Direct);
        }
        assert!(simulation.pings - before <= 1, "{} pings under traffic", simulation.pings - before);
    }

    #[test]
    fn foreign_and_repeated_pongs_change_nothing() {
        let mut simulation = Simulation::new();
        simulation.valid(Relay);
        simulation.answers[Direct as usize] = None;
        simulation.valid(Direct);
        for number in 0..100 {
            simulation.selector.handle_pong(simulation.now, Direct, number + 1_000);
        }
        simulation.drain();
        assert_eq!(simulation.history, [Some(Relay)]);
    }
}
