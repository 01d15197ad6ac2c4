//! `cargo bench --bench path`: throughput of `agent` between two hosts, compared with iperf3 (TCP) and with `quinn` only.
//!
//! See `docs/performance.md`. It needs root: hosts and server are network namespaces.

#![allow(missing_docs, reason = "a program, not a library")]

mod library;
mod network;
mod programs;
mod quic;
#[path = "../../tests/it/lab/tun.rs"]
mod tun;

use clap::Parser;
use network::{Layout, Network, Wire};
use programs::{Bench, PROGRAMS, Program, Transfer};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Measures transfers between two hosts, on this machine
#[derive(Debug, Parser)]
#[command(name = "path", bin_name = "cargo bench --bench path --")]
struct Options {
    /// Rounds; each runs every program on every network
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of a transfer
    #[arg(long, default_value_t = 1_000_000_000)]
    bytes: u64,
    /// Round-trip times of the networks in milliseconds; 0 is a bridge, which all three share
    #[arg(long, value_delimiter = ',', default_value = "0,50")]
    round_trips: Vec<u64>,
    /// Packets lost in each direction, in thousandths; not on the bridge
    #[arg(long, default_value_t = 0)]
    loss: u32,
    /// Rate of the wire in Mbit/s, 0: no limit; not on the bridge
    #[arg(long, default_value_t = 0)]
    bottleneck: u32,
    /// How long the queue of the bottleneck lasts, in milliseconds
    #[arg(long, default_value_t = 100)]
    queue: u64,
    /// Programs: iperf3, quinn, library, agent, agent-routed, agent-relayed, webrtc, webrtc-relayed
    #[arg(long, value_delimiter = ',')]
    programs: Vec<String>,
    /// Folder of `agent` and `ginnel` [default: this package's]
    #[arg(long, value_name = "FOLDER")]
    bins: Option<PathBuf>,
    /// Fail if a goal is missed
    #[arg(long)]
    check: bool,
    /// Passed by cargo to every bench
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    receive: Option<SocketAddr>,
    #[arg(long, hide = true)]
    send: Option<SocketAddr>,
    #[arg(long, hide = true)]
    certificate: Option<PathBuf>,
    #[arg(long, hide = true, requires = "key")]
    listen: Option<String>,
    #[arg(long, hide = true)]
    key: Option<String>,
    #[arg(long, hide = true)]
    connect: Option<String>,
}

fn print_note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The transfers of a program on one network.
struct Row {
    program: Program,
    transfers: Vec<Transfer>,
}

impl Row {
    fn median(&self, figure: impl Fn(&Transfer) -> f64) -> f64 {
        let mut values: Vec<f64> = self.transfers.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn rate(&self) -> f64 {
        self.median(|transfer| transfer.rate)
    }
}

/// What one program must reach, as a ratio to another's rate.
const GOALS: [(Program, Program, f64); 4] = [
    (Program::Agent, Program::Quinn, 0.8),
    (Program::Agent, Program::Iperf3, 0.5),
    (Program::AgentRelayed, Program::Agent, 0.5),
    (Program::AgentRelayed, Program::AgentRouted, 0.5),
];
/// The most core-seconds per GB of a direct transfer.
const MOST_COST: f64 = 6.0;

/// Is one end of a transfer, if the options say so.
async fn transfer(options: &Options) -> anyhow::Result<bool> {
    let took = match options {
        Options { receive: Some(address), certificate: Some(certificate), .. } => {
            quic::receive(*address, certificate).await?;
            return Ok(true);
        }
        Options { send: Some(address), certificate: Some(certificate), bytes, .. } => {
            quic::send(*address, certificate, *bytes).await?
        }
        Options { listen: Some(server), key: Some(key), .. } => {
            library::receive(server, key).await?;
            return Ok(true);
        }
        Options { connect: Some(ticket), bytes, .. } => library::send(ticket, *bytes).await?,
        _ => return Ok(false),
    };
    writeln!(io::stdout(), "{}", took.as_secs_f64())?;
    Ok(true)
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(transfer(&options))? {
        return Ok(());
    }
    let mut programs = PROGRAMS.to_vec();
    programs.retain(|program| {
        options.programs.is_empty() || options.programs.iter().any(|name| name == program.name())
    });
    if programs.contains(&Program::Iperf3) && !programs::has_iperf3() {
        print_note("skipped: iperf3 is not installed (Debian: apt-get install iperf3)");
        programs.retain(|program| *program != Program::Iperf3);
    }
    let bench = Bench {
        bytes: options.bytes,
        bins: options.bins.clone().unwrap_or_else(programs::default_bins),
        folder: tempfile::tempdir()?,
    };
    let mut is_met = true;
    for round_trip in &options.round_trips {
        let rows = measure(&options, &bench, &programs, Duration::from_millis(*round_trip))?;
        let (table, met) = table(*round_trip, &rows);
        is_met &= met;
        write!(io::stdout(), "{table}")?;
    }
    anyhow::ensure!(is_met || !options.check, "a goal is missed");
    Ok(())
}

fn measure(
    options: &Options,
    bench: &Bench,
    programs: &[Program],
    round_trip: Duration,
) -> anyhow::Result<Vec<Row>> {
    let wire = (!round_trip.is_zero()).then_some(Wire {
        delay: round_trip / 2,
        loss: options.loss,
        bottleneck: options.bottleneck,
        queue: Duration::from_millis(options.queue),
    });
    // On the bridge every path leads through the server's host.
    let is_run = |program: &&Program| match wire {
        None => **program != Program::AgentRouted,
        Some(_) => **program != Program::WebRtcRelayed,
    };
    let rows = programs.iter().filter(is_run);
    let mut rows: Vec<Row> = rows.map(|program| Row { program: *program, transfers: Vec::new() }).collect();
    for round in 0..options.rounds {
        for row in &mut rows {
            let network = Network::new(match wire {
                None => Layout::Bridge,
                Some(wire) if row.program.is_routed() => Layout::Routed(wire),
                Some(wire) => Layout::Wire(wire),
            })?;
            let transfer = bench.run(&network, row.program)?;
            print_note(&format!(
                "{round_trip:?}, round {round}, {}: {:.0} Mbit/s, {:.1} core-seconds per GB",
                row.program.name(),
                transfer.rate,
                transfer.cost
            ));
            row.transfers.push(transfer);
        }
    }
    Ok(rows)
}

/// Returns the table of one network, and whether the goals are met.
fn table(round_trip: u64, rows: &[Row]) -> (String, bool) {
    let rate_of = |program: Program| {
        rows.iter().find(|row| row.program == program).map(Row::rate).filter(|rate| rate.is_finite())
    };
    let mut text = format!(
        "\nRound trip {round_trip} ms, medians\n\n| program | Mbit/s | to quinn | to iperf3 | core-seconds per GB |\n| --- | --- | --- | --- | --- |\n"
    );
    let ratio =
        |rate: f64, program| rate_of(program).map_or("–".to_owned(), |base| format!("{:.2}", rate / base));
    for row in rows {
        let rate = row.rate();
        let (name, cost) = (row.program.name(), row.median(|transfer| transfer.cost));
        let (quinn, iperf3) = (ratio(rate, Program::Quinn), ratio(rate, Program::Iperf3));
        let _ = writeln!(text, "| {name} | {rate:.0} | {quinn} | {iperf3} | {cost:.1} |");
    }
    let mut is_met = true;
    for (program, base, goal) in GOALS {
        // TCP over a bridge is not split into packets at all.
        let is_unequal = match base {
            Program::Iperf3 => round_trip == 0,
            // The relay's path is another one.
            Program::Agent => program == Program::AgentRelayed && round_trip > 0,
            _ => false,
        };
        if is_unequal {
            continue;
        }
        if let (Some(rate), Some(base_rate)) = (rate_of(program), rate_of(base)) {
            is_met &= rate >= goal * base_rate;
            let (name, base, ratio) = (program.name(), base.name(), rate / base_rate);
            let _ = writeln!(text, "{name} to {base}: {ratio:.2}, the goal is {goal}");
        }
    }
    // A TUN device takes one packet at a time, which costs the sender as much as the rest.
    let agent = rows.iter().find(|row| row.program == Program::Agent && round_trip == 0);
    if let Some(row) = agent {
        let cost = row.median(|transfer| transfer.cost);
        is_met &= cost <= MOST_COST;
        let _ = writeln!(text, "agent: {cost:.1} core-seconds per GB, the goal is {MOST_COST}");
    }
    (text, is_met)
}
