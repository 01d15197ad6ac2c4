//! `cargo bench --bench gateway`: compares the gateway with a TCP proxy, and with itself with one write per frame.
//!
//! See `docs/performance.md`. The load is that of `ginnel load gateway`. The receiver counts and compares each message; a run with a lost message
//! fails. All traffic stays on loopback.

#![allow(missing_docs, reason = "a program, not a library")]

mod middlebox;
mod proxy;

use anyhow::{Context, bail};
use clap::Parser;
use ginnel::internals::load::gateway::{HandshakeKind, MessageDirection};
use ginnel::internals::load::{
    GatewayLoad, GatewayReport, Load, LoadTimes, LoadTransport, RunControl, Target,
};
use middlebox::{Kind, Process};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// One comparison: the load, the gateway, and the other side.
struct Step {
    name: &'static str,
    size: u32,
    /// Per client.
    virtual_connections: usize,
    ours: Kind,
    theirs: Kind,
    /// The ratios to reach: of throughput, and of messages per CPU second.
    goals: [Option<f64>; 2],
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    Throughput,
    PerCpuSecond,
}

const FIGURES: [Figure; 2] = [Figure::Throughput, Figure::PerCpuSecond];
/// Clients and servers. Behind a proxy each client has its own server.
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
        name: "16 KiB messages, proxy with larger buffers",
        size: 16 * 1024,
        virtual_connections: 1,
        ours: Kind::Gateway(HandshakeKind::Md5),
        theirs: Kind::LargeBufferProxy,
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

/// Compares the gateway with a TCP proxy and with itself without batching, on this machine
#[derive(Debug, Parser)]
#[command(name = "gateway", bin_name = "cargo bench --bench gateway --")]
struct Options {
    /// Rounds; each runs every step for both sides
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of measurement per side and step
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
    /// Also print the runs as JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Run as the proxy: its address, the server's address
    #[arg(long, hide = true, num_args = 2)]
    proxy: Option<Vec<SocketAddr>>,
    /// The same with larger buffers
    #[arg(long, hide = true, num_args = 2)]
    large_buffer_proxy: Option<Vec<SocketAddr>>,
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Run {
    round: usize,
    step: &'static str,
    middlebox: String,
    report: GatewayReport,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    for (addresses, has_large_buffers) in [(&options.proxy, false), (&options.large_buffer_proxy, true)] {
        if let Some([own, server]) = addresses.as_deref() {
            return proxy::run(*own, *server, has_large_buffers);
        }
    }
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("the benchmark needs two processors");
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
        middlebox: process.take_middlebox()?,
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
    let run = Run { round, step: step.name, middlebox: kind.name(), report };
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

/// Formats the medians of the rounds, and the median, minimum and maximum of their ratios.
fn table(steps: &[&Step], runs: &[Run]) -> String {
    let mut text =
        String::from("| | ours | compared with | ratio | wanted |\n| --- | --- | --- | --- | --- |\n");
    for step in steps {
        for (figure, goal) in FIGURES.into_iter().zip(step.goals) {
            let of = |kind: Kind| -> Vec<f64> {
                let matching =
                    runs.iter().filter(|run| run.step == step.name && run.middlebox == kind.name());
                matching.map(|run| figure.read(&run.report)).collect()
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
