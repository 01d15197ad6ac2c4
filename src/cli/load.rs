//! `ginnel load`: from the command line to a load, and its report as a table or as JSON.

use super::serve::raise_descriptor_limit;
use crate::load::{
    AllocateLoad, AllocateReport, Credentials, Direction, Drive, Load, Peers, Progress, RelayLoad, Target,
    Times, TrafficReport, Transport,
};
use crate::net::time;
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long credentials made of a REST secret are good: longer than any load.
const REST_SECONDS: u64 = 2 * 3600;
/// Packets kept under way where nothing else is said.
const WINDOW: u32 = 64;

/// What `ginnel load` can do.
#[derive(Debug, Subcommand)]
pub enum LoadCommand {
    /// Ask for one's own address (STUN Binding)
    Binding(Binding),
    /// Make allocations, and give them back
    Allocate(Allocate),
    /// Relay packets through allocations
    Relay(Relay),
}

/// Options of `ginnel load binding`.
#[derive(Debug, Args)]
pub struct Binding {
    /// Sockets that ask
    #[arg(long, default_value_t = 16)]
    sockets: usize,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    common: Common,
}

/// Options of `ginnel load allocate`.
#[derive(Debug, Args)]
pub struct Allocate {
    /// Allocations in all
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// How many are asked for at a time
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Keep them until --seconds are over
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    login: Login,
    #[command(flatten)]
    common: Common,
}

/// Options of `ginnel load relay`.
#[derive(Debug, Args)]
pub struct Relay {
    /// Clients with an allocation each
    #[arg(long, default_value_t = 10)]
    allocations: usize,
    /// Bytes of each payload, at least 12
    #[arg(long, default_value_t = 172)]
    size: u16,
    /// Who sends
    #[arg(long, value_enum, default_value_t = DirectionArg::Both)]
    direction: DirectionArg,
    /// Packets in a row from each sender
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Send and Data indications in place of channels
    #[arg(long)]
    indications: bool,
    /// Who the peers are: sockets of this machine, or other clients of the server
    #[arg(long, value_enum, default_value_t = PeersArg::Sockets)]
    peers: PeersArg,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    login: Login,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct DriveArgs {
    /// Packets a second, over all sockets and directions
    #[arg(long, conflicts_with = "window")]
    rate: Option<u64>,
    /// Packets kept under way: as fast as they arrive [default: 64]
    #[arg(long)]
    window: Option<u32>,
}

#[derive(Debug, Args)]
struct Login {
    /// User name; with --rest-secret-file the part behind the expiry
    #[arg(long)]
    user: String,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Environment variable that holds the password
    #[arg(long, value_name = "NAME", conflicts_with = "password_file")]
    password_env: Option<String>,
    /// File whose first line is the shared secret of time-limited credentials
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_file", "password_env"])]
    rest_secret_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Common {
    /// The server
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// How clients reach the server
    #[arg(long, value_enum, default_value_t = TransportArg::Udp)]
    transport: TransportArg,
    /// How long it is measured; at most 3600 with the warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds before anything is measured
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Report the CPU time of this process, such as the server's
    #[arg(long)]
    pid: Option<u32>,
    /// Run on this processor alone
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Send packet by packet where several for one destination could leave as one
    #[arg(long)]
    no_gso: bool,
    /// A socket for every client and peer, also where the server is on IPv4 loopback and many could share one
    #[arg(long)]
    own_sockets: bool,
    /// Exit with 1 if more packets than this were lost
    #[arg(long, value_name = "PERCENT")]
    max_loss: Option<f64>,
    /// Report as a JSON object
    #[arg(long)]
    json: bool,
    /// Yes, this server may be put under load although it is neither on this host nor in a private network
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportArg {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DirectionArg {
    /// Clients to peers
    Up,
    /// Peers to clients
    Down,
    /// Both
    Both,
    /// Clients to peers, who send it back
    Echo,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PeersArg {
    Sockets,
    Clients,
}

impl LoadCommand {
    /// Runs the load and prints its report.
    ///
    /// # Errors
    /// What failed, and what to do about it; also when nothing arrived, or more was lost than `--max-loss`.
    pub fn run(self) -> anyhow::Result<()> {
        let common = match &self {
            Self::Binding(binding) => &binding.common,
            Self::Allocate(allocate) => &allocate.common,
            Self::Relay(relay) => &relay.common,
        };
        let load = common.load()?;
        raise_descriptor_limit();
        let stop = stop_on_signals()?;
        let mut line = ProgressLine { on_terminal: io::stderr().is_terminal() };
        let mut progress = |progress: Progress| line.show(&progress);
        match &self {
            Self::Binding(binding) => {
                let report = load.binding(binding.sockets, binding.drive.drive(), &stop, &mut progress);
                line.clear();
                finish(&report?, common)
            }
            Self::Allocate(Allocate { count, concurrency, hold, login, .. }) => {
                let what = AllocateLoad { count: *count, concurrency: *concurrency, hold: *hold };
                let report = load.allocate(login.credentials()?, what, &stop)?;
                print(common.json, &report, &allocate_table(&report))
            }
            Self::Relay(relay) => {
                let report = load.relay(relay.login.credentials()?, &relay.what(), &stop, &mut progress);
                line.clear();
                finish(&report?, common)
            }
        }
    }
}

impl Common {
    fn load(&self) -> anyhow::Result<Load> {
        let named = || format!("--server {}", self.server);
        let mut addresses = self.server.to_socket_addrs().with_context(named)?;
        let address = addresses.next().with_context(named)?;
        let transport = match self.transport {
            TransportArg::Udp => Transport::Udp,
            TransportArg::Tcp => Transport::Tcp,
        };
        let target = match Target::new(address, transport, self.yes) {
            Ok(target) => target,
            Err(error) => {
                bail!("{error}; nothing was sent. If you may do that to it, type the same with --yes")
            }
        };
        let seconds = |count| Duration::from_secs(count);
        Ok(Load {
            target,
            times: Times {
                warm_up: seconds(self.warm_up.min(10_000)),
                seconds: seconds(self.seconds.min(10_000)),
            },
            pid: self.pid,
            cpu: self.cpu,
            segmentation: !self.no_gso,
            own_sockets: self.own_sockets,
        })
    }
}

impl DriveArgs {
    fn drive(&self) -> Drive {
        self.rate.map_or(Drive::Window(self.window.unwrap_or(WINDOW)), Drive::Rate)
    }
}

impl Login {
    fn credentials(&self) -> anyhow::Result<Credentials> {
        let first_line = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let line = text.lines().next().unwrap_or_default().to_owned();
            if line.is_empty() {
                bail!("{}: its first line is empty", file.display());
            }
            Ok(line)
        };
        if let Some(file) = &self.rest_secret_file {
            let expires = time::now().unix + REST_SECONDS;
            return Ok(Credentials::rest(&self.user, first_line(file)?.as_bytes(), expires));
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
        Ok(Credentials::new(&self.user, &password))
    }
}

impl Relay {
    fn what(&self) -> RelayLoad {
        RelayLoad {
            allocations: self.allocations,
            size: self.size,
            direction: match self.direction {
                DirectionArg::Up => Direction::Up,
                DirectionArg::Down => Direction::Down,
                DirectionArg::Both => Direction::Both,
                DirectionArg::Echo => Direction::Echo,
            },
            drive: self.drive.drive(),
            burst: self.burst,
            indications: self.indications,
            peers: match self.peers {
                PeersArg::Sockets => Peers::Sockets,
                PeersArg::Clients => Peers::Clients,
            },
        }
    }
}

/// Returns what turns true at the first Ctrl-C or SIGTERM, so that allocations are given back; the second one ends at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
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
                told.store(true, Ordering::Relaxed);
                if let Some(code) = code {
                    exit(code);
                }
            }
        });
    });
    Ok(stop)
}

#[expect(clippy::disallowed_methods, reason = "the second signal ends the program where it stands")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

struct ProgressLine {
    on_terminal: bool,
}

impl ProgressLine {
    fn show(&mut self, progress: &Progress) {
        if !self.on_terminal {
            return;
        }
        let Progress { elapsed, whole, warming_up, sent, received } = *progress;
        let what = match warming_up {
            true => "warming up".to_owned(),
            false => format!("{sent} sent, {received} received"),
        };
        let _ = write!(io::stderr(), "\r\x1b[K{} of {} s: {what}", elapsed.as_secs(), whole.as_secs());
    }

    fn clear(&mut self) {
        if self.on_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Prints the report, and fails if it tells of a failure.
fn finish(report: &TrafficReport, common: &Common) -> anyhow::Result<()> {
    print(common.json, report, &traffic_table(report))?;
    if report.received == 0 {
        bail!(
            "nothing of {} packets arrived{}",
            report.sent,
            if report.refused > 0 { ": the server answered with errors" } else { "" }
        );
    }
    if report.misdelivered > 0 {
        bail!("{} packets arrived where they do not belong", report.misdelivered);
    }
    match common.max_loss {
        Some(most) if report.loss_percent > most => {
            bail!("{:.3} % lost, more than --max-loss {most}", report.loss_percent)
        }
        _ => Ok(()),
    }
}

fn print(json: bool, report: &impl serde::Serialize, table: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(report)?)?,
        false => out.write_all(table.as_bytes())?,
    }
    Ok(out.flush()?)
}

fn traffic_table(report: &TrafficReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("server", format!("{} by {}", report.server, report.transport));
    if let Some(relayed) = &report.relayed {
        let bursts = if relayed.burst > 1 { format!(", bursts of {}", relayed.burst) } else { String::new() };
        line(
            "load",
            format!(
                "{} allocations, {} bytes {} by {}, peers: {}{bursts}",
                relayed.allocations, relayed.size, relayed.direction, relayed.by, relayed.peers
            ),
        );
    }
    let megabits = match report.relayed {
        Some(_) => format!(" · {:.1} Mbit/s", report.bits_per_second / 1e6),
        None => String::new(),
    };
    line(
        "arrived",
        format!("{:.0} packets/s over {:.1} s{megabits}", report.packets_per_second, report.seconds),
    );
    line("lost", format!("{} of {} ({:.3} %)", report.lost, report.sent, report.loss_percent));
    let latency = report.latency_us;
    line(
        "latency",
        format!(
            "p50 {:.0} · p99 {:.0} · p99.9 {:.0} · longest {:.0} µs",
            latency.p50, latency.p99, latency.p999, latency.max
        ),
    );
    if let Some(cpu) = report.server_cpu {
        line(
            "server CPU",
            format!("{:.2} µs a packet, {:.0} % of a processor", cpu.us_each, cpu.share * 100.0),
        );
    }
    let own = report.own_cpu;
    line("own CPU", format!("{:.2} µs a packet, {:.0} % of a processor", own.us_each, own.share * 100.0));
    for (count, what) in [
        (report.misdelivered, "packets arrived where they do not belong"),
        (report.refused, "error responses"),
        (report.held_back, "packets were held back: the kernel's buffers were full"),
        (report.left_out, "packets were left out: this machine could not send them in time"),
    ] {
        if count > 0 {
            line("caution", format!("{count} {what}"));
        }
    }
    text
}

fn allocate_table(report: &AllocateReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("server", format!("{} by {}", report.server, report.transport));
    let AllocateReport { allocations, concurrency, seconds, .. } = report;
    let rate = report.allocations_per_second;
    line(
        "allocated",
        format!("{allocations} in {seconds:.3} s, {concurrency} at a time: {rate:.0} a second"),
    );
    let latency = report.latency_us;
    line(
        "latency",
        format!(
            "p50 {:.0} · p99 {:.0} · p99.9 {:.0} · longest {:.0} µs",
            latency.p50, latency.p99, latency.p999, latency.max
        ),
    );
    if let Some(cpu) = report.server_cpu {
        line("server CPU", format!("{:.1} µs each", cpu.us_each));
    }
    if let Some(bytes) = report.server_bytes_each {
        line("memory", format!("{bytes:.0} bytes each"));
    }
    text
}
