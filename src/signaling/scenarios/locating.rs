//! Locators: t=61 and 62.

use super::*;
use crate::limits::Rate;
use crate::signaling::Limits;
use std::collections::BTreeSet;

const A: &str = "192.0.2.10:1000";

fn obtain(tag: &str) -> Value {
    json!({"t": 61, "mid": rand::random::<u32>(), "tag": tag})
}

fn locate(tag: &str, locator: &Value) -> Value {
    json!({"t": 62, "mid": rand::random::<u32>(), "tag": tag, "params": {"locator": locator}})
}

#[test]
fn a_locator_stands_for_a_tag_over_udp_and_websocket() {
    let mut hubs = TestHubs::new(config());
    let (udp, web) = (hubs.register_udp(A), hubs.register_websocket(1));
    let of_udp = hubs.request_udp(A, &obtain(&udp));
    let of_web = hubs.request_websocket(1, &obtain(&web));
    assert_eq!((of_udp["t"].clone(), of_udp["extra"]["ttl"].clone()), (json!(-61), json!(600)));
    let found = hubs.request_websocket(1, &locate(&web, &of_udp["extra"]["locator"]));
    assert_eq!((found["t"].clone(), found["extra"].clone()), (json!(-62), json!({"tag": udp})));
    let found = hubs.request_udp(A, &locate(&udp, &of_web["extra"]["locator"]));
    assert_eq!(found["extra"], json!({"tag": web}));
}

#[test]
fn a_locator_ends_with_its_time_its_tag_and_its_release() {
    let mut hubs = TestHubs::new(config());
    let asking = hubs.register_websocket(1);
    let locator = |hubs: &mut TestHubs, conn: u64| {
        let tag = hubs.register_websocket(conn);
        hubs.request_websocket(conn, &obtain(&tag))["extra"]["locator"].clone()
    };
    let [timed, gone, released] = [2, 3, 4].map(|conn| locator(&mut hubs, conn));
    hubs.close(3);
    let tag = hubs.request_websocket(4, &json!({"t": 1, "mid": 9}))["extra"]["tag"].clone();
    let release = json!({"t": 61, "mid": 8, "tag": tag, "params": {"release": true}});
    assert_eq!(hubs.request_websocket(4, &release), json!({"t": -61, "mid": 8, "code": 200}));
    for (locator, expected) in [(&timed, 200), (&gone, 203), (&released, 203), (&json!(999_999), 203)] {
        assert_eq!(code(&hubs.request_websocket(1, &locate(&asking, locator))), expected);
    }
    hubs.advance_ms(599_999);
    assert_eq!(code(&hubs.request_websocket(1, &locate(&asking, &timed))), 200);
    hubs.advance_ms(1);
    assert_eq!(code(&hubs.request_websocket(1, &locate(&asking, &timed))), 203);
    assert_eq!(hubs.cluster.sum(|hub| hub.locators.len()), 0);
}

#[test]
fn a_new_locator_replaces_the_former_one_and_more_have_more_digits() {
    let limits = Limits {
        tags_per_network: 1000,
        connections_per_network: 1000,
        per_source: Rate::new(1e6, 1e6),
        ..Limits::default()
    };
    let mut hubs = TestHubs::single(Config { limits, ..config() });
    let mut used = BTreeSet::new();
    for conn in 1..=300_u64 {
        let tag = hubs.register_websocket(conn);
        let first = hubs.request_websocket(conn, &obtain(&tag))["extra"]["locator"].as_u64().unwrap();
        let second = hubs.request_websocket(conn, &obtain(&tag))["extra"]["locator"].as_u64().unwrap();
        let most = [9, 99, 999, 9999].into_iter().find(|most| (conn - 1) * 4 <= *most).unwrap();
        assert!((1..=most).contains(&first) && (1..=most).contains(&second), "{conn}: {first} {second}");
        used.insert(second);
    }
    assert_eq!((used.len(), hubs.cluster.sum(|hub| hub.locators.len())), (300, 300));
}

#[test]
fn only_the_owner_of_a_tag_asks_in_its_name_and_networks_have_a_rate() {
    let mut hubs = TestHubs::new(config());
    let (tag, _) = (hubs.register_websocket(1), hubs.register_websocket(2));
    let locator = hubs.request_websocket(1, &obtain(&tag))["extra"]["locator"].clone();
    for refused in [obtain(&tag), locate(&tag, &locator)] {
        assert_eq!(code(&hubs.request_websocket(2, &refused)), 202);
    }
    let codes: Vec<i64> =
        (0..21).map(|_| code(&hubs.request_websocket(1, &locate(&tag, &locator)))).collect();
    assert_eq!((codes[19], codes[20]), (200, 206));
    hubs.advance_ms(5000);
    assert_eq!(code(&hubs.request_websocket(1, &locate(&tag, &locator))), 200);
    for malformed in [json!({"t": 62, "mid": 1, "tag": tag}), json!({"t": 61, "mid": 1})] {
        assert_eq!(code(&hubs.request_websocket(1, &malformed)), 201);
    }
}

#[test]
fn a_locator_of_another_realm_is_unknown() {
    let keys = ["one", "two"].map(|key| AccessKey::scoped(key, crate::signaling::Scopes::ALL, key));
    let mut hubs = TestHubs::new(Config { access_keys: keys.to_vec(), ..config() });
    let tags = [(1, "one"), (2, "one"), (3, "two")].map(|(conn, key)| {
        hubs.open(conn);
        let answer = hubs.request_websocket(conn, &json!({"t": 1, "mid": 1, "params": {"key": key}}));
        answer["extra"]["tag"].as_str().unwrap().to_owned()
    });
    let locator = hubs.request_websocket(1, &obtain(&tags[0]))["extra"]["locator"].clone();
    assert_eq!(code(&hubs.request_websocket(2, &locate(&tags[1], &locator))), 200);
    assert_eq!(code(&hubs.request_websocket(3, &locate(&tags[2], &locator))), 203);
}
