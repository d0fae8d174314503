//! Saved states of the embedded TPM that somebody changed: refused, or a TPM that answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loader_sim::vtpm::{Tpm, embedded::EmbeddedTpm};

fuzz_target!(|data: &[u8]| {
    let mut tpm = EmbeddedTpm::manufacture([7; 32]);
    let before = tpm.save().expect("it is saved");
    if tpm.load(data).is_err() {
        assert_eq!(tpm.save().expect("it is saved"), before, "a state that is refused changes nothing");
        return;
    }
    tpm.reset().expect("it is reset");
    for command in [&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0][..], &[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x81]] {
        assert!(tpm.exec(command).expect("it answers").len() >= 10);
    }
});
