//! `cargo bench --bench gateway`: our gateway beside a bare TCP proxy, and beside itself with one write for each frame.
//!
//! See `docs/performance.md`. The load is that of `ginnel load gateway`: the same frames through all of them, each message counted,
//! put in order and compared at its receiver; a run in which one is missing is no result. All traffic stays on loopback; only processes
//! that were started here are ended.

#![allow(missing_docs, reason = "a program, not a library")]

mod between;
mod proxy;

use anyhow::{Context, bail};
use between::{Kind, Process};
use clap::Parser;
use ginnel::internals::load::gateway::{HandshakeKind, MessageDirection};
use ginnel::internals::load::{
    GatewayLoad, GatewayReport, Load, LoadTimes, LoadTransport, RunControl, Target,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// One load, the gateway under it, and what it is compared with.
struct Step {
    name: &'static str,
    size: u32,
    /// Of each client.
    virtual_connections: usize,
    ours: Kind,
    theirs: Kind,
    /// What the gateway must reach of the other one's throughput, and of its messages per CPU second.
    goals: [Option<f64>; 2],
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    Throughput,
    PerCpuSecond,
}

const FIGURES: [Figure; 2] = [Figure::Throughput, Figure::PerCpuSecond];
/// Clients, and as many servers: behind a proxy there is one for each client.
const PAIRS: usize = 4;

const STEPS: [Step; 5] = [
    Step {
        name: "16 KiB messages",
        size: 16 * 1024,
        virtual_connections: 1,
        ours: Kind::Gateway(HandshakeKind::Md5),
        theirs: Kind::Proxy,
        goals: [Some(0.8), None],
    },
    Step {
        name: "16 KiB messages beside larger buffers",
        size: 16 * 1024,
        virtual_connections: 1,
        ours: Kind::Gateway(HandshakeKind::Md5),
        theirs: Kind::RoomyProxy,
        goals: [None; 2],
    },
    Step {
        name: "16 KiB messages with credit",
        size: 16 * 1024,
        virtual_connections: 1,
        ours: Kind::Gateway(HandshakeKind::Hmac),
        theirs: Kind::Proxy,
        goals: [Some(0.8), None],
    },
    Step {
        name: "100 byte messages",
        size: 100,
        virtual_connections: 8,
        ours: Kind::Gateway(HandshakeKind::Md5),
        theirs: Kind::Unbatched(HandshakeKind::Md5),
        goals: [None, Some(3.0)],
    },
    Step {
        name: "100 byte messages with credit",
        size: 100,
        virtual_connections: 8,
        ours: Kind::Gateway(HandshakeKind::Hmac),
        theirs: Kind::Unbatched(HandshakeKind::Hmac),
        goals: [None, Some(3.0)],
    },
];

/// Compares the gateway with a bare proxy and with itself without batching, on this machine alone
#[derive(Debug, Parser)]
#[command(name = "gateway", bin_name = "cargo bench --bench gateway --")]
struct Options {
    /// Rounds; each has every step with both sides in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each side of a step is measured
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only steps whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// The processor of gateway and proxy
    #[arg(long, default_value_t = 1)]
    server_cpu: usize,
    /// The processor of clients and servers
    #[arg(long, default_value_t = 0)]
    generator_cpu: usize,
    /// The program of `ginnel serve` [default: this package's]
    #[arg(long, value_name = "FILE")]
    ginnel: Option<PathBuf>,
    /// Print the runs as JSON too, an object a line
    #[arg(long)]
    json: bool,
    /// Be the proxy: its address, the server's
    #[arg(long, hide = true, num_args = 2)]
    proxy: Option<Vec<SocketAddr>>,
    /// The same with larger buffers
    #[arg(long, hide = true, num_args = 2)]
    roomy_proxy: Option<Vec<SocketAddr>>,
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Run {
    round: usize,
    step: &'static str,
    between: String,
    report: GatewayReport,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    for (which, is_roomy) in [(&options.proxy, false), (&options.roomy_proxy, true)] {
        if let Some([own, server]) = which.as_deref() {
            return proxy::run(*own, *server, is_roomy);
        }
    }
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("the gateway and its clients need a processor each, and there is one");
    }
    let only = options.only.as_deref().unwrap_or_default();
    let steps: Vec<_> = STEPS.iter().filter(|step| step.name.contains(only)).collect();
    let mut runs: Vec<Run> = Vec::new();
    for round in 1..=options.rounds {
        for step in &steps {
            for kind in [step.ours, step.theirs] {
                runs.push(measure(&options, round, step, kind)?);
            }
        }
    }
    Ok(io::stdout().write_all(table(&steps, &runs).as_bytes())?)
}

fn measure(options: &Options, round: usize, step: &Step, kind: Kind) -> anyhow::Result<Run> {
    let mut process = Process::start(kind, options)?;
    let load = Load {
        target: Target::new(process.address, LoadTransport::Tcp, false)?,
        times: LoadTimes { warm_up: Duration::from_secs(1), seconds: Duration::from_secs(options.seconds) },
        pid: Some(process.pid()),
        cpu: Some(options.generator_cpu),
        segmentation: true,
        own_sockets: false,
    };
    let what = GatewayLoad {
        between: process.take_between()?,
        clients: PAIRS,
        each: step.virtual_connections,
        servers: PAIRS,
        sizes: vec![step.size],
        direction: MessageDirection::Both,
        non_reading: 0,
        window: 256 * 1024,
        in_flight: 64 * 1024 * 1024,
        messages: None,
        quiet: Duration::from_secs(5),
    };
    let stop = AtomicBool::new(false);
    let mut control = RunControl { stop: &stop, start: None, release: &stop, on_stage: &mut |_| {} };
    let named = || format!("{}, {}", step.name, kind.name());
    let report = load.gateway(&what, &mut control).with_context(named)?;
    if let Some(complaint) = report.complaint() {
        bail!("{}: {complaint}", named());
    }
    writeln!(
        io::stderr(),
        "round {round}, {}: {:.0} MB/s, {:.0} messages/s, {:.0} per CPU second, {:.0} % of its processor, {:.0} % of ours, p50 {:.0} µs",
        named(),
        report.bytes_per_second / 1e6,
        report.messages_per_second,
        report.messages_per_cpu_second.unwrap_or_default(),
        report.server_cpu.map_or(0.0, |cpu| cpu.share * 100.0),
        report.own_cpu.share * 100.0,
        report.latency_us.p50,
    )?;
    let run = Run { round, step: step.name, between: kind.name(), report };
    if options.json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&run)?)?;
    }
    Ok(run)
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "a second",
            Self::PerCpuSecond => "per CPU second",
        }
    }

    fn read(self, report: &GatewayReport) -> f64 {
        match self {
            Self::Throughput => report.messages_per_second,
            Self::PerCpuSecond => report.messages_per_cpu_second.unwrap_or_default(),
        }
    }
}

/// Medians over the rounds, and the median of the rounds' ratios with the least and the most of them.
fn table(steps: &[&Step], runs: &[Run]) -> String {
    let mut text =
        String::from("| | ours | compared with | ratio | wanted |\n| --- | --- | --- | --- | --- |\n");
    for step in steps {
        for (figure, goal) in FIGURES.into_iter().zip(step.goals) {
            let of = |kind: Kind| -> Vec<f64> {
                let its = runs.iter().filter(|run| run.step == step.name && run.between == kind.name());
                its.map(|run| figure.read(&run.report)).collect()
            };
            let (ours, theirs) = (of(step.ours), of(step.theirs));
            let ratios: Vec<_> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
            let least = ratios.iter().copied().fold(f64::MAX, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            let ratio = median(ratios);
            let wanted = match goal {
                Some(goal) if ratio >= goal => format!("{goal:.1}: reached"),
                Some(goal) => format!("{goal:.1}: missed"),
                None => String::new(),
            };
            let _ = writeln!(
                text,
                "| {}, {} | {:.0} | {:.0} ({}) | **{ratio:.2}** ({least:.2} to {most:.2}) | {wanted} |",
                step.name,
                figure.name(),
                median(ours),
                median(theirs),
                step.theirs.name(),
            );
        }
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
