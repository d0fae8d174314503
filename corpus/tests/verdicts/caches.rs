//! What is remembered never changes what is said: not when trust changes, not for forged files.

use hvci_engine::{
    examine::Examiner,
    finding::Code,
    policy::{
        Decision::{Accept, Refuse},
        Judge, Verdict, profile,
    },
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
};

use super::{CORPUS, NOW, TRUST, assert_verdict, case, catalogs, engine, verdict_with, who};

#[test]
fn a_changed_trust_store_changes_the_verdict_whatever_is_remembered() {
    let cache = Cache::default();
    let (driver, name) = (case("chain/whql.sys"), "windows-kernel");
    let mut other = TrustStore::empty();
    other.add(engine(who("code root")), Purposes::KERNEL, "another root");
    let mut forged = TrustStore::empty();
    forged.add(engine(who("forged root")), Purposes::KERNEL, "a root of that name");
    for _ in 0..2 {
        assert_verdict(&verdict_with(driver, name, &TRUST, &cache), Accept, &[]);
        assert_verdict(&verdict_with(driver, name, &TrustStore::empty(), &cache), Refuse, &[Code::PkiIncomplete]);
        assert_verdict(&verdict_with(driver, name, &other, &cache), Refuse, &[Code::PkiIncomplete]);
        assert_verdict(&verdict_with(driver, name, &forged, &cache), Refuse, &[Code::PkiSignature]);
        assert_verdict(&verdict_with(case("chain/forged-names.sys"), name, &forged, &cache), Accept, &[]);
        assert_verdict(&verdict_with(case("chain/forged-names.sys"), name, &TRUST, &cache), Refuse, &[Code::PolNotWhql]);
    }
}

/// Every verdict on every case, in this order, with `cache` for all or a new one for each.
fn verdicts<'c>(order: impl Iterator<Item = &'c [u8]>, cache: Option<&Cache>) -> Vec<Verdict> {
    let index_cache = Cache::default();
    let index: CatalogIndex = catalogs(&index_cache);
    let mut all = Vec::new();
    for bytes in order {
        let own = Cache::default();
        let cache = cache.unwrap_or(&own);
        let facts = Examiner { cache, catalogs: &index, digests: &[] }.examine(bytes, 64 << 20);
        let judge = Judge { trust: &TRUST, time: *NOW, cache };
        all.extend(profile::ALL.map(|profile| judge.judge(&facts, Some(profile))));
    }
    all
}

#[test]
fn forged_files_are_refused_as_surely_with_warm_caches() {
    let files = || CORPUS.cases.iter().map(|c| c.bytes.as_slice());
    let cold = verdicts(files(), None);
    let shared = Cache::default();
    // forged ones first for the second half, good ones first for the first half; then everything again, warm
    assert!(verdicts(files(), Some(&shared)) == cold, "filling the cache changes a verdict");
    assert!(verdicts(files(), Some(&shared)) == cold, "a warm cache changes a verdict");
    let backwards = Cache::default();
    verdicts(files().collect::<Vec<_>>().into_iter().rev(), Some(&backwards));
    assert!(verdicts(files(), Some(&backwards)) == cold, "a cache filled in another order changes a verdict");
}

#[test]
fn a_batch_says_what_each_file_says_alone() {
    let files: Vec<&[u8]> = CORPUS.cases.iter().map(|c| c.bytes.as_slice()).collect();
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    for batch in files.chunks(23) {
        let inputs: Vec<_> = batch.iter().map(|b| hvci_engine::examine::Input::new(b, 64 << 20)).collect();
        for (facts, bytes) in examiner.examine_all(&inputs).iter().zip(batch) {
            assert!(*facts == examiner.examine(bytes, 64 << 20));
        }
    }
}
