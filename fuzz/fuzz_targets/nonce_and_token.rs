#![no_main]

#[path = "../targets/nonce_and_token.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
