//! `ginnel load signaling`: options, table and exit code.

use super::basics::Basics;
use super::report::{latency_line, print};
use super::{ProgressLine, stop_on_signals, with_control};
use crate::cli::serve::raise_descriptor_limit;
use crate::load::signaling::{SignalingLoad, SignalingReport, SignalingTransport};
use crate::load::{LoadMode, LoadTransport};
use anyhow::bail;
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::time::Duration;

/// Options of `ginnel load signaling`.
#[derive(Debug, Args)]
pub(crate) struct SignalingLoadArgs {
    /// The transport between clients and server
    #[arg(long, value_enum, default_value_t = ViaArg::Udp)]
    via: ViaArg,
    /// Clients to register
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Calls per second; without --rate and --window there are no calls
    #[arg(long, conflicts_with = "window")]
    rate: Option<u64>,
    /// Calls in flight; each answer allows the next call
    #[arg(long)]
    window: Option<u32>,
    /// Registrations in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Heartbeat interval of UDP clients
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    heartbeat: u64,
    /// The server's access key, if it requires one
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    basics: Basics,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ViaArg {
    /// UDP; on IPv4 loopback all clients share a socket, each with its own address
    Udp,
    /// WebSocket
    Ws,
}

impl SignalingLoadArgs {
    /// Runs the load and prints its report.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let (via, transport) = match self.via {
            ViaArg::Udp => (SignalingTransport::Udp, LoadTransport::Udp),
            ViaArg::Ws => (SignalingTransport::Ws, LoadTransport::Tcp),
        };
        let load = self.basics.load(transport)?;
        let what = SignalingLoad {
            via,
            clients: self.clients,
            mode: self.rate.map(LoadMode::Rate).or(self.window.map(LoadMode::Window)),
            key: self.key.clone(),
            heartbeat: Duration::from_secs(self.heartbeat),
            concurrency: self.concurrency,
        };
        raise_descriptor_limit();
        let stop = stop_on_signals()?;
        let mut line = ProgressLine::new();
        let report = with_control(&stop, &mut line, |control| load.signaling(&what, control))?;
        print(self.basics.json, &report, &table(&report))?;
        verdict(&report, self.basics.max_loss)
    }
}

fn verdict(report: &SignalingReport, max_loss: Option<f64>) -> anyhow::Result<()> {
    if report.closed > 0 {
        bail!("the server has closed {} connections", report.closed);
    }
    let Some(calls) = &report.calls else { return Ok(()) };
    if calls.answered == 0 {
        bail!("none of {} calls was answered", calls.begun);
    }
    if calls.misdelivered > 0 {
        bail!("{} messages arrived at the wrong client", calls.misdelivered);
    }
    match max_loss {
        Some(most) if calls.loss_percent > most => {
            bail!("{:.3} % lost, more than --max-loss {most}", calls.loss_percent)
        }
        _ => Ok(()),
    }
}

fn table(report: &SignalingReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("server", format!("{} by {}", report.server, report.via));
    let SignalingReport { clients, registering_seconds, registrations_per_second, .. } = report;
    line(
        "clients",
        format!("{clients} in {registering_seconds:.3} s: {registrations_per_second:.0} per second"),
    );
    if let Some(cpu) = report.registering_cpu {
        let share = cpu.share * 100.0;
        line("server CPU", format!("{:.2} µs a registration, {share:.0} % of a processor", cpu.us_each));
    }
    if let Some(bytes) = report.server_bytes_each {
        line("memory", format!("{bytes:.0} bytes of the server a client"));
    }
    if let Some(calls) = &report.calls {
        line("answered", format!("{:.0} calls/s over {:.1} s", calls.calls_per_second, report.seconds));
        line("lost", format!("{} of {} ({:.3} %)", calls.lost, calls.begun, calls.loss_percent));
        line("latency", latency_line(calls.latency_us));
        if let Some(cpu) = calls.server_cpu {
            let share = cpu.share * 100.0;
            line("server CPU", format!("{:.2} µs a call, {share:.0} % of a processor", cpu.us_each));
        }
        let (own, share) = (calls.own_cpu, calls.own_cpu.share * 100.0);
        line("own CPU", format!("{:.2} µs a call, {share:.0} % of a processor", own.us_each));
        if calls.was_generator_the_limit() {
            line("caution", "the generator was the limit; the server may handle more".to_owned());
        }
    } else if let Some(share) = report.server_share {
        line("idle", format!("{:.1} s at {:.1} % of a processor", report.seconds, share * 100.0));
    }
    for (code, count) in &report.refused {
        line("caution", format!("the server answered {code} {count} times"));
    }
    let calls = report.calls.as_ref();
    for (count, what) in [
        (calls.map_or(0, |calls| calls.misdelivered), "messages arrived at the wrong client"),
        (report.lost_tags, "tags were lost by the server"),
        (report.closed as u64, "connections were closed by the server"),
        (report.held_back, "messages were not sent: the kernel's buffers were full"),
        (
            calls.map_or(0, |calls| calls.left_out),
            "calls were skipped: this machine could not start them in time",
        ),
    ] {
        if count > 0 {
            line("caution", format!("{count} {what}"));
        }
    }
    text
}
