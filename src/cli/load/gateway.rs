//! `ginnel load gateway`: options, table and exit code.

use super::basics::Basics;
use super::report::{latency_line, print};
use super::{ProgressLine, stop_on_signals, with_control};
use crate::cli::serve::raise_descriptor_limit;
use crate::gateway::handshake::Key;
use crate::gateway::token::GatewayToken;
use crate::load::gateway::report::MemoryUse;
use crate::load::gateway::{HandshakeKind, MessageDirection, Middlebox};
use crate::load::{GatewayLoad, GatewayReport, LoadTransport};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Time without an arrival after which the remaining messages count as lost.
const QUIET: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;

/// Options of `ginnel load gateway`.
#[derive(Debug, Args)]
pub(crate) struct GatewayLoadArgs {
    /// Clients, each with its own connection
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Virtual connections per client, to one server after the other
    #[arg(long, default_value_t = 8)]
    each: usize,
    /// Servers, which also run in this process
    #[arg(long, default_value_t = 4)]
    servers: usize,
    /// Lengths of messages in bytes, in turn; at least 20
    #[arg(long, value_delimiter = ',', default_value = "100")]
    size: Vec<u32>,
    /// The senders
    #[arg(long, value_enum, default_value_t = MessageDirectionArg::Both)]
    direction: MessageDirectionArg,
    /// One client in N does not read; 0: all read
    #[arg(long, value_name = "N", default_value_t = 0)]
    non_reading: usize,
    /// Bytes in flight per virtual connection and direction; one message may always be
    #[arg(long, value_name = "BYTES", default_value_t = 128 * 1024)]
    window: u32,
    /// Bytes in flight in total
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    in_flight: u64,
    /// End after N messages, if --seconds are not over before
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// The servers' handshake
    #[arg(long, value_enum, default_value_t = HandshakeArg::Md5)]
    handshake: HandshakeArg,
    /// The gateway's address for servers [default: port 3480 (md5) or 3481 (hmac) of the same host]
    #[arg(long, value_name = "IP:PORT")]
    servers_at: Option<SocketAddr>,
    /// The id of the first server
    #[arg(long, value_name = "ID", default_value_t = 1)]
    first_id: u32,
    /// File whose first line is the gateway's key (ginnel key --gateway)
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Environment variable that contains the key
    #[arg(long, value_name = "NAME", conflicts_with = "key_file", required_unless_present = "key_file")]
    key_env: Option<String>,
    /// The clients' gateway token, for a gateway with require_token
    #[arg(long = "gateway-token", alias = "ticket", value_name = "gt_…")]
    token: Option<GatewayToken>,
    #[command(flatten)]
    basics: Basics,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MessageDirectionArg {
    /// Clients
    Up,
    /// Servers
    Down,
    /// Both
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HandshakeArg {
    /// MD5
    Md5,
    /// HMAC-SHA256, with credit
    Hmac,
}

impl GatewayLoadArgs {
    /// Runs the load and prints its report.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let load = self.basics.load(LoadTransport::Tcp)?;
        let (handshake, port) = match self.handshake {
            HandshakeArg::Md5 => (HandshakeKind::Md5, 3480),
            HandshakeArg::Hmac => (HandshakeKind::Hmac, 3481),
        };
        let servers_at = self.servers_at.unwrap_or(SocketAddr::new(load.target.address().ip(), port));
        self.basics.agree(servers_at, LoadTransport::Tcp)?;
        let what = GatewayLoad {
            middlebox: Middlebox::Gateway {
                servers_at,
                handshake,
                key: self.key()?,
                first_id: self.first_id,
                token: self.token,
            },
            clients: self.clients,
            each: self.each,
            servers: self.servers,
            sizes: self.size.clone(),
            direction: match self.direction {
                MessageDirectionArg::Up => MessageDirection::Up,
                MessageDirectionArg::Down => MessageDirection::Down,
                MessageDirectionArg::Both => MessageDirection::Both,
            },
            non_reading: self.non_reading,
            window: self.window,
            in_flight: self.in_flight,
            messages: self.messages,
            quiet: QUIET,
        };
        raise_descriptor_limit();
        let stop = stop_on_signals()?;
        let mut line = ProgressLine::new();
        let report = with_control(&stop, &mut line, |control| load.gateway(&what, control))?;
        print(self.basics.json, &report, &table(&report))?;
        verdict(&report, self.basics.max_loss)
    }

    fn key(&self) -> anyhow::Result<Key> {
        let text = match (&self.key_file, &self.key_env) {
            (Some(file), _) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
            (None, name) => {
                let name = name.as_deref().unwrap_or_default();
                let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
                value.with_context(|| format!("--key-env {name}: not set"))?
            }
        };
        Ok(Key::new(text.lines().next().unwrap_or_default().trim())?)
    }
}

fn verdict(report: &GatewayReport, max_loss: Option<f64>) -> anyhow::Result<()> {
    if report.received == 0 {
        bail!("none of {} messages arrived", report.sent);
    }
    let percent = report.lost as f64 * 100.0 / (report.sent.max(1)) as f64;
    let is_accepted = max_loss.is_some_and(|most| percent <= most);
    let rest = GatewayReport { lost: if is_accepted { 0 } else { report.lost }, ..report.clone() };
    if let Some(complaint) = rest.complaint() {
        bail!("{complaint}");
    }
    if report.closed + report.dropped > 0 && !is_accepted {
        bail!("the gateway closed {} virtual connections and {} connections", report.closed, report.dropped);
    }
    Ok(())
}

fn table(report: &GatewayReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    let GatewayReport { clients, virtual_connections, servers, non_reading_clients, .. } = report;
    line("gateway", format!("{}, servers by {}", report.server, report.handshake));
    let non_reading = if *non_reading_clients > 0 {
        format!(", {non_reading_clients} of them not reading")
    } else {
        String::new()
    };
    line(
        "load",
        format!(
            "{clients} clients{non_reading}, {virtual_connections} virtual connections, {servers} servers"
        ),
    );
    let sizes: Vec<_> = report.sizes.iter().map(ToString::to_string).collect();
    line("messages", format!("of {} bytes, {}", sizes.join(" and "), report.direction));
    line("connected", format!("in {:.3} s", report.connecting_seconds));
    line(
        "arrived",
        format!(
            "{:.0} messages/s over {:.1} s · {:.1} MB/s",
            report.messages_per_second,
            report.seconds,
            report.bytes_per_second / 1e6
        ),
    );
    let GatewayReport { lost, doubled, out_of_order, sent, received, received_down, .. } = report;
    line("lost", format!("{lost} of {sent}; {doubled} twice, {out_of_order} out of order"));
    line("", format!("{received} arrived in total, {received_down} of them at clients"));
    line("latency", latency_line(report.latency_us));
    if report.by_size.len() > 1 {
        for of in &report.by_size {
            line("", format!("{} bytes: {}", of.size, latency_line(of.latency_us)));
        }
    }
    if let Some(cpu) = report.server_cpu {
        let share = cpu.share * 100.0;
        line("server CPU", format!("{:.2} µs a message, {share:.0} % of a processor", cpu.us_each));
    }
    let (own, share) = (report.own_cpu, report.own_cpu.share * 100.0);
    line("own CPU", format!("{:.2} µs a message, {share:.0} % of a processor", own.us_each));
    if let Some(memory) = memory_line(report.memory) {
        line("memory", memory);
    }
    if report.was_generator_the_limit() {
        line("caution", "the generator was the limit; the gateway may handle more".to_owned());
    }
    for (count, what) in [
        (report.closed_non_reading, "virtual connections of clients that do not read were closed"),
        (report.dropped_non_reading, "connections of clients that do not read were closed"),
        (report.closed, "other virtual connections were closed"),
        (report.dropped, "other connections were closed"),
        (report.misdelivered, "messages arrived at the wrong endpoint"),
        (report.damaged, "messages arrived with other bytes"),
    ] {
        if count > 0 {
            line("caution", format!("{count} {what}"));
        }
    }
    text
}

fn memory_line(memory: MemoryUse) -> Option<String> {
    let MemoryUse { before, connected, peak, end } = memory;
    let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / MIB);
    let (before, connected, end) = (mib(before)?, mib(connected)?, mib(end)?);
    let peak = mib(peak).unwrap_or(end);
    Some(format!("{before:.1} MiB before, {connected:.1} connected, {peak:.1} at most, {end:.1} in the end"))
}
