//! Files that are made to cost: each is refused for what it is, after bounded work.

use corpus::synth::{
    authenticode::Authenticode,
    certificate::{CODE, Identity, Template, instant},
    key::{Key, KeyKind},
    layout::Layout,
    pe::Image,
    signed_data::{Signing, attribute},
    timestamp::Stamp,
};
use der::Any;
use hvci_engine::{
    budget::{MAX_CERTIFICATES, MAX_TIMESTAMPS, MAX_VERIFICATIONS},
    facts::FileKind::{PeEfi, PeUser},
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

#[test]
fn more_candidates_for_a_signer_than_anybody_has() {
    // 40 certificates with one issuer and serial number, none of which the 16 countersignatures verify with
    let authority = who("tsa");
    let (twins_key, nobody) = (Key::derive(7, "twins", KeyKind::P256).unwrap(), Key::derive(7, "nobody", KeyKind::P256).unwrap());
    let root = Template::ca("CN=Example Timestamp Root,O=Example Trust,C=XX", None).issue(&twins_key, None).unwrap();
    let twin = |i: u8| {
        let subject = format!("CN=Twin {i}");
        let template = Template { serial_of: Some(&authority.certificate), ..Template::leaf(&subject, CODE) };
        template.issue(&twins_key, Some(&root)).unwrap()
    };
    let twins: Vec<_> = (0..40).map(twin).collect();
    let signer = Identity { key: nobody, certificate: twins[0].certificate.clone() };
    let mut signature = signature("code");
    signature.signing.certificates.extend(twins.iter().map(|t| t.certificate.clone()));
    let stamps = (0..MAX_TIMESTAMPS).map(|i| Stamp::new(&signer, &[], instant(&format!("2021-01-{:02}", i + 1)).unwrap()).pkcs9());
    signature.signing.stamps = stamps.map(|s| Stamp { certificates: false, ..s }).collect();
    let bytes = attach(&program(), &signature);
    assert_verdict(&verdict(&bytes, USER), Refuse, &[Code::SigTooMany, Code::TspInvalid]);
    assert!(MAX_TIMESTAMPS * twins.len() > usize::try_from(MAX_VERIFICATIONS).unwrap());
    // a few of them are only invalid
    signature.signing.stamps.truncate(4);
    assert_verdict(&verdict(&attach(&program(), &signature), USER), Accept, &[Code::TspInvalid]);
}

#[test]
fn sections_that_are_all_the_whole_file() {
    // what a header can say: 65,535 sections; each of 4 MiB, so that a reader that hashes what it is told hashes 256 GiB
    let mut bytes = Image::of(PeEfi, "crowded").build().unwrap();
    let layout = Layout::of(&bytes).unwrap();
    let header = bytes[layout.sections..layout.sections + 40].to_vec();
    let size = 4_u32 << 20;
    bytes.resize(usize::try_from(size).unwrap(), 0);
    for index in 0..65_535 {
        let at = layout.section(index);
        bytes[at..at + 40].copy_from_slice(&header);
        bytes[at + 16..at + 20].copy_from_slice(&size.to_le_bytes());
        bytes[at + 20..at + 24].copy_from_slice(&0_u32.to_le_bytes());
    }
    let count = layout.optional - 18;
    bytes[count..count + 2].copy_from_slice(&0xFFFF_u16.to_le_bytes());
    let signature = Authenticode::new(Signing::new(who("uefi 2"), &PKI.issuers("uefi 2").unwrap()));
    let verdict = verdict(&attach(&bytes, &signature), "uefi");
    assert_verdict(&verdict, Refuse, &[Code::SigDigestMismatch, Code::ImageSectionOverlap]);
    assert!(verdict.findings.len() < 1_000, "{} findings", verdict.findings.len());
}
