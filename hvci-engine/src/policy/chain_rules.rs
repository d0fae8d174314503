//! What a profile asks of a certificate path: the anchor, the usages, the validity, the strength.

use std::sync::Arc;

use super::profile::{KERNEL_EKUS, Profile, Usage, Validity};
use crate::{
    crypto::KeyKind,
    digest::DigestAlg,
    finding::{Code, Note},
    oid::{self, Oid},
    signature::{
        cert::Certificate,
        chain::Path,
        trust::{Anchor, Purposes},
    },
    time::UnixTime,
};

/// What the profile has to say about `path` for a signature made at `at`.
pub(super) fn examine_path(path: &Path<'_>, profile: &Profile, at: UnixTime) -> Vec<Note> {
    let mut notes = Vec::new();
    if !path.anchor.purposes.any_of(profile.anchors) {
        notes.push(scope(path.anchor, profile));
    }
    if profile.anchors.any_of(Purposes::SHIM) && path.anchor.purposes.any_of(Purposes::SHIM) && !path.anchor.purposes.any_of(Purposes::UEFI)
    {
        notes.push(Note::new(Code::PkiShim, format!("anchor {}", path.anchor.origin)).of(path.anchor.certificate.subject()));
    }
    if let Some(leaf) = path.certificates.first() {
        examine_usage(path, leaf, profile, &mut notes);
        if profile.usage != Usage::Any && leaf.key_usage().is_some_and(|k| !k.digital_signature()) {
            notes.push(Note::new(Code::PkiKeyUsage, "keyUsage lacks digitalSignature").of(leaf.subject()));
        }
    }
    if profile.root_limits {
        notes.extend(beyond_limits(path, &oid::EKU_CODE_SIGNING, at));
    }
    if profile.validity == Validity::AtSigning {
        notes.extend(below_anchor(path).filter_map(|c| outside_validity(c, at)));
    }
    notes.extend(below_anchor(path).filter_map(|c| weakness(c)));
    notes
}

/// Whether `path` is one that a timestamp authority may have at the time `at`. An anchor that the profile's loader knows by itself is limited by
/// a root list only if the loader looks at one.
pub(super) fn examine_timestamp_path(path: &Path<'_>, profile: &Profile, at: UnixTime) -> Option<Note> {
    let trusted = Purposes::TIMESTAMP.and(Purposes::USER).and(Purposes::KERNEL);
    if !path.anchor.purposes.any_of(trusted) {
        return Some(
            Note::new(Code::TspUntrusted, format!("the anchor is for {}", path.anchor.purposes)).of(path.anchor.certificate.subject()),
        );
    }
    let leaf = path.certificates.first()?;
    // RFC 3161 §2.3 wants the usage and it alone; authorities of before 2005 have others beside it
    if !leaf.ekus().is_some_and(|e| e.contains(&oid::EKU_TIMESTAMPING)) {
        return Some(Note::new(Code::TspEku, usages(leaf)).of(leaf.subject()));
    }
    if (profile.root_limits || !path.anchor.purposes.any_of(profile.anchors))
        && let Some(Note { code, detail, subject, .. }) = beyond_limits(path, &oid::EKU_TIMESTAMPING, at)
    {
        return Some(Note { code: Code::TspUntrusted, span: None, subject, detail: format!("{}: {detail}", code.title()) });
    }
    let expired = below_anchor(path).find_map(|c| outside_validity(c, at))?;
    Some(Note { code: Code::TspExpired, ..expired })
}

/// Whether `path` is one that the signer of a root list made at `at` may have: the right usage, stated, on the leaf and not denied above it.
pub(super) fn examine_list_path(path: &Path<'_>, at: UnixTime) -> Option<Note> {
    let leaf = path.certificates.first()?;
    if !path.anchor.purposes.any_of(Purposes::LIST) {
        let detail = format!("{} is for {}; a root list needs one for {}", path.anchor.origin, path.anchor.purposes, Purposes::LIST);
        return Some(Note::new(Code::PkiScope, detail).of(path.anchor.certificate.subject()));
    }
    let usage = oid::EKU_ROOT_LIST_SIGNER;
    let wrong = below_anchor(path).find(|c| !allows(c, &usage)).or_else(|| Some(leaf).filter(|l| l.ekus().is_none()));
    wrong.map(|c| Note::new(Code::PkiEku, usages(c)).of(c.subject())).or_else(|| below_anchor(path).find_map(|c| outside_validity(c, at)))
}

/// What the root list has against this path for a signature made at `at` under a certificate for `usage`.
fn beyond_limits(path: &Path<'_>, usage: &Oid, at: UnixTime) -> Option<Note> {
    // Microsoft's own: the list closes that of 2001, and Windows goes on trusting it (ralphje/signify#38)
    if path.anchor.purposes.any_of(Purposes::KERNEL) {
        return None;
    }
    let (anchor, limits) = (&path.anchor.certificate, &path.anchor.limits);
    if !limits.allow(usage) {
        return Some(Note::new(Code::PkiRootUsage, limits.to_string()).of(anchor.subject()));
    }
    if let Some(since) = limits.disallowed_since.filter(|since| at >= *since) {
        return Some(Note::new(Code::PkiRootDisallowed, format!("disallowed since {since}, used at {at}")).of(anchor.subject()));
    }
    let leaf = path.certificates.first()?;
    let date = limits.last_issue(usage).filter(|date| leaf.not_before() >= *date)?;
    let detail = format!("issued {}; {} is trusted for certificates issued before {date}", leaf.not_before(), anchor.subject_short());
    Some(Note::new(Code::PkiRootNotBefore, detail).of(leaf.subject()))
}

/// Whether a certificate is outside its validity at the time `at`.
pub(super) fn outside_validity(certificate: &Certificate, at: UnixTime) -> Option<Note> {
    if at < certificate.not_before() {
        let detail = format!("valid from {}, used at {at}", certificate.not_before());
        return Some(Note::new(Code::PkiNotYetValid, detail).of(certificate.subject()));
    }
    let detail = || format!("valid until {}, used at {at}", certificate.not_after());
    (at > certificate.not_after()).then(|| Note::new(Code::PkiExpired, detail()).of(certificate.subject()))
}

fn below_anchor<'p>(path: &'p Path<'_>) -> impl Iterator<Item = &'p Arc<Certificate>> {
    // an anchor is trusted because it is listed
    path.certificates.iter().take(path.certificates.len().saturating_sub(1))
}

fn examine_usage(path: &Path<'_>, leaf: &Certificate, profile: &Profile, notes: &mut Vec<Note>) {
    let kernel = || leaf.ekus().is_some_and(|e| e.iter().any(|purpose| KERNEL_EKUS.contains(purpose)));
    match profile.usage {
        Usage::Any => {}
        Usage::CodeSigning => {
            let refuses = below_anchor(path).find(|c| !allows(c, &oid::EKU_CODE_SIGNING));
            notes.extend(refuses.map(|c| Note::new(Code::PkiEku, usages(c)).of(c.subject())));
        }
        Usage::Kernel | Usage::KernelOrCrossSigned if kernel() => {
            let attested = leaf.ekus().is_some_and(|e| e.contains(&oid::EKU_ATTESTED));
            notes.extend(attested.then(|| Note::new(Code::PolAttested, "").of(leaf.subject())));
        }
        Usage::SystemComponent if leaf.ekus().is_some_and(|e| e.contains(&oid::EKU_SYSTEM_COMPONENT)) => {}
        Usage::Kernel | Usage::SystemComponent => notes.push(Note::new(Code::PkiEku, usages(leaf)).of(leaf.subject())),
        Usage::KernelOrCrossSigned => {
            if !allows(leaf, &oid::EKU_CODE_SIGNING) {
                notes.push(Note::new(Code::PkiEku, usages(leaf)).of(leaf.subject()));
            } else if leaf.not_before() < UnixTime::CROSS_SIGN_CUTOFF {
                notes.push(Note::new(Code::PolCrossSigned, format!("issued {}", leaf.not_before())).of(leaf.subject()));
            } else {
                notes.push(Note::new(Code::PkiIssuedAfterCutoff, format!("issued {}", leaf.not_before())).of(leaf.subject()));
            }
        }
    }
}

/// A certificate without the extension allows everything (RFC 5280 §4.2.1.12).
fn allows(certificate: &Certificate, purpose: &Oid) -> bool {
    certificate.ekus().is_none_or(|e| e.contains(purpose) || e.contains(&oid::EKU_ANY))
}

fn usages(certificate: &Certificate) -> String {
    match certificate.ekus() {
        None => "it states no usages".to_owned(),
        Some(list) => {
            let names: Vec<String> = list.iter().map(|o| oid::name(o).map_or_else(|| o.to_string(), str::to_owned)).collect();
            format!("it is for {}", names.join(", "))
        }
    }
}

fn scope(anchor: &Anchor, profile: &Profile) -> Note {
    let detail = format!("{} is for {}; {} needs one for {}", anchor.origin, anchor.purposes, profile.name, profile.anchors);
    Note::new(Code::PkiScope, detail).of(anchor.certificate.subject())
}

fn weakness(certificate: &Certificate) -> Option<Note> {
    let weak_digest =
        certificate.signature_digest().filter(|d| matches!(d, DigestAlg::Md5 | DigestAlg::Sha1)).map(|d| format!("signed with {d}"));
    let weak_key = || match certificate.public_key() {
        Ok(key) => weak_key(key.kind()),
        Err(_) => None,
    };
    weak_digest.or_else(weak_key).map(|detail| Note::new(Code::PkiWeak, detail).of(certificate.subject()))
}

/// RSA below 2048 bits, in words.
pub(super) fn weak_key(kind: KeyKind) -> Option<String> {
    match kind {
        KeyKind::Rsa(bits) if bits < 2048 => Some(format!("RSA-{bits}")),
        _ => None,
    }
}
