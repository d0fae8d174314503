//! Verdicts beside those of osslsigncode, with the same roots and at the same time.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use der::pem::{LineEnding, encode_string};
use hvci_engine::{
    examine::Examiner,
    policy::{Decision, Judge, PathStep},
    signature::{cache::Cache, catalog::CatalogIndex, cert::Certificate, keyring::certificates_from, trust::TrustStore},
};
use serde::{Deserialize, Serialize};

use crate::task::{MAX_SIZE, Request, now, trust};

/// What the engine says of some files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Judged {
    /// Of each file, in order: accepted or not.
    pub accepted: Vec<bool>,
    /// Why each was not: codes and details.
    pub reasons: Vec<String>,
    /// SHA-256 of the anchors at the end of any path.
    pub anchors: BTreeSet<String>,
}

/// Judges each of the files.
///
/// # Errors
/// Unreadable files.
pub fn judge(request: &Request) -> Result<Judged> {
    let (trust, profile) = trust(&request.trust)?;
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    let judge = Judge { trust: &trust, time: now()?, cache: &cache };
    let mut judged = Judged::default();
    for file in &request.files {
        let data = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let verdict = judge.judge(&examiner.examine(&data, usize::try_from(MAX_SIZE)?), profile);
        let ends = |path: &[PathStep]| path.last().map(|s| s.sha256.clone());
        judged.anchors.extend(verdict.signatures.iter().flat_map(|s| [ends(&s.path), ends(&s.timestamp_path)]).flatten());
        let accepted = verdict.decision == Decision::Accept;
        judged.accepted.push(accepted);
        let worst = verdict.findings.iter().filter(|f| Some(f.severity) == verdict.findings.first().map(|f| f.severity));
        let reasons: Vec<String> = worst.map(|f| format!("{} {}", f.code, f.detail)).collect();
        judged.reasons.push(if accepted { String::new() } else { reasons.join("; ") });
    }
    Ok(judged)
}

/// Writes those self-issued certificates of `roots` and of the engine's own anchors whose SHA-256 is among `wanted` to a PEM file at `to`.
/// Returns how many.
///
/// # Errors
/// Unreadable roots, or the file cannot be written.
pub fn write_bundle(roots: Option<&Path>, wanted: &BTreeSet<String>, to: &Path) -> Result<usize> {
    let mut all: Vec<Vec<u8>> = TrustStore::builtin().anchors().iter().map(|a| a.certificate.der().to_vec()).collect();
    if let Some(roots) = roots {
        let bytes = fs::read(roots).with_context(|| format!("cannot read {}", roots.display()))?;
        all.extend(certificates_from(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", roots.display()))?);
    }
    let mut written = BTreeSet::new();
    let mut text = String::new();
    for der in all {
        let Ok(certificate) = Certificate::parse(&der) else { continue };
        let sha256 = certificate.sha256().hex();
        // OpenSSL takes no certificate for a root that names another as its issuer
        if certificate.is_self_issued() && wanted.contains(&sha256) && written.insert(sha256) {
            text += &encode_string("CERTIFICATE", LineEnding::LF, &der).map_err(anyhow::Error::msg)?;
        }
    }
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(written.len())
}

/// A file about which the two say different things.
#[derive(Clone, Debug, Serialize)]
pub struct Disagreement {
    /// Which.
    pub file: PathBuf,
    /// Whether the engine accepts it.
    pub accepted: bool,
    /// Why the engine does not.
    pub reason: String,
}

/// The files of which `accepted` by osslsigncode differs.
pub fn disagreements(files: &[PathBuf], judged: &Judged, theirs: &[bool]) -> Vec<Disagreement> {
    let ours = judged.accepted.iter().zip(&judged.reasons);
    let pairs = files.iter().zip(ours).zip(theirs);
    pairs
        .filter(|((_, (accepted, _)), theirs)| accepted != theirs)
        .map(|((file, (accepted, reason)), _)| Disagreement { file: file.clone(), accepted: *accepted, reason: reason.clone() })
        .collect()
}
