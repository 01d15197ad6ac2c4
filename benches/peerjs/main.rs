//! `cargo bench --bench peerjs`: compares ginnel's signalling with PeerJS's server: memory of an idle client, and the cost of forwarding
//! candidates between clients.
//!
//! See `docs/performance.md`. PeerJS's server is fetched by `npm` into a folder of its own outside the repository. All other traffic stays
//! on loopback.

#![allow(missing_docs, reason = "a program, not a library")]

mod clients;
mod servers;

use anyhow::bail;
use clap::Parser;
use clients::{Burst, ClientSet, Relayed};
use serde::Serialize;
use servers::{Kind, Server};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The loads: one candidate at a time; as many as a browser gathers at once; and the same as each server's own client sends them: ginnel's in
/// one message, PeerJS's in one message each.
const BURSTS: [(&str, Burst); 3] = [
    ("one at a time", Burst { size: 1, packed: false }),
    ("16 at a time, a message each", Burst { size: 16, packed: false }),
    ("16 at a time, as the server's own client sends them", Burst { size: 16, packed: true }),
];

/// Compares ginnel's signalling with PeerJS's server, on this machine
#[derive(Debug, Parser)]
#[command(name = "peerjs", bin_name = "cargo bench --bench peerjs --")]
struct Options {
    /// Rounds; each runs both servers
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Idle clients whose memory is measured
    #[arg(long, default_value_t = 2000)]
    clients: usize,
    /// Pairs of clients; one sends candidates to the other
    #[arg(long, default_value_t = 50)]
    pairs: usize,
    /// Seconds of measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// The servers' processor
    #[arg(long, default_value_t = 1)]
    server_cpu: usize,
    /// The clients' processor
    #[arg(long, default_value_t = 0)]
    client_cpu: usize,
    /// Where `npm` puts PeerJS's server
    #[arg(long, default_value_os_t = std::env::temp_dir().join("ginnel-bench-peerjs"))]
    folder: PathBuf,
    /// Also print the runs as JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Run as a ginnel server at this address
    #[arg(long, hide = true)]
    serve: Option<SocketAddr>,
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    server: &'static str,
    bytes_each: f64,
    relayed: [Relayed; BURSTS.len()],
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(address) = options.serve {
        return servers::serve(address);
    }
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("the benchmark needs two processors");
    }
    servers::fetch(&options.folder)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for kind in Kind::ALL {
            let run = measure(&options, kind)?;
            writeln!(io::stderr(), "round {round}: {run:?}")?;
            if options.json {
                writeln!(io::stdout(), "{}", serde_json::to_string(&run)?)?;
            }
            runs.push(run);
        }
    }
    Ok(io::stdout().write_all(table(&runs).as_bytes())?)
}

/// Each figure has a new server: freed memory would be reused without being seen.
fn measure(options: &Options, kind: Kind) -> anyhow::Result<Run> {
    let start = || Server::start(kind, &options.folder, (options.server_cpu, options.client_cpu));
    let server = start()?;
    let before = server.resident()?;
    let mut clients = ClientSet::new(kind, server.address)?;
    clients.connect(options.clients)?;
    clients.stay(Duration::from_secs(3))?;
    let bytes_each = (server.resident()? as f64 - before as f64) / options.clients as f64;
    drop((clients, server));
    let mut relayed = [Relayed::default(); BURSTS.len()];
    for ((_, burst), relayed) in BURSTS.into_iter().zip(&mut relayed) {
        let server = start()?;
        let mut clients = ClientSet::new(kind, server.address)?;
        clients.connect(2 * options.pairs)?;
        clients.call()?;
        clients.relay(burst, Duration::from_secs(1), &server)?;
        *relayed = clients.relay(burst, Duration::from_secs(options.seconds), &server)?;
    }
    Ok(Run { server: kind.name(), bytes_each, relayed })
}

/// Formats the medians of the rounds, and their ratios.
fn table(runs: &[Run]) -> String {
    let median = |kind: Kind, figure: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<_> = runs.iter().filter(|run| run.server == kind.name()).map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let mut text = String::from("| | ginnel | PeerJS | ratio |\n| --- | --- | --- | --- |\n");
    let mut row = |name: &str, figure: &dyn Fn(&Run) -> f64, less_is_better: bool| {
        let (ours, theirs) = (median(Kind::Ginnel, figure), median(Kind::PeerJs, figure));
        let ratio = if less_is_better { theirs / ours } else { ours / theirs };
        let _ = writeln!(text, "| {name} | {ours:.0} | {theirs:.0} | **{ratio:.1}** |");
    };
    row("bytes of an idle WebSocket client", &|run| run.bytes_each, true);
    for (place, (name, _)) in BURSTS.into_iter().enumerate() {
        let figure = move |run: &Run| run.relayed[place].per_cpu_second;
        row(&format!("candidates per CPU second, {name}"), &figure, false);
    }
    text
}
