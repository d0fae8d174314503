//! Security catalogs: the list and its signature, and a file that the list may name.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::{
    examine::Examiner,
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    Catalog::is_catalog(data);
    let cache = Cache::default();
    let Ok(catalog) = Catalog::read(data, &cache) else { return };
    let mut catalogs = CatalogIndex::default();
    catalogs.add("fuzz.cat", catalog);
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    for file in [data.to_vec(), support::signed_driver(&[]), b"listed".to_vec()] {
        support::judge(&examiner.examine(&file, support::CAP), &cache);
    }
});
