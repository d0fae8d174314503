//! Compressed modules and kernels: no more than the cap comes out, and no kernel has keys that are no certificates.
#![no_main]

use hvci_engine::{
    image::unpack::{unpack, unpack_payload},
    signature::{cert::Certificate, kernel::kernel_certificates},
};
use libfuzzer_sys::fuzz_target;

const CAP: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    if let Ok(unpacked) = unpack(data, CAP) {
        assert!(unpacked.data.len() <= CAP);
    }
    if let Ok(payload) = unpack_payload(data, CAP) {
        assert!(payload.len() <= CAP);
    }
    for der in kernel_certificates(data, CAP).unwrap_or_default() {
        assert!(Certificate::parse(&der).is_ok());
    }
});
