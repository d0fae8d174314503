//! What a VMM needs around the engine's traits: grace periods for the memory that its devices hold, and adapters to the crates that VMMs are
//! built of, each behind a feature of its own.

mod epoch;
#[cfg(feature = "vm-memory")]
mod view;

pub use epoch::{Epochs, Pin};
#[cfg(feature = "vm-memory")]
pub use view::{Guard, VtlMemory, VtlView};
