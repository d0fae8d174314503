//! What the host knows of a machine, by itself: nothing of it comes from the guest.

use hvci_engine::digest::Digest;
use serde::{Deserialize, Serialize};

use super::{
    boot::BANK,
    evidence::{Features, Profile},
};
use crate::measure::EventLog;

/// What the host's ledger of a TPM's states says (libtpms itself does not notice a state that is put back).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ledger {
    /// The TPM runs on the last state that it had.
    Current,
    /// It runs on an older one.
    RolledBack,
}

/// A machine as its host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The kind of guest.
    pub profile: Profile,
    /// What it was made with.
    pub features: Features,
    /// Name of its attestation key, read from its TPM before any guest ran.
    #[serde(with = "hex::serde")]
    pub ak_name: Vec<u8>,
    /// Name of its endorsement key.
    #[serde(with = "hex::serde")]
    pub ek_name: Vec<u8>,
    /// Resets of its TPM that the host made.
    pub reset_count: u32,
    /// Restarts and resumes since then.
    pub restart_count: u32,
    /// Whether it was stopped in order the last time, so that its TPM's clock is safe.
    pub orderly: bool,
    /// Its TPM's state.
    pub ledger: Ledger,
    /// How it starts when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// A good start: what was extended into which PCR, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Baseline(Vec<(u32, Digest)>);

impl Baseline {
    /// Of a log that the caller believes.
    pub fn of(log: &EventLog<'_>) -> Self {
        Self(steps(log).map(|(_, pcr, digest)| (pcr, digest)).collect())
    }

    /// The first event of `log` that is not the baseline's, of those in PCRs that are `compared`: its number and PCR, or that the log ends too
    /// early and in which PCR the next would be.
    pub(super) fn divergence(&self, log: &EventLog<'_>, compared: impl Fn(u32) -> bool) -> Option<(Option<usize>, u32)> {
        let mut good = self.0.iter().filter(|(pcr, _)| compared(*pcr));
        for (number, pcr, digest) in steps(log).filter(|(_, pcr, _)| compared(*pcr)) {
            if good.next() != Some(&(pcr, digest)) {
                return Some((Some(number), pcr));
            }
        }
        good.next().map(|(pcr, _)| (None, *pcr))
    }
}

fn steps(log: &EventLog<'_>) -> impl Iterator<Item = (usize, u32, Digest)> {
    let extended = log.events.iter().filter(|event| event.is_extended());
    extended.filter_map(|event| Some((event.number, event.pcr, event.digests.get(BANK)?)))
}
