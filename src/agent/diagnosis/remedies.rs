//! What would mend what a diagnosis has found: what to do, or what to type.

use super::http_answer::HttpAnswer;
use super::observations::{Failure, Observations, Outcome, PortMappingSupport, ServerObservations};
use super::verdict::{Diagnosis, Verdict};

/// Seconds by which a clock may differ without harm.
pub(super) const CLOCK_TOLERANCE: i64 = 60;

/// Returns what mends the address, the captive portal or the clock.
pub(super) fn of_internet(seen: &Observations, verdict: Verdict) -> Option<String> {
    let clock = seen.servers.iter().find_map(|server| server.clock_ahead);
    match verdict {
        Verdict::Offline => Some("connect this machine to a network".to_owned()),
        Verdict::CaptivePortal => Some(match seen.captive_portal() {
            Some(HttpAnswer { location: Some(location), .. }) => {
                format!("log in to the network: open {location} in a browser")
            }
            _ => "log in to the network: open http://example.com in a browser".to_owned(),
        }),
        _ if clock.is_some_and(|ahead| ahead.abs() > CLOCK_TOLERANCE) => Some(
            "set the clock, such as by `timedatectl set-ntp true`: certificates and credentials depend on it"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Returns what mends blocked UDP.
pub(super) fn of_transports(seen: &Observations, diagnosis: &Diagnosis) -> Option<&'static str> {
    let was_tested = seen.any_server(|server| {
        [&server.stun_v4, &server.stun_v6].into_iter().any(|outcome| outcome.failure().is_some())
    });
    let is_blocked = was_tested && !seen.any_server(ServerObservations::stun_works);
    match diagnosis.verdict {
        Verdict::Offline | Verdict::CaptivePortal | Verdict::NoServer => None,
        _ if is_blocked => Some("let this network's firewall pass UDP, at least to port 3478 of the server"),
        _ => None,
    }
}

/// Returns what mends a NAT that changes ports.
pub(super) fn of_nat(seen: &Observations, diagnosis: &Diagnosis) -> Option<&'static str> {
    let is_behind = |support| matches!(support, PortMappingSupport::BehindNat(_));
    let is_second = seen.port_mapping.all().into_iter().any(is_behind);
    match diagnosis.verdict {
        Verdict::Hard { .. } if is_second => Some(
            "another NAT is in front of the router: ask the provider for a public address, or use IPv6 on both sides",
        ),
        Verdict::Hard { .. } => {
            Some("UPnP or PCP on the router, or IPv6 on both sides, makes the path direct")
        }
        _ => None,
    }
}

/// Returns what mends the first failure of a server that matters.
pub(super) fn of_server(server: &ServerObservations, verdict: Verdict) -> Option<&'static str> {
    if matches!(verdict, Verdict::Offline | Verdict::CaptivePortal) {
        return None;
    }
    match &server.signaling {
        Outcome::Failed(Failure::NameNotFound) => {
            return Some("is the server's name right? `--server HOST:PORT` names another");
        }
        Outcome::Failed(Failure::Certificate(_)) => {
            return Some(
                "--ca FILE with the certificate of the server's authority, or a name that its certificate has",
            );
        }
        Outcome::Failed(Failure::Unauthorized(_)) => {
            return Some(
                "--key-file FILE     the file contains the key that `ginnel key` prints on the server",
            );
        }
        Outcome::Failed(Failure::Proxy(_)) => {
            return Some("check HTTPS_PROXY, ALL_PROXY and NO_PROXY, and what the proxy lets pass");
        }
        Outcome::Failed(Failure::Answer(_)) => {
            return Some(
                "does `ginnel serve` run there, and does a reverse proxy in front of it pass WebSocket?",
            );
        }
        Outcome::Failed(_) if server.stun_works() => {
            return Some("let this network's firewall pass TCP to the server, or use https://HOST:443");
        }
        Outcome::Failed(_) => {
            return Some("is `ginnel serve` running there, and its port open for TCP and UDP?");
        }
        Outcome::Works(_) | Outcome::NotTested(_) => {}
    }
    if server.relay_needs_key() {
        return Some(
            "--key-file FILE     with the key that `ginnel key` prints on the server there is a relay too",
        );
    }
    (!server.relay_works())
        .then_some("does the server relay (`turn` in its configuration), and are its relay ports open?")
}
