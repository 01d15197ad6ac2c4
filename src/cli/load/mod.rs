//! `ginnel load`: runs a load, and prints its report as a table or as JSON.

mod basics;
mod gateway;
mod processes;
mod report;
mod signaling;

use crate::cli::serve::raise_descriptor_limit;
use crate::load::{
    AllocateLoad, AllocateReport, LONGEST, Load, LoadMode, LoadStage, LoadTimes, LoadTransport, Peers,
    ProcessShare, RelayDirection, RelayLoad, RunControl, SearchLoad, Traffic, TrafficReport,
    rest_credentials,
};
use crate::net::time;
use crate::turn_client::LongTermCredentials;
use anyhow::{Context, bail};
use basics::Basics;
use clap::{Args, Subcommand, ValueEnum};
use gateway::GatewayLoadArgs;
use processes::ChildMessage;
use report::{Ending, allocate_table, finish_search, finish_traffic, print};
use signaling::SignalingLoadArgs;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The lifetime of minted credentials; it exceeds every load.
const CREDENTIALS_LIFETIME: u64 = 2 * 3600;
/// The default window in packets.
const DEFAULT_WINDOW: u32 = 64;

/// Commands of `ginnel load`.
#[derive(Debug, Subcommand)]
pub(super) enum LoadCommand {
    /// Send STUN Binding requests
    Binding(BindingArgs),
    /// Make allocations and release them
    Allocate(AllocateArgs),
    /// Relay packets through allocations
    Relay(RelayArgs),
    /// Register clients with ginnel's signalling, and make calls between them
    Signaling(SignalingLoadArgs),
    /// Connect clients and servers to a gateway, and send messages between them
    Gateway(GatewayLoadArgs),
}

/// Options of `ginnel load binding`.
#[derive(Debug, Args)]
pub(super) struct BindingArgs {
    /// Sockets that send requests
    #[arg(long, default_value_t = 16)]
    sockets: usize,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    common: PacketLoadArgs,
}

/// Options of `ginnel load allocate`.
#[derive(Debug, Args)]
pub(super) struct AllocateArgs {
    /// Number of allocations
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Requests in flight
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Keep the allocations until --seconds are over
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    login: CredentialsArgs,
    #[command(flatten)]
    common: PacketLoadArgs,
}

/// Options of `ginnel load relay`.
#[derive(Debug, Args)]
pub(super) struct RelayArgs {
    /// Clients with an allocation each
    #[arg(long, default_value_t = 10)]
    allocations: usize,
    /// Bytes of each payload, at least 12
    #[arg(long, default_value_t = 172)]
    size: u16,
    /// The senders
    #[arg(long, value_enum, default_value_t = RelayDirectionArg::Both)]
    direction: RelayDirectionArg,
    /// Consecutive packets of each sender
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Use Send and Data indications instead of channels
    #[arg(long)]
    indications: bool,
    /// The peers: sockets of this machine, or other clients of the server
    #[arg(long, value_enum, default_value_t = PeersArg::Sockets)]
    peers: PeersArg,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    login: CredentialsArgs,
    #[command(flatten)]
    common: PacketLoadArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rate")]
struct ModeArgs {
    /// Packets per second, over all sockets and directions
    #[arg(long, conflicts_with = "window")]
    rate: Option<u64>,
    /// Packets in flight; each arrival allows the next packet [default: 64]
    #[arg(long)]
    window: Option<u32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rate")]
struct SearchArgs {
    /// Search the highest rate with at most this loss in percent [default: 0.1], then measure at half of it
    #[arg(
        long,
        value_name = "PERCENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0.1",
        conflicts_with_all = ["rate", "window", "processes"]
    )]
    search: Option<f64>,
    /// Seconds per trial of --search
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    trial: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Credentials")]
struct CredentialsArgs {
    /// User name; with --rest-secret-file the part after the expiry time
    #[arg(long)]
    user: String,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Environment variable that contains the password
    #[arg(long, value_name = "NAME", conflicts_with = "password_file")]
    password_env: Option<String>,
    /// File whose first line is the shared secret of minted credentials
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_file", "password_env"])]
    rest_secret_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Server and measurement")]
struct PacketLoadArgs {
    #[command(flatten)]
    basics: Basics,
    /// The transport between clients and server
    #[arg(long, value_enum, default_value_t = TransportArg::Udp)]
    transport: TransportArg,
    /// Send packets one by one, without GSO
    #[arg(long)]
    no_gso: bool,
    /// Split the load over this many processes
    #[arg(long, value_name = "N", default_value_t = 1)]
    processes: usize,
    /// The share of a child process
    #[arg(long, hide = true, value_parser = part)]
    part: Option<ProcessShare>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportArg {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RelayDirectionArg {
    /// Clients to peers
    Up,
    /// Peers to clients
    Down,
    /// Both
    Both,
    /// Clients to peers, which send it back
    Echo,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PeersArg {
    Sockets,
    Clients,
}

fn part(text: &str) -> Result<ProcessShare, String> {
    ProcessShare::read(text).ok_or_else(|| "not INDEX/OF".to_owned())
}

/// The parameters of a packet load.
struct PacketLoad<'a> {
    traffic: Traffic,
    mode: LoadMode,
    search: &'a SearchArgs,
}

impl LoadCommand {
    /// Runs the load and prints its report.
    ///
    /// # Errors
    /// The error of the load; or no packet arrived, or more than `--max-loss` were lost.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let common = match &self {
            Self::Binding(binding) => &binding.common,
            Self::Allocate(allocate) => &allocate.common,
            Self::Relay(relay) => &relay.common,
            Self::Signaling(signaling) => return signaling.run(),
            Self::Gateway(gateway) => return gateway.run(),
        };
        match common.part {
            Some(part) => processes::run_as_child(|control| {
                raise_descriptor_limit();
                self.run_part(common, part, control)
            }),
            None => self.run_whole(common),
        }
    }

    fn run_whole(&self, common: &PacketLoadArgs) -> anyhow::Result<()> {
        self.check_processes(common)?;
        let load = common.load()?;
        raise_descriptor_limit();
        let stop = stop_on_signals()?;
        let mut line = ProgressLine::new();
        let ending = Ending { json: common.basics.json, max_loss: common.basics.max_loss };
        let one = common.processes == 1;
        if let Self::Allocate(allocate) = self {
            let (what, credentials) = (allocate.what(), allocate.login.credentials()?);
            let made = if one {
                with_control(&stop, &mut line, |control| load.allocate(credentials, what, control))?
            } else {
                let hold = if what.hold { load.times.seconds } else { Duration::ZERO };
                processes::allocate(common.processes, load.pid, hold, &stop, &mut |stage| line.show(&stage))?
            };
            line.clear();
            let report = AllocateReport::new(&load, what, common.processes, &made);
            return print(common.basics.json, &report, &allocate_table(&report));
        }
        let PacketLoad { traffic, mode, search } = self.packets()?;
        if let Some(max_loss_percent) = search.search {
            let trial = Duration::try_from_secs_f64(search.trial).unwrap_or_default();
            let search = SearchLoad { max_loss_percent, trial };
            let report = with_control(&stop, &mut line, |control| load.search(&traffic, search, control));
            line.clear();
            return finish_search(&report?, common.basics.json);
        }
        let outcome = if one {
            with_control(&stop, &mut line, |control| load.traffic(&traffic, mode, control))
                .map_err(Into::into)
        } else {
            processes::traffic(common.processes, &stop, &mut |stage| line.show(&stage))
        };
        line.clear();
        finish_traffic(&TrafficReport::new(&load, &traffic, mode, common.processes, &outcome?), ending)
    }

    /// Runs one share of a load as a child process.
    fn run_part(
        &self,
        common: &PacketLoadArgs,
        part: ProcessShare,
        control: processes::ChildControl<'_>,
    ) -> anyhow::Result<ChildMessage> {
        let mut load = common.load()?;
        load.pid = load.pid.filter(|_| part.index == 0);
        let mut on_stage = |stage: LoadStage| processes::report_stage(&stage);
        let processes::ChildControl { stop, start, release } = control;
        let mut control = RunControl { stop, start: Some(start), release, on_stage: &mut on_stage };
        match self {
            Self::Allocate(allocate) => {
                let what = allocate.what();
                let what = AllocateLoad {
                    count: part.share_of(what.count),
                    concurrency: part.share_of(what.concurrency).max(1),
                    hold: true,
                };
                load.pid = None;
                load.times = LoadTimes { warm_up: Duration::ZERO, seconds: LONGEST };
                load.allocate(allocate.login.credentials()?, what, &mut control)?;
                Ok(ChildMessage::Released)
            }
            _ => {
                let PacketLoad { traffic, mode, .. } = self.packets()?;
                Ok(ChildMessage::TrafficOutcome(load.traffic(
                    &traffic.part(part),
                    mode.part(part),
                    &mut control,
                )?))
            }
        }
    }

    fn packets(&self) -> anyhow::Result<PacketLoad<'_>> {
        match self {
            Self::Binding(BindingArgs { sockets, mode, search, .. }) => {
                let traffic = Traffic::Binding { sockets: *sockets };
                Ok(PacketLoad { traffic, mode: mode.mode(), search })
            }
            Self::Relay(relay) => {
                let traffic = Traffic::Relay(relay.login.credentials()?, relay.what());
                Ok(PacketLoad { traffic, mode: relay.mode.mode(), search: &relay.search })
            }
            Self::Allocate(_) | Self::Signaling(_) | Self::Gateway(_) => bail!("this load sends no packets"),
        }
    }

    fn check_processes(&self, common: &PacketLoadArgs) -> anyhow::Result<()> {
        let (what, count) = match self {
            Self::Binding(binding) => ("--sockets", binding.sockets),
            Self::Allocate(allocate) => ("--count", allocate.count),
            Self::Relay(relay) => ("half of --allocations", relay.allocations / 2),
            Self::Signaling(_) | Self::Gateway(_) => return Ok(()),
        };
        match common.processes {
            1 => Ok(()),
            0 | 65.. => bail!("--processes must be 1 to 64"),
            processes if processes > count => bail!("--processes must be at most {what}, which is {count}"),
            _ => Ok(()),
        }
    }
}

/// Runs `act` in this process.
pub(super) fn with_control<T>(
    stop: &AtomicBool,
    line: &mut ProgressLine,
    act: impl FnOnce(&mut RunControl<'_>) -> Result<T, crate::load::LoadError>,
) -> Result<T, crate::load::LoadError> {
    let mut on_stage = |stage: LoadStage| line.show(&stage);
    let outcome = act(&mut RunControl { stop, start: None, release: stop, on_stage: &mut on_stage });
    line.clear();
    outcome
}

impl PacketLoadArgs {
    fn load(&self) -> anyhow::Result<Load> {
        let transport = match self.transport {
            TransportArg::Udp => LoadTransport::Udp,
            TransportArg::Tcp => LoadTransport::Tcp,
        };
        Ok(Load { segmentation: !self.no_gso, ..self.basics.load(transport)? })
    }
}

impl ModeArgs {
    fn mode(&self) -> LoadMode {
        self.rate.map_or(LoadMode::Window(self.window.unwrap_or(DEFAULT_WINDOW)), LoadMode::Rate)
    }
}

impl CredentialsArgs {
    fn credentials(&self) -> anyhow::Result<LongTermCredentials> {
        let first_line = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let line = text.lines().next().unwrap_or_default().to_owned();
            if line.is_empty() {
                bail!("{}: its first line is empty", file.display());
            }
            Ok(line)
        };
        if let Some(file) = &self.rest_secret_file {
            let expires = time::now().unix + CREDENTIALS_LIFETIME;
            return Ok(rest_credentials(&self.user, first_line(file)?.as_bytes(), expires));
        }
        let password = match (&self.password_file, &self.password_env) {
            (Some(file), _) => first_line(file)?,
            (None, Some(name)) => std::env::var_os(name)
                .and_then(|value| value.into_string().ok())
                .filter(|value| !value.is_empty())
                .with_context(|| format!("--password-env {name}: not set, or empty"))?,
            (None, None) => {
                bail!("no password: add --password-file FILE, --password-env NAME or --rest-secret-file FILE")
            }
        };
        Ok(LongTermCredentials::new(&self.user, &password))
    }
}

impl AllocateArgs {
    fn what(&self) -> AllocateLoad {
        AllocateLoad { count: self.count, concurrency: self.concurrency, hold: self.hold }
    }
}

impl RelayArgs {
    fn what(&self) -> RelayLoad {
        RelayLoad {
            allocations: self.allocations,
            size: self.size,
            direction: match self.direction {
                RelayDirectionArg::Up => RelayDirection::Up,
                RelayDirectionArg::Down => RelayDirection::Down,
                RelayDirectionArg::Both => RelayDirection::Both,
                RelayDirectionArg::Echo => RelayDirection::Echo,
            },
            burst: self.burst,
            indications: self.indications,
            peers: match self.peers {
                PeersArg::Sockets => Peers::Sockets,
                PeersArg::Clients => Peers::Clients,
            },
        }
    }
}

/// Returns a flag that the first Ctrl-C or SIGTERM sets, so that allocations are released. The second one ends the program.
pub(super) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return };
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            for code in [None, Some(130)] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                on_signal.store(true, Ordering::Relaxed);
                if let Some(code) = code {
                    exit(code);
                }
            }
        });
    });
    Ok(stop)
}

#[expect(clippy::disallowed_methods, reason = "the second signal ends the program at once")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

pub(super) struct ProgressLine {
    on_terminal: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        Self { on_terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, stage: &LoadStage) {
        if !self.on_terminal {
            return;
        }
        let text = match stage {
            LoadStage::Ready | LoadStage::AllocationResult(_) => return,
            LoadStage::SettingUp { done, of } => format!("set up: {done} of {of} steps"),
            LoadStage::Tried(trial) => format!("{} packets/s: {:.3} % lost", trial.rate, trial.loss_percent),
            LoadStage::Traffic(progress) if progress.warming_up => {
                format!("{} of {} s: warming up", progress.elapsed.as_secs(), progress.whole.as_secs())
            }
            LoadStage::Traffic(progress) => format!(
                "{} of {} s: {} sent, {} received",
                progress.elapsed.as_secs(),
                progress.whole.as_secs(),
                progress.sent,
                progress.received
            ),
        };
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
    }

    pub(super) fn clear(&mut self) {
        if self.on_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
