//! A load generator for any STUN or TURN server, over UDP and TCP, for ginnel's signalling and for gateways. It uses one thread.
//!
//! [`Load::traffic`], [`Load::search`], [`Load::allocate`], [`Load::signaling`] and [`Load::gateway`] run a load to its end; nothing is printed.
//! Its TURN clients are [`TurnClient`](crate::turn_client::TurnClient)s; [`pacing`] decides when packets are sent; [`packet_stamp`] is what packets carry, so that
//! their receiver can measure them; [`histogram`] stores latencies in fixed memory. Consecutive packets to one destination are sent and received as
//! one (GSO, GRO).

pub(crate) mod credentials;
mod error;
mod framed_tcp;
pub(crate) mod gateway;
mod generator;
pub(crate) mod histogram;
pub(crate) mod outcome;
pub(crate) mod pacing;
pub(crate) mod packet_stamp;
mod packets;
pub mod process;
pub(crate) mod process_share;
pub(crate) mod report;
mod run;
pub(crate) mod search;
pub(crate) mod signaling;
mod socket;
mod socket_set;
pub(crate) mod target;

pub(crate) use credentials::rest_credentials;
pub(crate) use error::LoadError;
pub use gateway::{GatewayLoad, GatewayReport};
pub(crate) use outcome::{AllocationResult, TrafficOutcome};
pub(crate) use pacing::LoadMode;
pub(crate) use process_share::ProcessShare;
pub(crate) use report::{AllocateReport, SearchReport, TrafficReport};
pub use target::{LoadTransport, Target};

use crate::turn_client::LongTermCredentials;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The longest load. A forgotten one ends by itself.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);
/// The largest number of clients.
pub(crate) const MAX_CLIENTS: usize = 250_000;
/// The largest payload. With its headers it fits a datagram.
pub(crate) const MAX_PAYLOAD: u16 = 60_000;
/// The duration of a load.
#[derive(Debug, Clone, Copy)]
pub struct LoadTimes {
    /// Before the measurement; default 1 s.
    pub warm_up: Duration,
    /// Of the measurement; default 10 s.
    pub seconds: Duration,
}

/// The progress of a load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Since the start.
    pub elapsed: Duration,
    /// From the start to the end.
    pub whole: Duration,
    /// Whether the measurement has not begun.
    pub warming_up: bool,
    /// Packets sent during the measurement.
    pub sent: u64,
    /// How many of them have arrived.
    pub received: u64,
}

/// The stage of a load.
#[derive(Debug, Clone)]
pub enum LoadStage {
    /// Clients are being set up.
    SettingUp {
        /// Clients that are ready.
        done: usize,
        /// All clients.
        of: usize,
    },
    /// Setup is complete.
    Ready,
    /// Packets are being sent; reported once a second.
    Traffic(LoadProgress),
    /// A search has tried a rate.
    Tried(Trial),
    /// All allocations were made and not yet released.
    AllocationResult(AllocationResult),
}

/// How the caller controls a running load.
pub struct RunControl<'a> {
    /// Ends it early.
    pub stop: &'a AtomicBool,
    /// If set, the load starts only when this becomes true, after `LoadStage::Ready`.
    pub start: Option<&'a AtomicBool>,
    /// Ends `AllocateLoad::hold` early.
    pub release: &'a AtomicBool,
    /// Called at every stage.
    pub on_stage: &'a mut dyn FnMut(LoadStage),
}

impl RunControl<'_> {
    /// Returns whether the caller has ended the load.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Reports `(sent, received)` so far.
    pub(super) fn report_progress(
        &mut self,
        times: LoadTimes,
        elapsed: Duration,
        warming_up: bool,
        (sent, received): (u64, u64),
    ) {
        let whole = times.warm_up + times.seconds;
        let progress = LoadProgress { elapsed, whole, warming_up, sent, received };
        (self.on_stage)(LoadStage::Traffic(progress));
    }
}

/// One trial of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Packets a second.
    pub rate: u64,
    /// Packets that did not arrive or were not sent, in percent.
    pub loss_percent: f64,
    /// Whether the loss is within the limit.
    pub passed: bool,
    /// Whether the generator could not send at this rate.
    pub left_out: bool,
}

/// The search for the highest rate.
#[derive(Debug, Clone, Copy)]
pub struct SearchLoad {
    /// The loss that is accepted, in percent; default 0.1.
    pub max_loss_percent: f64,
    /// The duration of a trial; default 1 s.
    pub trial: Duration,
}

/// The kind of packets.
#[derive(Debug, Clone)]
pub enum Traffic {
    /// Binding requests.
    Binding {
        /// Sockets that send them.
        sockets: usize,
    },
    /// Payloads through allocations.
    Relay(LongTermCredentials, RelayLoad),
}

/// Settings of every load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub target: Target,
    /// The duration.
    pub times: LoadTimes,
    /// A process whose CPU time and memory are reported, such as the server.
    pub pid: Option<u32>,
    /// The processor to run on; default any.
    pub cpu: Option<usize>,
    /// Whether consecutive packets to one destination are sent as one; default true.
    pub segmentation: bool,
    /// Whether each client and peer has its own socket even on IPv4 loopback, where they can share one; default false.
    pub own_sockets: bool,
}

/// The sender of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayDirection {
    /// Clients, to their peers.
    Up,
    /// Peers, to their clients.
    Down,
    /// Both.
    Both,
    /// Clients; peers return what they receive.
    Echo,
}

/// The kind of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// A socket of this machine for each client.
    Sockets,
    /// Clients of the same server, in pairs.
    Clients,
}

/// A relay load.
#[derive(Debug, Clone)]
pub struct RelayLoad {
    /// Clients with an allocation each; rounded up to an even number where clients are each other's peers.
    pub allocations: usize,
    /// Bytes of each payload, from [`packet_stamp::STAMP_LEN`] to [`MAX_PAYLOAD`].
    pub size: u16,
    /// The senders.
    pub direction: RelayDirection,
    /// Consecutive packets of each sender; default 1.
    pub burst: u32,
    /// Whether Send and Data indications carry the payloads instead of channels.
    pub indications: bool,
    /// The peers.
    pub peers: Peers,
}

/// Settings of [`Load::allocate`].
#[derive(Debug, Clone, Copy)]
pub struct AllocateLoad {
    /// Allocations in all.
    pub count: usize,
    /// Allocate requests in flight.
    pub concurrency: usize,
    /// Whether they are kept for the duration of the load.
    pub hold: bool,
}

impl Traffic {
    /// Returns the share of one process.
    #[must_use]
    pub fn part(&self, part: ProcessShare) -> Self {
        match self {
            Self::Binding { sockets } => Self::Binding { sockets: part.share_of(*sockets) },
            Self::Relay(credentials, load) => {
                let allocations = match load.peers {
                    Peers::Sockets => part.share_of(load.allocations),
                    Peers::Clients => 2 * part.share_of(load.allocations.div_ceil(2)),
                };
                Self::Relay(credentials.clone(), RelayLoad { allocations, ..load.clone() })
            }
        }
    }
}
