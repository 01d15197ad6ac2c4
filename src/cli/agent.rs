//! `agent`: what can be typed, and how a command becomes an exit code.

use super::agent_gateway;
use super::agent_pipe::{self, Outcome};
use super::agent_report::Report;
use crate::agent::{Agent, Config, Connection, Error, Mode, ServerName, Stage, Ticket};
use clap::{Args, Parser, Subcommand};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// `agent`: an encrypted pipe between two machines behind NATs.
#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    about = "An encrypted pipe between two machines behind NATs, direct where the networks allow it",
    after_help = "Exit codes: 0 done, 1 trouble on this machine, 2 usage, 3 peer offline or unknown, 4 refused, 5 no path or no server, 6 timed out, \
                  7 peer ended badly, 130 interrupted."
)]
pub struct AgentLine {
    /// What to do.
    #[command(subcommand)]
    pub command: AgentCommand,
}

/// The commands of `agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Wait for one connection and pipe standard input and output through it
    Listen(Listen),
    /// Connect to the agent that printed the ticket, and pipe standard input and output through it
    Connect(Connect),
    /// Publish a TCP service of this network at a gateway, under an id
    Serve(agent_gateway::Serve),
}

/// Options of `agent listen`.
#[derive(Debug, Args)]
pub struct Listen {
    #[command(flatten)]
    common: Common,
}

/// Options of `agent connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// What `agent listen` printed on the other machine; asked for on a terminal when it is left out
    #[arg(value_name = "TICKET", env = "AGENT_CODE", hide_env_values = true)]
    ticket: Option<String>,
    #[command(flatten)]
    gateway: agent_gateway::Reach,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// The server; a ticket names its own [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<ServerName>,
    /// The server's access key, which admits to its relay; `ginnel key` prints it
    #[arg(long, env = "AGENT_KEY", hide_env_values = true, conflicts_with = "key_file")]
    key: Option<String>,
    /// File that holds the access key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Use only the relay; inner addresses are told to nobody
    #[arg(long, conflicts_with = "no_relay")]
    relay_only: bool,
    /// Use only a direct path
    #[arg(long)]
    no_relay: bool,
    #[command(flatten)]
    voice: Voice,
}

/// How a command speaks.
#[derive(Debug, Args)]
pub(super) struct Voice {
    /// Report on standard error in JSON, one event a line
    #[arg(long)]
    json: bool,
    /// Write logs to standard error, such as `debug` or `ginnel=trace`
    #[arg(long, value_name = "FILTER", hide = true)]
    log: Option<String>,
}

/// Why a command cannot be run as typed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("no server given")]
    NoServer,
    #[error("no ticket given")]
    NoTicket,
    #[error(transparent)]
    Ticket(#[from] crate::agent::TicketError),
    #[error("{file}: {problem}")]
    KeyFile { file: String, problem: io::Error },
}

impl UsageError {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoServer => {
                "agent listen --server HOST[:PORT] [--key KEY]     HOST runs `ginnel serve`; `ginnel key` prints its key there"
            }
            Self::NoTicket => "agent connect TICKET     `agent listen` on the other machine prints it",
            Self::Ticket(_) => "copy the whole line that `agent listen` printed on the other machine",
            Self::KeyFile { .. } => {
                "--key-file names a file whose first line is the key that `ginnel key` prints"
            }
        }
    }
}

pub(super) const USAGE: u8 = 2;
pub(super) const INTERRUPTED: u8 = 130;
/// How long an interrupted search may take to end politely.
const GOODBYE_TIME: Duration = Duration::from_millis(300);

/// Returns the exit code for a failure.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Offline => 3,
        Error::Refused(_) | Error::Handshake(_) | Error::Replaced | Error::Revoked => 4,
        Error::NoPath(_) | Error::Unreachable { .. } => 5,
        Error::TimedOut(_) => 6,
        Error::PeerEnded(_) => 7,
        _ => 1,
    }
}

impl AgentCommand {
    fn voice(&self) -> &Voice {
        match self {
            Self::Listen(listen) => &listen.common.voice,
            Self::Connect(connect) => &connect.common.voice,
            Self::Serve(serve) => &serve.voice,
        }
    }

    /// Runs the command and returns the exit code.
    pub async fn run(self) -> u8 {
        let voice = self.voice();
        let report = Report::new(voice.json);
        if let Some(level) = voice.log.clone() {
            let color = super::has_colors();
            let config = crate::telemetry::Config { level, addresses: true, color, ..Default::default() };
            let _ = crate::telemetry::start(&config);
        }
        let common = match &self {
            Self::Serve(serve) => return serve.run(report).await,
            Self::Connect(connect) if connect.gateway.is_wanted() => {
                return connect.gateway.run(&report).await;
            }
            Self::Connect(connect) => &connect.common,
            Self::Listen(listen) => &listen.common,
        };
        let prepared = common.config().and_then(|config| match &self {
            Self::Listen(_) if config.server.is_none() => Err(UsageError::NoServer),
            Self::Connect(connect) => Ok((config, Some(connect.ticket()?))),
            Self::Listen(_) | Self::Serve(_) => Ok((config, None)),
        });
        let (config, ticket) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                report.usage(&error.to_string(), error.hint());
                return USAGE;
            }
        };
        let work = async {
            match ticket {
                Some(ticket) => connect(config, &ticket, &report).await,
                None => listen(config, &report).await,
            }
        };
        match work.await {
            Ok(code) => code,
            Err(error) => {
                report.error(&error);
                exit_code(&error)
            }
        }
    }
}

/// The key as it was typed or as the file has it, if there is one.
pub(super) fn key_text(typed: Option<&String>, file: Option<&Path>) -> Result<Option<String>, UsageError> {
    let key = match file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|problem| UsageError::KeyFile { file: file.display().to_string(), problem })?;
            text.lines().next().map(|line| line.trim().to_owned())
        }
        None => typed.cloned(),
    };
    Ok(key.filter(|key| !key.is_empty()))
}

impl Common {
    fn config(&self) -> Result<Config, UsageError> {
        let key = key_text(self.key.as_ref(), self.key_file.as_deref())?;
        let mode = match (self.relay_only, self.no_relay) {
            (true, _) => Mode::RelayOnly,
            (_, true) => Mode::NoRelay,
            _ => Mode::Auto,
        };
        Ok(Config { server: self.server.clone(), key, mode })
    }
}

impl Connect {
    fn ticket(&self) -> Result<Ticket, UsageError> {
        let text = match &self.ticket {
            Some(text) => text.clone(),
            None => ask_for_ticket().ok_or(UsageError::NoTicket)?,
        };
        Ok(text.parse()?)
    }
}

fn ask_for_ticket() -> Option<String> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let _ = write!(io::stderr(), "Ticket: ");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).ok()?;
    Some(line).filter(|line| !line.trim().is_empty())
}

/// Resolves at the first Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Lets a call that was given up tell the other side and give its relayed address back.
async fn leave() -> u8 {
    tokio::select! {
        () = tokio::time::sleep(GOODBYE_TIME) => {}
        () = interrupted() => {}
    }
    INTERRUPTED
}

async fn listen(config: Config, report: &Report) -> Result<u8, Error> {
    let server = config.server.as_ref().map(ToString::to_string).unwrap_or_default();
    let agent = Agent::new(config);
    let mut listener = tokio::select! {
        listener = agent.listen() => listener?,
        () = interrupted() => return Ok(INTERRUPTED),
    };
    report.ticket(&server, listener.ticket());
    let connection = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = interrupted() => return Ok(leave().await),
        };
        match accepted {
            Some(Ok(connection)) => break connection,
            Some(Err(error @ (Error::Replaced | Error::Revoked))) => return Err(error),
            // The other side may try again; only a lost tag ends the waiting.
            Some(Err(error)) => report.error(&error),
            None => return Err(Error::Refused("this ticket can no longer be used".to_owned())),
        }
    };
    drop(listener);
    serve(connection, agent_pipe::End::Accepts, report).await
}

async fn connect(config: Config, ticket: &Ticket, report: &Report) -> Result<u8, Error> {
    let agent = Agent::new(config);
    let connection = tokio::select! {
        connection = agent.connect(ticket) => connection?,
        () = interrupted() => return Ok(leave().await),
    };
    serve(connection, agent_pipe::End::Opens, report).await
}

async fn serve(connection: Connection, end: agent_pipe::End, report: &Report) -> Result<u8, Error> {
    let mut changes = connection.path_changes();
    let pipe = agent_pipe::run(connection, end, interrupted);
    tokio::pin!(pipe);
    let outcome = loop {
        tokio::select! {
            outcome = &mut pipe => break outcome,
            Some(path) = changes.next() => report.path(&path),
        }
    };
    // The last path may have been told while the connection was closing.
    while let Ok(Some(path)) = timeout(Duration::ZERO, changes.next()).await {
        report.path(&path);
    }
    match outcome {
        Outcome::Done { sent, received } => {
            report.closed(sent, received);
            Ok(0)
        }
        Outcome::Failed(error) => Err(error),
        Outcome::Interrupted => Ok(INTERRUPTED),
    }
}

/// Says what to try against a failure.
pub(super) fn hint(error: &Error) -> &'static str {
    match error {
        Error::Unreachable { .. } => {
            "is `ginnel serve` running there, and TCP 3478 open? `--server HOST:PORT` names another"
        }
        Error::Offline => "run `agent listen` on the other machine and use the ticket that it prints",
        Error::Refused(_) => {
            "use the ticket of this very `agent listen`, and the access key that `ginnel key` prints on the server"
        }
        Error::Replaced => {
            "one listener uses a ticket at a time: go on with the newer one, or run `agent listen` again for a new ticket"
        }
        Error::Revoked => "ask the server's operator, or run `agent listen` again for a new ticket",
        Error::NoPath(tried) if !tried.relay => {
            "give one side the server's relay: --key KEY (`ginnel key` prints it)"
        }
        Error::NoPath(_) => "is the server's port 3478 open for UDP and TCP? Try again with --relay-only",
        Error::Handshake(_) => "use the ticket of this very `agent listen`; it is good for its lifetime only",
        Error::TimedOut(Stage::Server) => "is the server up, and TCP 3478 open on the way to it?",
        Error::TimedOut(_) => "try again; if it stays so, try --relay-only",
        Error::PeerEnded(_) => "see what the other side says",
        _ => "see the message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        AgentLine::command().debug_assert();
    }

    #[test]
    fn each_failure_has_the_exit_code_people_rely_on() {
        let table = [
            (Error::Offline, 3),
            (Error::Refused(String::new()), 4),
            (Error::Handshake(String::new()), 4),
            (Error::Replaced, 4),
            (Error::Revoked, 4),
            (Error::NoPath(crate::agent::Tried::default()), 5),
            (Error::Unreachable { server: String::new(), problem: String::new() }, 5),
            (Error::TimedOut(Stage::Server), 6),
            (Error::PeerEnded(String::new()), 7),
            (Error::Local(String::new()), 1),
        ];
        for (error, code) in table {
            assert_eq!(exit_code(&error), code, "{error}");
        }
    }

    #[test]
    fn relay_only_and_no_relay_exclude_each_other() {
        let parse = |line: &[&str]| AgentLine::try_parse_from(line);
        assert!(parse(&["agent", "connect", "agent:x", "--relay-only", "--no-relay"]).is_err());
        let line = parse(&["agent", "listen", "--server", "h:9", "--relay-only", "--json"]).unwrap();
        let AgentCommand::Listen(listen) = line.command else { panic!("another command") };
        let config = listen.common.config().unwrap();
        assert_eq!((config.mode, config.server.unwrap().port), (Mode::RelayOnly, 9));
    }
}
