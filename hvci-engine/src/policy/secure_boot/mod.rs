//! What may start under UEFI Secure Boot: the decision of the firmware ([`Firmware`]) and that of shim behind it ([`Shim`]).
//!
//! ```text
//! Facts ─┬─ Firmware (db, dbx, dbt) ──────────────────────────────► BootVerdict (authority | findings)
//!        └─ Shim (vendor dbx, dbx, MokListX; db, MokListRT; SbatLevel) ─► BootVerdict
//! ```
//!
//! Both verify a signature by [`Judge`], under the audit's own `uefi` profile with the one certificate at hand as the anchor; what they add is
//! which list counts for what. Nobody here looks at a clock. The rules that differ between [`Behaviour`]s are in `docs/secure-boot.md`.

mod firmware;
mod shim;
mod svn;

pub use firmware::Firmware;
pub use shim::{SbatUse, Shim};
pub use svn::is_boot_manager;

use std::sync::Arc;

use super::{
    Decision, Finding,
    judge::{Judge, finding},
    profile::{Profile, UEFI},
};
use crate::{
    budget::Budget,
    digest::{Digest, DigestAlg},
    facts::{DigestForm, Facts, Signature, Source},
    finding::{Code, Note, Severity},
    signature::{
        cache::Cache,
        cert::Certificate,
        signature_list::{Entry, SignatureDatabase, SignatureType},
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};

/// Whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// What the specification says, read to its end: nothing that is revoked starts, however it is signed.
    Strict,
    /// What edk2's DxeImageVerificationLib and shim do, gaps included.
    Edk2,
}

/// What a stage of the boot says of the image that it is to start.
#[derive(Clone, Debug, PartialEq)]
pub struct BootVerdict {
    /// Whether it starts it.
    pub decision: Decision,
    /// By what, or with [`Decision::Refuse`] against what: the entry that decided, which is measured.
    pub authority: Option<Authority>,
    /// Why not, and what else is noteworthy; worst first.
    pub findings: Vec<Finding>,
}

/// The entry of a database that decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// Name of the database.
    pub database: &'static str,
    /// What the entry is.
    pub kind: SignatureType,
    /// The entry: its owner and the certificate or digest.
    pub entry: Entry,
    /// The certificate's subject, or the digest.
    pub subject: String,
    /// Which signature of the facts it vouches for; `None` where it is the image's digest.
    pub signature: Option<usize>,
    /// Who made that signature, in short.
    pub signer: Option<String>,
}

/// A database with its certificates ready to verify by.
#[derive(Clone, Debug)]
pub struct KeyDatabase {
    name: &'static str,
    lists: SignatureDatabase,
    /// Each certificate that can be read, alone, in the order of the entries.
    keys: Vec<(Entry, Arc<Certificate>, TrustStore)>,
    /// All of them.
    all: TrustStore,
}

impl KeyDatabase {
    /// The database called `name`.
    pub fn new(name: &'static str, lists: SignatureDatabase, cache: &Cache) -> Self {
        let (mut keys, mut all) = (Vec::new(), TrustStore::empty());
        for (kind, entry) in lists.entries() {
            if kind != SignatureType::X509 {
                continue;
            }
            // what cannot be read verifies nothing
            let Ok(certificate) = cache.certificate(&entry.data) else { continue };
            let mut alone = TrustStore::empty();
            for store in [&mut alone, &mut all] {
                store.add(Arc::clone(&certificate), Purposes::UEFI, name);
            }
            keys.push((entry.clone(), certificate, alone));
        }
        Self { name, lists, keys, all }
    }

    /// The lists.
    pub fn lists(&self) -> &SignatureDatabase {
        &self.lists
    }

    /// Algorithms of the digests that it lists, each once.
    fn digests(&self) -> Vec<DigestAlg> {
        let mut algs: Vec<DigestAlg> = self.lists.lists().iter().filter_map(|list| list.kind().digest()).collect();
        algs.sort_unstable();
        algs.dedup();
        algs
    }

    /// The entry that lists one of these digests.
    fn of_digest(&self, digests: &[Digest]) -> Option<Authority> {
        let listed = |kind: SignatureType, entry: &Entry| {
            digests.iter().find(|d| kind.digest() == Some(d.alg()) && entry.data == d.as_bytes()).map(ToString::to_string)
        };
        self.lists.entries().find_map(|(kind, entry)| {
            let subject = listed(kind, entry)?;
            Some(Authority { database: self.name, kind, entry: entry.clone(), subject, signature: None, signer: None })
        })
    }

    /// The first certificate, for which `usable` holds, that vouches for the image by this signature.
    fn of_signature(
        &self,
        asked: &Asked<'_>,
        index: usize,
        signature: &Signature,
        usable: impl Fn(&Certificate) -> bool,
    ) -> Option<Authority> {
        // most signatures are by none of them, which one search tells
        asked.path(&self.all, index, signature)?;
        self.keys.iter().filter(|(_, certificate, _)| usable(certificate)).find_map(|(entry, certificate, alone)| {
            let signer = asked.path(alone, index, signature)?;
            Some(Authority {
                database: self.name,
                kind: SignatureType::X509,
                entry: entry.clone(),
                subject: certificate.subject_short(),
                signature: Some(index),
                signer,
            })
        })
    }
}

/// The image in question.
struct Asked<'a> {
    facts: &'a Facts,
    cache: &'a Cache,
}

impl Asked<'_> {
    /// Signatures in the certificate table; nested ones are Windows' affair.
    fn signatures(&self) -> impl Iterator<Item = (usize, &Signature)> {
        self.facts.signatures.iter().enumerate().filter(|(_, s)| matches!(s.source, Source::Embedded(_)))
    }

    /// Whether the signature is intact, of this image, and leads to an anchor of `trust`: then who made it.
    fn path(&self, trust: &TrustStore, index: usize, signature: &Signature) -> Option<Option<String>> {
        let judge = Judge { trust, time: UnixTime(0), cache: self.cache };
        let alone = judge.judge_alone(self.facts, index, signature, &UEFI, &mut Budget::path_building());
        (alone.verdict.decision == Decision::Accept).then_some(alone.verdict.publisher)
    }

    /// What is wrong with the signature, whoever is trusted: the findings about it that do not depend on an anchor.
    fn faults(&self, index: usize, signature: &Signature) -> Vec<Finding> {
        let none = TrustStore::empty();
        let judge = Judge { trust: &none, time: UnixTime(0), cache: self.cache };
        let alone = judge.judge_alone(self.facts, index, signature, &UEFI, &mut Budget::path_building());
        let of_trust = [Code::PkiUntrusted, Code::PkiIncomplete];
        alone.findings.into_iter().filter(|f| f.severity >= Severity::Unknown && !of_trust.contains(&f.code)).collect()
    }

    /// The certificates that came with the signature.
    fn carried<'s>(&'s self, signature: &'s Signature) -> impl Iterator<Item = &'s Certificate> {
        signature.certificates.iter().filter_map(|i| self.facts.certificates.get(*i)).map(AsRef::as_ref)
    }

    /// The certificate of who made the signature.
    fn leaf(&self, signature: &Signature) -> Option<&Certificate> {
        self.facts.certificates.get(signature.signer.as_ref()?.certificate?).map(AsRef::as_ref)
    }

    /// The image's digest as firmware calculates it.
    fn digest(&self, alg: DigestAlg) -> Option<Digest> {
        self.facts.firmware_digest(alg).copied()
    }

    /// Every digest of the image that is known, in whichever form.
    fn all_digests(&self) -> Vec<Digest> {
        let of_image = [DigestForm::Linear, DigestForm::LinearPadded, DigestForm::SectionSum];
        self.facts.digests.iter().filter(|d| of_image.contains(&d.form)).map(|d| d.digest).collect()
    }

    fn is_unsigned(&self) -> bool {
        self.facts.signatures.is_empty() && !self.facts.notes.iter().any(|n| n.code == Code::SigEntry)
    }
}

/// A finding of this code, as bad as it is by default.
fn found(code: Code, detail: impl Into<String>, signature: Option<usize>) -> Finding {
    finding(Note::new(code, detail), &UEFI, signature)
}

/// What of the image as a file firmware cannot take.
fn of_file(facts: &Facts, profile: &Profile, counts: impl Fn(Code) -> bool) -> Vec<Finding> {
    facts.notes.iter().filter(|n| counts(n.code)).map(|n| finding(n.clone(), profile, None)).collect()
}

fn accept(authority: Authority, notes: Vec<Finding>) -> BootVerdict {
    BootVerdict { decision: Decision::Accept, authority: Some(authority), findings: notes }
}

fn refuse(reason: Finding, against: Option<Authority>, mut notes: Vec<Finding>) -> BootVerdict {
    notes.push(reason);
    notes.sort_by_key(|f| (std::cmp::Reverse(f.severity), f.signature, f.code));
    BootVerdict { decision: Decision::Refuse, authority: against, findings: notes }
}
