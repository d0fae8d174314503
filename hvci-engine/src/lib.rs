//! Kernel code-integrity engine: bytes in, explained verdicts out; and pages that execute only what was verified.
//!
//! ```text
//! bytes ─image─► Image ─signature─► Signatures ─► Facts ─policy(profile, trust, time)─► Verdict
//! ```
//!
//! No I/O, no clock, no ambient trust: bytes, time and anchors come in; facts and verdicts go out. The same input gives the same output.
//!
//! Without the default feature `std` this is the half that enforces, for a VMM: `no_std` and `alloc`.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod access;
pub mod addr;
pub mod bytes;
pub mod digest;
pub mod event;
pub mod explore;
pub mod finding;
pub mod frames;
pub mod host;
pub mod slat;
pub mod status;
mod sync;
pub mod vsm;

#[cfg(feature = "std")]
pub mod budget;
#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "std")]
pub mod crypto;
#[cfg(feature = "std")]
pub mod embed;
#[cfg(feature = "std")]
pub mod examine;
#[cfg(feature = "std")]
pub mod facts;
#[cfg(feature = "std")]
pub mod image;
#[cfg(feature = "std")]
pub mod load;
#[cfg(feature = "std")]
pub mod oid;
#[cfg(feature = "std")]
pub mod policy;
#[cfg(feature = "std")]
pub mod signature;
#[cfg(feature = "std")]
pub mod time;
#[cfg(feature = "std")]
pub mod uefi;
#[cfg(feature = "std")]
pub mod vault;
