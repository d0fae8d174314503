//! Signature lists of UEFI variables: what can be read is written back byte for byte, asked, and appended to itself without effect; and the same
//! bytes as a detached signature, which no anchor of the engine's made.
#![no_main]

use hvci_engine::{
    crypto,
    digest::DigestAlg,
    signature::{cert::Certificate, detached, signature_list::SignatureDatabase, trust::TrustStore},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let anchors =
        || TrustStore::builtin().anchors().iter().take(2).filter_map(|a| Certificate::parse(a.certificate.der()).ok()).collect::<Vec<_>>();
    assert!(detached::verify(data, &[b"signed by nobody"], DigestAlg::Sha256, anchors()).is_err(), "believed a signature of the fuzzer's");
    let Ok(mut database) = SignatureDatabase::read(data) else { return };
    assert_eq!(database.to_bytes(), data);
    for alg in DigestAlg::ALL {
        database.find_digest(&crypto::digest(alg, &[data]));
    }
    for certificate in database.certificates() {
        assert!(database.find_certificate(&certificate).is_some());
    }
    let same = database.clone();
    assert_eq!(database.append(&same), 0);
});
