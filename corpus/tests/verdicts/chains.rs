//! Path building by itself, over certificates that are made for one question each.

use std::sync::Arc;

use corpus::synth::{
    certificate::{CODE, Identity, Template},
    key::{Key, KeyKind},
};
use hvci_engine::{
    budget::Budget,
    signature::{
        cache::Cache,
        cert::Certificate,
        chain::{self, Path, PathErrorKind},
        trust::{Purposes, TrustStore},
    },
};

use super::{engine, who};

const KEY_USAGE_ONLY_SIGNING: &str = "CN=Signs No Certificates,C=XX";

fn key(name: &str) -> Key {
    Key::derive(7, name, KeyKind::P256).unwrap()
}

fn ca(name: &str, key_name: &str, issuer: Option<&Identity>) -> Identity {
    Template::ca(&format!("CN={name}"), None).issue(&key(key_name), issuer).unwrap()
}

fn leaf(issuer: &Identity) -> Identity {
    Template::leaf("CN=Leaf", CODE).issue(&key("leaf"), Some(issuer)).unwrap()
}

fn trust(anchors: &[&Identity]) -> TrustStore {
    let mut store = TrustStore::empty();
    anchors.iter().for_each(|a| store.add(engine(a), Purposes::USER, "test"));
    store
}

fn pool(identities: &[&Identity]) -> Vec<Arc<Certificate>> {
    identities.iter().map(|i| engine(i)).collect()
}

fn build<'t>(leaf: &Identity, others: &[&Identity], trust: &'t TrustStore) -> Result<Vec<Path<'t>>, PathErrorKind> {
    chain::build(&engine(leaf), &pool(others), trust, &Cache::default(), &mut Budget::path_building()).map_err(|e| e.kind)
}

fn names(paths: &[Path<'_>]) -> Vec<String> {
    paths.iter().map(|p| p.certificates.iter().map(|c| c.subject_short()).collect::<Vec<_>>().join(" < ")).collect()
}

#[track_caller]
fn refused(leaf: &Identity, others: &[&Identity], trust: &TrustStore) -> PathErrorKind {
    match build(leaf, others, trust) {
        Ok(paths) => panic!("{:?}", names(&paths)),
        Err(kind) => kind,
    }
}

#[test]
fn a_cross_certificate_gives_a_second_path_and_the_shorter_one_comes_first() {
    let (old, new) = (ca("Old", "old", None), ca("New", "new", None));
    let cross = ca("New", "new", Some(&old));
    let middle = ca("Middle", "middle", Some(&new));
    let leaf = leaf(&middle);
    let both = trust(&[&old, &new]);
    assert_eq!(names(&build(&leaf, &[&cross, &middle], &both).unwrap()), ["Leaf < Middle < New", "Leaf < Middle < New < Old"]);
    assert_eq!(names(&build(&leaf, &[&middle, &cross], &trust(&[&old])).unwrap()), ["Leaf < Middle < New < Old"]);
    assert_eq!(refused(&leaf, &[&middle], &trust(&[&old])), PathErrorKind::NoIssuer);
}

#[test]
fn loops_end() {
    let first = ca("B", "b", None);
    let a = ca("A", "a", Some(&first));
    let b = ca("B", "b", Some(&a));
    let leaf = leaf(&a);
    // nobody trusts either: the self-signed one of the ring is what is missing
    assert_eq!(refused(&leaf, &[&a, &b, &first], &TrustStore::empty()), PathErrorKind::UntrustedRoot);
    assert_eq!(names(&build(&leaf, &[&a, &b], &trust(&[&first])).unwrap()), ["Leaf < A < B"]);
}

#[test]
fn path_lengths_count_authorities_that_are_not_self_issued() {
    let root = ca("Root", "root", None);
    let limited = Template::ca("CN=Limited", Some(0)).issue(&key("limited"), Some(&root)).unwrap();
    let below = ca("Below", "below", Some(&limited));
    let store = trust(&[&root]);
    assert!(build(&leaf(&limited), &[&limited], &store).is_ok());
    assert_eq!(refused(&leaf(&below), &[&below, &limited], &store), PathErrorKind::PathLength);
    // a new key under the old name does not count (RFC 5280 §4.2.1.9)
    let renewed = ca("Limited", "renewed", Some(&limited));
    assert!(build(&leaf(&renewed), &[&renewed, &limited], &store).is_ok());
}

#[test]
fn only_authorities_issue() {
    let root = ca("Root", "root", None);
    let store = trust(&[&root]);
    let end_entity = Template::leaf("CN=End Entity", CODE).issue(&key("end"), Some(&root)).unwrap();
    assert_eq!(refused(&leaf(&end_entity), &[&end_entity], &store), PathErrorKind::NotCa);
    let usage = who("code").certificate.tbs_certificate.get::<x509_cert::ext::pkix::KeyUsage>().unwrap().unwrap().1;
    let no_signing = Template { key_usage: Some(usage.0), ..Template::ca(KEY_USAGE_ONLY_SIGNING, None) };
    let no_signing = no_signing.issue(&key("usage"), Some(&root)).unwrap();
    assert_eq!(refused(&leaf(&no_signing), &[&no_signing], &store), PathErrorKind::NotCa);
}

#[test]
fn a_name_is_no_key() {
    let root = ca("Root", "root", None);
    let forged = ca("Root", "forger", None);
    let leaf = leaf(&forged);
    // the anchor has the name, another key made the signature
    assert_eq!(refused(&leaf, &[], &trust(&[&root])), PathErrorKind::BadSignature);
    assert_eq!(refused(&leaf, &[&forged], &trust(&[&root])), PathErrorKind::BadSignature);
    // and with both of that name trusted, the right one is found
    assert_eq!(build(&leaf, &[], &trust(&[&root, &forged])).unwrap()[0].anchor.certificate, engine(&forged));
}

#[test]
fn what_is_missing_is_said() {
    let root = ca("Root", "root", None);
    let middle = ca("Middle", "middle", Some(&root));
    let leaf = leaf(&middle);
    assert_eq!(refused(&leaf, &[], &trust(&[&root])), PathErrorKind::NoIssuer);
    assert_eq!(refused(&leaf, &[&middle], &TrustStore::empty()), PathErrorKind::NoIssuer);
    assert_eq!(refused(&leaf, &[&middle, &root], &TrustStore::empty()), PathErrorKind::UntrustedRoot);
    let error =
        chain::build(&engine(&leaf), &pool(&[&middle]), &TrustStore::empty(), &Cache::default(), &mut Budget::path_building()).unwrap_err();
    assert_eq!(error.certificate.subject_short(), "Middle", "of two open ends the later one");
}

#[test]
fn anchors_are_trusted_as_they_stand() {
    // no CA flag, no extensions, expired: an old root, and a key that a firmware's owner enrolled
    let v1 = Template { version1: true, until: "2015-01-01", ..Template::leaf("CN=Version 1", &[]) };
    let v1 = v1.issue(&key("v1"), None).unwrap();
    assert_eq!(engine(&v1).version(), 1);
    assert!(build(&leaf(&v1), &[], &trust(&[&v1])).is_ok());
    // without being an anchor it is no authority
    let root = ca("Root", "root", None);
    let below = Template { version1: true, ..Template::leaf("CN=Version 1", &[]) }.issue(&key("v1"), Some(&root)).unwrap();
    assert_eq!(refused(&leaf(&below), &[&below], &trust(&[&root])), PathErrorKind::NotCa);
    // the leaf itself may be the anchor
    let own = leaf(&root);
    assert_eq!(names(&build(&own, &[], &trust(&[&own])).unwrap()), ["Leaf"]);
}

#[test]
fn unknown_critical_extensions_refuse_anywhere_below_the_anchor() {
    let root = ca("Root", "root", None);
    let critical = Template { unknown_critical: true, ..Template::ca("CN=Critical", None) }.issue(&key("critical"), Some(&root)).unwrap();
    let below = leaf(&critical);
    assert_eq!(refused(&below, &[&critical], &trust(&[&root])), PathErrorKind::CriticalExtension);
    let own = Template { unknown_critical: true, ..Template::leaf("CN=Leaf", CODE) }.issue(&key("leaf"), Some(&root)).unwrap();
    assert_eq!(refused(&own, &[], &trust(&[&root])), PathErrorKind::CriticalExtension);
    assert!(build(&below, &[&critical], &trust(&[&critical])).is_ok(), "an anchor's own extensions are not looked at");
}

/// `n` keys under one name, each certified by every other: paths grow as n!.
pub(super) fn mesh(n: usize) -> Vec<Identity> {
    let seeds: Vec<Identity> = (0..n).map(|i| ca("Mesh", &format!("mesh {i}"), None)).collect();
    let mut all = Vec::new();
    for issuer in &seeds {
        for subject in &seeds {
            let validity = Template { from: "2011-01-01", ..Template::ca("CN=Mesh", None) };
            all.push(validity.issue(&subject.key, Some(issuer)).unwrap());
        }
    }
    all
}

#[test]
fn an_explosion_of_paths_uses_up_the_budget_and_no_more() {
    let mesh = mesh(8);
    let root = ca("Root", "root", None);
    let others: Vec<&Identity> = mesh.iter().collect();
    let leaf = leaf(&mesh[0]);
    let mut budget = Budget::path_building();
    let error = chain::build(&engine(&leaf), &pool(&others), &trust(&[&root]), &Cache::default(), &mut budget).unwrap_err();
    assert_eq!(error.kind, PathErrorKind::Budget);
    assert!(budget.spend().is_err(), "nothing is left for the next chain of the file");
    // one way out, and the search finds it before the budget ends or says that it could not
    let out = ca("Mesh", "mesh 0", Some(&root));
    let with_out: Vec<&Identity> = [&out].into_iter().chain(others).collect();
    assert_eq!(names(&build(&leaf, &with_out, &trust(&[&root])).unwrap())[0], "Leaf < Mesh < Root");
}
