#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| credhost_fuzz::worker(bytes));
