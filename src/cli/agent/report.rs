//! What `agent` reports on standard error: text for users, or one JSON event per line for programs.

use super::error::CommandError;
use super::qr;
use crate::agent::{CodeEnd, PathInfo, PathTransport, ShortCode, Ticket};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::Duration;

/// The version of the JSON events.
pub(super) const VERSION: u32 = 1;

/// Writes reports to standard error.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    json: bool,
}

impl Reporter {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Writes whole lines with one call, so that lines of other processes do not mix with them.
    pub(super) fn write(&self, text: impl FnOnce() -> String, event: impl FnOnce() -> Value) {
        let mut text = if self.json { event().to_string() } else { text() };
        text.push('\n');
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }

    /// Reports the ticket, and the command that the other side runs with it.
    pub(super) fn ticket(&self, server: &str, command: &str, ticket: &Ticket) {
        self.write(
            || format!("Server   {server}\n\nOn the other machine run:\n    agent {command} {ticket}\n"),
            || json!({"v": VERSION, "t": "ticket", "ticket": ticket.to_string()}),
        );
    }

    /// Reports the code with which the other side runs `agent connect` at this server.
    pub(super) fn code(&self, server: &str, code: &ShortCode) {
        self.write(
            || {
                let command = format!("agent connect --server {server} {code}");
                let image = qr::image(&command).map(|image| format!("or scan:
{image}")).unwrap_or_default();
                format!(
                    "Server   {server}\n\nOn the other machine run:\n    {command}\n{image}    (10 min, one use)\n"
                )
            },
            || json!({"v": VERSION, "t": "code", "code": code.to_string(), "server": server}),
        );
    }

    /// Reports that a connector has used wrong words.
    pub(super) fn wrong_code(&self, left: u8) {
        self.write(
            || format!("Wrong    somebody tried this code with wrong words; attempts left: {left}"),
            || json!({"v": VERSION, "t": "wrong_code", "left": left}),
        );
    }

    /// Reports that a code is no longer valid; another one follows.
    pub(super) fn code_ended(&self, end: CodeEnd) {
        let (name, text) = match end {
            CodeEnd::Burnt => ("burnt", "was tried three times with wrong words"),
            CodeEnd::Expired => ("expired", "has expired"),
            _ => ("lost", "was lost: the server has restarted"),
        };
        self.write(
            || format!("Code     the code above {text}; here is a new one"),
            || json!({"v": VERSION, "t": "code_ended", "why": name}),
        );
    }

    /// Reports something of no consequence for the command.
    pub(super) fn note(&self, text: &str) {
        self.write(|| format!("Note     {text}"), || json!({"v": VERSION, "t": "note", "what": text}));
    }

    /// Reports a server that is retried until it is reachable.
    pub(super) fn waiting(&self, server: &str, code: &str, what: &str, hint: &str) {
        self.write(
            || match what.contains(server) {
                true => format!("Waiting  {what}; trying again\n  try     {hint}"),
                false => format!("Waiting  {server}: {what}; trying again\n  try     {hint}"),
            },
            || json!({"v": VERSION, "t": "waiting", "server": server, "code": code, "what": what, "hint": hint}),
        );
    }

    /// Reports a call that failed, while the listener accepts others.
    pub(super) fn call_failed(&self, error: &CommandError) {
        let (message, tried, description) = (error.message(), error.tried(), error.describe());
        let suffix = tried.as_ref().map(|tried| format!("; tried {tried}")).unwrap_or_default();
        self.write(
            || format!("Failed   a call: {message}{suffix}; waiting for the next\n  try     {}", description.hint),
            || {
                json!({
                    "v": VERSION, "t": "call_failed", "stage": description.stage, "code": description.code, "what": message,
                    "tried": tried, "hint": description.hint,
                })
            },
        );
    }

    /// Reports that the other side has finished while the local input may go on for ever.
    pub(super) fn input_open(&self) {
        self.write(
            || "Waiting  the other side has finished; standard input here is still open (--recv-only does not read it)".to_owned(),
            || json!({"v": VERSION, "t": "input_open"}),
        );
    }

    /// Reports the path in use, and how long none had answered before.
    pub(super) fn path(&self, path: &PathInfo, lost_for: Option<Duration>) {
        let again = lost_for.map(|time| format!(" · again after {:.1} s", time.as_secs_f64()));
        self.write(
            || format!("{path}{}", again.unwrap_or_default()),
            || {
                json!({
                    "v": VERSION,
                    "t": "path",
                    "kind": path.kind.to_string(),
                    "transport": if path.transport == PathTransport::Tcp { "tcp" } else { "udp" },
                    "local": path.local.to_string(),
                    "remote": path.remote.to_string(),
                    "rtt_ms": path.rtt.map(|rtt| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX)),
                    "since_ms": u64::try_from(path.since.as_millis()).unwrap_or(u64::MAX),
                    "reason": path.reason,
                    "lost_ms": lost_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                })
            },
        );
    }

    /// Reports that no path answers.
    pub(super) fn path_lost(&self, path: &PathInfo) {
        self.write(
            || path.to_string(),
            || {
                json!({
                    "v": VERSION,
                    "t": "path_lost",
                    "kind": path.kind.to_string(),
                    "remote": path.remote.to_string(),
                    "since_ms": u64::try_from(path.since.as_millis()).unwrap_or(u64::MAX),
                })
            },
        );
    }

    /// Shows on a terminal for how long no path has answered, in place of what the line showed before.
    pub(super) fn path_lost_for(&self, time: Duration) {
        let text = format!("\rpath lost, looking for another · {} s", time.as_secs());
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }

    /// Ends a line that changed in place.
    pub(super) fn end_line(&self) {
        let _ = io::stderr().lock().write_all(b"\n");
    }

    pub(super) fn closed(&self, sent: u64, received: u64) {
        self.write(
            || format!("Closed   {sent} B out, {received} B in"),
            || json!({"v": VERSION, "t": "closed", "bytes_in": received, "bytes_out": sent}),
        );
    }

    /// Reports why the command failed: the error, what was tried, what to type.
    pub(super) fn error(&self, error: &CommandError) {
        let (message, tried, description) = (error.message(), error.tried(), error.describe());
        let label = if description.stage == "usage" { "type" } else { "try " };
        self.write(
            || {
                let tried = tried.as_ref().map(|tried| format!("\n  tried   {tried}")).unwrap_or_default();
                format!("error: {message}{tried}\n  {label}    {}", description.hint)
            },
            || {
                json!({
                    "v": VERSION, "t": "error", "stage": description.stage, "code": description.code, "what": message,
                    "tried": tried, "hint": description.hint,
                })
            },
        );
    }
}
