#![no_main]

#[path = "../targets/mesh_machine.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
