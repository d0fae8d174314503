//! Adapters between the engine's traits and the crates that VMMs are built of; each behind a feature of its own.

#[cfg(test)]
use shuttle::{sync, thread};
#[cfg(not(test))]
use std::{sync, thread};

mod epoch;
mod view;

pub use epoch::{Epochs, Pin};
pub use view::{Guard, VtlMemory, VtlView};
