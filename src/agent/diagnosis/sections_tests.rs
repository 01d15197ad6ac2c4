use super::super::nat_behavior::NatObservations;
use super::super::observations::{Failure, PortMappingObservations};
use super::*;
use std::net::SocketAddr;

const MS: Duration = Duration::from_millis(11);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn good_server() -> ServerObservations {
    let works = || Outcome::Works(MS);
    ServerObservations {
        name: "turn.example".parse().unwrap(),
        addresses: vec![at("203.0.113.10:3478")],
        proxy: None,
        stun_v4: works(),
        stun_v6: Outcome::NotTested("the server has no such address"),
        mapped: vec!["203.0.113.9".parse().unwrap()],
        tcp: works(),
        tls: Outcome::Failed(Failure::Refused),
        turn_udp: works(),
        turn_tcp: works(),
        turn_tls: Outcome::Failed(Failure::Certificate("UnknownIssuer".to_owned())),
        turn_websocket: works(),
        signaling: works(),
        http: None,
        port_80: None,
        clock_ahead: Some(0),
    }
}

/// A host behind the usual NAT.
fn usual() -> Observations {
    let mapped = Some(at("203.0.113.9:41641"));
    Observations {
        local: vec!["10.0.0.2".parse().unwrap()],
        nat64: false,
        nat: NatObservations {
            local: Some(at("10.0.0.2:5000")),
            first: mapped,
            second_port: mapped,
            other_address: mapped,
            from_other_port: Some(false),
            from_other_address: Some(false),
            hairpin: Some(false),
            samples: Vec::new(),
        },
        port_mapping: PortMappingObservations {
            upnp: PortMappingSupport::NoAnswer,
            pcp: PortMappingSupport::Maps {
                external: at("203.0.113.9:41641"),
                lifetime: 120 * Duration::from_secs(1),
            },
            nat_pmp: PortMappingSupport::Refuses,
        },
        servers: vec![good_server()],
        mapping_lifetime: None,
    }
}

fn blocked(failure: &Failure) -> ServerObservations {
    let failed = || Outcome::Failed(failure.clone());
    ServerObservations {
        stun_v4: failed(),
        mapped: Vec::new(),
        tcp: failed(),
        tls: failed(),
        turn_udp: failed(),
        turn_tcp: failed(),
        turn_tls: failed(),
        turn_websocket: failed(),
        signaling: failed(),
        clock_ahead: None,
        ..good_server()
    }
}

fn report(seen: &Observations) -> String {
    let diagnosis = Diagnosis::new(seen);
    let lines: Vec<String> = sections(seen, &diagnosis).iter().map(Section::text).collect();
    lines.join("\n")
}

#[test]
fn the_usual_network_is_reported_in_six_lines() {
    assert_eq!(
        report(&usual()),
        "Internet    IPv4 ok 203.0.113.9 · IPv6 no · no captive portal · clock ok (±1 s)\n\
         Transports  UDP ok · TCP 3478 ok · TLS 443 refused · WebSocket ok · proxy none\n\
         NAT         easy: same port for every peer, only answers let in (RFC 4787: EIM / APDF) · hairpin no\n\
         Port map    UPnP no · PCP yes (203.0.113.9:41641, 120 s) · NAT-PMP refuses\n\
         Server      turn.example:3478 11 ms · STUN ✓ · TURN-UDP ✓ · TURN-TCP ✓ · TURN-TLS ✗ certificate not trusted · TURN-WebSocket ✓ · signal ✓\n\
         Verdict     Direct with almost everybody; relayed only when UDP is blocked or ports change over there."
    );
}

/// Numbers, names and words of a value; keywords of states are not shown as such.
fn shown_leaves(key: &str, value: &Value, leaves: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| shown_leaves(key, value, leaves)),
        Value::String(text) if !["state", "code", "text", "hint"].contains(&key) => leaves.push(text.clone()),
        Value::Number(number) if key == "lifetime_s" => leaves.push(number.to_string()),
        _ => {}
    }
}

fn networks() -> Vec<(Observations, Verdict)> {
    let with = |change: fn(&mut Observations)| {
        let mut seen = usual();
        change(&mut seen);
        seen
    };
    let hard = |seen: &mut Observations| {
        seen.nat.second_port = Some(at("203.0.113.9:41642"));
        seen.port_mapping = PortMappingObservations::NOT_TESTED;
    };
    let mut symmetric = usual();
    hard(&mut symmetric);
    symmetric.nat.samples = (1..8).map(|port| ([203, 0, 113, 9], 5000 + port).into()).collect();
    vec![
        (usual(), Verdict::Easy { relay: true }),
        (symmetric.clone(), Verdict::Hard { relay: true }),
        (Observations { port_mapping: usual().port_mapping, ..symmetric.clone() }, Verdict::Mapped),
        (
            with(|seen| {
                seen.nat.local = seen.nat.first;
                (seen.nat.from_other_port, seen.nat.from_other_address) = (Some(true), Some(true));
            }),
            Verdict::Open,
        ),
        (
            with(|seen| {
                let relay = Outcome::Works(MS);
                seen.nat = NatObservations::default();
                seen.servers = vec![ServerObservations {
                    signaling: Outcome::Works(MS),
                    turn_tcp: relay,
                    ..blocked(&Failure::TimedOut)
                }];
            }),
            Verdict::RelayOnly,
        ),
        (
            with(|seen| {
                seen.nat = NatObservations::default();
                seen.servers = vec![blocked(&Failure::TimedOut)];
            }),
            Verdict::NoServer,
        ),
        (
            with(|seen| {
                seen.nat = NatObservations::default();
                let failed = Outcome::Failed(Failure::Unauthorized("401 (no key given)"));
                seen.servers = vec![ServerObservations {
                    turn_tcp: failed,
                    signaling: Outcome::Works(MS),
                    ..blocked(&Failure::TimedOut)
                }];
            }),
            Verdict::NoPath,
        ),
        (with(|seen| seen.servers[0].signaling = Outcome::Failed(Failure::Refused)), Verdict::NoSignaling),
        (
            with(|seen| {
                seen.local.clear();
                seen.servers = vec![blocked(&Failure::NoRoute)];
            }),
            Verdict::Offline,
        ),
        (
            with(|seen| {
                seen.nat = NatObservations::default();
                let answer = b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n";
                let port_80 = super::super::http_answer::HttpAnswer::parse(answer);
                seen.servers = vec![ServerObservations { port_80, ..blocked(&Failure::TimedOut) }];
            }),
            Verdict::CaptivePortal,
        ),
    ]
}

#[test]
fn text_and_json_have_the_same_facts_in_every_network() {
    for (seen, verdict) in networks() {
        let diagnosis = Diagnosis::new(&seen);
        assert_eq!(diagnosis.verdict, verdict);
        for section in sections(&seen, &diagnosis) {
            let fields = section.fields();
            let text = section.text();
            assert!(text.contains(fields["text"].as_str().unwrap()), "{text}\n{fields:?}");
            assert_eq!(fields["hint"].as_str().is_some_and(|hint| text.contains(hint)), text.contains('\n'));
            let mut leaves = Vec::new();
            fields.iter().for_each(|(key, value)| shown_leaves(key, value, &mut leaves));
            let hidden = |leaf: &&String| {
                !text.contains(leaf.as_str())
                    && seen.nat.first.map(|at| at.to_string()) != Some((*leaf).clone())
            };
            let missing: Vec<_> = leaves.iter().filter(hidden).collect();
            assert!(missing.is_empty(), "{missing:?} is not in\n{text}");
        }
    }
}

#[test]
fn each_trouble_has_something_to_do_about_it() {
    for (seen, verdict) in networks() {
        let text = report(&seen);
        let needs_help = !matches!(verdict, Verdict::Easy { .. } | Verdict::Open | Verdict::Mapped);
        assert_eq!(text.contains("\n  try       "), needs_help, "{text}");
        assert_eq!(verdict.has_way(), !verdict.text().starts_with("No path"));
    }
    let mut late = usual();
    late.servers[0].clock_ahead = Some(-3600);
    let text = report(&late);
    assert!(text.contains("clock 3600 s slow") && text.contains("timedatectl"), "{text}");
    let mut untrusted = usual();
    untrusted.servers[0].signaling = Outcome::Failed(Failure::Unauthorized("401 (wrong key)"));
    let text = report(&untrusted);
    assert!(text.contains("signal ✗ 401 (wrong key)") && text.contains("--key-file FILE"), "{text}");
}
