//! Evidence of a machine: whatever it sends, a verifier answers, and takes nothing for healthy that no TPM of its machines signed.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::time::UnixTime;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    support::is_not_believed(&support::VERIFIER.appraise_answer("linux", data, &[7; 32], UnixTime(1_800_000_000)));
});
