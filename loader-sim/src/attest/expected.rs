//! Alerts that are expected: a machine that is meant to be as it is, until a day that is said.
//!
//! An expectation changes no verdict, and no alert is left out for it: one all of whose reasons are expected is marked. It counts where a TPM that
//! is known has answered, so that nothing which leaves open who answered can be expected; and one that nothing came of is found itself, since it would
//! hide what comes later. Azure's rules of the kind (Microsoft.Security/alertsSuppressionRules) want a type of alert and a reason too; an end they can do
//! without, which is not so here.

use std::collections::BTreeSet;

use hvci_engine::{finding::Code, time::UnixTime};
use serde::{Deserialize, Serialize};

/// An alert that is expected, by a reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// What is found: `HVCI-ATT-015` or `secure-boot-off`.
    pub code: Code,
    /// The machine that it is found of; without, any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Why that is meant to be so, for a person.
    pub reason: String,
    /// When it is expected no more: `2027-01-31`, from midnight (UTC) on.
    pub until: UnixTime,
}

/// What became of an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Found, as was expected.
    Met,
    /// Nothing came of it, in words.
    Unmatched(String),
    /// Of another machine; or it cannot be said, as the evidence proves too little.
    Open,
}

impl Expected {
    /// What became of it, where `found` was found of `vm` at `now`; `measured`: the start is proven, so that what was not found is not there.
    pub(super) fn outcome(&self, vm: &str, now: UnixTime, found: &BTreeSet<Code>, measured: bool) -> Outcome {
        if self.vm.as_ref().is_some_and(|name| name != vm) {
            return Outcome::Open;
        }
        if now >= self.until {
            return Outcome::Unmatched(format!("{} was expected until {}", self.code, self.until));
        }
        match (found.contains(&self.code), measured) {
            (true, _) => Outcome::Met,
            (false, true) => Outcome::Unmatched(format!("{} is expected until {}, and was not found", self.code, self.until)),
            (false, false) => Outcome::Open,
        }
    }
}

/// Why these are no expectations, if they are none.
pub(super) fn check(all: &[Expected]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for Expected { code, vm, reason, .. } in all {
        if !code.id().starts_with("HVCI-ATT-") || *code == Code::AttExpected {
            return Err(format!("{code} is no reason for an alert of an attestation, and cannot be expected"));
        }
        if is_of_nobody(*code) {
            return Err(format!("{code} ({}) leaves open who answered, and cannot be expected", code.alias()));
        }
        if reason.trim().is_empty() {
            return Err(format!("{code} is expected without a reason"));
        }
        if !seen.insert((code, vm)) {
            return Err(format!("{code} is expected twice: keep one entry"));
        }
    }
    Ok(())
}

/// Whether it is found where no TPM that is known has answered the challenge.
fn is_of_nobody(code: Code) -> bool {
    matches!(
        code,
        Code::AttEvidence | Code::AttKey | Code::AttKeyAttributes | Code::AttSignature | Code::AttQuote | Code::AttNonce | Code::AttClone
    )
}
