//! Command lines of both binaries: arguments, output to the terminal, exit codes. One file per command.

#[cfg(feature = "server")]
mod advice;
#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "server")]
mod credentials;
#[cfg(feature = "server")]
mod ginnel;
#[cfg(feature = "server")]
mod key;
#[cfg(feature = "load")]
mod load;
#[cfg(feature = "manual")]
mod manual;
#[cfg(feature = "server")]
mod serve;

#[cfg(feature = "agent")]
pub use agent::run_agent;
#[cfg(feature = "server")]
pub use ginnel::run_server;

use crate::telemetry;

/// Returns whether a terminal gets colours (<https://no-color.org>).
fn has_colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Parses a log filter of the command line.
fn log_filter(text: &str) -> Result<String, String> {
    match telemetry::is_filter(text) {
        true => Ok(text.to_owned()),
        false => Err("write error, warn, info, debug or trace, or a filter such as ginnel=debug".to_owned()),
    }
}
