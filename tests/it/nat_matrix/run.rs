//! One run of a cell: two agents, a pipe between them, and what the connector's user sees of it.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::tools;

use super::cells::{Expected, Setting};
use super::scene::{Scene, Side};

const UP: Duration = Duration::from_secs(30);
/// How long a direct path may take; a spray has 15 s.
const DIRECT: Duration = Duration::from_secs(25);
/// How long the reason of a relayed path may take: the direct checks have to be over.
const REASON: Duration = Duration::from_secs(15);
const END: Duration = Duration::from_secs(20);
/// The reason of a path that is not final.
const STILL_TRYING: &str = "direct path still being tried";

/// What a run has shown.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// From the start of the connector until bytes had come through in both directions.
    pub(super) first_byte: Duration,
    /// From the start of the connector until it had a direct path.
    pub(super) direct: Option<Duration>,
    /// The connector's last path, as `direct udp`.
    pub(super) path: String,
    pub(super) reason: Option<String>,
    /// Why this is not what the cell has to give.
    pub(super) fault: Option<String>,
}

pub(super) fn event(line: &str, kind: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind)
}

/// An agent at its side of a scene.
pub(super) struct Agent {
    pub(super) process: Proc,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
}

pub(super) fn start(name: &str, side: &Side, arguments: &[&str], key: &str) -> Agent {
    let mut command = side.host.command(tools::binary("agent"));
    command.args(arguments).args(["--json", "--server", &side.server]).args(&side.options);
    command.env("AGENT_KEY", key).envs(side.environment.iter().map(|(name, value)| (*name, value)));
    let mut process = Proc::start(name, command, Stdout::Pipe);
    let (stdin, stdout) = process.take_pipes();
    Agent { process, stdin: Some(stdin), stdout: Some(stdout) }
}

impl Agent {
    /// Sends a line, and notes when the first byte of the other side arrives.
    fn greet(&mut self) -> Receiver<Instant> {
        if let Some(stdin) = &mut self.stdin {
            stdin.write_all(b"hello\n").ok();
        }
        let (arrived, arrival) = channel();
        let mut stdout = self.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut byte = [0; 64];
            if stdout.read(&mut byte).is_ok_and(|length| length > 0) {
                arrived.send(Instant::now()).ok();
            }
            while stdout.read(&mut byte).is_ok_and(|length| length > 0) {}
        });
        arrival
    }

    pub(super) fn last_path(&self) -> Value {
        self.process.lines(|line| event(line, "path")).pop().unwrap_or_default()
    }
}

fn is_direct(line: &str) -> bool {
    event(line, "path").is_some_and(|path| path["kind"] == "direct")
}

fn has_final_reason(line: &str) -> bool {
    event(line, "path").is_some_and(|path| {
        path["kind"] == "direct" || path["reason"].as_str().is_some_and(|reason| reason != STILL_TRYING)
    })
}

/// Starts both agents; the listener's ticket is at the connector.
pub(super) fn connect(scene: &Scene, options: &[&str]) -> Result<([Agent; 2], Instant), String> {
    let key = scene.server.key();
    let listener = start("listener", &scene.sides[0], &[&["listen"], options].concat(), &key);
    let ticket =
        listener.process.wait_for(UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    let ticket = ticket.ok_or_else(|| format!("no ticket\n{}", listener.process.printed()))?;
    let begun = Instant::now();
    let connector = start("connector", &scene.sides[1], &[&["connect", &ticket], options].concat(), &key);
    Ok(([listener, connector], begun))
}

/// Connects two agents once; an error means that no bytes came through.
pub(super) fn run(scene: &Scene, setting: Setting, expected: Expected) -> Result<Outcome, String> {
    let (mut agents, begun) = connect(scene, &[])?;
    let arrivals = agents.each_mut().map(Agent::greet);
    let [listener, connector] = &agents;
    let printed = || [listener, connector].map(|agent| agent.process.printed()).join("\n");
    let (first_byte, direct) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let within = if expected.is_direct() { DIRECT } else { REASON };
            let done =
                |line: &str| if expected.is_direct() { is_direct(line) } else { has_final_reason(line) };
            let seen = connector.process.wait_for(within, |line| done(line).then(|| is_direct(line)));
            let at = Instant::now();
            listener.process.wait_for(within.saturating_sub(at - begun), |line| done(line).then_some(()));
            seen.filter(|is_direct| *is_direct).map(|_| at - begun)
        });
        let arrived: Option<Vec<Instant>> =
            arrivals.iter().map(|arrival| arrival.recv_timeout(UP).ok()).collect();
        (arrived.and_then(|times| times.into_iter().max()), watch.join().unwrap())
    });
    let first_byte = first_byte.ok_or_else(|| format!("no bytes\n{}", printed()))? - begun;
    let paths = [listener.last_path(), connector.last_path()];
    for agent in &mut agents {
        agent.stdin = None;
    }
    let deadline = Instant::now() + END;
    let ended = agents.each_mut().map(|agent| agent.process.ended_by(deadline));
    let [_, path] = &paths;
    let word = |name: &str| path[name].as_str().unwrap_or("none");
    let mut fault = paths.iter().find_map(|path| fault(setting, expected, path));
    if !ended.iter().all(|status| status.is_some_and(|status| status.success())) {
        fault = Some(format!("the agents end with {ended:?}"));
    }
    let fault = fault.map(|fault| {
        format!("{fault}\n{}", agents.each_ref().map(|agent| agent.process.printed()).join("\n"))
    });
    Ok(Outcome {
        first_byte,
        direct,
        path: format!("{} {}", word("kind"), word("transport")),
        reason: path["reason"].as_str().map(str::to_owned),
        fault,
    })
}

/// Why a last path is not what the cell has to give.
fn fault(setting: Setting, expected: Expected, path: &Value) -> Option<String> {
    let remote = path["remote"].as_str().unwrap_or_default();
    let is_direct = path["kind"] == "direct";
    let is_tcp = path["transport"] == "tcp";
    let has_reason =
        path["reason"].as_str().is_some_and(|reason| !reason.is_empty() && reason != STILL_TRYING);
    let is_as_expected = match expected {
        Expected::Direct | Expected::PeerReflexive | Expected::Predicted | Expected::Sprayed => {
            is_direct && !is_tcp
        }
        Expected::DirectTcp => is_direct && is_tcp,
        Expected::DirectTcpOrRelay => has_reason || (is_direct && is_tcp),
        // An accident may make a hard pair direct, but not where one direction is cut.
        Expected::Relay => has_reason || (is_direct && setting != Setting::OneWay),
        Expected::DirectIpv6 => is_direct && remote.starts_with("[2001:db8:6::"),
        Expected::Inner => is_direct && remote.starts_with("10.21.0."),
    };
    (!is_as_expected).then(|| format!("{} expected, but {path}", expected.tag()))
}
