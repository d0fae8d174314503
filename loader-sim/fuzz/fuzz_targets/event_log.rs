//! Event logs: what can be read is checked, replayed and told in words, and written again it is the same. A verifier looks at any, as a guest of either
//! kind may send it.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::time::UnixTime;
use libfuzzer_sys::fuzz_target;
use loader_sim::{
    attest::{Evidence, Features, Profile, evidence::Bytes},
    measure::{EventLog, LogBuilder, check, data::EventData, replay},
};

fuzz_target!(|data: &[u8]| {
    for (vm, profile) in [("linux", Profile::Linux), ("windows", Profile::Windows)] {
        let evidence = Evidence {
            profile,
            vm: vm.to_owned(),
            nonce: vec![7; 32],
            ak_public: Bytes(Vec::new()),
            quotes: Vec::new(),
            tcg_log: Some(Bytes(data.to_vec())),
            drivers: Vec::new(),
            features: Features { secure_boot: true, vtpm: true, hvci: true, credential_guard: true },
        };
        support::is_not_believed(&support::VERIFIER.appraise(&evidence, &[7; 32], UnixTime(1_800_000_000)));
    }
    let Ok(log) = EventLog::read(data) else { return };
    check(&log);
    let banks = replay(&log);
    for event in &log.events {
        let _ = EventData::of(event).to_string();
        assert!(event.offset < data.len());
    }
    // one with a digest for each bank that can be calculated can be written by us
    let algs: Option<Vec<_>> = log.algorithms.iter().map(|(alg, _)| alg.digest_alg()).collect();
    let (Some(algs), true) = (algs, log.agile) else { return };
    let Ok(mut again) = LogBuilder::new(&algs) else { return };
    for event in &log.events {
        let digests: Option<Vec<_>> = algs.iter().map(|alg| event.digests.get(*alg)).collect();
        let Some(digests) = digests else { return };
        if again.append(event.pcr, event.event_type, &digests, event.data).is_err() {
            return;
        }
    }
    let written = EventLog::read(again.bytes()).expect("what was written is read");
    assert_eq!(replay(&written), banks);
});
