//! The same tag again: secrets and epochs.

use super::*;
use crate::signaling::Limits;

const A: &str = "192.0.2.10:1000";

fn register(mid: i64, epoch: Option<i64>) -> Value {
    json!({"t": 1, "mid": mid, "params": {"secret": "a secret of twenty-two", "epoch": epoch}})
}

/// Opens a WebSocket and registers on it.
fn session(world: &mut World, conn: u64, epoch: Option<i64>) -> Value {
    world.open(conn);
    world.ask_web(conn, &register(1, epoch))
}

#[test]
fn the_older_session_is_told_why_before_it_is_closed() {
    let mut world = World::new(config());
    let first = session(&mut world, 1, None);
    let epoch = first["extra"]["epoch"].as_i64().unwrap();
    let second = session(&mut world, 2, Some(epoch + 1));
    assert_eq!(second["extra"]["epoch"], epoch + 1);
    assert_eq!(second["extra"]["tag"], first["extra"]["tag"]);
    let text = r#"{"t":1,"code":210,"em":"replaced by a newer session"}"#.to_owned();
    let told = [Output::Text { conn: ConnId(1), text }, Output::Close { conn: ConnId(1) }];
    assert_eq!(std::mem::take(&mut world.sent), told);
    assert_eq!(world.hub.clients(), 1);
}

#[test]
fn a_session_that_is_not_newer_is_refused_and_the_holder_notices_nothing() {
    let mut world = World::new(config());
    let tag = session(&mut world, 1, Some(7))["extra"]["tag"].clone();
    for (conn, epoch) in [(2, 0), (3, 6), (4, 7)] {
        assert_eq!(code(&session(&mut world, conn, Some(epoch))), 210);
    }
    assert!(world.sent.is_empty());
    assert_eq!(code(&world.ask_web(1, &json!({"t": 2, "tag": tag}))), 200);
    // A refused one may stay as somebody else.
    assert_ne!(world.ask_web(4, &json!({"t": 1, "mid": 2}))["extra"]["tag"], tag);
}

#[test]
fn two_sessions_of_one_owner_do_not_take_turns() {
    let mut world = World::new(config());
    let old = session(&mut world, 1, None)["extra"]["epoch"].as_i64().unwrap();
    let new = session(&mut world, 2, None)["extra"]["epoch"].as_i64().unwrap();
    assert!(new > old);
    // The old one comes back as if its line had broken, and learns that it is over.
    world.close(1);
    assert_eq!(code(&session(&mut world, 3, Some(old))), 210);
    // After a restart of the server the order of coming does not matter.
    let mut world = World::new(config());
    assert_eq!(code(&session(&mut world, 1, Some(old + 1))), 200);
    assert_eq!(code(&session(&mut world, 2, Some(new + 1))), 200);
    assert_eq!(code(&session(&mut world, 3, Some(old + 2))), 210);
}

#[test]
fn a_new_session_is_numbered_by_the_clock_and_past_the_holder() {
    let mut world = World::new(config());
    let clock = i64::try_from(world.now.unix).unwrap() * 1000;
    assert_eq!(session(&mut world, 1, None)["extra"]["epoch"], clock);
    assert_eq!(session(&mut world, 2, None)["extra"]["epoch"], clock + 1);
    let most = (1_i64 << 53) - 1;
    assert_eq!(session(&mut world, 3, Some(most))["extra"]["epoch"], most);
    assert_eq!(session(&mut world, 4, None)["extra"]["epoch"], most);
    assert_eq!(code(&session(&mut world, 5, Some(most))), 210);
}

#[test]
fn registering_anew_on_the_same_connection_keeps_the_number_or_moves_it_on() {
    let mut world = World::new(config());
    let first = session(&mut world, 1, Some(7));
    assert_eq!(world.ask_web(1, &register(2, Some(7)))["extra"], first["extra"]);
    assert_eq!(world.ask_web(1, &register(3, None))["extra"]["epoch"], 7);
    assert_eq!(world.ask_web(1, &json!({"t": 1, "mid": 4}))["extra"]["epoch"], 7);
    assert_eq!(world.ask_web(1, &register(5, Some(9)))["extra"]["epoch"], 9);
    assert_eq!(code(&world.ask_web(1, &register(6, Some(8)))), 210);
    assert_eq!(code(&session(&mut world, 2, Some(8))), 210);
    assert!(world.web_client(3) != first["extra"]["tag"] && world.hub.clients() == 2);
}

#[test]
fn a_secret_proves_no_address() {
    // Its owner knows the tag, and could write any address as the source of both datagrams.
    let mut world = World::new(config());
    let tag = world.ask(A, &register(1, None))["extra"]["tag"].clone();
    world.ask(A, &json!({"t": 2, "tag": tag}));
    let pad = json!({"t": 1, "mid": 2, "params": {"key": "the key"}});
    assert!(world.ask(A, &pad)["extra"].get("ice_servers").is_none());
    // So it gets no word by UDP of its replacement.
    session(&mut world, 1, None);
    assert!(world.at(A).is_empty());
}

#[test]
fn a_call_that_waits_finds_the_callee_on_its_new_connection() {
    let mut world = World::new(config());
    let callee = session(&mut world, 1, Some(1))["extra"]["tag"].clone();
    let caller = world.web_client(2);
    let call = json!({"t": 4, "mid": 2, "params": {"tag": caller, "rtag": callee}});
    let token = world.ask_web(2, &call)["extra"]["token"].clone();
    world.web(2, &json!({"t": 54, "mid": 3, "token": token, "params": {"cands": ["c"]}}));
    let lost = world.on(1);
    // The line of the first connection is dead, and nobody has noticed yet.
    world.wait_ms(3000);
    world.open(3);
    world.web(3, &register(1, Some(2)));
    let heard = world.on(3);
    assert_eq!((heard[0]["t"].as_i64(), &heard[1..]), (Some(-1), &lost[..]));
    let answer = json!({"t": -51, "mid": heard[1]["mid"], "token": token, "code": 200});
    world.web(3, &answer);
    assert!(world.on(2).iter().any(|message| message["t"] == 52));
    // Registering again there repeats nothing, and the act goes on there.
    assert_eq!(code(&world.ask_web(3, &register(2, Some(2)))), 200);
    world.wait_ms(5000);
    assert_eq!(world.on(3)[0]["t"], 53);
}

#[test]
fn an_owner_for_whom_there_is_no_room_keeps_its_older_session() {
    let limits = Limits { tags_per_network: 1, tags: 2, ..Limits::default() };
    let mut world = World::single(Config { limits, ..config() });
    let tag = session(&mut world, 1, Some(1))["extra"]["tag"].clone();
    world.client(A);
    let neighbour = "192.0.2.10:1001";
    assert_eq!(code(&world.ask(neighbour, &register(1, Some(2)))), 206);
    assert!(world.sent.is_empty());
    assert_eq!(code(&world.ask_web(1, &json!({"t": 2, "tag": tag}))), 200);
    // In its own network, and in place of what its address had, it takes no more room than before.
    assert_eq!(code(&session(&mut world, 2, Some(2))), 200);
    assert_eq!(code(&world.ask(A, &register(2, Some(3)))), 200);
    assert_eq!(world.hub.clients(), 1);
}
