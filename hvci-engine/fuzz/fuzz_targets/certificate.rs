//! X.509 certificates: parse, every accessor, and the arithmetic with its own key; bundles of them, DER or PEM.
#![no_main]

use hvci_engine::{
    digest::DigestAlg,
    signature::{cert::Certificate, keyring::certificates_from},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for der in certificates_from(data).unwrap_or_default() {
        assert!(Certificate::parse(&der).is_ok(), "a bundle holds what is no certificate");
    }
    let Ok(certificate) = Certificate::parse(data) else { return };
    assert_eq!(certificate.der(), data);
    certificate.check_signed_by(&certificate);
    if let Ok(key) = certificate.public_key() {
        key.kind();
    }
    for part in [certificate.tbs(), certificate.subject_der(), certificate.issuer_der(), certificate.serial(), certificate.spki()] {
        assert!(!part.is_empty() && part.len() < data.len());
    }
    _ = (certificate.subject_key_id(), certificate.authority_key_id(), certificate.version(), certificate.ekus());
    _ = (certificate.not_before().to_string(), certificate.not_after().to_string());
    _ = (certificate.key_usage(), certificate.basic_constraints(), certificate.unknown_critical(), certificate.signature_digest());
    _ = (certificate.subject(), certificate.issuer(), certificate.subject_short(), certificate.organization());
    assert_eq!(certificate.tbs_hash(DigestAlg::Sha384).as_bytes().len(), 48);

    let json = serde_json::to_string(&certificate).expect("a certificate is written");
    let again: Certificate = serde_json::from_str(&json).expect("what was written is read");
    assert!(again == certificate, "another certificate came back");
});
