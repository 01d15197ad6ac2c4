//! The output of `ginnel load`: a table or JSON.

use crate::load::report::Latency;
use crate::load::{AllocateReport, SearchReport, TrafficReport};
use anyhow::bail;
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// The output format and the accepted loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    /// Print JSON.
    pub(super) json: bool,
    /// The accepted loss in percent.
    pub(super) max_loss: Option<f64>,
}

/// Prints the report, and fails if no packet arrived or too many were lost.
pub(super) fn finish_traffic(report: &TrafficReport, ending: Ending) -> anyhow::Result<()> {
    print(ending.json, report, &traffic_table(report))?;
    if report.received == 0 {
        bail!(
            "none of {} packets arrived{}",
            report.sent,
            if report.refused > 0 { ": the server answered with errors" } else { "" }
        );
    }
    if report.misdelivered > 0 {
        bail!("{} packets arrived at the wrong endpoint", report.misdelivered);
    }
    match ending.max_loss {
        Some(most) if report.loss_percent > most => {
            bail!("{:.3} % lost, more than --max-loss {most}", report.loss_percent)
        }
        _ => Ok(()),
    }
}

pub(super) fn print(json: bool, report: &impl serde::Serialize, table: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(report)?)?,
        false => out.write_all(table.as_bytes())?,
    }
    Ok(out.flush()?)
}

pub(super) fn latency_line(latency: Latency) -> String {
    let Latency { p50, p99, p999, max } = latency;
    format!("p50 {p50:.0} · p99 {p99:.0} · p99.9 {p999:.0} · longest {max:.0} µs")
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
    line("latency", latency_line(report.latency_us));
    if let Some(cpu) = report.server_cpu {
        line(
            "server CPU",
            format!("{:.2} µs a packet, {:.0} % of a processor", cpu.us_each, cpu.share * 100.0),
        );
    }
    let own = report.own_cpu;
    let processes =
        if report.processes > 1 { format!(", {} processes", report.processes) } else { String::new() };
    line(
        "own CPU",
        format!("{:.2} µs a packet, {:.0} % of a processor{processes}", own.us_each, own.share * 100.0),
    );
    if report.was_generator_the_limit() {
        line("caution", "this generator was the limit, the server may take more".to_owned());
    }
    for (count, what) in [
        (report.misdelivered, "packets arrived at the wrong endpoint"),
        (report.refused, "error responses"),
        (report.held_back, "packets were not sent: the kernel's buffers were full"),
        (report.left_out, "packets were left out: this machine could not send them in time"),
    ] {
        if count > 0 {
            line("caution", format!("{count} {what}"));
        }
    }
    text
}

pub(super) fn allocate_table(report: &AllocateReport) -> String {
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
    line("latency", latency_line(report.latency_us));
    if let Some(cpu) = report.server_cpu {
        line("server CPU", format!("{:.1} µs each, {:.0} % of a processor", cpu.us_each, cpu.share * 100.0));
    }
    if let Some(bytes) = report.server_bytes_each {
        line("memory", format!("{bytes:.0} bytes of the server each"));
    }
    let own = report.own_cpu;
    let processes =
        if report.processes > 1 { format!(", {} processes", report.processes) } else { String::new() };
    line(
        "own CPU",
        format!("{:.1} µs each, {:.0} % of a processor{processes}", own.us_each, own.share * 100.0),
    );
    text
}

/// Prints what a search has found, and fails if it has found nothing.
pub(super) fn finish_search(report: &SearchReport, json: bool) -> anyhow::Result<()> {
    print(json, report, &search_table(report))?;
    match report.highest_rate {
        Some(_) => Ok(()),
        None => bail!(
            "no rate lost less than {} %: is the server busy with other things, or --trial too short?",
            report.max_loss_percent
        ),
    }
}

fn search_table(report: &SearchReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    for trial in &report.trials {
        let verdict = match (trial.passed, trial.left_out) {
            (true, _) => "passed",
            (false, false) => "too much",
            (false, true) => "too much for this generator",
        };
        line("trial", format!("{} packets/s: {:.3} % lost, {verdict}", trial.rate, trial.loss_percent));
    }
    if let Some(rate) = report.highest_rate {
        line("highest", format!("{rate} packets/s with at most {} % lost", report.max_loss_percent));
    }
    if report.generator_was_the_limit {
        line("caution", "this generator was the limit, the server may take more".to_owned());
    }
    if let Some(half) = &report.at_half {
        text += "\nat half of it\n";
        text += &traffic_table(half);
    }
    text
}
