//! Facts and verdicts of files made by the synthesiser: chains, trust, timestamps, profiles, caches, forgeries.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod block_lists;
mod caches;
mod chains;
mod flips;
mod hostile;
mod profiles;
mod root_lists;
mod signers;

use std::sync::{Arc, LazyLock};

use corpus::synth::{
    DEFAULT_SEED,
    authenticode::{Authenticode, Entry, Table},
    cases::{self, Corpus},
    certificate::{Identity, instant},
    pki::{ANCHORS, Pki},
};
use der::Encode;
use hvci_engine::{
    examine::Examiner,
    facts::Facts,
    finding::Code,
    policy::{Decision, Judge, Profile, Verdict, limit_anchors},
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        cert::Certificate,
        root_list::RootList,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};

static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::new(DEFAULT_SEED).unwrap());
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| cases::all(&PKI).unwrap());
static TRUST: LazyLock<TrustStore> = LazyLock::new(|| {
    let mut store = TrustStore::empty();
    for (purpose, names) in ANCHORS {
        names.iter().for_each(|name| store.add(engine(who(name)), Purposes::from_name(purpose).unwrap(), *name));
    }
    let cache = Cache::default();
    limit_anchors(&mut store, &RootList::read(&CORPUS.root_lists[0].1, &cache).unwrap(), &cache).unwrap();
    store
});
static NOW: LazyLock<UnixTime> = LazyLock::new(|| instant(cases::TIME).unwrap());

fn who(name: &str) -> &'static Identity {
    PKI.get(name).unwrap()
}

/// The certificate as the engine has it.
fn engine(identity: &Identity) -> Arc<Certificate> {
    Arc::new(Certificate::parse(&identity.certificate.to_der().unwrap()).unwrap())
}

fn case(path: &str) -> &'static [u8] {
    &CORPUS.cases.iter().find(|c| c.path == path).unwrap_or_else(|| panic!("no case {path}")).bytes
}

fn profile(name: &str) -> &'static Profile {
    Profile::find(name).unwrap()
}

fn catalogs(cache: &Cache) -> CatalogIndex {
    let mut index = CatalogIndex::default();
    for (name, bytes) in &CORPUS.catalogs {
        index.add(*name, Catalog::read(bytes, cache).unwrap());
    }
    index
}

fn facts_with(bytes: &[u8], cache: &Cache) -> Facts {
    Examiner { cache, catalogs: &CatalogIndex::default(), digests: &[] }.examine(bytes, 64 << 20)
}

fn verdict_with(bytes: &[u8], name: &str, trust: &TrustStore, cache: &Cache) -> Verdict {
    Judge { trust, time: *NOW, cache }.judge(&facts_with(bytes, cache), Some(profile(name)))
}

/// The verdict under the corpus' anchors with nothing remembered.
fn verdict(bytes: &[u8], name: &str) -> Verdict {
    verdict_with(bytes, name, &TRUST, &Cache::default())
}

fn has(verdict: &Verdict, code: Code) -> bool {
    verdict.findings.iter().any(|f| f.code == code)
}

#[track_caller]
fn assert_verdict(verdict: &Verdict, decision: Decision, codes: &[Code]) {
    let said: Vec<String> = verdict.findings.iter().map(|f| format!("{} {} {}", f.severity, f.code, f.detail)).collect();
    assert_eq!(verdict.decision, decision, "{}\n{}", verdict.profile, said.join("\n"));
    for code in codes {
        assert!(has(verdict, *code), "{code} is missing under {}\n{}", verdict.profile, said.join("\n"));
    }
}

/// `image` with the signature that `signature` makes.
fn attach(image: &[u8], signature: &Authenticode<'_>) -> Vec<u8> {
    Table { entries: vec![Entry::pkcs7(signature.sign(image).unwrap())], ..Table::split(image).unwrap() }.join().unwrap()
}
