//! Measured boot: the event log that firmware and boot loaders keep beside the PCRs of a TPM (TCG PC Client Platform Firmware Profile 1.06 §10).
//!
//! ```text
//! bytes ─log::read─► Log ─┬─ replay ─► PCRs, to be compared with those of a TPM
//!                         ├─ check ──► faults: what a verifier must refuse although the PCRs may agree
//!                         └─ content ► what an event says, for people
//! ```
//!
//! A log is written by whoever measured, and then lies in memory of the guest: all of it is hostile. What it says counts only as far as a PCR
//! that a TPM has signed says the same, and an event's type and description never do by themselves.
//! **Boundary:** knows no TPM, no key and no variable store.

pub mod check;
pub mod content;
pub mod event;
pub mod log;
pub mod pcr_file;
pub mod replay;
