//! The credential vault, asked by code that runs in a guest.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod demo;
mod operations;
mod outputs;
mod python;
mod storage;

use hvci_engine::vault::UsePolicy;
use loader_sim::lsa::{Lsa, Options};

pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// A guest whose vault allows everything as often as it is asked.
pub(crate) fn boot() -> Lsa {
    booted(UsePolicy { rate: None, ..UsePolicy::default() })
}

pub(crate) fn booted(policy: UsePolicy) -> Lsa {
    Lsa::boot(Options { policy, ..Options::default() }).unwrap()
}
