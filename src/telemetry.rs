//! Logs: what is written, where to, and whether addresses show. A log that cannot be written stops nothing: its lines are dropped and counted.

mod log_queue;

use crate::ids;
use log_queue::LogQueue;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How logs are written.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// A level or a `tracing` filter such as `ginnel=debug`; default `info`.
    pub level: String,
    /// Whether addresses and names are written out; default false.
    pub addresses: bool,
    /// Whether lines are JSON; default false.
    pub json: bool,
    /// Whether lines on a terminal have colours; default true.
    pub color: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), addresses: false, json: false, color: true }
    }
}

/// Why logs cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LogError {
    /// The filter is empty or invalid.
    #[error("no log filter: {0:?}")]
    Filter(String),
    /// The system gives no thread to write with.
    #[error("no thread for the log: {0}")]
    Thread(#[from] io::Error),
    /// Something else in this process has logs already.
    #[error("logs were started before")]
    Started,
}

/// Started logs. Dropping it waits, for a second at most, until what was logged so far is written.
#[derive(Debug)]
pub(crate) struct Logs(LogQueue);

impl Logs {
    /// Writes a text among the lines of the log, in one piece.
    pub(crate) fn print(&self, text: &str) {
        self.0.push(text.as_bytes().to_vec());
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Returns whether a filter is valid: a list of levels and `target=level`, separated by commas. A single word would be taken for a target.
#[must_use]
pub(crate) fn is_filter(text: &str) -> bool {
    let is_level = |level: &str| level.parse::<LevelFilter>().is_ok() && !level.is_empty();
    let is_directive = |directive: &str| match directive.rsplit_once('=') {
        Some((target, level)) => !target.trim().is_empty() && is_level(level.trim()),
        None => is_level(directive.trim()),
    };
    text.split(',').all(is_directive) && EnvFilter::try_new(text).is_ok()
}

/// Starts writing logs to standard error.
///
/// # Errors
/// [`LogError`]: the filter cannot be read, or logs were started before.
pub(crate) fn start(config: &Config) -> Result<Logs, LogError> {
    let filter = Some(&config.level).filter(|level| is_filter(level));
    let filter = filter.and_then(|level| EnvFilter::try_new(level).ok());
    let filter = filter.ok_or_else(|| LogError::Filter(config.level.clone()))?;
    ids::show_personal_data(config.addresses);
    let queue = LogQueue::start(io::stderr())?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone())
        // The subscriber would report a failure by a macro that panics if that fails too.
        .log_internal_errors(false)
        .with_ansi(config.color && io::stderr().is_terminal());
    let started = if config.json { lines.json().try_init() } else { lines.try_init() };
    started.map_err(|_| LogError::Started)?;
    Ok(Logs(queue))
}

/// Writes the log's own counter in Prometheus' text format.
#[must_use]
pub(crate) fn to_prometheus() -> String {
    let name = "ginnel_log_lines_dropped_total";
    format!("# TYPE {name} counter\n{name} {}\n", log_queue::dropped())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_levels_and_a_bare_word_is_none() {
        for good in ["info", "DEBUG", "off", "ginnel=debug", "warn,ginnel::turn_server=trace"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in
            ["verbose", "", "ginnel", "ginnel=loud", "info,", "=info", "info;debug", "info, ginnel=debug"]
        {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
