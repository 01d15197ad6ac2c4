//! A load generator and test client for any STUN or TURN server, over UDP and TCP, for our signalling and for gateways; on one
//! thread.
//!
//! [`Load::traffic`], [`Load::search`], [`Load::allocate`], [`Load::signaling`] and [`Load::gateway`] run a load to its end; nothing is printed.
//! [`turn_client::TurnClient`] is a TURN client without sockets, [`pacing`] says when packets leave, [`packet_stamp`] what they carry so that their
//! arrival is worth something, [`histogram`] keeps latencies in fixed memory. Sends of several packets to one destination leave as
//! one (GSO), and runs that arrive together are taken as one (GRO).

pub(crate) mod credentials;
mod error;
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
pub(crate) mod request_error;
mod run;
pub(crate) mod search;
pub(crate) mod signaling;
mod socket;
mod socket_set;
pub(crate) mod target;
pub(crate) mod turn_client;

pub(crate) use credentials::LoadCredentials;
pub(crate) use error::LoadError;
pub use gateway::{GatewayLoad, GatewayReport};
pub(crate) use outcome::{AllocationResult, TrafficOutcome};
pub(crate) use pacing::LoadMode;
pub(crate) use process_share::ProcessShare;
pub(crate) use report::{AllocateReport, SearchReport, TrafficReport};
pub use target::{LoadTransport, Target};

use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The longest load: what one has started and forgotten ends by itself.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);
/// The most clients of a load.
pub(crate) const MOST_CLIENTS: usize = 250_000;
/// The largest payload; what goes around it still fits a datagram.
pub(crate) const LARGEST: u16 = 60_000;
/// How long a load takes.
#[derive(Debug, Clone, Copy)]
pub struct LoadTimes {
    /// Before anything is measured; default 1 s.
    pub warm_up: Duration,
    /// While it is measured; default 10 s.
    pub seconds: Duration,
}

/// How a load is going.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Since its beginning.
    pub elapsed: Duration,
    /// WaitLimit its end.
    pub whole: Duration,
    /// Whether it is not yet measured.
    pub warming_up: bool,
    /// Packets sent while measured.
    pub sent: u64,
    /// How many of them have arrived.
    pub received: u64,
}

/// Where a load has got to.
#[derive(Debug, Clone)]
pub enum LoadStage {
    /// So many clients have what they need.
    SettingUp {
        /// How many.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// It may begin.
    Ready,
    /// Packets are under way; told once a second.
    Traffic(LoadProgress),
    /// A search has tried a rate.
    Tried(Trial),
    /// All allocations are there, and not yet given back.
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
    /// Is called at every stage.
    pub on_stage: &'a mut dyn FnMut(LoadStage),
}

/// One trial of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Packets a second.
    pub rate: u64,
    /// What of them has not arrived or could not even leave.
    pub loss_percent: f64,
    /// Whether that is little enough.
    pub borne: bool,
    /// Whether the generator could not send so much.
    pub left_out: bool,
}

/// How a highest rate is looked for.
#[derive(Debug, Clone, Copy)]
pub struct SearchLoad {
    /// What may be lost; default 0.1.
    pub max_loss_percent: f64,
    /// How long each trial takes; default 1 s.
    pub trial: Duration,
}

/// Packets of which kind.
#[derive(Debug, Clone)]
pub enum Traffic {
    /// Binding requests.
    Binding {
        /// From so many sockets.
        sockets: usize,
    },
    /// Payloads through allocations.
    Relay(LoadCredentials, RelayLoad),
}

/// What all loads have in common.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub target: Target,
    /// How long.
    pub times: LoadTimes,
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
pub enum RelayDirection {
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

/// What a relay load sends.
#[derive(Debug, Clone)]
pub struct RelayLoad {
    /// Clients with an allocation each; made even where they are each other's peers.
    pub allocations: usize,
    /// Bytes of each payload, from [`packet_stamp::STAMP_LEN`] to [`LARGEST`].
    pub size: u16,
    /// Who sends.
    pub direction: RelayDirection,
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

impl Traffic {
    /// Returns what one part of the load's processes does.
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
