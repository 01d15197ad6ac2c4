//! What the observations mean for the paths of this host.

use super::nat_behavior::{Filtering, NatBehavior};
use super::observations::{Failure, Observations, Outcome, PortMappingSupport, ServerObservations};

/// What this host can expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This host has no address.
    Offline,
    /// A captive portal answers in place of the servers.
    CaptivePortal,
    /// No server is reached.
    NoServer,
    /// No server accepts the key.
    KeyRejected,
    /// A server is reached, but its signalling is not, so that nobody is found.
    NoSignaling,
    /// UDP is blocked, and the relay is not available.
    NoPath,
    /// UDP is blocked: everything is relayed.
    RelayOnly,
    /// The NAT gives each peer another port.
    Hard { relay: bool },
    /// The NAT gives each peer another port, but the router maps one for everybody.
    Mapped,
    /// The usual NAT or firewall.
    Easy { relay: bool },
    /// Everybody may send to this host.
    Open,
}

impl Verdict {
    /// Returns its name in JSON.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::CaptivePortal => "captive_portal",
            Self::NoServer => "no_server",
            Self::KeyRejected => "key_rejected",
            Self::NoSignaling => "no_signaling",
            Self::NoPath => "no_path",
            Self::RelayOnly => "relay_only",
            Self::Hard { .. } => "hard",
            Self::Mapped => "mapped",
            Self::Easy { .. } => "easy",
            Self::Open => "open",
        }
    }

    /// Returns whether there is some way to reach others.
    pub(crate) fn has_way(self) -> bool {
        use Verdict::{CaptivePortal, KeyRejected, NoPath, NoServer, NoSignaling, Offline};
        !matches!(self, Offline | CaptivePortal | NoServer | KeyRejected | NoSignaling | NoPath)
    }

    /// Returns the sentence.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Offline => "No path: this machine has no network.",
            Self::CaptivePortal => "No path: a captive portal holds this network until somebody logs in.",
            Self::NoServer => "No path: none of the servers is reached.",
            Self::KeyRejected => "No path: the server does not accept the key.",
            Self::NoSignaling => {
                "No path: the server is reached, but not its signalling, which finds the other side."
            }
            Self::NoPath => "No path: UDP leaves this network blocked, and no relay is available.",
            Self::RelayOnly => "Relayed with everybody: UDP leaves this network blocked.",
            Self::Hard { relay: true } => {
                "Direct with peers that are open or easy, sometimes after seconds; relayed with other NATs that change ports."
            }
            Self::Hard { relay: false } => {
                "Direct with peers that are open or easy, sometimes after seconds; other NATs that change ports need a relay, which is not available."
            }
            Self::Mapped => "Direct with almost everybody, by the port that the router maps.",
            Self::Easy { relay: true } => {
                "Direct with almost everybody; relayed only when UDP is blocked or ports change over there."
            }
            Self::Easy { relay: false } => {
                "Direct with almost everybody; no relay is available for peers whose UDP is blocked or whose ports change."
            }
            Self::Open => "Direct with everybody.",
        }
    }
}

/// The conclusions of a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) verdict: Verdict,
    /// `None` if UDP does not pass.
    pub(super) nat: Option<NatBehavior>,
}

impl Diagnosis {
    /// Draws the conclusions.
    pub(crate) fn new(seen: &Observations) -> Self {
        let nat = seen.nat.behavior();
        Self { verdict: verdict(seen, nat), nat }
    }
}

fn verdict(seen: &Observations, nat: Option<NatBehavior>) -> Verdict {
    let relay = seen.any_server(|server| server.relay_works());
    let udp = nat.is_some() || seen.any_server(|server| server.stun_works());
    if !seen.any_server(ServerObservations::is_reached) {
        return match seen.captive_portal() {
            Some(_) => Verdict::CaptivePortal,
            None if seen.local.is_empty() => Verdict::Offline,
            None => Verdict::NoServer,
        };
    }
    if !seen.any_server(|server| server.signaling.works()) {
        let is_rejected = |server: &ServerObservations| {
            matches!(server.signaling, Outcome::Failed(Failure::Unauthorized(_)))
        };
        return if seen.any_server(is_rejected) { Verdict::KeyRejected } else { Verdict::NoSignaling };
    }
    match nat {
        _ if !udp && relay => Verdict::RelayOnly,
        _ if !udp => Verdict::NoPath,
        Some(nat) if !nat.is_translated && nat.filtering == Some(Filtering::EndpointIndependent) => {
            Verdict::Open
        }
        Some(nat) if nat.mapping.is_some_and(|mapping| mapping.changes()) => {
            match seen.port_mapping.all().into_iter().any(PortMappingSupport::maps) {
                true => Verdict::Mapped,
                false => Verdict::Hard { relay },
            }
        }
        _ => Verdict::Easy { relay },
    }
}
