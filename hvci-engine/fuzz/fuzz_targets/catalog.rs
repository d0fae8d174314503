//! Certificate trust lists: a root list, whose signer nobody trusts; a catalog and its signature, and a file that it may name.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::{
    examine::Examiner,
    policy::limit_anchors,
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        root_list::RootList,
        trust::TrustStore,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    Catalog::is_catalog(data);
    let cache = Cache::default();
    if let Ok(list) = RootList::read(data, &cache) {
        assert!(limit_anchors(&mut TrustStore::builtin(), &list, &cache).is_err(), "believed a list of the fuzzer's");
        return;
    }
    let Ok(catalog) = Catalog::read(data, &cache) else { return };
    let mut catalogs = CatalogIndex::default();
    catalogs.add("fuzz.cat", catalog);
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    for file in [data.to_vec(), support::signed_driver(&[]), b"listed".to_vec()] {
        support::judge(&examiner.examine(&file, support::CAP), &cache);
    }
});
