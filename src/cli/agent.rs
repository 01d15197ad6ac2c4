//! `agent`: what can be typed, and how a command becomes an exit code.

use super::agent_gateway;
use super::agent_pipe::{self, Directions, Outcome};
use super::agent_report::Report;
use super::agent_secrets::{KeySource, ask, read_file};
use crate::agent::{
    Agent, Config, Connection, Error, Listener, Mode, Refusal, ServerName, Stage, Ticket, Tried,
};
use crate::limits::Backoff;
use crate::net::roaming::Roaming;
use clap::{Args, Parser, Subcommand};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Runs `agent` with the arguments of the process.
#[must_use]
pub fn run_agent() -> ExitCode {
    let line = AgentLine::parse();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(line.command.run());
    // A blocking read of standard input cannot be cancelled.
    runtime.shutdown_background();
    ExitCode::from(code)
}

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
    /// What `agent listen` printed on the other machine, the whole line or its last word; else AGENT_TICKET or --ticket-file have it, or it is asked for on
    /// the terminal
    #[arg(value_name = "TICKET")]
    ticket: Vec<String>,
    /// File that holds the ticket
    #[arg(long, value_name = "FILE", conflicts_with = "ticket")]
    ticket_file: Option<PathBuf>,
    /// The ticket in the environment. A gateway's token was expected here before, and is still taken
    #[arg(long, env = "AGENT_TICKET", hide = true, hide_env_values = true)]
    environment_ticket: Option<String>,
    /// The former name of AGENT_TICKET
    #[arg(long, env = "AGENT_CODE", hide = true, hide_env_values = true)]
    environment_code: Option<String>,
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
    #[command(flatten)]
    key: KeySource,
    /// Use only the relay; inner addresses are told to nobody
    #[arg(long, conflicts_with = "no_relay")]
    relay_only: bool,
    /// Use only a direct path
    #[arg(long)]
    no_relay: bool,
    #[command(flatten)]
    directions: Directions,
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
    #[arg(long, value_parser = super::log_filter, value_name = "FILTER", hide = true)]
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
    #[error(transparent)]
    Token(#[from] crate::gateway::client::InvalidToken),
    #[error("no terminal to ask on")]
    NoTerminal,
    #[error("interrupted")]
    Interrupted,
    #[error("{option} {file}: {problem}")]
    File { option: &'static str, file: String, problem: io::Error },
}

impl UsageError {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoServer => {
                "agent listen --server HOST[:PORT] [--key KEY]     HOST runs `ginnel serve`; `ginnel key` prints its key there"
            }
            Self::NoTicket => "agent connect TICKET     `agent listen` on the other machine prints it",
            Self::Ticket(_) => "copy the whole line that `agent listen` printed on the other machine",
            Self::NoTerminal => "--key-file FILE, or AGENT_KEY in the environment",
            Self::Interrupted => "the same again",
            Self::File { option: "--key-file", .. } => {
                "--key-file names a file whose first line is the key that `ginnel key` prints"
            }
            Self::File { option: "--ticket-file", .. } => {
                "--ticket-file names a file that holds what `agent listen` printed on the other machine"
            }
            Self::File { .. } => "the option names a file that holds what `ginnel gateway token` prints",
            Self::Token(_) => "a gateway's token begins with gt_; `ginnel gateway token` prints one there",
        }
    }
}

pub(super) const USAGE: u8 = 2;
pub(super) const INTERRUPTED: u8 = 130;
/// The first and the longest wait for a server that is not there, each shortened by chance.
pub(super) const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How long an interrupted search may take to end politely.
const GOODBYE_TIME: Duration = Duration::from_millis(300);

/// Returns the exit code for a failure.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Offline => 3,
        Error::Refused(_) | Error::Handshake(_) | Error::Replaced | Error::Revoked => 4,
        Error::NoPath(_) | Error::Unreachable { .. } | Error::RelayLost(_) => 5,
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
        // Written to the end when this goes.
        let _logs = voice.log.clone().and_then(|level| {
            let color = super::has_colors();
            let config = crate::telemetry::Config { level, addresses: true, color, ..Default::default() };
            crate::telemetry::start(&config).ok()
        });
        let common = match &self {
            Self::Serve(serve) => return serve.run(report).await,
            Self::Connect(connect) if connect.gateway.is_wanted() => {
                let token = [&connect.environment_ticket, &connect.environment_code];
                let token = token.into_iter().flatten().find(|text| text.trim().starts_with("gt_"));
                return connect.gateway.run(&report, token, connect.common.directions).await;
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
            Err(UsageError::Interrupted) => return INTERRUPTED,
            Err(error) => {
                report.usage(&error.to_string(), error.hint());
                return USAGE;
            }
        };
        let work = async {
            match ticket {
                Some(ticket) => connect(config, &ticket, common.directions, &report).await,
                None => listen(config, common.directions, &report).await,
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

impl Common {
    fn config(&self) -> Result<Config, UsageError> {
        let key = self.key.key(false)?;
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
        let environment = [&self.environment_ticket, &self.environment_code];
        let environment = environment.into_iter().flatten().find(|text| !text.trim().starts_with("gt_"));
        let text = match (&self.ticket[..], &self.ticket_file, environment) {
            ([_, ..], ..) => self.ticket.join(" "),
            (_, Some(file), _) => read_file("--ticket-file", file)?,
            (_, _, Some(text)) => text.clone(),
            _ => ask("Ticket")?.ok_or(UsageError::NoTicket)?,
        };
        Ok(text.parse()?)
    }
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

/// Registers, however long it takes until the server is there.
async fn register(agent: &Agent, server: &str, report: &Report) -> Result<Listener, Error> {
    let mut backoff = Backoff::new(BACK_OFF, ChaCha20Rng::from_os_rng());
    let mut roaming = Roaming::start();
    let mut told = None;
    loop {
        let error = match agent.listen().await {
            Err(error @ (Error::Unreachable { .. } | Error::TimedOut(Stage::Server))) => error,
            done => return done,
        };
        // The same reason is told once.
        let what = error.to_string();
        if told.as_ref() != Some(&what) {
            report.waiting(server, "unreachable", &what, hint(&error));
            told = Some(what);
        }
        roaming.pause(&mut backoff).await;
    }
}

async fn listen(config: Config, directions: Directions, report: &Report) -> Result<u8, Error> {
    let server = config.server.as_ref().map(ToString::to_string).unwrap_or_default();
    let agent = Agent::new(config);
    let mut listener = tokio::select! {
        listener = register(&agent, &server, report) => listener?,
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
            // The other side may try again, or come by the gateway; only a lost tag ends the waiting.
            Some(Err(error)) => report.call_failed(&error),
            None => {
                return Err(Error::Refused(Refusal::Told("this ticket can no longer be used".to_owned())));
            }
        }
    };
    drop(listener);
    serve(connection, (agent_pipe::End::Accepts, directions), report).await
}

async fn connect(
    config: Config,
    ticket: &Ticket,
    directions: Directions,
    report: &Report,
) -> Result<u8, Error> {
    let agent = Agent::new(config);
    let connection = tokio::select! {
        connection = agent.connect(ticket) => connection?,
        () = interrupted() => return Ok(leave().await),
    };
    serve(connection, (agent_pipe::End::Opens, directions), report).await
}

async fn serve(
    connection: Connection,
    ends: (agent_pipe::End, Directions),
    report: &Report,
) -> Result<u8, Error> {
    let mut changes = connection.path_changes();
    let pipe = agent_pipe::run(connection, ends, interrupted, || report.input_open());
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
        Error::Refused(refusal) => match refusal {
            Refusal::Key => "--key-file FILE with the key that `ginnel key` prints on the server",
            Refusal::Ticket => "use the ticket that this very `agent listen` printed",
            Refusal::Busy => {
                "one `agent listen` takes one connection: run it again on the other machine and use its new ticket"
            }
            _ => "try again later",
        },
        Error::Replaced => {
            "one listener uses a ticket at a time: go on with the newer one, or run `agent listen` again for a new ticket"
        }
        Error::Revoked => "ask the server's operator, or run `agent listen` again for a new ticket",
        Error::NoPath(tried) => no_path_hint(tried),
        Error::Handshake(_) => "use the ticket of this very `agent listen`; it is good for its lifetime only",
        Error::TimedOut(Stage::Server) => "is the server up, and TCP 3478 open on the way to it?",
        Error::TimedOut(_) => "try again",
        Error::PeerEnded(_) => "see what the other side says, if it is still there, and run both again",
        Error::RelayLost(_) => {
            "see that the server runs again; then run `agent listen` and `agent connect` anew, with a new ticket"
        }
        _ => "run it again with `--log debug`: it tells more",
    }
}

/// What may lead to a path, after what was tried.
fn no_path_hint(tried: &Tried) -> &'static str {
    match (tried.mode, tried.own_relay, tried.their_relay) {
        (Mode::NoRelay, ..) if !tried.direct => {
            "leave out --no-relay here or --relay-only on the other side: together they leave no path"
        }
        (Mode::NoRelay, ..) => {
            "leave out --no-relay: the server's relay needs no path from machine to machine"
        }
        (_, false, false) => {
            "give one side the server's relay: --key-file FILE with the key that `ginnel key` prints on the server"
        }
        (_, true, true) => {
            "is the server's port 3478 open for UDP or TCP on both sides, and may its relay send to itself (`turn.allow_peers`)?"
        }
        (_, true, false) => {
            "give the other side the key too (--key-file FILE): this side's relay could not reach it"
        }
        (_, false, true) => {
            "give this side the key too (--key-file FILE): the other side's relay could not reach it"
        }
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
            (Error::Refused(Refusal::Busy), 4),
            (Error::Handshake(String::new()), 4),
            (Error::Replaced, 4),
            (Error::Revoked, 4),
            (Error::NoPath(crate::agent::Tried::default()), 5),
            (Error::Unreachable { server: String::new(), problem: String::new() }, 5),
            (Error::RelayLost(String::new()), 5),
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
