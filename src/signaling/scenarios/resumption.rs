//! The same tag again: secrets and epochs.

use super::*;
use crate::signaling::Limits;

const A: &str = "192.0.2.10:1000";

fn register(mid: i64, epoch: Option<i64>) -> Value {
    json!({"t": 1, "mid": mid, "params": {"secret": "a secret of twenty-two", "epoch": epoch}})
}

/// Opens a WebSocket and registers on it.
fn session(hubs: &mut TestHubs, conn: u64, epoch: Option<i64>) -> Value {
    hubs.open(conn);
    hubs.request_websocket(conn, &register(1, epoch))
}

#[test]
fn a_replaced_session_gets_the_reason_before_it_is_closed() {
    let mut hubs = TestHubs::new(config());
    let first = session(&mut hubs, 1, None);
    let epoch = first["extra"]["epoch"].as_i64().unwrap();
    let second = session(&mut hubs, 2, Some(epoch + 1));
    assert_eq!(second["extra"]["epoch"], epoch + 1);
    assert_eq!(second["extra"]["tag"], first["extra"]["tag"]);
    let text = r#"{"t":1,"code":210,"em":"replaced by a newer session"}"#.to_owned();
    let received = [Output::Text { conn: ConnId(1), text }, Output::Close { conn: ConnId(1) }];
    assert_eq!(std::mem::take(&mut hubs.sent), received);
    assert_eq!(hubs.cluster.clients(), 1);
}

#[test]
fn a_session_that_is_not_newer_is_refused_without_effect_on_the_holder() {
    let mut hubs = TestHubs::new(config());
    let tag = session(&mut hubs, 1, Some(7))["extra"]["tag"].clone();
    for (conn, epoch) in [(2, 0), (3, 6), (4, 7)] {
        assert_eq!(code(&session(&mut hubs, conn, Some(epoch))), 210);
    }
    assert!(hubs.sent.is_empty());
    assert_eq!(code(&hubs.request_websocket(1, &json!({"t": 2, "tag": tag}))), 200);
    // The refused connection can register another tag.
    assert_ne!(hubs.request_websocket(4, &json!({"t": 1, "mid": 2}))["extra"]["tag"], tag);
}

#[test]
fn two_sessions_of_one_owner_do_not_replace_each_other_repeatedly() {
    let mut hubs = TestHubs::new(config());
    let old = session(&mut hubs, 1, None)["extra"]["epoch"].as_i64().unwrap();
    let new = session(&mut hubs, 2, None)["extra"]["epoch"].as_i64().unwrap();
    assert!(new > old);
    // The old session reconnects and is refused.
    hubs.close(1);
    assert_eq!(code(&session(&mut hubs, 3, Some(old))), 210);
    // After a restart of the server the order of reconnection does not matter.
    let mut hubs = TestHubs::new(config());
    assert_eq!(code(&session(&mut hubs, 1, Some(old + 1))), 200);
    assert_eq!(code(&session(&mut hubs, 2, Some(new + 1))), 200);
    assert_eq!(code(&session(&mut hubs, 3, Some(old + 2))), 210);
}

#[test]
fn a_new_session_gets_an_epoch_from_the_clock_that_exceeds_the_holders() {
    let mut hubs = TestHubs::new(config());
    let clock = i64::try_from(hubs.now.unix).unwrap() * 1000;
    assert_eq!(session(&mut hubs, 1, None)["extra"]["epoch"], clock);
    assert_eq!(session(&mut hubs, 2, None)["extra"]["epoch"], clock + 1);
    let most = (1_i64 << 53) - 1;
    assert_eq!(session(&mut hubs, 3, Some(most))["extra"]["epoch"], most);
    assert_eq!(session(&mut hubs, 4, None)["extra"]["epoch"], most);
    assert_eq!(code(&session(&mut hubs, 5, Some(most))), 210);
}

#[test]
fn registering_again_on_the_same_connection_keeps_or_raises_the_epoch() {
    let mut hubs = TestHubs::new(config());
    let first = session(&mut hubs, 1, Some(7));
    assert_eq!(hubs.request_websocket(1, &register(2, Some(7)))["extra"], first["extra"]);
    assert_eq!(hubs.request_websocket(1, &register(3, None))["extra"]["epoch"], 7);
    assert_eq!(hubs.request_websocket(1, &json!({"t": 1, "mid": 4}))["extra"]["epoch"], 7);
    assert_eq!(hubs.request_websocket(1, &register(5, Some(9)))["extra"]["epoch"], 9);
    assert_eq!(code(&hubs.request_websocket(1, &register(6, Some(8)))), 210);
    assert_eq!(code(&session(&mut hubs, 2, Some(8))), 210);
    assert!(hubs.register_websocket(3) != first["extra"]["tag"] && hubs.cluster.clients() == 2);
}

#[test]
fn a_secret_does_not_prove_the_address() {
    // The owner can compute the tag and forge the source address of both datagrams.
    let mut hubs = TestHubs::new(config());
    let tag = hubs.request_udp(A, &register(1, None))["extra"]["tag"].clone();
    hubs.request_udp(A, &json!({"t": 2, "tag": tag}));
    let pad = json!({"t": 1, "mid": 2, "params": {"key": "the key"}});
    assert!(hubs.request_udp(A, &pad)["extra"].get("ice_servers").is_none());
    // So the address is not notified of the replacement.
    session(&mut hubs, 1, None);
    assert!(hubs.take_datagrams(A).is_empty());
}

#[test]
fn a_pending_call_reaches_the_callee_on_its_new_connection() {
    let mut hubs = TestHubs::new(config());
    let callee = session(&mut hubs, 1, Some(1))["extra"]["tag"].clone();
    let caller = hubs.register_websocket(2);
    let call = json!({"t": 4, "mid": 2, "params": {"tag": caller, "rtag": callee}});
    let token = hubs.request_websocket(2, &call)["extra"]["token"].clone();
    hubs.send_text(2, &json!({"t": 54, "mid": 3, "token": token, "params": {"cands": ["c"]}}));
    let lost = hubs.take_texts(1);
    // The first connection is dead, but not closed yet.
    hubs.advance_ms(3000);
    hubs.open(3);
    hubs.send_text(3, &register(1, Some(2)));
    let received = hubs.take_texts(3);
    assert_eq!((received[0]["t"].as_i64(), &received[1..]), (Some(-1), &lost[..]));
    let answer = json!({"t": -51, "mid": received[1]["mid"], "token": token, "code": 200});
    hubs.send_text(3, &answer);
    assert!(hubs.take_texts(2).iter().any(|message| message["t"] == 52));
    // Registering again on the same connection repeats nothing, and the call continues there.
    assert_eq!(code(&hubs.request_websocket(3, &register(2, Some(2)))), 200);
    hubs.advance_ms(5000);
    assert_eq!(hubs.take_texts(3)[0]["t"], 53);
}

#[test]
fn an_owner_that_exceeds_a_limit_keeps_its_older_session() {
    let limits = Limits { tags_per_network: 1, tags: 2, ..Limits::default() };
    let mut hubs = TestHubs::single(Config { limits, ..config() });
    let tag = session(&mut hubs, 1, Some(1))["extra"]["tag"].clone();
    hubs.register_udp(A);
    let neighbour = "192.0.2.10:1001";
    assert_eq!(code(&hubs.request_udp(neighbour, &register(1, Some(2)))), 206);
    assert!(hubs.sent.is_empty());
    assert_eq!(code(&hubs.request_websocket(1, &json!({"t": 2, "tag": tag}))), 200);
    // It can replace a registration of its own network or its own address, because the counts stay the same.
    assert_eq!(code(&session(&mut hubs, 2, Some(2))), 200);
    assert_eq!(code(&hubs.request_udp(A, &register(2, Some(3)))), 200);
    assert_eq!(hubs.cluster.clients(), 1);
}
