//! The programs that are compared: each sends the same bytes from one host to the other.

use super::network::{HOSTS, Network, SERVER};
use anyhow::{Context, bail};
use ginnel::internals::net::time;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START: Duration = Duration::from_secs(20);
const CHUNK: usize = 128 << 10;
const QUIC_PORT: u16 = 4433;
const SERVER_PORT: u16 = 3478;
/// Ticks of `/proc/PID/stat` a second.
const TICKS: f64 = 100.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Iperf3,
    Quinn,
    /// Two processes with the library's connection and nothing else.
    Library,
    Agent,
    /// A direct path through the server's host, as long as the relay's.
    AgentRouted,
    AgentRelayed,
    WebRtc,
    WebRtcRelayed,
}

/// All of them, in the order of the table.
pub(super) const PROGRAMS: [Program; 8] = [
    Program::Iperf3,
    Program::Quinn,
    Program::Library,
    Program::Agent,
    Program::AgentRouted,
    Program::AgentRelayed,
    Program::WebRtc,
    Program::WebRtcRelayed,
];

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iperf3 => "iperf3",
            Self::Quinn => "quinn",
            Self::Library => "library",
            Self::Agent => "agent",
            Self::AgentRouted => "agent-routed",
            Self::AgentRelayed => "agent-relayed",
            Self::WebRtc => "webrtc",
            Self::WebRtcRelayed => "webrtc-relayed",
        }
    }

    pub(super) fn is_relayed(self) -> bool {
        matches!(self, Self::AgentRelayed | Self::WebRtcRelayed)
    }

    /// Whether it is measured on a path through the server's host.
    pub(super) fn is_routed(self) -> bool {
        self == Self::AgentRouted || self.is_relayed()
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Agent | Self::AgentRouted => &["--no-relay"],
            Self::AgentRelayed => &["--relay-only"],
            Self::WebRtc => &["--no-relay", "--ice", "webrtc"],
            Self::WebRtcRelayed => &["--relay-only", "--ice", "webrtc"],
            Self::Iperf3 | Self::Quinn | Self::Library => &[],
        }
    }
}

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    /// Mbit/s.
    pub(super) rate: f64,
    /// Core-seconds per GB, of both ends without the server.
    pub(super) cost: f64,
}

/// The binaries and the server's state.
pub(super) struct Bench {
    pub(super) bytes: u64,
    pub(super) bins: PathBuf,
    pub(super) folder: TempDir,
}

/// A child that is killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }

    /// Returns its CPU time so far, in seconds.
    fn cpu(&self) -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
        Some((ticks(11)? + ticks(12)?) / TICKS)
    }

    fn errors(&mut self) -> anyhow::Result<ChildStderr> {
        self.0.stderr.take().context("its errors are read already")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the lines of a stream as they come.
fn lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        BufReader::new(source).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

fn wait_for<T>(lines: &Receiver<String>, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
    let deadline = time::mono() + START;
    let mut seen = Vec::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(time::mono())) {
        if let Some(found) = find(&line) {
            return Ok(found);
        }
        seen.push(line);
    }
    bail!("a program did not start: {}", seen.join("\n"))
}

/// Watches the CPU time of two processes until both have ended.
fn cost(processes: &mut [Process; 2], bytes: u64) -> anyhow::Result<f64> {
    let mut used = [0.0; 2];
    loop {
        let mut running = false;
        for (process, used) in processes.iter_mut().zip(&mut used) {
            *used = process.cpu().map_or(*used, |cpu| cpu.max(*used));
            running |= process.0.try_wait()?.is_none();
        }
        if !running {
            return Ok(used.iter().sum::<f64>() * 1e9 / bytes as f64);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Bench {
    pub(super) fn run(&self, network: &Network, program: Program) -> anyhow::Result<Transfer> {
        match program {
            Program::Iperf3 => self.iperf3(network),
            Program::Quinn => self.quinn(network),
            Program::Library => self.library(network),
            _ => self.agent(network, program),
        }
    }

    fn iperf3(&self, network: &Network) -> anyhow::Result<Transfer> {
        let mut server = network.command("b", "iperf3");
        server.args(["-s", "-1", "--forceflush"]);
        let mut server = Process::start(server)?;
        let started = lines(server.0.stdout.take().context("no output")?);
        wait_for(&started, |line| line.contains("listening").then_some(()))?;
        let mut client = network.command("a", "iperf3");
        client.args(["-c", HOSTS[1], "-J", "-n", &self.bytes.to_string()]);
        let mut client = Process::start(client)?;
        let mut report = client.0.stdout.take().context("no output")?;
        let report = std::thread::spawn(move || {
            let mut text = String::new();
            report.read_to_string(&mut text).map(|_| text)
        });
        let cost = cost(&mut [client, server], self.bytes)?;
        let report = report.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        let report: Value = serde_json::from_str(&report)?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 failed")?;
        Ok(Transfer { rate: rate / 1e6, cost })
    }

    fn quinn(&self, network: &Network) -> anyhow::Result<Transfer> {
        let own = std::env::current_exe()?;
        let certificate = self.folder.path().join("certificate");
        let _ = fs::remove_file(&certificate);
        let mut receiver = network.command("b", &own);
        receiver.args(["--receive", &format!("{}:{QUIC_PORT}", HOSTS[1]), "--certificate"]).arg(&certificate);
        let receiver = Process::start(receiver)?;
        let deadline = time::mono() + START;
        while !certificate.exists() && time::mono() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut sender = network.command("a", &own);
        sender.args(["--send", &format!("{}:{QUIC_PORT}", HOSTS[1]), "--certificate"]).arg(&certificate);
        sender.args(["--bytes", &self.bytes.to_string()]);
        let mut sender = Process::start(sender)?;
        let output = lines(sender.0.stdout.take().context("no output")?);
        let cost = cost(&mut [sender, receiver], self.bytes)?;
        let seconds: f64 = wait_for(&output, |line| line.parse().ok())?;
        Ok(Transfer { rate: self.bytes as f64 * 8e-6 / seconds, cost })
    }

    fn library(&self, network: &Network) -> anyhow::Result<Transfer> {
        let (_server, key) = self.serve(network)?;
        let own = std::env::current_exe()?;
        let mut receiver = network.command("b", &own);
        receiver.args(["--listen", &format!("{SERVER}:{SERVER_PORT}"), "--key", &key]);
        let mut receiver = Process::start(receiver)?;
        let output = lines(receiver.0.stdout.take().context("no output")?);
        let ticket = wait_for(&output, |line| Some(line.to_owned()))?;
        let mut sender = network.command("a", &own);
        sender.args(["--connect", &ticket, "--bytes", &self.bytes.to_string()]);
        let mut sender = Process::start(sender)?;
        let output = lines(sender.0.stdout.take().context("no output")?);
        let cost = cost(&mut [sender, receiver], self.bytes)?;
        let seconds: f64 = wait_for(&output, |line| line.parse().ok())?;
        Ok(Transfer { rate: self.bytes as f64 * 8e-6 / seconds, cost })
    }

    fn agent(&self, network: &Network, program: Program) -> anyhow::Result<Transfer> {
        let (_server, key) = self.serve(network)?;
        let agent = |host: &str, arguments: &[&str]| {
            let mut command = network.command(host, self.bins.join("agent"));
            command.args(arguments).arg("--json").args(program.options());
            command.env("AGENT_KEY", &key).stdin(Stdio::piped());
            Process::start(command)
        };
        let server = format!("{SERVER}:{SERVER_PORT}");
        let mut listener = agent("b", &["listen", "--recv-only", "--server", &server])?;
        let events = lines(listener.errors()?);
        let ticket = wait_for(&events, |line| Some(event(line)?["ticket"].as_str()?.to_owned()))?;
        let mut connector = agent("a", &["connect", &ticket, "--send-only"])?;
        let events = lines(connector.errors()?);
        let expected = if program.is_relayed() { "relay" } else { "direct" };
        wait_for(&events, |line| (event(line)?["kind"].as_str()? == expected).then_some(()))?;
        let (mut input, output) =
            (connector.0.stdin.take().context("no input")?, listener.0.stdout.take().context("no output")?);
        let bytes = self.bytes;
        std::thread::spawn(move || {
            let (chunk, mut left) = (vec![7; CHUNK], bytes);
            while left > 0 {
                let len = left.min(CHUNK as u64);
                if input.write_all(&chunk[..usize::try_from(len).unwrap_or(CHUNK)]).is_err() {
                    return;
                }
                left -= len;
            }
        });
        let receiving = std::thread::spawn(move || receive(output));
        let cost = cost(&mut [connector, listener], bytes)?;
        let (received, took) = receiving.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        if received != bytes {
            bail!("{}: {received} of {bytes} bytes arrived", program.name());
        }
        Ok(Transfer { rate: bytes as f64 * 8e-6 / took.as_secs_f64(), cost })
    }

    /// Starts the server; returns it and the key of agents.
    fn serve(&self, network: &Network) -> anyhow::Result<(Process, String)> {
        let (state, config) = (self.folder.path().join("state"), self.folder.path().join("ginnel.toml"));
        let text = format!(
            "state = {state:?}\nlisten = [\"{SERVER}\"]\npublic = [\"{SERVER}\"]\nport = {SERVER_PORT}\n[tls]\nport = 0\n\
             [turn]\nallow_peers = [\"203.0.113.0/24\"]\nbandwidth_per_allocation = 0\nbandwidth_per_user = 0\n"
        );
        fs::write(&config, text)?;
        let program = self.bins.join("ginnel");
        let mut command = network.command("s", &program);
        command.args(["serve", "--config"]).arg(config);
        let mut server = Process::start(command)?;
        let started = lines(server.errors()?);
        let output = lines(server.0.stdout.take().context("no output")?);
        wait_for(&started, |line| line.starts_with("Ready.").then_some(()))
            .or_else(|_| wait_for(&output, |line| line.starts_with("Ready.").then_some(())))?;
        let key = Command::new(program).args(["key", "--state"]).arg(state).output()?;
        Ok((server, String::from_utf8(key.stdout)?.trim().to_owned()))
    }
}

fn event(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

/// Reads to the end; returns the number of bytes and the time from the first to the last one.
fn receive(mut output: impl Read) -> (u64, Duration) {
    let mut buffer = vec![0; CHUNK];
    let (mut total, mut first): (u64, Option<Instant>) = (0, None);
    let mut last = time::mono();
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        last = time::mono();
        first.get_or_insert(last);
        total += len as u64;
    }
    (total, last.duration_since(first.unwrap_or(last)))
}

/// Returns whether iperf3 is installed.
pub(super) fn has_iperf3() -> bool {
    Command::new("iperf3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Returns the folder of the binaries.
pub(super) fn default_bins() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_agent")).parent().map(Path::to_path_buf).unwrap_or_default()
}
