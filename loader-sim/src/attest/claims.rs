//! Claims: what the evidence proves of a machine, under Microsoft Azure Attestation's names where they mean the same (`hvci-` for others).
//!
//! True and false are said of what was measured; for everything else there is a third value, and it is never taken for a good sign.

use std::collections::BTreeMap;

use serde::Serialize;

use super::boot::Boot;
use crate::measure::wbcl::tag;

/// A claim's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Claim {
    /// It was measured to be so, or not to be so.
    Is(bool),
    /// Nothing that can be believed says so: `null`.
    NotMeasured,
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// PCRs.
    Pcrs(Vec<u32>),
}

impl From<Option<bool>> for Claim {
    fn from(measured: Option<bool>) -> Self {
        measured.map_or(Self::NotMeasured, Self::Is)
    }
}

/// Claims by submodule and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Claims(pub BTreeMap<&'static str, BTreeMap<&'static str, Claim>>);

/// The parts of a machine that are judged by themselves.
pub(super) const SECURE_BOOT: &str = "secure-boot";
pub(super) const VTPM: &str = "vtpm";
pub(super) const MEASURED_BOOT: &str = "measured-boot";
pub(super) const HVCI: &str = "hvci";
pub(super) const CREDENTIAL_GUARD: &str = "credential-guard";

impl Claims {
    /// The claim called `name`, in whichever submodule.
    pub fn get(&self, name: &str) -> &Claim {
        self.0.values().find_map(|claims| claims.get(name)).unwrap_or(&Claim::NotMeasured)
    }

    pub(super) fn set(&mut self, submodule: &'static str, name: &'static str, claim: impl Into<Claim>) {
        self.0.entry(submodule).or_default().insert(name, claim.into());
    }
}

/// Settings that weaken a guest: tag, claim, the claim's value when the setting is on, whether on or off is bad, what the bad one is called.
pub(super) const WEAKENING: [(u32, &str, bool, bool, &str); 8] = [
    (tag::BOOT_DEBUGGING, "x-ms-azurevm-bootdebug-enabled", true, true, "debugging of the loader"),
    (tag::KERNEL_DEBUG, "x-ms-azurevm-kerneldebug-enabled", true, true, "debugging of the kernel"),
    (tag::HYPERVISOR_DEBUG, "x-ms-azurevm-hypervisordebug-enabled", true, true, "debugging of the hypervisor"),
    (tag::TEST_SIGNING, "x-ms-azurevm-testsigning-enabled", true, true, "test signing"),
    (tag::FLIGHT_SIGNING, "x-ms-azurevm-flightsigning-enabled", true, true, "flight signing"),
    (tag::CODE_INTEGRITY, "x-ms-azurevm-signingdisabled", false, false, "no code integrity"),
    (tag::SAFE_MODE, "notSafeMode", false, true, "safe mode"),
    (tag::WIN_PE, "notWinPE", false, true, "Windows PE"),
];

/// A setting; `None` if it was not measured, or two events contradict each other.
pub(super) fn setting(boot: &Boot<'_>, tag: u32) -> Option<u64> {
    boot.settings.get(&tag).copied().flatten()
}
