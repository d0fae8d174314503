//! Certificate paths from a signer to a trust anchor (RFC 5280 §6, without names and policies).
//!
//! A search over the certificates at hand, because real chains have cross-certificates, loops and several issuers of one name. What holds
//! for every use is checked here: names, signatures, CA flags, path lengths, critical extensions. What depends on the use (extended key
//! usages, validity at a time, weak algorithms, which anchors count) is left to the policy, which sees every path.
//! **Invariant:** work is bounded by a [`Budget`]; no certificate stands twice on a path.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::sync::Arc;

use super::{
    cache::Cache,
    cert::Certificate,
    trust::{Anchor, TrustStore},
};
use crate::{
    budget::Budget,
    facts::SignatureCheck,
    finding::{Code, Note},
};

/// How long a path may be, leaf and anchor included. The longest real one seen has six.
const MAX_LENGTH: usize = 12;
/// How many paths are kept; the policy takes the best.
const MAX_PATHS: usize = 8;

/// A path whose every signature verifies.
#[derive(Clone, Debug)]
pub struct Path<'t> {
    /// From the leaf up to and including the anchor.
    pub certificates: Vec<Arc<Certificate>>,
    /// The anchor it ends at.
    pub anchor: &'t Anchor,
}

/// Why there is no path; of several reasons the one that went furthest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathError {
    /// What is wrong.
    pub kind: PathErrorKind,
    /// With which certificate.
    pub certificate: Arc<Certificate>,
}

/// What can be wrong with a path, least informative first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PathErrorKind {
    /// The issuer is neither at hand nor trusted.
    NoIssuer,
    /// The path ends at a self-signed certificate that is no anchor.
    UntrustedRoot,
    /// The issuer is not allowed to issue.
    NotCa,
    /// More CA certificates below it than it allows.
    PathLength,
    /// A critical extension that is not understood.
    CriticalExtension,
    /// A signature or key of an algorithm that is not supported.
    Unsupported,
    /// A signature does not verify with the issuer's key.
    BadSignature,
    /// More work than any real chain needs.
    Budget,
}

impl PathError {
    /// As a note about the certificate.
    pub fn note(&self) -> Note {
        let c = &self.certificate;
        let (code, detail) = match self.kind {
            PathErrorKind::NoIssuer => (Code::PkiIncomplete, format!("its issuer is {}", c.issuer())),
            PathErrorKind::UntrustedRoot => (Code::PkiUntrusted, format!("SHA-256 {}", c.sha256().hex())),
            PathErrorKind::NotCa => (Code::PkiNotCa, String::new()),
            PathErrorKind::PathLength => (Code::PkiPathLength, String::new()),
            PathErrorKind::CriticalExtension => (Code::PkiCritical, c.unknown_critical().map(ToString::to_string).unwrap_or_default()),
            PathErrorKind::Unsupported => (Code::PkiUnsupportedKey, c.signature_algorithm().to_owned()),
            PathErrorKind::BadSignature => (Code::PkiSignature, format!("its issuer is {}", c.issuer())),
            PathErrorKind::Budget => (Code::PkiBudget, String::new()),
        };
        Note::new(code, detail).of(c.subject())
    }
}

/// Every path from `leaf` over `pool` to an anchor of `trust`, shortest first. The `budget` is shared by the chains of a file.
///
/// # Errors
/// There is none; the most useful reason.
pub fn build<'t>(
    leaf: &Arc<Certificate>,
    pool: &[Arc<Certificate>],
    trust: &'t TrustStore,
    cache: &Cache,
    budget: &mut Budget,
) -> Result<Vec<Path<'t>>, PathError> {
    let mut search = Search {
        pool,
        trust,
        cache,
        budget,
        path: vec![Arc::clone(leaf)],
        found: Vec::new(),
        error: PathError { kind: PathErrorKind::NoIssuer, certificate: Arc::clone(leaf) },
    };
    search.extend(0);
    if search.found.is_empty() {
        return Err(search.error);
    }
    search.found.sort_by_key(|p| p.certificates.len());
    Ok(search.found)
}

struct Search<'a, 't> {
    pool: &'a [Arc<Certificate>],
    trust: &'t TrustStore,
    cache: &'a Cache,
    budget: &'a mut Budget,
    path: Vec<Arc<Certificate>>,
    found: Vec<Path<'t>>,
    error: PathError,
}

impl Search<'_, '_> {
    /// Extends the path, whose last certificate has `cas` CA certificates below it that are not self-issued.
    fn extend(&mut self, cas: u32) {
        let Some(last) = self.path.last().map(Arc::clone) else { return };
        if last.unknown_critical().is_some() {
            self.fail(PathErrorKind::CriticalExtension, &last);
            return;
        }
        if let Some(anchor) = self.trust.find(&last) {
            self.found.push(Path { certificates: self.path.clone(), anchor });
        }
        if self.path.len() >= MAX_LENGTH {
            self.fail(PathErrorKind::PathLength, &last);
            return;
        }

        let trust = self.trust;
        let mut any_issuer = false;
        for anchor in trust.named(last.issuer_der()) {
            if self.on_path(&anchor.certificate) {
                continue;
            }
            any_issuer = true;
            // an anchor is a CA because it is listed, and no name or extension of its own is looked at
            if self.spend(&last) && self.signed_by(&last, &anchor.certificate) {
                let mut certificates = self.path.clone();
                certificates.push(Arc::clone(&anchor.certificate));
                self.found.push(Path { certificates, anchor });
            }
        }
        let pool = self.pool;
        for issuer in pool.iter().filter(|c| c.subject_der() == last.issuer_der()) {
            if self.found.len() >= MAX_PATHS || self.on_path(issuer) || trust.find(issuer).is_some() {
                continue;
            }
            any_issuer = true;
            if !self.spend(&last) {
                return;
            }
            if !self.signed_by(&last, issuer) {
                continue;
            }
            let basic = issuer.basic_constraints();
            if !basic.is_some_and(|b| b.ca) || issuer.key_usage().is_some_and(|k| !k.key_cert_sign()) {
                self.fail(PathErrorKind::NotCa, issuer);
                continue;
            }
            if basic.and_then(|b| b.path_len).is_some_and(|limit| cas > limit) {
                self.fail(PathErrorKind::PathLength, issuer);
                continue;
            }
            self.path.push(Arc::clone(issuer));
            self.extend(if issuer.is_self_issued() { cas } else { cas.saturating_add(1) });
            self.path.pop();
        }
        if !any_issuer {
            let kind = if last.is_self_issued() { PathErrorKind::UntrustedRoot } else { PathErrorKind::NoIssuer };
            self.fail(kind, &last);
        }
    }

    fn spend(&mut self, at: &Arc<Certificate>) -> bool {
        let left = self.budget.spend().is_ok();
        if !left {
            self.fail(PathErrorKind::Budget, at);
        }
        left
    }

    /// The same name with the same key is the same CA, whichever certificate says so.
    fn on_path(&self, certificate: &Certificate) -> bool {
        self.path.iter().any(|c| c.subject_der() == certificate.subject_der() && c.spki() == certificate.spki())
    }

    fn signed_by(&mut self, subject: &Arc<Certificate>, issuer: &Certificate) -> bool {
        let kind = match self.cache.check_signed_by(subject, issuer) {
            SignatureCheck::Valid => return true,
            SignatureCheck::Unsupported => PathErrorKind::Unsupported,
            _ => PathErrorKind::BadSignature,
        };
        self.fail(kind, subject);
        false
    }

    fn fail(&mut self, kind: PathErrorKind, certificate: &Arc<Certificate>) {
        if kind > self.error.kind {
            self.error = PathError { kind, certificate: Arc::clone(certificate) };
        } else if kind == self.error.kind && kind == PathErrorKind::NoIssuer {
            // of two open ends the later one is further up
            self.error.certificate = Arc::clone(certificate);
        }
    }
}
