//! `cargo bench --bench compare`: compares ginnel, coturn and forwarders under the same loads of `ginnel load`.
//!
//! See `docs/performance.md`. All traffic stays on loopback.

#![allow(missing_docs, reason = "a program, not a library")]

mod forwarder;
mod picture;
mod servers;
mod steps;
mod tables;

use anyhow::{Context, bail};
use clap::Parser;
use ginnel::internals::net::time;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use servers::{Bench, Kind};
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use steps::Step;

/// Compares servers under the same loads, on this machine
#[derive(Debug, Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
struct Options {
    /// Rounds; each runs every step with every server
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Groups of steps: binding, relay, burst, gso, fixed, pair, indications, tcp, allocate, search; and large (100 000 allocations), in none by default
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
    /// Servers: ginnel, coturn, forward, forward-batched, forward-segmented
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// Seconds of measurement per step
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Ends the comparison after the step that passes this many minutes
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Processor of the servers; the generator runs on the other one
    #[arg(long, default_value_t = 1)]
    server_cpu: usize,
    /// Processor of the generator
    #[arg(long, default_value_t = 0)]
    generator_cpu: usize,
    /// Append each run to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing; show the runs of an earlier --json FILE
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
    /// Print the tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Write the tables into this file, in Markdown, between its lines `<!-- compare: begin -->` and `<!-- compare: end -->`
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Draw the ratios to coturn into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The program of `ginnel serve` and `ginnel load` [default: this package's]
    #[arg(long, value_name = "FILE")]
    ginnel: Option<PathBuf>,
    /// Passed by cargo to every bench
    #[arg(long, hide = true)]
    bench: bool,
    /// Run as a forwarder
    #[arg(long, hide = true, num_args = 2)]
    forward: Option<Vec<String>>,
}

/// One load against one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    round: usize,
    group: String,
    step: String,
    server: String,
    report: Value,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some([how, address]) = options.forward.as_deref() {
        return forwarder::run(how, address.parse::<SocketAddr>()?);
    }
    let runs = match &options.show {
        Some(file) => read(file)?,
        None => measure(&options)?,
    };
    let tables = tables::tables(&runs);
    let text = if options.markdown { tables::markdown(&tables) } else { tables::plain(&tables) };
    io::stdout().write_all(text.as_bytes())?;
    if let Some(file) = &options.into {
        let page = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        fs::write(
            file,
            tables::replace_tables(&page, &tables)
                .with_context(|| format!("{}: no such lines", file.display()))?,
        )?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, picture::draw(&tables)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<Run>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn measure(options: &Options) -> anyhow::Result<Vec<Run>> {
    let steps = steps::of(&options.groups)?;
    let kinds = servers::of(&options.servers)?;
    let ginnel = options.ginnel.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_ginnel").into());
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("the benchmark needs two processors");
    }
    let bench = Bench::new(ginnel, options.server_cpu, options.generator_cpu)?;
    let mut file = match &options.json {
        Some(path) => Some(fs::File::options().create(true).append(true).open(path)?),
        None => None,
    };
    let end = time::mono() + Duration::from_secs(60 * options.minutes);
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        for step in &steps {
            for kind in kinds.iter().filter(|kind| step.supports(**kind)) {
                if time::mono() > end {
                    print_note(&format!(
                        "--minutes {} are over: the other steps are skipped",
                        options.minutes
                    ));
                    return Ok(runs);
                }
                let Some(run) = run_step(&bench, round, step, *kind, options.seconds) else { continue };
                if let Some(file) = &mut file {
                    writeln!(file, "{}", serde_json::to_string(&run)?)?;
                }
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

fn run_step(bench: &Bench, round: usize, step: &Step, kind: Kind, seconds: u64) -> Option<Run> {
    let named = format!("round {}, {}, {}", round + 1, step.name, kind.name());
    match bench.measure(kind, step, seconds) {
        Ok(report) => {
            let figures: Vec<_> = step
                .figures()
                .iter()
                .filter_map(|figure| Some(format!("{:.2} {}", figure.read(&report)?, figure.unit)))
                .collect();
            print_note(&format!("{named}: {}", figures.join(", ")));
            let (group, step, server) = (step.group.to_owned(), step.name.to_owned(), kind.name().to_owned());
            Some(Run { round, group, step, server, report })
        }
        Err(error) => {
            print_note(&format!("{named}: skipped: {error:#}"));
            None
        }
    }
}

fn print_note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
