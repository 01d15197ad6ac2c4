//! `agent`: its commands. What a command does is in the file of its name; whom it reaches is in [`reach`], who reaches it in [`offer`].

mod connect;
mod doctor;
mod error;
mod escape;
mod gateway;
mod gateway_error;
mod gateway_report;
mod listen;
#[cfg(feature = "messaging-client")]
mod messages;
mod network;
mod offer;
mod path_line;
mod ping;
mod pipe;
mod proxy_environment;
mod reach;
mod report;
mod secrets;
mod terminal;

#[cfg(feature = "manual")]
use clap::CommandFactory;
use clap::{Args, Parser, Subcommand};
use error::{CommandError, UsageError};
use report::Reporter;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

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
    Listen(listen::Listen),
    /// Connect standard input and output to the agent that printed the ticket
    Connect(Box<connect::Connect>),
    /// Find out which paths this machine's network allows, and what would mend it
    Doctor(Box<doctor::Doctor>),
    /// Show whether a peer answers, and by which path
    Ping(Box<ping::Ping>),
    /// Publish a local TCP service at a gateway, under an id
    Share(gateway::ShareCommand),
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    Messages(messages::MessagesCommand),
    #[cfg(feature = "manual")]
    /// Print the completions of a shell
    Completions(super::manual::CompletionsCommand),
    #[cfg(feature = "manual")]
    /// Write manual pages
    Man(super::manual::ManCommand),
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

/// What a command writes to standard error.
#[derive(Debug, Args)]
struct OutputOptions {
    /// Report on standard error as JSON, one event per line
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

impl AgentCommand {
    /// Runs the command and returns the exit code.
    async fn run(self) -> u8 {
        let output = match &self {
            Self::Listen(listen) => listen.output(),
            Self::Connect(connect) => connect.output(),
            Self::Doctor(doctor) => doctor.output(),
            Self::Ping(ping) => ping.output(),
            Self::Share(share) => &share.output,
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.output(),
            #[cfg(feature = "manual")]
            Self::Completions(completions) => return written(completions.run(AgentLine::command())),
            #[cfg(feature = "manual")]
            Self::Man(man) => return written(man.run(AgentLine::command())),
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
            Self::Doctor(doctor) => doctor.run(&report).await,
            Self::Ping(ping) => ping.run(&report).await,
            Self::Share(share) => share.run(report.clone()).await,
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.run(&report).await,
            #[cfg(feature = "manual")]
            Self::Completions(_) | Self::Man(_) => Ok(USAGE),
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

/// Returns the exit code of a command that only writes.
#[cfg(feature = "manual")]
fn written(result: io::Result<()>) -> u8 {
    let Err(error) = result.map_err(CommandError::Output) else { return 0 };
    Reporter::new(false).error(&error);
    error.exit_code()
}

impl FormerServe {
    fn refuse(&self) -> u8 {
        let is_json = self.arguments.iter().any(|argument| argument == "--json");
        let error = CommandError::from(UsageError::FormerCommand);
        Reporter::new(is_json).error(&error);
        error.exit_code()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Protocol;
    #[cfg(not(feature = "manual"))]
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
        let config = format!("{:?}", listen.offer.network.config(Protocol::PIPE).unwrap());
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
