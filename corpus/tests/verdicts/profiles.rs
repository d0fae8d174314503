//! Every column of the table of profiles decides somewhere.

use std::collections::BTreeMap;

use corpus::synth::{
    authenticode::{self, Authenticode},
    catalog::{Member, Tags, catalog},
    certificate::{CODE, Template},
    elf,
    key::{Key, KeyKind},
    pe::{self, Image},
    signed_data::Signing,
};
use hvci_engine::{
    digest::DigestAlg,
    examine::Examiner,
    facts::{
        Facts,
        FileKind::{PeDriver, PeEfi, PeUser},
    },
    finding::Code,
    policy::{
        Decision::{Accept, Refuse, Unknown},
        Judge, profile,
    },
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        trust::{Purposes, TrustStore},
    },
};

use super::{CORPUS, NOW, PKI, TRUST, assert_verdict, attach, case, catalogs, engine, facts_with, has, verdict, verdict_with, who};

const KERNEL: &str = "windows-kernel";
const CROSS: &str = "windows-kernel+cross-signed";
const HVCI: &str = "hvci";
const UEFI: &str = "uefi";
const MODULE: &str = "linux-module";
const USER: &str = "windows-user";

fn signed(image: &Image, name: &str, change: impl FnOnce(&mut Authenticode<'_>)) -> Vec<u8> {
    let mut signature = Authenticode::new(Signing::new(who(name), &PKI.issuers(name).unwrap()));
    change(&mut signature);
    attach(&image.build().unwrap(), &signature)
}

/// The anchors `names`, each for `purpose`.
fn only(purpose: &str, names: &[&str]) -> TrustStore {
    let mut store = TrustStore::empty();
    names.iter().for_each(|name| store.add(engine(who(name)), Purposes::from_name(purpose).unwrap(), *name));
    store
}

#[test]
fn kinds_are_those_that_the_loader_meets() {
    let driver = signed(&Image::of(PeDriver, "kinds"), "whql", |_| {});
    let efi = signed(&Image::of(PeEfi, "kinds"), "uefi", |_| {});
    assert_verdict(&verdict(&driver, KERNEL), Accept, &[]);
    assert_verdict(&verdict(&driver, UEFI), Refuse, &[Code::PolProfile]);
    assert_verdict(&verdict(&efi, UEFI), Accept, &[]);
    for name in [KERNEL, HVCI, MODULE] {
        assert!(has(&verdict(&efi, name), Code::PolProfile), "{name}");
    }
    for (name, bytes) in [("windows-kernel", &driver), ("uefi", &efi)] {
        let auto = Judge { trust: &TRUST, time: *NOW, cache: &Cache::default() }.judge(&facts_with(bytes, &Cache::default()), None);
        assert_eq!((auto.profile.as_str(), auto.decision), (name, Accept));
    }
}

#[test]
fn an_anchor_serves_its_purposes_and_no_other() {
    let module = elf::module("purposes", false).unwrap();
    let files = [
        (KERNEL, signed(&Image::of(PeDriver, "purposes"), "whql", |_| {}), "kernel root", &["kernel"][..]),
        (CROSS, signed(&Image::of(PeDriver, "purposes"), "whql", |_| {}), "kernel root", &["kernel"]),
        (HVCI, signed(&Image::of(PeDriver, "purposes"), "whql", |_| {}), "kernel root", &["kernel"]),
        (UEFI, signed(&Image::of(PeEfi, "purposes"), "uefi", |_| {}), "uefi ca", &["uefi", "shim"]),
        (MODULE, elf::signed(&module, &elf::signing(who("module"))).unwrap(), "module", &["module"]),
        (USER, signed(&Image::of(PeUser, "purposes"), "code", |_| {}), "code root", &["user"]),
    ];
    for (name, bytes, anchor, serves) in files {
        for purpose in ["kernel", "uefi", "shim", "module", "user", "timestamp"] {
            let verdict = verdict_with(&bytes, name, &only(purpose, &[anchor]), &Cache::default());
            let decision = if serves.contains(&purpose) {
                Accept
            } else if name == MODULE {
                // no key for modules at all
                Unknown
            } else {
                Refuse
            };
            let code = if name == MODULE { Code::PkiNoKeyring } else { Code::PkiScope };
            assert_verdict(&verdict, decision, if decision == Accept { &[] } else { std::slice::from_ref(&code) });
            assert_eq!(has(&verdict, Code::PkiShim), name == UEFI && purpose == "shim");
        }
        assert_ne!(verdict_with(&bytes, name, &TrustStore::empty(), &Cache::default()).decision, Accept);
    }
}

#[test]
fn an_anchor_for_another_purpose_does_not_hide_one_that_serves() {
    let bytes = signed(&Image::of(PeDriver, "two anchors"), "code 2014", |a| {
        a.signing.certificates.push(who("code root cross").certificate.clone());
    });
    // the commercial root is an anchor for programs; over its cross-certificate the kernel's is reached
    let verdict = verdict(&bytes, CROSS);
    assert_verdict(&verdict, Accept, &[Code::PolCrossSigned]);
    assert_eq!(verdict.signatures[0].path.last().unwrap().anchor.as_deref(), Some("kernel root"));
}

#[test]
fn usages_decide() {
    // one anchor for everything, so that nothing but the usage can decide
    let mut trust = TrustStore::empty();
    for name in ["kernel root", "uefi ca"] {
        let every = ["kernel", "uefi", "module", "user"].map(|p| Purposes::from_name(p).unwrap());
        trust.add(engine(who(name)), every.into_iter().reduce(Purposes::and).unwrap(), name);
    }
    let driver = |name| signed(&Image::of(PeDriver, "usages"), name, |_| {});
    let said = |bytes: &[u8], name| verdict_with(bytes, name, &trust, &Cache::default()).decision;
    for (signer, kernel, cross, user) in [
        ("whql", Accept, Accept, Accept),
        ("attested", Accept, Accept, Accept),
        ("system", Accept, Accept, Accept),
        ("extended", Accept, Accept, Accept),
        ("elam", Accept, Accept, Accept),
        // issued in 2020
        ("kernel code only", Refuse, Refuse, Accept),
    ] {
        let bytes = driver(signer);
        assert_eq!([KERNEL, HVCI, CROSS, USER].map(|p| said(&bytes, p)), [kernel, kernel, cross, user], "{signer}");
    }
    // firmware asks for no usage
    assert_eq!(said(&signed(&Image::of(PeEfi, "usages"), "kernel code only", |_| {}), UEFI), Accept);
}

#[test]
fn which_signature_counts() {
    // the publisher's first, Microsoft's nested in it
    let dual = case("signature/nested-attested.sys");
    let kernel = verdict(dual, KERNEL);
    assert_verdict(&kernel, Accept, &[]);
    assert_eq!(kernel.signatures.iter().map(|s| s.decision).collect::<Vec<_>>(), [Refuse, Accept]);
    assert_eq!(kernel.publisher.as_deref(), Some("Synthetic Attested Publisher"));
    assert_eq!(verdict(dual, USER).publisher.as_deref(), Some("Contoso Devices"));
    let zeroed = case("signature/primary-zeroed.sys");
    assert_verdict(&verdict(zeroed, KERNEL), Accept, &[Code::SigInvalid]);
    assert_verdict(&verdict(zeroed, USER), Refuse, &[Code::SigInvalid]);
}

#[test]
fn validity_matters_where_somebody_has_a_clock() {
    let at = |kind, signer| signed(&Image::of(kind, "validity"), signer, |_| {});
    assert_verdict(&verdict(&at(PeUser, "code expired"), USER), Refuse, &[Code::PkiExpired]);
    assert_verdict(&verdict(&at(PeDriver, "whql expired"), KERNEL), Accept, &[Code::PkiExpired]);
    let firmware = verdict(&at(PeEfi, "uefi"), UEFI);
    assert_verdict(&firmware, Accept, &[]);
    assert!(!has(&firmware, Code::PkiExpired) && !has(&firmware, Code::TspNone));
}

#[test]
fn each_loader_hashes_in_its_own_way() {
    let gap = Image { gap: 0x200, ..Image::of(PeEfi, "form") };
    let mut trust = only("uefi", &["uefi ca"]);
    trust.add(engine(who("uefi ca")), Purposes::USER, "uefi ca");
    let mut at = *NOW;
    // within the signer's validity
    at.0 = 1_600_000_000;
    let said = |bytes: &[u8], name| {
        let cache = Cache::default();
        Judge { trust: &trust, time: at, cache: &cache }.judge(&facts_with(bytes, &cache), Some(super::profile(name))).decision
    };
    let linear = signed(&gap, "uefi", |_| {});
    let sum = signed(&gap, "uefi", |a| a.section_sum = true);
    assert_eq!([UEFI, USER].map(|p| said(&linear, p)), [Refuse, Accept]);
    assert_eq!([UEFI, USER].map(|p| said(&sum, p)), [Accept, Refuse]);
}

#[test]
fn an_image_without_a_section_sum_is_nothing_that_firmware_was_asked_to_trust() {
    // the last section's header says more than the file has: Windows' digest is still the signed one
    let image = Image::of(PeEfi, "reaches out");
    let mut bytes = image.build().unwrap();
    let layout = corpus::synth::layout::Layout::of(&bytes).unwrap();
    let at = layout.section(layout.section_count - 1) + 16;
    bytes[at..at + 4].copy_from_slice(&0x0010_0000_u32.to_le_bytes());
    let signing = Signing::new(who("uefi 2"), &PKI.issuers("uefi 2").unwrap());
    let signed = attach(&bytes, &Authenticode::new(signing));
    let verdict = verdict(&signed, UEFI);
    assert_verdict(&verdict, Refuse, &[Code::SigDigestMismatch, Code::ImageDigestForms]);
    assert_eq!(verdict.signatures[0].decision, Refuse, "not for the image's faults alone");
}

#[test]
fn catalogs_speak_where_the_loader_knows_them() {
    let image = Image::of(PeEfi, "catalogs").build().unwrap();
    let mut trust = only("uefi", &["uefi ca 2"]);
    trust.add(engine(who("uefi ca 2")), Purposes::USER, "uefi ca 2");
    let signing = Signing::new(who("uefi 2"), &PKI.issuers("uefi 2").unwrap());
    let list = catalog(&[Member::image(&image, DigestAlg::Sha256).unwrap()], Tags::Raw, *NOW, &signing).unwrap();
    let cache = Cache::default();
    let mut index = CatalogIndex::default();
    index.add("list.cat", Catalog::read(&list, &cache).unwrap());
    let facts = Examiner { cache: &cache, catalogs: &index, digests: &[] }.examine(&image, 1 << 20);
    let judge = Judge { trust: &trust, time: *NOW, cache: &cache };
    assert_verdict(&judge.judge(&facts, Some(&profile::WINDOWS_USER)), Accept, &[]);
    assert_verdict(&judge.judge(&facts, Some(&profile::UEFI)), Refuse, &[Code::SigNone]);
}

#[test]
fn signatures_over_bare_hashes_count_where_somebody_takes_them() {
    let bare = |signing: Signing<'static>, bare_hash| Signing { bare_hash, digest: DigestAlg::Sha1, ..signing };
    let of = |name: &str| Signing::new(who(name), &PKI.issuers(name).unwrap());
    for (bare_hash, said) in [(false, Accept), (true, Refuse)] {
        // with its certificate, and without, when a key of the keyring has to verify it
        let module = elf::module("bare", false).unwrap();
        let signing = Signing { attributes: None, ..bare(of("module"), bare_hash) };
        assert_verdict(&verdict(&elf::signed(&module, &signing).unwrap(), MODULE), said, &[Code::SigWeakDigest]);
        let without = Signing { certificates: Vec::new(), ..signing };
        assert_verdict(&verdict(&elf::signed(&module, &without).unwrap(), MODULE), said, &[]);
        let efi = signed(&Image::of(PeEfi, "bare"), "uefi", |a| a.signing = bare(of("uefi"), bare_hash));
        assert_verdict(&verdict(&efi, UEFI), said, &[]);
        let driver = signed(&Image::of(PeDriver, "bare"), "whql", |a| a.signing = bare(of("whql"), bare_hash));
        assert_verdict(&verdict(&driver, KERNEL), Accept, &[Code::SigWeakDigest]);
    }
}

#[test]
fn severities_are_the_profiles_own() {
    let wx = Image {
        sections: vec![(".text", pe::CODE | pe::DATA, 0x1000), (".rdata", pe::CONST, 0x200)],
        relocations: Vec::new(),
        ..Image::of(PeDriver, "wx")
    };
    let bytes = signed(&wx, "whql", |_| {});
    assert_verdict(&verdict(&bytes, KERNEL), Accept, &[Code::ImageWx]);
    assert_verdict(&verdict(&bytes, HVCI), Refuse, &[Code::ImageWx]);
    // every override of every profile changes something
    for profile in profile::ALL {
        for (code, severity) in profile.severities.iter().copied().flatten() {
            assert_ne!(code.default_severity(), *severity, "{} {code} is what it is anyway", profile.name);
        }
    }
}

#[test]
fn facts_that_were_saved_get_the_same_verdicts() {
    let cache = Cache::default();
    let index = catalogs(&cache);
    let examiner = Examiner { cache: &cache, catalogs: &index, digests: &[] };
    let judge = Judge { trust: &TRUST, time: *NOW, cache: &cache };
    let fresh = Cache::default();
    let later = Judge { cache: &fresh, ..judge };
    let mut decisions = BTreeMap::new();
    for case in &CORPUS.cases {
        let facts = examiner.examine(&case.bytes, 64 << 20);
        let saved = serde_json::to_string(&facts).unwrap();
        let read: Facts = serde_json::from_str(&saved).unwrap();
        assert!(read == facts, "{}", case.path);
        for profile in profile::ALL {
            let verdict = judge.judge(&facts, Some(profile));
            assert_eq!(later.judge(&read, Some(profile)), verdict, "{} under {}", case.path, profile.name);
            *decisions.entry(verdict.decision).or_insert(0) += 1;
        }
    }
    assert!(decisions.len() == 3 && decisions.values().all(|n| *n > 10), "{decisions:?}");
}

#[test]
fn facts_with_holes_are_refused() {
    let facts = facts_with(case("chain/whql.sys"), &Cache::default());
    let cache = Cache::default();
    let judge = Judge { trust: &TRUST, time: *NOW, cache: &cache };
    assert_verdict(&judge.judge(&facts, Some(&profile::WINDOWS_KERNEL)), Accept, &[]);
    let holes: [fn(&mut Facts); 5] = [
        |f| f.signatures[0].signer = None,
        |f| f.signatures[0].signer.as_mut().unwrap().certificate = None,
        |f| f.signatures[0].signer.as_mut().unwrap().certificate = Some(usize::MAX),
        |f| f.signatures[0].coverage = None,
        |f| f.signatures[0].signer.as_mut().unwrap().check = hvci_engine::facts::SignatureCheck::Invalid,
    ];
    for (index, hole) in holes.into_iter().enumerate() {
        let mut less = facts.clone();
        hole(&mut less);
        for profile in profile::ALL {
            assert_ne!(judge.judge(&less, Some(profile)).decision, Accept, "hole {index} under {}", profile.name);
        }
    }
}

#[test]
fn a_test_certificate_is_named_as_such_and_still_refused() {
    let image = Image::of(PeDriver, "test-signed").build().unwrap();
    let key = Key::derive(7, "wdk", KeyKind::P256).unwrap();
    for (name, code) in [("CN=WDKTestCert somebody", Code::PkiTestRoot), ("CN=Somebody", Code::PkiUntrusted)] {
        let signer = Template::leaf(name, CODE).issue(&key, None).unwrap();
        let signed = authenticode::signed(&image, &signer, &[]).unwrap();
        assert_verdict(&verdict(&signed, KERNEL), Refuse, &[code, Code::PolNotWhql]);
    }
}

#[test]
fn hvci_sums_up_what_the_kernel_alone_only_warns_of() {
    let image = case("lint/wx-init.sys");
    assert_verdict(&verdict(image, HVCI), Refuse, &[Code::ImageWx, Code::PolLint]);
    assert!(!has(&verdict(image, KERNEL), Code::PolLint));
}
