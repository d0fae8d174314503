//! UEFI variables: who may write them, OVMF's flash files, Microsoft's updates.
//!
//! `HVCI_OVMF` names a folder with `OVMF_VARS_4M.ms.fd` and its like (else `/usr/share/OVMF`), `HVCI_UEFI` one with `DBXUpdate*.bin` and
//! `dbx-history/`; tests of real files say that they skip where those are missing.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use corpus::synth::{
    certificate::{Identity, Template},
    der::Node,
    key::{Key, KeyKind},
    signed_data::Signing,
};
use hvci_engine::{
    digest::DigestAlg,
    signature::signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
    uefi::Guid,
};
use loader_sim::firmware::{
    Status,
    authenticated::Update,
    flash::Flash,
    store::{Applied, Change, VariableStore},
    variable::{Attributes, Variable, well_known},
};
use proptest::prelude::*;
use x509_cert::der::Encode;

const OWNER: Guid = Guid::new(1, 2, 3, [4; 8]);

fn identity(name: &str, issuer: Option<&Identity>) -> Identity {
    let subject = format!("CN={name}");
    let template = if issuer.is_none() { Template::ca(&subject, None) } else { Template::leaf(&subject, &[]) };
    // expired long ago, which firmware does not look at
    Template { from: "2001-01-01", until: "2002-01-01", ..template }
        .issue(&Key::derive(11, name, KeyKind::Rsa(2048)).unwrap(), issuer)
        .unwrap()
}

fn database(kind: SignatureType, data: &[&[u8]]) -> Vec<u8> {
    let entries = data.iter().map(|d| Entry { owner: OWNER, data: d.to_vec() }).collect();
    SignatureDatabase::new(vec![SignatureList::new(kind, entries).unwrap()]).to_bytes()
}

fn certificate(of: &Identity) -> Vec<u8> {
    database(SignatureType::X509, &[&of.certificate.to_der().unwrap()])
}

fn hashes(bytes: &[u8]) -> Vec<u8> {
    let data: Vec<[u8; 32]> = bytes.iter().map(|b| [*b; 32]).collect();
    database(SignatureType::SHA256, &data.iter().map(|d| &d[..]).collect::<Vec<_>>())
}

/// A signed write and what is wrong with it.
#[derive(Clone)]
struct Write<'a> {
    name: &'a str,
    attributes: Attributes,
    signed_attributes: Attributes,
    time: [u8; 16],
    payload: Vec<u8>,
    signing: Signing<'a>,
    content_info: bool,
}

impl<'a> Write<'a> {
    fn new(name: &'a str, day: u8, payload: Vec<u8>, signer: &'a Identity) -> Self {
        let mut time = [0; 16];
        time[..4].copy_from_slice(&[0xEA, 0x07, 11, day]);
        let attributes = Attributes::DATABASE;
        Self { name, attributes, signed_attributes: attributes, time, payload, signing: Signing::new(signer, &[]), content_info: false }
    }

    fn append(mut self) -> Self {
        self.attributes = self.attributes.and(Attributes::APPEND);
        self.signed_attributes = self.attributes;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let (vendor, _) = well_known(self.name).unwrap();
        let name: Vec<u8> = self.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let content = [&name[..], &vendor.0, &self.signed_attributes.0.to_le_bytes(), &self.time, &self.payload].concat();
        let mut pkcs7 = self.signing.detached(&content).unwrap();
        if !self.content_info {
            pkcs7 = Node::parse(&pkcs7).unwrap().at_mut(&[1, 0]).unwrap().encode();
        }
        let length = u32::try_from(pkcs7.len() + 24).unwrap().to_le_bytes();
        [&self.time[..], &length, &[0, 2, 0xF1, 0x0E], &SignatureType::PKCS7.0.0, &pkcs7, &self.payload].concat()
    }

    fn to(&self, store: &mut VariableStore) -> Result<Change, Status> {
        apply(store, self.name, self.attributes, &self.bytes()).map(|applied| applied.change)
    }
}

/// Refused writes must change nothing.
fn apply(store: &mut VariableStore, name: &str, attributes: Attributes, bytes: &[u8]) -> Result<Applied, Status> {
    let before = store.clone();
    let outcome = store.set(name, well_known(name).unwrap().0, attributes, bytes);
    assert!(outcome.is_ok() || *store == before, "a refused write changed something");
    outcome.map_err(|refused| refused.status)
}

struct Keys {
    pk: Identity,
    kek: Identity,
    db: Identity,
}

impl Keys {
    fn new() -> Self {
        Self { pk: identity("PK", None), kek: identity("KEK", None), db: identity("db", None) }
    }

    /// In user mode, everything written on the first day.
    fn enrolled(&self) -> VariableStore {
        let mut store = VariableStore::default();
        for (name, payload) in [("db", certificate(&self.db)), ("KEK", certificate(&self.kek)), ("PK", certificate(&self.pk))] {
            assert_eq!(Write::new(name, 1, payload, &self.pk).to(&mut store), Ok(Change::Written), "{name}");
        }
        store
    }
}

#[test]
fn the_mode_follows_the_platform_key() {
    let keys = Keys::new();
    let mut store = VariableStore::default();
    assert!(store.setup_mode() && !store.secure_boot());
    let foreign = Write::new("PK", 1, certificate(&keys.pk), &keys.db);
    assert_eq!(foreign.to(&mut store), Err(Status::SecurityViolation), "a PK comes signed by itself");
    let mut store = keys.enrolled();
    assert!(!store.setup_mode() && store.secure_boot());

    assert_eq!(Write::new("PK", 2, Vec::new(), &keys.kek).to(&mut store), Err(Status::SecurityViolation));
    assert_eq!(Write::new("PK", 2, Vec::new(), &keys.pk).to(&mut store), Ok(Change::Deleted));
    assert!(store.setup_mode() && !store.secure_boot());
    // without PK anybody writes the databases, whenever signed
    assert_eq!(Write::new("db", 1, hashes(&[1]), &keys.db).to(&mut store), Ok(Change::Written));

    for name in ["SetupMode", "SecureBoot"] {
        assert_eq!(apply(&mut store, name, Attributes::NV.and(Attributes::BS), &[1]), Err(Status::WriteProtected));
    }
}

#[test]
fn each_database_has_its_signers() {
    let keys = Keys::new();
    let leaf = identity("leaf", Some(&keys.kek));
    let write = |name, signer| Write::new(name, 2, hashes(&[1, 2]), signer).to(&mut keys.enrolled());
    let forbidden = Err(Status::SecurityViolation);
    assert_eq!(write("KEK", &keys.pk), Ok(Change::Written));
    assert_eq!(write("KEK", &keys.kek), forbidden);
    assert_eq!(write("KEK", &keys.db), forbidden);
    for name in ["db", "dbx", "dbt"] {
        assert_eq!(write(name, &keys.kek), Ok(Change::Written));
        assert_eq!(write(name, &leaf), Ok(Change::Written), "certified by KEK");
        assert_eq!(write(name, &keys.pk), forbidden, "a key that is only in PK");
        assert_eq!(write(name, &keys.db), forbidden);
    }
    assert_eq!(write("PK", &keys.pk), Err(Status::InvalidParameter), "PK is one certificate");
    let next = Write::new("PK", 2, certificate(&keys.db), &keys.pk);
    assert_eq!(next.to(&mut keys.enrolled()), Ok(Change::Written), "the old PK signs the new");
}

#[test]
fn what_is_not_signed_exactly_so_is_refused() {
    let keys = Keys::new();
    let good = Write::new("dbx", 2, hashes(&[1]), &keys.kek);
    let refused = |write: &Write<'_>| write.to(&mut keys.enrolled()) == Err(Status::SecurityViolation);
    assert_eq!(good.to(&mut keys.enrolled()), Ok(Change::Written));
    assert_eq!(Write { content_info: true, ..good.clone() }.to(&mut keys.enrolled()), Ok(Change::Written));
    let plain = Signing { attributes: None, ..good.signing.clone() };
    assert_eq!(Write { signing: plain, ..good.clone() }.to(&mut keys.enrolled()), Ok(Change::Written), "without signed attributes");

    assert!(refused(&Write { signed_attributes: good.attributes.and(Attributes::APPEND), ..good.clone() }), "signed for appending");
    for at in 7..16 {
        let mut time = good.time;
        time[at] = 1;
        assert!(refused(&Write { time, ..good.clone() }), "byte {at} of the time");
    }
    for digest in [DigestAlg::Sha1, DigestAlg::Sha384] {
        assert!(refused(&Write { signing: Signing { digest, ..good.signing.clone() }, ..good.clone() }), "{digest}");
    }
    let bare = Signing { certificates: Vec::new(), ..good.signing.clone() };
    assert!(refused(&Write { signing: bare, ..good.clone() }), "the signer's certificate is not there");

    let bytes = good.bytes();
    let raw = |bytes: &[u8]| apply(&mut keys.enrolled(), "dbx", Attributes::DATABASE, bytes).map(|a| a.change);
    assert_eq!(raw(&bytes), Ok(Change::Written));
    for at in (0..44).chain([60, 200, bytes.len() - 80, bytes.len() - 1]) {
        let mut forged = bytes.clone();
        forged[at] ^= 0x10;
        assert!(raw(&forged).is_err(), "byte {at}");
    }
    assert!((0..bytes.len()).step_by(7).all(|end| raw(&bytes[..end]).is_err()));

    let mut store = keys.enrolled();
    assert_eq!(apply(&mut store, "dbx", Attributes::NV.and(Attributes::BS), &hashes(&[1])), Err(Status::InvalidParameter), "unsigned");
    let name = "db";
    assert_eq!(
        apply(&mut store, name, Attributes::DATABASE, &bytes).map(|a| a.change),
        Err(Status::SecurityViolation),
        "for another variable"
    );
}

#[test]
fn time_goes_forward_and_appending_never_shrinks() {
    let keys = Keys::new();
    let mut store = keys.enrolled();
    let dbx = |day, list: &[u8]| Write::new("dbx", day, hashes(list), &keys.kek);
    assert_eq!(dbx(5, &[1, 2]).to(&mut store), Ok(Change::Written));
    for day in [4, 5] {
        assert_eq!(dbx(day, &[1]).to(&mut store), Err(Status::SecurityViolation), "older or equal");
    }
    assert_eq!(dbx(3, &[2, 3]).append().to(&mut store), Ok(Change::Appended(1)), "appending has no order");
    assert_eq!(dbx(3, &[2, 3]).append().to(&mut store), Ok(Change::Appended(0)));
    assert_eq!(dbx(5, &[1]).to(&mut store), Err(Status::SecurityViolation), "an older append leaves the time");
    assert_eq!(dbx(7, &[4]).append().to(&mut store), Ok(Change::Appended(1)));
    assert_eq!(dbx(6, &[1]).to(&mut store), Err(Status::SecurityViolation), "a newer append moves it");
    assert_eq!(entries(&store).len(), 4);
    assert_eq!(dbx(8, &[1]).to(&mut store), Ok(Change::Written));
    assert_eq!(entries(&store).len(), 1);
}

/// dbx as a set.
fn entries(store: &VariableStore) -> BTreeSet<(SignatureType, Guid, Vec<u8>)> {
    let (vendor, _) = well_known("dbx").unwrap();
    let read = SignatureDatabase::read(&store.get("dbx", vendor).unwrap().data).unwrap();
    let all: Vec<_> = read.entries().map(|(kind, e)| (kind, e.owner, e.data.clone())).collect();
    let set: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(set.len(), all.len(), "an entry stands twice");
    set
}

/// An empty flash file with `room` bytes for variables, and something behind them.
fn empty_flash(room: usize) -> Vec<u8> {
    let mut out = vec![0; 16];
    let whole = 72 + 28 + room + 64;
    out.extend(Guid::new(0xfff1_2b8d, 0x7696, 0x4c8b, [0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50]).0);
    out.extend(u64::try_from(whole).unwrap().to_le_bytes());
    out.extend(b"_FVH\xFF\xFE\x04\0\x48\0\0\0\0\0\0\x02");
    out.extend([1, 0, 0, 0]);
    out.extend(u32::try_from(whole).unwrap().to_le_bytes());
    out.extend([0; 8]);
    let sum = out.chunks(2).fold(0_u16, |sum, w| sum.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
    out[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    out.extend(Guid::new(0xaaf3_2c78, 0x947b, 0x439a, [0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92]).0);
    out.extend(u32::try_from(room + 28).unwrap().to_le_bytes());
    out.extend([0x5A, 0xFE, 0, 0, 0, 0, 0, 0]);
    out.resize(out.len() + room, 0xFF);
    out.resize(whole, 0xA5);
    out
}

fn variable(name: &str, data: &[u8]) -> Variable {
    let name = name.encode_utf16().collect();
    Variable { name, vendor: OWNER, attributes: Attributes(3), time: Default::default(), legacy: (7, 9), data: data.to_vec() }
}

#[test]
fn flash_is_read_as_firmware_reads_it() {
    let flash = Flash::read(empty_flash(1024)).unwrap();
    let store = VariableStore::new([variable("a", b"one"), variable("b", b"two"), variable("longer", b"")]);
    let bytes = flash.with(&store).unwrap();
    let read = Flash::read(bytes.clone()).unwrap();
    assert_eq!(read.variables(), &store);
    assert_eq!(read.with(&store).unwrap(), bytes);
    assert!(bytes.ends_with(&[0xA5; 64]), "what is behind the store stays");

    // the second variable, 60 + 4 + 3 bytes, is renamed to the first's name: now there are two
    let state = |first: u8, second: u8| {
        let mut bytes = bytes.clone();
        (bytes[102], bytes[170], bytes[168 + 60]) = (first, second, b'a');
        let read = Flash::read(bytes).unwrap();
        read.variables().get("a", OWNER).map(|v| v.data.clone())
    };
    assert_eq!(state(0x3E, 0x3F).as_deref(), Some(&b"two"[..]), "the successor is there");
    assert_eq!(state(0x3F, 0x3E).as_deref(), Some(&b"one"[..]));
    assert_eq!(state(0x3E, 0x7F).as_deref(), Some(&b"one"[..]), "the successor was not finished");
    assert_eq!(state(0x3C, 0x3F).as_deref(), Some(&b"two"[..]));
    assert_eq!(state(0x3C, 0x3D), None, "deleted");

    let mut cut = bytes.clone();
    cut[100 + 40..100 + 44].copy_from_slice(&5000_u32.to_le_bytes());
    assert_eq!(Flash::read(cut).unwrap_err().to_string(), "a variable that is longer than the store at offset 0x64");
    let full = VariableStore::new([variable("a", &[0; 1024])]);
    assert_eq!(flash.with(&full).unwrap_err().status, Status::OutOfResources);
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(at in prop::collection::vec((0..1188_usize, any::<u8>()), 0..6), update in prop::collection::vec(any::<u8>(), 0..64)) {
        let store = VariableStore::new([variable("a", b"one"), variable("b", b"two")]);
        let mut bytes = Flash::read(empty_flash(1024)).unwrap().with(&store).unwrap();
        for (at, byte) in at {
            bytes[at] = byte;
        }
        if let Ok(flash) = Flash::read(bytes.clone()) {
            prop_assert_eq!(flash.with(flash.variables()).unwrap(), bytes);
        }
        let _ = Update::read(&update);
    }
}

fn folder(variable: &str, default: &str, file: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os(variable).unwrap_or_else(|| default.into()));
    if !folder.join(file).is_file() {
        eprintln!("skipped: no {file} in {}; {variable} names the folder", folder.display());
        return None;
    }
    Some(folder)
}

fn ovmf() -> Option<PathBuf> {
    folder("HVCI_OVMF", "/usr/share/OVMF", "OVMF_VARS_4M.ms.fd")
}

fn updates() -> Option<Vec<Vec<u8>>> {
    let folder = folder("HVCI_UEFI", "target/uefi", "DBXUpdate-amd64-2026.bin")?;
    let listed = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let files = listed(folder.clone()).chain(listed(folder.join("dbx-history")));
    let mut files: Vec<PathBuf> = files.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("DBXUpdate")).collect();
    files.sort();
    Some(files.iter().map(|p| fs::read(p).unwrap()).collect())
}

#[test]
fn updates_of_microsoft_give_one_set_in_any_order() {
    let (Some(ovmf), Some(updates)) = (ovmf(), updates()) else { return };
    let start = Flash::read(fs::read(ovmf.join("OVMF_VARS_4M.ms.fd")).unwrap()).unwrap();
    let append = Attributes::DATABASE.and(Attributes::APPEND);
    let mut sets = BTreeSet::new();
    for first in 0..updates.len() {
        for reverse in [false, true] {
            let mut order: Vec<&Vec<u8>> = updates.iter().cycle().skip(first).take(updates.len()).collect();
            if reverse {
                order.reverse();
            }
            let mut store = start.variables().clone();
            let mut len = entries(&store).len();
            for update in order {
                apply(&mut store, "dbx", append, update).unwrap();
                assert!(entries(&store).len() >= len, "append never shrinks");
                len = entries(&store).len();
                assert_eq!(apply(&mut store, "dbx", Attributes::DATABASE, update), Err(Status::SecurityViolation), "signed for appending");
            }
            sets.insert(entries(&store));
        }
    }
    assert!(updates.len() >= 8 && sets.len() == 1 && sets.first().unwrap().len() > 443, "{} sets", sets.len());
}

fn python(args: &[&str]) -> Option<Output> {
    let output = Command::new("python3").arg("-m").arg("virt.firmware.vars").args(args).output().ok()?;
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("No module named") {
        return None;
    }
    Some(output)
}

/// What virt-fw-vars reads in a file: name, vendor, attributes, value.
fn as_virt_firmware_reads(file: &Path) -> Option<BTreeSet<(String, String, u64, String)>> {
    let json = tempfile::NamedTempFile::new().unwrap();
    let output = python(&["-i", &file.display().to_string(), "--output-json", &json.path().display().to_string()]);
    let Some(output) = output else {
        eprintln!("skipped: virt-firmware of PyPI is not there");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&fs::read(json.path()).unwrap()).unwrap();
    let text = |v: &serde_json::Value, key: &str| v[key].as_str().unwrap().to_owned();
    let variables = read["variables"].as_array().unwrap().iter();
    Some(variables.map(|v| (text(v, "name"), text(v, "guid"), v["attr"].as_u64().unwrap(), text(v, "data"))).collect())
}

fn as_we_read(store: &VariableStore) -> BTreeSet<(String, String, u64, String)> {
    store.variables().iter().map(|v| (v.name(), v.vendor.to_string(), u64::from(v.attributes.0), hex::encode(&v.data))).collect()
}

#[test]
fn flash_files_of_ovmf_are_read_and_written_as_virt_firmware_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = vec![Flash::read(empty_flash(16 << 10)).unwrap().with(&Keys::new().enrolled()).unwrap()];
    for path in ovmf().into_iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|f| f.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.contains("_VARS") && name.ends_with(".fd") {
            files.push(fs::read(path).unwrap());
        }
    }
    for bytes in files {
        let flash = Flash::read(bytes.clone()).unwrap();
        assert_eq!(flash.with(flash.variables()).unwrap(), bytes, "unchanged");
        let mut store = flash.variables().clone();
        store.set("SbatLevel", well_known("SbatLevel").unwrap().0, Attributes(3), b"sbat,1,2026010100\n").unwrap();
        let changed = flash.with(&store).unwrap();
        assert_eq!((Flash::read(changed.clone()).unwrap().variables(), changed.len()), (&store, bytes.len()));
        for (bytes, store) in [(&bytes, flash.variables()), (&changed, &store)] {
            let file = dir.path().join("vars.fd");
            fs::write(&file, bytes).unwrap();
            let Some(theirs) = as_virt_firmware_reads(&file) else { return };
            assert_eq!(theirs, as_we_read(store));
        }
    }
}

fn sim(args: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_hvci-sim")).arg("vars").args(args).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

#[test]
fn a_user_sees_and_sets_variables() {
    let keys = Keys::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (file, new) = (at("vars.fd"), at("new.fd"));
    fs::write(&file, Flash::read(empty_flash(16 << 10)).unwrap().with(&keys.enrolled()).unwrap()).unwrap();
    fs::write(at("dbx.bin"), Write::new("dbx", 2, hashes(&[1, 2]), &keys.kek).append().bytes()).unwrap();
    fs::write(at("forged.bin"), Write::new("dbx", 2, hashes(&[1, 2]), &keys.db).append().bytes()).unwrap();
    fs::write(at("mok.esl"), certificate(&keys.db)).unwrap();
    fs::write(at("sbat.csv"), "sbat,1,2026010100\nshim,4\n").unwrap();

    let (said, code) = sim(&["set", &file, "dbx", &at("forged.bin"), "--append", "-o", &new]);
    assert!(said.starts_with("refused  dbx  EFI_SECURITY_VIOLATION: signed by CN=db, which no key of KEK vouches for"), "{said}");
    assert_eq!((code, Path::new(&new).exists()), (Some(1), false));
    let applied = sim(&["set", &file, "dbx", &at("dbx.bin"), "--append", "-o", &new]);
    assert_eq!(applied, ("applied  dbx  written\n  signed by CN=KEK\n".to_owned(), Some(0)));
    let again = sim(&["set", &new, "dbx", &at("dbx.bin"), "--append", "-o", &new]);
    assert_eq!(again, ("applied  dbx  0 entries new\n  signed by CN=KEK\n".to_owned(), Some(0)));
    assert_eq!(sim(&["set", &new, "MokList", &at("mok.esl"), "-o", &new]).1, Some(0));
    assert_eq!(sim(&["set", &new, "SbatLevel", &at("sbat.csv"), "-o", &new]).1, Some(0));
    assert_eq!(sim(&["set", &new, "SecureBoot", &at("sbat.csv"), "-o", &new]).1, Some(1));
    assert_eq!(sim(&["set", &new, "nothing", &at("sbat.csv"), "-o", &new]).1, Some(2));
    assert_eq!(sim(&["show", &at("sbat.csv")]).1, Some(2));

    let (said, code) = sim(&["show", &new]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with("Secure Boot on, user mode; 7 variables\n"), "{said}");
    let owner = "00000001-0002-0003-0404-040404040404";
    for line in [
        format!("  x509  CN=KEK  [{owner}]"),
        format!("  sha256  {}  [{owner}]", "02".repeat(32)),
        "dbx  [EFI image security databases]  NV BS RT authenticated, 124 bytes, signed 2026-11-02T00:00:00Z".to_owned(),
        "SbatLevel  [shim]  NV BS, 25 bytes".to_owned(),
        "  shim,4".to_owned(),
    ] {
        assert!(said.lines().any(|l| l == line), "{line}\n{said}");
    }
}
