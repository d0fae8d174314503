//! Saved facts, which somebody may have edited: whatever can be read can be judged, and comes back the same.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::{facts::Facts, signature::cache::Cache};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(facts) = serde_json::from_slice::<Facts>(data) else { return };
    support::judge(&facts, &Cache::default());
    let json = serde_json::to_string(&facts).expect("facts are written");
    let again: Facts = serde_json::from_str(&json).expect("what was written is read");
    assert_eq!(again, facts);
});
