//! Root lists: who may sign them, that no changed one is believed, and whom they limit.

use std::collections::HashMap;

use corpus::synth::{
    certificate::instant,
    oid,
    root_list::{Entry, root_list},
    signed_data::Signing,
};
use hvci_engine::{
    finding::{Code, Note},
    policy::{Decision::Accept, limit_anchors},
    signature::{
        cache::Cache,
        catalog::Catalog,
        root_list::RootList,
        trust::{Limits, Purposes, TrustStore},
    },
};
use proptest::prelude::*;

use super::{CORPUS, NOW, PKI, TRUST, assert_verdict, case, engine, verdict_with, who};

fn list() -> &'static [u8] {
    &CORPUS.root_lists[0].1
}

/// A store with the signer's root, and nobody else who may sign lists.
fn store() -> TrustStore {
    let mut store = TrustStore::empty();
    store.add(engine(who("list root")), Purposes::LIST, "list root");
    store.add(engine(who("code root")), Purposes::GIVEN.and(Purposes::KERNEL), "code root");
    store
}

fn believe(bytes: &[u8], store: &mut TrustStore) -> Result<(), Note> {
    let cache = Cache::default();
    limit_anchors(store, &RootList::read(bytes, &cache)?, &cache)
}

/// A list that disallows "code root" since `since`, made on `date` and signed by `name`.
fn made(date: &str, since: &str, name: &str) -> Vec<u8> {
    let entry = Entry::of(&who("code root").certificate).unwrap().date(oid::PROP_DISALLOWED_FILETIME, since).unwrap();
    let signing = Signing::new(who(name), &PKI.issuers(name).unwrap());
    root_list(&[entry], oid::EKU_ROOT_LIST, instant(date).unwrap(), &signing).unwrap()
}

fn limits_of(store: &TrustStore, name: &str) -> Limits {
    store.find(&engine(who(name))).unwrap().limits.clone()
}

#[test]
fn only_a_list_signer_below_an_anchor_for_lists_is_believed() {
    let code = |name: &str, date: &str| believe(&made(date, "2022-01-01", name), &mut store()).map_err(|n| n.code);
    assert_eq!(code("list", "2025-01-01"), Ok(()));
    assert_eq!(code("list expired", "2021-01-01"), Ok(()), "valid when the list was made");
    assert_eq!(code("list expired", "2025-01-01"), Err(Code::PkiExpired));
    assert_eq!(code("list without usage", "2025-01-01"), Err(Code::PkiEku));
    assert_eq!(code("list of code root", "2025-01-01"), Err(Code::PkiScope), "a root given for everything signs no list");
    assert_eq!(code("self-signed", "2025-01-01"), Err(Code::PkiUntrusted));
    assert_eq!(believe(list(), &mut TrustStore::empty()).map_err(|n| n.code), Err(Code::PkiIncomplete));
    assert_eq!(believe(list(), &mut TrustStore::builtin()).map_err(|n| n.code), Err(Code::PkiIncomplete));

    let mut unsure = store();
    assert!(believe(&made("2025-01-01", "2022-01-01", "self-signed"), &mut unsure).is_err());
    assert_eq!(limits_of(&unsure, "code root"), Limits::default(), "a list that is not believed limits nothing");
}

#[test]
fn other_lists_are_told_apart() {
    let (cache, signing) = (Cache::default(), Signing::new(who("list"), &[]));
    let disallowed = root_list(&[], oid::EKU_DISALLOWED_LIST, *NOW, &signing).unwrap();
    let note = RootList::read(&disallowed, &cache).unwrap_err();
    assert_eq!(note.code, Code::SigContentType);
    assert!(note.detail.contains("disallowed list"), "{}", note.detail);
    assert_eq!(RootList::read(&CORPUS.catalogs[0].1, &cache).unwrap_err().code, Code::SigContentType);
    assert_eq!(Catalog::read(list(), &cache).unwrap_err().code, Code::SigContentType);
}

#[test]
fn a_property_that_cannot_be_read_makes_the_list_unreadable() {
    let signing = Signing::new(who("list"), &[]);
    let read = |kind, octets: &[u8]| {
        let entry = Entry::of(&who("code root").certificate).unwrap().with(kind, octets.to_vec());
        RootList::read(&root_list(&[entry], oid::EKU_ROOT_LIST, *NOW, &signing).unwrap(), &Cache::default())
    };
    for (kind, octets) in [
        (oid::PROP_DISALLOWED_FILETIME, &[0; 7][..]),
        (oid::PROP_NOT_BEFORE_FILETIME, &[0; 9]),
        (oid::PROP_ENHKEY_USAGE, &[0x30, 1]),
        (oid::PROP_DISALLOWED_ENHKEY_USAGE, &[]),
        (oid::PROP_NOT_BEFORE_ENHKEY_USAGE, &[0x30, 2, 5, 0]),
        (oid::PROP_AUTH_ROOT_SHA256, &[0; 20]),
    ] {
        assert_eq!(read(kind, octets).unwrap_err().code, Code::SigMalformed, "{kind}");
    }
    let entries = read(oid::PROP_DISALLOWED_FILETIME, &[0; 8]).unwrap().entries;
    let since = entries.values().next().unwrap().disallowed_since;
    assert_eq!(since.map(|t| t.to_string()).as_deref(), Some("1601-01-01T00:00:00Z"), "disallowed outright");
}

#[test]
fn what_the_list_says_is_read() {
    let list = RootList::read(list(), &Cache::default()).unwrap();
    assert_eq!((list.entries.len(), list.this_update), (6, *NOW));
    let text: HashMap<&str, String> = ["code root", "kernel root", "closing root", "disabled root", "reopened root", "tls root"]
        .map(|name| (name, list.entries[engine(who(name)).sha256()].to_string()))
        .into();
    assert_eq!(text["code root"], "only for code signing, timestamping");
    assert_eq!((text["kernel root"].as_str(), text["reopened root"].as_str()), ("", ""));
    assert_eq!(
        text["closing root"],
        "not for certificates issued since 2021-01-01T00:00:00Z for server authentication, code signing, timestamping"
    );
    assert_eq!(
        text["disabled root"],
        "only for code signing, timestamping; not for server authentication; disallowed since 2021-07-01T00:00:00Z"
    );
}

#[test]
fn the_order_of_anchors_and_lists_does_not_matter_and_the_newest_list_counts() {
    let (old, new) = (made("2024-01-01", "2023-01-01", "list"), made("2025-01-01", "2021-01-01", "list"));
    for lists in [[&old, &new], [&new, &old]] {
        let mut store = TrustStore::empty();
        store.add(engine(who("list root")), Purposes::LIST, "list root");
        believe(lists[0], &mut store).unwrap();
        store.add(engine(who("code root")), Purposes::USER, "code root");
        believe(lists[1], &mut store).unwrap();
        assert_eq!(limits_of(&store, "code root").disallowed_since, Some(instant("2021-01-01").unwrap()));
        assert_eq!(limits_of(&store, "list root"), Limits::default());
    }
}

#[test]
fn the_kernel_and_firmware_look_at_no_list_and_the_kernels_roots_are_not_held_to_one() {
    let mut store = store();
    store.add(engine(who("kernel root")), Purposes::KERNEL.and(Purposes::USER), "kernel root");
    store.add(engine(who("uefi ca 2")), Purposes::UEFI, "uefi ca 2");
    let entry = |name: &str| Entry::of(&who(name).certificate).unwrap().date(oid::PROP_DISALLOWED_FILETIME, "2001-01-01").unwrap();
    let signing = Signing::new(who("list"), &[]);
    let list = root_list(&[entry("kernel root"), entry("uefi ca 2")], oid::EKU_ROOT_LIST, *NOW, &signing).unwrap();
    believe(&list, &mut store).unwrap();
    let cache = Cache::default();
    assert_verdict(&verdict_with(case("chain/whql.sys"), "windows-kernel", &store, &cache), Accept, &[]);
    assert_verdict(&verdict_with(case("chain/whql.sys"), "windows-user", &store, &cache), Accept, &[]);
    assert_verdict(&verdict_with(case("container/two-entries.efi"), "uefi", &store, &cache), Accept, &[]);
}

#[test]
fn a_commercial_timestamp_is_limited_for_the_kernel_too() {
    let file = case("chain/whql-expired.sys");
    let stamped = |store: &TrustStore| verdict_with(file, "windows-kernel", store, &Cache::default()).signatures[0].signing_time;
    let mut store = TRUST.clone();
    assert!(stamped(&store).is_some());
    let entry = Entry::of(&who("tsa root").certificate).unwrap().usages(oid::PROP_ENHKEY_USAGE, &[oid::EKU_CODE_SIGNING]);
    let later = instant("2025-06-02").unwrap();
    let list = root_list(&[entry], oid::EKU_ROOT_LIST, later, &Signing::new(who("list"), &[])).unwrap();
    believe(&list, &mut store).unwrap();
    assert_eq!(stamped(&store), None);
}

#[test]
fn a_list_with_any_bit_of_its_content_flipped_is_refused() {
    let good = made("2025-01-01", "2022-01-01", "list");
    assert_eq!(believe(&good, &mut store()), Ok(()));
    // the content's type and the list, behind which the certificates stand
    let find = |bytes: &[u8]| good.windows(bytes.len()).position(|w| w == bytes).unwrap();
    let content = find(oid::CTL.as_bytes())..find(&engine(who("list")).der()[..16]);
    assert!(content.len() > 150, "{content:?}");
    let mut forged = good.clone();
    for at in content {
        for bit in 0..8 {
            forged[at] ^= 1 << bit;
            assert!(believe(&forged, &mut store()).is_err(), "bit {bit} of byte {at:#x}");
            forged[at] ^= 1 << bit;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn reading_never_panics_and_no_prefix_or_mutation_of_the_list_itself_is_believed(
        len in 0_usize..8_000, at in 0_usize..8_000, value: u8, random in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let good = list();
        let prefix = &good[..len.min(good.len())];
        prop_assert!(prefix.len() == good.len() || believe(prefix, &mut store()).is_err());
        let mut changed = good.to_vec();
        let at = at % good.len();
        changed[at] = value;
        let _ = believe(&changed, &mut store());
        changed.truncate(len);
        let _ = believe(&changed, &mut store());
        prop_assert!(believe(&random, &mut store()).is_err());
    }
}
