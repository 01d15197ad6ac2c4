//! `agent`: its commands. What a command does is in the file of its name; whom it reaches is in [`reach`], who reaches it in [`offer`].

mod connect;
mod doctor;
mod error;
mod escape;
#[cfg(all(feature = "files", unix))]
mod files;
#[cfg(feature = "forward")]
mod forward;
#[cfg(feature = "forward")]
mod forward_error;
#[cfg(feature = "forward")]
mod forward_report;
#[cfg(feature = "forward")]
mod forward_spec;
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
mod qr;
mod reach;
mod report;
mod secrets;
mod share;
#[cfg(feature = "forward")]
mod socks;
mod standard_streams;
mod terminal;

#[cfg(feature = "manual")]
use clap::CommandFactory;
use clap::{Args, Parser, Subcommand};
use error::{CommandError, UsageError};
use report::Reporter;
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
    /// Print a code, wait for one connection, and connect it to standard input and output
    Listen(listen::Listen),
    /// Connect standard input and output to the agent that printed the code or ticket
    Connect(Box<connect::Connect>),
    /// Send files and folders to the machine that runs `agent recv`; goes on after an interruption
    #[cfg(all(feature = "files", unix))]
    Send(files::send::Send),
    /// Receive what `agent send` offers; goes on after an interruption
    #[cfg(all(feature = "files", unix))]
    Recv(Box<files::recv::Recv>),
    /// Find out which paths this machine's network allows, and what would mend it
    Doctor(Box<doctor::Doctor>),
    /// Show whether a peer answers, and by which path
    Ping(Box<ping::Ping>),
    /// Let others reach TCP and UDP ports and Unix sockets of this host, or publish one at a gateway under an id
    Share(Box<share::Share>),
    /// Forward local ports and sockets to what the other side shares
    #[cfg(feature = "forward")]
    Forward(Box<forward::Forward>),
    /// Run a SOCKS 5 server whose connections and datagrams leave from the other side
    #[cfg(feature = "forward")]
    Socks(Box<socks::Socks>),
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    Messages(messages::MessagesCommand),
    #[cfg(feature = "manual")]
    /// Print the completions of a shell
    Completions(super::manual::CompletionsCommand),
    #[cfg(feature = "manual")]
    /// Write manual pages
    Man(super::manual::ManCommand),
    /// The former name of `share`
    #[command(hide = true)]
    Serve(Box<share::Share>),
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
            #[cfg(all(feature = "files", unix))]
            Self::Send(send) => send.output(),
            #[cfg(all(feature = "files", unix))]
            Self::Recv(recv) => recv.output(),
            Self::Doctor(doctor) => doctor.output(),
            Self::Ping(ping) => ping.output(),
            Self::Share(share) | Self::Serve(share) => share.output(),
            #[cfg(feature = "forward")]
            Self::Forward(forward) => forward.output(),
            #[cfg(feature = "forward")]
            Self::Socks(socks) => socks.output(),
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.output(),
            #[cfg(feature = "manual")]
            Self::Completions(completions) => return written(completions.run(AgentLine::command())),
            #[cfg(feature = "manual")]
            Self::Man(man) => return written(man.run(AgentLine::command())),
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
            #[cfg(all(feature = "files", unix))]
            Self::Send(send) => send.run(&report).await,
            #[cfg(all(feature = "files", unix))]
            Self::Recv(recv) => recv.run(&report).await,
            Self::Doctor(doctor) => doctor.run(&report).await,
            Self::Ping(ping) => ping.run(&report).await,
            Self::Share(share) => share.run(&report).await,
            Self::Serve(share) => {
                report.note("`agent serve` is now `agent share`, with the same options; the former name works in this release only");
                share.run(&report).await
            }
            #[cfg(feature = "forward")]
            Self::Forward(forward) => forward.run(&report).await,
            #[cfg(feature = "forward")]
            Self::Socks(socks) => socks.run(&report).await,
            #[cfg(feature = "messaging-client")]
            Self::Messages(command) => command.run(&report).await,
            #[cfg(feature = "manual")]
            Self::Completions(_) | Self::Man(_) => Ok(USAGE),
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
    fn the_former_serve_command_takes_the_options_of_share() {
        let options = ["--gateway", "h", "--id", "1", "--to", "22", "--door", "md5"];
        let line = AgentLine::try_parse_from([&["agent", "serve"], &options[..]].concat()).unwrap();
        assert!(matches!(line.command, AgentCommand::Serve(_)));
        for options in [
            &["--gateway", "h"][..],
            &["--id", "1"],
            &["--gateway", "h", "--id", "1", "--to", "22", "--server", "h"],
        ] {
            assert!(
                AgentLine::try_parse_from([&["agent", "share"], options].concat()).is_err(),
                "{options:?}"
            );
        }
    }

    #[cfg(feature = "forward")]
    #[test]
    fn services_and_a_gateway_exclude_each_other() {
        let parse = |line: &[&str]| AgentLine::try_parse_from(line);
        let gateway = ["agent", "share", "--gateway", "h", "--id", "1", "--to", "22"];
        assert!(parse(&gateway).is_ok());
        for more in
            [&["tcp", "22"][..], &["--name", "x"], &["--guests", "2"], &["--for", "2h"], &["--allow-reverse"]]
        {
            assert!(parse(&[&gateway[..], more].concat()).is_err(), "{more:?}");
        }
        let share =
            ["agent", "share", "tcp", "22", "--name", "ssh", "--server", "h", "--allow-reverse", "udp", "53"];
        assert!(parse(&share).is_ok());
        let forward = ["agent", "forward", "2222:ssh", "-R", "8080:localhost:3000", "agent:x", "53:dns/udp"];
        assert!(parse(&forward).is_ok());
        assert!(parse(&["agent", "socks", "1080", "agent:x"]).is_ok());
    }
}
