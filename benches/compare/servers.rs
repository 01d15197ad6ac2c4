//! Servers of the comparison: started on loopback for one load each, on their own processor.

use super::steps::Step;
use anyhow::{Context, bail};
use ginnel::internals::load::process;
use ginnel::internals::net::time;
use ginnel::stun::{Builder, Class, Method, TransactionId};
use rustix::process::{Resource, getrlimit};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const START: Duration = Duration::from_secs(15);
/// The largest step needs a relay socket for each of 100 000 allocations.
const DESCRIPTORS: u64 = 101_000;
/// Enough relay addresses for the ports of the largest step, 100 000 allocations; coturn has one and does not take part in it.
const RELAY_ADDRESSES: u8 = 4;
const REALM: &str = "compare";
const USER: &str = "load";
const PASSWORD: &str = "compared";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ginnel,
    Coturn,
    Forward,
    ForwardBatched,
    ForwardSegmented,
}

const KINDS: [Kind; 5] =
    [Kind::Ginnel, Kind::Coturn, Kind::Forward, Kind::ForwardBatched, Kind::ForwardSegmented];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ginnel => "ginnel",
            Self::Coturn => "coturn",
            Self::Forward => "forward",
            Self::ForwardBatched => "forward-batched",
            Self::ForwardSegmented => "forward-segmented",
        }
    }
}

/// Returns the servers with these names, or all; prints a note if coturn is missing.
pub(super) fn of(names: &[String]) -> anyhow::Result<Vec<Kind>> {
    if let Some(unknown) = names.iter().find(|name| !KINDS.iter().any(|kind| kind.name() == **name)) {
        bail!("--servers {unknown}: unknown server");
    }
    let mut kinds: Vec<_> = KINDS.to_vec();
    kinds.retain(|kind| names.is_empty() || names.iter().any(|name| kind.name() == name));
    let has_coturn = Command::new("turnserver")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if kinds.contains(&Kind::Coturn) && !has_coturn {
        super::print_note(
            "skipped: coturn is not installed (Debian: apt-get install coturn), so there are no ratios to it",
        );
        kinds.retain(|kind| *kind != Kind::Coturn);
    }
    Ok(kinds)
}

/// Settings of all measurements.
pub(super) struct Bench {
    ginnel: PathBuf,
    server_cpu: usize,
    generator_cpu: usize,
    folder: TempDir,
}

/// A server that runs until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    pub(super) fn new(ginnel: PathBuf, server_cpu: usize, generator_cpu: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("password"), PASSWORD)?;
        Ok(Self { ginnel, server_cpu, generator_cpu, folder })
    }

    /// Starts a server, runs the step's load, and returns the report.
    pub(super) fn measure(&self, kind: Kind, step: &Step, seconds: u64) -> anyhow::Result<Value> {
        let most = getrlimit(Resource::Nofile).maximum;
        if step.group == "large" && most.is_some_and(|most| most < DESCRIPTORS) {
            bail!("the server needs {DESCRIPTORS} descriptors, more than the hard limit (ulimit -Hn) allows");
        }
        let address = free_address()?;
        let server = self.start(kind, address, step)?;
        let mut load = Command::new(&self.ginnel);
        load.arg("load").args(step.load.split(' ')).args(["--json", "--server", &address.to_string()]);
        load.args(["--pid", &server.0.id().to_string(), "--cpu", &self.generator_cpu.to_string()]);
        load.args(["--seconds", &seconds.to_string(), "--warm-up", "1"]);
        if step.group != "binding" {
            load.args(["--user", USER, "--password-file"]).arg(self.folder.path().join("password"));
        }
        process::pin(self.generator_cpu).context("--generator-cpu")?;
        let output = load.output()?;
        if output.stdout.is_empty() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn start(&self, kind: Kind, address: SocketAddr, step: &Step) -> anyhow::Result<Server> {
        let mut command = match kind {
            Kind::Ginnel => self.ginnel(address, if step.group == "large" { RELAY_ADDRESSES } else { 1 })?,
            Kind::Coturn => coturn(address, self.folder.path()),
            Kind::Forward => forwarder("plain", address)?,
            Kind::ForwardBatched => forwarder("batched", address)?,
            Kind::ForwardSegmented => forwarder("segmented", address)?,
        };
        let log = File::create(self.folder.path().join("log"))?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        // A child process inherits the processor of the thread that starts it.
        process::pin(self.server_cpu).context("--server-cpu")?;
        let server = command.spawn().with_context(|| kind.name().to_owned())?;
        let mut server = Server(server);
        await_answer(address, &mut server.0).with_context(|| {
            format!(
                "{}: {}",
                kind.name(),
                fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            )
        })?;
        Ok(server)
    }

    fn ginnel(&self, address: SocketAddr, relay_addresses: u8) -> anyhow::Result<Command> {
        let config = self.folder.path().join("ginnel.toml");
        let relays: Vec<_> = (1..=relay_addresses).map(|n| format!("\"127.0.0.{n}\"")).collect();
        let text = format!(
            "state = {state:?}\nlisten = [\"{ip}\"]\npublic = [\"{ip}\"]\nport = {port}\nworkers = 1\n\
             [tls]\nport = 0\n[limits]\nconnections_per_address = 20000\n[log]\nlevel = \"warn\"\n\
             [turn]\nrealm = \"{REALM}\"\nusers = {{ {USER} = \"{PASSWORD}\" }}\nallow_peers = [\"127.0.0.0/8\"]\n\
             relay_ports = \"20000-65000\"\nrelay_addresses = [{relays}]\nallocations_per_user = 200000\nmax_allocations = 200000\n\
             bandwidth_per_allocation = 10000000000\nbandwidth_per_user = 10000000000\nnew_peers_per_user = 0\n",
            state = self.folder.path().join("state"),
            ip = address.ip(),
            port = address.port(),
            relays = relays.join(", "),
        );
        fs::write(&config, text)?;
        let mut command = Command::new(&self.ginnel);
        command.args(["serve", "--config"]).arg(config);
        Ok(command)
    }
}

fn coturn(address: SocketAddr, folder: &Path) -> Command {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new("turnserver");
    command.args(["-n", "--lt-cred-mech", "--user", &format!("{USER}:{PASSWORD}"), "--realm", REALM]);
    command.args([
        "--listening-ip",
        &ip,
        "--relay-ip",
        &ip,
        "--listening-port",
        &port,
        "--relay-threads",
        "1",
    ]);
    command.args(["--no-tls", "--no-dtls", "--no-cli", "--allow-loopback-peers", "--log-file", "stdout"]);
    command.args(["--min-port", "20000", "--max-port", "65000", "--no-rfc5780"]);
    command.arg("--userdb").arg(folder.join("users")).arg("--pidfile").arg(folder.join("pid"));
    command
}

fn forwarder(mode: &str, address: SocketAddr) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--forward", mode, &address.to_string()]);
    Ok(command)
}

/// Finds a port that is free for UDP and TCP, below the relay ports.
fn free_address() -> anyhow::Result<SocketAddr> {
    let candidates = (10_000..20_000).step_by(17).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let is_free =
        |address: &SocketAddr| UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok();
    candidates.into_iter().find(is_free).context("no port is free")
}

fn await_answer(address: SocketAddr, server: &mut Child) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let request = Builder::new(Class::Request, Method::BINDING, TransactionId::new([7; 12])).finish();
    let deadline = time::mono() + START;
    while time::mono() < deadline {
        socket.send_to(&request, address)?;
        if socket.recv(&mut [0; 1500]).is_ok() {
            return Ok(());
        }
        if let Some(status) = server.try_wait()? {
            bail!("the process ended: {status}");
        }
    }
    bail!("the process does not answer")
}
