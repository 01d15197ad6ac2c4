//! What `agent share`, `agent forward` and `agent socks` report on standard error.

use super::escape;
use super::report::{Reporter, VERSION};
use crate::agent::{ConnectionError, PathInfo};
use crate::forwarding::policy::Policy;
use crate::forwarding::session::Traffic;
use crate::forwarding::wire::Refusal;
use serde_json::json;
use std::collections::HashSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The most different messages that one guest, or one command, causes.
const MAX_MESSAGES: usize = 64;

/// Messages that are reported once. Beyond [`MAX_MESSAGES`] none is.
#[derive(Debug, Default)]
pub(super) struct SeenMessages(Mutex<HashSet<String>>);

impl SeenMessages {
    /// Returns whether a message is to be reported.
    pub(super) fn is_new(&self, message: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() < MAX_MESSAGES && seen.insert(message.to_owned())
    }

    /// Reports everything again.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Reporter {
    /// Reports what is shared.
    pub(super) fn shared(&self, policy: &Policy, guests: usize, time: Option<Duration>) {
        for service in policy.services() {
            self.write(
                || format!("Sharing  {} as {}", service.target, service.name),
                || {
                    let to = service.target.to_string();
                    json!({"v": VERSION, "t": "sharing", "name": service.name, "to": to})
                },
            );
        }
        if policy.is_any_allowed() {
            self.write(
                || "Sharing  any public address, by TCP and UDP".to_owned(),
                || json!({"v": VERSION, "t": "sharing", "name": null, "to": "any"}),
            );
        }
        let time = time.map(|time| format!(", for {} s", time.as_secs())).unwrap_or_default();
        self.note(&format!("up to {guests} guests at a time{time}; Ctrl-C ends it for all"));
    }

    /// Reports a path of a guest; the first one shows that it has come.
    pub(super) fn guest_path(&self, guest: u64, path: &PathInfo) {
        self.write(
            || format!("Guest    {guest} · {path}"),
            || {
                json!({
                    "v": VERSION, "t": "guest", "guest": guest, "kind": path.kind.to_string(), "remote": path.remote.to_string(),
                    "lost": path.is_lost,
                })
            },
        );
    }

    /// Reports that a guest has left.
    pub(super) fn guest_left(&self, guest: u64, traffic: &Traffic, why: &ConnectionError) {
        let (sent, received) =
            (traffic.sent.load(Ordering::Relaxed), traffic.received.load(Ordering::Relaxed));
        let (connections, why) =
            (traffic.connections.load(Ordering::Relaxed), escape::line(&why.to_string()));
        self.write(
            || format!("Left     {guest}: {connections} connections, {sent} B out, {received} B in · {why}"),
            || {
                json!({
                    "v": VERSION, "t": "guest_left", "guest": guest, "connections": connections, "bytes_out": sent,
                    "bytes_in": received, "why": why,
                })
            },
        );
    }

    /// Reports a request of a guest that was refused.
    pub(super) fn guest_refused(&self, guest: u64, target: &str, refusal: &Refusal) {
        let (target, code) = (escape::name(target), refusal.code.name());
        self.write(
            || format!("Refused  {guest}: {target}: {}", escape::line(&refusal.detail)),
            || json!({"v": VERSION, "t": "refused", "guest": guest, "target": target, "code": code}),
        );
    }

    /// Reports a port that a guest has opened here.
    pub(super) fn guest_listening(&self, guest: u64, at: SocketAddr) {
        self.write(
            || format!("Guest    {guest} listens at {at} here"),
            || json!({"v": VERSION, "t": "guest_listening", "guest": guest, "at": at.to_string()}),
        );
    }

    /// Reports a local socket whose connections are forwarded.
    pub(super) fn forwarding(&self, at: &dyn Display, to: &str, path: Option<&PathInfo>) {
        let kind = path.map(|path| path.kind.to_string());
        let rtt = path.and_then(|path| path.rtt);
        let shown = |rtt: Duration| match rtt.as_millis() {
            0 => " · <1 ms".to_owned(),
            millis => format!(" · {millis} ms"),
        };
        self.write(
            || {
                let kind = kind.as_ref().map(|kind| format!(" · {kind}")).unwrap_or_default();
                format!("Listening {at} → {to}{kind}{}", rtt.map(shown).unwrap_or_default())
            },
            || json!({"v": VERSION, "t": "listening", "at": at.to_string(), "to": to, "kind": kind}),
        );
    }

    /// Reports a local connection that was not forwarded.
    pub(super) fn not_forwarded(&self, target: &str, why: &str) {
        let why = escape::line(why);
        self.write(
            || format!("Refused  {target}: {why}"),
            || json!({"v": VERSION, "t": "not_forwarded", "to": target, "what": why}),
        );
    }

    /// Reports that the connection to the other side is lost, or could not be opened again.
    pub(super) fn peer_lost(&self, why: &str) {
        let why = escape::line(why);
        self.write(
            || format!("Lost     the other side: {why}; connecting again. New connections wait up to 10 s"),
            || json!({"v": VERSION, "t": "peer_lost", "what": why}),
        );
    }

    /// Reports that the other side is connected again.
    pub(super) fn peer_back(&self) {
        self.write(|| "Back     the other side".to_owned(), || json!({"v": VERSION, "t": "peer_back"}));
    }
}
