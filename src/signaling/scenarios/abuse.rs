//! Abuse by unauthenticated clients, and exhaustion of limits.

use super::super::{Limits, Rate};
use super::*;
use crate::limits::{Limit, Table};
use proptest::prelude::*;

const A: &str = "192.0.2.10:1000";
const VICTIM: &str = "203.0.113.7:7000";
const HEADERS: usize = 28;

fn bytes_sent_to(hubs: &mut TestHubs, to: &str) -> usize {
    hubs.take_datagrams(to).iter().map(|(_, value)| value.to_string().len() + HEADERS).sum()
}

#[test]
fn an_unproven_address_gets_at_most_three_times_the_bytes_it_sent() {
    let mut hubs = TestHubs::single(Config { list: true, ..config() });
    for i in 0..80 {
        hubs.register_udp(&format!("192.0.2.30:{}", 1000 + i));
    }
    let register = json!({"t": 1, "mid": 1});
    hubs.send_udp(VICTIM, &register);
    let answers = hubs.take_datagrams(VICTIM);
    assert!(answers[0].1.to_string().len() + HEADERS <= 3 * (register.to_string().len() + HEADERS));
    let tag = answers[0].1["extra"]["tag"].as_str().unwrap().to_owned();
    // An attacker who forges the victim's address can read its tag from a list.
    let spy = hubs.register_udp(A);
    for mid in 0..3 {
        let after = json!(["", "m", "t"][mid as usize]);
        let after = if after == "" { Value::Null } else { after };
        hubs.send_udp(A, &json!({"t": 3, "mid": mid, "params": {"tag": spy, "after": after}}));
    }
    hubs.take_datagrams(A);
    for message in [
        json!({"t": 2, "tag": tag}),
        json!({"t": 3, "mid": 2, "params": {"tag": tag}}),
        json!({"t": 3, "mid": 2, "params": {"tag": tag}}),
        json!({"t": 4, "mid": 3, "params": {"tag": tag, "rtag": "x"}}),
        json!({"t": 9}),
        json!({"t": "x"}),
    ] {
        hubs.send_udp(VICTIM, &message);
        let got = bytes_sent_to(&mut hubs, VICTIM);
        assert!(got <= 3 * (message.to_string().len() + HEADERS), "{message}: {got}");
    }
}

#[test]
fn a_longer_request_over_udp_gets_the_ice_servers() {
    let mut hubs = TestHubs::single(config());
    let pad = "x".repeat(200);
    let answer = hubs.request_udp(A, &json!({"t": 1, "mid": 1, "params": {"key": "the key"}, "pad": pad}));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_unproven_callee_gets_at_most_three_datagrams() {
    let mut hubs = TestHubs::single(config());
    let a = hubs.register_udp(A);
    let victim = hubs.request_udp(VICTIM, &json!({"t": 1, "mid": 1}))["extra"]["tag"].clone();
    hubs.request_udp(A, &json!({"t": 4, "params": {"tag": a, "rtag": victim}}));
    hubs.advance_ms(7499);
    assert_eq!(hubs.take_datagrams(VICTIM).len(), 3);
    hubs.advance_ms(1);
    assert_eq!(code(&hubs.take_datagrams(A)[0].1), 207);
}

/// A call with an offer of the maximum length of a datagram.
fn long_call(mid: i64, tag: &str, rtag: &Value) -> Value {
    let candidate = format!("candidate:1 1 udp 2130706431 10.0.1.17 8998 typ host {}", "x".repeat(180));
    let cands = [candidate.clone(), candidate.clone(), candidate];
    let params =
        json!({"tag": tag, "rtag": rtag, "ufrag": "u".repeat(60), "cands": cands, "laddrs": ["10.0.0.1:1"]});
    json!({"t": 4, "mid": mid, "params": params})
}

#[test]
fn an_unproven_address_gets_only_the_callers_tag_and_only_for_few_calls() {
    let mut hubs = TestHubs::single(config());
    let (mut calls, mut sent) = (0, 0);
    for number in 0..40 {
        // An attacker who registers a forged address knows the tag, because it is derived from the secret.
        let secret = format!("{number:022}");
        let register = json!({"t": 1, "mid": 1, "params": {"secret": secret}});
        let victim = hubs.request_udp(&format!("203.0.113.{}:{}", 7 + number % 9, 7000 + number), &register)
            ["extra"]["tag"]
            .clone();
        let attacker = hubs.register_udp(&format!("192.0.2.{}:1000", 10 + number));
        for mid in 0..3 {
            let call = long_call(mid, &attacker, &victim);
            calls +=
                i64::from(code(&hubs.request_udp(&format!("192.0.2.{}:1001", 10 + number), &call)) == 200);
        }
    }
    assert_eq!(calls, 20, "for all addresses of the network");
    hubs.advance_ms(400);
    for output in std::mem::take(&mut hubs.sent) {
        let Output::Datagram { to, payload, .. } = output else { continue };
        let value = parsed(&payload);
        if !to.to_string().starts_with("203.0.113.") || value["t"] != 51 {
            continue;
        }
        sent += 1;
        let received: Vec<&String> = value["params"].as_object().unwrap().keys().collect();
        assert_eq!(received, ["host", "ltag", "port"]);
        assert!(payload.len() <= 250, "{} bytes", payload.len());
    }
    assert_eq!(sent, 2 * calls);
}

#[test]
fn the_bytes_of_pending_requests_are_limited_and_all_released() {
    let limits = Limits { call_bytes: 8 * 400_000, calls_per_tag: 1000, ..Limits::default() };
    let mut hubs = TestHubs::single(Config { limits, ..config() });
    let sdp = "s".repeat(49_000);
    let callees: Vec<String> = (0..12).map(|conn| hubs.register_websocket(100 + conn)).collect();
    let caller = hubs.register_websocket(1);
    let call = |mid: usize, rtag: &str| json!({"t": 4, "mid": mid, "params": {"tag": caller, "rtag": rtag, "sdp": sdp}});
    let codes: Vec<i64> = callees
        .iter()
        .zip(1..)
        .map(|(rtag, mid)| code(&hubs.request_websocket(1, &call(mid, rtag))))
        .collect();
    assert_eq!(codes, [[200; 8].as_slice(), &[206; 4]].concat(), "an eighth of it is one network's");
    let texts = std::sync::Arc::clone(&hubs.cluster.0[0].calls.texts);
    assert!(texts.total() > 8 * 49_000);
    // Nothing is sent again to a callee that has answered.
    let notified = one(hubs.take_texts(100));
    let (mid, token) = (&notified["mid"], &notified["token"]);
    hubs.send_text(100, &json!({"t": -51, "mid": mid, "token": token, "code": 200, "extra": {"sdp": sdp}}));
    assert!(texts.total() < 8 * 49_000);
    hubs.sent.clear();
    assert_eq!(code(&hubs.request_websocket(1, &call(50, &callees[11]))), 200);
    hubs.sent.clear();
    hubs.advance_ms(40_000);
    assert_eq!((texts.total(), hubs.cluster.calls()), (0, 0));
}

#[test]
fn lists_are_charged_by_their_length() {
    let per_list = Rate::new(27.0, 2700.0);
    let limits = Limits { per_list, tags_per_network: 1000, ..Limits::default() };
    let mut hubs = TestHubs::single(Config { limits, ..config() });
    let spy = hubs.register_websocket(1);
    for conn in 2..102 {
        hubs.register_websocket(conn);
    }
    let list = |mid: i64| json!({"t": 3, "mid": mid, "params": {"tag": spy}});
    let answer = hubs.request_websocket(1, &list(1));
    assert_eq!(answer["extra"]["tags"].as_array().map(Vec::len), Some(100));
    assert_eq!(code(&hubs.request_websocket(1, &list(2))), 206);
    let other = hubs.register_websocket(200);
    let other = json!({"t": 3, "mid": 1, "params": {"tag": other}});
    assert_eq!(
        code(&hubs.request_websocket(200, &other)),
        206,
        "in another connection of the network just as well"
    );
    hubs.advance_ms(30_000);
    assert_eq!(code(&hubs.request_websocket(1, &list(3))), 200);
}

#[test]
fn a_client_over_its_rate_gets_one_error_a_second_and_is_served_again_later() {
    let mut hubs = TestHubs::single(config());
    for _ in 0..1000 {
        hubs.send_udp(A, &json!({"t": 77}));
    }
    let codes: Vec<i64> = hubs.take_datagrams(A).iter().map(|(_, value)| code(value)).collect();
    assert_eq!((codes.len(), codes[200]), (201, 206));
    hubs.register_udp("192.0.2.11:1");
    hubs.advance_ms(1000);
    hubs.register_udp(A);
}

#[test]
fn calls_between_the_same_two_are_limited() {
    let mut hubs = TestHubs::single(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp("192.0.2.20:1"));
    let call = json!({"t": 4, "params": {"tag": a, "rtag": b}});
    let call_again = |_| {
        hubs.sent.clear();
        code(&hubs.request_udp("192.0.2.10:1001", &call))
    };
    let codes: Vec<i64> = (0..11).map(call_again).collect();
    assert_eq!((&codes[..10], codes[10]), (&[200; 10][..], 206));
    assert_eq!(
        code(&hubs.request_udp("192.0.2.20:2", &json!({"t": 4, "params": {"tag": b, "rtag": a}}))),
        200
    );
}

#[test]
fn every_limit_is_enforced() {
    let limits = Limits {
        tags: 3,
        tags_per_network: 2,
        calls: 2,
        calls_per_tag: 1,
        notices_per_call: 2,
        connections: 3,
        connections_per_network: 2,
        ..Limits::default()
    };
    let times = |limit| Table::of_process().get(limit).0;
    let received = [
        Limit::SignalingTags,
        Limit::SignalingTagsPerNetwork,
        Limit::SignalingCallsPerTag,
        Limit::SignalingNoticesPerCall,
        Limit::SignalingConnections,
        Limit::SignalingConnectionsPerNetwork,
    ];
    let before = received.map(times);
    let mut hubs = TestHubs::single(Config { limits, ..config() });
    let (a, b) = (hubs.register_udp("192.0.2.1:1"), hubs.register_udp("192.0.2.1:2"));
    assert_eq!(code(&hubs.request_udp("192.0.2.1:3", &json!({"t": 1}))), 206);
    let c = hubs.register_udp("192.0.2.2:1");
    assert_eq!(code(&hubs.request_udp("192.0.2.3:1", &json!({"t": 1}))), 206);
    let call = |tag: &str, rtag: &str| json!({"t": 4, "params": {"tag": tag, "rtag": rtag}});
    let answer = hubs.request_udp("192.0.2.1:1", &call(&a, &b));
    assert_eq!(code(&hubs.request_udp("192.0.2.2:1", &call(&c, &b))), 206);
    let token = answer["extra"]["token"].clone();
    let trickle = |mid: i64| json!({"t": 54, "mid": mid, "token": token, "params": {"cands": ["c"]}});
    assert_eq!(code(&hubs.request_udp("192.0.2.1:1", &trickle(1))), 200);
    assert_eq!(code(&hubs.request_udp("192.0.2.1:1", &trickle(2))), 206);
    for conn in 1..=3 {
        hubs.open(conn);
    }
    hubs.cluster.handle_websocket_opened(hubs.now, ConnId(4), [192, 0, 2, 1].into());
    hubs.cluster.handle_websocket_opened(hubs.now, ConnId(5), [192, 0, 2, 2].into());
    hubs.drain();
    let refused = |conn, limit| Output::Refuse { conn: ConnId(conn), limit };
    let closed: Vec<_> = hubs.sent.iter().filter(|output| matches!(output, Output::Refuse { .. })).collect();
    assert_eq!(
        closed,
        [&refused(3, Limit::SignalingConnectionsPerNetwork), &refused(5, Limit::SignalingConnections)]
    );
    for (limit, before) in received.into_iter().zip(before) {
        assert!(times(limit) > before, "{}", limit.name());
    }
    hubs.close(1);
    hubs.open(6);
    hubs.sent.clear();
    hubs.send_text(6, &json!({"t": 77}));
    assert_eq!(hubs.take_texts(6).len(), 1);
    hubs.send_text(3, &json!({"t": 77}));
    assert_eq!(hubs.take_texts(3).len(), 0);
}

#[derive(Debug, Clone)]
enum Event {
    Datagram(u8, Vec<u8>),
    Send(u8, bool, i64, u8, u8),
    Open(u8),
    Close(u8),
    Wait(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..64);
    let t = prop_oneof![1..6_i64, 51..56_i64, -56..-50_i64, Just(60), Just(102)];
    prop_oneof![
        1 => (any::<u8>(), bytes).prop_map(|(from, bytes)| Event::Datagram(from, bytes)),
        8 => (any::<u8>(), any::<bool>(), t, any::<u8>(), any::<u8>())
            .prop_map(|(from, web, t, x, y)| Event::Send(from, web, t, x, y)),
        1 => (0..12_u8).prop_map(Event::Open),
        1 => (0..12_u8).prop_map(Event::Close),
        1 => any::<u16>().prop_map(Event::Wait),
    ]
}

/// Picks a value that was seen before, so that tags, tokens and `mid`s are often valid.
fn pick(seen: &[Value], index: u8) -> Value {
    if seen.is_empty() { json!("x") } else { seen[usize::from(index) % seen.len()].clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_sequence_of_events_panics_or_exceeds_a_limit(events in proptest::collection::vec(event(), 0..300)) {
        let limits = Limits {
            tags: 8, tags_per_network: 6, calls: 5, calls_per_tag: 3, notices_per_call: 4, connections: 4, watches: 5,
            answer_bytes: 4000, rates: 4, per_source: Rate::new(50.0, 50.0), ..Limits::default()
        };
        let mut hubs = TestHubs::new(Config { limits, ..config() });
        let (mut tags, mut tokens, mut mids) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            let from = |from: u8| SocketAddr::from(([192, 0, 2, from % 4], 1 + u16::from(from % 3)));
            match event {
                Event::Datagram(who, bytes) => {
                    hubs.cluster.handle_datagram(hubs.now, ServerPort::Aux, from(who), None, &bytes);
                }
                Event::Send(who, web, t, x, y) => {
                    let (tag, rtag, token) = (pick(&tags, x), pick(&tags, y), pick(&tokens, x));
                    let mid = if y % 3 == 0 { json!(y) } else { pick(&mids, y) };
                    let mut message = json!({"t": t, "mid": mid.as_i64(), "token": token,
                        "params": {"tag": tag, "rtag": rtag, "ltag": tag, "tags": [tag, rtag], "watch": y % 4 != 0, "cands": ["c"], "ufrag": "u"}});
                    if x % 3 == 0 {
                        message["params"]["secret"] = json!(format!("a secret of twenty-two {}", x % 2));
                        message["params"]["epoch"] = json!(y % 8);
                    }
                    if y % 5 == 0 { message["code"] = json!(204); }
                    let text = message.to_string();
                    if web { hubs.cluster.handle_websocket_text(hubs.now, ConnId(u64::from(who % 12)), &text); }
                    else { hubs.cluster.handle_datagram(hubs.now, ServerPort::Main, from(who), None, text.as_bytes()); }
                }
                Event::Open(conn) => hubs.cluster.handle_websocket_opened(hubs.now, ConnId(u64::from(conn)), [192, 0, 2, conn].into()),
                Event::Close(conn) => hubs.cluster.handle_websocket_closed(hubs.now, ConnId(u64::from(conn))),
                Event::Wait(ms) => hubs.advance(Duration::from_millis(u64::from(ms))),
            }
            hubs.drain();
            for output in std::mem::take(&mut hubs.sent) {
                let payload = match output {
                    Output::Datagram { payload, .. } => { prop_assert!(payload.len() <= 1200); payload }
                    Output::Text { text, .. } => text.into_bytes(),
                    Output::Close { .. } | Output::Refuse { .. } | Output::Publish { .. } => continue,
                };
                let value = parsed(&payload);
                let extra = &value["extra"];
                tags.extend(extra.get("tag").cloned());
                tokens.extend(extra.get("token").or(value.get("token")).cloned());
                mids.extend(value.get("mid").cloned());
            }
            for hub in &hubs.cluster.0 {
                prop_assert!(hub.clients() <= 8 && hub.calls() <= 5 && hub.websockets.len() <= 4);
                prop_assert!(hub.watches.len() <= 5 && hub.responses.bytes() <= 4000);
                prop_assert!(hub.sources.keys() <= 4 && hub.pairs.keys() <= 4);
            }
        }
        // After two minutes of silence no UDP client and no timer is left.
        for conn in 0..12 { hubs.cluster.handle_websocket_closed(hubs.now, ConnId(conn)); }
        hubs.drain();
        hubs.advance(Duration::from_secs(120));
        prop_assert_eq!((hubs.cluster.clients(), hubs.cluster.calls(), hubs.cluster.poll_timeout()), (0, 0, None));
        prop_assert_eq!(hubs.cluster.sum(|hub| hub.away.len() + hub.websockets.len()), 0);
    }
}
