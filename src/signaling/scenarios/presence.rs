//! Registration, heartbeats, lists and admission.

use super::*;
use crate::signaling::Scopes;

const A: &str = "192.0.2.10:1000";
const B: &str = "192.0.2.20:2000";

#[test]
fn a_client_registers_sends_heartbeats_and_lists_the_other_clients() {
    // S0-1 to S0-7.
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    assert_ne!(a, b);
    assert_eq!(a.len(), 24);
    let list = hubs.request_udp(A, &json!({"t": 3, "mid": 5, "params": {"tag": a}}));
    assert_eq!(list, json!({"t": -3, "mid": 5, "code": 200, "extra": {"tags": [b]}}));
    assert_eq!(hubs.request_udp(A, &json!({"t": 2, "tag": a})), json!({"t": -2, "code": 200}));
}

#[test]
fn a_tag_expires_sixty_seconds_after_the_last_heartbeat() {
    // S0-41, S0-A17.
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    for _ in 0..4 {
        hubs.advance_ms(15_000);
        assert_eq!(code(&hubs.request_udp(A, &json!({"t": 2, "tag": a}))), 200);
    }
    assert_eq!(hubs.cluster.clients(), 1);
    let list = hubs.request_udp(A, &json!({"t": 3, "mid": 9, "params": {"tag": a}}));
    assert_eq!(list["extra"]["tags"], json!([]));
    let call = hubs.request_udp(A, &json!({"t": 4, "mid": 10, "params": {"tag": a, "rtag": b}}));
    assert_eq!(code(&call), 203);
    assert_eq!(code(&hubs.request_udp(B, &json!({"t": 2, "tag": b}))), 202);
}

#[test]
fn a_tag_is_valid_only_from_the_address_that_registered_it() {
    // t=2 and t=3 must come from the same IP and port, t=4 from the same IP.
    let mut hubs = TestHubs::new(config());
    let (a, b) = (hubs.register_udp(A), hubs.register_udp(B));
    let other_port = "192.0.2.10:1001";
    assert_eq!(code(&hubs.request_udp(other_port, &json!({"t": 2, "tag": a}))), 202);
    assert_eq!(code(&hubs.request_udp(other_port, &json!({"t": 3, "params": {"tag": a}}))), 202);
    assert_eq!(
        code(&hubs.request_udp("192.0.2.11:1000", &json!({"t": 4, "params": {"tag": a, "rtag": b}}))),
        202
    );
    assert_eq!(code(&hubs.request_udp(other_port, &json!({"t": 4, "params": {"tag": a, "rtag": b}}))), 200);
    let web = hubs.register_websocket(1);
    hubs.open(2);
    for t in [2, 3, 4] {
        let message = json!({"t": t, "params": {"tag": web, "rtag": b}});
        assert_eq!(code(&hubs.request_websocket(2, &message)), 202);
        assert_eq!(code(&hubs.request_udp("198.51.100.1:1", &message)), 202);
    }
}

#[test]
fn a_retransmitted_request_gets_the_same_answer_and_takes_effect_once() {
    // S0-A14.
    let mut hubs = TestHubs::new(config());
    let first = hubs.request_udp(A, &json!({"t": 1, "mid": 7}));
    assert_eq!(hubs.request_udp(A, &json!({"t": 1, "mid": 7})), first);
    assert_eq!(hubs.cluster.clients(), 1);
    let (a, b) = (first["extra"]["tag"].clone(), hubs.register_udp(B));
    let call = json!({"t": 4, "mid": 8, "params": {"tag": a, "rtag": b}});
    let answer = hubs.request_udp(A, &call);
    hubs.advance_ms(29_000);
    hubs.take_datagrams(A);
    assert_eq!(hubs.request_udp(A, &call), answer);
    hubs.take_datagrams(B);
    hubs.advance_ms(1000);
    assert_eq!(hubs.cluster.calls(), 0);
    assert_ne!(hubs.request_udp(A, &call), answer);
}

#[test]
fn an_address_that_registers_again_keeps_its_tag() {
    let mut hubs = TestHubs::new(config());
    let tag = hubs.register_udp(A);
    assert_eq!(hubs.request_udp(A, &json!({"t": 1}))["extra"]["tag"], json!(tag));
    let web = hubs.register_websocket(1);
    let again = hubs.request_websocket(1, &json!({"t": 1, "mid": 2, "params": {"key": "the key"}}));
    assert_eq!(again["extra"]["tag"], json!(web));
    assert_eq!(hubs.cluster.clients(), 2);
}

#[test]
fn a_request_without_mid_is_answered_without_one_and_a_wrong_type_with_201() {
    // S0-A24, S0-A13, S0-A16.
    let mut hubs = TestHubs::new(config());
    assert!(hubs.request_udp(A, &json!({"t": 1})).get("mid").is_none());
    let answer = hubs.request_udp(A, &json!({"t": "1", "mid": i64::MAX}));
    assert_eq!(answer, json!({"t": 0, "mid": i64::MAX, "code": 201, "em": "malformed"}));
    assert_eq!(code(&hubs.request_udp(A, &json!({"t": 1, "mid": "1"}))), 201);
    let answer = hubs.request_udp(A, &json!({"t": 77, "mid": 1}));
    assert_eq!(answer, json!({"t": 77, "mid": 1, "code": 208, "em": "unsupported t"}));
    for t in [51, 52, 53, 102] {
        let params = json!({"ltag": "a", "token": "x"});
        assert_eq!(code(&hubs.request_udp(A, &json!({"t": t, "params": params}))), 208);
    }
}

#[test]
fn malformed_messages_are_dropped_over_udp_and_answered_over_websocket() {
    // S0-A3: no reflection.
    let mut hubs = TestHubs::new(config());
    let long = format!("{{\"t\":1,\"pad\":\"{}\"}}", "x".repeat(1200));
    for bytes in ["{", "{\"t\":2,}", "[]", "", &long, "{\"t\":-1}", "{\"t\":1,\"code\":201}"] {
        hubs.cluster.handle_datagram(hubs.now, ServerPort::Main, address(A), None, bytes.as_bytes());
        hubs.drain();
    }
    assert_eq!(hubs.sent, []);
    hubs.open(1);
    hubs.cluster.handle_websocket_text(hubs.now, ConnId(1), "{");
    hubs.drain();
    assert_eq!(code(&one(hubs.take_texts(1))), 201);
}

#[test]
fn a_list_is_paged_over_udp_and_complete_over_websocket() {
    // S0-A15, S0-A22.
    let mut hubs = TestHubs::new(config());
    let a = hubs.register_udp(A);
    let mut all: Vec<String> =
        (0..100).map(|i| hubs.register_udp(&format!("192.0.2.30:{}", 1000 + i))).collect();
    all.sort();
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    for mid in 0.. {
        hubs.send_udp(A, &json!({"t": 3, "mid": mid, "params": {"tag": a, "after": after}}));
        let page = one(hubs.take_datagrams(A).into_iter().map(|(_, value)| value).collect());
        assert!(page.to_string().len() <= 1200);
        seen.extend(page["extra"]["tags"].as_array().unwrap().clone());
        after = seen.last().unwrap().clone();
        if page["extra"].get("more").is_none() {
            break;
        }
    }
    assert_eq!(json!(seen), json!(all));
    let web = hubs.register_websocket(1);
    let list = hubs.request_websocket(1, &json!({"t": 3, "params": {"tag": web}}));
    assert_eq!(list["extra"]["tags"].as_array().unwrap().len(), 101);
}

#[test]
fn the_list_can_be_disabled() {
    let mut hubs = TestHubs::new(Config { list: false, ..config() });
    let a = hubs.register_udp(A);
    assert_eq!(code(&hubs.request_udp(A, &json!({"t": 3, "params": {"tag": a}}))), 204);
}

#[test]
fn only_a_client_with_the_key_gets_relay_credentials() {
    let mut hubs = TestHubs::new(config());
    hubs.open(1);
    let plain = hubs.request_websocket(1, &json!({"t": 1, "mid": 1}));
    assert_eq!(plain["extra"]["ice_servers"], json!([{"urls": ["stun:192.0.2.1:3478"]}]));
    assert_eq!(plain["extra"]["stun2"], "192.0.2.1:3479");
    let admitted = hubs.request_websocket(1, &json!({"t": 1, "mid": 2, "params": {"key": "the key"}}));
    let relay = &admitted["extra"]["ice_servers"][1];
    let expiry = (hubs.now.unix + 86_400).to_string();
    let (name, _account) = relay["username"].as_str().unwrap().split_once('+').unwrap();
    assert_eq!(name, format!("{expiry}:{}", admitted["extra"]["tag"].as_str().unwrap()));
    assert!(relay["credential"].is_string());
    let refused = hubs.request_websocket(1, &json!({"t": 1, "mid": 3, "params": {"key": "another"}}));
    assert_eq!(code(&refused), 204);
}

#[test]
fn a_client_is_offline_when_its_websocket_closes() {
    // S0-A23.
    let mut hubs = TestHubs::new(config());
    let (a, web) = (hubs.register_udp(A), hubs.register_websocket(1));
    hubs.advance_ms(50_000);
    hubs.send_udp(A, &json!({"t": 2, "tag": a}));
    hubs.advance_ms(50_000);
    hubs.take_datagrams(A);
    let list = json!({"t": 3, "params": {"tag": a}});
    assert_eq!(hubs.request_udp(A, &list)["extra"]["tags"], json!([web]));
    hubs.close(1);
    assert_eq!(hubs.request_udp(A, &list)["extra"]["tags"], json!([]));
    assert_eq!(code(&hubs.request_udp(A, &json!({"t": 4, "params": {"tag": a, "rtag": web}}))), 203);
}

#[test]
fn a_secret_gets_the_same_tag_from_any_address() {
    // S0-A18; NAT rebinding and a lost WebSocket keep the tag.
    let mut hubs = TestHubs::new(config());
    let register = json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two"}});
    hubs.open(1);
    let tag = hubs.request_websocket(1, &register)["extra"]["tag"].clone();
    hubs.open(2);
    assert_eq!(hubs.request_websocket(2, &register)["extra"]["tag"], tag);
    hubs.close(1);
    assert_eq!(hubs.request_udp(A, &register)["extra"]["tag"], tag);
    assert!(hubs.sent.contains(&Output::Close { conn: ConnId(2) }));
    assert_eq!(hubs.request_udp(B, &register)["extra"]["tag"], tag);
    assert_eq!(code(&hubs.request_udp(A, &json!({"t": 2, "tag": tag}))), 202);
    assert_eq!(hubs.cluster.clients(), 1);
    let other = json!({"t": 1, "mid": 2, "params": {"secret": "a secret of twenty-three"}});
    assert_ne!(hubs.request_udp(B, &other)["extra"]["tag"], tag);
    assert_eq!(hubs.cluster.clients(), 1);
}

#[test]
fn a_key_grants_only_its_scopes() {
    let scopes = [
        ("register", Scopes { register: true, ..Scopes::default() }),
        ("relay", Scopes { relay: true, ..Scopes::default() }),
        ("admin", Scopes { admin: true, register: true, ..Scopes::default() }),
    ];
    let access_keys = scopes.map(|(key, scopes)| AccessKey::scoped(key, scopes, "")).to_vec();
    let closed = Config { access_keys, open: false, list: false, presence: false, ..config() };
    let mut hubs = TestHubs::new(closed.clone());
    hubs.open(1);
    let register = |mid: i64, key: Option<&str>| json!({"t": 1, "mid": mid, "params": {"key": key}});
    assert_eq!(code(&hubs.request_websocket(1, &register(1, None))), 204);
    assert_eq!(code(&hubs.request_websocket(1, &register(2, Some("relay")))), 204);
    let answer = hubs.request_websocket(1, &register(3, Some("register")));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(1));
    let tag = answer["extra"]["tag"].clone();
    let list = json!({"t": 3, "params": {"tag": tag}});
    let watch = json!({"t": 60, "params": {"tags": [tag]}});
    assert_eq!(
        (code(&hubs.request_websocket(1, &list)), code(&hubs.request_websocket(1, &watch))),
        (204, 204)
    );
    assert_eq!(code(&hubs.request_websocket(1, &register(4, Some("admin")))), 200);
    assert_eq!(
        (code(&hubs.request_websocket(1, &list)), code(&hubs.request_websocket(1, &watch))),
        (200, 200)
    );
    let mut hubs = TestHubs::new(Config { open: true, ..closed });
    hubs.open(1);
    let answer = hubs.request_websocket(1, &register(1, Some("relay")));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(2));
    assert_eq!(code(&hubs.request_websocket(1, &register(2, None))), 200);
}
