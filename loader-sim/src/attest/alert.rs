//! Alerts and the history of a machine's health, as lines of JSON.
//!
//! One alert of medium severity for a failed attestation, with every component that failed; one of low severity for each driver that was
//! refused while the machine runs on, and each expectation that nothing came of. An alert all of whose reasons are expected is marked, never left out.
//! The same appraisal gives the same bytes.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Write},
};

use hvci_engine::{
    bytes::widen,
    crypto,
    digest::{Digest, DigestAlg},
    finding::{Code, Severity as Weight},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};

use super::{
    appraise::{Appraisal, Finding},
    component::{ComponentReport, Verdict},
    evidence::DriverEvent,
    expected::Expected,
};

/// A line of a history is no longer.
const MAX_LINE: u64 = 64 << 10;

/// How much of somebody's attention an alert needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The machine runs on, protected.
    Low,
    /// The machine cannot be shown to be healthy.
    Medium,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Attestation failed.
    AttestationFailed,
    /// A driver was refused.
    DriverRefused,
    /// The machine did not start: Secure Boot refused a component.
    BootRefused,
    /// The machine runs, and its TPM answers no more.
    TpmFailed,
    /// The machine runs, and its credentials stay closed, or are lost.
    VaultClosed,
    /// An alert is expected that did not come, or is expected no more.
    ExpectationUnmatched,
}

/// Which start of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Start {
    /// Resets of its TPM, if its quote holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_count: Option<u32>,
    /// The challenge.
    pub nonce: String,
    /// When it was appraised.
    pub time: UnixTime,
}

/// A component that failed. Its path is the log's word, which no digest covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedComponent {
    /// What is known of it.
    #[serde(flatten)]
    pub report: ComponentReport,
    /// What the path is worth: `hint`.
    pub path_trust: &'static str,
}

/// An alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Of this machine, challenge and reason.
    pub id: String,
    /// The machine.
    pub vm: String,
    /// How bad.
    pub severity: Severity,
    /// What happened.
    pub kind: Kind,
    /// The first reason's name.
    pub reason: &'static str,
    /// Every reason's code, in order.
    pub codes: BTreeSet<Code>,
    /// Which start.
    pub boot: Start,
    /// What failed, one by one.
    pub components: Vec<FailedComponent>,
    /// The driver that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverEvent>,
    /// What was found, one by one.
    pub findings: Vec<Finding>,
    /// PCRs that something is wrong with.
    pub failed_pcrs: BTreeSet<u32>,
    /// The first event that is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_divergent_event: Option<usize>,
    /// What to do about the first reason.
    pub advice: &'static str,
    /// Why nobody needs to look at it: an expectation for each of its codes at least; none of an alert that is not expected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suppressed_by: Vec<Expected>,
}

impl Alert {
    /// Whether somebody should look at it now.
    pub fn needs_attention(&self) -> bool {
        self.severity > Severity::Low && self.suppressed_by.is_empty()
    }

    /// Whether it says what `earlier` said, of another challenge.
    pub fn repeats(&self, earlier: &Self) -> bool {
        let is_same = (self.kind, &self.vm, &self.codes) == (earlier.kind, &earlier.vm, &earlier.codes)
            && (&self.driver, &self.failed_pcrs) == (&earlier.driver, &earlier.failed_pcrs);
        // one that is expected no more is news
        let is_suppressed = self.suppressed_by.is_empty() == earlier.suppressed_by.is_empty();
        // these differ in nothing else
        is_same && is_suppressed && (self.kind != Kind::ExpectationUnmatched || self.findings == earlier.findings)
    }
}

/// The alerts of an appraisal; none of a healthy machine that refused nothing.
pub fn alerts(appraisal: &Appraisal) -> Vec<Alert> {
    let (failed, _): (Vec<Finding>, Vec<Finding>) =
        appraisal.findings.iter().cloned().partition(|finding| finding.code.default_severity() >= Weight::Unknown);
    let mut alerts = Vec::new();
    if let Some(first) = failed.first() {
        let bad = appraisal.components.iter().filter(|report| report.verdict != Verdict::Allowed);
        let codes: BTreeSet<Code> = failed.iter().map(|finding| finding.code).collect();
        alerts.push(Alert {
            components: bad.map(|report| FailedComponent { report: report.clone(), path_trust: "hint" }).collect(),
            failed_pcrs: appraisal.failed_pcrs(),
            first_divergent_event: appraisal.first_divergent_event,
            suppressed_by: suppressed_by(appraisal, &codes),
            codes,
            ..alert(appraisal, Severity::Medium, Kind::AttestationFailed, first.code, "")
        });
        if let Some(alert) = alerts.last_mut() {
            alert.findings = failed;
        }
    }
    for driver in &appraisal.refused_drivers {
        alerts.push(Alert {
            driver: Some(driver.clone()),
            ..alert(appraisal, Severity::Low, Kind::DriverRefused, Code::AttDriver, &driver.authentihash.hex())
        });
    }
    for finding in appraisal.findings.iter().filter(|finding| finding.code == Code::AttExpected) {
        alerts.push(Alert {
            findings: vec![finding.clone()],
            ..alert(appraisal, Severity::Low, Kind::ExpectationUnmatched, finding.code, &finding.detail)
        });
    }
    alerts
}

/// The expectations of these codes, if each has one.
fn suppressed_by(appraisal: &Appraisal, codes: &BTreeSet<Code>) -> Vec<Expected> {
    let expected: BTreeSet<Code> = appraisal.expected.iter().map(|expected| expected.code).collect();
    let is_about = |expected: &&Expected| codes.contains(&expected.code);
    if codes.is_subset(&expected) { appraisal.expected.iter().filter(is_about).cloned().collect() } else { Vec::new() }
}

fn alert(appraisal: &Appraisal, severity: Severity, kind: Kind, code: Code, subject: &str) -> Alert {
    let parts = [&appraisal.vm, &appraisal.nonce, code.id(), subject].join("\n");
    let id: Digest = crypto::digest(DigestAlg::Sha256, &[parts.as_bytes()]);
    Alert {
        id: id.hex().chars().take(32).collect(),
        vm: appraisal.vm.clone(),
        severity,
        kind,
        reason: code.alias(),
        codes: BTreeSet::from([code]),
        boot: Start { reset_count: appraisal.clock.map(|clock| clock.reset_count), nonce: appraisal.nonce.clone(), time: appraisal.time },
        components: Vec::new(),
        driver: None,
        findings: Vec::new(),
        failed_pcrs: BTreeSet::new(),
        first_divergent_event: None,
        advice: code.advice(),
        suppressed_by: suppressed_by(appraisal, &BTreeSet::from([code])),
    }
}

/// The alert of a machine that did not start, which cannot attest: by its host, because of this component.
pub fn boot_refused(vm: &str, time: UnixTime, code: Code, report: ComponentReport) -> Alert {
    let subject = report.authentihash.map(|digest| digest.hex()).unwrap_or_default();
    let alert = by_host(vm, time, Kind::BootRefused, code, &subject, report.cause.clone());
    Alert { components: vec![FailedComponent { report, path_trust: "hint" }], ..alert }
}

/// The alert of a machine whose TPM failed, which cannot attest either: by its host, in words.
pub fn tpm_failed(vm: &str, time: UnixTime, how: String) -> Alert {
    by_host(vm, time, Kind::TpmFailed, Code::TpmFailed, "", how)
}

/// The alert of a machine whose vault's key was not released: by its host, in words. What it guards is guarded all the same.
pub fn vault_closed(vm: &str, time: UnixTime, why: String) -> Alert {
    Alert { severity: Severity::Low, ..by_host(vm, time, Kind::VaultClosed, Code::VaultKey, "", why) }
}

fn by_host(vm: &str, time: UnixTime, kind: Kind, code: Code, subject: &str, detail: String) -> Alert {
    let parts = [vm, &time.to_string(), code.id(), subject].join("\n");
    let id: Digest = crypto::digest(DigestAlg::Sha256, &[parts.as_bytes()]);
    Alert {
        id: id.hex().chars().take(32).collect(),
        vm: vm.to_owned(),
        severity: Severity::Medium,
        kind,
        reason: code.alias(),
        codes: BTreeSet::from([code]),
        boot: Start { reset_count: None, nonce: String::new(), time },
        components: Vec::new(),
        driver: None,
        findings: vec![Finding { code, pcr: None, event: None, detail }],
        failed_pcrs: BTreeSet::new(),
        first_divergent_event: None,
        advice: code.advice(),
        suppressed_by: Vec::new(),
    }
}

/// Writes alerts, one a line (NDJSON).
///
/// # Errors
/// Of `out`.
pub fn write<'a>(out: &mut impl Write, alerts: impl IntoIterator<Item = &'a Alert>) -> io::Result<()> {
    alerts.into_iter().try_for_each(|alert| line(out, alert))
}

/// One appraisal in a machine's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// When.
    pub time: UnixTime,
    /// Which machine.
    pub vm: String,
    /// Whether nothing was wrong.
    pub healthy: bool,
    /// Resets of its TPM, if its quote held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_count: Option<u32>,
    /// What was found, warnings too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub codes: BTreeSet<Code>,
}

impl From<&Appraisal> for Health {
    fn from(appraisal: &Appraisal) -> Self {
        Self {
            time: appraisal.time,
            vm: appraisal.vm.clone(),
            healthy: appraisal.healthy(),
            reset_count: appraisal.clock.map(|clock| clock.reset_count),
            codes: appraisal.findings.iter().map(|finding| finding.code).collect(),
        }
    }
}

impl Health {
    /// Adds it to a history: one line, written at once, so that a history that is cut short loses its last line alone.
    ///
    /// # Errors
    /// Of `history`.
    pub fn append(&self, history: &mut impl Write) -> io::Result<()> {
        line(history, self)
    }

    /// Reads a history from its start; a last line without an end is left out, as it was not written whole.
    ///
    /// # Errors
    /// Of `history`; `InvalidData` for a line that is none of a history's.
    pub fn history(mut history: impl BufRead) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        let mut text = Vec::new();
        loop {
            text.clear();
            io::Read::take(&mut history, MAX_LINE).read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                if widen(text.len()) >= MAX_LINE {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
                }
                return Ok(all);
            }
            all.push(serde_json::from_slice(&text)?);
        }
    }
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    out.write_all(&text)
}
