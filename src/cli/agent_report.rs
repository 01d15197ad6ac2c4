//! What `agent` says on standard error: sentences for people, or one JSON event a line for programs.

use super::agent::hint;
use crate::agent::{Error, PathInfo, Ticket};
use crate::signaling::wire::NatType;
use serde_json::{Value, json};
use std::io::{self, Write};

/// The version of the JSON events.
pub(super) const VERSION: u32 = 1;

/// Writes to standard error.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes whole lines at once, so that they stay whole beside another process' lines.
    pub(super) fn say(&self, people: impl FnOnce() -> String, event: impl FnOnce() -> Value) {
        let mut text = if self.json { event().to_string() } else { people() };
        text.push('\n');
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }

    pub(super) fn ticket(&self, server: &str, ticket: &Ticket) {
        self.say(
            || format!("Server   {server}\n\nOn the other machine run:\n    agent connect {ticket}\n"),
            || json!({"v": VERSION, "t": "ticket", "ticket": ticket.to_string()}),
        );
    }

    /// Something that is tried again until it is there.
    pub(super) fn waiting(&self, server: &str, code: &str, what: &str, hint: &str) {
        self.say(
            || format!("Waiting  {server}: {what}; trying again\n  try     {hint}"),
            || json!({"v": VERSION, "t": "waiting", "server": server, "code": code, "what": what, "hint": hint}),
        );
    }

    /// A call that came to nothing, while others may come.
    pub(super) fn call_failed(&self, error: &Error) {
        let tried = tried(error).map(|tried| format!("; tried {tried}")).unwrap_or_default();
        self.say(
            || format!("Failed   a call: {error}{tried}; waiting for the next\n  try     {}", hint(error)),
            || {
                json!({
                    "v": VERSION, "t": "call_failed", "stage": error.stage().word(), "code": code(error), "what": error.to_string(),
                    "tried": tried, "hint": hint(error),
                })
            },
        );
    }

    /// The other side has ended its input, and this side's may go on for ever.
    pub(super) fn input_open(&self) {
        self.say(
            || "Waiting  the other side has sent all; this side's standard input is still open (--recv-only does without it)".to_owned(),
            || json!({"v": VERSION, "t": "input_open"}),
        );
    }

    pub(super) fn path(&self, path: &PathInfo) {
        self.say(
            || path.to_string(),
            || {
                json!({
                    "v": VERSION,
                    "t": "path",
                    "kind": path.kind.to_string(),
                    "local": path.local.to_string(),
                    "remote": path.remote.to_string(),
                    "rtt_ms": path.rtt.map(|rtt| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX)),
                    "since_ms": u64::try_from(path.since.as_millis()).unwrap_or(u64::MAX),
                    "reason": path.reason,
                })
            },
        );
    }

    pub(super) fn closed(&self, sent: u64, received: u64) {
        self.say(
            || format!("Closed   {sent} B out, {received} B in"),
            || json!({"v": VERSION, "t": "closed", "bytes_in": received, "bytes_out": sent}),
        );
    }

    pub(super) fn usage(&self, problem: &str, hint: &str) {
        self.say(
            || format!("error: {problem}\n  type    {hint}"),
            || json!({"v": VERSION, "t": "error", "stage": "usage", "code": "usage", "what": problem, "hint": hint}),
        );
    }

    pub(super) fn error(&self, error: &Error) {
        self.failed(&Failed {
            stage: error.stage().word(),
            code: code(error),
            what: error.to_string(),
            tried: tried(error),
            hint: hint(error),
        });
    }

    pub(super) fn failed(&self, failed: &Failed) {
        let Failed { stage, code, what, tried, hint } = failed;
        self.say(
            || {
                let tried = tried.as_ref().map(|tried| format!("\n  tried   {tried}")).unwrap_or_default();
                format!("error: {what}{tried}\n  try     {hint}")
            },
            || {
                json!({
                    "v": VERSION, "t": "error", "stage": stage, "code": code, "what": what, "tried": tried, "hint": hint,
                })
            },
        );
    }
}

/// What failed, what was tried, what to type.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) stage: &'static str,
    pub(super) code: &'static str,
    pub(super) what: String,
    pub(super) tried: Option<String>,
    pub(super) hint: &'static str,
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Unreachable { .. } => "unreachable",
        Error::Offline => "offline",
        Error::Refused(_) => "refused",
        Error::Replaced => "replaced",
        Error::Revoked => "revoked",
        Error::NoPath(_) => "no_path",
        Error::TimedOut(_) => "timed_out",
        Error::Handshake(_) => "handshake",
        Error::PeerEnded(_) => "peer_ended",
        Error::RelayLost(_) => "relay_lost",
        _ => "local",
    }
}

fn tried(error: &Error) -> Option<String> {
    let Error::NoPath(tried) = error else { return None };
    let nat = |nat: Option<NatType>| match nat {
        Some(NatType::Open) => "open",
        Some(NatType::Easy) => "one port for every peer",
        Some(NatType::Hard) => "changes ports",
        Some(NatType::Blocked) => "UDP blocked",
        None => "unknown",
    };
    let direct = format!("direct (NAT here: {}, there: {})", nat(tried.mine), nat(tried.theirs));
    let relay = match (tried.own_relay, tried.their_relay) {
        (true, true) => "the relay of both sides",
        (true, false) => "the relay of this side",
        _ => "the relay of the other side",
    };
    let attempts = [
        tried.direct.then_some(direct.as_str()),
        tried.relay().then_some(relay),
        tried.gateway.then_some("the gateway"),
    ];
    let attempts: Vec<&str> = attempts.into_iter().flatten().collect();
    Some(if attempts.is_empty() { "nothing".to_owned() } else { attempts.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Mode, Tried};

    #[test]
    fn only_what_was_tried_is_said_to_have_been_tried() {
        let told = |tried| tried_of(&Error::NoPath(tried)).unwrap();
        assert_eq!(told(Tried::default()), "nothing");
        let direct = Tried { direct: true, mode: Mode::NoRelay, ..Tried::default() };
        assert_eq!(told(direct), "direct (NAT here: unknown, there: unknown)");
        let all = Tried {
            direct: true,
            own_relay: true,
            gateway: true,
            mine: Some(NatType::Hard),
            ..Tried::default()
        };
        assert_eq!(
            told(all),
            "direct (NAT here: changes ports, there: unknown), the relay of this side, the gateway"
        );
        assert_eq!(told(Tried { their_relay: true, ..Tried::default() }), "the relay of the other side");
        assert_eq!(tried_of(&Error::Offline), None);
    }

    fn tried_of(error: &Error) -> Option<String> {
        tried(error)
    }
}
