//! Tags that belong to a key: t=5 and `pub`, `nonce`, `sig` of t=1.

use super::*;
use crate::signaling::wire::Proof;
use crate::signaling::{Limits, Rate};
use data_encoding::BASE64URL_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair};

const A: &str = "192.0.2.10:1000";

fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn nonce(answer: &Value) -> String {
    answer["extra"]["nonce"].as_str().unwrap().to_owned()
}

fn register(key: &Ed25519KeyPair, mid: i64, nonce: &str, epoch: Option<i64>) -> Value {
    let public: [u8; 32] = key.public_key().as_ref().try_into().unwrap();
    let proof = Proof { public, nonce: nonce.to_owned(), signature: Vec::new() };
    let sig = BASE64URL_NOPAD.encode(key.sign(proof.text(epoch).as_bytes()).as_ref());
    let public = BASE64URL_NOPAD.encode(&public);
    json!({"t": 1, "mid": mid, "params": {"pub": public, "nonce": nonce, "sig": sig, "epoch": epoch}})
}

/// Opens a WebSocket and registers on it by key.
fn session(hubs: &mut TestHubs, conn: u64, key: &Ed25519KeyPair, epoch: Option<i64>) -> Value {
    hubs.open(conn);
    let nonce = nonce(&hubs.request_websocket(conn, &json!({"t": 5, "mid": 1})));
    hubs.request_websocket(conn, &register(key, 2, &nonce, epoch))
}

#[test]
fn a_key_gets_the_same_tag_on_every_connection_and_another_key_another_tag() {
    let mut hubs = TestHubs::new(config());
    let first = session(&mut hubs, 1, &key(1), None);
    let other = session(&mut hubs, 2, &key(2), None);
    assert_ne!(first["extra"]["tag"], other["extra"]["tag"]);
    let mut hubs = TestHubs::new(config());
    let by_udp = nonce(&hubs.request_udp(A, &json!({"t": 5})));
    assert_eq!(
        hubs.request_udp(A, &register(&key(1), 2, &by_udp, None))["extra"]["tag"],
        first["extra"]["tag"]
    );
    // Epochs work as for any owned tag.
    let epoch = session(&mut hubs, 1, &key(1), None)["extra"]["epoch"].as_i64().unwrap();
    assert_eq!(code(&session(&mut hubs, 2, &key(1), Some(epoch))), 210);
    assert_eq!(code(&session(&mut hubs, 3, &key(1), Some(epoch + 1))), 200);
    assert_eq!(hubs.cluster.clients(), 1);
}

#[test]
fn the_tag_of_a_key_cannot_be_registered_without_the_key() {
    let mut hubs = TestHubs::new(config());
    let tag = session(&mut hubs, 1, &key(1), Some(5))["extra"]["tag"].clone();
    hubs.open(2);
    let mine = nonce(&hubs.request_websocket(2, &json!({"t": 5})));
    let right = register(&key(1), 3, &mine, Some(6));
    let with = |field: &str, value: Value| {
        let mut message = right.clone();
        message["params"][field] = value;
        message
    };
    let other = register(&key(2), 3, &mine, Some(6));
    for (mid, message) in [
        with("sig", other["params"]["sig"].clone()),
        with("epoch", json!(7)),
        with("epoch", Value::Null),
        with("sig", json!("")),
        with("sig", json!("AA")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut message = message;
        message["mid"] = json!(100 + mid);
        assert_eq!(code(&hubs.request_websocket(2, &message)), 204, "{message}");
    }
    // A signature for another connection, or one that is too old, is not accepted.
    hubs.open(3);
    assert_eq!(code(&hubs.request_websocket(3, &right)), 205);
    hubs.advance_ms(30_000);
    assert_eq!(code(&hubs.request_websocket(2, &right)), 205);
    assert_eq!(hubs.request_websocket(1, &json!({"t": 1, "mid": 9}))["extra"]["tag"], tag);
    // The tag itself is not a secret: it cannot be used to register.
    let secret = json!({"t": 1, "mid": 4, "params": {"secret": tag}});
    assert_ne!(hubs.request_websocket(2, &secret)["extra"]["tag"], tag);
    let both = with("secret", json!("a secret of twenty-two"));
    assert_eq!(code(&hubs.request_websocket(2, &both)), 201);
}

#[test]
fn a_signed_nonce_proves_the_address() {
    let mut hubs = TestHubs::new(config());
    let given = nonce(&hubs.request_udp(A, &json!({"t": 5, "mid": 1})));
    let answer = hubs.request_udp(A, &register(&key(1), 2, &given, None));
    assert!(answer["extra"]["ice_servers"].is_array());
    let answer = hubs.request_udp(A, &json!({"t": 1, "mid": 3, "params": {"key": "the key"}}));
    assert_eq!(answer["extra"]["ice_servers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn signatures_of_one_network_are_limited() {
    let limits = Limits { per_proof: Rate::new(1.0, 2.0), ..Limits::default() };
    let mut hubs = TestHubs::new(Config { limits, ..config() });
    let codes: Vec<_> = (1..=3).map(|conn| code(&session(&mut hubs, conn, &key(conn as u8), None))).collect();
    assert_eq!(codes, [200, 200, 206]);
    hubs.advance_ms(1000);
    assert_eq!(code(&session(&mut hubs, 4, &key(4), None)), 200);
}

#[test]
fn the_pages_signature_covers_its_four_lines_under_the_key_of_rfc_8037() {
    let seed = BASE64URL_NOPAD.decode(b"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let message = register(&key, 2, "nezdgnj2mfrgg3dfnzxxk3tdmu", Some(1_765_000_000_001));
    let page = include_str!("../../../docs/wire/signaling.md");
    let example = page.split("```json\n").find(|block| block.contains("\"sig\"")).unwrap();
    let example = parsed(example.split("\n```").next().unwrap().as_bytes());
    assert_eq!(message, example);
    let signed = page.split("```text\n").find(|block| block.starts_with("ginnel register")).unwrap();
    let signature = BASE64URL_NOPAD.decode(example["params"]["sig"].as_str().unwrap().as_bytes()).unwrap();
    let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key.public_key());
    public.verify(signed.split("\n```").next().unwrap().as_bytes(), &signature).unwrap();
    let tag = session(&mut TestHubs::new(config()), 1, &key, None)["extra"]["tag"].clone();
    assert!(page.contains(tag.as_str().unwrap()), "{tag}");
}
