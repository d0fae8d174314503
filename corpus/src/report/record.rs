//! What the JSON formats say of a file: the published schema (`hvci-audit schema report`).

use hvci_engine::{
    bytes::Span,
    digest::{Digest, DigestAlg},
    facts::{DigestForm, Facts, SCHEMA_VERSION},
    policy::Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Audited, Summary};

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportRecord {
    /// Version of this schema.
    pub schema_version: u32,
    /// Path, with `!/` before each member of a package.
    pub path: String,
    /// Kind of file: `pe-driver`, `elf-module`, …
    pub kind: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 authentihash, or for a module the digest that its signature is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentihash: Option<String>,
    /// Every digest that was calculated: form and `algorithm:hex`.
    pub digests: Vec<(String, String)>,
    /// Machine of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// FileVersion of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_version: Option<String>,
    /// `accept`, `refuse` or `unknown`.
    pub decision: String,
    /// Whose rules.
    pub profile: String,
    /// The time the verdict is for.
    pub time: String,
    /// Who signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// Why, worst first.
    pub findings: Vec<FindingRecord>,
    /// Each signature.
    pub signatures: Vec<SignatureRecord>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindingRecord {
    /// Permanent code.
    pub code: String,
    /// Permanent name.
    pub alias: String,
    /// `note`, `warning`, `unknown` or `error`.
    pub severity: String,
    /// What is wrong, in one line.
    pub title: String,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub advice: String,
    /// Which bytes of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Which section, certificate, function or member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Which signature, by its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SignatureRecord {
    /// Where it comes from: `embedded 0`, `nested 0.1`, `catalog NAME`, `module trailer`.
    pub source: String,
    /// Whether this signature alone would be accepted.
    pub decision: String,
    /// What was signed, `algorithm:hex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Subject of the signer's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// The time that a trusted timestamp proves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_time: Option<String>,
    /// Subjects of the certificate path, signer first.
    pub path: Vec<String>,
}

/// The document of the `json` format.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReportDocument {
    /// Version of this schema.
    pub schema_version: u32,
    /// Every file.
    pub records: Vec<ReportRecord>,
    /// Counts over all of them.
    pub summary: Summary,
}

impl ReportRecord {
    /// The record of one file.
    pub fn new(audited: &Audited) -> Self {
        let Audited { path, facts, verdict } = audited;
        let image = facts.image.as_ref();
        Self {
            schema_version: SCHEMA_VERSION,
            path: path.clone(),
            kind: name_of(facts.kind),
            size: facts.size,
            authentihash: authentihash(facts).map(Digest::hex),
            digests: facts.digests.iter().map(|d| (name_of(d.form), d.digest.to_string())).collect(),
            machine: image.map(|i| i.machine.clone()),
            file_version: image.and_then(|i| i.file_version.clone()),
            decision: verdict.decision.name().to_owned(),
            profile: verdict.profile.clone(),
            time: verdict.time.to_string(),
            publisher: verdict.publisher.clone(),
            findings: findings(verdict),
            signatures: signatures(facts, verdict),
        }
    }
}

/// The digest by which a file is known: SHA-256 authentihash of an image, digest of a module's signed content, SHA-256 of anything else.
pub(super) fn authentihash(facts: &Facts) -> Option<&Digest> {
    facts
        .digest(DigestForm::Linear, DigestAlg::Sha256)
        .or_else(|| facts.digests.iter().find(|d| d.form == DigestForm::Module).map(|d| &d.digest))
        .or_else(|| facts.digest(DigestForm::Flat, DigestAlg::Sha256))
}

/// The serialised name of a value that is a plain enumeration.
pub(super) fn name_of(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn findings(verdict: &Verdict) -> Vec<FindingRecord> {
    let source = |index: usize| verdict.signatures.get(index).map(|s| s.source.to_string());
    verdict
        .findings
        .iter()
        .map(|f| FindingRecord {
            code: f.code.id().to_owned(),
            alias: f.code.alias().to_owned(),
            severity: f.severity.name().to_owned(),
            title: f.code.title().to_owned(),
            detail: f.detail.clone(),
            advice: f.code.advice().to_owned(),
            span: f.span,
            subject: f.subject.clone(),
            signature: f.signature.and_then(source),
        })
        .collect()
}

fn signatures(facts: &Facts, verdict: &Verdict) -> Vec<SignatureRecord> {
    let signer = |index: Option<usize>| index.and_then(|i| facts.certificates.get(i)).map(|c| c.subject());
    facts
        .signatures
        .iter()
        .zip(&verdict.signatures)
        .map(|(signature, judged)| SignatureRecord {
            source: signature.source.to_string(),
            decision: judged.decision.name().to_owned(),
            digest: signature.coverage.as_ref().map(|c| c.signed.to_string()),
            signer: signer(signature.signer.as_ref().and_then(|s| s.certificate)),
            signing_time: judged.signing_time.map(|t| t.to_string()),
            path: judged.path.iter().map(|s| s.subject.clone()).collect(),
        })
        .collect()
}
