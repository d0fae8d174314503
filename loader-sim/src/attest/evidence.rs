//! What a machine sends to be appraised, as JSON. A claim of the guest's, every byte of it.
//!
//! Reads at most [`MAX_EVIDENCE`] bytes; refuses unknown fields and parts longer than real ones can be. Says nothing about truth: the
//! [quote](super::quote) vouches for digests, and these for the log.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hvci_engine::{
    digest::{Digest, DigestAlg},
    finding::Code,
};
use serde::{Deserialize, Serialize};

use crate::measure::MAX_LOG;

/// Longer evidence is refused: the longest log in base64, and what else there is.
pub const MAX_EVIDENCE: usize = 8 << 20;
/// Lengths of a nonce, in bytes. Below, it can be guessed; qualifyingData of a TPM with SHA-256 is no longer than this.
pub const NONCE: std::ops::RangeInclusive<usize> = 16..=64;
const MAX_QUOTES: usize = 4;
/// Of each structure of a TPM.
const MAX_STRUCTURE: usize = 1024;
const MAX_DRIVERS: usize = 10_000;
/// Characters of a text.
const MAX_TEXT: usize = 1024;

/// Why bytes are no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// More than [`MAX_EVIDENCE`] bytes.
    #[error("the evidence has {0} bytes, more than {MAX_EVIDENCE}")]
    TooLong(usize),
    /// Not the JSON that it must be.
    #[error("{0}")]
    Form(String),
    /// A part is too long, too short or too many.
    #[error("{0} is not within its bounds")]
    Bounds(&'static str),
}

/// How a guest uses the PCRs that the firmware leaves to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// shim, a boot loader, a kernel: 8 and 9 are the boot loader's, 14 is shim's.
    Linux,
    /// 11 to 14 are Windows' (WBCL).
    Windows,
}

/// What a machine is made with, each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// Secure Boot.
    pub secure_boot: bool,
    /// A virtual TPM.
    pub vtpm: bool,
    /// The hypervisor enforces code integrity.
    pub hvci: bool,
    /// Credentials are kept out of the guest kernel's reach.
    pub credential_guard: bool,
}

/// Bytes that stand as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A quote, and the values that its digest is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteEvidence {
    /// TPMS_ATTEST, as it was signed.
    pub message: Bytes,
    /// TPMT_SIGNATURE.
    pub signature: Bytes,
    /// PCRs by number. Which there are, and of which bank, stands in `message` too, and must be the same.
    pub pcrs: BTreeMap<u32, Digest>,
}

/// What the engine decided about one driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverEvent {
    /// The guest's name for it.
    pub path: String,
    /// Its authentihash; of a Linux module the digest that is signed.
    pub authentihash: Digest,
    /// Who signed it, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// The version that it says it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it was refused; `None` if it was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// Why a driver was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The finding.
    pub code: Code,
    /// What was seen.
    #[serde(default)]
    pub detail: String,
}

/// Evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The kind of guest.
    pub profile: Profile,
    /// Which machine.
    pub vm: String,
    /// What it was challenged with.
    #[serde(with = "hex::serde")]
    pub nonce: Vec<u8>,
    /// TPM2B_PUBLIC of the attestation key.
    pub ak_public: Bytes,
    /// One for each bank.
    pub quotes: Vec<QuoteEvidence>,
    /// The firmware's log, unless the guest has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcg_log: Option<Bytes>,
    /// Drivers since the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drivers: Vec<DriverEvent>,
    /// What the machine says that it is made with.
    pub features: Features,
}

impl Evidence {
    /// Reads evidence.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn read(json: &[u8]) -> Result<Self, EvidenceError> {
        if json.len() > MAX_EVIDENCE {
            return Err(EvidenceError::TooLong(json.len()));
        }
        let evidence: Self = serde_json::from_slice(json).map_err(|error| EvidenceError::Form(error.to_string()))?;
        evidence.within_bounds().map_err(EvidenceError::Bounds)?;
        Ok(evidence)
    }

    fn within_bounds(&self) -> Result<(), &'static str> {
        let structure = |bytes: &Bytes| (1..=MAX_STRUCTURE).contains(&bytes.0.len());
        let text = |text: &str| text.len() <= MAX_TEXT;
        let some_text = |optional: &Option<String>| optional.as_deref().is_none_or(text);
        let quote = |quote: &QuoteEvidence| structure(&quote.message) && structure(&quote.signature) && quote.pcrs.len() <= 24;
        let driver = |d: &DriverEvent| {
            let refusal = d.refused.as_ref().is_none_or(|refusal| text(&refusal.detail));
            text(&d.path) && some_text(&d.signer) && some_text(&d.version) && refusal && d.authentihash.alg() != DigestAlg::Md5
        };
        let bounds = [
            (is_name(&self.vm), "vm"),
            (NONCE.contains(&self.nonce.len()), "nonce"),
            (structure(&self.ak_public), "ak_public"),
            ((1..=MAX_QUOTES).contains(&self.quotes.len()) && self.quotes.iter().all(quote), "quotes"),
            (self.tcg_log.as_ref().is_none_or(|log| log.0.len() <= MAX_LOG), "tcg_log"),
            (self.drivers.len() <= MAX_DRIVERS && self.drivers.iter().all(driver), "drivers"),
        ];
        bounds.into_iter().find(|(within, _)| !within).map_or(Ok(()), |(_, what)| Err(what))
    }
}

/// Whether `name` can be a machine's: what a file name can have everywhere, and no dot at its start.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}
