//! The drivers of a machine that runs: each is decided about, by the engine where HVCI is on and by the guest's kernel where it is not.
//!
//! | | HVCI on | HVCI off |
//! |---|---|---|
//! | signed by a key of the kernel | loaded through the engine, page by page | loaded |
//! | wrong signature | refused | refused |
//! | unsigned Linux module | refused | refused under lockdown, else loaded |

use std::sync::Arc;

use hvci_engine::{
    crypto,
    digest::DigestAlg,
    examine::Examiner,
    facts::{Facts, FileKind},
    finding::{Code, Severity},
    load::Loader,
    policy::{Decision, Judge, Profile, Verdict},
    signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore},
    time::UnixTime,
};

use crate::{
    attest::evidence::{DriverEvent, Refusal},
    boot::{
        Disk, RunningKernel,
        windows::{Module, signing_key},
    },
    guest_loader::{Guest, Links, PartialKernel, pages_of, place, region_of},
    host::{Config, SimHost},
};

use super::{VmError, profile::Profile as MachineProfile};

/// Where a machine's drivers are on its disk.
const FOLDER: &str = "/drivers";
/// RAM of the guest in pages, and the first that drivers are put into.
const PAGES: u64 = 1 << 19;
const FIRST: u64 = 0x100;
const MAX_DRIVERS: usize = 1000;
const MAX_UNPACKED: usize = 512 << 20;

/// A driver about which was decided.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) event: DriverEvent,
    /// Its length in bytes, unpacked.
    pub(super) size: u64,
    /// Whose it is: SubjectPublicKeyInfo.
    pub(super) key: Option<Vec<u8>>,
}

impl Decided {
    /// What a kernel of Windows started by itself, about which was decided when it did.
    pub(super) fn of_module(module: &Module) -> DriverEvent {
        DriverEvent { signer: Some(module.publisher.clone()), ..event(&module.path, &[], &module.facts, None, None) }
    }
}

/// Decides about each driver of the disk, in the order of their names.
pub(super) fn load(disk: &Disk, kernel: &RunningKernel, profile: &MachineProfile, time: UnixTime) -> Result<Vec<Decided>, VmError> {
    let paths: Vec<&str> = disk.files(FOLDER).take(MAX_DRIVERS).collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let mut trust = TrustStore::builtin();
    let (anchors, purposes) = kernel.anchors();
    for der in anchors {
        let _ = trust.add_der(&der, purposes, kernel.path.as_str());
    }
    let mut files = Vec::new();
    for path in paths {
        files.push((path.to_owned(), disk.read(path)?.unwrap_or_default()));
    }
    if profile.hvci { through_engine(&files, trust, time) } else { Ok(by_kernel(&files, &trust, kernel.lockdown, time)) }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn facts_of(file: &[u8]) -> Facts {
    let cache = Cache::default();
    Examiner { cache: &cache, catalogs: &CatalogIndex::default(), digests: &[] }.examine(file, MAX_UNPACKED)
}

fn through_engine(files: &[(String, Vec<u8>)], trust: TrustStore, time: UnixTime) -> Result<Vec<Decided>, VmError> {
    let config = Config { pages: PAGES, ..Config::default() };
    let (host, partition) = SimHost::with_partition(&config).map_err(|status| VmError::Guest(status.to_string()))?;
    let mut kernel = PartialKernel::default();
    let links: Vec<Links> = files.iter().map(|(path, file)| Links::of(name_of(path), file)).collect();
    links.iter().for_each(|file| kernel.leave_to(file));
    let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(kernel.clone()));
    let guest = Guest::new(&host, &loader, time, kernel);
    let (mut events, mut next) = (Vec::new(), FIRST);
    for driver in files {
        let (path, file) = driver;
        let facts = facts_of(file);
        let base = region_of(file);
        let pages = place(file, base).map_or(0, |memory| pages_of(&memory, base));
        let room = next.checked_add(pages).filter(|end| *end <= PAGES);
        let refused = match room {
            None => Some(Refusal { code: Code::MemLayout, detail: "the guest's memory is full".to_owned() }),
            Some(_) => {
                let tried = guest.load(name_of(path), file, next, 0).map_err(|fault| VmError::Guest(fault.to_string()))?;
                match &tried.attempt.outcome {
                    Ok(_) => None,
                    Err(refusal) => Some(Refusal { code: refusal.note.code, detail: refusal.note.detail.clone() }),
                }
            }
        };
        if refused.is_none() {
            next = room.unwrap_or(next);
        }
        let key = signing_key(&facts).map(<[u8]>::to_vec);
        events.push(Decided { event: event(path, file, &facts, None, refused), size: facts.size, key });
    }
    Ok(events)
}

fn by_kernel(files: &[(String, Vec<u8>)], trust: &TrustStore, lockdown: bool, time: UnixTime) -> Vec<Decided> {
    let cache = Cache::default();
    let judge = Judge { trust, time, cache: &cache };
    let decide = |driver: &(String, Vec<u8>)| {
        let facts = facts_of(&driver.1);
        let verdict = judge.judge(&facts, Some(Profile::for_kind(facts.kind)));
        let unsigned = facts.signatures.is_empty() && matches!(facts.kind, FileKind::ElfModule | FileKind::ElfOther);
        let refused = match verdict.decision {
            Decision::Accept => None,
            _ if unsigned && !lockdown => None,
            _ => worst(&verdict),
        };
        let key = signing_key(&facts).map(<[u8]>::to_vec);
        Decided { event: event(&driver.0, &driver.1, &facts, Some(&verdict), refused), size: facts.size, key }
    };
    files.iter().map(decide).collect()
}

/// What refused it first.
fn worst(verdict: &Verdict) -> Option<Refusal> {
    let finding = verdict.findings.iter().find(|f| f.severity >= Severity::Unknown)?;
    Some(Refusal { code: finding.code, detail: finding.detail.clone() })
}

fn event(path: &str, file: &[u8], facts: &Facts, verdict: Option<&Verdict>, refused: Option<Refusal>) -> DriverEvent {
    let signed = facts.signatures.iter().find_map(|s| s.coverage.as_ref()?.calculated);
    let whole = || crypto::digest(DigestAlg::Sha256, &[file]);
    let authentihash = signed.or_else(|| facts.digests.first().map(|d| d.digest)).unwrap_or_else(whole);
    let signer = verdict.and_then(|v| v.publisher.clone()).or_else(|| {
        let signer = facts.signatures.iter().find_map(|s| s.signer.as_ref())?;
        let certificate = signer.certificate.and_then(|i| facts.certificates.get(i));
        Some(certificate.map_or_else(|| signer.identity(), |c| c.subject_short()))
    });
    let version = facts.image.as_ref().and_then(|image| image.file_version.clone());
    DriverEvent { path: path.to_owned(), authentihash, signer, version, refused }
}
