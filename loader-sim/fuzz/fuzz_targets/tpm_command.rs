//! Commands of a guest to the embedded TPM: each gets a response that is framed as one, and the state that comes of them is saved and loaded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loader_sim::vtpm::{Tpm, embedded::EmbeddedTpm};

/// TPM2_Startup(CLEAR).
const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

// Each command behind its length, two bytes.
fuzz_target!(|data: &[u8]| {
    let mut tpm = EmbeddedTpm::manufacture([7; 32]);
    tpm.exec(&STARTUP).expect("it starts");
    let mut rest = data;
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (command, behind) = behind.split_at(behind.len().min(usize::from(u16::from_be_bytes(*len))));
        rest = behind;
        let response = tpm.exec(command).expect("it answers");
        let size = response.get(2..6).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
        assert_eq!(size.map(|size| size as usize), Some(response.len()));
        assert!(response.len() >= 10 && matches!(response[..2], [0x80, 1 | 2] | [0, 0xC4]), "{response:02x?}");
    }
    let saved = tpm.save().expect("it is saved");
    let mut other = EmbeddedTpm::manufacture([8; 32]);
    other.load(&saved).expect("what was saved is loaded");
    assert_eq!(other.save().expect("it is saved"), saved);
});
