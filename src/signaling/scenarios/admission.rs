//! Who is let in, with what, and how that ends.

use super::*;
use crate::signaling::{Jwt, JwtKey, Limits, Rate};
use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};

const SECRET: &[u8] = b"a secret of thirty-two bytes or more";
const OWN: &str = "a secret of twenty-two";

/// A token of HS256 with these claims.
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
fn a_token_admits_like_a_key_and_the_relay_ends_with_it() {
    let mut world = World::new(Config { open: false, list: false, ..with_tokens() });
    let end = world.now.unix + 600;
    world.open(1);
    let claims = json!({"exp": end, "scope": "register relay", "sub": "alice"});
    let answer = world.ask_web(1, &register(1, &token(&claims)));
    let (tag, user) = (&answer["extra"]["tag"], &answer["extra"]["ice_servers"][1]["username"]);
    assert_eq!(user, &json!(format!("{end}:{}", tag.as_str().unwrap())));
    assert_eq!(code(&world.ask_web(1, &json!({"t": 3, "params": {"tag": tag}}))), 204, "no scope for lists");
    let admin = json!({"exp": end, "scope": ["register", "admin"]});
    let answer = world.ask_web(1, &register(2, &token(&admin)));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(1), "no scope for the relay");
    assert_eq!(code(&world.ask_web(1, &json!({"t": 3, "params": {"tag": tag}}))), 200);
    // Keys count beside it.
    assert_eq!(code(&world.ask_web(1, &register(3, "the key"))), 200);
}

#[test]
fn a_token_that_is_not_right_gets_204_and_nothing_else_of_the_message_counts() {
    let mut world = World::new(with_tokens());
    world.open(1);
    let good = token(&json!({"exp": world.now.unix + 600, "scope": "relay"}));
    let expired = token(&json!({"exp": world.now.unix - 61, "scope": "relay"}));
    for (mid, wrong) in
        [&expired, &good[1..], &good[..good.len() - 1], "a.b.c", "another key"].iter().enumerate()
    {
        assert_eq!(code(&world.ask_web(1, &register(mid as i64, wrong))), 204, "{wrong}");
    }
    assert_eq!(world.hub.clients(), 0);
    assert_eq!(code(&world.ask_web(1, &register(100, &"x".repeat(2049)))), 201, "too long");
    assert_eq!(code(&world.ask_web(1, &register(101, &good))), 200);
    let mut without = World::new(config());
    without.open(1);
    assert_eq!(code(&without.ask_web(1, &register(1, &good))), 204, "no tokens are taken there");
}

#[test]
fn tokens_that_cost_a_signature_are_taken_as_seldom_as_other_signatures() {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let jwt = Some(Jwt::new(JwtKey::EdDsa(key.public_key().as_ref().try_into().unwrap())));
    let limits = Limits { per_proof: Rate { burst: 2.0, per_second: 1.0 }, ..Limits::default() };
    let mut world = World::new(Config { jwt, limits, ..config() });
    world.open(1);
    let guess = format!("{}.e30.AAAA", BASE64URL_NOPAD.encode(br#"{"alg":"EdDSA"}"#));
    let codes = [1, 2, 3].map(|mid| code(&world.ask_web(1, &register(mid, &guess))));
    assert_eq!(codes, [204, 204, 206]);
    assert_eq!(code(&world.ask_web(1, &register(4, "the key"))), 200, "a key costs none");
    world.wait_ms(1000);
    assert_eq!(code(&world.ask_web(1, &register(5, &guess))), 204);
}
