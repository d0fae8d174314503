//! Kernel code-integrity engine: bytes in, explained verdicts out.
//!
//! ```text
//! bytes ─image─► Image ─signature─► Signatures ─► Facts ─policy(profile, trust, time)─► Verdict
//! ```
//!
//! No I/O, no clock, no ambient trust: bytes, time and anchors come in; facts and verdicts go out. The same input gives the same output.

pub mod budget;
pub mod bytes;
pub mod crypto;
pub mod digest;
pub mod facts;
pub mod finding;
pub mod image;
pub mod oid;
pub mod signature;
pub mod time;
