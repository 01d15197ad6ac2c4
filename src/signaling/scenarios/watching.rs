//! Presence as events: t=60.

use super::*;
use crate::signaling::Limits;

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
    assert_eq!(world.hub.watches.len(), 1);
    world.close(1);
    assert_eq!(world.hub.watches.len(), 0);
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
