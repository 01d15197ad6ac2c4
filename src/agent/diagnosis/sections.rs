//! What is shown of a diagnosis. Each fact has its text and its JSON value, so that both always say the same.

use super::nat_behavior::{NatBehavior, PortChoice};
use super::observations::{Observations, Outcome, PortMappingSupport, ServerObservations};
use super::pair::{NetworkDescription, PairPrediction, predict};
use super::remedies;
use super::verdict::{Diagnosis, Verdict};
use crate::agent::{PathInfo, PathKind};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Duration;

/// Columns of the name at the beginning of a line.
const LABEL_WIDTH: usize = 12;

/// One fact: its name in JSON, its value, and its text; some facts are part of another one's text.
#[derive(Debug, Clone, PartialEq)]
struct Fact {
    key: &'static str,
    value: Value,
    text: String,
}

/// One line of the report and one JSON event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Section {
    label: &'static str,
    /// The type of the event.
    pub(crate) event: &'static str,
    facts: Vec<Fact>,
    /// What would mend it.
    remedy: Option<String>,
}

impl Section {
    fn new(label: &'static str, event: &'static str, remedy: Option<String>) -> Self {
        Self { label, event, facts: Vec::new(), remedy }
    }

    fn fact(&mut self, key: &'static str, value: impl Into<Value>, text: impl Into<String>) {
        self.facts.push(Fact { key, value: value.into(), text: text.into() });
    }

    /// Returns the line without its label and remedy.
    fn line(&self) -> String {
        let texts = self.facts.iter().map(|fact| fact.text.as_str()).filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join(" · ")
    }

    /// Returns the text for users, without the end of its last line.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{:LABEL_WIDTH$}{}", self.label, self.line());
        if let Some(remedy) = &self.remedy {
            let _ = write!(text, "\n  try       {remedy}");
        }
        text
    }

    /// Returns the fields of the event, without its version and type.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let facts = self.facts.iter().map(|fact| (fact.key.to_owned(), fact.value.clone()));
        let mut fields: Map<String, Value> = facts.collect();
        fields.insert("text".to_owned(), self.line().into());
        fields.insert("hint".to_owned(), self.remedy.clone().into());
        fields
    }
}

/// Returns the report: one section for each topic, one for each server, and the verdict.
pub(crate) fn sections(seen: &Observations, diagnosis: &Diagnosis) -> Vec<Section> {
    let mut all = vec![
        internet(seen, diagnosis),
        transports(seen, diagnosis),
        nat(seen, diagnosis),
        port_mapping(seen),
    ];
    all.extend(seen.servers.iter().map(|found| server(found, diagnosis.verdict)));
    all.push(verdict(diagnosis));
    all
}

fn internet(seen: &Observations, diagnosis: &Diagnosis) -> Section {
    let mut section = Section::new("Internet", "internet", remedies::of_internet(seen, diagnosis.verdict));
    for (key, name, is_v4) in [("ipv4", "IPv4", true), ("ipv6", "IPv6", false)] {
        let local = seen.local.iter().find(|ip| ip.is_ipv4() == is_v4);
        match (seen.mapped(is_v4), local) {
            (Some(ip), _) => section.fact(key, ip.to_string(), format!("{name} ok {ip}")),
            (None, Some(ip)) => section.fact(key, Value::Null, format!("{name} {ip}, not seen by a server")),
            (None, None) => section.fact(key, Value::Null, format!("{name} no")),
        }
    }
    if seen.nat64 {
        section.fact("nat64", true, "NAT64 to IPv4");
    }
    let is_reached = seen.any_server(ServerObservations::is_reached);
    match seen.captive_portal() {
        Some(answer) => {
            let target =
                answer.location.as_ref().map(|location| format!(" → {location}")).unwrap_or_default();
            section.fact("captive_portal", true, format!("captive portal (HTTP {}{target})", answer.status));
        }
        None if is_reached => section.fact("captive_portal", false, "no captive portal"),
        None => section.fact("captive_portal", Value::Null, ""),
    }
    match seen.servers.iter().find_map(|server| server.clock_ahead) {
        Some(ahead) => section.fact("clock_ahead_s", ahead, format!("clock {}", clock_words(ahead))),
        None => section.fact("clock_ahead_s", Value::Null, ""),
    }
    section
}

fn clock_words(ahead: i64) -> String {
    match ahead {
        0 => "ok (±1 s)".to_owned(),
        1.. => format!("{ahead} s fast"),
        _ => format!("{} s slow", ahead.unsigned_abs()),
    }
}

fn transports(seen: &Observations, diagnosis: &Diagnosis) -> Section {
    let remedy = remedies::of_transports(seen, diagnosis).map(str::to_owned);
    let mut section = Section::new("Transports", "transports", remedy);
    let best = |outcomes: fn(&ServerObservations) -> Vec<&Outcome>| -> Option<&Outcome> {
        let all: Vec<&Outcome> = seen.servers.iter().flat_map(outcomes).collect();
        let works = all.iter().find(|outcome| outcome.works());
        works.or_else(|| all.iter().find(|outcome| outcome.failure().is_some())).or(all.first()).copied()
    };
    let is_captive = diagnosis.verdict == Verdict::CaptivePortal;
    let tcp =
        seen.servers.first().map_or_else(|| "TCP".to_owned(), |server| format!("TCP {}", server.name.port));
    let rows: [(&str, &str, Option<&Outcome>); 4] = [
        ("udp", "UDP", best(|server| vec![&server.stun_v4, &server.stun_v6])),
        ("tcp", &tcp, best(|server| vec![&server.tcp]).filter(|_| !is_captive)),
        ("tls_443", "TLS 443", best(|server| vec![&server.tls])),
        ("websocket", "WebSocket", best(|server| vec![&server.signaling])),
    ];
    for (key, name, outcome) in rows {
        let Some(outcome) = outcome else { continue };
        section.fact(key, outcome_value(outcome), format!("{name} {}", state_words(outcome, key)));
    }
    let proxy = seen.servers.iter().find_map(|server| server.proxy.as_ref());
    match proxy {
        Some(proxy) => section.fact("proxy", proxy.as_str(), format!("proxy {proxy}")),
        None => section.fact("proxy", Value::Null, "proxy none"),
    }
    section
}

fn state_words(outcome: &Outcome, key: &str) -> String {
    match outcome {
        Outcome::Works(_) => "ok".to_owned(),
        Outcome::Failed(_) if key == "udp" => "blocked (no answer)".to_owned(),
        Outcome::Failed(failure) => failure.to_string(),
        Outcome::NotTested(reason) => format!("not tested ({reason})"),
    }
}

fn outcome_value(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Works(time) => json!({"state": "ok", "rtt_ms": millis(*time)}),
        Outcome::Failed(failure) => {
            json!({"state": "failed", "code": failure.code(), "reason": failure.to_string()})
        }
        Outcome::NotTested(reason) => json!({"state": "not_tested", "reason": reason}),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn nat(seen: &Observations, diagnosis: &Diagnosis) -> Section {
    let remedy = remedies::of_nat(seen, diagnosis).map(str::to_owned);
    let mut section = Section::new("NAT", "nat", remedy);
    let Some(nat) = diagnosis.nat else {
        section.fact("kind", "unknown", "unknown: no answer by UDP");
        return section;
    };
    let terms: Vec<&str> =
        [nat.mapping.map(|mapping| mapping.as_str()), nat.filtering.map(|filtering| filtering.as_str())]
            .into_iter()
            .flatten()
            .collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" (RFC 4787: {})", terms.join(" / ")) };
    let filter = nat.filtering.map_or("filter unknown", |filtering| filtering.words());
    let (kind, words) = kind_words(nat);
    section.fact("kind", kind, format!("{kind}: {words}, {filter}{terms}"));
    section.fact("mapping", nat.mapping.map(|mapping| mapping.as_str()), "");
    section.fact("filtering", nat.filtering.map(|filtering| filtering.as_str()), "");
    if let Some(choice) = nat.port_choice {
        let (value, text) = match choice {
            PortChoice::Sequential => (json!("sequential"), "ports sequential".to_owned()),
            PortChoice::Block(size) => {
                (json!(format!("block of {size}")), format!("ports in a block of {size}"))
            }
            PortChoice::Random => (json!("random"), "ports random".to_owned()),
        };
        section.fact("ports", value, text);
    }
    if nat.has_pool {
        section.fact("several_addresses", true, "several outer addresses");
    }
    match nat.hairpin {
        Some(hairpin) => section.fact("hairpin", hairpin, if hairpin { "hairpin yes" } else { "hairpin no" }),
        None => section.fact("hairpin", Value::Null, ""),
    }
    let outer = seen.nat.first.filter(|_| nat.is_translated);
    section.fact("mapped", outer.map(|address| address.to_string()), "");
    if let Some(lifetime) = seen.mapping_lifetime {
        section.fact("mapping_lifetime", lifetime.to_string(), format!("mapping lives {lifetime}"));
    }
    section
}

/// The kind of a NAT, and what it does to mappings.
fn kind_words(nat: NatBehavior) -> (&'static str, &'static str) {
    match nat.mapping {
        _ if !nat.is_translated => ("none", "this machine has a public address"),
        Some(mapping) if mapping.changes() => ("hard", "another port for every peer"),
        Some(_) => ("easy", "same port for every peer"),
        None => ("unknown", "the server has no second port to compare with"),
    }
}

fn port_mapping(seen: &Observations) -> Section {
    let mut section = Section::new("Port map", "port_mapping", None);
    let found = seen.port_mapping;
    if found.all().into_iter().all(|support| support == PortMappingSupport::NotTested) {
        section.fact("tested", false, "not tested (no router that translates is known)");
        return section;
    }
    for (key, name, support) in
        [("upnp", "UPnP", found.upnp), ("pcp", "PCP", found.pcp), ("nat_pmp", "NAT-PMP", found.nat_pmp)]
    {
        let (value, text) = match support {
            PortMappingSupport::NotTested => (json!({"state": "not_tested"}), "not tested".to_owned()),
            PortMappingSupport::NoAnswer => (json!({"state": "no"}), "no".to_owned()),
            PortMappingSupport::Refuses => (json!({"state": "refused"}), "refuses".to_owned()),
            PortMappingSupport::BehindNat(address) => {
                let address = address.to_string();
                let text = format!("behind another NAT ({address})");
                (json!({"state": "behind_nat", "address": address}), text)
            }
            PortMappingSupport::Maps { external, lifetime } => {
                let (external, seconds) = (external.to_string(), lifetime.as_secs());
                let text = format!("yes ({external}, {seconds} s)");
                (json!({"state": "yes", "external": external, "lifetime_s": seconds}), text)
            }
        };
        section.fact(key, value, format!("{name} {text}"));
    }
    section
}

fn server(found: &ServerObservations, verdict: Verdict) -> Section {
    let remedy = remedies::of_server(found, verdict).map(str::to_owned);
    let mut section = Section::new("Server", "server", remedy);
    let name = found.name.to_string();
    let fastest =
        [&found.stun_v4, &found.stun_v6, &found.signaling].into_iter().filter_map(|o| o.round_trip()).min();
    let shown = match fastest.map(millis) {
        Some(0) => format!("{name} <1 ms"),
        Some(time) => format!("{name} {time} ms"),
        None => name.clone(),
    };
    section.fact("server", name, shown);
    section.fact("rtt_ms", fastest.map(millis), "");
    let stun = if found.stun_v4.works() || found.stun_v6.failure().is_none() {
        &found.stun_v4
    } else {
        &found.stun_v6
    };
    let stun = if matches!(stun, Outcome::NotTested(_)) { &found.stun_v6 } else { stun };
    for (key, name, outcome) in [
        ("stun", "STUN", stun),
        ("turn_udp", "TURN-UDP", &found.turn_udp),
        ("turn_tcp", "TURN-TCP", &found.turn_tcp),
        ("turn_tls", "TURN-TLS", &found.turn_tls),
        ("turn_websocket", "TURN-WebSocket", &found.turn_websocket),
        ("signaling", "signal", &found.signaling),
    ] {
        let text = match outcome {
            Outcome::Works(_) => format!("{name} ✓"),
            Outcome::Failed(failure) => format!("{name} ✗ {failure}"),
            Outcome::NotTested(reason) => format!("{name} – {reason}"),
        };
        section.fact(key, outcome_value(outcome), text);
    }
    section
}

/// What is known about the path to a peer.
#[derive(Debug)]
pub(crate) struct PairObservations<'a> {
    pub(crate) own: &'a NetworkDescription,
    /// `None` if it describes none.
    pub(crate) peer: Option<&'a NetworkDescription>,
    /// The path in use at the end.
    pub(crate) path: Option<&'a PathInfo>,
}

/// Returns the section about a peer: its network, the path that both can expect, and the one in use.
pub(crate) fn pair_section(pair: &PairObservations<'_>) -> Section {
    let prediction = pair.peer.map(|peer| predict(pair.own, peer));
    let is_direct = pair.path.map(|path| path.kind == PathKind::Direct);
    let remedy = match (prediction, is_direct) {
        (Some(PairPrediction::RelayedBothHard), _) => {
            Some("IPv6, UPnP or PCP on either side makes the path direct".to_owned())
        }
        (Some(PairPrediction::RelayedUdpBlocked), _) => {
            Some("let UDP pass on the side where it is blocked".to_owned())
        }
        (Some(PairPrediction::NoRelay), _) => {
            Some("--key-file FILE on one side gives both a relay".to_owned())
        }
        (Some(expected), Some(false)) if expected.is_direct() => {
            Some("`agent ping` shows whether the path becomes direct later".to_owned())
        }
        _ => None,
    };
    let mut section = Section::new("Pair", "pair", remedy);
    match pair.peer {
        Some(peer) => section.fact("peer_network", peer.words(), format!("there: {}", peer.words())),
        None => section.fact("peer_network", Value::Null, "the other side does not describe its network"),
    }
    section.fact("own_network", pair.own.words(), format!("here: {}", pair.own.words()));
    if let Some(prediction) = prediction {
        section.fact("expected", prediction.words(), format!("expected {}", prediction.words()));
        section.fact("expected_code", prediction.code(), "");
    }
    match pair.path {
        Some(path) => section.fact("actual", path.to_string(), format!("now {path}")),
        None => section.fact("actual", Value::Null, "no path yet"),
    }
    section.fact("actual_kind", pair.path.map(|path| path.kind.to_string()), "");
    section
}

fn verdict(diagnosis: &Diagnosis) -> Section {
    let mut section = Section::new("Verdict", "verdict", None);
    section.fact("code", diagnosis.verdict.code(), diagnosis.verdict.text());
    section.fact("way", diagnosis.verdict.has_way(), "");
    section
}

#[cfg(test)]
#[path = "sections_tests.rs"]
mod sections_tests;
