//! Runs loads: sets clients up, lets the generator go, and gives back what was taken.

use super::client::{Client, Login};
use super::credentials::Credentials;
use super::error::LoadError;
use super::fleet::{Fleet, Sharing, Until};
use super::generator::{self, Course, Plan};
use super::histogram::Histogram;
use super::outcome::{Made, Outcome};
use super::process::{self, Process};
use super::report::{SearchReport, TrafficReport};
use super::search::Search;
use super::{
    AllocateLoad, Direction, Drive, LARGEST, LONGEST, Load, MOST_CLIENTS, Peers, Reins, RelayLoad,
    SearchLoad, Stage, Times, Traffic, Transport, Trial, stamp,
};
use crate::net::time;
use crate::stun::{Builder, Class, Method, TransactionId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many allocations are asked for at a time where that is not what is measured.
const AT_A_TIME: usize = 64;
/// Packets under way in the trial that a search takes its first guess from.
const GUESS_WINDOW: u32 = 128;
/// What comes before each trial of a search.
const TRIAL_WARM_UP: Duration = Duration::from_millis(200);
const HIGHEST_RATE: u64 = 100_000_000;

/// Fails unless `value` is from 1 to `most`.
pub(super) fn within(
    what: &'static str,
    value: usize,
    most: usize,
    rule: &'static str,
) -> Result<(), LoadError> {
    if (1..=most).contains(&value) { Ok(()) } else { Err(LoadError::Setting { what, rule }) }
}

impl Load {
    /// Sends packets and counts what becomes of them.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn traffic(
        &self,
        traffic: &Traffic,
        drive: Drive,
        reins: &mut Reins<'_>,
    ) -> Result<Outcome, LoadError> {
        check_drive(drive)?;
        self.on_stage(traffic, drive, reins, generator::run)
    }

    /// Looks for the highest rate at which hardly anything is lost, and measures latency at half of it.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn search(
        &self,
        traffic: &Traffic,
        search: SearchLoad,
        reins: &mut Reins<'_>,
    ) -> Result<SearchReport, LoadError> {
        if !(0.0..100.0).contains(&search.max_loss_percent) {
            return Err(LoadError::Setting { what: "--search", rule: "0 to 99 percent" });
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&search.trial) {
            return Err(LoadError::Setting { what: "--trial", rule: "0.1 to 60 seconds" });
        }
        let drive = Drive::Window(GUESS_WINDOW);
        let found = self.on_stage(traffic, drive, reins, |fleet, plan, reins| {
            let mut plan =
                Plan { times: Times { warm_up: TRIAL_WARM_UP, seconds: search.trial }, ..plan.clone() };
            let trials = seek(fleet, &mut plan, search, reins)?;
            let highest = trials.iter().filter(|trial| trial.borne).map(|trial| trial.rate).max();
            let half = match highest.filter(|rate| *rate > 1) {
                None => None,
                Some(rate) => {
                    plan.drive = Drive::Rate(rate / 2);
                    plan.times = self.times;
                    plan.tag = plan.tag.wrapping_add(1);
                    Some((plan.drive, generator::run(fleet, &plan, reins)?))
                }
            };
            Ok((trials, half))
        });
        let (trials, half) = found?;
        let half = half.map(|(drive, outcome)| TrafficReport::new(self, traffic, drive, 1, &outcome));
        Ok(SearchReport::new(self, traffic, search, trials, half))
    }

    /// Allocates, and gives everything back.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn allocate(
        &self,
        credentials: Credentials,
        load: AllocateLoad,
        reins: &mut Reins<'_>,
    ) -> Result<Made, LoadError> {
        within("--count", load.count, MOST_CLIENTS, "1 to 250000")?;
        within("--concurrency", load.concurrency, MOST_CLIENTS, "1 to 250000")?;
        let process = self.begin()?;
        let mut fleet = self.fleet()?;
        self.open_clients(&mut fleet, credentials, load.count)?;
        await_go(&mut fleet, reins)?;
        let legs: Vec<usize> = (0..load.count).collect();
        let before = self.used(process.as_ref())?;
        let own_before = Process::own().cpu_ns()?;
        let began = time::mono();
        let mut latency = Histogram::default();
        let until = Until { stop: reins.stop, deadline: Some(began + LONGEST) };
        let allocate = |_: usize, client: &mut Client, now: Instant| client.allocate(now);
        let mut done = Telling::new(load.count);
        let settled = fleet.settle(&legs, load.concurrency, until, allocate, |took| {
            latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            done.one_more(reins.tell);
        });
        let elapsed = time::mono() - began;
        let own_cpu = Duration::from_nanos(Process::own().cpu_ns()?.saturating_sub(own_before));
        let after = self.used(process.as_ref());
        let made = settled.and_then(|()| {
            let used = before.zip(after?).map(|(before, after)| Made::used_between(before, after));
            Ok(Made { count: load.count, elapsed, latency, own_cpu, used })
        });
        let held = made.and_then(|made| {
            (reins.tell)(Stage::Made(made.clone()));
            if load.hold {
                let until = Until { stop: reins.enough, deadline: Some(began + self.times.seconds) };
                fleet.hold(until, Some(reins.stop))?;
            }
            Ok(made)
        });
        fleet.release();
        held
    }

    /// Sets up what `traffic` needs, lets `act` use it, and gives it back.
    fn on_stage<T>(
        &self,
        traffic: &Traffic,
        drive: Drive,
        reins: &mut Reins<'_>,
        act: impl FnOnce(&mut Fleet, &Plan, &mut Reins<'_>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        check(traffic)?;
        let process = self.begin()?;
        let mut fleet = self.fleet()?;
        let mut plan = Plan {
            course: Course::Answers,
            senders: Vec::new(),
            drive,
            burst: 1,
            size: 0,
            times: self.times,
            process,
            tag: rng().random(),
        };
        let ready = match traffic {
            Traffic::Binding { sockets } => self.prepare_binding(&mut fleet, *sockets, &mut plan),
            Traffic::Relay(credentials, load) => {
                self.prepare_relay(&mut fleet, (credentials, load), &mut plan, reins)
            }
        };
        let outcome =
            ready.and_then(|()| await_go(&mut fleet, reins)).and_then(|()| act(&mut fleet, &plan, reins));
        fleet.release();
        outcome
    }

    fn prepare_binding(&self, fleet: &mut Fleet, sockets: usize, plan: &mut Plan) -> Result<(), LoadError> {
        let request = Builder::new(Class::Request, Method::BINDING, TransactionId::new([0; 12])).finish();
        for _ in 0..sockets {
            let leg = fleet.open(None)?;
            fleet.put_in_front(leg, request.clone());
        }
        plan.senders = (0..sockets).collect();
        Ok(())
    }

    fn prepare_relay(
        &self,
        fleet: &mut Fleet,
        (credentials, load): (&Credentials, &RelayLoad),
        plan: &mut Plan,
        reins: &mut Reins<'_>,
    ) -> Result<(), LoadError> {
        let flows = self.set_up(fleet, credentials, load, reins)?;
        let ups = (0..flows).map(|flow| 2 * flow);
        plan.senders = match load.direction {
            Direction::Up | Direction::Echo => ups.collect(),
            Direction::Down => ups.map(|leg| leg + 1).collect(),
            Direction::Both => (0..2 * flows).collect(),
        };
        plan.course = if load.direction == Direction::Echo { Course::Echo } else { Course::OneWay };
        (plan.burst, plan.size) = (load.burst, load.size.into());
        Ok(())
    }

    /// Does what comes before every load.
    pub(super) fn begin(&self) -> Result<Option<Process>, LoadError> {
        if self.times.seconds.is_zero() || self.times.warm_up + self.times.seconds > LONGEST {
            let rule = "at least 1 and with --warm-up at most 3600";
            return Err(LoadError::Setting { what: "--seconds", rule });
        }
        if let Some(cpu) = self.cpu {
            process::pin(cpu).map_err(|source| LoadError::Pin { cpu, source })?;
        }
        let watched =
            self.pid.map(|pid| Process::new(pid).map_err(|source| LoadError::Process { pid, source }));
        watched.transpose()
    }

    fn fleet(&self) -> Result<Fleet, LoadError> {
        let sharing = if self.own_sockets { Sharing::Never } else { Sharing::OnLoopback };
        Ok(Fleet::new(self.target, sharing, self.segmentation)?)
    }

    /// What the watched process has used until now: CPU time in ns, and resident bytes.
    pub(super) fn used(&self, process: Option<&Process>) -> Result<Option<(u64, u64)>, LoadError> {
        let used = process.map(|process| Ok((process.cpu_ns()?, process.resident()?)));
        used.transpose().map_err(|source| LoadError::Process { pid: self.pid.unwrap_or(0), source })
    }

    fn login(&self, credentials: Credentials) -> Login {
        Login {
            credentials: Arc::new(credentials),
            stream: self.target.transport() == Transport::Tcp,
            v6: self.target.address().ip().to_canonical().is_ipv6(),
        }
    }

    fn open_clients(
        &self,
        fleet: &mut Fleet,
        credentials: Credentials,
        count: usize,
    ) -> Result<(), LoadError> {
        let login = self.login(credentials);
        let mut rng = rng();
        for _ in 0..count {
            fleet.open(Some((login.clone(), rng.random())))?;
        }
        Ok(())
    }

    /// Opens the flows of a relay load and lets both ends of each know the other; returns how many there are.
    fn set_up(
        &self,
        fleet: &mut Fleet,
        credentials: &Credentials,
        load: &RelayLoad,
        reins: &mut Reins<'_>,
    ) -> Result<usize, LoadError> {
        let until = Until { stop: reins.stop, deadline: Some(time::mono() + LONGEST) };
        let flows = match load.peers {
            Peers::Sockets => load.allocations,
            Peers::Clients => load.allocations.div_ceil(2),
        };
        // Each leg's other end, as the server names it.
        let mut others = vec![None; 2 * flows];
        let clients = self.open_flows(fleet, credentials, load, &mut others)?;
        let mut done = Telling::new(2 * clients.len());
        let allocate = |_: usize, client: &mut Client, now: Instant| client.allocate(now);
        fleet.settle(&clients, AT_A_TIME, until, allocate, |_| done.one_more(reins.tell))?;
        for leg in &clients {
            others[leg ^ 1] = fleet.relayed(*leg);
        }
        for (leg, other) in others.iter().enumerate() {
            let Some(other) = *other else { continue };
            if clients.binary_search(&leg).is_ok() {
                fleet.wrap(leg, other, load.size, load.indications);
            } else {
                fleet.aim(leg, other);
            }
        }
        let reach = |leg: usize, client: &mut Client, now: Instant| {
            if let Some(other) = others[leg] {
                client.reach(now, other, !load.indications);
            }
        };
        fleet.settle(&clients, AT_A_TIME, until, reach, |_| done.one_more(reins.tell))?;
        Ok(flows)
    }

    /// Opens both ends of each flow; returns the legs of clients, and tells `others` where peers are.
    fn open_flows(
        &self,
        fleet: &mut Fleet,
        credentials: &Credentials,
        load: &RelayLoad,
        others: &mut [Option<std::net::SocketAddr>],
    ) -> Result<Vec<usize>, LoadError> {
        let login = self.login(credentials.clone());
        let mut rng = rng();
        let mut clients = Vec::new();
        for _ in 0..others.len() / 2 {
            clients.push(fleet.open(Some((login.clone(), rng.random())))?);
            if load.peers == Peers::Sockets {
                let (leg, address) = fleet.open_peer()?;
                others[leg ^ 1] = Some(address);
            } else {
                clients.push(fleet.open(Some((login.clone(), rng.random())))?);
            }
        }
        Ok(clients)
    }
}

/// Tries rates until the highest is known.
fn seek(
    fleet: &mut Fleet,
    plan: &mut Plan,
    search: SearchLoad,
    reins: &mut Reins<'_>,
) -> Result<Vec<Trial>, LoadError> {
    let guess = generator::run(fleet, plan, reins)?;
    let each = guess.received as f64 / guess.elapsed.as_secs_f64().max(0.001);
    let mut seeking = Search::new(each as u64, HIGHEST_RATE);
    let mut trials = Vec::new();
    while let Some(rate) = seeking.next() {
        plan.drive = Drive::Rate(rate);
        plan.tag = plan.tag.wrapping_add(1);
        let outcome = generator::run(fleet, plan, reins)?;
        if reins.stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(LoadError::Interrupted);
        }
        let loss_percent = outcome.shortfall();
        let borne = loss_percent <= search.max_loss_percent;
        let left_out = outcome.left_out + outcome.held_back > 0;
        let trial = Trial { rate, loss_percent, borne, left_out };
        (reins.tell)(Stage::Tried(trial));
        trials.push(trial);
        seeking.tell(borne);
    }
    Ok(trials)
}

/// Says that all is ready, and waits for the word, while clients keep what they have.
fn await_go(fleet: &mut Fleet, reins: &mut Reins<'_>) -> Result<(), LoadError> {
    (reins.tell)(Stage::Ready);
    let Some(go) = reins.go else { return Ok(()) };
    fleet.hold(Until { stop: go, deadline: None }, Some(reins.stop))?;
    if reins.stop.load(std::sync::atomic::Ordering::Relaxed) { Err(LoadError::Interrupted) } else { Ok(()) }
}

/// Tells of progress a hundred times at most.
pub(super) struct Telling {
    done: usize,
    of: usize,
}

impl Telling {
    pub(super) fn new(of: usize) -> Self {
        Self { done: 0, of }
    }

    pub(super) fn one_more(&mut self, tell: &mut dyn FnMut(Stage)) {
        self.done += 1;
        if self.done.is_multiple_of((self.of / 100).max(1)) {
            tell(Stage::SettingUp { done: self.done, of: self.of });
        }
    }
}

fn check(traffic: &Traffic) -> Result<(), LoadError> {
    let load = match traffic {
        Traffic::Binding { sockets } => return within("--sockets", *sockets, MOST_CLIENTS, "1 to 250000"),
        Traffic::Relay(_, load) => load,
    };
    within("--allocations", load.allocations, MOST_CLIENTS, "1 to 250000")?;
    within("--burst", load.burst as usize, 1024, "1 to 1024")?;
    if !(stamp::STAMP_LEN..=usize::from(LARGEST)).contains(&usize::from(load.size)) {
        return Err(LoadError::Setting { what: "--size", rule: "12 to 60000 bytes" });
    }
    Ok(())
}

pub(super) fn check_drive(drive: Drive) -> Result<(), LoadError> {
    match drive {
        Drive::Rate(rate) => {
            let rule = "1 to 100000000 packets a second";
            within("--rate", usize::try_from(rate).unwrap_or(usize::MAX), 100_000_000, rule)
        }
        Drive::Window(window) => within("--window", window as usize, 1_000_000, "1 to 1000000 packets"),
    }
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::from_os_rng()
}
