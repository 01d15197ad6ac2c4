//! The corpora and regressions of `fuzz/`, replayed without a fuzzer.

#![allow(
    clippy::duplicate_mod,
    reason = "targets share files; for the fuzzer each target is a crate of its own"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../../fuzz/targets/client_hello.rs"]
mod client_hello;
#[path = "../../fuzz/targets/gateway_router.rs"]
mod gateway_router;
#[path = "../../fuzz/targets/gateway_wire.rs"]
mod gateway_wire;
#[path = "../../fuzz/targets/hub_machine.rs"]
mod hub_machine;
#[path = "../../fuzz/targets/ice_machine.rs"]
mod ice_machine;
#[path = "../../fuzz/targets/mesh_digest.rs"]
mod mesh_digest;
#[path = "../../fuzz/targets/mesh_machine.rs"]
mod mesh_machine;
#[path = "../../fuzz/targets/mesh_record.rs"]
mod mesh_record;
#[path = "../../fuzz/targets/messaging_json.rs"]
mod messaging_json;
#[path = "../../fuzz/targets/messaging_machine.rs"]
mod messaging_machine;
#[path = "../../fuzz/targets/messaging_wire.rs"]
mod messaging_wire;
#[path = "../../fuzz/targets/nonce_and_token.rs"]
mod nonce_and_token;
#[path = "../../fuzz/targets/relay_machine.rs"]
mod relay_machine;
#[path = "../../fuzz/targets/signaling_wire.rs"]
mod signaling_wire;
#[path = "../../fuzz/targets/stream_framing.rs"]
mod stream_framing;
#[path = "../../fuzz/targets/stun_codec.rs"]
mod stun_codec;

/// Runs `target` over every file of its corpus, and of its regressions if there are any.
fn replay(name: &str, target: fn(&[u8])) {
    let mut replayed = 0;
    for folder in ["corpus", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(name);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for file in entries.map(|entry| entry.unwrap().path()) {
            let data = fs::read(&file).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| target(&data)));
            assert!(outcome.is_ok(), "{} breaks {name}", file.display());
            replayed += 1;
        }
    }
    assert!(replayed >= 5, "the corpus of {name} was not found");
}

#[test]
fn the_corpus_of_stun_codec_breaks_nothing() {
    replay("stun_codec", stun_codec::run);
}

#[test]
fn the_corpus_of_stream_framing_breaks_nothing() {
    replay("stream_framing", stream_framing::run);
}

#[test]
fn the_corpus_of_relay_machine_breaks_nothing() {
    replay("relay_machine", relay_machine::run);
}

#[test]
fn the_corpus_of_client_hello_breaks_nothing() {
    replay("client_hello", client_hello::run);
}

#[test]
fn the_corpus_of_nonce_and_token_breaks_nothing() {
    replay("nonce_and_token", nonce_and_token::run);
}

#[test]
fn the_corpus_of_signaling_wire_breaks_nothing() {
    replay("signaling_wire", signaling_wire::run);
}

#[test]
fn the_corpus_of_hub_machine_breaks_nothing() {
    replay("hub_machine", hub_machine::run);
}

#[test]
fn the_corpus_of_ice_machine_breaks_nothing() {
    replay("ice_machine", ice_machine::run);
}

#[test]
fn the_corpus_of_gateway_wire_breaks_nothing() {
    replay("gateway_wire", gateway_wire::run);
}

#[test]
fn the_corpus_of_messaging_wire_breaks_nothing() {
    replay("messaging_wire", messaging_wire::run);
}

#[test]
fn the_corpus_of_gateway_router_breaks_nothing() {
    replay("gateway_router", gateway_router::run);
}

/// Runs the fuzz targets with `GINNEL_RANDOM_INPUTS` random inputs (default 40).
#[test]
fn random_inputs_break_neither_the_gateways_wire_nor_its_machine() {
    use rand::{RngCore, SeedableRng};
    let count = std::env::var("GINNEL_RANDOM_INPUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(count);
    for _ in 0..count {
        let mut input = vec![0; 64 + rng.next_u32() as usize % 3000];
        rng.fill_bytes(&mut input);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            gateway_wire::run(&input);
            gateway_router::run(&input);
        }));
        if tried.is_err() {
            let path = std::env::temp_dir().join("ginnel-broken-input");
            fs::write(&path, &input).unwrap();
            panic!("broken by {}", path.display());
        }
    }
}

#[test]
fn the_corpus_of_messaging_machine_breaks_nothing() {
    replay("messaging_machine", messaging_machine::run);
}

#[test]
fn the_corpus_of_messaging_json_breaks_nothing() {
    replay("messaging_json", messaging_json::run);
}

#[test]
fn the_corpus_of_mesh_record_breaks_nothing() {
    replay("mesh_record", mesh_record::run);
}

#[test]
fn the_corpus_of_mesh_digest_breaks_nothing() {
    replay("mesh_digest", mesh_digest::run);
}

#[test]
fn the_corpus_of_mesh_machine_breaks_nothing() {
    replay("mesh_machine", mesh_machine::run);
}
