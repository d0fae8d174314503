//! Reference values: what a healthy start is made of. TOML, written by whoever runs the verifier.
//!
//! Trusts its author. Refuses unknown keys, and policies that could not hold: PCRs that a guest resets (16 and up), none of the firmware's
//! left out (a log is only believed whole), digests that are not SHA-256. A signer is named by its certificate's digest alone: a subject is
//! whatever the owner of an enrolled key writes into it.

use std::collections::{BTreeMap, BTreeSet};

use hvci_engine::digest::{Digest, DigestAlg};
use serde::{Deserialize, Serialize};

use super::expected::{self, Expected};

/// PCRs that must be quoted whatever the reference says: the firmware's.
const FIRMWARE_PCRS: std::ops::Range<u32> = 0..8;
/// The first PCR that somebody else than the machine's start can set back to its beginning.
const RESETTABLE: u32 = 16;

/// Why a file holds no reference values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not the TOML that it must be.
    #[error("{0}")]
    Form(String),
    /// Says something that cannot be held to.
    #[error("{0}")]
    Policy(String),
}

/// What a component does in a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// What the firmware starts of a Linux distribution.
    Shim,
    /// What shim starts.
    BootLoader,
    /// Linux.
    Kernel,
    /// What the firmware starts of Windows.
    BootManager,
    /// What that starts, which is measured as a driver is.
    OsLoader,
    /// Firmware's drivers, those in devices, and the guest's.
    Driver,
}

impl Stage {
    /// The name in reference values and alerts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::BootLoader => "boot-loader",
            Self::Kernel => "kernel",
            Self::BootManager => "boot-manager",
            Self::OsLoader => "os-loader",
            Self::Driver => "driver",
        }
    }
}

/// Values that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// Whatever it is: `"any"`.
    #[default]
    Any,
    /// One of these.
    Digests(Vec<Digest>),
}

impl Allowed {
    /// Whether `digest` is.
    pub fn allows(&self, digest: &Digest) -> bool {
        match self {
            Self::Any => true,
            Self::Digests(digests) => digests.contains(digest),
        }
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Word(String),
            Digests(Vec<Digest>),
        }
        match Text::deserialize(deserializer)? {
            Text::Word(word) if word == "any" => Ok(Self::Any),
            Text::Word(word) => Err(serde::de::Error::custom(format!("{word:?} is neither \"any\" nor a list of digests"))),
            Text::Digests(digests) => Ok(Self::Digests(digests)),
        }
    }
}

/// Digests of the values of Secure Boot's variables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// Platform key.
    pub pk: Allowed,
    /// Key exchange keys.
    pub kek: Allowed,
    /// What may start.
    pub db: Allowed,
    /// What may not.
    pub dbx: Allowed,
    /// `2025-01-01`: the dbx must have an entry that was made then or later, by the dates of the vendor's list.
    pub dbx_since: Option<String>,
}

/// A component that is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Where in a start.
    pub stage: Stage,
    /// For a person.
    pub name: String,
    /// Its authentihashes.
    pub authentihash: Vec<Digest>,
    /// Its SBAT generations. No log says them.
    #[serde(default)]
    pub sbat: BTreeMap<String, u32>,
}

/// Somebody whose components are allowed without being known: who signs for the firmware or for shim.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// For a person.
    pub name: String,
    /// SHA-256 of the certificate that authorises: in db, MokList or shim itself.
    pub certificate: Digest,
    /// What it may authorise unknown components of; empty: only known ones.
    #[serde(default)]
    pub stages: Vec<Stage>,
}

/// Reference values.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// PCRs that must be quoted; those that the log has events of must be too.
    #[serde(default = "firmware_pcrs")]
    pub required_pcrs: BTreeSet<u32>,
    /// PCRs in which a start must be as the machine's baseline.
    #[serde(default = "baseline_pcrs")]
    pub baseline_pcrs: BTreeSet<u32>,
    /// What is started, in order.
    pub chain: Vec<Stage>,
    /// Secure Boot's variables.
    #[serde(default)]
    pub secure_boot: Keys,
    /// shim's lists by name (`MokList`), as digests of the variables' values. What is not named here must not be measured.
    #[serde(default)]
    pub mok: BTreeMap<String, Allowed>,
    /// Least SBAT generations.
    #[serde(default)]
    pub sbat: BTreeMap<String, u32>,
    /// Components that are known.
    #[serde(default)]
    pub component: Vec<Component>,
    /// Signers.
    #[serde(default)]
    pub signer: Vec<Signer>,
    /// Alerts that are expected.
    #[serde(default)]
    pub expected: Vec<Expected>,
}

fn firmware_pcrs() -> BTreeSet<u32> {
    FIRMWARE_PCRS.collect()
}

/// Firmware, option ROMs, what is started, keys, MOK: what no ordinary start changes.
fn baseline_pcrs() -> BTreeSet<u32> {
    [0, 2, 4, 7, 14].into()
}

impl Reference {
    /// Reads reference values.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn read(text: &str) -> Result<Self, ReferenceError> {
        let reference: Self = toml::from_str(text).map_err(|error| ReferenceError::Form(error.to_string()))?;
        reference.check().map_err(ReferenceError::Policy)?;
        Ok(reference)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(pcr) = self.required_pcrs.iter().chain(&self.baseline_pcrs).find(|pcr| **pcr >= RESETTABLE) {
            return Err(format!("PCR {pcr} can be reset, so that it proves nothing"));
        }
        if let Some(pcr) = FIRMWARE_PCRS.into_iter().find(|pcr| !self.required_pcrs.contains(pcr)) {
            return Err(format!("PCR {pcr} is the firmware's and must be in required_pcrs"));
        }
        if self.chain.is_empty() {
            return Err("chain is empty: something is started".to_owned());
        }
        let keys = [&self.secure_boot.pk, &self.secure_boot.kek, &self.secure_boot.db, &self.secure_boot.dbx];
        let lists = keys.into_iter().chain(self.mok.values()).filter_map(|allowed| match allowed {
            Allowed::Digests(digests) => Some(digests),
            Allowed::Any => None,
        });
        let digests =
            lists.chain(self.component.iter().map(|c| &c.authentihash)).flatten().chain(self.signer.iter().map(|s| &s.certificate));
        if let Some(other) = digests.into_iter().find(|digest| digest.alg() != DigestAlg::Sha256) {
            return Err(format!("{other} is not SHA-256"));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.component.iter().flat_map(|c| &c.authentihash).find(|digest| !seen.insert(**digest)) {
            return Err(format!("two components have {twice}"));
        }
        if self.secure_boot.dbx_since.as_deref().is_some_and(|date| !is_date(date)) {
            return Err("dbx_since is no date: write 2025-01-01".to_owned());
        }
        expected::check(&self.expected)
    }

    /// The component with this authentihash.
    pub fn known(&self, authentihash: &Digest) -> Option<&Component> {
        self.component.iter().find(|component| component.authentihash.contains(authentihash))
    }

    /// The signer with this certificate.
    pub fn signer(&self, certificate: &Digest) -> Option<&Signer> {
        self.signer.iter().find(|signer| signer.certificate == *certificate)
    }

    /// What is known of a stage.
    pub fn expected(&self, stage: Stage) -> Vec<Digest> {
        self.component.iter().filter(|component| component.stage == stage).flat_map(|component| component.authentihash.clone()).collect()
    }
}

/// `YYYY-MM-DD`, so that text order is order in time.
pub(super) fn is_date(text: &str) -> bool {
    let shape = text.len() == 10 && text.bytes().enumerate().all(|(n, b)| if n == 4 || n == 7 { b == b'-' } else { b.is_ascii_digit() });
    shape && hvci_engine::time::UnixTime::parse(text).is_some()
}
