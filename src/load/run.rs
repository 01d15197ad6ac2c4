//! Runs loads: sets up clients, runs the generator, and releases allocations.

use super::error::LoadError;
use super::generator::{self, TrafficKind, TrafficPlan};
use super::histogram::Histogram;
use super::outcome::{AllocationResult, TrafficOutcome};
use super::process::{self, Process};
use super::report::{SearchReport, TrafficReport};
use super::search::Search;
use super::socket_set::{SocketSet, SocketSharing, WaitLimit};
use super::{
    AllocateLoad, LONGEST, Load, LoadMode, LoadStage, LoadTimes, LoadTransport, MAX_CLIENTS, MAX_PAYLOAD,
    Peers, RelayDirection, RelayLoad, RunControl, SearchLoad, Traffic, Trial, packet_stamp,
};
use crate::net::time;
use crate::stun::{Builder, Class, Method, TransactionId};
use crate::turn_client::{
    AddressFamilies, ClientTransport, LongTermCredentials, TurnClient, TurnClientConfig,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first wait and the number of transmissions over UDP, and the time limit over TCP: a user waits for the result.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const TRANSMISSIONS: u32 = 5;
const STREAM_WAIT: Duration = Duration::from_secs(8);
/// Allocate requests in flight during setup.
const SETUP_CONCURRENCY: usize = 64;
/// The window of the trial that gives a search its first guess.
const GUESS_WINDOW: u32 = 128;
/// The warm-up of each trial of a search.
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
    /// Sends packets and counts arrivals.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn traffic(
        &self,
        traffic: &Traffic,
        mode: LoadMode,
        control: &mut RunControl<'_>,
    ) -> Result<TrafficOutcome, LoadError> {
        check_mode(mode)?;
        self.with_setup(traffic, mode, control, generator::run)
    }

    /// Searches the highest rate within the accepted loss, and measures latency at half of it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn search(
        &self,
        traffic: &Traffic,
        search: SearchLoad,
        control: &mut RunControl<'_>,
    ) -> Result<SearchReport, LoadError> {
        if !(0.0..100.0).contains(&search.max_loss_percent) {
            return Err(LoadError::Setting { what: "--search", rule: "0 to 99 percent" });
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&search.trial) {
            return Err(LoadError::Setting { what: "--trial", rule: "0.1 to 60 seconds" });
        }
        let mode = LoadMode::Window(GUESS_WINDOW);
        let found = self.with_setup(traffic, mode, control, |socket_set, plan, control| {
            let mut plan = TrafficPlan {
                times: LoadTimes { warm_up: TRIAL_WARM_UP, seconds: search.trial },
                ..plan.clone()
            };
            let trials = search_rate(socket_set, &mut plan, search, control)?;
            let highest = trials.iter().filter(|trial| trial.passed).map(|trial| trial.rate).max();
            let half = match highest.filter(|rate| *rate > 1) {
                None => None,
                Some(rate) => {
                    plan.mode = LoadMode::Rate(rate / 2);
                    plan.times = self.times;
                    plan.tag = plan.tag.wrapping_add(1);
                    Some((plan.mode, generator::run(socket_set, &plan, control)?))
                }
            };
            Ok((trials, half))
        });
        let (trials, half) = found?;
        let half = half.map(|(mode, outcome)| TrafficReport::new(self, traffic, mode, 1, &outcome));
        Ok(SearchReport::new(self, traffic, search, trials, half))
    }

    /// Makes allocations and releases them.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn allocate(
        &self,
        credentials: LongTermCredentials,
        load: AllocateLoad,
        control: &mut RunControl<'_>,
    ) -> Result<AllocationResult, LoadError> {
        within("--count", load.count, MAX_CLIENTS, "1 to 250000")?;
        within("--concurrency", load.concurrency, MAX_CLIENTS, "1 to 250000")?;
        let process = self.begin()?;
        let mut socket_set = self.socket_set()?;
        self.open_clients(&mut socket_set, credentials, load.count)?;
        await_start(&mut socket_set, control)?;
        let endpoints: Vec<usize> = (0..load.count).collect();
        let before = self.used(process.as_ref())?;
        let own_before = Process::own().cpu_ns()?;
        let began = time::mono();
        let mut latency = Histogram::default();
        let until = WaitLimit { stop: control.stop, deadline: Some(began + LONGEST) };
        let allocate = |_: usize, client: &mut TurnClient, now: Instant| client.allocate(now);
        let mut done = ProgressReporter::new(load.count);
        let settled = socket_set.run_requests(&endpoints, load.concurrency, until, allocate, |took| {
            latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            done.advance(control.on_stage);
        });
        let elapsed = time::mono() - began;
        let own_cpu = Duration::from_nanos(Process::own().cpu_ns()?.saturating_sub(own_before));
        let after = self.used(process.as_ref());
        let made = settled.and_then(|()| {
            let used =
                before.zip(after?).map(|(before, after)| AllocationResult::used_between(before, after));
            Ok(AllocationResult { count: load.count, elapsed, latency, own_cpu, used })
        });
        let result = made.and_then(|made| {
            (control.on_stage)(LoadStage::AllocationResult(made.clone()));
            if load.hold {
                let until = WaitLimit { stop: control.release, deadline: Some(began + self.times.seconds) };
                socket_set.keep_alive(until, Some(control.stop))?;
            }
            Ok(made)
        });
        socket_set.release();
        result
    }

    /// Sets up what `traffic` needs, calls `run`, and releases the allocations.
    fn with_setup<T>(
        &self,
        traffic: &Traffic,
        mode: LoadMode,
        control: &mut RunControl<'_>,
        run: impl FnOnce(&mut SocketSet, &TrafficPlan, &mut RunControl<'_>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        check(traffic)?;
        let process = self.begin()?;
        let mut socket_set = self.socket_set()?;
        let mut plan = TrafficPlan {
            kind: TrafficKind::Answers,
            senders: Vec::new(),
            mode,
            burst: 1,
            size: 0,
            times: self.times,
            process,
            tag: rng().random(),
        };
        let ready = match traffic {
            Traffic::Binding { sockets } => self.prepare_binding(&mut socket_set, *sockets, &mut plan),
            Traffic::Relay(credentials, load) => {
                self.prepare_relay(&mut socket_set, (credentials, load), &mut plan, control)
            }
        };
        let outcome = ready
            .and_then(|()| await_start(&mut socket_set, control))
            .and_then(|()| run(&mut socket_set, &plan, control));
        socket_set.release();
        outcome
    }

    fn prepare_binding(
        &self,
        socket_set: &mut SocketSet,
        sockets: usize,
        plan: &mut TrafficPlan,
    ) -> Result<(), LoadError> {
        let request = Builder::new(Class::Request, Method::BINDING, TransactionId::new([0; 12])).finish();
        for _ in 0..sockets {
            let endpoint = socket_set.open(None)?;
            socket_set.set_header(endpoint, request.clone());
        }
        plan.senders = (0..sockets).collect();
        Ok(())
    }

    fn prepare_relay(
        &self,
        socket_set: &mut SocketSet,
        (credentials, load): (&LongTermCredentials, &RelayLoad),
        plan: &mut TrafficPlan,
        control: &mut RunControl<'_>,
    ) -> Result<(), LoadError> {
        let flows = self.set_up(socket_set, credentials, load, control)?;
        let ups = (0..flows).map(|flow| 2 * flow);
        plan.senders = match load.direction {
            RelayDirection::Up | RelayDirection::Echo => ups.collect(),
            RelayDirection::Down => ups.map(|endpoint| endpoint + 1).collect(),
            RelayDirection::Both => (0..2 * flows).collect(),
        };
        plan.kind =
            if load.direction == RelayDirection::Echo { TrafficKind::Echo } else { TrafficKind::OneWay };
        (plan.burst, plan.size) = (load.burst, load.size.into());
        Ok(())
    }

    /// Checks the common settings, pins the thread, and returns the process to watch.
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

    fn socket_set(&self) -> Result<SocketSet, LoadError> {
        let sharing = if self.own_sockets { SocketSharing::Never } else { SocketSharing::OnLoopback };
        Ok(SocketSet::new(self.target, sharing, self.segmentation)?)
    }

    /// Returns what the watched process has used: CPU time in ns, and resident bytes.
    pub(super) fn used(&self, process: Option<&Process>) -> Result<Option<(u64, u64)>, LoadError> {
        let used = process.map(|process| Ok((process.cpu_ns()?, process.resident()?)));
        used.transpose().map_err(|source| LoadError::Process { pid: self.pid.unwrap_or(0), source })
    }

    fn settings(&self, credentials: LongTermCredentials) -> TurnClientConfig {
        let is_ipv6 = self.target.address().ip().to_canonical().is_ipv6();
        let mut config = TurnClientConfig::new(Arc::new(credentials));
        config.families = if is_ipv6 { AddressFamilies::V6 } else { AddressFamilies::V4 };
        if self.target.transport() == LoadTransport::Tcp {
            config.transport = ClientTransport::Stream;
            config.stream_wait = STREAM_WAIT;
        }
        (config.first_wait, config.transmissions) = (FIRST_WAIT, TRANSMISSIONS);
        config
    }

    fn open_clients(
        &self,
        socket_set: &mut SocketSet,
        credentials: LongTermCredentials,
        count: usize,
    ) -> Result<(), LoadError> {
        let settings = self.settings(credentials);
        let mut rng = rng();
        for _ in 0..count {
            socket_set.open(Some((settings.clone(), rng.random())))?;
        }
        Ok(())
    }

    /// Opens the flows of a relay load, with allocations and permissions; returns the number of flows.
    fn set_up(
        &self,
        socket_set: &mut SocketSet,
        credentials: &LongTermCredentials,
        load: &RelayLoad,
        control: &mut RunControl<'_>,
    ) -> Result<usize, LoadError> {
        let until = WaitLimit { stop: control.stop, deadline: Some(time::mono() + LONGEST) };
        let flows = match load.peers {
            Peers::Sockets => load.allocations,
            Peers::Clients => load.allocations.div_ceil(2),
        };
        // The address of each endpoint's other end.
        let mut others = vec![None; 2 * flows];
        let clients = self.open_flows(socket_set, credentials, load, &mut others)?;
        let mut done = ProgressReporter::new(2 * clients.len());
        let allocate = |_: usize, client: &mut TurnClient, now: Instant| client.allocate(now);
        socket_set
            .run_requests(&clients, SETUP_CONCURRENCY, until, allocate, |_| done.advance(control.on_stage))?;
        for endpoint in &clients {
            others[endpoint ^ 1] = socket_set.relayed(*endpoint);
        }
        for (endpoint, other) in others.iter().enumerate() {
            let Some(other) = *other else { continue };
            if clients.binary_search(&endpoint).is_ok() {
                socket_set.set_framing(endpoint, other, load.size, load.indications);
            } else {
                socket_set.set_destination(endpoint, other);
            }
        }
        let reach = |endpoint: usize, client: &mut TurnClient, now: Instant| {
            if let Some(other) = others[endpoint] {
                // The first peer of a client cannot be one too many.
                let _ = match load.indications {
                    true => client.create_permission(now, other.ip()),
                    false => client.bind_channel(now, other),
                };
            }
        };
        socket_set
            .run_requests(&clients, SETUP_CONCURRENCY, until, reach, |_| done.advance(control.on_stage))?;
        Ok(flows)
    }

    /// Opens both ends of each flow; returns the endpoints of clients, and stores the addresses of peers in `others`.
    fn open_flows(
        &self,
        socket_set: &mut SocketSet,
        credentials: &LongTermCredentials,
        load: &RelayLoad,
        others: &mut [Option<std::net::SocketAddr>],
    ) -> Result<Vec<usize>, LoadError> {
        let settings = self.settings(credentials.clone());
        let mut rng = rng();
        let mut clients = Vec::new();
        for _ in 0..others.len() / 2 {
            clients.push(socket_set.open(Some((settings.clone(), rng.random())))?);
            if load.peers == Peers::Sockets {
                let (endpoint, address) = socket_set.open_peer()?;
                others[endpoint ^ 1] = Some(address);
            } else {
                clients.push(socket_set.open(Some((settings.clone(), rng.random())))?);
            }
        }
        Ok(clients)
    }
}

/// Tries rates until the highest is found.
fn search_rate(
    socket_set: &mut SocketSet,
    plan: &mut TrafficPlan,
    search: SearchLoad,
    control: &mut RunControl<'_>,
) -> Result<Vec<Trial>, LoadError> {
    let guess = generator::run(socket_set, plan, control)?;
    let each = guess.received as f64 / guess.elapsed.as_secs_f64().max(0.001);
    let mut searching = Search::new(each as u64, HIGHEST_RATE);
    let mut trials = Vec::new();
    while let Some(rate) = searching.next() {
        plan.mode = LoadMode::Rate(rate);
        plan.tag = plan.tag.wrapping_add(1);
        let outcome = generator::run(socket_set, plan, control)?;
        if control.is_stopped() {
            return Err(LoadError::Interrupted);
        }
        let loss_percent = outcome.shortfall();
        let passed = loss_percent <= search.max_loss_percent;
        let left_out = outcome.left_out + outcome.held_back > 0;
        let trial = Trial { rate, loss_percent, passed, left_out };
        (control.on_stage)(LoadStage::Tried(trial));
        trials.push(trial);
        searching.record(passed);
    }
    Ok(trials)
}

/// Reports that setup is complete and waits for the start; clients keep their allocations alive.
fn await_start(socket_set: &mut SocketSet, control: &mut RunControl<'_>) -> Result<(), LoadError> {
    (control.on_stage)(LoadStage::Ready);
    let Some(start) = control.start else { return Ok(()) };
    socket_set.keep_alive(WaitLimit { stop: start, deadline: None }, Some(control.stop))?;
    if control.is_stopped() { Err(LoadError::Interrupted) } else { Ok(()) }
}

/// Reports the progress of setup, at most a hundred times.
pub(super) struct ProgressReporter {
    done: usize,
    of: usize,
}

impl ProgressReporter {
    pub(super) fn new(of: usize) -> Self {
        Self { done: 0, of }
    }

    pub(super) fn advance(&mut self, on_stage: &mut dyn FnMut(LoadStage)) {
        self.done += 1;
        if self.done.is_multiple_of((self.of / 100).max(1)) {
            on_stage(LoadStage::SettingUp { done: self.done, of: self.of });
        }
    }
}

fn check(traffic: &Traffic) -> Result<(), LoadError> {
    let load = match traffic {
        Traffic::Binding { sockets } => return within("--sockets", *sockets, MAX_CLIENTS, "1 to 250000"),
        Traffic::Relay(_, load) => load,
    };
    within("--allocations", load.allocations, MAX_CLIENTS, "1 to 250000")?;
    within("--burst", load.burst as usize, 1024, "1 to 1024")?;
    if !(packet_stamp::STAMP_LEN..=usize::from(MAX_PAYLOAD)).contains(&usize::from(load.size)) {
        return Err(LoadError::Setting { what: "--size", rule: "12 to 60000 bytes" });
    }
    Ok(())
}

pub(super) fn check_mode(mode: LoadMode) -> Result<(), LoadError> {
    match mode {
        LoadMode::Rate(rate) => {
            let rule = "1 to 100000000 packets per second";
            within("--rate", usize::try_from(rate).unwrap_or(usize::MAX), 100_000_000, rule)
        }
        LoadMode::Window(window) => within("--window", window as usize, 1_000_000, "1 to 1000000 packets"),
    }
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::from_os_rng()
}
