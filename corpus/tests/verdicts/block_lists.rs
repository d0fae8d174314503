//! What is refused in spite of a good signature.

use corpus::synth::{authenticode::nested, layout::authentihash, mutate::Mutation, pe::Image, signed_data::Signing, timestamp::Stamp};
use hvci_engine::{
    digest::{Digest, DigestAlg},
    facts::FileKind::PeDriver,
    policy::Decision::{Accept, Refuse},
    signature::block_list::{BlockList, BlockedCertificate},
};

use super::*;

const KERNEL: &str = "windows-kernel";

fn signing(name: &str) -> Signing<'static> {
    Signing::new(who(name), &PKI.issuers(name).unwrap())
}

fn driver() -> Vec<u8> {
    Image::of(PeDriver, "blocked").build().unwrap()
}

fn blocking(list: BlockList) -> TrustStore {
    let mut trust = TRUST.clone();
    trust.replace_blocked(list).unwrap();
    trust
}

/// A list of one certificate.
fn of_certificate(name: &str, alg: DigestAlg, since: Option<&str>) -> BlockList {
    let mut list = BlockList::new(1);
    let since = since.map(|date| instant(date).unwrap());
    list.block_certificate(engine(who(name)).tbs_hash(alg), BlockedCertificate { since, reason: "stolen".to_owned() });
    list
}

fn judged(file: &[u8], name: &str, list: BlockList) -> Verdict {
    verdict_with(file, name, &blocking(list), &Cache::default())
}

#[test]
fn a_file_is_known_by_its_authentihash_whatever_stands_where_no_signature_covers_it() {
    let file = attach(&driver(), &Authenticode::new(signing("whql")));
    let listing = |image: &[u8]| {
        let mut list = BlockList::new(1);
        list.block_file(Digest::new(DigestAlg::Sha256, &authentihash(image, DigestAlg::Sha256).unwrap()).unwrap(), "abused");
        list
    };
    assert_verdict(&judged(&file, KERNEL, listing(&Image::of(PeDriver, "another").build().unwrap())), Accept, &[]);
    for file in [file.clone(), Mutation::find("checksum").unwrap().apply(&file, &file).unwrap()] {
        let verdict = judged(&file, KERNEL, listing(&driver()));
        assert_verdict(&verdict, Refuse, &[Code::PolBlocked]);
        assert_eq!(verdict.findings[0].detail, "abused");
    }
}

#[test]
fn a_signer_is_known_by_a_certificate_of_its_path() {
    let file = attach(&driver(), &Authenticode::new(signing("whql")));
    for (name, alg) in [("whql", DigestAlg::Sha1), ("kernel ca", DigestAlg::Sha256), ("kernel root", DigestAlg::Sha384)] {
        assert_verdict(&judged(&file, KERNEL, of_certificate(name, alg, None)), Refuse, &[Code::PolBlocked]);
    }
    assert_verdict(&judged(&file, KERNEL, of_certificate("attested", DigestAlg::Sha256, None)), Accept, &[]);
    // the key of a module, of which the signature carries no certificate
    let module = case("module/rsa-sha256.ko");
    assert_verdict(&judged(module, "linux-module", of_certificate("module", DigestAlg::Sha256, None)), Refuse, &[Code::PolBlocked]);
}

#[test]
fn another_good_signature_does_not_help() {
    let image = driver();
    let mut both = Authenticode::new(signing("whql"));
    let second = Authenticode::new(signing("whql p256")).sign(&image).unwrap();
    both.signing.unsigned.push(nested(&second).unwrap());
    let file = attach(&image, &both);
    for name in ["whql", "whql p256"] {
        assert_verdict(&judged(&file, KERNEL, of_certificate(name, DigestAlg::Sha256, None)), Refuse, &[Code::PolBlocked]);
    }
}

#[test]
fn what_is_proven_to_be_signed_before_the_date_still_counts() {
    let stamped = |date| {
        let stamps = vec![Stamp::new(who("tsa"), &PKI.issuers("tsa").unwrap(), instant(date).unwrap())];
        attach(&driver(), &Authenticode::new(Signing { stamps, ..signing("whql") }))
    };
    let list = || of_certificate("whql", DigestAlg::Sha256, Some("2024-06-01"));
    assert_verdict(&judged(&stamped("2024-05-31"), KERNEL, list()), Accept, &[]);
    assert_verdict(&judged(&stamped("2024-06-01"), KERNEL, list()), Refuse, &[Code::PolBlocked]);
    // without proof it is signed now
    assert_verdict(&judged(&attach(&driver(), &Authenticode::new(signing("whql"))), KERNEL, list()), Refuse, &[Code::PolBlocked]);
    let file = stamped("2024-05-31");
    let changed = Mutation::find("timestamp-signature").unwrap().apply(&file, &file).unwrap();
    assert_verdict(&judged(&changed, KERNEL, list()), Refuse, &[Code::PolBlocked, Code::TspInvalid]);
}

#[test]
fn an_older_list_is_not_taken() {
    let mut trust = blocking(BlockList::new(5));
    assert_eq!(trust.replace_blocked(BlockList::new(4)).unwrap_err().version, 4);
    assert_eq!(trust.blocked().version, 5);
    trust.replace_blocked(of_certificate("whql", DigestAlg::Sha256, None)).unwrap_err();
    trust.replace_blocked(BlockList::new(5)).unwrap();
}
