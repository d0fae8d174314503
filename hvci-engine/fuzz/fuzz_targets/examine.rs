//! Any file at all, as a scan meets it: unpacked, read, hashed, judged under every profile.
#![no_main]

#[path = "../support.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| support::examine_and_judge(data));
