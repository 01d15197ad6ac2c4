//! Each counter of the hub, with an event that it counts.

use super::*;
use crate::signaling::wire::ErrorCode;
use crate::signaling::{CallOutcomes, HubCounters};

const A: &str = "192.0.2.1:1000";
const A_PUNCH: &str = "192.0.2.1:1001";
const B: &str = "192.0.2.4:1000";

fn counters(hubs: &TestHubs) -> HubCounters {
    hubs.cluster.0[0].counters()
}

fn call(hubs: &mut TestHubs, caller: &str, callee: &str, mid: i64) -> Value {
    hubs.sent.clear();
    hubs.request_udp(A_PUNCH, &json!({"t": 4, "mid": mid, "params": {"tag": caller, "rtag": callee}}))
}

/// The `mid` and the token of the 51 that was sent to B.
fn notified(hubs: &mut TestHubs) -> (Value, Value) {
    let copies = hubs.take_datagrams(B);
    let notify = copies.into_iter().map(|(_, copy)| copy).find(|copy| copy["t"] == 51).unwrap();
    (notify["mid"].clone(), notify["token"].clone())
}

#[test]
fn clients_websockets_calls_and_registrations_are_counted() {
    let mut hubs = TestHubs::single(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    hubs.register_websocket(1);
    // A retransmission is not counted.
    hubs.request_udp(A, &json!({"t": 1, "mid": 1}));
    call(&mut hubs, &a, &b, 2);
    let counted = counters(&hubs);
    assert_eq!((counted.clients, counted.websockets, counted.calls, counted.registrations), (3, 1, 1, 3));
    hubs.close(1);
    let counted = counters(&hubs);
    assert_eq!((counted.clients, counted.websockets, counted.registrations), (2, 0, 3));
}

#[test]
fn calls_are_counted_by_outcome_and_requests_by_their_answers() {
    let mut hubs = TestHubs::single(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    // Refused by the callee.
    call(&mut hubs, &a, &b, 2);
    let (mid, token) = notified(&mut hubs);
    hubs.send_udp(B, &json!({"t": 51, "mid": mid, "token": token, "code": 204}));
    assert_eq!((counters(&hubs).calls_ended.refused, counters(&hubs).requests.acknowledged), (1, 1));
    // Answered, with a path, and ended by the caller; the 55 is not answered.
    call(&mut hubs, &a, &b, 3);
    let (mid, token) = notified(&mut hubs);
    hubs.send_udp(B, &json!({"t": -51, "mid": mid, "token": token, "code": 200}));
    let answered =
        hubs.take_datagrams(A_PUNCH).into_iter().map(|(_, copy)| copy).find(|copy| copy["t"] == 52).unwrap();
    hubs.send_udp(A_PUNCH, &json!({"t": -52, "mid": answered["mid"], "token": token, "code": 200}));
    assert_eq!(counters(&hubs).requests.acknowledged, 3);
    hubs.send_udp(A_PUNCH, &json!({"t": -53, "token": token, "code": 200, "extra": {"path": "direct"}}));
    hubs.request_udp(A_PUNCH, &json!({"t": 55, "mid": 4, "token": token}));
    hubs.advance_ms(8000);
    let counted = counters(&hubs);
    assert_eq!((counted.calls_ended.direct, counted.requests.unanswered), (1, 1));
    // Never answered.
    hubs.send_udp(A, &json!({"t": 2, "tag": a}));
    hubs.send_udp(B, &json!({"t": 2, "tag": b}));
    call(&mut hubs, &a, &b, 5);
    hubs.advance_ms(8000);
    let counted = counters(&hubs);
    let ended = CallOutcomes { unanswered: 1, refused: 1, direct: 1, ..CallOutcomes::default() };
    assert_eq!((counted.calls_ended, counted.calls), (ended, 0));
    assert_eq!((counted.requests.acknowledged, counted.requests.unanswered), (3, 2));
}

#[test]
fn errors_are_counted_by_code() {
    let mut hubs = TestHubs::single(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    hubs.request_udp(A, &json!({"t": "1", "mid": 9}));
    hubs.request_udp(A, &json!({"t": 99, "mid": 9}));
    hubs.request_udp(A, &json!({"t": 2, "mid": 9, "tag": "nobody"}));
    call(&mut hubs, &a, "nobody", 2);
    let counted = counters(&hubs);
    for code in [ErrorCode::Malformed, ErrorCode::Unsupported, ErrorCode::UnknownTag, ErrorCode::NotOnline] {
        assert_eq!(counted.errors(code), 1, "{code:?}");
    }
    // The late failure of a call.
    call(&mut hubs, &a, &b, 3);
    hubs.advance_ms(8000);
    assert_eq!(counters(&hubs).errors(ErrorCode::NoAnswer), 1);
}

#[test]
fn messages_between_hubs_are_counted() {
    let mut hubs = TestHubs::new(config());
    let caller = hubs.register_udp("192.0.2.3:1000");
    let callee = hubs.register_udp(B);
    let message = json!({"t": 4, "mid": 2, "params": {"tag": caller, "rtag": callee}});
    hubs.request_udp("192.0.2.3:1000", &message);
    let [here, there] = [0, 1].map(|node: usize| hubs.cluster.0[node].counters());
    assert_eq!((here.hub_messages_sent, there.hub_messages_received), (1, 1));
    assert_eq!((there.hub_messages_sent, here.hub_messages_received), (1, 1), "the answer");
    let hub = &mut hubs.cluster.0[0];
    let again = json!({"t": 4, "mid": 3, "params": {"tag": caller, "rtag": callee}}).to_string();
    hub.handle_datagram(hubs.now, ServerPort::Main, address("192.0.2.3:1000"), None, again.as_bytes());
    let Some(Output::Publish { to, message }) = hub.poll_output() else { panic!("nothing is sent") };
    hub.handle_undelivered(hubs.now, SingleServer.send(&to, message).unwrap_err());
    assert_eq!(hub.counters().hub_messages_undelivered, 1);
}

#[test]
fn every_counter_is_in_the_prometheus_text() {
    let text = HubCounters { registrations: 7, ..HubCounters::default() }.to_prometheus();
    for line in [
        "ginnel_signaling_clients 0",
        "ginnel_signaling_websockets 0",
        "ginnel_signaling_calls 0",
        "ginnel_signaling_registrations_total 7",
        "ginnel_signaling_calls_ended_total{outcome=\"direct\"} 0",
        "ginnel_signaling_errors_total{code=\"203\"} 0",
        "ginnel_signaling_requests_total{result=\"acknowledged\"} 0",
        "ginnel_signaling_hub_messages_total{direction=\"undelivered\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}
