//! Which certificate is the signer's, and what a timestamp proves.

use corpus::synth::{
    authenticode::{Authenticode, Entry, Table},
    certificate::{CODE, Template, instant},
    der::Node,
    pe::Image,
    signed_data::Signing,
    timestamp::Stamp,
};
use hvci_engine::{
    facts::{FileKind::PeUser, SignatureCheck},
    finding::Code,
    policy::Decision::{Accept, Refuse},
    signature::cache::Cache,
};

use super::{PKI, assert_verdict, attach, case, facts_with, has, verdict, who};

const USER: &str = "windows-user";

fn program(name: &str) -> Vec<u8> {
    Image::of(PeUser, name).build().unwrap()
}

fn signing(name: &str) -> Signing<'static> {
    Signing::new(who(name), &PKI.issuers(name).unwrap())
}

#[test]
fn of_two_certificates_with_one_issuer_and_serial_number_the_one_whose_key_signed_is_the_signer() {
    // an authority of the same name can give the same number
    let impostor = Template::ca("CN=Example Code Signing CA,O=Example Trust,C=XX", None).issue(&who("self-signed").key, None).unwrap();
    let template = Template { serial_of: Some(&who("code").certificate), ..Template::leaf("CN=Contoso Devices,O=Contoso,C=XX", CODE) };
    let twin = template.issue(&who("self-signed").key, Some(&impostor)).unwrap();
    let image = program("twins");
    for twin_first in [false, true] {
        let mut signature = Authenticode::new(signing("code"));
        signature.signing.certificates.insert(if twin_first { 0 } else { 1 }, twin.certificate.clone());
        let bytes = attach(&image, &signature);
        let facts = facts_with(&bytes, &Cache::default());
        let signer = facts.signatures[0].signer.as_ref().unwrap();
        assert_eq!(signer.check, SignatureCheck::Valid);
        assert_eq!(facts.certificates[signer.certificate.unwrap()], super::engine(who("code")));
        assert_verdict(&verdict(&bytes, USER), Accept, &[]);
    }
    // only the twin: the name fits, the key does not
    let mut signature = Authenticode::new(signing("code"));
    signature.signing.certificates[0] = twin.certificate;
    assert_verdict(&verdict(&attach(&image, &signature), USER), Refuse, &[Code::SigInvalid]);
}

#[test]
fn the_first_signer_of_several_counts() {
    let bytes = case("signature/two-signers.sys");
    let facts = facts_with(bytes, &Cache::default());
    assert_eq!(facts.signatures.len(), 1);
    let verdict = verdict(bytes, "windows-kernel");
    assert_verdict(&verdict, Accept, &[Code::SigMultipleSigners]);
    assert_eq!(verdict.publisher.as_deref(), Some("Synthetic Hardware Compatibility Publisher"));
}

#[test]
fn a_timestamp_proves_its_time_only_with_every_link() {
    for (path, time) in [
        ("timestamp/pkcs9.exe", Some("2021-03-04")),
        ("timestamp/rfc3161.exe", Some("2021-03-04")),
        ("timestamp/no-certificate-id.exe", Some("2021-03-04")),
        ("timestamp/after-expiry.exe", Some("2023-01-01")),
        ("timestamp/rfc3161-forged.exe", None),
        ("timestamp/pkcs9-forged.exe", None),
        ("timestamp/time.exe", None),
        ("timestamp/of-another.exe", None),
        ("timestamp/signer-missing.exe", None),
        ("timestamp/no-certificates.exe", None),
        ("timestamp/untrusted.exe", None),
        ("timestamp/no-usage.exe", None),
        ("timestamp/authority-expired.exe", None),
        ("timestamp/none-expired.exe", None),
    ] {
        let verdict = verdict(case(path), USER);
        assert_eq!(verdict.signatures[0].signing_time, time.map(|t| instant(t).unwrap()), "{path}");
        assert_eq!(verdict.signatures[0].timestamp_path.is_empty(), time.is_none(), "{path}");
    }
}

/// Where a PKCS#7 has its first token.
const TOKEN: &[usize] = &[1, 0, 4, 0, 6, 0, 1, 0];
/// Where a token has its certificates, and how it names its signer.
const SAYS_WHO: [&[usize]; 2] = [&[1, 0, 3], &[1, 0, 4, 0, 1]];

#[test]
fn a_token_that_names_another_certificate_of_the_same_key_proves_nothing() {
    // both certificates are of one key. One has expired; the token of that one gets the other in its place: neither certificates nor the
    // signer's name are signed, only signingCertificateV2 is
    let image = program("bound");
    let blob = |authority: &str, no_certificate_id: bool| {
        let mut signature = Authenticode::new(signing("code expired"));
        let stamp = Stamp::new(who(authority), &[], instant("2021-03-04").unwrap());
        signature.signing.stamps = vec![Stamp { no_certificate_id, ..stamp }];
        Node::parse(&signature.sign(&image).unwrap()).unwrap()
    };
    let swapped = |no_certificate_id: bool| {
        let (mut blob, mut other) = (blob("tsa old", no_certificate_id), blob("tsa", no_certificate_id));
        let (token, other) = (blob.at_mut(TOKEN).unwrap(), other.at_mut(TOKEN).unwrap());
        for part in SAYS_WHO {
            *token.at_mut(part).unwrap() = other.at_mut(part).unwrap().clone();
        }
        let table = Table { entries: vec![Entry::pkcs7(blob.encode())], ..Table::split(&image).unwrap() };
        verdict(&table.join().unwrap(), USER)
    };
    assert_verdict(&swapped(false), Refuse, &[Code::TspBinding, Code::PkiExpired]);
    // a token that binds itself to no certificate can be had of either
    assert_verdict(&swapped(true), Accept, &[]);
}

#[test]
fn a_second_timestamp_serves_where_the_first_proves_nothing() {
    let at = instant("2021-03-04").unwrap();
    let good = Stamp::new(who("tsa"), &[], at);
    let untrusted = Stamp::new(who("tsa stranger"), &PKI.issuers("tsa stranger").unwrap(), at);
    let mut signature = Authenticode::new(signing("code expired"));
    signature.signing.stamps = vec![untrusted.clone(), good.pkcs9()];
    let both = verdict(&attach(&program("second"), &signature), USER);
    assert_verdict(&both, Accept, &[Code::TspUntrusted]);
    assert_eq!(both.signatures[0].signing_time, Some(at));
    signature.signing.stamps = vec![untrusted];
    let alone = verdict(&attach(&program("second"), &signature), USER);
    assert_verdict(&alone, Refuse, &[Code::TspUntrusted, Code::PkiExpired]);
    assert!(!has(&alone, Code::TspNone));
}
