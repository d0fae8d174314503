//! Files that are made to cost: each is refused for what it is, after bounded work.

use corpus::synth::{
    authenticode::Authenticode,
    certificate::{CODE, Template, instant},
    key::{Key, KeyKind},
    pe::Image,
    signed_data::{Signing, attribute},
    timestamp::Stamp,
};
use der::Any;
use hvci_engine::{
    budget::{MAX_CERTIFICATES, MAX_TIMESTAMPS},
    facts::FileKind::PeUser,
    finding::Code,
    policy::Decision::{Accept, Refuse},
    signature::cache::Cache,
};

use super::{PKI, assert_verdict, attach, chains::mesh, facts_with, verdict, who};

const USER: &str = "windows-user";

fn signature(name: &str) -> Authenticode<'static> {
    Authenticode::new(Signing::new(who(name), &PKI.issuers(name).unwrap()))
}

fn program() -> Vec<u8> {
    Image::of(PeUser, "hostile").build().unwrap()
}

#[test]
fn a_mesh_of_authorities() {
    let mesh = mesh(8);
    let key = Key::derive(7, "mesh leaf", KeyKind::P256).unwrap();
    let leaf = Template::leaf("CN=Leaf", CODE).issue(&key, Some(&mesh[0])).unwrap();
    let certificates: Vec<_> = mesh.iter().map(|i| i.certificate.clone()).collect();
    let bytes = attach(&program(), &Authenticode::new(Signing::new(&leaf, &certificates)));
    assert_verdict(&verdict(&bytes, USER), Refuse, &[Code::PkiBudget]);
}

#[test]
fn more_timestamps_than_anybody_makes() {
    let image = program();
    let at = |n: usize| instant(&format!("20{:02}-01-01", 20 + n % 5)).unwrap();
    let stamps = |n: usize| (0..n).map(|i| Stamp::new(who("tsa"), &[], at(i))).collect::<Vec<_>>();
    let mut few = signature("code");
    few.signing.stamps = stamps(1);
    assert_verdict(&verdict(&attach(&image, &few), USER), Accept, &[]);
    // one attribute with many values: each a token of its own
    let mut many = signature("code");
    let value = few.signing.signer_info(der::oid::db::rfc5911::ID_DATA, b"").unwrap();
    let tokens: Vec<Any> = (0..40_u8)
        .map(|i| {
            let mut stamp = Stamp::new(who("tsa"), &[], at(usize::from(i)));
            stamp.certificates = i % 2 == 0;
            let attribute = stamp.on(&[value.signature.as_bytes(), &[i]].concat()).unwrap();
            attribute.values.get(0).unwrap().clone()
        })
        .collect();
    let oid = few.signing.stamps[0].on(b"").unwrap().oid;
    many.signing.unsigned.push(attribute(oid, tokens).unwrap());
    let bytes = attach(&image, &many);
    assert_eq!(facts_with(&bytes, &Cache::default()).signatures[0].timestamps.len(), MAX_TIMESTAMPS);
    assert_verdict(&verdict(&bytes, USER), Refuse, &[Code::SigTooMany]);
}

#[test]
fn more_certificates_than_anybody_needs() {
    // the signature has as many as are looked at, its timestamp one more
    let key = Key::derive(7, "crowd", KeyKind::P256).unwrap();
    let crowd: Vec<_> =
        (0..MAX_CERTIFICATES - 2).map(|i| Template::leaf(&format!("CN=Crowd {i}"), CODE).issue(&key, None).unwrap().certificate).collect();
    let mut signature = signature("code");
    signature.signing.certificates.extend(crowd);
    let image = program();
    let bytes = attach(&image, &signature);
    assert_verdict(&verdict(&bytes, USER), Accept, &[]);
    signature.signing.stamps = vec![Stamp::new(who("tsa"), &[], instant("2023-01-01").unwrap())];
    let bytes = attach(&image, &signature);
    assert_eq!(facts_with(&bytes, &Cache::default()).certificates.len(), MAX_CERTIFICATES);
    assert_verdict(&verdict(&bytes, USER), Refuse, &[Code::SigTooMany]);
}
