//! Access keys, JWTs, realms and revocation.

use super::*;
use crate::signaling::{Jwt, JwtKey, Limits, Rate, Scopes};
use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};

const SECRET: &[u8] = b"a secret of thirty-two bytes or more";
const OWN: &str = "a secret of twenty-two";

/// Returns an HS256 token with these claims.
fn token(claims: &Value) -> String {
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let body = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(&claims.to_string()));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), body.as_bytes());
    format!("{body}.{}", BASE64URL_NOPAD.encode(mac.as_ref()))
}

fn with_tokens() -> Config {
    Config { jwt: JwtKey::hs256(SECRET).map(Jwt::new), ..config() }
}

fn register(mid: i64, key: &str) -> Value {
    json!({"t": 1, "mid": mid, "params": {"key": key, "secret": OWN}})
}

#[test]
fn a_jwt_admits_like_a_key_and_relay_credentials_expire_with_it() {
    let mut hubs = TestHubs::new(Config { open: false, list: false, ..with_tokens() });
    let end = hubs.now.unix + 600;
    hubs.open(1);
    let claims = json!({"exp": end, "scope": "register relay", "sub": "alice"});
    let answer = hubs.request_websocket(1, &register(1, &token(&claims)));
    let (tag, user) = (&answer["extra"]["tag"], &answer["extra"]["ice_servers"][1]["username"]);
    let (name, account) = user.as_str().unwrap().split_once('+').unwrap();
    assert_eq!(name, format!("{end}:{}", tag.as_str().unwrap()));
    let later = json!({"exp": end + 1, "scope": "relay register", "sub": "alice"});
    let again = hubs.request_websocket(1, &register(9, &token(&later)));
    let again = again["extra"]["ice_servers"][1]["username"].as_str().unwrap();
    assert_eq!(again.split_once('+').unwrap().1, account, "the subject's, whatever the token");
    assert_eq!(
        code(&hubs.request_websocket(1, &json!({"t": 3, "params": {"tag": tag}}))),
        204,
        "no scope for lists"
    );
    let admin = json!({"exp": end, "scope": ["register", "admin"]});
    let answer = hubs.request_websocket(1, &register(2, &token(&admin)));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(1), "no scope for the relay");
    assert_eq!(code(&hubs.request_websocket(1, &json!({"t": 3, "params": {"tag": tag}}))), 200);
    // Access keys are accepted too.
    assert_eq!(code(&hubs.request_websocket(1, &register(3, "the key"))), 200);
}

#[test]
fn an_invalid_jwt_gets_204_and_the_message_has_no_effect() {
    let mut hubs = TestHubs::new(with_tokens());
    hubs.open(1);
    let good = token(&json!({"exp": hubs.now.unix + 600, "scope": "relay"}));
    let expired = token(&json!({"exp": hubs.now.unix - 61, "scope": "relay"}));
    for (mid, wrong) in
        [&expired, &good[1..], &good[..good.len() - 1], "a.b.c", "another key"].iter().enumerate()
    {
        assert_eq!(code(&hubs.request_websocket(1, &register(mid as i64, wrong))), 204, "{wrong}");
    }
    assert_eq!(hubs.cluster.clients(), 0);
    assert_eq!(code(&hubs.request_websocket(1, &register(100, &"x".repeat(2049)))), 201, "too long");
    assert_eq!(code(&hubs.request_websocket(1, &register(101, &good))), 200);
    let mut without = TestHubs::new(config());
    without.open(1);
    assert_eq!(code(&without.request_websocket(1, &register(1, &good))), 204, "no tokens are taken there");
}

#[test]
fn jwts_that_require_a_signature_check_share_the_limit_of_signatures() {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let jwt = Some(Jwt::new(JwtKey::EdDsa(key.public_key().as_ref().try_into().unwrap())));
    let limits = Limits { per_proof: Rate::new(1.0, 2.0), ..Limits::default() };
    let mut hubs = TestHubs::new(Config { jwt, limits, ..config() });
    hubs.open(1);
    let guess = format!("{}.e30.AAAA", BASE64URL_NOPAD.encode(br#"{"alg":"EdDSA"}"#));
    let codes = [1, 2, 3].map(|mid| code(&hubs.request_websocket(1, &register(mid, &guess))));
    assert_eq!(codes, [204, 204, 206]);
    assert_eq!(code(&hubs.request_websocket(1, &register(4, "the key"))), 200, "a key costs none");
    hubs.advance_ms(1000);
    assert_eq!(code(&hubs.request_websocket(1, &register(5, &guess))), 204);
}

/// Revokes a tag for an hour.
fn revoke(hubs: &mut TestHubs, tag: &str) {
    let unix = hubs.now.unix;
    hubs.cluster.0[0].config.revoked.revoke(unix, tag, unix + 3600).unwrap();
    hubs.cluster.handle_revoked(hubs.now, &Tag::new(tag).unwrap());
    hubs.drain();
}

#[test]
fn a_revoked_tag_is_notified_closed_and_refused_until_the_revocation_expires() {
    let mut hubs = TestHubs::new(config());
    let watcher = hubs.register_websocket(9);
    hubs.open(1);
    let mine = json!({"t": 1, "mid": 1, "params": {"secret": OWN}});
    let tag = hubs.request_websocket(1, &mine)["extra"]["tag"].as_str().unwrap().to_owned();
    hubs.request_websocket(9, &json!({"t": 60, "mid": 2, "params": {"tags": [tag]}}));
    revoke(&mut hubs, &tag);
    assert_eq!(hubs.take_texts(1), [json!({"t": 1, "code": 211, "em": "revoked"})]);
    assert!(hubs.sent.contains(&Output::Close { conn: ConnId(1) }));
    assert_eq!(hubs.take_texts(9), [json!({"t": 60, "params": {"offline": [tag]}})]);
    let call = json!({"t": 4, "mid": 3, "params": {"tag": watcher, "rtag": tag}});
    assert_eq!(code(&hubs.request_websocket(9, &call)), 203);
    hubs.open(2);
    assert_eq!(code(&hubs.request_websocket(2, &mine)), 211);
    assert_eq!(code(&hubs.request_udp("192.0.2.10:1000", &mine)), 211);
    // Other clients are not affected, and the tag can be registered again once its last credentials have expired or the revocation is undone.
    assert_eq!(code(&hubs.request_websocket(2, &json!({"t": 1, "mid": 2}))), 200);
    hubs.now = hubs.now.after(Duration::from_secs(3600));
    let again = json!({"t": 1, "mid": 3, "params": {"secret": OWN}});
    assert_eq!(hubs.request_websocket(2, &again)["extra"]["tag"], json!(tag));
    revoke(&mut hubs, &tag);
    assert!(hubs.cluster.0[0].config.revoked.restore(&tag));
    hubs.open(3);
    assert_eq!(hubs.request_websocket(3, &again)["extra"]["tag"], json!(tag));
}

#[test]
fn the_calls_of_a_revoked_tag_end_and_the_other_side_is_notified() {
    let mut hubs = TestHubs::new(config());
    let tags = [1, 2, 3].map(|conn| hubs.register_websocket(conn));
    let mut call = |from: usize, to: usize| {
        let message = json!({"t": 4, "mid": 9, "params": {"tag": tags[from], "rtag": tags[to]}});
        let token = hubs.request_websocket(from as u64 + 1, &message)["extra"]["token"].clone();
        (token, hubs.take_texts(to as u64 + 1).remove(0)["mid"].clone())
    };
    // 1 calls 2, which answers; 3 calls 1, which has not answered yet.
    let (live, mid) = call(0, 1);
    let (waiting, _) = call(2, 0);
    hubs.send_text(2, &json!({"t": -51, "mid": mid, "token": live, "code": 200}));
    hubs.take_texts(1);
    revoke(&mut hubs, &tags[0]);
    let ended = one(hubs.take_texts(2));
    assert_eq!(
        (&ended["t"], &ended["token"], &ended["params"]["reason"]),
        (&json!(55), &live, &json!("revoked"))
    );
    let failed = one(hubs.take_texts(3));
    assert_eq!((&failed["t"], &failed["token"], code(&failed)), (&json!(4), &waiting, 203));
    assert_eq!(hubs.take_texts(1), [json!({"t": 1, "code": 211, "em": "revoked"})]);
    hubs.advance_ms(30_000);
    assert_eq!(hubs.cluster.calls(), 0);
    // A name that no client has can be revoked too.
    hubs.sent.clear();
    revoke(&mut hubs, "nobody");
    assert!(hubs.sent.is_empty());
}

#[test]
fn an_unproven_address_is_not_notified_of_a_revocation() {
    let mut hubs = TestHubs::new(config());
    let mine = json!({"t": 1, "mid": 1, "params": {"secret": OWN}});
    let tag = hubs.request_udp("192.0.2.10:1000", &mine)["extra"]["tag"].as_str().unwrap().to_owned();
    revoke(&mut hubs, &tag);
    assert!(hubs.take_datagrams("192.0.2.10:1000").is_empty());
    assert_eq!(code(&hubs.request_udp("192.0.2.10:1000", &json!({"t": 2, "tag": tag}))), 202);
}

/// Keys of two realms besides the one of `config`, which is of the default realm.
fn with_realms() -> Config {
    let key = |name: &str| AccessKey::scoped(name, Scopes::ALL, name);
    Config { access_keys: vec![AccessKey::new("the key"), key("blue"), key("green")], ..with_tokens() }
}

/// Opens a WebSocket and registers with a key.
fn client_of(hubs: &mut TestHubs, conn: u64, key: &str) -> String {
    hubs.open(conn);
    let answer = hubs.request_websocket(conn, &json!({"t": 1, "mid": 1, "params": {"key": key}}));
    answer["extra"]["tag"].as_str().unwrap().to_owned()
}

fn listed(hubs: &mut TestHubs, conn: u64, tag: &str, mid: i64) -> Value {
    hubs.request_websocket(conn, &json!({"t": 3, "mid": mid, "params": {"tag": tag}}))["extra"]["tags"]
        .clone()
}

#[test]
fn clients_of_another_realm_cannot_be_listed_watched_or_called() {
    let mut hubs = TestHubs::new(with_realms());
    let end = hubs.now.unix + 600;
    let (blue, plain) = (client_of(&mut hubs, 1, "blue"), hubs.register_websocket(2));
    let green = client_of(&mut hubs, 3, &token(&json!({"exp": end, "realm": "green"})));
    let other = client_of(&mut hubs, 4, &token(&json!({"exp": end, "realm": "blue"})));
    let by_udp = hubs.register_udp("192.0.2.10:1000");
    assert_eq!(listed(&mut hubs, 1, &blue, 2), json!([other]));
    assert_eq!(listed(&mut hubs, 2, &plain, 2), json!([by_udp]));
    assert_eq!(listed(&mut hubs, 3, &green, 2), json!([]));
    let nobody = "q2vnfo5zj3s4yqk7w6h2r5tx";
    for (mid, (callee, expected)) in
        [(&*plain, 203), (&green, 203), (nobody, 203), (&other, 200)].iter().enumerate()
    {
        let call = json!({"t": 4, "mid": 10 + mid, "params": {"tag": blue, "rtag": callee}});
        assert_eq!(code(&hubs.request_websocket(1, &call)), *expected);
    }
    let call = json!({"t": 4, "mid": 20, "params": {"tag": by_udp, "rtag": blue}});
    assert_eq!(code(&hubs.request_udp("192.0.2.10:1001", &call)), 203);
    hubs.take_texts(4);
    let watch = json!({"t": 60, "mid": 30, "params": {"tags": [other, plain, green, nobody]}});
    let presence = hubs.request_websocket(1, &watch)["extra"].clone();
    assert_eq!(presence, json!({"online": [other], "offline": [plain, green, nobody]}));
    hubs.advance_ms(2000);
    for conn in [2, 3, 4] {
        hubs.close(conn);
    }
    let mut received = hubs.take_texts(1);
    received.retain(|message| message["t"] == 60);
    assert_eq!(received, [json!({"t": 60, "params": {"offline": [other]}})]);
}

#[test]
fn a_client_that_presents_a_key_of_another_realm_leaves_its_realm() {
    let mut hubs = TestHubs::new(with_realms());
    let watchers = [(1, "blue"), (2, "green")].map(|(conn, key)| client_of(&mut hubs, conn, key));
    hubs.open(3);
    let mine =
        |mid: i64, key: Option<&str>| json!({"t": 1, "mid": mid, "params": {"key": key, "secret": OWN}});
    let tag = hubs.request_websocket(3, &mine(1, Some("blue")))["extra"]["tag"].as_str().unwrap().to_owned();
    for conn in [1, 2] {
        hubs.request_websocket(conn, &json!({"t": 60, "mid": 2, "params": {"tags": [tag]}}));
    }
    hubs.advance_ms(2000);
    assert_eq!(hubs.request_websocket(3, &mine(2, Some("green")))["extra"]["tag"], json!(tag));
    hubs.advance_ms(2000);
    assert_eq!(hubs.take_texts(1), [json!({"t": 60, "params": {"offline": [tag]}})]);
    assert_eq!(hubs.take_texts(2), [json!({"t": 60, "params": {"online": [tag]}})]);
    assert_eq!(listed(&mut hubs, 1, &watchers[0], 3), json!([]));
    assert_eq!(listed(&mut hubs, 2, &watchers[1], 3), json!([tag]));
    // Another connection without a key is in the default realm.
    hubs.open(4);
    assert_eq!(hubs.request_websocket(4, &mine(3, None))["extra"]["tag"], json!(tag));
    hubs.advance_ms(2000);
    assert_eq!(hubs.take_texts(2), [json!({"t": 60, "params": {"offline": [tag]}})]);
    assert_eq!(hubs.cluster.clients(), 3);
}

#[test]
fn the_calls_of_a_revoked_tag_end_at_every_hub_also_those_from_before_it_moved() {
    let mut hubs = TestHubs::new(config());
    let callees = [1, 2, 3, 4].map(|conn| hubs.register_websocket(conn));
    let mine = json!({"t": 1, "mid": 1, "params": {"secret": OWN}});
    let tag = hubs.request_udp("192.0.2.10:1000", &mine)["extra"]["tag"].as_str().unwrap().to_owned();
    for (mid, callee) in callees.iter().enumerate() {
        let call = json!({"t": 4, "mid": 2 + mid, "params": {"tag": tag, "rtag": callee}});
        assert_eq!(code(&hubs.request_udp("192.0.2.10:1001", &call)), 200);
    }
    assert_eq!(hubs.request_udp("192.0.2.20:1000", &mine)["extra"]["tag"], json!(tag));
    for conn in 1..=4 {
        hubs.take_texts(conn);
    }
    revoke(&mut hubs, &tag);
    for conn in 1..=4 {
        let ended = one(hubs.take_texts(conn));
        assert_eq!((&ended["t"], &ended["params"]["reason"]), (&json!(55), &json!("revoked")));
    }
}
