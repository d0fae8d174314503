//! Our answers beside those of every verifier that is installed, on every synthetic case and every real image.
//!
//! Verifiers differ in what they ask, so each peer is given the question that it answers, as a [`Profile`] or in words, and our answer to the
//! same question. Where the two differ, `differential/explained.tsv` says who is right and why. A difference that is not in the list fails;
//! so does an entry of the list that explains nothing any more, when its peer and its files were there. The list is for named versions of
//! the peers: others are left alone, and the test says so.
//!
//! Beside the synthetic corpus: `HVCI_CORPORA` names the folder with the fetched corpora, `HVCI_CORPUS` one with signed images in `pe/`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use authenticode::{AttributeCertificateIterator, authenticode_digest};
use base64::Engine as _;
use corpus::{fetch::FILES, synth};
use hvci_engine::{
    digest::DigestAlg,
    examine::Examiner,
    facts::{DigestForm, Facts, FileKind, Source},
    finding::Severity,
    policy::{
        Decision, Judge, Profile, SignatureVerdict,
        profile::{self, Counts, Usage, Validity},
    },
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        cert::Certificate,
        keyring::certificates_from,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

mod corpora;

use corpora::{CAP, files, folder, time, windows_trust};

const EXPLAINED: &str = include_str!("differential/explained.tsv");

/// What osslsigncode and signify ask: is any signature on the file intact, for code signing, from a given root, and was it valid when made?
/// Neither knows a kernel, a firmware or a lint, so any root speaks for any file and only the decision on each signature is looked at.
static ANY_CODE_SIGNATURE: Profile = Profile {
    name: "any code signature",
    summary: "what osslsigncode and signify ask",
    kinds: &[FileKind::PeDriver, FileKind::PeEfi, FileKind::PeUser],
    anchors: Purposes::USER,
    root_limits: false,
    usage: Usage::CodeSigning,
    counts: Counts::Any,
    validity: Validity::AtSigning,
    form: DigestForm::Linear,
    catalogs: false,
    severities: &[],
};

/// A file that everybody is asked about.
struct Subject {
    /// Corpus and path in it.
    id: String,
    path: PathBuf,
    bytes: Vec<u8>,
    facts: Facts,
}

/// Subjects that share trust and time.
struct Group {
    subjects: Vec<Subject>,
    trust: TrustStore,
    time: UnixTime,
}

/// Everything that the peers are asked about but the large corpus.
static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(|| {
    let synthetic = Box::leak(Box::new(tempfile::tempdir().unwrap()));
    let written = synth::write(&synthetic.path().join("corpus"), synth::DEFAULT_SEED).unwrap();
    let mut trust = TrustStore::empty();
    for root in &written.roots {
        let (purpose, path) = root.split_once('=').unwrap();
        let purposes = if purpose == "module" { Purposes::MODULE } else { any_image() };
        for der in certificates_from(&fs::read(path).unwrap()).unwrap() {
            trust.add_der(&der, purposes, purpose).unwrap();
        }
    }
    let mut groups = vec![Group { subjects: subjects("synth", &written.images), trust, time: written.time }];
    let real = ["windows-drivers", "windows-signed", "debian-boot"];
    let real: Vec<Subject> = real.iter().filter_map(|name| Some(subjects(name, &folder(name)?))).flatten().collect();
    groups.push(Group { subjects: real, trust: trust_in_anything(), time: time() });
    groups
});

/// Every use that a PE image can be put to, and timestamps.
fn any_image() -> Purposes {
    Purposes::USER.and(Purposes::UEFI).and(Purposes::TIMESTAMP)
}

fn trust_in_anything() -> TrustStore {
    let mut store = TrustStore::empty();
    for anchor in windows_trust().0.anchors() {
        store.add(anchor.certificate.clone(), any_image(), anchor.origin.clone());
    }
    store
}

fn subjects(corpus: &str, folder: &Path) -> Vec<Subject> {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    files(folder)
        .into_par_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            let facts = examiner.examine(&bytes, CAP);
            Subject { id: id_of(corpus, folder, &path), path, bytes, facts }
        })
        .collect()
}

/// Whether the table that the signatures are in is well formed: what is wrong with it is noted about the file, not about a signature.
fn is_sound(facts: &Facts) -> bool {
    facts.notes.iter().all(|n| !n.code.id().starts_with("HVCI-SIG-") || profile::WINDOWS_KERNEL.severity(n.code) < Severity::Error)
}

/// Corpus and path in it, without the folder that only fetched corpora have.
fn id_of(corpus: &str, folder: &Path, path: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap();
    format!("{corpus}/{}", below.strip_prefix(FILES).unwrap_or(below).display())
}

fn is_pe(subject: &Subject) -> bool {
    matches!(subject.facts.kind, FileKind::PeDriver | FileKind::PeEfi | FileKind::PeUser)
}

/// A question put to a peer, and both answers.
struct Answers {
    id: String,
    ours: &'static str,
    theirs: &'static str,
    /// What the peer says of its answer.
    why: String,
}

fn good(is_good: bool) -> &'static str {
    if is_good { "good" } else { "bad" }
}

/// A line of the list.
struct Entry {
    peer: &'static str,
    version: &'static str,
    files: &'static str,
    theirs: &'static str,
    ours: &'static str,
}

fn entries() -> Vec<Entry> {
    EXPLAINED
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let [peer, version, files, theirs, ours, right, why] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("explained.tsv: seven columns belong in {line:?}")
            };
            assert!(["us", "them", "both", "neither"].contains(&right), "explained.tsv: who is right in {line:?}?");
            assert!(why.len() > 20 && theirs != ours, "explained.tsv: {line:?} explains nothing");
            Entry { peer, version, files, theirs, ours }
        })
        .collect()
}

/// Whether `text` is `pattern`, in which each `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text
            .strip_prefix(head)
            .is_some_and(|text| text.char_indices().map(|(i, _)| i).chain([text.len()]).any(|i| fits(rest, &text[i..]))),
    }
}

/// Whether the list is written for this version of the peer; says so if not. A peer that the list does not name may have any version.
fn is_known(peer: &str, version: &str) -> bool {
    let versions: BTreeSet<&str> = entries().iter().filter(|e| e.peer == peer).map(|e| e.version).collect();
    let known = versions.is_empty() || versions.contains(version);
    if !known {
        eprintln!("skipped: {peer} {version} is not one the list was written for ({versions:?})");
    }
    known
}

/// Fails on every difference that the list does not explain, and on every entry that explains none.
fn reconcile(peer: &str, version: &str, answers: &[Answers]) {
    let entries: Vec<Entry> = entries().into_iter().filter(|e| e.peer == peer && e.version == version).collect();
    let explains = |e: &Entry, a: &Answers| fits(e.files, &a.id) && e.theirs == a.theirs && e.ours == a.ours;
    let differences: Vec<&Answers> = answers.iter().filter(|a| a.ours != a.theirs).collect();
    let mut faults: Vec<String> = differences
        .iter()
        .filter(|a| !entries.iter().any(|e| explains(e, a)))
        .map(|a| format!("{peer}\t{version}\t{}\t{}\t{}\tWHO?\t{}", a.id, a.theirs, a.ours, a.why.replace(['\t', '\n'], " ")))
        .collect();
    let with_synthetic = answers.iter().any(|a| a.id.starts_with("synth/"));
    faults.extend(entries.iter().filter(|e| !differences.iter().any(|a| explains(e, a))).filter_map(|e| {
        let about = answers.iter().filter(|a| fits(e.files, &a.id)).count();
        // files of another run, or of a corpus that is not there
        let absent = about == 0 && !(e.files.starts_with("synth/") && with_synthetic);
        (!absent).then(|| format!("stale: {peer} {version} on {}: {about} files, none with {} against our {}", e.files, e.theirs, e.ours))
    }));
    eprintln!("{peer} {version}: {} questions, {} differences, all to be in the list", answers.len(), differences.len());
    assert!(
        faults.is_empty(),
        "{} faults; mend the engine or explain in corpus/tests/differential/explained.tsv\n{}",
        faults.len(),
        faults.join("\n")
    );
}

fn write_pem(path: &Path, certificates: &[&Certificate]) {
    let mut out = fs::File::create(path).unwrap();
    for certificate in certificates {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate.der());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
        writeln!(out, "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----", lines.join("\n")).unwrap();
    }
}

/// A group's subjects that are PE images, our answer to [`ANY_CODE_SIGNATURE`], and a bundle of roots to put the same question with.
///
/// Every root of the Windows programme in one bundle costs a peer four times as long as the check itself. What we accept is asked with the
/// roots that our paths end at; what we refuse is asked with all, so that no path is missed for want of a root.
fn with_roots<'g>(group: &'g Group, dir: &Path) -> Vec<(&'g Subject, bool, PathBuf)> {
    let cache = Cache::default();
    let judge = Judge { trust: &group.trust, time: group.time, cache: &cache };
    let judged: Vec<(&Subject, Vec<SignatureVerdict>)> =
        group.subjects.par_iter().filter(|s| is_pe(s)).map(|s| (s, judge.judge(&s.facts, Some(&ANY_CODE_SIGNATURE)).signatures)).collect();
    let ends: BTreeSet<&str> = judged
        .iter()
        .flat_map(|(_, signatures)| signatures)
        .flat_map(|s| [s.path.last(), s.timestamp_path.last()].into_iter().flatten())
        .map(|step| step.sha256.as_str())
        .collect();
    let images = group.trust.anchors().iter().filter(|a| a.purposes.any_of(any_image())).map(|a| &*a.certificate);
    let all: Vec<&Certificate> = images.collect();
    let few: Vec<&Certificate> = all.iter().filter(|c| ends.contains(c.sha256().hex().as_str())).copied().collect();
    let (all_path, few_path) = (dir.join("all.pem"), dir.join("few.pem"));
    write_pem(&all_path, &all);
    write_pem(&few_path, &few);
    judged
        .into_iter()
        .map(|(subject, signatures)| {
            let accepted = is_sound(&subject.facts) && signatures.iter().any(|s| s.decision == Decision::Accept);
            (subject, accepted, if accepted { few_path.clone() } else { all_path.clone() })
        })
        .collect()
}

/// What a tool prints of its version, the word that follows `name`.
fn version_of(tool: &str, argument: &str, name: &str) -> Option<String> {
    let Ok(output) = Command::new(tool).arg(argument).output() else {
        eprintln!("skipped: {tool} is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = text.split_whitespace().skip_while(|w| *w != name).nth(1).map(|w| w.trim_end_matches(',').to_owned());
    assert!(version.is_some(), "{tool} {argument} prints no version: {text}");
    version
}

fn osslsigncode(group: &Group) -> Vec<Answers> {
    let dir = tempfile::tempdir().unwrap();
    with_roots(group, dir.path())
        .into_par_iter()
        .map(|(subject, ours, roots)| {
            let output = Command::new("osslsigncode")
                .arg("verify")
                .args(["-ignore-cdp".as_ref(), "-ignore-crl".as_ref(), "-CAfile".as_ref(), roots.as_os_str()])
                .args(["-TSA-CAfile".as_ref(), roots.as_os_str(), "-time".as_ref(), group.time.0.to_string().as_ref()])
                .arg(&subject.path)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            let why = text.lines().filter(|l| l.contains("rror") || l.contains("ail") || l.contains("No sig")).take(3).collect::<Vec<_>>();
            Answers { id: subject.id.clone(), ours: good(ours), theirs: good(output.status.success()), why: why.join("; ") }
        })
        .collect()
}

#[test]
fn osslsigncode_differs_only_where_explained() {
    let Some(version) = version_of("osslsigncode", "--version", "osslsigncode").filter(|v| is_known("osslsigncode", v)) else { return };
    let answers: Vec<Answers> = GROUPS.iter().flat_map(osslsigncode).collect();
    reconcile("osslsigncode", &version, &answers);
}

#[test]
fn osslsigncode_differs_only_where_explained_on_the_large_corpus() {
    let Some(pe) = env::var_os("HVCI_CORPUS").map(|c| Path::new(&c).join("pe")).filter(|pe| pe.is_dir()) else {
        eprintln!("skipped: HVCI_CORPUS names no folder with signed images in pe/");
        return;
    };
    if !windows_trust().1 {
        return;
    }
    let Some(version) = version_of("osslsigncode", "--version", "osslsigncode").filter(|v| is_known("osslsigncode", v)) else { return };
    let group = Group { subjects: subjects("pe", &pe), trust: trust_in_anything(), time: time() };
    reconcile("osslsigncode", &version, &osslsigncode(&group));
}

/// By file: whether it is good, and why.
type Said = BTreeMap<String, (bool, String)>;

/// The peer's version, and what the Python script says of each subject.
fn python(peer: &str, queries: &[serde_json::Value]) -> Option<(String, Said)> {
    let mut file = tempfile::tempfile().unwrap();
    queries.iter().for_each(|q| writeln!(file, "{q}").unwrap());
    std::io::Seek::rewind(&mut file).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/peers.py");
    let Ok(output) = Command::new("python3").arg(script).arg(peer).stdin(file).stderr(Stdio::piped()).output() else {
        eprintln!("skipped: python3 is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let Some(first) = lines.next() else {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        eprintln!("skipped: {peer} cannot be used from python3: {}", errors.lines().last().unwrap_or_default());
        return None;
    };
    let version = first["version"].as_str().unwrap().to_owned();
    let answers =
        lines.map(|a| (a["id"].as_str().unwrap().to_owned(), (a["good"] == true, a["why"].as_str().unwrap().to_owned()))).collect();
    Some((version, answers))
}

#[test]
fn signify_differs_only_where_explained() {
    let mut answers = Vec::new();
    let mut version = String::new();
    for group in GROUPS.iter() {
        let dir = tempfile::tempdir().unwrap();
        let asked = with_roots(group, dir.path());
        let query = |(s, _, roots): &(&Subject, bool, PathBuf)| serde_json::json!({ "id": s.id, "path": s.path, "roots": roots, "time": group.time.0 });
        let Some((its_version, theirs)) = python("signify", &asked.iter().map(query).collect::<Vec<_>>()) else { return };
        for (subject, ours, _) in asked {
            let (is_good, why) = theirs.get(&subject.id).unwrap_or_else(|| panic!("signify gave no answer about {}", subject.id));
            answers.push(Answers { id: subject.id.clone(), ours: good(ours), theirs: good(*is_good), why: why.clone() });
        }
        version = its_version;
    }
    if is_known("signify", &version) {
        reconcile("signify", &version, &answers);
    }
}

/// What LIEF asks: is each signature in the table (nested ones are not looked at) intact and of this file, whoever made it?
fn every_entry_is_intact(facts: &Facts) -> bool {
    let mut entries = facts.signatures.iter().filter(|s| matches!(s.source, Source::Embedded(_))).peekable();
    is_sound(facts)
        && entries.peek().is_some()
        && entries.all(|s| {
            s.coverage.as_ref().is_some_and(|c| c.matches())
                && s.signer.as_ref().is_some_and(|s| s.check.is_valid())
                && s.notes.iter().all(|n| profile::WINDOWS_KERNEL.severity(n.code) < Severity::Error)
        })
}

#[test]
fn lief_differs_only_where_explained() {
    let asked: Vec<&Subject> = GROUPS.iter().flat_map(|g| &g.subjects).filter(|s| is_pe(s)).collect();
    let queries: Vec<_> = asked.iter().map(|s| serde_json::json!({ "id": s.id, "path": s.path })).collect();
    let Some((version, theirs)) = python("lief", &queries) else { return };
    if !is_known("lief", &version) {
        return;
    }
    let answers: Vec<Answers> = asked
        .iter()
        .map(|s| {
            let (is_good, why) = theirs.get(&s.id).unwrap_or_else(|| panic!("LIEF gave no answer about {}", s.id));
            Answers { id: s.id.clone(), ours: good(every_entry_is_intact(&s.facts)), theirs: good(*is_good), why: why.clone() }
        })
        .collect();
    reconcile("lief", &version, &answers);
}

#[test]
fn sbverify_differs_only_where_explained() {
    let Some(version) = version_of("sbverify", "--version", "sbverify").filter(|v| is_known("sbverify", v)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut answers = Vec::new();
    for group in GROUPS.iter() {
        let images: Vec<&Subject> = group.subjects.iter().filter(|s| s.facts.kind == FileKind::PeEfi).collect();
        // one anchor at a time, of those that firmware or a shim would have
        let wanted = ["uefi", "debian-secure-boot-ca-2016", "microsoft-uefi-ca-2011", "microsoft-uefi-ca-2023"];
        for (number, anchor) in group.trust.anchors().iter().filter(|a| wanted.contains(&a.origin.as_str())).enumerate() {
            let pem = dir.path().join("anchor.pem");
            write_pem(&pem, &[&anchor.certificate]);
            let mut trust = TrustStore::empty();
            trust.add(anchor.certificate.clone(), Purposes::UEFI, "db");
            let cache = Cache::default();
            let judge = Judge { trust: &trust, time: group.time, cache: &cache };
            answers.par_extend(images.par_iter().map(|s| {
                let ours = judge.judge(&s.facts, Some(&profile::UEFI)).signatures.iter().any(|s| s.decision == Decision::Accept);
                let output = Command::new("sbverify").arg("--cert").arg(&pem).arg(&s.path).output().unwrap();
                let name = if anchor.origin == "uefi" { format!("{} {number}", anchor.origin) } else { anchor.origin.clone() };
                let why = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
                Answers { id: format!("{} by {name}", s.id), ours: good(ours), theirs: good(output.status.success()), why }
            }));
        }
    }
    assert!(answers.len() >= 10);
    reconcile("sbverify", &version, &answers);
}

/// The module without its trailer, and the PKCS#7 in that, by `scripts/sign-file.c`: signature, 12 bytes whose last four are its length, magic.
fn split_module(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_suffix(b"~Module signature appended~\n")?;
    let (rest, info) = rest.split_at_checked(rest.len().checked_sub(12)?)?;
    let len = usize::try_from(u32::from_be_bytes(info[8..].try_into().unwrap())).unwrap();
    rest.split_at_checked(rest.len().checked_sub(len)?)
}

/// As many modules of a kernel are asked about, spread over all of them.
const MODULES: usize = 400;

#[test]
fn openssl_differs_only_where_explained_on_modules() {
    let Some(version) = version_of("openssl", "version", "OpenSSL") else { return };
    let version = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor).to_owned();
    if !is_known("openssl", &version) {
        return;
    }
    let mut groups: Vec<(Vec<(String, PathBuf)>, &TrustStore)> = Vec::new();
    let synthetic = &GROUPS[0];
    groups.push((synthetic.subjects.iter().map(|s| (s.id.clone(), s.path.clone())).collect(), &synthetic.trust));
    let mut kernel_trust = TrustStore::empty();
    if let Some(folder) = folder("debian-kernel") {
        let all = files(&folder);
        let kernel = all.iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))).expect("a kernel");
        corpus::trust::KernelKeys::read(kernel).unwrap().add_to(&mut kernel_trust);
        let id = |p: &PathBuf| (id_of("debian-kernel", &folder, p), p.clone());
        // a process for each of thousands that one key has signed takes minutes
        let step = (all.len() / MODULES).max(1);
        groups.push((all.iter().step_by(step).map(id).collect(), &kernel_trust));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut answers = Vec::new();
    for (number, (files, trust)) in groups.iter().enumerate() {
        let keys = dir.path().join(format!("{number}.pem"));
        let certificates = trust.anchors().iter().filter(|a| a.purposes.any_of(Purposes::MODULE)).map(|a| &*a.certificate);
        write_pem(&keys, &certificates.collect::<Vec<_>>());
        let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
        let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
        let judge = Judge { trust, time: time(), cache: &cache };
        answers.par_extend(files.par_iter().filter(|(id, _)| id.ends_with(".ko")).filter_map(|(id, path)| {
            let bytes = fs::read(path).unwrap();
            let (content, signature) = split_module(&bytes)?;
            let ours = judge.judge(&examiner.examine(&bytes, CAP), Some(&profile::LINUX_MODULE));
            let mut blob = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
            blob.write_all(signature).unwrap();
            // a module's signer must be one of the keyring, and the kernel asks nothing of its certificate
            let mut openssl = Command::new("openssl")
                .args(["cms", "-verify", "-binary", "-inform", "DER", "-nointern", "-noverify", "-content", "/dev/stdin", "-in"])
                .arg(blob.path())
                .args(["-out", "/dev/null", "-certfile"])
                .arg(&keys)
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // it stops reading where the signature is none
            let _ = openssl.stdin.take().unwrap().write_all(content);
            let output = openssl.wait_with_output().unwrap();
            let why = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
            Some(Answers { id: id.clone(), ours: good(ours.decision == Decision::Accept), theirs: good(output.status.success()), why })
        }));
    }
    assert!(answers.len() >= 5);
    reconcile("openssl", &version, &answers);
}

/// Digests are the same, or only one side has one: `digest`, `other`, `none`.
fn compare_digests(id: String, ours: Option<String>, theirs: Result<String, String>) -> Answers {
    let (theirs, why) = match (theirs, &ours) {
        (Ok(theirs), Some(ours)) if theirs == *ours => ("digest", String::new()),
        (Ok(theirs), _) => ("other", theirs),
        (Err(why), _) => ("none", why),
    };
    Answers { id, ours: if ours.is_some() { "digest" } else { "none" }, theirs, why }
}

fn our_digest(subject: &Subject) -> Option<String> {
    subject.facts.digest(DigestForm::Linear, DigestAlg::Sha256).map(|d| d.hex())
}

#[test]
fn the_authenticode_crate_calculates_the_same_digests() {
    let asked = GROUPS.iter().flat_map(|g| &g.subjects).filter(|s| is_pe(s));
    let answers: Vec<Answers> = asked
        .map(|s| {
            let theirs = their_digest(&s.bytes);
            compare_digests(s.id.clone(), our_digest(s), theirs)
        })
        .collect();
    reconcile("authenticode", "0.6", &answers);
}

fn their_digest(bytes: &[u8]) -> Result<String, String> {
    use object::read::pe::{PeFile32, PeFile64};
    let mut hash = Sha256::new();
    match (PeFile64::parse(bytes), PeFile32::parse(bytes)) {
        (Ok(pe), _) => authenticode_digest(&pe, &mut hash).map_err(|e| e.to_string())?,
        (_, Ok(pe)) => authenticode_digest(&pe, &mut hash).map_err(|e| e.to_string())?,
        (Err(e), _) => return Err(e.to_string()),
    }
    Ok(hex::encode(hash.finalize()))
}

#[test]
fn the_authenticode_crate_reads_the_same_signed_digests() {
    let asked = GROUPS.iter().flat_map(|g| &g.subjects).filter(|s| is_pe(s));
    let answers: Vec<Answers> = asked
        .filter_map(|s| {
            let ours = s.facts.signatures.iter().filter(|s| matches!(s.source, Source::Embedded(_)));
            let ours: Vec<String> = ours.map(|s| s.coverage.as_ref().map(|c| c.signed.hex()).unwrap_or_default()).collect();
            if ours.iter().all(String::is_empty) {
                return None;
            }
            Some(compare_digests(s.id.clone(), Some(ours.join(" ")), their_signed_digests(&s.bytes)))
        })
        .collect();
    assert!(answers.len() >= 100);
    reconcile("authenticode signatures", "0.6", &answers);
}

fn their_signed_digests(bytes: &[u8]) -> Result<String, String> {
    use object::read::pe::{PeFile32, PeFile64};
    let list = |certificates: Option<AttributeCertificateIterator<'_>>| {
        let digest = |c: Result<authenticode::AttributeCertificate<'_>, _>| -> Result<String, String> {
            let certificate = c.map_err(|e: authenticode::AttributeCertificateError| e.to_string())?;
            Ok(hex::encode(certificate.get_authenticode_signature().map_err(|e| e.to_string())?.digest()))
        };
        certificates.into_iter().flatten().map(digest).collect::<Result<Vec<_>, _>>().map(|d| d.join(" "))
    };
    match (PeFile64::parse(bytes), PeFile32::parse(bytes)) {
        (Ok(pe), _) => list(AttributeCertificateIterator::new(&pe).map_err(|e| e.to_string())?),
        (_, Ok(pe)) => list(AttributeCertificateIterator::new(&pe).map_err(|e| e.to_string())?),
        (Err(e), _) => Err(e.to_string()),
    }
}

#[test]
fn lief_calculates_the_same_digests() {
    let asked: Vec<&Subject> = GROUPS.iter().flat_map(|g| &g.subjects).filter(|s| is_pe(s)).collect();
    let queries: Vec<_> = asked.iter().map(|s| serde_json::json!({ "id": s.id, "path": s.path })).collect();
    let Some((version, theirs)) = python("lief-digest", &queries) else { return };
    if !is_known("lief digests", &version) {
        return;
    }
    let answers: Vec<Answers> = asked
        .iter()
        .map(|s| {
            let (has_digest, text) = theirs.get(&s.id).unwrap_or_else(|| panic!("LIEF gave no answer about {}", s.id)).clone();
            compare_digests(s.id.clone(), our_digest(s), if has_digest { Ok(text) } else { Err(text) })
        })
        .collect();
    reconcile("lief digests", &version, &answers);
}

#[test]
fn the_list_is_well_formed_and_its_patterns_fit() {
    assert!(!entries().is_empty());
    assert!(
        fits("synth/*.sys", "synth/a/b.sys")
            && fits("a*b*c", "abbc")
            && fits("*", "")
            && !fits("synth/*.sys", "synth/a.exe")
            && !fits("a", "ab")
    );
}
