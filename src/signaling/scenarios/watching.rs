//! Presence as events: t=60.

use super::*;
use crate::signaling::Limits;
use proptest::prelude::*;
use std::collections::BTreeMap;

const A: &str = "192.0.2.10:1000";

fn watch(tags: &Value) -> Value {
    json!({"t": 60, "mid": 60, "params": {"tags": tags}})
}

#[test]
fn a_watcher_gets_the_current_state_and_then_changes() {
    let mut hubs = TestHubs::new(config());
    let (a, watcher) = (hubs.register_udp(A), hubs.register_websocket(1));
    let b = hubs.register_websocket(2);
    let answer = hubs.request_websocket(1, &watch(&json!([a, b, watcher, "nobody"])));
    let extra = json!({"online": [a, b, watcher], "offline": ["nobody"]});
    assert_eq!(answer, json!({"t": -60, "mid": 60, "code": 200, "extra": extra}));
    hubs.close(2);
    assert_eq!(hubs.take_texts(1), [json!({"t": 60, "params": {"offline": [b]}})]);
    // A heartbeat keeps the other tag; without one it expires.
    hubs.advance_ms(30_000);
    hubs.send_udp(A, &json!({"t": 2, "tag": a}));
    hubs.advance_ms(59_999);
    assert!(hubs.take_texts(1).is_empty());
    hubs.advance_ms(1);
    assert_eq!(hubs.take_texts(1), [json!({"t": 60, "params": {"offline": [a]}})]);
}

#[test]
fn a_client_that_returns_is_online_again_and_one_that_moves_stays_online() {
    let mut hubs = TestHubs::new(config());
    let register = json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two"}});
    hubs.register_websocket(1);
    hubs.open(2);
    let tag = hubs.request_websocket(2, &register)["extra"]["tag"].clone();
    hubs.request_websocket(1, &watch(&json!([tag])));
    // Another connection, then a datagram: the tag moves and stays online.
    hubs.open(3);
    hubs.request_websocket(3, &register);
    hubs.close(2);
    hubs.request_udp(A, &register);
    hubs.close(3);
    hubs.advance_ms(2000);
    assert!(hubs.take_texts(1).is_empty());
    hubs.advance_ms(60_000);
    assert_eq!(hubs.take_texts(1)[0]["params"], json!({"offline": [tag]}));
    hubs.open(4);
    hubs.request_websocket(4, &json!({"t": 1, "mid": 2, "params": register["params"]}));
    assert_eq!(hubs.take_texts(1)[0]["params"], json!({"online": [tag]}));
}

#[test]
fn a_tag_that_changes_often_causes_one_event_a_second() {
    let mut hubs = TestHubs::new(config());
    let register = json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two"}});
    hubs.register_websocket(1);
    hubs.open(2);
    let tag = hubs.request_websocket(2, &register)["extra"]["tag"].clone();
    hubs.request_websocket(1, &watch(&json!([tag])));
    for conn in 3..103 {
        hubs.close(conn - 1);
        hubs.open(conn);
        hubs.request_websocket(conn, &register);
        hubs.advance_ms(20);
    }
    // In two seconds the tag was registered and removed many times.
    assert!(hubs.take_texts(1).len() <= 4);
    hubs.close(102);
    hubs.advance_ms(1000);
    assert_eq!(hubs.take_texts(1).last().unwrap()["params"], json!({"offline": [tag]}));
}

#[test]
fn watches_end_on_request_and_with_the_connection() {
    let mut hubs = TestHubs::new(config());
    let (_, b) = (hubs.register_websocket(1), hubs.register_websocket(2));
    hubs.request_websocket(1, &watch(&json!([b, "x"])));
    let stop = json!({"t": 60, "mid": 61, "params": {"tags": [b], "watch": false}});
    assert_eq!(hubs.request_websocket(1, &stop), json!({"t": -60, "mid": 61, "code": 200}));
    hubs.close(2);
    assert!(hubs.take_texts(1).is_empty());
    assert_eq!(hubs.cluster.sum(|hub| hub.watches.len()), 1);
    hubs.close(1);
    assert_eq!(hubs.cluster.sum(|hub| hub.watches.len()), 0);
}

#[test]
fn watching_is_refused_without_a_tag_over_udp_over_a_limit_and_if_disabled() {
    let limits = Limits { watches_per_client: 2, ..Limits::default() };
    let mut hubs = TestHubs::new(Config { limits, ..config() });
    hubs.open(1);
    assert_eq!(code(&hubs.request_websocket(1, &watch(&json!(["x"])))), 202);
    hubs.request_websocket(1, &json!({"t": 1, "mid": 1}));
    assert_eq!(code(&hubs.request_websocket(1, &watch(&json!(["x", "y", "z"])))), 206);
    assert_eq!(code(&hubs.request_websocket(1, &watch(&json!(["x", "y"])))), 200);
    hubs.register_udp(A);
    assert_eq!(code(&hubs.request_udp(A, &watch(&json!(["x"])))), 208);
    let event = json!({"t": 60, "params": {"online": ["x"]}});
    assert_eq!(code(&hubs.request_websocket(1, &event)), 208);
    let mut hubs = TestHubs::new(Config { presence: false, ..config() });
    hubs.register_websocket(1);
    assert_eq!(code(&hubs.request_websocket(1, &watch(&json!(["x"])))), 204);
}

/// The state that a watcher knows, from answers and events only.
#[derive(Default)]
struct View(BTreeMap<String, bool>);

impl View {
    fn take(&mut self, message: &Value) {
        for (field, online) in [("online", true), ("offline", false)] {
            for place in ["params", "extra"] {
                for tag in message[place][field].as_array().into_iter().flatten() {
                    self.0.insert(tag.as_str().unwrap().to_owned(), online);
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// An owner registers on a new connection, or by UDP.
    Register(u8, bool),
    /// The connection of an owner closes.
    Close(u8),
    Watch(u8, u8),
    Unwatch(u8, u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, any::<bool>()).prop_map(|(owner, web)| Step::Register(owner, web)),
        2 => (0..3_u8).prop_map(Step::Close),
        2 => (0..2_u8, 0..3_u8).prop_map(|(watcher, owner)| Step::Watch(watcher, owner)),
        1 => (0..2_u8, 0..3_u8).prop_map(|(watcher, owner)| Step::Unwatch(watcher, owner)),
        3 => prop_oneof![9 => 0..1500_u16, 1 => 40_000..60_000_u16].prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_watcher_has_the_true_state_a_second_after_any_event(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        let secret = |owner: u8| json!({"secret": format!("a secret of twenty-two {owner}")});
        let mut hubs = TestHubs::new(config());
        let mut views = [View::default(), View::default()];
        let (mut tags, mut homes, mut next) = (Vec::new(), [99_u64; 3], 100);
        for watcher in 0..2 {
            hubs.register_websocket(watcher);
        }
        for owner in 0..3 {
            hubs.open(next);
            let answer = hubs.request_websocket(next, &json!({"t": 1, "params": secret(owner)}));
            tags.push(answer["extra"]["tag"].as_str().unwrap().to_owned());
            hubs.close(next);
            next += 1;
        }
        for step in steps {
            match step {
                Step::Register(owner, true) => {
                    hubs.open(next);
                    hubs.send_text(next, &json!({"t": 1, "params": secret(owner)}));
                    homes[usize::from(owner)] = next;
                    next += 1;
                }
                Step::Register(owner, false) => {
                    let from = format!("192.0.2.10:{}", 1000 + u16::from(owner));
                    hubs.send_udp(&from, &json!({"t": 1, "params": secret(owner)}));
                }
                Step::Close(owner) => hubs.close(homes[usize::from(owner)]),
                Step::Watch(watcher, owner) => {
                    let watch = watch(&json!([tags[usize::from(owner)]]));
                    hubs.send_text(watcher.into(), &watch);
                }
                Step::Unwatch(watcher, owner) => {
                    let tag = &tags[usize::from(owner)];
                    // Events that were sent before the request must not count after it.
                    for message in hubs.take_texts(watcher.into()) { views[usize::from(watcher)].take(&message); }
                    let stop = json!({"t": 60, "params": {"tags": [tag], "watch": false}});
                    hubs.send_text(watcher.into(), &stop);
                    views[usize::from(watcher)].0.remove(tag);
                }
                Step::Wait(ms) => hubs.advance_ms(ms.into()),
            }
        }
        let is_online = |hubs: &TestHubs, tag: &String| hubs.cluster.registered(&Tag::new(tag.as_str()).unwrap());
        let presence = |hubs: &TestHubs| tags.iter().map(|tag| is_online(hubs, tag)).collect::<Vec<_>>();
        // A tag that changes in the last second causes another event.
        loop {
            let before = presence(&hubs);
            hubs.advance_ms(1050);
            if presence(&hubs) == before {
                break;
            }
        }
        for (watcher, view) in (0_u64..).zip(&mut views) {
            for message in hubs.take_texts(watcher) { view.take(&message); }
            for (tag, online) in &view.0 {
                prop_assert_eq!(is_online(&hubs, tag), *online);
            }
        }
        prop_assert!(hubs.cluster.sum(|hub| hub.watches.len()) <= 6);
    }
}
