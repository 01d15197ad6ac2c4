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
fn a_watcher_hears_at_once_how_things_stand_and_later_what_changes() {
    let mut world = World::new(config());
    let (a, watcher) = (world.client(A), world.web_client(1));
    let b = world.web_client(2);
    let answer = world.ask_web(1, &watch(&json!([a, b, watcher, "nobody"])));
    let extra = json!({"online": [a, b, watcher], "offline": ["nobody"]});
    assert_eq!(answer, json!({"t": -60, "mid": 60, "code": 200, "extra": extra}));
    world.close(2);
    assert_eq!(world.on(1), [json!({"t": 60, "params": {"offline": [b]}})]);
    // A heartbeat keeps the other one; without any it goes with its tag's life.
    world.wait_ms(30_000);
    world.udp(A, &json!({"t": 2, "tag": a}));
    world.wait_ms(59_999);
    assert!(world.on(1).is_empty());
    world.wait_ms(1);
    assert_eq!(world.on(1), [json!({"t": 60, "params": {"offline": [a]}})]);
}

#[test]
fn one_who_comes_back_is_online_again_and_one_who_moves_was_never_away() {
    let mut world = World::new(config());
    let register = json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two"}});
    world.web_client(1);
    world.open(2);
    let tag = world.ask_web(2, &register)["extra"]["tag"].clone();
    world.ask_web(1, &watch(&json!([tag])));
    // Another connection, then a datagram: replaced, not gone.
    world.open(3);
    world.ask_web(3, &register);
    world.close(2);
    world.ask(A, &register);
    world.close(3);
    world.wait_ms(2000);
    assert!(world.on(1).is_empty());
    world.wait_ms(60_000);
    assert_eq!(world.on(1)[0]["params"], json!({"offline": [tag]}));
    world.open(4);
    world.ask_web(4, &json!({"t": 1, "mid": 2, "params": register["params"]}));
    assert_eq!(world.on(1)[0]["params"], json!({"online": [tag]}));
}

#[test]
fn one_who_comes_and_goes_all_the_time_is_spoken_of_once_a_second() {
    let mut world = World::new(config());
    let register = json!({"t": 1, "mid": 1, "params": {"secret": "a secret of twenty-two"}});
    world.web_client(1);
    world.open(2);
    let tag = world.ask_web(2, &register)["extra"]["tag"].clone();
    world.ask_web(1, &watch(&json!([tag])));
    for conn in 3..103 {
        world.close(conn - 1);
        world.open(conn);
        world.ask_web(conn, &register);
        world.wait_ms(20);
    }
    // Two seconds, and at each look it was there or just gone.
    assert!(world.on(1).len() <= 4);
    world.close(102);
    world.wait_ms(1000);
    assert_eq!(world.on(1).last().unwrap()["params"], json!({"offline": [tag]}));
}

#[test]
fn watches_end_when_they_are_taken_back_and_with_the_connection() {
    let mut world = World::new(config());
    let (_, b) = (world.web_client(1), world.web_client(2));
    world.ask_web(1, &watch(&json!([b, "x"])));
    let stop = json!({"t": 60, "mid": 61, "params": {"tags": [b], "watch": false}});
    assert_eq!(world.ask_web(1, &stop), json!({"t": -60, "mid": 61, "code": 200}));
    world.close(2);
    assert!(world.on(1).is_empty());
    assert_eq!(world.hub.sum(|hub| hub.watches.len()), 1);
    world.close(1);
    assert_eq!(world.hub.sum(|hub| hub.watches.len()), 0);
}

#[test]
fn watching_is_refused_without_a_tag_by_udp_over_a_cap_and_where_it_is_off() {
    let limits = Limits { watches_per_client: 2, ..Limits::default() };
    let mut world = World::new(Config { limits, ..config() });
    world.open(1);
    assert_eq!(code(&world.ask_web(1, &watch(&json!(["x"])))), 202);
    world.ask_web(1, &json!({"t": 1, "mid": 1}));
    assert_eq!(code(&world.ask_web(1, &watch(&json!(["x", "y", "z"])))), 206);
    assert_eq!(code(&world.ask_web(1, &watch(&json!(["x", "y"])))), 200);
    world.client(A);
    assert_eq!(code(&world.ask(A, &watch(&json!(["x"])))), 208);
    let event = json!({"t": 60, "params": {"online": ["x"]}});
    assert_eq!(code(&world.ask_web(1, &event)), 208);
    let mut world = World::new(Config { presence: false, ..config() });
    world.web_client(1);
    assert_eq!(code(&world.ask_web(1, &watch(&json!(["x"])))), 204);
}

/// What a watcher believes, from answers and events alone.
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
    Come(u8, bool),
    /// The connection of an owner closes.
    Go(u8),
    Watch(u8, u8),
    Unwatch(u8, u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, any::<bool>()).prop_map(|(owner, web)| Step::Come(owner, web)),
        2 => (0..3_u8).prop_map(Step::Go),
        2 => (0..2_u8, 0..3_u8).prop_map(|(watcher, owner)| Step::Watch(watcher, owner)),
        1 => (0..2_u8, 0..3_u8).prop_map(|(watcher, owner)| Step::Unwatch(watcher, owner)),
        3 => prop_oneof![9 => 0..1500_u16, 1 => 40_000..60_000_u16].prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_second_after_anything_every_watcher_believes_what_is_true(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        let secret = |owner: u8| json!({"secret": format!("a secret of twenty-two {owner}")});
        let mut world = World::new(config());
        let mut views = [View::default(), View::default()];
        let (mut tags, mut homes, mut next) = (Vec::new(), [99_u64; 3], 100);
        for watcher in 0..2 {
            world.web_client(watcher);
        }
        for owner in 0..3 {
            world.open(next);
            let answer = world.ask_web(next, &json!({"t": 1, "params": secret(owner)}));
            tags.push(answer["extra"]["tag"].as_str().unwrap().to_owned());
            world.close(next);
            next += 1;
        }
        for step in steps {
            match step {
                Step::Come(owner, true) => {
                    world.open(next);
                    world.web(next, &json!({"t": 1, "params": secret(owner)}));
                    homes[usize::from(owner)] = next;
                    next += 1;
                }
                Step::Come(owner, false) => {
                    let from = format!("192.0.2.10:{}", 1000 + u16::from(owner));
                    world.udp(&from, &json!({"t": 1, "params": secret(owner)}));
                }
                Step::Go(owner) => world.close(homes[usize::from(owner)]),
                Step::Watch(watcher, owner) => {
                    let watch = watch(&json!([tags[usize::from(owner)]]));
                    world.web(watcher.into(), &watch);
                }
                Step::Unwatch(watcher, owner) => {
                    let tag = &tags[usize::from(owner)];
                    // What was said before must not be taken for news after it.
                    for message in world.on(watcher.into()) { views[usize::from(watcher)].take(&message); }
                    let stop = json!({"t": 60, "params": {"tags": [tag], "watch": false}});
                    world.web(watcher.into(), &stop);
                    views[usize::from(watcher)].0.remove(tag);
                }
                Step::Wait(ms) => world.wait_ms(ms.into()),
            }
        }
        let is_online = |world: &World, tag: &String| world.hub.registered(&Tag::new(tag.as_str()).unwrap());
        let presence = |world: &World| tags.iter().map(|tag| is_online(world, tag)).collect::<Vec<_>>();
        // Who goes in the last second has one more to be told of.
        loop {
            let before = presence(&world);
            world.wait_ms(1050);
            if presence(&world) == before {
                break;
            }
        }
        for (watcher, view) in (0_u64..).zip(&mut views) {
            for message in world.on(watcher) { view.take(&message); }
            for (tag, online) in &view.0 {
                prop_assert_eq!(is_online(&world, tag), *online);
            }
        }
        prop_assert!(world.hub.sum(|hub| hub.watches.len()) <= 6);
    }
}
