//! Attestation: a machine's evidence is appraised by somebody who shares no state with it, and what failed is named.
//!
//! ```text
//! Evidence ─quote (AK, nonce)─► PCRs ─measure (replay, rules)─► log ─boot─► keys, authorities, images ─component─► Appraisal ─► result (EAR), alert
//!                                       Machine (the host's knowledge) ─┘          Reference ─┘
//! ```
//!
//! **Trusts** the reference values, and what the host knows of its machines: the name of the attestation key, how often the machine was
//! started, its TPM's ledger. The key is read from the new TPM by the host itself, over the TPM's command interface, before a guest runs;
//! so no certificate and no challenge of an endorsement key stands between them, and evidence counts only with that very key. **Refuses**
//! everything else: evidence is the guest's. **Never** takes what was not measured for a good sign: claims have a third value.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod alert;
mod appraise;
mod boot;
pub mod challenge;
mod claims;
mod component;
pub mod dbx_info;
pub mod evidence;
mod expected;
mod machine;
pub mod quote;
pub mod reference;
pub mod result;

pub use appraise::{Appraisal, Finding, Verifier};
pub use claims::{Claim, Claims};
pub use component::{ComponentReport, SignerReport, Verdict};
pub use dbx_info::DbxInfo;
pub use evidence::{Evidence, EvidenceError, Features, Profile};
pub use expected::Expected;
pub use machine::{Baseline, Ledger, Machine};
pub use reference::{Reference, ReferenceError};
