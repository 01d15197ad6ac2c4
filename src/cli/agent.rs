//! `agent`: its arguments, and the commands `listen` and `connect`.

mod error;
mod escape;
mod gateway;
mod gateway_error;
mod gateway_report;
#[cfg(feature = "messaging-client")]
mod messages;
mod path_line;
mod pipe;
mod proxy_environment;
mod report;
mod secrets;
mod terminal;

use crate::agent::{
    Agent, Config, ConnectError, Connection, IceImplementation, Listener, PathPolicy, RegistrationError,
};
use crate::agent::{ServerName, Ticket};
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use clap::{Args, Parser, Subcommand};
use error::{CommandError, UsageError};
use gateway::{DialOptions, TlsOptions};
use path_line::PathLine;
use pipe::{Directions, Outcome, StreamOrigin};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use report::Reporter;
use secrets::{KeySource, prompt_for, read_file};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use terminal::interrupted;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const AFTER_HELP: &str = "Exit codes: 0 success · 1 error on this machine · 2 usage · 3 peer offline or unknown · 4 refused · 5 no path or \
                          no server · 6 timed out · 7 connection lost · 130 interrupted";

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

/// `agent`: an encrypted pipe between two hosts behind NATs.
#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    about = "An encrypted pipe between two hosts behind NATs, direct where the networks allow it; and messages to users who may be offline",
    after_help = AFTER_HELP
)]
struct AgentLine {
    #[command(subcommand)]
    command: AgentCommand,
}

/// The commands of `agent`.
#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Print a ticket, wait for one connection, and connect it to standard input and output
    Listen(Listen),
    /// Connect standard input and output to the agent that printed the ticket
    Connect(Box<Connect>),
    /// Publish a local TCP service at a gateway, under an id
    Share(gateway::ShareCommand),
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    Messages(messages::MessagesCommand),
    #[command(hide = true)]
    Serve(FormerServe),
}

/// The former name of `agent share`, with any arguments.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct FormerServe {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Options of `agent listen`.
#[derive(Debug, Args)]
struct Listen {
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    account: messages::TicketOptions,
    #[command(flatten)]
    common: AgentOptions,
}

/// Options of `agent connect`.
#[derive(Debug, Args)]
struct Connect {
    /// The ticket that `agent listen` printed on the other machine, or the whole line. Default: --ticket-file, AGENT_TICKET, or a prompt
    #[arg(value_name = "TICKET")]
    ticket: Vec<String>,
    /// File that contains the ticket
    #[arg(long, value_name = "FILE", conflicts_with = "ticket")]
    ticket_file: Option<PathBuf>,
    #[arg(long, env = "AGENT_TICKET", hide = true, hide_env_values = true)]
    environment_ticket: Option<String>,
    /// Reserved for short codes
    #[arg(long, env = "AGENT_CODE", hide = true, hide_env_values = true)]
    environment_code: Option<String>,
    #[command(flatten)]
    gateway: DialOptions,
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    message: messages::MessageOptions,
    #[command(flatten)]
    common: AgentOptions,
}

#[derive(Debug, Args)]
struct AgentOptions {
    /// The server: HOST[:PORT], or https://HOST[:PORT] for TLS. Default for connect: those in the ticket. Given again: used when those before do not answer, at most four [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Vec<ServerName>,
    #[command(flatten)]
    key: KeySource,
    #[command(flatten)]
    tls: TlsOptions,
    /// Use only the relay; host addresses are not sent to the other side
    #[arg(long, conflicts_with = "no_relay")]
    relay_only: bool,
    /// Use only a direct path
    #[arg(long)]
    no_relay: bool,
    /// Do not ask the router to map ports
    #[arg(long)]
    no_port_mapping: bool,
    /// Do not predict or probe the ports of NATs that change ports
    #[arg(long)]
    no_spray: bool,
    /// The ICE implementation: our own, or the crate webrtc-ice for comparison
    #[arg(long, value_name = "ginnel|webrtc", default_value = "ginnel", value_parser = ice_implementation, hide_default_value = true)]
    ice: IceImplementation,
    #[command(flatten)]
    directions: Directions,
    #[command(flatten)]
    output: OutputOptions,
}

fn ice_implementation(name: &str) -> Result<IceImplementation, String> {
    match name {
        "ginnel" => Ok(IceImplementation::Ginnel),
        "webrtc" => Ok(IceImplementation::WebRtc),
        _ => Err("ginnel or webrtc".to_owned()),
    }
}

/// What a command writes to standard error.
#[derive(Debug, Args)]
struct OutputOptions {
    /// Reporter on standard error as JSON, one event per line
    #[arg(long)]
    json: bool,
    /// Log to standard error, such as `debug` or `ginnel=trace`
    #[arg(long, value_parser = super::log_filter, value_name = "FILTER")]
    log: Option<String>,
}

const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;
/// The first and the longest wait for a server that is not reachable, each with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// Time limit for an interrupted call to inform the other side.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

impl AgentCommand {
    /// Runs the command and returns the exit code.
    async fn run(self) -> u8 {
        let output = match &self {
            Self::Listen(listen) => &listen.common.output,
            Self::Connect(connect) => &connect.common.output,
            Self::Share(share) => &share.output,
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.output(),
            Self::Serve(serve) => return serve.refuse(),
        };
        let report = Reporter::new(output.json);
        // Flushed when dropped.
        let _logs = output.log.clone().and_then(|level| {
            let color = super::has_colors();
            let config = crate::telemetry::Config { level, addresses: true, color, ..Default::default() };
            crate::telemetry::start(&config).ok()
        });
        let done = match self {
            Self::Listen(listen) => listen.run(&report).await,
            Self::Connect(connect) => connect.run(&report).await,
            Self::Share(share) => share.run(report.clone()).await,
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.run(&report).await,
            Self::Serve(_) => Ok(USAGE),
        };
        match done {
            Ok(code) => code,
            Err(CommandError::Usage(UsageError::Interrupted)) => INTERRUPTED,
            Err(error) => {
                report.error(&error);
                error.exit_code()
            }
        }
    }
}

impl FormerServe {
    fn refuse(&self) -> u8 {
        let is_json = self.arguments.iter().any(|argument| argument == "--json");
        let error = CommandError::from(UsageError::FormerCommand);
        Reporter::new(is_json).error(&error);
        error.exit_code()
    }
}

impl AgentOptions {
    fn config(&self) -> Result<Config, UsageError> {
        let policy = match (self.relay_only, self.no_relay) {
            (true, _) => PathPolicy::RelayOnly,
            (_, true) => PathPolicy::DirectOnly,
            _ => PathPolicy::All,
        };
        let mut config = Config::new()
            .policy(policy)
            .ice(self.ice)
            .port_mapping(!self.no_port_mapping)
            .spray(!self.no_spray)
            .tls(self.tls.tls()?)
            .proxies(proxy_environment::read()?);
        for server in &self.server {
            config = config.further_server(server.clone());
        }
        if let Some(key) = self.key.key(false)? {
            config = config.key(key);
        }
        Ok(config)
    }
}

impl Connect {
    fn ticket(&self, report: &Reporter) -> Result<Ticket, UsageError> {
        let text = match (&self.ticket[..], &self.ticket_file, &self.environment_ticket) {
            ([_, ..], ..) => Some(self.ticket.join(" ")),
            (_, Some(file), _) => Some(read_file("--ticket-file", file)?),
            (_, _, ticket) => ticket.clone(),
        };
        let text = match (text, &self.environment_code) {
            (Some(text), None) => text,
            (Some(text), Some(_)) => {
                report.note("AGENT_CODE is ignored: a ticket is read from AGENT_TICKET");
                text
            }
            (None, Some(_)) => return Err(UsageError::FormerVariable("AGENT_CODE", "AGENT_TICKET")),
            (None, None) => prompt_for("Ticket")?.ok_or(UsageError::NoTicket)?,
        };
        if text.trim().starts_with(gateway::TOKEN_PREFIX) {
            return Err(UsageError::TokenAsTicket);
        }
        Ok(text.parse()?)
    }

    async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        if self.gateway.is_used() {
            return self.gateway.run(report, self.environment_ticket.as_deref(), &self.common).await;
        }
        let config = self.common.config()?;
        let ticket = self.ticket(report)?;
        let name = self.common.server.first().unwrap_or(ticket.server());
        proxy_environment::report(report, &name.host, name.port);
        let server = name.to_string();
        #[cfg(feature = "messaging-client")]
        let message = self.message.message(&ticket, report)?;
        let agent = Agent::new(config);
        let connection = tokio::select! {
            connection = agent.connect(&ticket) => connection,
            () = interrupted() => return Ok(close_politely().await),
        };
        let error = match connection {
            Ok(connection) => {
                return pipe(connection, StreamOrigin::Local, self.common.directions, report).await;
            }
            Err(error) => error,
        };
        #[cfg(feature = "messaging-client")]
        if let (ConnectError::Offline, Some(message)) = (&error, message) {
            return message.leave(report).await;
        }
        Err(CommandError::at(&server, error))
    }
}

impl Listen {
    async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let name = self.common.server.first().ok_or(UsageError::NoServer)?;
        let (server, agent) = (name.to_string(), Agent::new(self.common.config()?));
        #[cfg(feature = "messaging-client")]
        let account = self.account.account(report)?;
        proxy_environment::report(report, &name.host, name.port);
        // One for both: a signal between two would be lost.
        let interrupt = interrupted();
        tokio::pin!(interrupt);
        let mut listener = tokio::select! {
            listener = register(&agent, &server, report) => listener?,
            () = &mut interrupt => return Ok(INTERRUPTED),
        };
        #[cfg(feature = "messaging-client")]
        let ticket = listener.ticket().clone().with_account(account);
        #[cfg(not(feature = "messaging-client"))]
        let ticket = listener.ticket();
        report.ticket(&server, &ticket);
        let connection = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut interrupt => {
                    drop(listener);
                    return Ok(close_politely().await);
                }
            };
            match accepted {
                Some(Ok(connection)) => break connection,
                Some(Err(ConnectError::Registration(
                    error @ (RegistrationError::Replaced
                    | RegistrationError::Revoked
                    | RegistrationError::TagLost),
                ))) => return Err(CommandError::at(&server, error)),
                // The other side may try again or use the gateway.
                Some(Err(error)) => report.call_failed(&CommandError::at(&server, error)),
                None => return Err(CommandError::at(&server, RegistrationError::TagLost)),
            }
        };
        drop(listener);
        pipe(connection, StreamOrigin::Remote, self.common.directions, report).await
    }
}

/// Lets an interrupted call inform the other side and deallocate its relayed address.
async fn close_politely() -> u8 {
    tokio::select! {
        () = tokio::time::sleep(CLOSE_TIMEOUT) => {}
        () = interrupted() => {}
    }
    INTERRUPTED
}

/// Registers; retries until the server is reachable.
async fn register(agent: &Agent, server: &str, report: &Reporter) -> Result<Listener, CommandError> {
    let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
    let mut network = NetworkChanges::start();
    let mut reported = None;
    loop {
        let error = match agent.listen().await {
            Ok(listener) => return Ok(listener),
            Err(error @ (RegistrationError::Unreachable { .. } | RegistrationError::TimedOut { .. })) => {
                CommandError::at(server, error)
            }
            Err(error) => return Err(CommandError::at(server, error)),
        };
        // The same reason is reported once.
        let reason = error.message();
        if reported.as_ref() != Some(&reason) {
            report.waiting(server, "unreachable", &reason, error.hint());
            reported = Some(reason);
        }
        network.wait_to_retry(&mut backoff).await;
    }
}

/// Connects standard input and output to a connection, and reports its paths.
async fn pipe(
    connection: Connection,
    origin: StreamOrigin,
    directions: Directions,
    report: &Reporter,
) -> Result<u8, CommandError> {
    let mut changes = connection.path_changes();
    let mut line = PathLine::new(report);
    let pipe = pipe::run(connection, (origin, directions), interrupted, || report.input_open());
    tokio::pin!(pipe);
    let outcome = loop {
        tokio::select! {
            outcome = &mut pipe => break outcome,
            Some(path) = changes.next() => line.show(&path),
            () = line.due() => line.refresh(),
        }
    };
    // The path of a short connection may be known only at its end.
    while let Ok(Some(path)) = timeout(Duration::ZERO, changes.next()).await {
        line.show(&path);
    }
    line.end();
    match outcome {
        Outcome::Done { sent, received } => {
            report.closed(sent, received);
            Ok(0)
        }
        Outcome::Failed(error) => Err(error),
        Outcome::Interrupted => Ok(INTERRUPTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_valid() {
        AgentLine::command().debug_assert();
    }

    #[test]
    fn relay_only_and_no_relay_exclude_each_other() {
        let parse = |line: &[&str]| AgentLine::try_parse_from(line);
        assert!(parse(&["agent", "connect", "agent:x", "--relay-only", "--no-relay"]).is_err());
        let line = parse(&["agent", "listen", "--server", "h:9", "--relay-only", "--json"]).unwrap();
        let AgentCommand::Listen(listen) = line.command else { panic!("another command") };
        let config = format!("{:?}", listen.common.config().unwrap());
        assert!(config.contains("RelayOnly") && config.contains("port: 9"), "{config}");
    }

    #[test]
    fn the_former_serve_command_takes_any_arguments() {
        for arguments in [&["--gateway", "h", "--id", "1", "--to", "22"][..], &["--help"], &["-x"], &[]] {
            let line = [&["agent", "serve"], arguments].concat();
            let line = AgentLine::try_parse_from(&line).unwrap();
            assert!(matches!(line.command, AgentCommand::Serve(_)), "{arguments:?}");
        }
    }
}
