#![no_main]

#[path = "../targets/hub_machine.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
