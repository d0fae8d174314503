//! Evidence of a machine: whatever it sends, a verifier answers, and takes nothing for healthy that no TPM of its machines signed.
#![no_main]

use std::{collections::BTreeMap, sync::LazyLock};

use hvci_engine::time::UnixTime;
use libfuzzer_sys::fuzz_target;
use loader_sim::attest::{DbxInfo, Reference, Verifier, alert, result::Ear};

const REFERENCE: &str = "chain = [\"shim\", \"boot-loader\", \"kernel\"]\n";
const MACHINE: &str = r#"{"profile":"linux","features":{"secure_boot":true,"vtpm":true,"hvci":true,"credential_guard":true},
    "ak_name":"000b0000000000000000000000000000000000000000000000000000000000000000",
    "ek_name":"000b0000000000000000000000000000000000000000000000000000000000000000","reset_count":1,"restart_count":0,"orderly":true,
    "ledger":"current","baseline":null}"#;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let reference = Reference::read(REFERENCE).expect("reference values");
    let machine = serde_json::from_str(MACHINE).expect("what the host knows");
    Verifier::new(reference, DbxInfo::default(), BTreeMap::from([("vm".to_owned(), machine)]))
});

fuzz_target!(|data: &[u8]| {
    let appraisal = VERIFIER.appraise_answer("vm", data, &[7; 32], UnixTime(1_800_000_000));
    assert!(!appraisal.healthy(), "believed evidence of the fuzzer's");
    alert::write(&mut std::io::sink(), &alert::alerts(&appraisal)).expect("alerts are written");
    serde_json::to_vec(&Ear::of(&appraisal, 300)).expect("a result is written");
});
