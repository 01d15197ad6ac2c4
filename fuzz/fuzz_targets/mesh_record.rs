#![no_main]

#[path = "../targets/mesh_record.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
