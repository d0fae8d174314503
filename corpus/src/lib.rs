//! Driver corpora: find images, look inside packages, audit them in parallel, report, judge again.
//!
//! The engine decides; this library finds the bytes, hands them over in batches and writes down what came out.

pub mod block;
pub mod codes;
pub mod explain;
pub mod fetch;
pub mod report;
pub mod scan;
pub mod source;
pub mod synth;
pub mod trust;
