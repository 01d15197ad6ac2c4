//! A load generator and test client for any STUN or TURN server, over UDP and TCP, on one thread.
//!
//! [`Load::binding`], [`Load::allocate`] and [`Load::relay`] run a load to its end and return a report; nothing is printed.
//! [`client::Client`] is a TURN client without sockets, [`pace`] says when packets leave, [`stamp`] what they carry so that their
//! arrival is worth something, [`histogram`] keeps latencies in fixed memory. Sends of several packets to one destination leave as
//! one (GSO), and runs that arrive together are taken as one (GRO).

pub mod client;
pub mod credentials;
mod error;
mod fleet;
mod generator;
pub mod histogram;
pub mod pace;
mod packets;
pub mod process;
pub mod refusal;
pub mod report;
mod socket;
pub mod stamp;
pub mod target;

pub use credentials::Credentials;
pub use error::LoadError;
pub use pace::Drive;
pub use refusal::Refusal;
pub use report::{AllocateReport, TrafficReport};
pub use target::{NotAgreed, Target, Transport};

use crate::net::time;
use crate::stun::{Builder, Class, Method, TransactionId};
use client::{Client, Login};
use fleet::{Fleet, Sharing, Until};
use generator::{Course, Plan};
use histogram::Histogram;
use process::Process;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// The longest load: what one has started and forgotten ends by itself.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// The most sockets of a load.
pub const MOST_SOCKETS: usize = 50_000;
/// The largest payload; what goes around it still fits a datagram.
pub const LARGEST: u16 = 60_000;
/// How many allocations are asked for at a time where that is not what is measured.
const AT_A_TIME: usize = 64;

/// How long a load takes.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Before anything is measured; default 1 s.
    pub warm_up: Duration,
    /// While it is measured; default 10 s.
    pub seconds: Duration,
}

/// How a load is going.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Since its beginning.
    pub elapsed: Duration,
    /// Until its end.
    pub whole: Duration,
    /// Whether it is not yet measured.
    pub warming_up: bool,
    /// Packets sent while measured.
    pub sent: u64,
    /// How many of them have arrived.
    pub received: u64,
}

/// What all loads have in common.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub target: Target,
    /// How long.
    pub times: Times,
    /// A process whose CPU time and memory are reported, such as the server.
    pub pid: Option<u32>,
    /// The processor to run on; default any.
    pub cpu: Option<usize>,
    /// Whether packets for one destination leave as one; default true.
    pub segmentation: bool,
    /// Whether every client and peer has a socket of its own, also where many could share one (IPv4 loopback); default false.
    pub own_sockets: bool,
}

/// Who sends payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Clients, to their peers.
    Up,
    /// Peers, to their clients.
    Down,
    /// Both.
    Both,
    /// Clients, and peers send back what arrives.
    Echo,
}

/// Who the peers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// A socket of this machine for each client.
    Sockets,
    /// Clients of the same server, in pairs.
    Clients,
}

/// What [`Load::relay`] sends.
#[derive(Debug, Clone)]
pub struct RelayLoad {
    /// Clients with an allocation each; made even where they are each other's peers.
    pub allocations: usize,
    /// Bytes of each payload, from [`stamp::STAMP_LEN`] to [`LARGEST`].
    pub size: u16,
    /// Who sends.
    pub direction: Direction,
    /// How much.
    pub drive: Drive,
    /// Packets in a row from each sender; default 1.
    pub burst: u32,
    /// Whether Send and Data indications carry the payloads instead of channels.
    pub indications: bool,
    /// Who the peers are.
    pub peers: Peers,
}

/// What [`Load::allocate`] does.
#[derive(Debug, Clone, Copy)]
pub struct AllocateLoad {
    /// Allocations in all.
    pub count: usize,
    /// How many are asked for at a time.
    pub concurrency: usize,
    /// Whether they are kept until the load's time is over.
    pub hold: bool,
}

/// Fails unless `value` is from 1 to `most`.
fn within(what: &'static str, value: usize, most: usize, rule: &'static str) -> Result<(), LoadError> {
    if (1..=most).contains(&value) { Ok(()) } else { Err(LoadError::Setting { what, rule }) }
}

impl Load {
    /// Asks for one's own address, from `sockets` sockets.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn binding(
        &self,
        sockets: usize,
        drive: Drive,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<TrafficReport, LoadError> {
        within("--sockets", sockets, MOST_SOCKETS, "1 to 50000")?;
        check_drive(drive)?;
        let process = self.begin()?;
        let mut fleet = self.fleet()?;
        let request = Builder::new(Class::Request, Method::BINDING, TransactionId::new([0; 12])).finish();
        for _ in 0..sockets {
            let leg = fleet.open(None)?;
            fleet.put_in_front(leg, request.clone());
        }
        let plan = Plan {
            course: Course::Answers,
            senders: (0..sockets).collect(),
            drive,
            burst: 1,
            size: 0,
            times: self.times,
            process,
            tag: rng().random(),
        };
        let outcome = generator::run(&mut fleet, &plan, stop, progress)?;
        Ok(TrafficReport::new("binding", self, drive, fleet.segmentation.0, &outcome))
    }

    /// Allocates, reports how fast that went, and gives everything back.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn allocate(
        &self,
        credentials: Credentials,
        load: AllocateLoad,
        stop: &AtomicBool,
    ) -> Result<AllocateReport, LoadError> {
        within("--count", load.count, MOST_SOCKETS, "1 to 50000")?;
        within("--concurrency", load.concurrency, MOST_SOCKETS, "1 to 50000")?;
        let process = self.begin()?;
        let mut fleet = self.fleet()?;
        self.open_clients(&mut fleet, credentials, load.count)?;
        let legs: Vec<usize> = (0..load.count).collect();
        let used = |process: &Option<Process>| {
            let used = process.as_ref().map(|process| Ok((process.cpu_ns()?, process.resident()?)));
            used.transpose().map_err(|source| LoadError::Process { pid: self.pid.unwrap_or(0), source })
        };
        let before = used(&process)?;
        let began = time::mono();
        let mut latency = Histogram::default();
        let until = Until { stop, deadline: Some(began + LONGEST) };
        let allocate = |_: usize, client: &mut Client, now: Instant| client.allocate(now);
        let settled = fleet.settle(&legs, load.concurrency, until, allocate, |took| {
            latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        });
        let elapsed = time::mono() - began;
        let after = used(&process);
        let held = settled.and_then(|()| match load.hold {
            true => fleet.hold(Until { stop, deadline: Some(began + self.times.seconds) }),
            false => Ok(()),
        });
        fleet.release();
        held?;
        Ok(AllocateReport::new(self, load, elapsed, &latency, before.zip(after?)))
    }

    /// Relays payloads between clients and peers.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub fn relay(
        &self,
        credentials: Credentials,
        load: &RelayLoad,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<TrafficReport, LoadError> {
        within("--allocations", load.allocations, MOST_SOCKETS / 2, "1 to 25000")?;
        within("--burst", load.burst as usize, 1024, "1 to 1024")?;
        if !(stamp::STAMP_LEN..=usize::from(LARGEST)).contains(&usize::from(load.size)) {
            return Err(LoadError::Setting { what: "--size", rule: "12 to 60000 bytes" });
        }
        check_drive(load.drive)?;
        let process = self.begin()?;
        let mut fleet = self.fleet()?;
        let relayed = self.set_up(&mut fleet, credentials, load, stop).and_then(|flows| {
            let ups = (0..flows).map(|flow| 2 * flow);
            let senders = match load.direction {
                Direction::Up | Direction::Echo => ups.collect(),
                Direction::Down => ups.map(|leg| leg + 1).collect(),
                Direction::Both => (0..2 * flows).collect(),
            };
            let course = if load.direction == Direction::Echo { Course::Echo } else { Course::OneWay };
            let plan = Plan {
                course,
                senders,
                drive: load.drive,
                burst: load.burst,
                size: load.size.into(),
                times: self.times,
                process,
                tag: rng().random(),
            };
            generator::run(&mut fleet, &plan, stop, progress)
        });
        fleet.release();
        let report = TrafficReport::new("relay", self, load.drive, fleet.segmentation.0, &relayed?);
        Ok(report.of_relay(load))
    }

    /// Does what comes before every load.
    fn begin(&self) -> Result<Option<Process>, LoadError> {
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
        credentials: Credentials,
        load: &RelayLoad,
        stop: &AtomicBool,
    ) -> Result<usize, LoadError> {
        let until = Until { stop, deadline: Some(time::mono() + LONGEST) };
        let login = self.login(credentials);
        let mut rng = rng();
        let flows = match load.peers {
            Peers::Sockets => load.allocations,
            Peers::Clients => load.allocations.div_ceil(2),
        };
        let mut clients = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..flows {
            clients.push(fleet.open(Some((login.clone(), rng.random())))?);
            if load.peers == Peers::Sockets {
                peers.push(fleet.open_peer()?);
            } else {
                clients.push(fleet.open(Some((login.clone(), rng.random())))?);
            }
        }
        fleet.settle(&clients, AT_A_TIME, until, |_, client, now| client.allocate(now), |_| {})?;
        // Each leg's other end, as the server names it.
        let mut others = vec![None; 2 * flows];
        for leg in &clients {
            others[leg ^ 1] = fleet.relayed(*leg);
        }
        for (leg, address) in peers {
            others[leg ^ 1] = Some(address);
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
        fleet.settle(&clients, AT_A_TIME, until, reach, |_| {})?;
        Ok(flows)
    }
}

fn check_drive(drive: Drive) -> Result<(), LoadError> {
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
