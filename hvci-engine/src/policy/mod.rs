//! Facts → Verdict: what a loader would say of a file, and why.
//!
//! [`Judge::judge`] is the one function that decides, for the audit and for the load path alike. Profile, trust and time are arguments; the file
//! itself is not: everything it reads is in the [`Facts`](crate::facts::Facts).

mod chain_rules;
mod judge;
pub mod profile;
mod root_list;
pub mod secure_boot;

pub use judge::Judge;
pub use profile::Profile;
pub use root_list::limit_anchors;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::Span,
    facts::Source,
    finding::{Code, Severity},
    time::UnixTime,
};

/// What a loader would do with a file, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whose rules.
    pub profile: String,
    /// The time it is for.
    #[schemars(with = "String")]
    pub time: UnixTime,
    /// What it would do.
    pub decision: Decision,
    /// Who signed it: the publisher of the signature that counts; with none, of the first one that is intact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// Why, worst first.
    pub findings: Vec<Finding>,
    /// Each signature by itself, in the order of the facts.
    pub signatures: Vec<SignatureVerdict>,
}

/// What a loader would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Load it.
    Accept,
    /// It cannot be told with what is known; a loader refuses.
    Unknown,
    /// Refuse it.
    Refuse,
}

impl Decision {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Unknown => "unknown",
            Self::Refuse => "refuse",
        }
    }
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Which.
    pub code: Code,
    /// How bad under the profile.
    pub severity: Severity,
    /// What was seen: values; the code has the words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Which bytes of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Which section, certificate, function or member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Which signature, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<usize>,
}

/// One signature by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignatureVerdict {
    /// Where it comes from.
    pub source: Source,
    /// Whether the loader would take it.
    pub decision: Decision,
    /// What a person calls the signer: common name, else organisation, of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// The time that a trusted timestamp proves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub signing_time: Option<UnixTime>,
    /// The certificate path, signer first; empty without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PathStep>,
    /// The timestamp authority's path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timestamp_path: Vec<PathStep>,
}

/// A certificate of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathStep {
    /// Subject, RFC 4514.
    pub subject: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub sha256: String,
    /// Where the anchor comes from, on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<String>,
}
