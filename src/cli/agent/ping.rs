//! `agent ping`: whether a peer answers, and by which path.

use super::OutputOptions;
use super::error::CommandError;
use super::reach::ReachOptions;
use super::report::{Reporter, VERSION};
use super::terminal::interrupted;
use crate::agent::{Connection, PathInfo, PathKind, PathTransport, Protocol, ping};
use clap::Args;
use serde_json::json;
use std::io::{self, Write};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The time from one ping to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings without an answer, one after the other, after which the peer counts as gone.
const MAX_LOST: u32 = 3;
const TIMED_OUT: u8 = 6;
const INTERRUPTED: u8 = 130;

/// Options of `agent ping`.
#[derive(Debug, Args)]
pub(super) struct Ping {
    /// The peer, as for `agent connect`; what it offers is not used up. Default: --ticket-file, AGENT_TICKET, or a prompt
    #[arg(value_name = "PEER")]
    peer: Vec<String>,
    /// Stop after so many pings
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Go on after the path has become direct
    #[arg(long)]
    no_until_direct: bool,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Ping {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let peer = self.peer.join(" ");
        let target = self.reach.target(Some(peer.as_str()).filter(|_| !self.peer.is_empty()), report)?;
        let connection = self.reach.connect(&target, Protocol::PING, report).await?;
        let code = tokio::select! {
            code = self.ping(&connection, report) => code,
            () = interrupted() => Ok(INTERRUPTED),
        };
        connection.abort("done").await;
        code
    }

    async fn ping(&self, connection: &Connection, report: &Reporter) -> Result<u8, CommandError> {
        let (mut answers, mut lost) = (0_u32, 0);
        for number in 1..=self.count {
            if number > 1 {
                sleep(INTERVAL).await;
            }
            match timeout(ANSWER_TIMEOUT, ping::echo(connection)).await {
                Ok(round_trip) => {
                    let round_trip = round_trip?;
                    (answers, lost) = (answers + 1, 0);
                    let path = connection.path();
                    show(report, number, round_trip, path.as_ref())?;
                    let is_direct = path.is_some_and(|path| path.kind == PathKind::Direct && !path.is_lost);
                    if is_direct && !self.no_until_direct {
                        return Ok(0);
                    }
                }
                Err(_) => {
                    lost += 1;
                    report.write(
                        || format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
                        || json!({"v": VERSION, "t": "no_pong", "seq": number}),
                    );
                    if lost == MAX_LOST {
                        break;
                    }
                }
            }
        }
        if answers == 0 {
            return Ok(TIMED_OUT);
        }
        let reason = connection.path().filter(|path| path.kind != PathKind::Direct);
        if let Some(path) = reason {
            let reason = path.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            report.note(&format!("the path is not direct{reason}"));
        }
        Ok(0)
    }
}

/// Writes an answer: text to standard output, or an event to standard error.
fn show(
    report: &Reporter,
    number: u32,
    round_trip: Duration,
    path: Option<&PathInfo>,
) -> Result<(), CommandError> {
    let millis = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
    if report.is_json() {
        report.write(String::new, || {
            json!({
                "v": VERSION,
                "t": "pong",
                "seq": number,
                "rtt_ms": millis,
                "kind": path.map(|path| path.kind.to_string()),
                "transport": path.map(|path| if path.transport == PathTransport::Tcp { "tcp" } else { "udp" }),
                "remote": path.map(|path| path.remote.to_string()),
            })
        });
        return Ok(());
    }
    let way = match path {
        Some(path) if path.kind == PathKind::Direct => format!(" via {}", path.remote),
        Some(path) => format!(" via {} {}", path.kind, path.remote),
        None => String::new(),
    };
    let time = if millis == 0 { "<1 ms".to_owned() } else { format!("{millis} ms") };
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(format!("pong{way} in {time}\n").as_bytes()).and_then(|()| stdout.flush());
    written.map_err(CommandError::Output)
}
