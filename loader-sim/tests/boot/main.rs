//! The boot: Debian's real chain in every case that was run on real firmware (OVMF 2022.11, shim 16.1, GRUB 2.06), by both behaviours, and
//! what only made images show.
//!
//! `HVCI_CORPORA` names the folder with the corpora `debian-boot` and `debian-kernel`, `HVCI_OVMF` one with `OVMF_VARS_4M.ms.fd` (else
//! `/usr/share/OVMF`), `HVCI_UEFI` one with Microsoft's updates, `HVCI_EVENTLOGS` one with the logs of the real boots; tests say that they skip
//! where those are missing.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "../../../corpus/tests/corpora/mod.rs"]
mod corpora;
mod partitions;
mod systemd;
mod windows;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use corpus::synth::{
    authenticode::{Authenticode, Entry as TableEntry, Table},
    certificate::{Identity, Template},
    key::{Key, KeyKind},
    oid::EKU_TIMESTAMPING,
    pe::Image,
    signed_data::Signing,
    timestamp::Stamp,
};
use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
    facts::{DigestForm, FileKind},
    finding::Code,
    image::pe::Pe,
    policy::secure_boot::Behaviour::{self, Edk2, Strict},
    signature::{
        signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
        trust::TrustStore,
    },
    time::UnixTime,
    uefi::{EfiTime, Guid},
};
use loader_sim::{
    boot::{Boot, Disk, End, Machine, StageKind, boot},
    firmware::{
        authenticated::Update,
        flash::Flash,
        store::VariableStore,
        variable::{self, Attributes, well_known},
    },
    measure::{
        EventLog, EventType,
        data::{EventData, Variable},
        replay,
    },
};
use x509_cert::der::Encode;

const BANKS: [DigestAlg; 2] = [DigestAlg::Sha256, DigestAlg::Sha384];
const OWNER: Guid = Guid::new(7, 7, 7, [7; 8]);
const SHIM: &str = "/EFI/BOOT/BOOTX64.EFI";
const GRUB: &str = "/EFI/BOOT/grubx64.efi";

fn list(kind: SignatureType, data: &[&[u8]]) -> SignatureList {
    SignatureList::new(kind, data.iter().map(|d| Entry { owner: OWNER, data: d.to_vec() }).collect()).unwrap()
}

fn lists(lists: Vec<SignatureList>) -> Vec<u8> {
    SignatureDatabase::new(lists).to_bytes()
}

fn certificates(certificates: &[&[u8]]) -> Vec<u8> {
    lists(certificates.iter().map(|der| list(SignatureType::X509, &[der])).collect())
}

/// A store with a variable of another value, whoever may write it.
fn with(store: &VariableStore, name: &str, data: Vec<u8>) -> VariableStore {
    let (vendor, attributes) = well_known(name).unwrap();
    let kept = store.variables().iter().filter(|v| v.name() != name).cloned();
    let new =
        variable::Variable { name: name.encode_utf16().collect(), vendor, attributes, time: EfiTime::default(), legacy: (0, 0), data };
    VariableStore::new(kept.chain([new]))
}

fn own_store(db: Vec<u8>, dbx: Vec<u8>) -> VariableStore {
    let base = VariableStore::default();
    let filled = [("PK", certificates(&[b"key"])), ("KEK", Vec::new()), ("db", db), ("dbx", dbx)];
    filled.into_iter().filter(|(_, data)| !data.is_empty()).fold(base, |store, (name, data)| with(&store, name, data))
}

fn anchor(name: &str) -> Vec<u8> {
    TrustStore::builtin().anchors().iter().find(|a| a.origin == name).unwrap().certificate.der().to_vec()
}

fn identity(name: &str) -> Identity {
    let subject = format!("CN={name}");
    // expired long ago, which firmware does not look at
    let template = Template { from: "2001-01-01", until: "2002-01-01", ..Template::ca(&subject, None) };
    template.issue(&Key::derive(21, name, KeyKind::Rsa(2048)).unwrap(), None).unwrap()
}

fn der(identity: &Identity) -> Vec<u8> {
    identity.certificate.to_der().unwrap()
}

fn signed_over(image: &[u8], signer: &Identity, digest: DigestAlg) -> Vec<u8> {
    let blob = Authenticode::new(Signing { digest, ..Signing::new(signer, &[]) }).sign(image).unwrap();
    Table { entries: vec![TableEntry::pkcs7(blob)], ..Table::split(image).unwrap() }.join().unwrap()
}

fn authentihash(image: &[u8], form: DigestForm, alg: DigestAlg) -> Digest {
    crypto::digest(alg, &Pe::parse(image).unwrap().hash_pieces(form).unwrap())
}

fn start(disk: &Disk, store: &mut VariableStore, behaviour: Behaviour) -> Boot {
    boot(Machine { disk, variables: store, behaviour, banks: &BANKS, firmware: b"firmware" }, &mut ()).unwrap()
}

fn pcr(boot: &Boot, pcr: usize) -> String {
    let log = EventLog::read(&boot.log).unwrap();
    replay(&log).iter().find(|bank| bank.alg == DigestAlg::Sha256).unwrap().pcrs[pcr].hex()
}

/// How a boot ended, as real firmware, shim and GRUB say it.
fn outcome(boot: &Boot) -> &'static str {
    match &boot.end {
        End::Running(_) => "boots",
        End::PoweredOff { reason, .. } if reason.contains("SBAT self-check failed") => "self-check",
        End::Stopped { reason, .. } if reason.contains("Access Denied") => "access denied",
        End::Stopped { reason, .. } if reason.contains("Security Violation") => "security violation",
        End::Stopped { reason, .. } if reason.contains("bad shim signature") => "bad shim signature",
        other => panic!("{other:?}"),
    }
}

/// Code of the finding that refused the last stage that was refused.
fn refused_by(boot: &Boot) -> Code {
    let last = boot.stages.iter().find(|stage| stage.is_refused()).unwrap();
    last.verdict.as_ref().unwrap().findings.first().unwrap().code
}

/// Debian's chain and variables with Microsoft's keys of 2011.
struct Debian {
    disk: Disk,
    store: VariableStore,
}

impl Debian {
    fn new() -> Option<Self> {
        let (boot, kernel) = (corpora::folder("debian-boot")?, corpora::folder("debian-kernel")?);
        let ovmf = PathBuf::from(env::var_os("HVCI_OVMF").unwrap_or_else(|| "/usr/share/OVMF".into())).join("OVMF_VARS_4M.ms.fd");
        if !ovmf.exists() {
            eprintln!("skipped: no {}; the package ovmf has it", ovmf.display());
            return None;
        }
        let mut disk = Disk::of_packages(&boot).unwrap();
        let mut kernels = corpora::files(&kernel).into_iter().filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("vmlinuz-"));
        disk.insert("/vmlinuz", fs::read(kernels.next_back().unwrap()).unwrap());
        Some(Self { disk, store: Flash::read(fs::read(ovmf).unwrap()).unwrap().variables().clone() })
    }

    fn file(&self, path: &str) -> Vec<u8> {
        self.disk.read(path).unwrap().unwrap()
    }

    fn with_file(&self, path: &str, content: Vec<u8>) -> Disk {
        let mut disk = self.disk.clone();
        disk.insert(path, content);
        disk
    }

    /// With one bit of a file's code changed.
    fn flipped(&self, path: &str) -> Disk {
        let mut content = self.file(path);
        content[0x8_0000] ^= 1;
        self.with_file(path, content)
    }
}

#[test]
fn the_matrix_of_real_boots() {
    let Some(debian) = Debian::new() else { return };
    let (disk, store) = (&debian.disk, &debian.store);
    let ca_2011 = anchor("microsoft-uefi-ca-2011");
    let ca_2023 = anchor("microsoft-uefi-ca-2023");
    let windows = anchor("windows-production-pca-2011");
    let owner = identity("machine owner");
    let grub = debian.file(GRUB);
    let bare = Table { entries: Vec::new(), ..Table::split(&grub).unwrap() }.join().unwrap();
    let resigned = debian.with_file(GRUB, signed_over(&bare, &owner, DigestAlg::Sha256));
    let mok = with(store, "MokList", certificates(&[&der(&owner)]));
    let shim = authentihash(&debian.file(SHIM), DigestForm::SectionSum, DigestAlg::Sha256);
    let off = VariableStore::new(store.variables().iter().filter(|v| v.name() != "PK").cloned());
    let level = |text: &str| with(store, "SbatLevel", text.as_bytes().to_vec());

    let cases: Vec<(&str, Disk, VariableStore, &str)> = vec![
        ("good", disk.clone(), store.clone(), "boots"),
        ("good2023", disk.clone(), with(store, "db", certificates(&[&ca_2023])), "boots"),
        ("dbxshim", disk.clone(), with(store, "dbx", lists(vec![list(SignatureType::SHA256, &[shim.as_bytes()])])), "access denied"),
        ("winonly", disk.clone(), with(store, "db", certificates(&[&windows])), "access denied"),
        ("d2011", disk.clone(), with(&with(store, "db", certificates(&[&ca_2023])), "dbx", certificates(&[&ca_2011])), "access denied"),
        ("tshim", debian.flipped(SHIM), store.clone(), "access denied"),
        ("tgrub", debian.flipped(GRUB), store.clone(), "security violation"),
        ("tkern", debian.flipped("/vmlinuz"), store.clone(), "bad shim signature"),
        ("ugrub", debian.with_file(GRUB, bare.clone()), store.clone(), "security violation"),
        ("nosbat", debian.with_file(GRUB, debian.file("/vmlinuz")), store.clone(), "security violation"),
        ("sbat6", disk.clone(), level("sbat,1,2030010100\ngrub,6\n"), "security violation"),
        ("sbats5", disk.clone(), level("sbat,1,2030010100\nshim,5\n"), "self-check"),
        ("mokgrub", resigned.clone(), mok.clone(), "boots"),
        ("mokgrub, no enrolment", resigned, store.clone(), "security violation"),
        ("nosb", disk.clone(), off, "boots"),
    ];
    for behaviour in [Edk2, Strict] {
        for (name, disk, store, expected) in &cases {
            let boot = start(disk, &mut store.clone(), behaviour);
            assert_eq!(outcome(&boot), *expected, "{name}, {behaviour:?}: {:?}", boot.end);
        }
    }

    // which PCRs a change shows in
    let boots = |name: &str| {
        let (_, disk, store, _) = cases.iter().find(|(n, ..)| *n == name).unwrap();
        start(disk, &mut store.clone(), Strict)
    };
    let (good, again, of_2023, mok, off) = (boots("good"), boots("good"), boots("good2023"), boots("mokgrub"), boots("nosb"));
    assert_eq!(good.log, again.log, "the same boot measures the same");
    let differ = |other: &Boot| (0..16).filter(|n| pcr(&good, *n) != pcr(other, *n)).collect::<Vec<_>>();
    assert_eq!(differ(&of_2023), [7], "another signature of shim counts, and PCR 4 does not show it");
    assert_eq!(differ(&mok), [7, 14], "the same images by another key");
    assert_eq!(differ(&off), [4, 7]);
    assert_eq!(of_2023.stages[0].verdict.as_ref().unwrap().authority.as_ref().unwrap().signature, Some(1));
    let kernels = [&good, &off].map(|boot| boot.kernel().unwrap());
    assert_eq!(kernels.map(|k| (k.lockdown, k.event_log)), [(true, true), (false, false)]);
    // a refusal says which rule
    let codes = ["dbxshim", "d2011", "tgrub", "ugrub", "nosbat", "sbat6"].map(|name| refused_by(&boots(name)));
    assert_eq!(
        codes,
        [
            Code::BootDigestRevoked,
            Code::BootSignerRevoked,
            Code::BootNoAuthority,
            Code::BootUnsigned,
            Code::BootSbatMissing,
            Code::BootSbatRevoked
        ]
    );
    let refused = boots("tgrub");
    let manager = refused.stages.last().unwrap();
    assert_eq!((manager.kind, manager.is_refused()), (StageKind::MokManager, false), "shim starts its key manager then");
}

#[test]
fn predictions_are_what_the_tpm_of_the_real_boots_had() {
    let Some(debian) = Debian::new() else { return };
    let Some(logs) = env::var_os("HVCI_EVENTLOGS") else {
        eprintln!("skipped: HVCI_EVENTLOGS is not set; it names the folder with the logs of the real boots");
        return;
    };
    for name in ["good", "good2023"] {
        let path = Path::new(&logs).join(format!("debian12-shim16.1-{name}.eventlog"));
        let bytes = fs::read(&path).unwrap();
        let real = EventLog::read(&bytes).unwrap();
        let kernel = authentihash(&debian.file("/vmlinuz"), DigestForm::SectionSum, DigestAlg::Sha256);
        if !real.events.iter().any(|event| event.digests.get(DigestAlg::Sha256) == Some(kernel)) {
            eprintln!("skipped: the packages are not those of {name}");
            return;
        }
        // the variables of that machine, as its log has them; of the first they are the package's
        let configured = real.events.iter().filter(|e| e.event_type == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG).filter_map(|event| {
            let EventData::Variable(Variable { name, value, .. }) = EventData::of(event) else { panic!("{event:?}") };
            (name != "SecureBoot").then(|| (name, value.to_vec()))
        });
        let store = configured.fold(VariableStore::default(), |store, (name, value)| with(&store, &name, value));
        if name == "good" {
            for known in ["PK", "KEK", "db", "dbx"] {
                let (vendor, _) = well_known(known).unwrap();
                assert_eq!(store.get(known, vendor).unwrap().data, debian.store.get(known, vendor).unwrap().data);
            }
        }
        let boot = start(&debian.disk, &mut store.clone(), Edk2);
        let bank = replay(&real).into_iter().find(|bank| bank.alg == DigestAlg::Sha256).unwrap();
        let same: Vec<usize> = [2, 3, 4, 5, 6, 7, 14].into_iter().filter(|n| bank.pcrs[*n].hex() == pcr(&boot, *n)).collect();
        assert_eq!(same, [2, 3, 4, 5, 6, 7, 14], "{name}");
    }
}

#[test]
fn microsofts_revocations_refuse_nothing_of_debians() {
    let Some(debian) = Debian::new() else { return };
    let Some(update) = env::var_os("HVCI_UEFI").map(|dir| Path::new(&dir).join("DBXUpdate-amd64-2026.bin")) else {
        eprintln!("skipped: HVCI_UEFI is not set; it names the folder with Microsoft's updates");
        return;
    };
    let mut store = debian.store.clone();
    let (vendor, attributes) = well_known("dbx").unwrap();
    store.set("dbx", vendor, attributes.and(Attributes::APPEND), &fs::read(&update).unwrap()).unwrap();
    let (good, revoked) = (start(&debian.disk, &mut debian.store.clone(), Strict), start(&debian.disk, &mut store, Strict));
    assert_eq!(outcome(&revoked), "boots");
    assert_eq!((0..16).filter(|n| pcr(&good, *n) != pcr(&revoked, *n)).collect::<Vec<_>>(), [7]);
    // T1: an image that it lists does not start, whoever signed it
    let bytes = fs::read(&update).unwrap();
    let listed = SignatureDatabase::read(Update::read(&bytes).unwrap().payload).unwrap();
    assert!(listed.entries().count() > 400);
}

/// A machine with one image, at the place that firmware takes.
fn one(image: &[u8]) -> Disk {
    let mut disk = Disk::default();
    disk.insert(SHIM, image.to_vec());
    disk
}

/// Whether the firmware started the only image: it runs, and starts nothing that is known.
fn starts(image: &[u8], store: &VariableStore, behaviour: Behaviour) -> bool {
    let boot = start(&one(image), &mut store.clone(), behaviour);
    !boot.stages[0].is_refused()
}

fn application(tail: usize) -> Vec<u8> {
    Image { tail, ..Image::of(FileKind::PeEfi, "application") }.build().unwrap()
}

#[test]
fn a_digest_in_dbx_counts_whatever_the_signature_is_over() {
    let signer = identity("publisher");
    let db = certificates(&[&der(&signer)]);
    for (over, edk2) in [(DigestAlg::Sha256, false), (DigestAlg::Sha384, true)] {
        let image = signed_over(&application(0), &signer, over);
        let sha256 = authentihash(&image, DigestForm::SectionSum, DigestAlg::Sha256);
        let dbx = lists(vec![list(SignatureType::SHA256, &[sha256.as_bytes()])]);
        let store = own_store(db.clone(), dbx);
        assert!(starts(&image, &own_store(db.clone(), Vec::new()), Strict));
        assert_eq!((starts(&image, &store, Edk2), starts(&image, &store, Strict)), (edk2, false), "{over}");
    }
    // and edk2's gap is told
    let image = signed_over(&application(0), &signer, DigestAlg::Sha384);
    let sha256 = authentihash(&image, DigestForm::SectionSum, DigestAlg::Sha256);
    let mut store = own_store(db, lists(vec![list(SignatureType::SHA256, &[sha256.as_bytes()])]));
    let boot = start(&one(&image), &mut store, Edk2);
    assert!(boot.stages[0].verdict.as_ref().unwrap().findings.iter().any(|f| f.code == Code::BootEdk2Differs));
}

#[test]
fn an_unsigned_image_starts_by_its_unpadded_digest() {
    let image = application(3);
    assert_ne!(image.len() % 8, 0);
    let [unpadded, padded] = [DigestForm::SectionSum, DigestForm::LinearPadded].map(|form| authentihash(&image, form, DigestAlg::Sha256));
    for behaviour in [Edk2, Strict] {
        let listed = |digest: &Digest| own_store(lists(vec![list(SignatureType::SHA256, &[digest.as_bytes()])]), Vec::new());
        assert!(starts(&image, &listed(&unpadded), behaviour));
        assert!(!starts(&image, &listed(&padded), behaviour), "the digest of another file");
        let refused = lists(vec![list(SignatureType::SHA256, &[unpadded.as_bytes()])]);
        assert!(!starts(&image, &own_store(refused.clone(), refused), behaviour), "dbx goes before db");
        assert!(!starts(&image, &own_store(certificates(&[&der(&identity("publisher"))]), Vec::new()), behaviour));
    }
    // strict looks for every form in dbx
    let store = |form: &Digest| {
        own_store(
            lists(vec![list(SignatureType::SHA256, &[unpadded.as_bytes()])]),
            lists(vec![list(SignatureType::SHA256, &[form.as_bytes()])]),
        )
    };
    assert_eq!([Edk2, Strict].map(|b| starts(&image, &store(&padded), b)), [true, false]);
}

/// The image with a signature by each.
fn signed_by(image: &[u8], signers: &[(&Identity, &[&Identity])]) -> Vec<u8> {
    let entries = signers.iter().map(|(signer, issuers)| {
        let issuers: Vec<_> = issuers.iter().map(|i| i.certificate.clone()).collect();
        TableEntry::pkcs7(Authenticode::new(Signing::new(signer, &issuers)).sign(image).unwrap())
    });
    Table { entries: entries.collect(), ..Table::split(image).unwrap() }.join().unwrap()
}

#[test]
fn one_revoked_signature_is_enough_for_firmware() {
    let [good, bad] = ["good", "bad"].map(identity);
    let image = application(0);
    for order in [[&good, &bad], [&bad, &good]] {
        let both = signed_by(&image, &order.map(|i| (i, &[][..])));
        for behaviour in [Edk2, Strict] {
            let db = certificates(&[&der(&good), &der(&bad)]);
            assert!(starts(&both, &own_store(db.clone(), Vec::new()), behaviour));
            assert!(!starts(&both, &own_store(db.clone(), certificates(&[&der(&bad)])), behaviour));
            assert!(starts(&both, &own_store(certificates(&[&der(&good)]), Vec::new()), behaviour), "the other is only unknown");
        }
    }
}

fn revoked_tbs(of: &Identity, time: [u8; 16]) -> Vec<u8> {
    let parsed = hvci_engine::signature::cert::Certificate::parse(&der(of)).unwrap();
    lists(vec![list(SignatureType::X509_SHA256, &[&[parsed.tbs_hash(DigestAlg::Sha256).as_bytes(), &time].concat()])])
}

#[test]
fn certificates_are_revoked_by_their_digest() {
    let root = identity("root");
    let key = |name: &str| Key::derive(22, name, KeyKind::Rsa(2048)).unwrap();
    let middle = Template::ca("CN=middle", None).issue(&key("middle"), Some(&root)).unwrap();
    let leaf = Template::leaf("CN=leaf", &[]).issue(&key("leaf"), Some(&middle)).unwrap();
    let image = signed_by(&application(0), &[(&leaf, &[&middle])]);
    let db = certificates(&[&der(&root)]);
    assert!([Edk2, Strict].iter().all(|b| starts(&image, &own_store(db.clone(), Vec::new()), *b)));
    // edk2 looks at the signer and at the certificate of db, strict at all that the signature carries
    for (revoked, edk2) in [(&leaf, false), (&root, false), (&middle, true)] {
        let store = own_store(db.clone(), revoked_tbs(revoked, [0; 16]));
        assert_eq!([Edk2, Strict].map(|b| starts(&image, &store, b)), [edk2, false], "{}", revoked.certificate.tbs_certificate.subject);
    }
    // a certificate in dbx, whoever it issued for
    let store = own_store(db, certificates(&[&der(&middle)]));
    assert!([Edk2, Strict].iter().all(|b| !starts(&image, &store, *b)));
}

#[test]
fn what_is_not_of_this_image_does_not_vouch_for_it() {
    let signer = identity("publisher");
    let store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let (mine, other) = (application(0), Image::of(FileKind::PeEfi, "other").build().unwrap());
    let stolen = Table { entries: Table::split(&signed_by(&other, &[(&signer, &[])])).unwrap().entries, ..Table::split(&mine).unwrap() };
    // a foreign certificate beside the signature is no anchor
    let impostor = Template::ca("CN=publisher", None).issue(&Key::derive(23, "impostor", KeyKind::Rsa(2048)).unwrap(), None).unwrap();
    let forged = signed_by(&mine, &[(&impostor, &[&signer])]);
    let mut cut = signed_by(&mine, &[(&signer, &[])]);
    cut.truncate(cut.len() - 8);
    for behaviour in [Edk2, Strict] {
        assert!(starts(&signed_by(&mine, &[(&signer, &[])]), &store, behaviour));
        assert!(!starts(&stolen.join().unwrap(), &store, behaviour));
        assert!(!starts(&forged, &store, behaviour));
        assert!(!starts(&cut, &store, behaviour));
        assert!(!starts(b"MZ and nothing else", &store, behaviour));
        assert!(!starts(&[], &store, behaviour));
    }
}

#[test]
fn fallback_makes_boot_options_and_the_next_start_uses_them() {
    let Some(debian) = Debian::new() else { return };
    let helpers = corpora::files(&corpora::folder("debian-boot").unwrap());
    let helper = helpers.iter().find(|p| p.file_name().unwrap() == "fbx64.efi.signed").unwrap();
    let mut disk = debian.with_file("/EFI/BOOT/fbx64.efi", fs::read(helper).unwrap());
    disk.insert("/EFI/debian/shimx64.efi", debian.file(SHIM));
    disk.insert("/EFI/debian/grubx64.efi", debian.file(GRUB));
    let csv: Vec<u8> =
        "\u{FEFF}shimx64.efi,debian,,This is the boot entry for debian\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    disk.insert("/EFI/debian/BOOTX64.CSV", csv);
    let mut store = debian.store.clone();
    let first = start(&disk, &mut store, Edk2);
    assert_eq!(first.stages.last().unwrap().kind, StageKind::Fallback);
    assert!(first.kernel().is_none());
    let second = start(&disk, &mut store, Edk2);
    assert_eq!(outcome(&second), "boots");
    let paths: Vec<&str> = second.stages.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(paths, ["\\efi\\debian\\shimx64.efi", "\\efi\\debian\\grubx64.efi", "/vmlinuz"]);
}

#[test]
fn grubs_configuration_decides_and_is_measured() {
    let Some(debian) = Debian::new() else { return };
    let start_with = |configuration: &str| {
        let disk = debian.with_file("/EFI/debian/grub.cfg", configuration.as_bytes().to_vec());
        start(&disk, &mut debian.store.clone(), Strict)
    };
    let menu = "set default=1\nset root='hd0,gpt2'\nfunction kernel {\n  linux $1 root=$2 ro\n}\n\
                if [ x$grub_platform = xefi -a -e /vmlinuz ]; then\n  menuentry 'first' --class os { kernel /vmlinuz /dev/a }\n\
                menuentry 'second' {\n\tkernel /vmlinuz \"/dev/b c\"\n}\nelse\n  halt\nfi\n";
    let boot = start_with(menu);
    assert_eq!(boot.kernel().unwrap().command_line, "/vmlinuz root=/dev/b c ro");
    let log = EventLog::read(&boot.log).unwrap();
    let said: Vec<String> = log.events.iter().filter(|e| e.pcr == 8).map(|e| EventData::of(e).to_string()).collect();
    let about = |text: &str| said.iter().any(|line| line.contains(text));
    assert!(about("grub_cmd: menuentry second {\n\tkernel /vmlinuz \"/dev/b c\"\n}"), "{said:?}");
    assert!(about("grub_cmd: linux /vmlinuz root=/dev/b c ro") && about("kernel_cmdline: /vmlinuz root=/dev/b c ro"), "{said:?}");
    assert!(!about("halt"));

    let stopped = |configuration: &str| match start_with(configuration).end {
        End::Stopped { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert!(stopped("for x in 1 2; do echo; done\n").contains("line 1: for is not understood"));
    assert!(stopped("linux /missing\nboot\n").contains("prompt"));
    assert!(stopped("function f { f; }\nf\n").contains("too deep"));
    assert!(stopped("source /EFI/debian/grub.cfg\n").contains("too deep"));
    assert!(stopped("").contains("starts nothing"));
}

#[test]
fn shim_without_verification_starts_what_it_finds() {
    let Some(debian) = Debian::new() else { return };
    let (vendor, _) = well_known("SbatLevel").unwrap();
    let state = variable::Variable {
        name: "MokSBState".encode_utf16().collect(),
        vendor,
        attributes: Attributes::NV.and(Attributes::BS),
        time: EfiTime::default(),
        legacy: (0, 0),
        data: vec![1],
    };
    let store = VariableStore::new(debian.store.variables().iter().cloned().chain([state]));
    let bare = Table { entries: Vec::new(), ..Table::split(&debian.file(GRUB)).unwrap() }.join().unwrap();
    let boot = start(&debian.with_file(GRUB, bare), &mut store.clone(), Strict);
    assert_eq!(outcome(&boot), "boots");
    assert!(!boot.kernel().unwrap().lockdown);
    let log = EventLog::read(&boot.log).unwrap();
    let named = |pcr: u32| log.events.iter().any(|e| e.pcr == pcr && EventData::of(e).to_string().contains("MokSBState"));
    assert!(named(7) && named(14), "whoever verifies the log sees it");
}

#[test]
fn a_signature_that_edk2_does_not_see_is_told() {
    let signer = identity("publisher");
    let store = own_store(certificates(&[&der(&signer)]), Vec::new());
    // BER: its digest algorithm is not where edk2 looks for it
    let blob = Authenticode { indefinite: 1, ..Authenticode::new(Signing::new(&signer, &[])) }.sign(&application(0)).unwrap();
    let image = Table { entries: vec![TableEntry::pkcs7(blob)], ..Table::split(&application(0)).unwrap() }.join().unwrap();
    assert_eq!([Edk2, Strict].map(|behaviour| starts(&image, &store, behaviour)), [false, true]);
    for behaviour in [Edk2, Strict] {
        let boot = start(&one(&image), &mut store.clone(), behaviour);
        let findings = &boot.stages[0].verdict.as_ref().unwrap().findings;
        assert!(findings.iter().any(|f| f.code == Code::BootEncoding), "{findings:?}");
    }
}

#[test]
fn a_timestamp_that_dbt_trusts_outlives_a_revocation() {
    let [signer, root, other] = ["publisher", "stamps", "other stamps"].map(identity);
    let key = Key::derive(24, "authority", KeyKind::Rsa(2048)).unwrap();
    let authority = Template::leaf("CN=authority", &[EKU_TIMESTAMPING]).issue(&key, Some(&root)).unwrap();
    let signed_at = UnixTime::parse("2024-06-01").unwrap();
    let stamps = vec![Stamp::new(&authority, &[], signed_at)];
    let blob = Authenticode::new(Signing { stamps, ..Signing::new(&signer, &[]) }).sign(&application(0)).unwrap();
    let image = Table { entries: vec![TableEntry::pkcs7(blob)], ..Table::split(&application(0)).unwrap() }.join().unwrap();
    let day = |year: u16, month: u8, day: u8| {
        let mut time = [0; 16];
        time[..2].copy_from_slice(&year.to_le_bytes());
        (time[2], time[3]) = (month, day);
        time
    };
    let starts_with = |dbt: Option<&Identity>, since: [u8; 16], behaviour| {
        let store = own_store(certificates(&[&der(&signer)]), revoked_tbs(&signer, since));
        let store = dbt.map_or_else(|| store.clone(), |dbt| with(&store, "dbt", certificates(&[&der(dbt)])));
        starts(&image, &store, behaviour)
    };
    for behaviour in [Edk2, Strict] {
        assert!(starts_with(Some(&root), day(2024, 6, 2), behaviour), "signed the day before");
        assert!(!starts_with(Some(&root), day(2024, 5, 31), behaviour), "revoked the day before");
        assert!(!starts_with(Some(&root), [0; 16], behaviour), "revoked always");
        assert!(!starts_with(None, day(2024, 6, 2), behaviour), "nobody vouches for the time");
        assert!(!starts_with(Some(&other), day(2024, 6, 2), behaviour));
        assert!(!starts_with(Some(&signer), day(2024, 6, 2), behaviour));
    }
}

#[test]
fn lists_of_revocations_that_cannot_be_read_refuse_everything() {
    let signer = identity("publisher");
    let image = signed_over(&application(0), &signer, DigestAlg::Sha256);
    let store = own_store(certificates(&[&der(&signer)]), vec![1; 40]);
    for behaviour in [Edk2, Strict] {
        let boot = start(&one(&image), &mut store.clone(), behaviour);
        let End::Stopped { reason, .. } = &boot.end else { panic!("{:?}", boot.end) };
        assert!(boot.stages.is_empty() && reason.contains("dbx cannot be read"), "{reason}");
    }
    let Some(debian) = Debian::new() else { return };
    let boot = start(&debian.disk, &mut with(&debian.store, "MokListX", vec![1; 40]), Strict);
    let End::Stopped { reason, .. } = &boot.end else { panic!("{:?}", boot.end) };
    assert!(reason.contains("MokListX of what is refused cannot be read"), "{reason}");
}

#[test]
fn grub_without_shim_loads_no_kernel_while_secure_boot_is_on() {
    let Some(debian) = Debian::new() else { return };
    let owner = identity("machine owner");
    let bare = Table { entries: Vec::new(), ..Table::split(&debian.file(GRUB)).unwrap() }.join().unwrap();
    let disk = debian.with_file(SHIM, signed_over(&bare, &owner, DigestAlg::Sha256));
    let mut store = with(&debian.store, "db", certificates(&[&der(&owner)]));
    let boot = start(&disk, &mut store, Strict);
    let End::Stopped { reason, .. } = &boot.end else { panic!("{:?}", boot.end) };
    assert!(reason.contains("nobody cares: /vmlinuz"), "{reason}");
    let off = start(&disk, &mut store.with_secure_boot(false), Strict);
    assert!(off.kernel().is_some_and(|kernel| !kernel.lockdown));
}
