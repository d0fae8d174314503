//! Measured boot: the TCG event log, what it makes of the PCRs, and when a verifier refuses it.
//!
//! Source: TCG PC Client Platform Firmware Profile (PFP) 1.05, §10. Two levels:
//! - [`EventLog::read`] is structure. Bytes that are not a log to their end are refused with the offset.
//! - [`check()`] is the rules by which a log that can be read is no evidence. It gives every reason, not the first.
//!
//! Neither trusts anything: a log comes from the guest, and only PCRs that a TPM quotes say whether it was so ([`replay`],
//! [`pcrs::compare`]). An event's type is in no digest, and its data only where [`event_type::EventType::digested`] says so.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod check;
pub mod data;
pub mod device_path;
pub mod event_type;
pub mod gpt;
mod log;
pub mod pcrs;
pub mod record;
mod replay;
pub mod wbcl;
mod write;

pub use check::check;
pub use event_type::EventType;
pub use log::{Algorithms, Digests, Event, EventLog, LogError, MAX_LOG, TpmAlg};
pub use record::Recorder;
pub use replay::{Bank, PCRS, replay};
pub use write::{BuildError, LogBuilder};
