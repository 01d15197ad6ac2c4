#![no_main]

#[path = "../targets/messaging_machine.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
