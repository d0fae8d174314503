//! Counts over a whole scan.

use std::collections::BTreeMap;

use hvci_engine::{
    finding::{Code, Severity},
    policy::Decision,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Audited;

/// Counts over a whole scan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Files judged.
    pub files: u64,
    /// Bytes of them, after decompression.
    pub bytes: u64,
    /// Files passed over because they are no images, or none that the chosen profile judges.
    pub skipped: u64,
    /// Files by decision.
    pub decisions: BTreeMap<String, u64>,
    /// Files by finding, whatever its severity.
    pub findings: BTreeMap<String, u64>,
    /// Files by publisher.
    pub publishers: BTreeMap<String, u64>,
    /// Worst severity of any finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst: Option<Severity>,
}

impl Summary {
    /// Counts one file.
    pub fn add(&mut self, audited: &Audited) {
        self.files += 1;
        self.bytes += audited.facts.size;
        count(&mut self.decisions, audited.verdict.decision.name());
        let mut codes: Vec<Code> = audited.verdict.findings.iter().map(|f| f.code).collect();
        codes.sort_unstable();
        codes.dedup();
        for code in codes {
            count(&mut self.findings, code.id());
        }
        if let Some(publisher) = &audited.verdict.publisher {
            count(&mut self.publishers, publisher);
        }
        self.worst = self.worst.max(audited.verdict.findings.iter().map(|f| f.severity).max());
    }

    /// How many files have this decision.
    pub fn decided(&self, decision: Decision) -> u64 {
        self.decisions.get(decision.name()).copied().unwrap_or(0)
    }

    /// Whether a finding is at least as bad as `threshold`. *Unknown* counts as an error: a loader refuses what it cannot decide.
    pub fn fails(&self, threshold: Option<Severity>) -> bool {
        let reached = match threshold {
            Some(Severity::Error) => Some(Severity::Unknown),
            other => other,
        };
        reached.is_some_and(|t| self.worst.is_some_and(|w| w >= t))
    }
}

/// Counts one more under `name`, which is copied only for the first.
fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(known) => *known += 1,
        None => drop(counts.insert(name.to_owned(), 1)),
    }
}
