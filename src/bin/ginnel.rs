//! The server: parse, load, run, exit code.

use clap::Parser;
use ginnel::cli::{Ginnel, GinnelCommand, advice};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Ginnel::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<advice::Told>() => ExitCode::FAILURE,
        Err(error) => {
            advice::tell(advice::report(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: GinnelCommand) -> anyhow::Result<()> {
    match command {
        GinnelCommand::Serve(serve) => tokio::runtime::Runtime::new()?.block_on(serve.run()),
        GinnelCommand::Key(key) => key.run(),
        GinnelCommand::Gateway(gateway) => gateway.run(),
        GinnelCommand::Credentials(credentials) => credentials.run(),
        GinnelCommand::Load(load) => load.run(),
        GinnelCommand::Config => {
            Ok(write!(std::io::stdout(), "{}", include_str!("../../docs/ginnel.example.toml"))?)
        }
    }
}
