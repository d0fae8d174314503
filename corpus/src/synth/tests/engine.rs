//! The engine must say what the corpus expects.

use hvci_engine::{
    examine::Examiner,
    policy::{Judge, Profile, limit_anchors},
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        keyring::certificates_from,
        root_list::RootList,
        trust::{Purposes, TrustStore},
    },
};

use super::*;

#[test]
fn verdicts_are_the_expected_ones() {
    let cache = Cache::default();
    let mut trust = TrustStore::empty();
    for (purpose, pem) in anchors(&PKI).unwrap() {
        for der in certificates_from(pem.as_bytes()).unwrap() {
            trust.add_der(&der, Purposes::from_name(purpose).unwrap(), purpose).unwrap();
        }
    }
    for (_, bytes) in &CORPUS.root_lists {
        limit_anchors(&mut trust, &RootList::read(bytes, &cache).unwrap(), &cache).unwrap();
    }
    let mut catalogs = CatalogIndex::default();
    for (name, bytes) in &CORPUS.catalogs {
        catalogs.add(*name, Catalog::read(bytes, &cache).unwrap());
    }
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    let judge = Judge { trust: &trust, time: certificate::instant(cases::TIME).unwrap(), cache: &cache };
    let mut wrong = Vec::new();
    for case in &CORPUS.cases {
        let facts = examiner.examine(&case.bytes, 64 << 20);
        for expected in &case.expected {
            let verdict = judge.judge(&facts, Some(Profile::find(expected.profile).unwrap()));
            let missing: Vec<_> = expected.codes.iter().filter(|c| verdict.findings.iter().all(|f| f.code != **c)).collect();
            if verdict.decision != expected.decision || !missing.is_empty() {
                let findings: Vec<_> = verdict.findings.iter().map(|f| format!("{} {} {}", f.severity, f.code, f.detail)).collect();
                wrong.push(format!(
                    "{} under {}: {:?}, expected {:?}; missing {missing:?}\n    {}\n    {}",
                    case.path,
                    expected.profile,
                    verdict.decision,
                    expected.decision,
                    case.why,
                    findings.join("\n    ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}
