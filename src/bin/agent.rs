//! The peer: parse, run, exit code.

use clap::Parser;
use ginnel::cli::agent::AgentLine;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let line = AgentLine::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(line.command.run());
    // A read of standard input may be under way and cannot be called back.
    runtime.shutdown_background();
    ExitCode::from(code)
}
