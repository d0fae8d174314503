//! Windows' boot manager, its OS loader, and the kernel: who verifies the next one, and what is measured of it (`wbcl.h`; KB5025885).
//!
//! ```text
//! firmware ─db, dbx─► bootmgfw.efi ─► \Windows\System32\winload.efi ─► \Windows\System32\ntoskrnl.exe
//!                        │ looks at its own version in dbx       both by the profile `windows-boot`
//! PCR 4  ◄───────────────┘                 PCR 13, PCR 14 ◄──────┴─────────────┘
//! ```
//!
//! db says what firmware starts and nothing more: what the boot manager starts must be Microsoft's by the roots that are built in, or by the
//! authorities that the boot manager's own signature carries, whether Secure Boot is on or not. A boot manager that says its security version
//! compares it with dbx and ends if it is too low; an older one that says none does not know of it. No boot configuration is read: the paths are
//! those that an installation has.

use std::sync::Arc;

use hvci_engine::{
    digest::DigestAlg,
    facts::{DigestForm, Facts},
    policy::{Decision, Judge, Profile, Verdict, secure_boot::BootVerdict},
    signature::{
        cert::Certificate,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};

use super::{Asked, Booting, End, Fault, Stage, StageKind, kernel, reason};
use crate::measure::wbcl::{LoadedDriver, measure_driver};

const LOADER: &str = "\\Windows\\System32\\winload.efi";
const KERNEL: &str = "\\Windows\\System32\\ntoskrnl.exe";
const PROFILE: &str = "windows-boot";

/// An image that Windows started or loaded by itself.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its path.
    pub path: String,
    /// The facts of it.
    pub facts: Facts,
    /// Who signed it.
    pub publisher: String,
}

/// The boot manager.
pub(super) fn run(booting: &mut Booting<'_, '_>, stage: usize, facts: &Facts) -> Result<End, Fault> {
    let says_version = facts.image.as_ref().is_some_and(|image| image.security_version.is_some());
    if booting.secure_boot
        && says_version
        && let Some(revoked) = booting.policy.revoked_version(facts)
    {
        let why = format!("the boot manager ends itself: {} [{}]", revoked.detail, revoked.code.id());
        return Ok(booting.stopped(stage, why));
    }
    let anchors = carried_authorities(facts);
    let mut trust = TrustStore::builtin();
    for anchor in &anchors {
        trust.add(Arc::clone(anchor), Purposes::KERNEL, "the boot manager's signature");
    }
    let mut modules = Vec::new();
    let mut image = Vec::new();
    for (path, kind, program) in [(LOADER, StageKind::OsLoader, Asked::BootManager), (KERNEL, StageKind::NtKernel, Asked::OsLoader)] {
        let Some(bytes) = booting.disk.read(path)? else { return Ok(booting.stopped(stage, format!("{program}: there is no {path}"))) };
        let facts = booting.facts(&bytes);
        let judge = Judge { trust: &trust, time: UnixTime(0), cache: &booting.cache };
        let verdict = judge.judge(&facts, Profile::find(PROFILE));
        let publisher = verdict.publisher.clone().unwrap_or_default();
        let verdict = of_boot(verdict);
        let refused = (verdict.decision != Decision::Accept).then(|| reason(&verdict));
        let next = booting.push(Stage::new(kind, path, program, &facts, Some(verdict)));
        if let Some(why) = refused {
            return Ok(booting.stopped(next, format!("{program}: {path} is not started: {why}")));
        }
        booting.note(next, format!("signed by {publisher}"));
        let module = Module { path: path.to_owned(), facts, publisher };
        measure(booting, &module)?;
        modules.push(module);
        image = bytes;
    }
    booting.exit_boot_services()?;
    let anchors = anchors.iter().map(|anchor| anchor.der().to_vec()).collect();
    Ok(kernel::start_windows(KERNEL.to_owned(), image, booting.secure_boot, anchors, modules))
}

/// The certificates of authorities that come with the image's signatures.
fn carried_authorities(facts: &Facts) -> Vec<Arc<Certificate>> {
    let is_authority = |certificate: &&Arc<Certificate>| certificate.basic_constraints().is_some_and(|constraints| constraints.ca);
    let carried = facts.signatures.iter().flat_map(|signature| &signature.certificates);
    carried.filter_map(|index| facts.certificates.get(*index)).filter(is_authority).cloned().collect()
}

/// The same in the words of a boot: no entry of a database decides.
fn of_boot(verdict: Verdict) -> BootVerdict {
    BootVerdict { decision: verdict.decision, authority: None, findings: verdict.findings }
}

/// The module in PCR 13, and whose it is in PCR 14.
fn measure(booting: &mut Booting<'_, '_>, module: &Module) -> Result<(), Fault> {
    let facts = &module.facts;
    let Some(authentihash) = facts.digest(DigestForm::Linear, DigestAlg::Sha256).or_else(|| facts.firmware_digest(DigestAlg::Sha256))
    else {
        return Ok(());
    };
    let (path, publisher, key) = (&module.path, &module.publisher, signing_key(facts));
    Ok(measure_driver(&mut booting.recorder, &LoadedDriver { path, size: facts.size, authentihash, publisher, key })?)
}

/// SubjectPublicKeyInfo of whoever made the first signature.
pub fn signing_key(facts: &Facts) -> Option<&[u8]> {
    let certificate = facts.signatures.iter().find_map(|signature| signature.signer.as_ref()?.certificate)?;
    Some(facts.certificates.get(certificate)?.spki())
}
