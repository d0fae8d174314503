//! The decision itself.

use std::{cmp::Reverse, sync::Arc};

use super::{
    Decision, Finding, PathStep, SignatureVerdict, Verdict,
    chain_rules::{examine_path, examine_timestamp_path, outside_validity, weak_key},
    profile::{Counts, Profile, Usage, Validity},
};
use crate::{
    budget::Budget,
    digest::{Digest, DigestAlg},
    facts::{Coverage, DigestForm, Facts, FileKind, Signature, SignatureCheck, Signer, Source, Timestamp},
    finding::{Code, Note, Severity},
    oid,
    signature::{
        cache::Cache,
        cert::Certificate,
        chain::{self, Path, PathError, PathErrorKind},
        trust::{Anchor, Purposes, TrustStore},
    },
    time::UnixTime,
};

/// SHA-1 code signatures timestamped from then on are not trusted by Windows (Microsoft, "Windows Enforcement of SHA1 Certificates").
const SHA1_CUTOFF: UnixTime = UnixTime(1_451_606_400);

/// What verdicts are made with: trust, the time they are for, and what was learned from earlier files.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// Who is trusted for what.
    pub trust: &'a TrustStore,
    /// The time the verdict is for.
    pub time: UnixTime,
    /// Arithmetic that need not be done twice.
    pub cache: &'a Cache,
}

/// What there is to say of one signature.
pub(super) struct Alone {
    pub verdict: SignatureVerdict,
    /// Why its signer is refused whatever else signed the file.
    pub blocked: Vec<Note>,
    pub findings: Vec<Finding>,
}

impl Judge<'_> {
    /// What `profile` says of a file with these facts; `None` for `auto`, the profile of the file's kind.
    pub fn judge(&self, facts: &Facts, profile: Option<&Profile>) -> Verdict {
        let profile = profile.unwrap_or_else(|| Profile::for_kind(facts.kind));
        let mut findings: Vec<Finding> = facts.notes.iter().map(|n| finding(n.clone(), profile, None)).collect();

        let mut budget = Budget::path_building();
        let mut signatures: Vec<SignatureVerdict> = Vec::with_capacity(facts.signatures.len());
        let mut blocked_signers: Vec<Note> = Vec::new();
        let mut of_signatures: Vec<Vec<Finding>> = Vec::with_capacity(facts.signatures.len());
        for (index, signature) in facts.signatures.iter().enumerate() {
            let Alone { verdict, blocked, findings } = self.judge_alone(facts, index, signature, profile, &mut budget);
            blocked_signers.extend(blocked);
            of_signatures.push(findings);
            signatures.push(verdict);
        }
        let deciding = match profile.counts {
            Counts::Any => signatures.iter().position(|s| s.decision == Decision::Accept),
            Counts::First => (!signatures.is_empty()).then_some(0),
        };
        for (index, mut list) in of_signatures.into_iter().enumerate() {
            if deciding.is_some_and(|d| d != index) {
                // it does not decide, so what is wrong with it cannot refuse the file
                list.iter_mut().for_each(|f| f.severity = f.severity.min(Severity::Warning));
            }
            findings.append(&mut list);
        }

        let of_file = facts.digests.iter().find_map(|d| Some((d.digest, self.trust.blocked().file(&d.digest)?)));
        if let Some((digest, reason)) = of_file {
            findings.push(finding(Note::new(Code::PolBlocked, reason).of(digest.to_string()), profile, None));
        }
        // a rule that refuses goes before any that accepts: another good signature does not help
        findings.extend(blocked_signers.into_iter().map(|note| finding(note, profile, None)));
        if !profile.kinds.contains(&facts.kind) {
            let detail = format!("{} does not judge a {}", profile.name, facts.kind);
            findings.push(finding(Note::new(Code::PolProfile, detail), profile, None));
        } else if signatures.is_empty() && !has_input_fault(facts) {
            findings.push(finding(Note::new(Code::SigNone, unsigned_detail(facts)), profile, None));
        } else if matches!(profile.usage, Usage::Kernel | Usage::KernelOrCrossSigned) && deciding.is_none() && !signatures.is_empty() {
            findings.push(finding(Note::new(Code::PolNotWhql, ""), profile, None));
        }
        // what other profiles only warn of
        let lint = |f: &Finding| {
            f.severity == Severity::Error && f.code.id().starts_with("HVCI-IMG") && f.code.default_severity() < Severity::Error
        };
        if findings.iter().any(lint) {
            findings.push(finding(Note::new(Code::PolLint, ""), profile, None));
        }
        findings.sort_by_key(|f| (Reverse(f.severity), f.signature, f.code));

        let publisher = deciding
            .or_else(|| facts.signatures.iter().position(|s| s.signer.as_ref().is_some_and(|s| s.check.is_valid())))
            .and_then(|i| signatures.get(i)?.publisher.clone());
        Verdict { profile: profile.name.to_owned(), time: self.time, decision: decide(&findings), publisher, findings, signatures }
    }

    /// One signature of the file, the one of this index, as if there were no other.
    pub(super) fn judge_alone(&self, facts: &Facts, index: usize, signature: &Signature, profile: &Profile, budget: &mut Budget) -> Alone {
        let (mut verdict, mut notes) = self.judge_signature(facts, signature, profile, budget);
        let blocked = notes.extract_if(.., |note| note.code == Code::PolBlocked).collect();
        if !is_proven(facts, signature, profile, &verdict) && notes.iter().all(|n| profile.severity(n.code) < Severity::Unknown) {
            notes.push(Note::new(Code::SigInvalid, "nothing in the facts shows that it verifies"));
        }
        let findings: Vec<Finding> = notes.into_iter().map(|n| finding(n, profile, Some(index))).collect();
        verdict.decision = decide(&findings);
        Alone { verdict, blocked, findings }
    }

    fn judge_signature(
        &self,
        facts: &Facts,
        signature: &Signature,
        profile: &Profile,
        budget: &mut Budget,
    ) -> (SignatureVerdict, Vec<Note>) {
        let mut notes = signature.notes.clone();
        let mut verdict = SignatureVerdict {
            source: signature.source.clone(),
            decision: Decision::Refuse,
            publisher: None,
            signing_time: None,
            path: Vec::new(),
            timestamp_path: Vec::new(),
        };
        if !profile.catalogs && matches!(signature.source, Source::Catalog { .. }) {
            notes.push(Note::new(Code::SigNone, format!("a catalog lists it, and {} looks at none", profile.name)));
        }
        examine_coverage(facts, signature, profile, &mut notes);
        let Some(signer) = &signature.signer else { return (verdict, notes) };

        let leaf = match signer.certificate.and_then(|i| facts.certificates.get(i)) {
            Some(leaf) => Arc::clone(leaf),
            None => {
                // a module's signer, or one whose certificate is missing, which is noted
                if profile.anchors.any_of(Purposes::MODULE) {
                    self.judge_with_keyring(signer, &mut verdict, &mut notes);
                }
                return (verdict, notes);
            }
        };
        verdict.publisher = Some(leaf.subject_short());
        if let Some(weak) = leaf.public_key().ok().and_then(|k| weak_key(k.kind())) {
            notes.push(Note::new(Code::SigWeakKey, weak).of(leaf.subject()));
        }
        if profile.validity == Validity::AtSigning {
            self.judge_timestamps(facts, signature, profile, &leaf, budget, &mut verdict, &mut notes);
        }
        let weak = signer.signed_digest.is_some_and(|d| matches!(d.alg(), DigestAlg::Md5 | DigestAlg::Sha1));
        if weak
            && profile.usage == Usage::CodeSigning
            && let Some(at) = verdict.signing_time.filter(|t| *t >= SHA1_CUTOFF)
        {
            notes.push(Note::new(Code::TspCutoff, format!("timestamped {at}")));
        }
        let lifetime = leaf.ekus().is_some_and(|e| e.contains(&oid::EKU_LIFETIME));
        let at = verdict.signing_time.filter(|_| !lifetime).unwrap_or(self.time);
        if lifetime && verdict.signing_time.is_some() && outside_validity(&leaf, at).is_some() {
            notes.push(Note::new(Code::TspLifetime, format!("valid until {}", leaf.not_after())).of(leaf.subject()));
        }

        match chain::build(&leaf, &facts.certificates, self.trust, self.cache, budget) {
            Ok(paths) => {
                notes.extend(paths.iter().find_map(|path| self.blocked(&path.certificates, at)));
                let judged = paths.iter().map(|p| (p, examine_path(p, profile, at)));
                let worst = |notes: &[Note]| notes.iter().map(|n| profile.severity(n.code)).max();
                if let Some((path, path_notes)) = judged.min_by_key(|(_, notes)| (worst(notes), notes.len())) {
                    verdict.path = steps(path);
                    notes.extend(path_notes);
                    notes.extend(unused_certificates(facts, signature, path));
                }
            }
            Err(error) if profile.anchors.any_of(Purposes::MODULE) && !self.trust.has_module_keyring() => {
                notes.push(Note::new(Code::PkiNoKeyring, "").of(error.certificate.subject()));
            }
            Err(error) => notes.push(test_root(&error).unwrap_or_else(|| error.note())),
        }
        (verdict, notes)
    }

    /// The first certificate of a path that is refused for a signature made at `at`.
    fn blocked(&self, path: &[Arc<Certificate>], at: UnixTime) -> Option<Note> {
        path.iter().find_map(|c| Some(Note::new(Code::PolBlocked, self.trust.blocked().certificate(c, at)?).of(c.subject())))
    }

    /// The keys of the keyring that a module's signer may be.
    fn keys_of(&self, signer: &Signer) -> impl Iterator<Item = &Anchor> {
        self.trust.anchors().iter().filter(|a| a.purposes.any_of(Purposes::MODULE) && signer.names(&a.certificate))
    }

    /// Verifies what [`judge`](Self::judge) will ask the keyring for, so that a cache that remembers signatures knows the answer.
    pub(crate) fn verify_with_keyring(&self, facts: &Facts) {
        for signer in facts.signatures.iter().filter_map(|s| s.signer.as_ref()).filter(|s| s.certificate.is_none()) {
            let _ = self.keys_of(signer).any(|anchor| self.cache.check_made_by(signer, &anchor.certificate).is_valid());
        }
    }

    /// A signature that names its key and carries no certificate is verified with the keyring's.
    fn judge_with_keyring(&self, signer: &Signer, verdict: &mut SignatureVerdict, notes: &mut Vec<Note>) {
        let wanted = || signer.identity();
        if signer.check == SignatureCheck::Unsupported {
            return;
        }
        if !self.trust.has_module_keyring() {
            notes.push(Note::new(Code::PkiNoKeyring, wanted()));
            return;
        }
        let mut keys = self.keys_of(signer).peekable();
        if keys.peek().is_none() {
            notes.push(Note::new(Code::PkiNoKey, wanted()));
            return;
        }
        let mut unsupported = false;
        for anchor in keys {
            match self.cache.check_made_by(signer, &anchor.certificate) {
                // module signatures never were bare hashes
                SignatureCheck::Valid => {
                    notes.extend(self.blocked(core::slice::from_ref(&anchor.certificate), self.time));
                    verdict.path = vec![step(&anchor.certificate, Some(&anchor.origin))];
                    verdict.publisher = Some(anchor.certificate.subject_short());
                    return;
                }
                SignatureCheck::Unsupported => unsupported = true,
                _ => {}
            }
        }
        notes.push(Note::new(if unsupported { Code::SigUnsupported } else { Code::SigInvalid }, wanted()));
    }

    #[expect(clippy::too_many_arguments, reason = "what a signature is judged by, and where the verdict goes")]
    fn judge_timestamps(
        &self,
        facts: &Facts,
        signature: &Signature,
        profile: &Profile,
        leaf: &Certificate,
        budget: &mut Budget,
        verdict: &mut SignatureVerdict,
        notes: &mut Vec<Note>,
    ) {
        if signature.timestamps.is_empty() {
            notes.push(Note::new(Code::TspNone, "").of(leaf.subject()));
        }
        for timestamp in &signature.timestamps {
            notes.extend(timestamp.notes.iter().cloned());
            match self.proven_time(facts, timestamp, profile, budget) {
                Ok(Some((time, path))) if verdict.signing_time.is_none() => {
                    verdict.signing_time = Some(time);
                    verdict.timestamp_path = steps(&path);
                }
                Ok(_) => {}
                Err(note) => notes.push(match timestamp.span {
                    Some(span) => note.at(span),
                    None => note,
                }),
            }
        }
    }

    /// The time that a timestamp proves; `None` where its own notes say why it proves none.
    fn proven_time(
        &self,
        facts: &Facts,
        timestamp: &Timestamp,
        profile: &Profile,
        budget: &mut Budget,
    ) -> Result<Option<(UnixTime, Path<'_>)>, Note> {
        let broken = timestamp.notes.iter().any(|n| {
            matches!(
                n.code,
                Code::TspMalformed | Code::TspInvalid | Code::TspImprint | Code::TspNoSigner | Code::TspBinding | Code::SigUnsupported
            )
        });
        let (Some(time), Some(signer), false) = (timestamp.time, &timestamp.signer, broken) else { return Ok(None) };
        let Some(leaf) = signer.certificate.and_then(|i| facts.certificates.get(i)).filter(|_| signer.check.is_valid()) else {
            return Ok(None);
        };
        let paths = chain::build(leaf, &facts.certificates, self.trust, self.cache, budget).map_err(|e| {
            let Note { code, detail, subject, .. } = e.note();
            Note { code: Code::TspUntrusted, span: None, subject, detail: format!("{}: {detail}", code.title()) }
        })?;
        let mut reason = None;
        for path in paths {
            match examine_timestamp_path(&path, profile, time) {
                None => return Ok(Some((time, path))),
                Some(note) => reason = reason.or(Some(note)),
            }
        }
        reason.map_or(Ok(None), Err)
    }
}

/// Roots that Microsoft signs tests and previews with, and what the driver kit's own test certificates are called (App Control's well-known roots
/// 0x09 to 0x0E; windows-driver-docs, "Test Signing"). A name proves nothing, and nothing is trusted for it: it only tells what refuses.
const TEST_ROOTS: [&str; 6] = [
    "Microsoft Test Root Authority",
    "Microsoft Testing Root Certificate Authority 2010",
    "Microsoft Testing PCA 2010",
    "Microsoft Development Root Certificate Authority 2014",
    "Microsoft Digital Media Authority 2005",
    "WDKTestCert",
];

/// That a chain without an anchor ends at a test root.
fn test_root(error: &PathError) -> Option<Note> {
    let open_end = matches!(error.kind, PathErrorKind::UntrustedRoot | PathErrorKind::NoIssuer);
    let (subject, issuer) = (error.certificate.subject(), error.certificate.issuer());
    let named = TEST_ROOTS.iter().any(|root| [&subject, &issuer].iter().any(|name| name.starts_with(&format!("CN={root}"))));
    (open_end && named).then(|| Note::new(Code::PkiTestRoot, format!("its issuer is {issuer}")).of(subject))
}

/// Whether the facts say everything that a signature which counts must have: the absence of faults is no proof, for whoever wrote the facts
/// may have left them out.
fn is_proven(facts: &Facts, signature: &Signature, profile: &Profile, verdict: &SignatureVerdict) -> bool {
    let Some(signer) = &signature.signer else { return false };
    // without a certificate it has a path only if a key of the keyring made it
    let by_key = signer.certificate.is_none() || signer.check.is_valid();
    let of_file = match &signature.coverage {
        Some(coverage) => calculated(facts, coverage, profile) == Some(coverage.signed),
        None => signature.source == Source::CatalogItself,
    };
    by_key && of_file && !verdict.path.is_empty()
}

/// The file's digest in the form that the profile's loader hashes.
fn calculated(facts: &Facts, coverage: &Coverage, profile: &Profile) -> Option<Digest> {
    if (profile.form, coverage.form) != (DigestForm::SectionSum, DigestForm::Linear) {
        return coverage.calculated;
    }
    facts.firmware_digest(coverage.signed.alg()).copied()
}

/// Whether the file is the one that was signed, in the form that the profile's loader hashes.
fn examine_coverage(facts: &Facts, signature: &Signature, profile: &Profile, notes: &mut Vec<Note>) {
    if let Some(coverage) = &signature.coverage {
        let calculated = calculated(facts, coverage, profile);
        if calculated != Some(coverage.signed) {
            let calculated = calculated.map_or_else(|| "none".to_owned(), |c| c.hex());
            let note = Note::new(Code::SigDigestMismatch, format!("signed {}, calculated {calculated}", coverage.signed));
            notes.push(match signature.span {
                Some(span) => note.at(span),
                None => note,
            });
        }
    }
    if let Some(pages) = signature.page_hashes.as_ref().filter(|p| !p.mismatches.is_empty()) {
        let first: Vec<String> = pages.mismatches.iter().take(4).map(|o| format!("{o:#x}")).collect();
        let detail = format!("{} of {} pages differ, at {}", pages.mismatches.len(), pages.pages, first.join(", "));
        notes.push(Note::new(Code::SigPageHash, detail));
    }
}

/// Certificates that came with the signature and are neither on its path nor a timestamp's: room for bytes that nobody vouches for.
fn unused_certificates(facts: &Facts, signature: &Signature, path: &Path<'_>) -> Vec<Note> {
    let of_timestamps = |c: &Certificate| {
        let authorities = signature.timestamps.iter().filter_map(|t| facts.certificates.get(t.signer.as_ref()?.certificate?));
        authorities.into_iter().any(|a| a.as_ref() == c || a.issuer_der() == c.subject_der())
    };
    let carried = signature.certificates.iter().filter_map(|i| facts.certificates.get(*i));
    let unused = carried.filter(|c| !c.is_self_issued() && !path.certificates.contains(c) && !of_timestamps(c));
    unused.map(|c| Note::new(Code::SigForeignCertificate, "").of(c.subject())).collect()
}

fn has_input_fault(facts: &Facts) -> bool {
    facts.notes.iter().any(|n| n.code.id().starts_with("HVCI-INP"))
}

fn unsigned_detail(facts: &Facts) -> String {
    match facts.digests.iter().find(|d| d.digest.alg() == DigestAlg::Sha256) {
        Some(d) if facts.kind != FileKind::Flat => format!("{} {}", d.form, d.digest),
        _ => String::new(),
    }
}

pub(super) fn finding(note: Note, profile: &Profile, signature: Option<usize>) -> Finding {
    let Note { code, span, subject, detail } = note;
    Finding { code, severity: profile.severity(code), detail, span, subject, signature }
}

fn decide(findings: &[Finding]) -> Decision {
    match findings.iter().map(|f| f.severity).max() {
        Some(Severity::Error) => Decision::Refuse,
        Some(Severity::Unknown) => Decision::Unknown,
        _ => Decision::Accept,
    }
}

fn steps(path: &Path<'_>) -> Vec<PathStep> {
    let last = path.certificates.len().saturating_sub(1);
    path.certificates.iter().enumerate().map(|(i, c)| step(c, (i == last).then_some(path.anchor.origin.as_str()))).collect()
}

fn step(certificate: &Certificate, anchor: Option<&str>) -> PathStep {
    PathStep { subject: certificate.subject(), sha256: certificate.sha256().hex(), anchor: anchor.map(str::to_owned) }
}
